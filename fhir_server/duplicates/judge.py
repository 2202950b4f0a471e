"""One order judged in retrospect. Pure: the rows are given, ``decide`` does the judging.

First as of the order's time, with what was visible then. Where that says no, with hindsight: every result that had been issued by then,
as mapped and linked since. What only hindsight finds existed but could not be offered: a system cause, not the doctor's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from fhir_server.duplicates.orders import Placed
from fhir_server.duplicates.report import Kind
from fhir_server.duplicates.said import Said, Spoken
from fhir_server.recognition.criteria import Answer, Candidate
from fhir_server.recognition.decide import Decision, Outcome, decide
from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Rules

_NO_IMAGE: Final = "98"
"""Local reason: the image or result could not be opened (mappings/catalogue/local-reasons.csv)."""


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
class Verdict:
    """What kind of repeat an order is and why, what the clinician saw, and the decision whose results covered the order."""

    kind: Kind
    cause: str
    reminder: str
    proof: Decision


class Judged:
    """One order: the decision as of its time, and where that says no, with hindsight."""

    __slots__ = ("_latest", "_undated", "late", "order", "placed", "rules", "then", "visible")

    def __init__(
        self,
        placed: Placed,
        links: Mapping[str, Sequence[Link]],
        results: Mapping[str, Sequence[Candidate]],
        rules: Rules,
    ) -> None:
        """Judge an order. ``links``: Patient -> its links, and ``*`` + Patient -> links of all who ever shared a person with it;
        ``results``: Patient -> every version of its results of the wanted items, without person and grade."""
        own = links.get(placed.patient, ())
        then = _person(own, placed.at)
        now = next((link for link in own if link.until is None), None)
        self.placed, self.rules = placed, rules
        self.order = Order(placed.orderable, placed.facility, placed.patient, then.person if then else None, placed.id)
        self.late = replace(self.order, person=now.person if now else None)
        rows: list[Candidate] = []
        self._latest: dict[str, Candidate] = {}
        self._undated: dict[str, Candidate] = {}
        at = placed.at
        for patient in dict.fromkeys((placed.patient, *(link.patient for link in links.get("*" + placed.patient, ())))):
            theirs = links.get(patient, ())
            link, current = _person(theirs, at), next((x for x in theirs if x.until is None), None)
            linked = patient == placed.patient or bool(now and current and current.person == now.person)
            for c in results.get(patient, ()):
                if (placed.report and c.report == placed.report) or (placed.id and c.order == placed.id):
                    continue
                if c.recorded and c.recorded <= at and (c.until is None or c.until > at):
                    rows.append(c if patient == placed.patient else _seen(c, then, link))
                if linked:
                    target = self._undated if c.issued is None else self._latest
                    if (c.issued is None or c.issued <= at) and c.version > getattr(target.get(c.id), "version", 0):
                        target[c.id] = c if patient == placed.patient else _seen(c, now, current)
        self.visible = {c.id: c for c in rows}
        self.then = decide(self.order, rows, rules, at)

    @property
    def partial(self) -> bool:
        """Some, not all, required items had a usable result."""
        shown = [m for m in self.then.required if m.shown]
        return 0 < len(shown) < len(self.then.required)

    def verdict(self, spoken: Spoken) -> Verdict | None:
        """What kind of repeat it is; None when it is none."""
        then = self.then
        if then.outcome is Outcome.RECOGNIZED:
            return self._repeated(spoken)
        late = [self._in_hindsight(c) for c in self._latest.values()]
        hindsight = decide(self.late, late, self.rules, self.placed.at) if late else then
        if hindsight.outcome is Outcome.RECOGNIZED:
            return Verdict("system", self._cause(hindsight), "none", hindsight)
        if _without_image(then):
            return Verdict("system", "missing-image", "none", then)
        if unknown := self._unknown(then):
            return Verdict("undetermined", ",".join(unknown), self._reminder(spoken), then)
        if self._undated:
            undated = [self._in_hindsight(c) for c in self._undated.values()]
            perhaps = decide(self.late, (*late, *undated), self.rules, self.placed.at)
            if perhaps.outcome is Outcome.RECOGNIZED:
                return Verdict("undetermined", "issued", "none", perhaps)
        return None

    def _said(self, spoken: Spoken) -> Said | None:
        p = self.placed
        return spoken.nearest(p.facility, p.orderable.code, self.order.person, p.patient, p.placers, p.at)

    def _reminder(self, spoken: Spoken) -> str:
        said = self._said(spoken)
        return said.state if said else "none"

    def _repeated(self, spoken: Spoken) -> Verdict:
        """A recognizable result was visible: was there a lawful reason, or did the platform fail to say so?"""
        said = self._said(spoken)
        seen = said.state if said else "none"
        given = next((code for code in self.placed.reasons if code in self.rules.reasons), "")
        if not given and (self.placed.emergency or (said and said.emergency)):
            given = "4"
        if not given and said and said.state == "declined" and said.refusal:
            given = said.reason
        if given:
            return Verdict("justified", f"reason-{given}", seen, self.then)
        if said and said.state == "declined" and said.reason:
            # A local reason that is no refusal: the result was not to be had, or the repeat was part of a series.
            if said.reason == _NO_IMAGE:
                return Verdict("system", "missing-image", seen, self.then)
            return Verdict("justified", f"local-{said.reason}", seen, self.then)
        if said and said.state == "no-answer":
            return Verdict("system", "repository-away", seen, self.then)
        return Verdict("avoidable", "", seen, self.then)

    def _in_hindsight(self, c: Candidate) -> Candidate:
        """As if it had been there, with its code mapped: an item is known by LOINC where only the local code is not."""
        item = None if c.item or not c.loinc else self.rules.by_loinc.get(c.loinc)
        at = self.placed.at
        recorded = min(c.recorded, at) if c.recorded else at
        return replace(c, recorded=recorded, until=None, item=item.code if item else c.item)

    def _cause(self, hindsight: Decision) -> str:
        """Why the platform could not offer what hindsight finds: the first cause, in the order data takes."""
        causes = set()
        for member in hindsight.required:
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
            elif seen.patient != self.placed.patient and (seen.person != self.order.person or seen.grade != "certain"):
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


def _without_image(decision: Decision) -> bool:
    """Every required member has a result, and all that speaks against any is an image that is not complete or not reachable."""
    obstacles = [c for m in decision.required for c in m.obstacles]
    return (
        bool(obstacles)
        and all(m.result for m in decision.required)
        and all(c.name == "images" and c.evidence.get("reason") in ("complete", "reachable") for c in obstacles)
    )
