"""Parts of continued messages are found by facility and time (ingest.parts)."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Adds the index and the comment."""
    op.execute("CREATE INDEX inbox_part ON inbox (facility, received_at) WHERE flag = 'part'")
    op.execute(
        "COMMENT ON COLUMN inbox.flag IS"
        " 'control-id-reused when the control id came before with other bytes; part: of a continued message'"
    )
