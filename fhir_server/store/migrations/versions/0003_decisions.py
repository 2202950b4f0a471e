"""Decisions on reminders, findings of the duplicate audit with their review, and look-ups into the ledger."""

from alembic import op

revision = "0003"
down_revision = "0002"

_STATEMENTS = (
    'ALTER TABLE ledger ADD COLUMN card TEXT COLLATE "C", ADD COLUMN doctor TEXT, ADD COLUMN department TEXT,'
    " ADD COLUMN reports TEXT[]",
    # A NUL in JSON is no text PostgreSQL can take out of it; such a row is found by its entry alone.
    r"""
    UPDATE ledger SET card = entry::json ->> 'card', doctor = entry::json ->> 'user',
      reports = (
        SELECT array_agg(DISTINCT split_part(m -> 'result' ->> 'report', '/', 2))
        FROM json_array_elements(entry::json -> 'decision' -> 'members') m WHERE m -> 'result' ->> 'report' IS NOT NULL)
    WHERE position('\u0000' IN entry) = 0
    """,
    "CREATE INDEX ledger_card ON ledger (card) WHERE card IS NOT NULL",
    "CREATE INDEX ledger_reports ON ledger USING gin (reports) WHERE reports IS NOT NULL",
    "COMMENT ON TABLE ledger IS 'card, doctor, department and reports repeat what stands in the hashed entry, for look-ups'",
    "COMMENT ON COLUMN ledger.kind IS 'reminder | no-answer | visit | view | feedback | decision | citation'",
    "COMMENT ON COLUMN ledger.card IS 'card id in the entry: reminder, visit, and what was said about them'",
    "COMMENT ON COLUMN ledger.doctor IS 'user in the entry'",
    "COMMENT ON COLUMN ledger.department IS 'department in the entry'",
    "COMMENT ON COLUMN ledger.reports IS 'DiagnosticReports the entry names, logical ids'",
    """
    CREATE TABLE decision (
        card TEXT COLLATE "C" NOT NULL,
        sequence SMALLINT NOT NULL,
        id TEXT COLLATE "C" NOT NULL UNIQUE,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        action TEXT NOT NULL,
        revokes TEXT COLLATE "C",
        person TEXT COLLATE "C",
        facility TEXT NOT NULL,
        department TEXT,
        doctor TEXT NOT NULL,
        orderable TEXT,
        reason TEXT,
        refusal BOOLEAN NOT NULL,
        price_fen BIGINT,
        content BYTEA NOT NULL,
        entry TEXT NOT NULL,
        PRIMARY KEY (card, sequence)
    )
    """,
    "CREATE INDEX decision_at ON decision (at)",
    "CREATE INDEX decision_person ON decision (person)",
    "COMMENT ON TABLE decision IS 'one row for each decision of the ledger; never changed'",
    "COMMENT ON COLUMN decision.card IS 'the reminder it answers'",
    "COMMENT ON COLUMN decision.sequence IS 'odd: adopt or decline; even: revokes the one before it'",
    "COMMENT ON COLUMN decision.id IS 'derived from the card and the key of the request'",
    "COMMENT ON COLUMN decision.action IS 'adopt | decline | revoke'",
    "COMMENT ON COLUMN decision.revokes IS 'id of the decision it takes back'",
    "COMMENT ON COLUMN decision.reason IS 'code of the reason for declining'",
    "COMMENT ON COLUMN decision.refusal IS 'counts as a refusal: declined for one of the six reasons'",
    "COMMENT ON COLUMN decision.price_fen IS 'receiver''s price at that moment; null when not known'",
    "COMMENT ON COLUMN decision.content IS '16-byte digest of what was asked for: equal -> a repeat'",
    "COMMENT ON COLUMN decision.entry IS 'as in its ledger row'",
    """
    CREATE TABLE finding (
        id TEXT COLLATE "C" NOT NULL,
        version INTEGER NOT NULL,
        recorded TIMESTAMP WITH TIME ZONE NOT NULL,
        until TIMESTAMP WITH TIME ZONE,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        facility TEXT NOT NULL,
        department TEXT,
        doctor TEXT,
        orderable TEXT NOT NULL,
        kind TEXT NOT NULL,
        cause TEXT NOT NULL,
        rules TEXT NOT NULL,
        price_fen BIGINT,
        content BYTEA NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (id, version)
    )
    """,
    "CREATE INDEX finding_at ON finding (at) WHERE until IS NULL",
    "COMMENT ON TABLE finding IS 'findings of the duplicate audit, each as often as it changed'",
    "COMMENT ON COLUMN finding.id IS 'derived from order and orderable'",
    "COMMENT ON COLUMN finding.until IS 'when a later audit found otherwise; null while it stands'",
    "COMMENT ON COLUMN finding.at IS 'time of the order'",
    "COMMENT ON COLUMN finding.kind IS 'avoidable | justified | undetermined | system'",
    "COMMENT ON COLUMN finding.content IS '16-byte digest of body'",
    "COMMENT ON COLUMN finding.body IS 'the finding as JSON'",
    """
    CREATE TABLE finding_review (
        finding TEXT COLLATE "C" NOT NULL,
        number INTEGER NOT NULL,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        step TEXT NOT NULL,
        by TEXT NOT NULL,
        facility TEXT NOT NULL,
        version INTEGER NOT NULL,
        verdict TEXT,
        text TEXT NOT NULL,
        PRIMARY KEY (finding, number)
    )
    """,
    "COMMENT ON TABLE finding_review IS 'case review: what was drawn, judged and appealed against; never changed'",
    "COMMENT ON COLUMN finding_review.step IS 'sampled | verdict | appeal'",
    "COMMENT ON COLUMN finding_review.facility IS 'of the one who acts; empty for the consortium'",
    "COMMENT ON COLUMN finding_review.version IS 'version of the finding it is about'",
    "COMMENT ON COLUMN finding_review.verdict IS 'avoidable | justified | undetermined | system'",
)


def upgrade() -> None:
    """Adds the columns and tables; what the ledger holds already is looked up too."""
    for statement in _STATEMENTS:
        op.execute(statement.replace(":", r"\:"))
