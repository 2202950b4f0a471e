"""The criteria of recognition: each compares one result with one order and answers met, not-met or unknown, with its evidence.

Pure functions of a ``Case``. Missing data never counts as met. What each criterion rests on stands in
mappings/catalogue/policy.yaml (articles); how a policy uses it is its ``Mode``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple

from fhir_server.recognition import levels
from fhir_server.recognition.marks import Held, Mark
from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Mode, Policy, Rules
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

    site, laterality, contrast, method  as the result states them, in the words of the catalogue (laterality: left, right, bilateral)
    images_complete, images_reachable, image_quality  of the study behind an examination; health_check: of a 体检 visit
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
    site: str | None = None
    laterality: str | None = None
    contrast: str | None = None
    method: str | None = None
    images_complete: bool | None = None
    images_reachable: bool | None = None
    image_quality: str | None = None
    health_check: bool | None = None


NOT_KEPT: Final = frozenset(
    {
        "site", "laterality", "contrast", "method", "images_complete", "images_reachable", "image_quality", "health_check",
    }
)  # fmt: skip
"""Facts the flat result row does not hold; they are None unless somebody else states them."""


class Criterion(NamedTuple):
    """One criterion judged on one result: ``evidence`` holds the facts compared.

    ``stands``: it does not stand in the way: met, not required, or required only where stated and nothing is stated.
    ``bars``: it stands in the way so that the result may not even be looked at as a usable one.
    """

    name: str
    answer: Answer
    mode: Mode
    evidence: dict[str, Any]
    stands: bool
    bars: bool = False


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
    if case.item.category != "lab" and not case.item.unit:
        return Answer.NOT_REQUIRED, {"reason": "the-images-are-the-data"}
    kind = "number" if case.result.number is not None else "text" if case.result.value_text else None
    if kind is None:
        return Answer.UNKNOWN, {"value": None}
    # A measured item that came as text ("see report") has no number to compare; a titre is a text (1:160).
    words = case.item.unit in ("", "{titer}")
    return (Answer.MET if kind == "number" or words else Answer.UNKNOWN), {"value": kind}


# Usually written without a unit. Whether none may stand for theirs is for the policy to say: taking silence for the unit would turn a
# result with a wrong unit into a recognized one as soon as the unit is left out.
_BARE_NUMBERS: Final = frozenset({"1", "[pH]", "{INR}", "{titer}"})
_TITRE: Final = re.compile(r"^[<>≥≤=]{0,2}\s*1\s*[:：]\s*\d+$")


def _unit(case: Case) -> Judged:
    wanted, unit = case.item.unit, case.result.unit
    if not wanted:
        return Answer.NOT_REQUIRED, {"reason": "item-without-unit"}
    evidence = {"wanted": wanted, "unit": unit, "as_sent": case.result.unit_text}
    if wanted == "{titer}" and _TITRE.match((case.result.value_text or "").strip()):
        return Answer.MET, evidence | {"reason": "the-value-is-a-titre"}
    if wanted in _BARE_NUMBERS and unit == "1":
        return Answer.MET, evidence
    if wanted in case.policy.bare_numbers and not (unit or case.result.unit_text):
        return Answer.MET, evidence | {"reason": "bare-number-by-policy"}
    if not unit:
        return Answer.UNKNOWN, evidence
    # The same unit in any spelling only: no scaling, and never mass to molar.
    return (Answer.MET if case.item.accepts(unit) else Answer.NOT_MET), evidence


# What a local name says of side and contrast medium; the item it is mapped to must not say otherwise.
_SIDES: Final = (("bilateral", re.compile(r"双|两侧|bilateral", re.I)), ("left", re.compile(r"左|\bleft\b", re.I)),
                 ("right", re.compile(r"右|\bright\b", re.I)))  # fmt: skip
_PLAIN: Final = re.compile(r"平扫|without contrast", re.I)
_ENHANCED: Final = re.compile(r"增强|with (?:iv )?contrast", re.I)
_PARTS: Final = re.compile(r"左心|右心|左室|右室|左房|右房")


def _stated(result: Candidate) -> dict[str, str]:
    name = _PARTS.sub("", result.name or "")
    out = {"site": result.site or ""}
    sides = [side for side, pattern in _SIDES if pattern.search(name)]
    both = "bilateral" in sides or len(sides) > 1
    out["laterality"] = result.laterality or ("bilateral" if both else sides[0] if sides else "")
    plain, enhanced = _PLAIN.search(name), _ENHANCED.search(name)
    out["contrast"] = result.contrast or (
        "without-and-with" if plain and enhanced else "with" if enhanced else "without" if plain else ""
    )
    return out


def _site(case: Case) -> Judged:
    """Body site, laterality and contrast of an examination, where the result states them beside its code."""
    item = case.item
    wanted = {"site": item.body_site, "laterality": item.laterality, "contrast": item.contrast}
    if item.category == "lab" or not any(wanted.values()):
        return Answer.NOT_REQUIRED, {"reason": "item-without-site"}
    found = _stated(case.result)
    evidence = {"wanted": {k: v for k, v in wanted.items() if v}, "stated": {k: v for k, v in found.items() if v}}
    if any(found[k] and v and found[k] != v for k, v in wanted.items()):
        return Answer.NOT_MET, evidence
    known = all(found[k] for k, v in wanted.items() if v)
    return (Answer.MET if known else Answer.UNKNOWN), evidence


def _method(case: Case) -> Judged:
    if not case.item.method_class:
        return Answer.NOT_REQUIRED, {"reason": "any-method"}
    evidence = {"wanted": case.item.method_class, "method": case.result.method}
    if not case.result.method:
        return Answer.UNKNOWN, evidence
    return (Answer.MET if case.result.method == case.item.method_class else Answer.NOT_MET), evidence


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


def _made(case: Case) -> datetime | None:
    """The time of the result that window, mark and EQA look at."""
    return (
        case.result.effective if (case.item.time_base or case.policy.time_base) == "effective" else case.result.issued
    )


# Observation.interpretation (v3 ObservationInterpretation) of a normal result: N normal, NEG, ND not detected, NR non-reactive.
_NORMAL_FLAGS: Final = frozenset({"N", "NEG", "ND", "NR"})


def _abnormal(case: Case) -> Judged:
    if case.policy.abnormal_of(case.item) == "recognized":
        return Answer.NOT_REQUIRED, {"flag": case.result.flag}
    if not case.result.flag:
        return Answer.UNKNOWN, {"flag": None}
    return (Answer.MET if case.result.flag in _NORMAL_FLAGS else Answer.NOT_MET), {"flag": case.result.flag}


def _window(case: Case) -> Judged:
    base, days = _made(case), case.policy.window_of(case.item)
    evidence: dict[str, Any] = {
        "days": days,
        "time_base": case.item.time_base or case.policy.time_base,
        "from": base,
        "suggestion": case.item.window_status == "suggestion" and days == case.item.window_days,
    }
    if days == 0:
        return Answer.NOT_MET, evidence | {"reason": "never-recognized-automatically"}
    if base is None:
        return Answer.UNKNOWN, evidence
    if base > case.at:
        return Answer.NOT_MET, evidence | {"reason": "after-the-order"}
    age = case.at - base
    evidence["age_hours"] = round(age / timedelta(hours=1), 2)
    return (Answer.MET if age <= timedelta(hours=24 * days) else Answer.NOT_MET), evidence


def _exclusion(case: Case) -> Judged:
    """Results of the last hours belong to the same course of care and are watched, not recognized."""
    hours = case.policy.exclusion_hours
    if not hours:
        return Answer.NOT_REQUIRED, {"hours": 0}
    base = _made(case)
    if base is None:
        return Answer.UNKNOWN, {"hours": hours}
    age = case.at - base
    evidence = {"hours": hours, "age_hours": round(age / timedelta(hours=1), 2)}
    return (Answer.MET if age >= timedelta(hours=hours) else Answer.NOT_MET), evidence


_IMAGES: Final = frozenset({"imaging"})


def _images(case: Case) -> Judged:
    if case.item.category not in _IMAGES:
        return Answer.NOT_REQUIRED, {"reason": "no-imaging-item"}
    r = case.result
    fit = None if not r.image_quality else r.image_quality in case.policy.fit_images
    facts = {"complete": r.images_complete, "reachable": r.images_reachable, "fit": fit}
    evidence = facts | {"quality": r.image_quality}
    if False in facts.values():
        return Answer.NOT_MET, evidence | {"reason": next(k for k, v in facts.items() if v is False)}
    return (Answer.UNKNOWN if None in facts.values() else Answer.MET), evidence


def _nobody(case: Case) -> Held | None:
    """Why neither mark nor assessment can be looked up, or None."""
    if not case.result.performer:
        return Held(None, "performer-unknown", {})
    return Held(None, "time-unknown", {}) if _made(case) is None else None


def _marked(case: Case) -> tuple[Held, Mark | None]:
    made = _made(case)
    assert made is not None
    region = case.rules.standing_of(case.order.facility).region
    return case.rules.register.marked(case.result.performer or "", case.item.code, made, region, case.at)


def _assessed(case: Case) -> Held:
    made = _made(case)
    assert made is not None
    mark = _marked(case)[1]
    return case.rules.register.assessed(case.result.performer or "", case.item.code, made, case.at, mark)


_HELD: Final = {True: Answer.MET, False: Answer.NOT_MET, None: Answer.UNKNOWN}


def _told(held: Held, case: Case) -> Judged:
    reason = {"reason": held.reason} if held.reason else {}
    return _HELD[held.answer], {"laboratory": case.result.performer, **reason, **held.facts}


def _mark(case: Case) -> Judged:
    answer, evidence = _told(_nobody(case) or _marked(case)[0], case)
    return answer, evidence | ({"as_sent": case.result.mark} if case.result.mark else {})


def _eqa(case: Case) -> Judged:
    return _told(_nobody(case) or _assessed(case), case)


def _level(case: Case) -> Judged:
    if not case.policy.levels:
        return Answer.NOT_REQUIRED, {"reason": "level-does-not-matter"}
    asking = case.rules.standing_of(case.order.facility).level
    performing = case.rules.standing_of(case.result.performer or "").level
    answer = levels.allowed(case.policy.levels, asking, performing)
    return _HELD[answer], {"asking": asking or None, "performing": performing or None}


def _ownership(case: Case) -> Judged:
    if case.policy.private_institutions == "included":
        return Answer.NOT_REQUIRED, {"reason": "private-institutions-take-part"}
    private = case.rules.standing_of(case.result.performer or "").private
    evidence = {"performer": case.result.performer, "private": private}
    return _HELD[None if private is None else not private], evidence


def _health_check(case: Case) -> Judged:
    if case.policy.health_checks == "included":
        return Answer.NOT_REQUIRED, {"reason": "health-checks-take-part"}
    stated = case.result.health_check
    return _HELD[None if stated is None else not stated], {"health_check": stated}


def _own_facility(case: Case) -> Judged:
    if case.policy.own_facility_results:
        return Answer.NOT_REQUIRED, {"facility": case.result.facility}
    if not case.result.facility or not case.order.facility:
        return Answer.UNKNOWN, {"facility": case.result.facility}
    return (Answer.NOT_MET if case.result.facility == case.order.facility else Answer.MET), {
        "facility": case.result.facility
    }


def _consortium(case: Case) -> Judged:
    # The issuing facility answers for the result, also where it sent the specimen elsewhere; who performed it decides mark and EQA.
    asking, issuing = (
        case.rules.consortium_of(case.order.facility),
        case.rules.consortium_of(case.result.facility or ""),
    )
    evidence = {"asking": asking or None, "issuing": issuing or None, "performer": case.result.performer}
    if not asking or not issuing:
        return Answer.UNKNOWN, evidence
    return (Answer.MET if asking == issuing else Answer.NOT_MET), evidence


def _context(case: Case) -> Judged:
    """The circumstances of the order: emergency (4 of the six), and for decisive items surgery or transfusion (3 of the six)."""
    emergency, surgery = case.order.emergency, case.order.surgery
    evidence: dict[str, Any] = {"emergency": emergency}
    if case.item.before_surgery:
        evidence["before_surgery"] = surgery
    if emergency:
        return Answer.NOT_MET, evidence | {"reason_code": "4"}
    if case.item.before_surgery and surgery:
        return Answer.NOT_MET, evidence | {"reason_code": "3"}
    known = emergency is not None and not (case.item.before_surgery and surgery is None)
    return (Answer.MET if known else Answer.UNKNOWN), evidence


JUDGES: Final[dict[str, Callable[[Case], Judged]]] = {
    "identity": _identity,
    "received": _received,
    "final": _final,
    "mapped": _mapped,
    "item": _item,
    "value": _value,
    "unit": _unit,
    "site": _site,
    "method": _method,
    "specimen": _specimen,
    "quality": _quality,
    "abnormal": _abnormal,
    "window": _window,
    "exclusion": _exclusion,
    "images": _images,
    "mark": _mark,
    "eqa": _eqa,
    "level": _level,
    "ownership": _ownership,
    "health-check": _health_check,
    "own-facility": _own_facility,
    "consortium": _consortium,
    "context": _context,
}
"""Every criterion, in the order they are reported."""

DUTY: Final = frozenset(
    {
        "abnormal", "exclusion", "mark", "level", "ownership", "health-check", "own-facility", "consortium", "context",
    }
)  # fmt: skip
"""When one of these is not met the result is sound but nobody is bound by it, so it may still be looked at."""

_UNSOUND: Final = frozenset({"mark-expired", "mark-not-yet-valid"})
"""Reasons of a duty criterion that speak against the result itself: a laboratory that may not mark any more."""


def judge(case: Case, modes: Mapping[str, Mode]) -> tuple[Criterion, ...]:
    """Every criterion on one case. ``modes``: how the policy uses each, before its overrides."""
    if case.policy.overrides:
        same = _consortium(case)[0] is Answer.MET
        modes = dict(modes)
        for override in case.policy.over(case.item, same):
            modes.update(override.criteria)
    out = []
    for name, of in JUDGES.items():
        mode = modes[name]
        if mode is Mode.NOT_REQUIRED and name in _COSTLY:
            out.append(Criterion(name, Answer.NOT_REQUIRED, mode, {}, True))
            continue
        answer, evidence = of(case)
        if mode is Mode.NOT_REQUIRED:
            answer = Answer.NOT_REQUIRED
        stands = (
            answer is Answer.MET
            or answer is Answer.NOT_REQUIRED
            or (answer is Answer.UNKNOWN and mode is Mode.IF_STATED)
        )
        bars = not stands and answer is Answer.NOT_MET and (name not in DUTY or evidence.get("reason") in _UNSOUND)
        out.append(Criterion(name, answer, mode, evidence, stands, bars))
    return tuple(out)


_COSTLY: Final = frozenset({"mark", "eqa"})
"""Not looked up where they are not required: somebody waits for the order-time answer."""
