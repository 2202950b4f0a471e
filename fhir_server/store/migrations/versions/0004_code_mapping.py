"""Code mappings people decided on in the worklist: table code_mapping."""

from alembic import op

revision = "0004"
down_revision = "0003"

_STATEMENTS = (
    """
    CREATE TABLE code_mapping (
        id BIGINT GENERATED ALWAYS AS IDENTITY,
        facility TEXT NOT NULL,
        kind TEXT NOT NULL,
        code TEXT NOT NULL,
        name TEXT NOT NULL,
        target TEXT,
        valid_from DATE,
        valid_to DATE,
        recorded TIMESTAMP WITH TIME ZONE NOT NULL,
        recorded_by TEXT NOT NULL,
        until TIMESTAMP WITH TIME ZONE,
        note TEXT NOT NULL,
        replayed TIMESTAMP WITH TIME ZONE,
        PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX code_mapping_current ON code_mapping (facility, kind, code) WHERE until IS NULL",
    "COMMENT ON TABLE code_mapping IS 'what people decided in the mapping worklist; rows are only added and ended; no patient data'",
    "COMMENT ON COLUMN code_mapping.kind IS 'code | order | unit, as unmapped.kind'",
    "COMMENT ON COLUMN code_mapping.code IS 'local code as sent, empty when none is; the unit text for a unit'",
    "COMMENT ON COLUMN code_mapping.target IS 'item, orderable or UCUM code; null: rejected, it has none'",
    "COMMENT ON COLUMN code_mapping.valid_from IS 'first day of results it holds for; null: open'",
    "COMMENT ON COLUMN code_mapping.valid_to IS 'last day, inclusive; null: open'",
    "COMMENT ON COLUMN code_mapping.recorded IS 'from when it was known'",
    "COMMENT ON COLUMN code_mapping.recorded_by IS 'who decided'",
    "COMMENT ON COLUMN code_mapping.until IS 'when a later decision took its place; null while it holds'",
    "COMMENT ON COLUMN code_mapping.replayed IS 'when stored messages were put back because of it'",
)


def upgrade() -> None:
    """Creates the table."""
    for statement in _STATEMENTS:
        op.execute(statement)
