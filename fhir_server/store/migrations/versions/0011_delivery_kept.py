"""Bytes of delivered messages are removed after a time (Settings.delivery_keep_days)."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Adds the index that finds them."""
    op.execute(
        "CREATE INDEX delivery_kept ON delivery ((coalesce(delivered, created)))"
        " WHERE status IN ('delivered', 'closed') AND message IS NOT NULL"
    )
