"""Findings kept: written once for what an audit finds, again only when it finds otherwise (table ``finding``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
import psycopg

from conformance import fhirjson
from fhir_server.duplicates.report import EVERYTHING, Finding, Report, Scope, finding_dict

_KNOWN: Final = "SELECT id, version, content FROM finding WHERE id = ANY(%s) AND until IS NULL FOR UPDATE"
_LAST: Final = "SELECT id, max(version) FROM finding WHERE id = ANY(%s) GROUP BY id"
_END: Final = "UPDATE finding SET until = %s WHERE id = ANY(%s) AND until IS NULL"
_COPY: Final = """
COPY finding (id, version, recorded, at, facility, department, doctor, orderable, kind, cause, rules, price_fen, content, body)
FROM STDIN (FORMAT BINARY)"""
_COPIED: Final = (
    "text", "int4", "timestamptz", "timestamptz", "text", "text", "text", "text", "text", "text", "text", "int8", "bytea", "text",
)  # fmt: skip
_STANDING: Final = """
SELECT id, department, doctor, body FROM finding WHERE until IS NULL AND at >= %s AND at < %s AND (%s = '' OR facility = %s)"""
_SEARCH: Final = """
SELECT id, version, recorded, until, body FROM finding
WHERE until IS NULL AND at >= %(start)s AND at < %(end)s AND (%(facility)s = '' OR facility = %(facility)s)
  AND (%(department)s = '' OR department = %(department)s) AND (%(doctor)s = '' OR doctor = %(doctor)s)
  AND (%(item)s = '' OR orderable = %(item)s) AND (%(kind)s = '' OR kind = %(kind)s) AND (%(cause)s = '' OR cause = %(cause)s)
  AND NOT orderable = ANY(%(hidden)s)
ORDER BY at, id LIMIT %(limit)s OFFSET %(offset)s"""
_VERSIONS: Final = "SELECT id, version, recorded, until, body FROM finding WHERE id = %s ORDER BY version"
# Two audits at once would each write a version of the same finding.
_ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(hashtext('tongjian.finding'))"


@dataclass(frozen=True, slots=True)
class Kept:
    """What keeping a report changed: findings new, found otherwise than before, as before, and no findings any more."""

    new: int
    changed: int
    same: int
    ended: int


def keep(conn: psycopg.Connection[Any], report: Report, now: datetime) -> Kept:
    """Writes the findings of a report; the same report twice changes nothing. What stood inside its period and scope and is not found
    any more ends. One transaction."""
    with conn.transaction():
        conn.execute(_ONE_AT_A_TIME)
        ids = [f.id for f in report.findings]
        standing = {key: (version, digest) for key, version, digest in conn.execute(_KNOWN, (ids,))}
        last: dict[str, int] = dict(conn.execute(_LAST, (ids,)).fetchall())
        fresh = ((f, text(f)) for f in report.findings)
        other = [(f, body) for f, body in fresh if standing.get(f.id, (0, b""))[1] != _digest(body)]
        gone = _gone(conn, report, set(ids))
        conn.execute(_END, (now, [*(f.id for f, _ in other), *gone]))
        with conn.cursor() as cursor, cursor.copy(_COPY) as put:
            put.set_types(_COPIED)
            for f, body in other:
                put.write_row(_row(f, last.get(f.id, 0) + 1, now, body))
    changed = sum(f.id in standing for f, _ in other)
    return Kept(len(other) - changed, changed, len(ids) - len(other), len(gone))


def _gone(conn: psycopg.Connection[Any], report: Report, found: set[str]) -> list[str]:
    scope = report.scope
    rows = conn.execute(_STANDING, (report.start, report.end, scope.facility, scope.facility)).fetchall()
    return [
        key for key, department, doctor, body in rows if key not in found and _inside(scope, department, doctor, body)
    ]


def _inside(scope: Scope, department: str | None, doctor: str | None, body: str) -> bool:
    """An audit narrowed down says nothing about what lies outside it."""
    if scope.department not in ("", department) or scope.doctor not in ("", doctor):
        return False
    if not scope.item:
        return True
    kept = json.loads(body)
    return scope.item == kept["orderable"] or scope.item in {
        m["item"] for m in kept["decision"]["members"] if m["required"]
    }


def content(finding: Finding) -> bytes:
    """16-byte digest of a finding: equal, and nothing is written."""
    return _digest(text(finding))


def _digest(body: str) -> bytes:
    return hashlib.sha256(body.encode()).digest()[:16]


def text(finding: Finding) -> str:
    """A finding as JSON text, sorted keys."""
    return orjson.dumps(finding_dict(finding), option=orjson.OPT_SORT_KEYS).decode()


def _row(f: Finding, version: int, now: datetime, body: str) -> tuple[Any, ...]:
    return (
        f.id, version, now, f.at, f.facility, f.department or None, f.doctor or None, f.orderable, f.kind, f.cause,
        f.decision["rules"], f.price_fen, _digest(body), body,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which findings are asked for: a period [start, end), what narrows it, and orderables the asker may not know of."""

    start: datetime
    end: datetime
    scope: Scope = EVERYTHING
    kind: str = ""
    cause: str = ""
    hidden: Sequence[str] = ()
    limit: int = 1000
    offset: int = 0


def search(conn: psycopg.Connection[Any], wanted: Wanted) -> list[dict[str, Any]]:
    """Findings that stand, as JSON values with ``version`` and ``recorded``, oldest order first."""
    named = {
        "start": wanted.start, "end": wanted.end, "facility": wanted.scope.facility, "department": wanted.scope.department,
        "doctor": wanted.scope.doctor, "item": wanted.scope.item, "kind": wanted.kind, "cause": wanted.cause,
        "hidden": list(wanted.hidden), "limit": wanted.limit, "offset": wanted.offset,
    }  # fmt: skip
    return [_kept(*row) for row in conn.execute(_SEARCH, named)]


def versions(conn: psycopg.Connection[Any], id: str) -> list[dict[str, Any]]:
    """Every version of one finding, oldest first; empty when there is none of that id."""
    return [_kept(*row) for row in conn.execute(_VERSIONS, (id,))]


def _kept(id: str, version: int, recorded: datetime, until: datetime | None, body: str) -> dict[str, Any]:
    found: dict[str, Any] = fhirjson.loads(body)
    times = {"recorded": recorded.isoformat(), "until": until.isoformat() if until else None}
    return found | {"id": id, "version": version} | times
