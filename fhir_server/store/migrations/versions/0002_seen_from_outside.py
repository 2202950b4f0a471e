"""Workers and feeds as an operator sees them: tables worker and feed."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Creates both tables."""
    op.execute("""
        CREATE TABLE worker (
            name TEXT NOT NULL PRIMARY KEY,
            version TEXT NOT NULL,
            started TIMESTAMP WITH TIME ZONE NOT NULL,
            seen TIMESTAMP WITH TIME ZONE NOT NULL,
            counts JSONB NOT NULL
        )
    """)
    op.execute("COMMENT ON TABLE worker IS 'worker processes; no patient data'")
    op.execute("COMMENT ON COLUMN worker.name IS 'host/pid/random; or retired: the sum of those that are gone'")
    op.execute("COMMENT ON COLUMN worker.version IS 'of the program'")
    op.execute("COMMENT ON COLUMN worker.seen IS 'last sign of life, by the clock of the database'")
    op.execute("COMMENT ON COLUMN worker.counts IS 'totals of its metrics'")
    op.execute("""
        CREATE TABLE feed (
            facility TEXT NOT NULL,
            channel TEXT NOT NULL,
            received_at TIMESTAMP WITH TIME ZONE NOT NULL,
            PRIMARY KEY (facility, channel)
        )
    """)
    op.execute("COMMENT ON TABLE feed IS 'channels that were ever heard'")
    op.execute("COMMENT ON COLUMN feed.received_at IS 'when its last message arrived'")
