"""What results take on disk, by table and by index."""

from __future__ import annotations

from typing import Any

import psycopg

RESULT_TABLES = (
    "resource",
    "resource_history",
    "search_value",
    "resource_kind",
    "business_key",
    "client_id",
    "source_patient",
    "identity_link",
    "identity_merge",
    "identity_review",
    "outbox",
)
"""Tables that grow with results. What a database holds once (dictionaries, mapping versions, worklist) is not among them."""
_SMALL = 100_000


def bytes_per_observation(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    """All tables and indexes that grow with results, history included, for each version of an Observation.

    They are vacuumed first: dead rows are free space for the next ones, and what waits in front of a GIN index goes to its place.
    """
    for table in RESULT_TABLES:
        conn.execute(f"VACUUM (ANALYZE) {table}")
    observations = max(1, one(conn, "SELECT count(*) FROM result"))
    tables = {t: one(conn, f"SELECT pg_table_size('{t}')") for t in RESULT_TABLES}
    indexes = conn.execute(
        "SELECT indexrelname, pg_relation_size(indexrelid) FROM pg_stat_user_indexes WHERE relname = ANY(%s) ORDER BY 2 DESC",
        (list(RESULT_TABLES),),
    ).fetchall()
    parts = [*tables.items(), *indexes]
    return {
        "bytes_per_observation": round(sum(size for _, size in parts) / observations),
        "bytes_per_observation_of": {name: round(size / observations, 1) for name, size in parts if size > _SMALL},
    }


def of_database(url: str) -> dict[str, Any]:
    """The same, and the size of the whole database beside that of shared_buffers, in MB."""
    with psycopg.connect(url, autocommit=True) as conn:
        return {
            **bytes_per_observation(conn),
            "database_mb": round(one(conn, "SELECT pg_database_size(current_database())") / 1e6),
            "shared_buffers_mb": round(one(conn, "SELECT pg_size_bytes(current_setting('shared_buffers'))") / 1e6),
        }


def one(conn: psycopg.Connection[Any], query: str) -> int:
    """The number a query gives."""
    row = conn.execute(query).fetchone()
    assert row is not None
    return int(row[0])
