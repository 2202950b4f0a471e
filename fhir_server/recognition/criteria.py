"""The criteria of recognition: each compares one result with one order and answers met, not-met or unknown, with its evidence.

Pure functions of a ``Case``. Missing data never counts as met. What each criterion rests on stands in
mappings/catalogue/policy.yaml (articles); how a policy uses it is its ``Mode``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple

from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Mode, Policy, Rules
from mappings import ucum
from mappings.catalogue import Item


class Answer(StrEnum):
    """What a criterion says about one result."""

    MET = "met"
    NOT_MET = "not-met"
    UNKNOWN = "unknown"
    NOT_REQUIRED = "not-required"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One version of one stored result (a row of ``result``) as it may be known at the order's time. None: not known.

    person, grade   person its Patient was linked to at that time, and how surely (certain, probable, possible, certainly-not)
    recorded, until from when to when this version was visible
    """

    id: str
    version: int
    patient: str | None = None
    person: str | None = None
    grade: str | None = None
    report: str | None = None
    facility: str | None = None
    performer: str | None = None
    item: str | None = None
    loinc: str | None = None
    code: str | None = None
    name: str | None = None
    specimen: str | None = None
    number: Decimal | None = None
    comparator: str | None = None
    value_text: str | None = None
    unit: str | None = None
    unit_text: str | None = None
    flag: str | None = None
    order: str | None = None
    status: str | None = None
    effective: datetime | None = None
    issued: datetime | None = None
    recorded: datetime | None = None
    until: datetime | None = None
    mark: str | None = None
    quality: str | None = None


class Criterion(NamedTuple):
    """One criterion judged on one result: ``evidence`` holds the facts compared.

    ``stands``: it does not stand in the way: met, not required, or required only where stated and nothing is stated.
    """

    name: str
    answer: Answer
    mode: Mode
    evidence: dict[str, Any]
    stands: bool


