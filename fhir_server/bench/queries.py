"""What is asked for in the read and search benches: real ids, patients, codes and days of a loaded database, drawn at random."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import quote

import psycopg

_DRAWN = 2000
_AROUND = timedelta(days=30)


def drawn(conn: psycopg.Connection[Any], most: int = _DRAWN) -> list[tuple[str, str, Any, str]]:
    """Observations from all over the table: (id, patient, effective, LOINC)."""
    size = conn.execute("SELECT greatest(reltuples, 1) FROM pg_class WHERE oid = 'resource'::regclass").fetchone()
    assert size is not None
    share = min(100.0, 100.0 * most * 15 / float(size[0]))
    # Whole pages are drawn, many more than needed, and few rows of each taken; the seed makes the draw the same for the same table.
    return conn.execute(
        "SELECT r.id, r.patient, r.start_at, k.loinc FROM resource r TABLESAMPLE SYSTEM (%s) REPEATABLE (1)"
        " JOIN resource_kind k ON k.id = r.tokens[1] WHERE k.loinc IS NOT NULL AND r.start_at IS NOT NULL ORDER BY md5(r.id) LIMIT %s",
        (share, most),
    ).fetchall()


def reads(conn: psycopg.Connection[Any]) -> list[str]:
    """Reads of single Observations."""
    return [f"Observation/{logical}" for logical, *_ in drawn(conn)]


def searches(conn: psycopg.Connection[Any]) -> dict[str, list[str]]:
    """Name of a kind of search -> paths."""
    some = drawn(conn)
    codes = sorted({loinc for *_, loinc in some})
    return {
        "patient_code_date": [_by_code_and_date(*row) for row in some],
        "patient_history": [f"Observation?patient={patient}&_sort=-date&_count=100" for _, patient, *_ in some],
        "include": [
            f"DiagnosticReport?patient={patient}&_sort=-date&_count=3&_include=DiagnosticReport:result"
            for _, patient, *_ in some
        ],
        "page_1000": [f"Observation?code={quote(f'http://loinc.org|{code}')}&_count=1000" for code in codes],
    }


def _by_code_and_date(logical: str, patient: str, at: Any, loinc: str) -> str:
    low, high = at - _AROUND, at + _AROUND
    code = quote(f"http://loinc.org|{loinc}")
    return f"Observation?patient={patient}&code={code}&date=ge{low:%Y-%m-%d}&date=le{high:%Y-%m-%d}"
