"""The criteria of many cases: what two results have in common is judged once. Pure; answers as ``criteria.judge`` does (a test).

A year of a county has ten million results of some thousand kinds. Most criteria look at neither identity nor time, and give equal
answers on equal facts; those that do are asked each time, or by calendar day where the register of marks is asked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

from fhir_server.recognition import duty
from fhir_server.recognition.candidate import made
from fhir_server.recognition.criteria import DUTY, JUDGES, Answer, Candidate, Case, Criterion, judge
from fhir_server.recognition.rules import Mode, Rules

_EACH_TIME: Final = ("identity", "received", "final", "window", "exclusion")
"""Criteria that look at who, and when."""
_FACTS: Final = (
    "item", "loinc", "code", "name", "facility", "performer", "specimen", "value_text", "unit", "unit_text", "flag", "status",
    "mark", "quality", "site", "laterality", "contrast", "method", "health_check", "images_complete", "images_reachable",
    "image_quality", "image_site", "image_side", "image_contrast", "image_views",
)  # fmt: skip
"""Facts of a result that neither say who nor when; of the number only whether there is one."""
_facts: Final = attrgetter(*_FACTS)
_PLACES: Final = tuple((name, list(JUDGES).index(name)) for name in _EACH_TIME)


class Remembered:
    """``criteria.judge`` with a memory, for cases under one set of rules."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._known: dict[tuple[Any, ...], tuple[Criterion, ...]] = {}
        register = rules.register
        periods = [m.period for m in register.marks] + [r.period for r in register.rounds]
        periods += [a.period for a in register.agreements.values()]
        self._recorded = sorted({p.recorded for p in periods if p.recorded})
        self._used: dict[tuple[Any, ...], Mapping[str, Mode]] = {}
        self._days: dict[datetime, str] = {}

    def __call__(self, case: Case) -> tuple[Criterion, ...]:
        """The criteria on one case."""
        result, order = case.result, case.order
        modes = self._modes(case)
        day: tuple[Any, ...] = ()
        if modes["mark"] is not Mode.NOT_REQUIRED or modes["eqa"] is not Mode.NOT_REQUIRED:
            at = made(case)
            day = (self._day(at) if at else None, bisect_right(self._recorded, case.at))
        key = (
            order.facility, order.emergency, order.surgery, id(case.item), id(case.policy), result.number is None, day, *_facts(result),
        )  # fmt: skip
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = judge(case)
        out = list(known)
        for name, place in _PLACES:
            out[place] = _criterion(name, case, modes[name])
        return tuple(out)

    def _modes(self, case: Case) -> Mapping[str, Mode]:
        key = (case.order.facility, case.result.facility, id(case.item), id(case.policy))
        modes = self._used.get(key)
        if modes is None:
            same = duty.consortium(case)[0] is Answer.MET
            modes = self._used[key] = case.policy.modes(case.item, same)
        return modes

    def _day(self, at: datetime) -> str:
        day = self._days.get(at)
        if day is None:
            day = self._days[at] = self._rules.register.day(at)
        return day


def _criterion(name: str, case: Case, mode: Mode) -> Criterion:
    answer, evidence = JUDGES[name](case)
    if mode is Mode.NOT_REQUIRED:
        answer = Answer.NOT_REQUIRED
    stands = answer in _STANDS or (answer is Answer.UNKNOWN and mode is Mode.IF_STATED)
    return Criterion(name, answer, mode, evidence, stands, not stands and answer is Answer.NOT_MET and name not in DUTY)


_STANDS: Final = (Answer.MET, Answer.NOT_REQUIRED)
_NOT_FACTS: Final = frozenset(
    {
        "id", "version", "patient", "person", "grade", "report", "number", "comparator", "order", "effective", "issued", "recorded",
        "until",
    }
)  # fmt: skip
assert set(_FACTS) | _NOT_FACTS == set(Candidate.__slots__), "a new fact of a Candidate must be sorted here"
