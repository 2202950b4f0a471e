"""The criteria of many cases: what two results have in common is judged once. Pure; answers as ``criteria.judge`` does (a test).

A year of a county has ten million results of some thousand kinds. Most criteria look at neither identity nor time, and give equal
answers on equal facts; those that do are asked each time, or by calendar day where the register of marks is asked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, NamedTuple

from fhir_server.recognition import duty
from fhir_server.recognition.candidate import made
from fhir_server.recognition.criteria import JUDGES, Answer, Candidate, Case, Criterion, criterion, judge
from fhir_server.recognition.order import Order
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
_when: Final = attrgetter("patient", "person", "grade", "recorded", "until", "status", "effective", "issued")
"""What those criteria look at of a result: the same for all results of a report, which are judged one after the other."""
_PLACES: Final = tuple(list(JUDGES).index(name) for name in _EACH_TIME)


class _Used(NamedTuple):
    """How a policy uses the criteria for an item. dated: the register of marks is asked; each_time: whatever the criteria that look at
    who and when ask of item and policy."""

    modes: Mapping[str, Mode]
    dated: bool
    each_time: tuple[Any, ...]


class Remembered:
    """``criteria.judge`` with a memory, for cases under one set of rules."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._known: dict[tuple[Any, ...], tuple[Criterion, ...]] = {}
        register = rules.register
        periods = [m.period for m in register.marks] + [r.period for r in register.rounds]
        periods += [a.period for a in register.agreements.values()]
        self._recorded = sorted({p.recorded for p in periods if p.recorded})
        self._used: dict[tuple[Any, ...], _Used] = {}
        self._days: dict[datetime, str] = {}
        self._asked: tuple[Order, datetime] | None = None
        self._times: dict[tuple[Any, ...], tuple[Criterion, ...]] = {}

    def __call__(self, case: Case) -> tuple[Criterion, ...]:
        """The criteria on one case."""
        result, order = case.result, case.order
        used = self._use(case)
        day: tuple[Any, ...] = ()
        if used.dated:
            at = made(case)
            day = (self._day(at) if at else None, bisect_right(self._recorded, case.at))
        key = (
            order.facility, order.emergency, order.surgery, id(case.item), id(case.policy), result.number is None, day, *_facts(result),
        )  # fmt: skip
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = judge(case)
        if self._asked is None or self._asked[0] is not order or self._asked[1] is not case.at:
            self._asked = order, case.at
            self._times.clear()
        when = (used.each_time, *_when(result))
        each = self._times.get(when)
        if each is None:
            each = self._times[when] = tuple(_criterion(name, case, used.modes[name]) for name in _EACH_TIME)
        out = list(known)
        for place, one in zip(_PLACES, each, strict=True):
            out[place] = one
        return tuple(out)

    def _use(self, case: Case) -> _Used:
        item, policy = case.item, case.policy
        key = (case.order.facility, case.result.facility, id(item), id(policy))
        found = self._used.get(key)
        if found is None:
            modes = policy.modes(item, duty.consortium(case)[0] is Answer.MET)
            dated = modes["mark"] is not Mode.NOT_REQUIRED or modes["eqa"] is not Mode.NOT_REQUIRED
            window = (policy.window_of(item), item.window_days, item.window_status, item.time_base, id(policy))
            found = self._used[key] = _Used(modes, dated, (*(modes[name] for name in _EACH_TIME), *window))
        return found

    def _day(self, at: datetime) -> str:
        day = self._days.get(at)
        if day is None:
            day = self._days[at] = self._rules.register.day(at)
        return day


def _criterion(name: str, case: Case, mode: Mode) -> Criterion:
    answer, evidence = JUDGES[name](case)
    return criterion(name, answer, mode, evidence)


_NOT_FACTS: Final = frozenset(
    {
        "id", "version", "patient", "person", "grade", "report", "number", "comparator", "order", "effective", "issued", "recorded",
        "until",
    }
)  # fmt: skip
assert set(_FACTS) | _NOT_FACTS == set(Candidate._fields), "a new fact of a Candidate must be sorted here"
