"""What was stated about two Patients is kept for each pair, so that an unlinking finds its link whichever of the two it names first."""

from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """Widens the primary key; what is stored stays as it is."""
    op.execute(
        "ALTER TABLE identity_merge DROP CONSTRAINT identity_merge_pkey, ADD PRIMARY KEY (shard, patient, surviving)"
    )
    comment = "what facilities said about their own double Patients, newest statement of each pair"
    op.execute(f"COMMENT ON TABLE identity_merge IS '{comment}'")
