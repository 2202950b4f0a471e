"""Recognition marks (互认标识, scope + HR) and the external quality assessment (EQA, 室间质评) they rest on, as dated data.

国卫医发〔2022〕6号: an item that took part in EQA and passed carries scope + HR; passed nationally it holds in the whole country,
locally in that region, and between regions that signed an agreement in those. A mark belongs to a performing laboratory and an item.
Whether it holds somewhere is judged from region codes (GB/T 2260) and agreements, never from the text on a report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from fhir_server.recognition.regions import Regions

SHANGHAI: Final = ZoneInfo("Asia/Shanghai")
NATIONAL: Final = "national"
EVERY_ITEM: Final = "*"


@dataclass(frozen=True, slots=True)
class Period:
    """Calendar days, both inclusive, empty = open; ``recorded``: from when the row was known, None = always."""

    start: str = ""
    end: str = ""
    recorded: datetime | None = None

    def holds(self, day: str) -> bool:
        """Does it include a day (``YYYY-MM-DD``)?"""
        return (self.start or "0000") <= day <= (self.end or "9999")

    def known(self, at: datetime) -> bool:
        """Was the row known at that time?"""
        return self.recorded is None or self.recorded <= at


@dataclass(frozen=True, slots=True)
class Mark:
    """A laboratory may mark an item (code, or ``*`` for all of its items). scope: ``national``, a region code, or an agreement id."""

    laboratory: str
    item: str
    scope: str
    period: Period = Period()
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """One EQA round of a laboratory and an item. period: from the day of its result to the last day it counts.

    scope: what a pass entitles to (as of Mark); empty when not stated: then it stands behind whatever mark the laboratory holds.
    """

    laboratory: str
    item: str
    passed: bool
    period: Period
    scope: str = ""
    name: str = ""
    certificate: str = ""
    score: str = ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Regions (GB/T 2260 codes) that recognize each other."""

    id: str
    name: str
    regions: tuple[str, ...]
    period: Period = Period()


