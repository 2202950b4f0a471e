"""Subscriptions and their events."""

from alembic import op

from fhir_server.store.subscription_tables import subscription, subscription_event

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Adds the two tables. Subscriptions stored before were never served: each takes effect when it is written again."""
    for table in (subscription, subscription_event):
        table.create(op.get_bind())
    op.execute(
        "COMMENT ON COLUMN outbox.topic IS 'result-new | result-corrected | result-voided | patient-merged | answer-reopened"
        " | resource-changed'"
    )
