"""The demo's report: what the repository and the duplicate audit say, as small tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from conformance.capability import TYPE_NAMES
from fhir_server.duplicates import detect, report
from fhir_server.recognition import rules
from mappings.profile import Profile

Connection = psycopg.Connection[Any]

_FACILITIES = """
SELECT facility, count(*),
       count(*) FILTER (WHERE status = 'done'),
       count(*) FILTER (WHERE status = 'quality-control'),
       count(*) FILTER (WHERE status = 'held'),
       count(*) FILTER (WHERE status = 'failed'),
       string_agg(DISTINCT reason, ', ') FILTER (WHERE status IN ('held', 'failed'))
  FROM inbox GROUP BY facility ORDER BY facility
"""


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(
            column, justify="right" if rows and isinstance(rows[0][columns.index(column)], int) else "left"
        )
    for row in rows:
        table.add_row(*("" if v is None else str(v) for v in row))
    console.print()
    console.print(table)


def facilities(console: Console, conn: Connection) -> None:
    """Accepted, converted and held messages per facility."""
    columns = ("facility", "received", "converted", "quality control", "held", "refused", "reasons")
    _table(console, "Messages", columns, conn.execute(_FACILITIES).fetchall())


def resources(console: Console, conn: Connection) -> None:
    """Current resources by type, and versions superseded."""
    rows = conn.execute(
        "SELECT r.rtype, count(*), coalesce((SELECT count(*) FROM resource_history h WHERE h.rtype = r.rtype), 0)"
        " FROM resource r WHERE NOT deleted GROUP BY r.rtype ORDER BY 2 DESC"
    ).fetchall()
    _table(console, "Resources", ("type", "current", "earlier versions"), [(TYPE_NAMES[t], n, h) for t, n, h in rows])


def unmapped(console: Console, conn: Connection) -> None:
    """Local codes and units without a mapping: stored as they are, never recognized."""
    rows = conn.execute(
        "SELECT facility, kind, code, name, unit, count FROM unmapped ORDER BY count DESC, facility, code LIMIT 12"
    ).fetchall()
    _table(console, "Not mapped (worklist)", ("facility", "kind", "code", "name", "unit", "count"), rows)


def identity(console: Console, conn: Connection) -> None:
    """Facility Patients, persons, and pairs left for a person to look at."""
    counts = conn.execute(
        "SELECT (SELECT count(*) FROM source_patient), (SELECT count(DISTINCT person) FROM source_patient),"
        " (SELECT count(*) FROM identity_review WHERE closed IS NULL)"
    ).fetchone()
    assert counts is not None
    _table(console, "Identity", ("facility Patients", "persons", "pairs to review"), [counts])


def bad_messages(console: Console, answers: Sequence[tuple[str, str]]) -> None:
    """What was deliberately wrong, and the acknowledgement it got."""
    _table(console, "Deliberately bad messages", ("what was wrong", "acknowledgement"), answers)


def duplicate_audit(
    console: Console, conn: Connection, profiles: Mapping[str, Profile], start: datetime, end: datetime
) -> None:
    """The duplicate audit of the demo's day."""
    console.print()
    console.print(report.table(detect.audit(conn, rules.load(), profiles, start, end)))