class Held(NamedTuple):
    """What the register says: ``answer`` True, False, or None when it cannot be told; the machine-readable reason; the facts."""

    answer: bool | None
    reason: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Register:
    """Marks, EQA rounds and agreements. ``regions``: for showing a scope."""

    marks: Sequence[Mark] = ()
    rounds: Sequence[Round] = ()
    agreements: Mapping[str, Agreement] = field(default_factory=dict)
    regions: Regions = field(default_factory=Regions)
    zone: ZoneInfo = SHANGHAI
    _marks: dict[tuple[str, str], list[Mark]] = field(init=False, repr=False, compare=False, default_factory=dict)
    _rounds: dict[tuple[str, str], list[Round]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for mark in self.marks:
            self._marks.setdefault((mark.laboratory, mark.item), []).append(mark)
        for found in self.rounds:
            self._rounds.setdefault((found.laboratory, found.item), []).append(found)

    def marked(
        self, laboratory: str, item: str, made: datetime, region: str, known: datetime
    ) -> tuple[Held, Mark | None]:
        """Does the laboratory's mark on an item, at the time the result was made, hold in a region, as known at a time?

        Returns the answer and the widest mark that holds, else the newest one there is. Reasons: ``no-mark``, ``mark-expired``,
        ``mark-not-yet-valid``, ``out-of-scope``, ``region-unknown``.
        """
        day = self.day(made)
        rows = [
            m
            for wanted in (item, EVERY_ITEM)
            for m in self._marks.get((laboratory, wanted), ())
            if m.period.known(known)
        ]
        if not rows:
            return Held(False, "no-mark", {}), None
        valid = [m for m in rows if m.period.holds(day)]
        if not valid:
            last = max(rows, key=lambda m: m.period.end or "9999")
            early = all(m.period.start > day for m in rows)
            return Held(False, "mark-not-yet-valid" if early else "mark-expired", self._told(last)), last
        answers = [(self.covers(m.scope, region, day, known), m) for m in sorted(valid, key=self._width)]
        for answer, mark in answers:
            if answer:
                return Held(True, "", self._told(mark)), mark
        unknown = next((m for answer, m in answers if answer is None), None)
        shown = unknown or answers[0][1]
        if unknown:
            return Held(None, "region-unknown", self._told(shown)), shown
        return Held(False, "out-of-scope", self._told(shown) | {"region": region}), shown

    def assessed(self, laboratory: str, item: str, made: datetime, known: datetime, mark: Mark | None) -> Held:
        """Did the newest EQA round before the result was made pass, and did it still count? ``mark``: the one it must stand behind.

        A failed round suspends from its day until one passes. Reasons: ``eqa-missing``, ``eqa-failed``, ``eqa-lapsed``,
        ``eqa-of-smaller-scope``; without any round and any mark nothing is known (``eqa-unknown``).
        """
        day = self.day(made)
        rows = [
            r
            for wanted in (item, EVERY_ITEM)
            for r in self._rounds.get((laboratory, wanted), ())
            if r.period.known(known) and r.period.start <= day
        ]
        if not rows:
            return Held(None, "eqa-unknown", {}) if mark is None else Held(False, "eqa-missing", {})
        # Of two rounds of one day a failed one counts.
        newest = max(rows, key=lambda r: (r.period.start, not r.passed))
        facts = {
            k: v
            for k, v in {
                "round": newest.name, "certificate": newest.certificate, "score": newest.score, "assessed": newest.period.start,
                "valid_to": newest.period.end,
            }.items()
            if v
        }  # fmt: skip
        if not newest.passed:
            return Held(False, "eqa-failed", facts)
        if not newest.period.holds(day):
            return Held(False, "eqa-lapsed", facts)
        if mark is not None and newest.scope and not self._includes(newest.scope, mark.scope, day, known):
            return Held(False, "eqa-of-smaller-scope", facts)
        return Held(True, "", facts)

    def covers(self, scope: str, region: str, day: str, known: datetime) -> bool | None:
        """Does a scope include a region (GB/T 2260 code)? None when the region is not known and the scope is not national."""
        if scope == NATIONAL:
            return True
        if not region:
            return None
        if (agreement := self.agreements.get(scope)) is not None:
            in_force = agreement.period.holds(day) and agreement.period.known(known)
            return in_force and any(_inside(region, r) for r in agreement.regions)
        return _inside(region, scope)

    def _includes(self, wide: str, narrow: str, day: str, known: datetime) -> bool:
        regions = self.agreements[narrow].regions if narrow in self.agreements else (narrow,)
        return wide in (narrow, NATIONAL) or (
            narrow != NATIONAL and all(self.covers(wide, region, day, known) for region in regions)
        )

    def label(self, mark: Mark) -> str:
        """The mark as it is printed: ``全国HR``, ``鄂HR``, ``武汉HR``, ``京津冀HR``."""
        if mark.scope == NATIONAL:
            return "全国HR"
        if (agreement := self.agreements.get(mark.scope)) is not None:
            return f"{agreement.name}HR"
        return f"{self.regions.label(mark.scope)}HR"

    def day(self, at: datetime) -> str:
        """Local calendar day of a time."""
        return at.astimezone(self.zone).date().isoformat()

    def _told(self, mark: Mark) -> dict[str, Any]:
        facts = {
            "mark": self.label(mark),
            "valid_from": mark.period.start,
            "valid_to": mark.period.end,
            "certificate": mark.certificate,
        }
        return {k: v for k, v in facts.items() if v}

    def _width(self, mark: Mark) -> tuple[int, int]:
        if mark.scope == NATIONAL:
            return (0, 0)
        return (1, 0) if mark.scope in self.agreements else (2, len(_trimmed(mark.scope)))


def _trimmed(code: str) -> str:
    """``420000`` -> ``42``: GB/T 2260 writes a province and a city with trailing pairs of zeros."""
    while len(code) > 2 and code.endswith("00"):
        code = code[:-2]
    return code


def _inside(region: str, wider: str) -> bool:
    return region.startswith(_trimmed(wider))


class Shown(NamedTuple):
    """A result that an answer offered: which decision, when; performing laboratory, item, and the time the result was made.
    ``rested``: criteria (``mark``, ``eqa``) that were met as it was given, as far as that is on record."""

    decision: str
    at: datetime
    laboratory: str
    item: str
    made: datetime
    region: str
    rested: Collection[str] = ()


class Reopened(NamedTuple):
    """An answer that would not be given any more, and why (a reason of Register)."""

    shown: Shown
    reason: str


_SAID_OTHERWISE: Final = {"eqa-failed": "eqa", "eqa-lapsed": "eqa", "mark-expired": "mark"}
"""Reason -> the criterion that cannot have been met by a register that said so already."""


def reopened(register: Register, answers: Iterable[Shown], known: datetime) -> list[Reopened]:
    """The answers already given whose mark or EQA no longer stands, by what is known at ``known`` (aware): pure, in the given order.

    An answer counts when mark and EQA stood by what was known as it was given; a failed or lapsed round that became known since,
    dated on or before the result, takes that away. A row without ``recorded``, or one whose end was written anew, does not tell when
    it became known: there the criterion on record as met says that it was later.
    """
    out = []
    for shown in answers:
        reason = _stands(register, shown, known)
        if reason is None:
            continue
        if _SAID_OTHERWISE.get(reason) in shown.rested or _stands(register, shown, shown.at) is None:
            out.append(Reopened(shown, reason))
    return out


def _stands(register: Register, shown: Shown, known: datetime) -> str | None:
    """None when mark and EQA stand, else the reason why not."""
    held, mark = register.marked(shown.laboratory, shown.item, shown.made, shown.region, known)
    if not held.answer:
        return held.reason
    assessed = register.assessed(shown.laboratory, shown.item, shown.made, known, mark)
    return None if assessed.answer else assessed.reason
