"""Ledger rows wait in ledger_news until they can be read as FHIR resources."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Adds the table and fills it with the rows there are; a trigger adds each new one in its own transaction."""
    op.execute("""
        CREATE TABLE ledger_news (chain TEXT COLLATE "C" NOT NULL, number BIGINT NOT NULL, PRIMARY KEY (chain, number))
        """)
    op.execute("COMMENT ON TABLE ledger_news IS 'rows of the ledger that are no resources yet'")
    op.execute("""
        INSERT INTO ledger_news SELECT chain, number FROM ledger
        WHERE kind IN ('reminder', 'no-answer', 'visit', 'decision')
        """)
    op.execute("""
        CREATE FUNCTION ledger_told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO ledger_news SELECT chain, number FROM added
            WHERE kind IN ('reminder', 'no-answer', 'visit', 'decision');
            RETURN NULL;
        END $$
        """)
    op.execute("""
        CREATE TRIGGER ledger_told AFTER INSERT ON ledger REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION ledger_told()
        """)
