"""The criteria of recognition: each compares one result with one order and answers met, not-met or unknown, with its evidence.

Pure functions of a ``Case``. Missing data never counts as met. What each criterion rests on stands in
mappings/catalogue/policy.yaml (articles); how a policy uses it is its ``Mode``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from fhir_server.recognition import duty
from fhir_server.recognition.candidate import NOT_KEPT, Answer, Candidate, Case, Criterion, Judged, made
from fhir_server.recognition.rules import Mode
from fhir_server.store import specimens
from fhir_server.store.results import TEST

__all__ = ("DUTY", "JUDGES", "NOT_KEPT", "Answer", "Candidate", "Case", "Criterion", "judge")


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
    if case.result.status == TEST:
        return Answer.UNKNOWN, evidence | {"reason": NOT_CARE}
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


# What a laboratory writes in the place of a result: not done, specimen insufficient or clotted, see remark, strokes. A single minus is
# negative, and 未检出 is a result.
_NO_RESULT: Final = re.compile(
    r"未做|未检测(?!到|出)|未送检?|无法|不足|凝块|凝固|见(?:备注|报告|图文|附)|取消|退回|拒收|作废|待(?:检|定|复查|报告)|重(?:新)?(?:抽|采|查|送)"
    r"|not (?:done|performed|tested)|insufficient|pending|cancel|\bsee (?:note|report|comment)|^(?:[-—/\\*.…、]{2,}|[/\\*.…])$",
    re.I,
)


def _value(case: Case) -> Judged:
    if case.item.category != "lab" and not case.item.unit:
        return Answer.NOT_REQUIRED, {"reason": "the-images-are-the-data"}
    kind = "number" if case.result.number is not None else "text" if case.result.value_text else None
    if kind is None:
        return Answer.UNKNOWN, {"value": None}
    # A measured item that came as text ("see report") has no number to compare; a titre is a text (1:160).
    words = case.item.unit in ("", "{titer}")
    if kind == "text" and _NO_RESULT.search((case.result.value_text or "").strip()):
        return Answer.UNKNOWN, {"value": kind, "reason": "says-that-there-is-no-result"}
    return (Answer.MET if kind == "number" or words else Answer.UNKNOWN), {"value": kind}


# Usually written without a unit. Whether none may stand for theirs is for the policy to say: taking silence for the unit would turn a
# result with a wrong unit into a recognized one as soon as the unit is left out.
_BARE_NUMBERS: Final = frozenset({"1", "{INR}", "{titer}"})
# There is no other scale of pH (ISO 80000-9, 9-32): whatever stands beside the number, and nothing usually does, it says the same.
_WITHOUT_UNIT: Final = frozenset({"", "[pH]"})
_TITRE: Final = re.compile(r"^[<>≥≤=]{0,2}\s*1\s*[:：]\s*\d+$")


def _unit(case: Case) -> Judged:
    wanted, unit = case.item.unit, case.result.unit
    if wanted in _WITHOUT_UNIT:
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
    # One property in any size of its unit (UCUM canonical form); never mass to molar.
    return (Answer.MET if case.item.accepts(unit) else Answer.NOT_MET), evidence


# What a local name says of side and contrast medium; the item it is mapped to must not say otherwise.
_SIDES: Final = (("bilateral", re.compile(r"双|两侧|bilateral", re.I)), ("left", re.compile(r"左|\bleft\b", re.I)),
                 ("right", re.compile(r"右|\bright\b", re.I)))  # fmt: skip
_PLAIN: Final = re.compile(r"平扫|without contrast", re.I)
_ENHANCED: Final = re.compile(r"增强|with (?:iv )?contrast", re.I)
_PARTS: Final = re.compile(r"左心|右心|左室|右室|左房|右房")
# Views of a plain film, and how the patient stands or lies: what items.csv calls projection.
_VIEWS: Final = {
    "ap": re.compile(r"正侧?斜?位|正位|后前位|前后位|\b(?:PA|AP)\b", re.I),
    "lateral": re.compile(r"正?侧斜?位|\blateral\b", re.I),
    "oblique": re.compile(r"正?侧?斜位|\boblique\b", re.I),
}
_POSTURES: Final = {
    "upright": re.compile(r"立位|站立|\b(?:upright|standing)\b", re.I),
    "supine": re.compile(r"(?<!侧)(?<!俯)卧位|\bsupine\b", re.I),
}
_FILMS: Final = frozenset({"DX", "CR", "DR"})


def _stated(result: Candidate) -> dict[str, str]:
    name = _PARTS.sub("", result.name or "")
    out = {"site": result.site or result.image_site or ""}
    sides = [side for side, pattern in _SIDES if pattern.search(name)]
    both = "bilateral" in sides or len(sides) > 1
    out["laterality"] = result.laterality or ("bilateral" if both else sides[0] if sides else result.image_side or "")
    plain, enhanced = _PLAIN.search(name), _ENHANCED.search(name)
    out["contrast"] = result.contrast or (
        "without-and-with"
        if plain and enhanced
        else "with"
        if enhanced
        else "without"
        if plain
        else result.image_contrast or ""
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
    if any(found[k] and v and found[k] != v for k, v in wanted.items()) or _other_view(case, evidence):
        return Answer.NOT_MET, evidence
    known = all(found[k] for k, v in wanted.items() if v)
    return (Answer.MET if known else Answer.UNKNOWN), evidence


def _other_view(case: Case, evidence: dict[str, Any]) -> bool:
    """Does the name of a plain film state other views, or another posture, than the item's?"""
    item, name = case.item, case.result.name or ""
    if item.modality not in _FILMS or not item.projection:
        return False
    for words in (_VIEWS, _POSTURES):
        wanted = {w for w in words if w in item.projection}
        stated = {w for w, pattern in words.items() if pattern.search(name)} or {
            w for w in words if w in (case.result.image_views or "").split()
        }
        if wanted and stated and wanted != stated:
            evidence["projection"] = {"wanted": sorted(wanted), "stated": sorted(stated)}
            return True
    return False


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
    fits = specimens.fits(case.result.specimen, case.item.specimens)
    return (Answer.UNKNOWN if fits is None else Answer.MET if fits else Answer.NOT_MET), evidence


