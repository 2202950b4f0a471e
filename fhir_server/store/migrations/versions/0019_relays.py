"""Relays, and the messages that came through them."""

from alembic import op

from fhir_server.store.intake_tables import relay, relayed

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Creates the tables."""
    for table in (relay, relayed):
        table.create(op.get_bind())
