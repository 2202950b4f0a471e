"""One order judged in retrospect. Pure: the rows are given, ``decide`` does the judging.

First as of the order's time, with what was visible then. Where that says no, with hindsight: every result that had been issued by then,
as mapped and linked since. What only hindsight finds existed but could not be offered: a system cause, not the doctor's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from fhir_server.duplicates.earlier import Earlier
from fhir_server.duplicates.orders import Placed
from fhir_server.duplicates.report import Kind
from fhir_server.duplicates.said import Said, Spoken
from fhir_server.duplicates.studies import Studies
from fhir_server.recognition.criteria import Answer, Candidate, Criterion
from fhir_server.recognition.decide import Decision, Judge, Outcome, decide
from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Rules

_UNFINISHED: Final = frozenset({"registered", "preliminary"})
_CAUSES: Final = (
    "not-yet-received", "unmapped-code", "unmapped-unit", "identity-not-linked", "corrected-later", "missing-image",
)  # fmt: skip
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

    __slots__ = (
        "_complete",
        "_latest",
        "_now",
        "_undated",
        "judge",
        "late",
        "order",
        "placed",
        "rules",
        "studies",
        "then",
        "visible",
    )

    def __init__(
        self,
        placed: Placed,
        links: Mapping[str, Sequence[Link]],
        earlier: Iterable[Earlier],
        rules: Rules,
        studies: Studies,
        judge: Judge,
    ) -> None:
        """Judge an order. ``links``: Patient -> its links; ``earlier``: every version of the results that could cover it, of everybody
        who ever shared a person with its Patient."""
        own = links.get(placed.patient, ())
        then = _person(own, placed.at)
        now = next((link for link in own if link.until is None), None)
        self.placed, self.rules, self.studies, self.judge, self._now = placed, rules, studies, judge, now
        self.order = Order(
            *(
                placed.orderable,
                placed.facility,
                placed.patient,
                then.person if then else None,
                placed.id,
                placed.emergency,
            ),
            surgery=placed.surgery,
        )
        same = (now.person if now else None) == self.order.person
        self.late = self.order if same else replace(self.order, person=now.person if now else None)
        rows: list[Candidate] = []
        self.visible: dict[str, Candidate] = {}
        latest: dict[str, tuple[Earlier, Link | None]] = {}
        known: set[str | None] = set()
        at = placed.at
        for e in earlier:
            if (placed.report and e.report == placed.report) or (placed.id and e.order == placed.id):
                continue
            known.add(self._item(e))
            mine = e.patient == placed.patient
            theirs = () if mine else links.get(e.patient, ())
            if e.recorded <= at and (e.until is None or e.until > at):
                candidate = self._candidate(e, None if mine else then, None if mine else _person(theirs, at), at)
                self.visible[e.id] = candidate
                rows.append(candidate)
            current = next((x for x in theirs if x.until is None), None)
            linked = mine or bool(now and current and current.person == now.person)
            if (
                linked
                and (e.issued is None or e.issued <= at)
                and (e.id not in latest or e.version > latest[e.id][0].version)
            ):
                latest[e.id] = e, current
        self._latest = [pair for pair in latest.values() if pair[0].issued is not None]
        self._undated = [pair for pair in latest.values() if pair[0].issued is None]
        self._complete = known.issuperset(placed.orderable.required)
        self.then = decide(self.order, rows, rules, at, judge)

    def _candidate(self, e: Earlier, mine: Link | None, theirs: Link | None, at: datetime | None) -> Candidate:
        """A result as linked and as its images were known at a time (None: now); the grade of a pair is the weaker one."""
        f = e.facts
        person = theirs.person if theirs else None
        grade = None
        if theirs:
            grade = theirs.grade if mine is None or mine.grade == "certain" else mine.grade
        found = Candidate(
            e.id, e.version, e.patient, person, grade, e.report, f.facility, f.performer, f.item, f.loinc, f.code, f.name, f.specimen,
            e.number, f.comparator, e.value_text, f.unit, f.unit_text, f.flag, e.order, f.status, e.effective, e.issued, e.recorded,
            e.until, f.mark, f.quality, f.site, f.laterality, f.contrast, f.method, f.health_check,
        )  # fmt: skip
        facts = self.studies.facts(e.report, at)
        return found._replace(**facts) if facts else found

    def _item(self, e: Earlier) -> str | None:
        """The item of a result; it is known by LOINC where only the local code is not mapped."""
        if e.facts.item or not e.facts.loinc:
            return e.facts.item
        item = self.rules.by_loinc.get(e.facts.loinc)
        return item.code if item else None

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
        if code := _circumstance(then):
            given = next((c for c in self.placed.reasons if c in self.rules.reasons), code)
            return Verdict("justified", f"reason-{given}", self._reminder(spoken), then)
        if not self._complete:
            return None
        late: list[Candidate] = []
        hindsight = then
        if not all(self._was_seen(*pair) for pair in self._latest):
            late = [self._in_hindsight(*pair) for pair in self._latest]
            hindsight = decide(self.late, late, self.rules, self.placed.at, self.judge)
        if hindsight.outcome is Outcome.RECOGNIZED or _circumstance(hindsight):
            return Verdict("system", self._cause(hindsight), "none", hindsight)
        if _without_image(then):
            return Verdict("system", "missing-image", "none", then)
        if unknown := self._unknown(then):
            return Verdict("undetermined", ",".join(unknown), self._reminder(spoken), then)
        if self._undated:
            late = late or [self._in_hindsight(*pair) for pair in self._latest]
            undated = [self._in_hindsight(*pair) for pair in self._undated]
            perhaps = decide(self.late, (*late, *undated), self.rules, self.placed.at, self.judge)
            if perhaps.outcome is Outcome.RECOGNIZED:
                return Verdict("undetermined", "issued", "none", perhaps)
        return None

    def seen(self, versions: Iterable[Earlier]) -> None:
        """Further versions of results that hindsight found: what was visible of them then tells why they did not count."""
        at = self.placed.at
        for e in versions:
            if e.id not in self.visible and e.recorded <= at and (e.until is None or e.until > at):
                self.visible[e.id] = self._candidate(e, None, None, at)

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

    def _in_hindsight(self, e: Earlier, theirs: Link | None) -> Candidate:
        """As if it had been there, with its code mapped, its Patient linked and its images received."""
        at = self.placed.at
        candidate = self._candidate(e, self._now, theirs, None)
        return candidate._replace(recorded=min(e.recorded, at), until=None, item=self._item(e))

    def _was_seen(self, e: Earlier, theirs: Link | None) -> bool:
        """Is a result in hindsight what it was then?"""
        seen = self.visible.get(e.id)
        if seen is None or seen.version != e.version or seen.item != self._item(e) or e.report in self.studies.reports:
            return False
        return theirs is None or (
            seen.person == theirs.person == self.order.person == self.late.person
            and seen.grade == theirs.grade == "certain"
        )

    def _cause(self, hindsight: Decision) -> str:
        """Why the platform could not offer what hindsight finds: the first cause, in the order data takes."""
        causes = set()
        for member in hindsight.required:
            result = member.shown
            if result is None:
                continue
            seen = self.visible.get(result.id)
            if seen is None or (seen.status in _UNFINISHED and result.status not in _UNFINISHED):
                causes.add("not-yet-received")
            elif seen.item != result.item:
                causes.add("unmapped-code")
            elif seen.unit != result.unit:
                causes.add("unmapped-unit")
            elif result.patient != self.placed.patient and not self._linked(seen):
                causes.add("identity-not-linked")
            elif seen.version != result.version:
                causes.add("corrected-later")
            elif seen.images_complete != result.images_complete or seen.images_reachable != result.images_reachable:
                causes.add("missing-image")
        return next((c for c in _CAUSES if c in causes), "")

    def _linked(self, seen: Candidate) -> bool:
        return bool(seen.person) and seen.person == self.order.person and seen.grade == "certain"

    @staticmethod
    def _unknown(decision: Decision) -> tuple[str, ...]:
        """The criteria not known, when nothing else but the circumstances keeps every required member from being recognized."""
        obstacles = [c for m in decision.required for c in m.obstacles if _reason(c) is None]
        complete = all(m.shown for m in decision.required)
        if decision.outcome is not Outcome.REFERENCE_ONLY or not complete:
            return ()
        if any(c.answer is not Answer.UNKNOWN for c in obstacles):
            return ()
        return tuple(sorted({c.name for c in obstacles}))


def _person(links: Iterable[Link], at: datetime) -> Link | None:
    return next((link for link in links if link.holds(at)), None)


def _reason(criterion: Criterion) -> str | None:
    """Code of the lawful reason that the circumstances of the order are, when they stand in the way."""
    return criterion.evidence.get("reason_code") if criterion.name == "context" and not criterion.stands else None


def _circumstance(decision: Decision) -> str:
    """Code of the lawful reason when nothing but the circumstances of the order keeps every required member from being recognized;
    empty when something else does."""
    obstacles = [c for m in decision.required for c in m.obstacles]
    if not obstacles or not all(m.shown for m in decision.required):
        return ""
    codes = [_reason(c) for c in obstacles]
    return "" if None in codes else max(str(c) for c in codes)


def _without_image(decision: Decision) -> bool:
    """Every required member has a result, and all that speaks against any is an image that is not complete or not reachable."""
    obstacles = [c for m in decision.required for c in m.obstacles]
    return (
        bool(obstacles)
        and all(m.result for m in decision.required)
        and all(c.name == "images" and c.evidence.get("reason") in ("complete", "reachable") for c in obstacles)
    )
