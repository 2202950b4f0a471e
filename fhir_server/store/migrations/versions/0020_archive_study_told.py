"""What an archive told of a study when it was last fetched: one whose patient or order was corrected is fetched again."""

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Adds the column where the table was made without it."""
    op.execute("ALTER TABLE archive_study ADD COLUMN IF NOT EXISTS told text NOT NULL DEFAULT ''")
