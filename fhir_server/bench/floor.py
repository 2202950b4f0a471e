"""The floor under the ingest figures: how fast PostgreSQL takes the same bytes by a plain COPY, with nothing done to them.

Once into bare tables (no index, one COPY, one commit) and once into tables with all their indexes, in transactions as large as
those of a converter. No program that stores these rows on this machine can be faster.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg import sql

_TABLES = ("resource", "search_value")
_BATCH = 80 * 25
_MOST = 120_000


def copy_again(url: str) -> dict[str, float]:
    """Copies rows of the newest resources out and in again -> resources a second, bare and indexed. Leaves nothing behind."""
    with psycopg.connect(url, autocommit=True) as conn:
        rows = {t: _out(conn, t) for t in _TABLES}
        resources = len(rows["resource"])
        bare = _into(conn, rows, "", resources)
        indexed = _into(conn, rows, " INCLUDING INDEXES", _BATCH)
    return {
        "copy_resources_per_s": round(resources / bare),
        "copy_indexed_resources_per_s": round(resources / indexed),
    }


def _out(conn: psycopg.Connection[Any], table: str) -> list[bytes]:
    with (
        conn.cursor() as cursor,
        cursor.copy(
            sql.SQL("COPY (SELECT * FROM {} LIMIT {}) TO STDOUT").format(sql.Identifier(table), sql.Literal(_MOST))
        ) as source,
    ):
        return [bytes(line) for line in source]


def _into(conn: psycopg.Connection[Any], rows: dict[str, list[bytes]], with_: str, batch: int) -> float:
    """Seconds to take in the rows, in transactions of ``batch`` resources and what belongs to them."""
    names = {t: f"floor_{t}" for t in _TABLES}
    for table, name in names.items():
        conn.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS{with_})")
    try:
        total = max(len(rows["resource"]), 1)
        began = time.perf_counter()
        for start in range(0, total, batch):
            with conn.transaction(), conn.cursor() as cursor:
                for table, name in names.items():
                    own = rows[table]
                    low, high = start * len(own) // total, min(start + batch, total) * len(own) // total
                    if low < high:
                        with cursor.copy(f"COPY {name} FROM STDIN") as target:
                            target.write(b"".join(own[low:high]))
        return time.perf_counter() - began
    finally:
        for name in names.values():
            conn.execute(f"DROP TABLE {name}")
