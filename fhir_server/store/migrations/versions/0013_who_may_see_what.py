"""Who may see what: sensitive classes, treatment, consents, opened records, accounts, codes and refresh tokens, used assertions."""

import sqlalchemy as sa
from alembic import op

from fhir_server.store.access_tables import account, consent_rule, login_grant, opened, treatment, used_assertion
from mappings import catalogue
from mappings.sensitive import bit_of

revision = "0013"
down_revision = "0012"

_CLASSES = "classes that need a grant, as bits (mappings.sensitive); null: none"


def upgrade() -> None:
    """Adds tables and columns; results of sensitive catalogue items that are stored already get their class."""
    op.execute("ALTER TABLE resource ADD COLUMN sensitivity SMALLINT")
    op.execute("ALTER TABLE resource_history ADD COLUMN sensitivity SMALLINT")
    op.execute(f"COMMENT ON COLUMN resource.sensitivity IS '{_CLASSES}'")
    op.execute("COMMENT ON COLUMN resource_history.sensitivity IS 'as resource.sensitivity'")
    connection = op.get_bind()
    for table in (treatment, consent_rule, opened, account, login_grant, used_assertion):
        table.create(connection)
    for item in catalogue.shipped().items.values():
        if item.sensitivity:
            named = {"item": item.code, "bit": bit_of(item.sensitivity)}
            for name, kind in (("resource", "tokens[1]"), ("resource_history", "kind")):
                found = "SELECT id FROM resource_kind WHERE item = :item"
                changed = f"UPDATE {name} SET sensitivity = :bit WHERE {kind} IN ({found})"  # noqa: S608 -- our own names
                connection.execute(sa.text(changed), named)
    connection.execute(
        sa.text(
            "UPDATE resource d SET sensitivity = o.bits FROM (SELECT shard, parent, bit_or(sensitivity) AS bits FROM resource "
            "WHERE sensitivity IS NOT NULL AND parent IS NOT NULL GROUP BY shard, parent) o "
            "WHERE d.shard = o.shard AND d.id = o.parent"
        )
    )
