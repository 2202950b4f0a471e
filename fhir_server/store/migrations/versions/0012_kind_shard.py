"""An index of resources by kind and shard: a page of a frequent code reads as much of it as the page holds (search/page)."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rows of one kind in one shard stand together and share one entry, so it takes some twenty bytes for each resource."""
    op.execute("CREATE INDEX resource_by_kind ON resource ((tokens[1]), shard)")
