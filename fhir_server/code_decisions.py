"""What people decide about local codes: accept and reject. Each decision keeps who and when; a later one ends the earlier one.

Two times: the days of results a mapping holds for (valid_from, valid_to), and from when to when it was the recorded decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import psycopg

from mappings.accepted import Accepted, fault, in_files
from mappings.catalogue import Catalogue
from mappings.profile import Profile


class CannotDecide(Exception):
    """The decision cannot be recorded; the text says why."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision to record. ``target`` empty rejects: the code has no item (orderable, UCUM unit).

    facility, kind, code, name  as in the worklist; for a unit ``code`` is its text
    valid_from, valid_to        days ``YYYY-MM-DD``, inclusive, empty = open
    """

    facility: str
    kind: str
    code: str
    name: str
    target: str
    valid_from: str = ""
    valid_to: str = ""
    note: str = ""

    def mapping(self) -> Accepted:
        """The mapping it makes when it accepts."""
        return Accepted(self.kind, self.code, self.name, self.target, self.valid_from, self.valid_to)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision as it stands in the table."""

    decision: Decision
    recorded: datetime
    recorded_by: str
    until: datetime | None
    replayed: datetime | None


def check(decision: Decision, profiles: Mapping[str, Profile], catalogue: Catalogue) -> str:
    """Why a decision cannot be recorded, one sentence; empty when it can."""
    profile = profiles.get(decision.facility)
    if profile is None:
        return f"There is no facility profile {decision.facility!r}."
    for day in (decision.valid_from, decision.valid_to):
        if day and not _is_day(day):
            return f"{day!r} is not a date YYYY-MM-DD."
    mapping = decision.mapping()
    if not decision.target:
        return "" if decision.code.strip() or decision.name.strip() else "A code or a name is needed."
    if wrong := fault(mapping, catalogue):
        return wrong
    known = in_files(profile, mapping)
    if known:
        return f"{decision.code or decision.name!r} is mapped to {known} by a file of the facility; change it there."
    return ""


def record(conn: psycopg.Connection[Any], decisions: Sequence[Decision], who: str, at: datetime) -> int:
    """Records checked decisions in one transaction; returns how many changed something. What stands already is not recorded again.

    Raises CannotDecide when ``who`` is empty.
    """
    if not who.strip():
        raise CannotDecide("It must be said who decides.")
    changed = 0
    with conn.transaction():
        # One after the other, so that the newest number tells every process that something changed (fhir_server.code_mappings).
        conn.execute("LOCK TABLE code_mapping IN EXCLUSIVE MODE")
        for decision in decisions:
            changed += _record(conn, decision, who.strip(), at)
    return changed


def history(
    conn: psycopg.Connection[Any], *, facility: str | None = None, code: str | None = None, ended: bool = True
) -> list[Recorded]:
    """Decisions, oldest first; without those that were ended when ``ended`` is False."""
    rows = conn.execute(
        "SELECT facility, kind, code, name, target, valid_from, valid_to, note, recorded, recorded_by, until, replayed"
        " FROM code_mapping WHERE (%(facility)s::text IS NULL OR facility = %(facility)s)"
        " AND (%(code)s::text IS NULL OR code = %(code)s) AND (%(ended)s OR until IS NULL) ORDER BY id",
        {"facility": facility, "code": code, "ended": ended},
    )
    return [
        Recorded(Decision(f, k, c, n, target or "", _text(start), _text(end), note), recorded, who, until, replayed)
        for f, k, c, n, target, start, end, note, recorded, who, until, replayed in rows
    ]


_CURRENT = """
SELECT id, name, target, valid_from, valid_to, note, replayed FROM code_mapping WHERE until IS NULL AND facility = %s AND kind = %s
  AND code = %s AND (code <> '' OR name = %s)
"""
_INSERT = """
INSERT INTO code_mapping (facility, kind, code, name, target, valid_from, valid_to, recorded, recorded_by, note, replayed)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


def _record(conn: psycopg.Connection[Any], d: Decision, who: str, at: datetime) -> bool:
    start = date.fromisoformat(d.valid_from) if d.valid_from else None
    end = date.fromisoformat(d.valid_to) if d.valid_to else None
    old = conn.execute(_CURRENT, (d.facility, d.kind, d.code, d.name)).fetchall()
    if any((target or "", first, last) == (d.target, start, end) for _, _, target, first, last, _, _ in old):
        return False
    for number, name, target, first, last, note, replayed in old:
        if (first or date.min) > (end or date.max) or (start or date.min) > (last or date.max):
            continue
        conn.execute("UPDATE code_mapping SET until = %s WHERE id = %s", (at, number))
        # What the earlier decision says of days the new one does not speak of still holds.
        rest = []
        if start is not None and (first or date.min) < start:
            rest.append((first, start - timedelta(days=1)))
        if end is not None and end < (last or date.max):
            rest.append((end + timedelta(days=1), last))
        for begin, finish in rest:
            conn.execute(_INSERT, (d.facility, d.kind, d.code, name, target, begin, finish, at, who, note, replayed))
    conn.execute(_INSERT, (d.facility, d.kind, d.code, d.name, d.target or None, start, end, at, who, d.note, None))
    return True


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _text(day: date | None) -> str:
    return day.isoformat() if day is not None else ""
