"""SearchParameters that were posted, and the number by which every process sees that they changed."""

from alembic import op

from fhir_server.store.resource_tables import posted_parameter, search_generation

revision = "0015"
down_revision = "0014"

# A transaction does not see its own changes: they may be rolled back.
# The lock says that a transaction writes by the parameters of that number; who indexes what is stored waits for the older ones.
_SEEN = """
CREATE FUNCTION search_generation(known integer) RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1886352740, known);
    RETURN (SELECT CASE WHEN xmin = pg_current_xact_id_if_assigned()::xid THEN known ELSE number END FROM search_generation);
END $$
"""


def upgrade() -> None:
    """Adds two tables and a function."""
    connection = op.get_bind()
    posted_parameter.create(connection)
    search_generation.create(connection)
    op.execute("INSERT INTO search_generation VALUES (0)")
    op.execute(_SEEN)
