"""What was said at order time: reminders, answers that failed, and what clinicians decided (tables ``ledger`` and ``decision``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

import orjson
import psycopg

from conformance import systems
from fhir_server.recognition import reasons
from fhir_server.recognition.rules import Rules

REMINDED_WITHIN: Final = timedelta(hours=24)
"""A reminder and the order it was for lie at most this far apart."""
_AWAY_WITHIN: Final = timedelta(hours=1)
_AWAY: Final = frozenset({"late", "database-away", "audit-away", "ledger-away"})
State = Literal["open", "adopted", "declined", "revoked", "no-answer"]

_LEDGER: Final = """
SELECT kind, at, facility, person, orderable, entry FROM ledger
WHERE at >= %s AND at < %s AND kind IN ('reminder', 'no-answer', 'feedback') ORDER BY at, chain, number"""
_DECISIONS: Final = """
SELECT card, action, reason, refusal FROM decision WHERE card = ANY(%s) ORDER BY card, sequence"""


class Said(NamedTuple):
    """One answer at order time. state: what came of it; reason: code of the reason given; refusal: it is a lawful one; emergency: the
    clinician was not interrupted because of it; placers: of the drafts; patient: where the answer failed."""

    at: datetime
    facility: str
    person: str | None
    orderable: str | None
    placers: frozenset[str]
    state: State
    reason: str = ""
    refusal: bool = False
    emergency: bool = False
    patient: str = ""


@dataclass(frozen=True, slots=True)
class Spoken:
    """All of them, found by placer number, by person and orderable, and failures by Patient."""

    by_placer: dict[str, list[Said]] = field(default_factory=dict)
    by_person: dict[tuple[str, str, str], list[Said]] = field(default_factory=dict)
    away: dict[tuple[str, str], list[Said]] = field(default_factory=dict)

    def add(self, said: Said) -> None:
        """Adds one."""
        for placer in said.placers:
            self.by_placer.setdefault(placer, []).append(said)
        if said.person and said.orderable:
            self.by_person.setdefault((said.facility, said.orderable, said.person), []).append(said)
        if said.state == "no-answer" and said.patient:
            self.away.setdefault((said.facility, said.patient), []).append(said)

    def nearest(
        self, facility: str, orderable: str, person: str | None, patient: str, placers: Iterable[str], at: datetime
    ) -> Said | None:
        """What was said about an order: by its placer number, else the nearest within a day to the same person and orderable, else a
        failed answer within an hour; None when nobody asked."""
        same = [s for p in placers for s in self.by_placer.get(p, ()) if s.facility == facility]
        same = [s for s in same if s.orderable in (None, orderable)]
        near = [
            s for s in self.by_person.get((facility, orderable, person or ""), ()) if abs(s.at - at) <= REMINDED_WITHIN
        ]
        away = [s for s in self.away.get((facility, patient), ()) if abs(s.at - at) <= _AWAY_WITHIN]
        for found in (same, near, away):
            if found:
                # An answer that came goes over one that failed before it.
                return min(found, key=lambda s: (s.state == "no-answer", abs(s.at - at)))
        return None


def read(conn: psycopg.Connection[Any], rules: Rules, start: datetime, end: datetime) -> Spoken:
    """Everything said about orders placed in [start, end)."""
    out = Spoken()
    for said in every(conn, rules, start, end):
        out.add(said)
    return out


def every(conn: psycopg.Connection[Any], rules: Rules, start: datetime, end: datetime) -> Iterator[Said]:
    """The answers of that time, one by one."""
    cards: dict[str, Said] = {}
    told: dict[str, tuple[State, str, bool]] = {}
    period = (start - REMINDED_WITHIN, end + REMINDED_WITHIN)
    for kind, at, facility, person, orderable, text in conn.execute(_LEDGER, period):
        entry = orjson.loads(text)
        if kind == "feedback":
            told[entry["card"]] = _feedback(entry, rules)
            continue
        reason = entry.get("reason", "")
        placers = frozenset(entry.get("placers", ()))
        if kind == "reminder" or reason == "emergency":
            said = Said(at, facility, person, orderable, placers, "open", emergency=reason == "emergency")
            cards[entry["card"]] = said
        elif reason in _AWAY:
            yield Said(at, facility, person, None, placers, "no-answer", patient=entry.get("patient") or "")
    for card, action, reason, refusal in conn.execute(_DECISIONS, (list(cards),)):
        state: State = "adopted" if action == "adopt" else "revoked" if action == "revoke" else "declined"
        told[card] = (state, reason or "", bool(refusal))
    for card, said in cards.items():
        state, reason, refusal = told.get(card, ("open", "", False))
        yield said._replace(state=state, reason=reason, refusal=refusal) if card in told else said


def _feedback(entry: dict[str, Any], rules: Rules) -> tuple[State, str, bool]:
    if entry["outcome"] == "accepted":
        return "adopted", "", False
    given = entry.get("reason") or {}
    found = reasons.find(rules, given.get("system", ""), given["code"]) if given.get("code") else None
    return ("declined", found.code, found.system == systems.REPEAT_REASONS) if found else ("open", "", False)
