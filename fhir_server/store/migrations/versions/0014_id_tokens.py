"""Id tokens: the resource that stands for a person, and the nonce of a log-in."""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Adds two columns; nobody has a resource yet."""
    op.execute("ALTER TABLE account ADD COLUMN IF NOT EXISTS fhir_user TEXT NOT NULL DEFAULT ''")
    op.execute("COMMENT ON COLUMN account.fhir_user IS 'Practitioner/<id>; empty: none'")
    op.execute("ALTER TABLE login_grant ADD COLUMN IF NOT EXISTS nonce TEXT NOT NULL DEFAULT ''")
    op.execute("COMMENT ON COLUMN login_grant.nonce IS 'of the id token, of a code'")
