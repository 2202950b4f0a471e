"""Search by quantity, number and the text of codes: spans in search_value, base units of the units in resource_kind."""

import sqlalchemy as sa
from alembic import op

from fhir_server.search.quantities import base_of

revision = "0007"
down_revision = "0006"

_STATEMENTS = (
    "ALTER TABLE search_value ADD COLUMN number_high NUMERIC",
    "COMMENT ON COLUMN search_value.number IS 'lower bound of a quantity or number; string says the unit (search/quantities)'",
    "COMMENT ON COLUMN search_value.number_high IS 'upper bound, inclusive'",
    "CREATE INDEX search_value_number ON search_value (rtype, param, string, number) WHERE number IS NOT NULL",
    "ALTER TABLE resource_kind ADD COLUMN base TEXT, ADD COLUMN factor NUMERIC, ADD COLUMN texts TEXT[]",
    "COMMENT ON COLUMN resource_kind.texts IS 'path number:normalised text of coded values (search/params)'",
    "COMMENT ON COLUMN resource_kind.base IS 'base units of a UCUM unit (search/quantities); null when it has none'",
    "COMMENT ON COLUMN resource_kind.factor IS 'what a number in the unit is multiplied by to stand in base units'",
)


def upgrade() -> None:
    """Adds the columns and fills in the base units of the units in use."""
    for statement in _STATEMENTS:
        op.execute(statement)
    connection = op.get_bind()
    told = connection.execute(sa.text("SELECT DISTINCT unit FROM resource_kind WHERE unit IS NOT NULL")).scalars().all()
    for unit in told:
        base = base_of(unit)
        if base is not None:
            connection.execute(
                sa.text("UPDATE resource_kind SET base = :base, factor = :factor WHERE unit = :unit"),
                {"base": base.text, "factor": base.factor, "unit": unit},
            )
