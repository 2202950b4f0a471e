"""Polled databases: where each poll stands, and which reports it knows."""

from alembic import op

from fhir_server.store.intake_tables import poll, poll_report

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Creates the tables."""
    for table in (poll, poll_report):
        table.create(op.get_bind())
