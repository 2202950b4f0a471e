"""How far what is stored follows the rules of who may see what."""

from alembic import op

from fhir_server.store.access_tables import access_refresh

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Adds the table, empty: of what is stored already, nobody knows by which rules it was classed."""
    access_refresh.create(op.get_bind())
