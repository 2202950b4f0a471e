"""Results that name no order are found without reading those that do: the duplicate audit counts them apart."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Adds the index, which is empty where feeds send orders."""
    op.execute(
        'CREATE INDEX resource_unordered ON resource (shard, parent) WHERE rtype = 15 AND "order" IS NULL AND parent IS NOT NULL'
    )
