"""One order judged in retrospect. Pure: the rows are given, ``decide`` does the judging.

First as of the order's time, with what was visible then. Where that says no, with hindsight: every result that had been issued by then,
as mapped and linked since. What only hindsight finds existed but could not be offered: a system cause, not the doctor's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from fhir_server.duplicates.orders import Placed
from fhir_server.duplicates.report import Kind
from fhir_server.recognition.criteria import Answer, Candidate
from fhir_server.recognition.decide import Decision, Outcome, decide
from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Rules

REMINDED_WITHIN: Final = timedelta(hours=24)
"""A reminder and the order it was for lie at most this far apart."""


@dataclass(frozen=True, slots=True)
class Link:
    """One row of identity_link: a Patient belonged to a person from ``recorded`` to ``until``."""

    person: str
    shard: int
    patient: str
    recorded: datetime
    until: datetime | None
    grade: str

    def holds(self, at: datetime) -> bool:
        """Did it hold at that time?"""
        return self.recorded <= at and (self.until is None or self.until > at)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reminder that was overridden with a lawful reason."""

    at: datetime
    facility: str
    person: str | None
    orderable: str
    placers: frozenset[str]
    reason: str


@dataclass(frozen=True, slots=True)
class Judged:
    """One order: the decision as of its time, and with hindsight (of results issued by then; then also of those without that time)."""

    placed: Placed
    then: Decision
    hindsight: Decision
    perhaps: Decision
    visible: Mapping[str, Candidate]
    """Result id -> the version visible at the order's time, under the person linked then."""

    @classmethod
    def of(
        cls,
        placed: Placed,
        links: Mapping[str, Sequence[Link]],
        results: Mapping[str, Sequence[Candidate]],
        rules: Rules,
    ) -> Judged:
        """Judge an order. ``links``: Patient -> its links, and ``*`` + Patient -> links of all who ever shared a person with it;
        ``results``: Patient -> every version of its results of the wanted items, without person and grade."""
        own = links.get(placed.patient, ())
        then = _person(own, placed.at)
        now = next((link for link in own if link.until is None), None)
        order = Order(placed.orderable, placed.facility, placed.patient, then.person if then else None, placed.id)
        rows: list[Candidate] = []
        latest: dict[str, Candidate] = {}
        undated: dict[str, Candidate] = {}
        for patient in dict.fromkeys((placed.patient, *(link.patient for link in links.get("*" + placed.patient, ())))):
            theirs = links.get(patient, ())
            link, current = _person(theirs, placed.at), next((x for x in theirs if x.until is None), None)
            linked = patient == placed.patient or bool(now and current and current.person == now.person)
            for c in results.get(patient, ()):
                if placed.report and c.report == placed.report:
                    continue
                rows.append(_seen(c, then, link))
                if linked:
                    target = undated if c.issued is None else latest
                    if (c.issued is None or c.issued <= placed.at) and c.version > getattr(
                        target.get(c.id), "version", 0
                    ):
                        target[c.id] = _ignoring_arrival(c, now, current, placed.at)
        late = replace(order, person=now.person if now else None)
        return cls(
            placed,
            decide(order, rows, rules, placed.at),
            decide(late, latest.values(), rules, placed.at),
            decide(late, (*latest.values(), *undated.values()), rules, placed.at),
            {
                c.id: c
                for c in rows
                if c.recorded and c.recorded <= placed.at and (c.until is None or c.until > placed.at)
            },
        )

    @property
    def proof(self) -> Decision:
        """The decision whose results covered the order."""
        if self.then.outcome is Outcome.RECOGNIZED or self._unknown(self.then):
            return self.then
        return self.hindsight if self.hindsight.outcome is Outcome.RECOGNIZED else self.perhaps

    @property
    def partial(self) -> bool:
        """Some, not all, required items had a usable result."""
        shown = [m for m in self.then.required if m.shown]
        return 0 < len(shown) < len(self.then.required)

    def kind(self, rules: Rules, refusals: Iterable[Refusal]) -> tuple[Kind | None, str]:
        """What kind of repeat it is and why; None when it is none."""
        if self.then.outcome is Outcome.RECOGNIZED:
            reason = self._reason(rules, refusals)
            return ("justified", f"reason-{reason}") if reason else ("avoidable", "")
        if self.hindsight.outcome is Outcome.RECOGNIZED:
            return "system", self._cause()
        if unknown := self._unknown(self.then):
            return "undetermined", ",".join(unknown)
        if self.perhaps.outcome is Outcome.RECOGNIZED:
            return "undetermined", "issued"
        return None, ""

    def _reason(self, rules: Rules, refusals: Iterable[Refusal]) -> str:
        given = next((code for code in self.placed.reasons if code in rules.reasons), "")
        if given or self.placed.emergency:
            return given or "4"
        person = self.then.order.person
        best: tuple[timedelta, str] | None = None
        for refusal in refusals:
            if refusal.facility != self.placed.facility or refusal.orderable != self.placed.orderable.code:
                continue
            apart = abs(refusal.at - self.placed.at)
            same_order = not refusal.placers.isdisjoint(self.placed.placers)
            same_person = person is not None and refusal.person == person and apart <= REMINDED_WITHIN
            if (same_order or same_person) and (best is None or apart < best[0]):
                best = (apart, refusal.reason)
        return best[1] if best else ""

    def _cause(self) -> str:
        """Why the platform could not offer what hindsight finds: the first cause, in the order data takes."""
        causes = set()
        for member in self.hindsight.required:
            result = member.shown
            seen = self.visible.get(result.id) if result else None
            if result is None:
                continue
            if seen is None:
                causes.add("not-yet-received")
            elif seen.item != result.item:
                causes.add("unmapped-code")
            elif seen.unit != result.unit:
                causes.add("unmapped-unit")
            elif seen.patient != self.placed.patient and (
                seen.person != self.then.order.person or seen.grade != "certain"
            ):
                causes.add("identity-not-linked")
            elif seen.version != result.version:
                causes.add("corrected-later")
        order = ("not-yet-received", "unmapped-code", "unmapped-unit", "identity-not-linked", "corrected-later")
        return next((c for c in order if c in causes), "")

    @staticmethod
    def _unknown(decision: Decision) -> tuple[str, ...]:
        """The criteria not known, when nothing else keeps every required member from being recognized."""
        obstacles = [c for m in decision.required for c in m.obstacles]
        complete = all(m.shown for m in decision.required)
        if decision.outcome is not Outcome.REFERENCE_ONLY or not complete:
            return ()
        if any(c.answer is not Answer.UNKNOWN for c in obstacles):
            return ()
        return tuple(sorted({c.name for c in obstacles}))


def _person(links: Iterable[Link], at: datetime) -> Link | None:
    return next((link for link in links if link.holds(at)), None)


def _seen(c: Candidate, mine: Link | None, theirs: Link | None) -> Candidate:
    """The candidate as linked at the order's time; the grade of the pair is the weaker one."""
    if theirs is None:
        return c
    grade = theirs.grade if mine is None or mine.grade == "certain" else mine.grade
    return replace(c, person=theirs.person, grade=grade)


def _ignoring_arrival(c: Candidate, mine: Link | None, theirs: Link | None, at: datetime) -> Candidate:
    return replace(_seen(c, mine, theirs), recorded=min(c.recorded, at) if c.recorded else at, until=None)