Judged = tuple[Answer, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """One result before one order."""

    order: Order
    result: Candidate
    item: Item
    policy: Policy
    at: datetime
    rules: Rules


def _identity(case: Case) -> Judged:
    if case.order.patient and case.result.patient == case.order.patient:
        return Answer.MET, {"basis": "same-patient"}
    if not case.order.person or not case.result.person:
        return Answer.UNKNOWN, {"basis": "not-linked"}
    if case.result.person != case.order.person:
        return Answer.NOT_MET, {"basis": "other-person"}
    evidence = {"basis": "linked", "grade": case.result.grade}
    if case.result.grade == "certain":
        return Answer.MET, evidence
    return (Answer.NOT_MET if case.result.grade == "certainly-not" else Answer.UNKNOWN), evidence


def _received(case: Case) -> Judged:
    if case.result.recorded is None:
        return Answer.UNKNOWN, {}
    return (Answer.MET if case.result.recorded <= case.at else Answer.NOT_MET), {"recorded": case.result.recorded}


# Observation.status (http://hl7.org/fhir/R4/valueset-observation-status.html); "unknown" is in neither set.
_FINAL: Final = frozenset({"final", "amended", "corrected"})
_NOT_FINAL: Final = frozenset({"registered", "preliminary", "cancelled", "entered-in-error"})


def _final(case: Case) -> Judged:
    evidence: dict[str, Any] = {"status": case.result.status}
    if case.result.until is not None and case.result.until <= case.at:
        return Answer.NOT_MET, evidence | {"superseded": case.result.until}
    if case.result.status in _FINAL:
        return Answer.MET, evidence
    return (Answer.NOT_MET if case.result.status in _NOT_FINAL else Answer.UNKNOWN), evidence


def _mapped(case: Case) -> Judged:
    return (Answer.MET if case.result.item else Answer.NOT_MET), {"code": case.result.code, "item": case.result.item}


def _item(case: Case) -> Judged:
    if not case.result.item:
        return Answer.UNKNOWN, {"wanted": case.item.code}
    return (Answer.MET if case.result.item == case.item.code else Answer.NOT_MET), {
        "wanted": case.item.code,
        "item": case.result.item,
    }


def _value(case: Case) -> Judged:
    kind = "number" if case.result.number is not None else "text" if case.result.value_text else None
    if kind is None:
        return Answer.UNKNOWN, {"value": None}
    # A measured item that came as text ("see report") has no number to compare; a titre is a text (1:160).
    words = case.item.unit in ("", "{titer}")
    return (Answer.MET if kind == "number" or words else Answer.UNKNOWN), {"value": kind}


# Written without a unit everywhere: stating none is how their unit is stated.
_BARE_NUMBERS: Final = frozenset({"1", "[pH]", "{INR}", "{titer}"})


def _unit(case: Case) -> Judged:
    if not case.item.unit:
        return Answer.NOT_REQUIRED, {"reason": "item-without-unit"}
    evidence = {"wanted": case.item.unit, "unit": case.result.unit, "as_sent": case.result.unit_text}
    if case.item.unit in _BARE_NUMBERS and (case.result.unit == "1" or not (case.result.unit or case.result.unit_text)):
        return Answer.MET, evidence
    if not case.result.unit:
        return Answer.UNKNOWN, evidence
    # Same unit only: no scaling, and never mass to molar.
    return (Answer.MET if ucum.same_unit(case.result.unit, case.item.unit) else Answer.NOT_MET), evidence


def _specimen(case: Case) -> Judged:
    evidence = {"wanted": list(case.item.specimens), "specimen": case.result.specimen}
    if not case.item.specimens or not case.result.specimen:
        return Answer.UNKNOWN, evidence
    return (Answer.MET if case.result.specimen in case.item.specimens else Answer.NOT_MET), evidence


def _quality(case: Case) -> Judged:
    if not case.result.quality:
        return Answer.UNKNOWN, {"condition": None}
    return (Answer.MET if case.result.quality in case.policy.fit_specimens else Answer.NOT_MET), {
        "condition": case.result.quality
    }


def _window(case: Case) -> Judged:
    base = case.result.effective if case.policy.time_base == "effective" else case.result.issued
    evidence: dict[str, Any] = {
        "days": case.item.window_days,
        "time_base": case.policy.time_base,
        "from": base,
    }
    if case.item.window_days == 0:
        return Answer.NOT_MET, evidence | {"reason": "never-recognized-automatically"}
    if base is None:
        return Answer.UNKNOWN, evidence
    if base > case.at:
        return Answer.NOT_MET, evidence | {"reason": "after-the-order"}
    age = case.at - base
    evidence["age_hours"] = round(age / timedelta(hours=1), 2)
    return (Answer.MET if age <= timedelta(hours=24 * case.item.window_days) else Answer.NOT_MET), evidence


def _own_facility(case: Case) -> Judged:
    if case.policy.own_facility_results:
        return Answer.NOT_REQUIRED, {"facility": case.result.facility}
    if not case.result.facility or not case.order.facility:
        return Answer.UNKNOWN, {"facility": case.result.facility}
    return (Answer.NOT_MET if case.result.facility == case.order.facility else Answer.MET), {
        "facility": case.result.facility
    }


def _consortium(case: Case) -> Judged:
    # The issuing facility answers for the result; who performed it is shown as evidence and decides the mark.
    asking, issuing = (
        case.rules.consortium_of(case.order.facility),
        case.rules.consortium_of(case.result.facility or ""),
    )
    evidence = {"asking": asking or None, "issuing": issuing or None, "performer": case.result.performer}
    if not asking or not issuing:
        return Answer.UNKNOWN, evidence
    return (Answer.MET if asking == issuing else Answer.NOT_MET), evidence


def _context(case: Case) -> Judged:
    if case.order.emergency is None:
        return Answer.UNKNOWN, {"emergency": None}
    return (Answer.NOT_MET if case.order.emergency else Answer.MET), {"emergency": case.order.emergency}


JUDGES: Final[dict[str, Callable[[Case], Judged]]] = {
    "identity": _identity,
    "received": _received,
    "final": _final,
    "mapped": _mapped,
    "item": _item,
    "value": _value,
    "unit": _unit,
    "specimen": _specimen,
    "quality": _quality,
    "window": _window,
    "own-facility": _own_facility,
    "consortium": _consortium,
    "context": _context,
}
"""Every criterion, in the order they are reported."""

# When one of these is not met the result is sound but nobody is bound by it, so it may still be looked at.
DUTY: Final = frozenset({"own-facility", "consortium", "context"})


def judge(case: Case, modes: Mapping[str, Mode]) -> tuple[Criterion, ...]:
    """Every criterion on one case. ``modes``: how the policy uses each."""
    out = []
    for name, of in JUDGES.items():
        mode = modes[name]
        answer, evidence = of(case)
        if mode is Mode.NOT_REQUIRED:
            answer = Answer.NOT_REQUIRED
        stands = (
            answer is Answer.MET
            or answer is Answer.NOT_REQUIRED
            or (answer is Answer.UNKNOWN and mode is Mode.IF_STATED)
        )
        out.append(Criterion(name, answer, mode, evidence, stands))
    return tuple(out)
