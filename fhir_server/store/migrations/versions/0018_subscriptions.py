"""Subscriptions and their events; answers re-opened are told of like others."""

from alembic import op

from fhir_server.store.subscription_tables import subscription, subscription_event

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Adds the two tables. Subscriptions stored before were never served: each takes effect when it is written again. Answers
    re-opened before are not told of now."""
    for table in (subscription, subscription_event):
        table.create(op.get_bind())
    op.execute(
        "COMMENT ON COLUMN outbox.topic IS 'result-new | result-corrected | result-voided | patient-merged | answer-reopened"
        " | resource-changed'"
    )
    op.execute("""
        CREATE OR REPLACE FUNCTION ledger_told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO ledger_news SELECT chain, number FROM added
            WHERE kind IN ('reminder', 'no-answer', 'visit', 'decision', 'reopened');
            RETURN NULL;
        END $$
        """)
