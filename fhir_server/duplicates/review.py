"""Case review of findings: drawn by lot, judged by a person, appealed against by the facility, judged again (table ``finding_review``).

Steps are only added. The verdict of a person goes over the program's in every figure that says "reviewed"; the finding stays as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, get_args

import psycopg

from fhir_server.duplicates.findings import Wanted, search
from fhir_server.duplicates.report import Kind
from fhir_server.errors import Category, Fault

Step = Literal["sampled", "verdict", "appeal"]
TEXT_LENGTH: Final = 2000

_LINE: Final = """
SELECT number, at, step, by, facility, version, verdict, text FROM finding_review WHERE finding = %s ORDER BY number"""
_FINDING: Final = "SELECT facility, version FROM finding WHERE id = %s ORDER BY version DESC LIMIT 1 FOR UPDATE"
_INSERT: Final = """
INSERT INTO finding_review (finding, number, at, step, by, facility, version, verdict, text)
SELECT %(finding)s, coalesce(max(number), 0) + 1, %(at)s, %(step)s, %(by)s, %(facility)s, %(version)s, %(verdict)s, %(text)s
FROM finding_review WHERE finding = %(finding)s RETURNING number"""
_SAMPLED: Final = "SELECT finding FROM finding_review WHERE step = 'sampled' AND finding = ANY(%s)"
_OPEN: Final = """
SELECT f.id, f.facility, f.kind, f.cause, f.at, s.step, s.verdict FROM finding f
JOIN LATERAL (SELECT step, verdict FROM finding_review r WHERE r.finding = f.id ORDER BY number DESC LIMIT 1) s ON true
WHERE f.until IS NULL AND s.step <> 'verdict' AND (%(facility)s = '' OR f.facility = %(facility)s) ORDER BY f.at, f.id"""


@dataclass(frozen=True, slots=True)
class Reviewer:
    """Who acts: his name as the token or command says, and his facility, empty for the consortium."""

    name: str
    facility: str = ""


def sample(
    conn: psycopg.Connection[Any], wanted: Wanted, size: int, seed: str, reviewer: Reviewer, now: datetime
) -> list[str]:
    """Draws ``size`` of the findings wanted for review; ids. The same seed draws the same ones, and they are
    written once.

    The lot is the order of SHA-256(seed, id), so that anybody can check that nobody chose.
    """
    with conn.transaction():
        found = {f["id"]: f for f in search(conn, wanted)}
        drawn = sorted(found, key=lambda key: hashlib.sha256(f"{seed}\x1f{key}".encode()).digest())[:size]
        before = {row[0] for row in conn.execute(_SAMPLED, (drawn,))}
        for key in drawn:
            if key not in before:
                _add(conn, key, "sampled", reviewer, found[key]["version"], None, f"seed {seed}", now)
    return drawn


def judge(
    conn: psycopg.Connection[Any], finding: str, verdict: str, text: str, reviewer: Reviewer, now: datetime
) -> int:
    """A reviewer's verdict with its grounds; number of the step. Raises Fault: NOT_FOUND, INVALID, or FORBIDDEN for the facility that
    is judged (nobody judges his own case)."""
    if verdict not in get_args(Kind):
        raise Fault(Category.INVALID, f"verdict is one of {', '.join(get_args(Kind))}.", where="verdict")
    with conn.transaction():
        facility, version = _finding(conn, finding)
        if reviewer.facility == facility:
            raise Fault(Category.FORBIDDEN, "A facility does not judge its own cases; it may appeal.")
        return _add(conn, finding, "verdict", reviewer, version, verdict, _words(text), now)


def appeal(conn: psycopg.Connection[Any], finding: str, text: str, reviewer: Reviewer, now: datetime) -> int:
    """The audited facility says why it sees it otherwise; number of the step. Raises Fault: NOT_FOUND (also of another facility),
    INVALID without words, CONFLICT while an appeal waits for its verdict."""
    with conn.transaction():
        facility, version = _finding(conn, finding)
        if reviewer.facility not in ("", facility):
            raise _unknown()
        line = steps(conn, finding)
        if line and line[-1]["step"] == "appeal":
            raise Fault(Category.CONFLICT, "An appeal against this finding waits for its verdict.")
        return _add(conn, finding, "appeal", reviewer, version, None, _words(text), now)


def steps(conn: psycopg.Connection[Any], finding: str) -> list[dict[str, Any]]:
    """Every step of a finding's review, oldest first."""
    names = ("number", "at", "step", "by", "facility", "version", "verdict", "text")
    rows = conn.execute(_LINE, (finding,)).fetchall()
    return [dict(zip(names, row, strict=True)) | {"at": row[1].isoformat()} for row in rows]


def state(line: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where a review stands: ``none``, ``sampled``, ``appealed`` or ``judged``, and the last verdict."""
    verdicts = [s["verdict"] for s in line if s["step"] == "verdict"]
    named = {"sampled": "sampled", "appeal": "appealed", "verdict": "judged"}
    return {"state": named[line[-1]["step"]] if line else "none", "verdict": verdicts[-1] if verdicts else None}


def waiting(conn: psycopg.Connection[Any], facility: str = "") -> list[dict[str, Any]]:
    """Findings drawn or appealed against that wait for a verdict."""
    names = ("id", "facility", "kind", "cause", "at", "step", "verdict")
    rows = conn.execute(_OPEN, {"facility": facility}).fetchall()
    return [dict(zip(names, row, strict=True)) | {"at": row[4].isoformat()} for row in rows]


def _finding(conn: psycopg.Connection[Any], id: str) -> tuple[str, int]:
    row = conn.execute(_FINDING, (id,)).fetchone()
    if row is None:
        raise _unknown()
    return row[0], row[1]


def _unknown() -> Fault:
    return Fault(Category.NOT_FOUND, "There is no finding of that id.")


def _words(text: str) -> str:
    words = text.strip().replace("\x00", "")
    if not 0 < len(words) <= TEXT_LENGTH:
        raise Fault(Category.INVALID, f"Say why, in 1 to {TEXT_LENGTH} characters.", where="text")
    return words


def _add(
    conn: psycopg.Connection[Any],
    finding: str,
    step: Step,
    reviewer: Reviewer,
    version: int,
    verdict: str | None,
    text: str,
    now: datetime,
) -> int:
    named = {
        "finding": finding, "at": now, "step": step, "by": reviewer.name, "facility": reviewer.facility, "version": version,
        "verdict": verdict, "text": text,
    }  # fmt: skip
    row = conn.execute(_INSERT, named).fetchone()
    assert row is not None
    return int(row[0])