def _quality(case: Case) -> Judged:
    if not case.result.quality:
        return Answer.UNKNOWN, {"condition": None}
    return (Answer.MET if case.result.quality in case.policy.fit_specimens else Answer.NOT_MET), {
        "condition": case.result.quality
    }


# Observation.interpretation (v3 ObservationInterpretation) of a normal result: N normal, NEG, ND not detected, NR non-reactive.
_NORMAL_FLAGS: Final = frozenset({"N", "NEG", "ND", "NR"})


def _abnormal(case: Case) -> Judged:
    if case.policy.abnormal_of(case.item) == "recognized":
        return Answer.NOT_REQUIRED, {"flag": case.result.flag}
    if not case.result.flag:
        return Answer.UNKNOWN, {"flag": None}
    return (Answer.MET if case.result.flag in _NORMAL_FLAGS else Answer.NOT_MET), {"flag": case.result.flag}


def _window(case: Case) -> Judged:
    base, days = made(case), case.policy.window_of(case.item)
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
    "exclusion": duty.exclusion,
    "images": _images,
    "mark": duty.mark,
    "eqa": duty.eqa,
    "level": duty.level,
    "ownership": duty.ownership,
    "health-check": duty.health_check,
    "own-facility": duty.own_facility,
    "consortium": duty.consortium,
    "context": duty.context,
}
"""Every criterion, in the order they are reported."""

DUTY: Final = frozenset(
    {
        "abnormal", "exclusion", "mark", "level", "ownership", "health-check", "own-facility", "consortium", "context",
    }
)  # fmt: skip
"""When one of these is not met the result is sound but nobody is bound by it, so it may still be looked at."""

NOT_CARE: Final = "training-or-debugging"
"""Nobody knows whether such a result was measured at all: it is not shown either."""
_UNSOUND: Final = frozenset({"mark-expired", "mark-not-yet-valid"})
"""Reasons of a duty criterion that speak against the result itself: a laboratory that may not mark any more."""


def criterion(name: str, answer: Answer, mode: Mode, evidence: dict[str, Any]) -> Criterion:
    """What a criterion's answer means where the policy uses it as ``mode``."""
    if mode is NOT_REQUIRED_MODE:
        return Criterion(name, NOT_REQUIRED, mode, evidence, True)
    stands = answer is MET or answer is NOT_REQUIRED or (answer is UNKNOWN and mode is IF_STATED)
    reason = evidence.get("reason")
    bars = not stands and (reason == NOT_CARE or (answer is NOT_MET and (name not in DUTY or reason in _UNSOUND)))
    return Criterion(name, answer, mode, evidence, stands, bars)


def judge(case: Case) -> tuple[Criterion, ...]:
    """Every criterion on one case, each used as the policy and its overrides say."""
    together = duty.consortium(case)
    modes = case.policy.modes(case.item, together[0] is MET)
    out = []
    for name, of in JUDGES.items():
        mode = modes[name]
        if mode is not NOT_REQUIRED_MODE:
            answer, evidence = of(case)
            out.append(criterion(name, answer, mode, evidence))
            continue
        # Somebody waits for the order-time answer: what is not required is not looked up again where that costs.
        evidence = together[1] if name == "consortium" else {} if name in _COSTLY else of(case)[1]
        out.append(Criterion(name, NOT_REQUIRED, mode, evidence, True))
    return tuple(out)


_COSTLY: Final = frozenset({"mark", "eqa"})
"""Not looked up where they are not required."""

# Members of an Enum cost a look-up each time; these are asked for twenty times a result.
MET, NOT_MET, UNKNOWN, NOT_REQUIRED = Answer.MET, Answer.NOT_MET, Answer.UNKNOWN, Answer.NOT_REQUIRED
IF_STATED, NOT_REQUIRED_MODE = Mode.IF_STATED, Mode.NOT_REQUIRED
