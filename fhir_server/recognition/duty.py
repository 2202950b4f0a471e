"""Criteria about who is bound by a result: mark and quality assessment, level, ownership, consortium, the circumstances of the order.

Pure functions of a ``Case``, as in criteria.py. What each rests on stands in mappings/catalogue/policy.yaml (articles).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from fhir_server.recognition import levels
from fhir_server.recognition.candidate import Answer, Case, Judged, made
from fhir_server.recognition.marks import Held, Mark


def exclusion(case: Case) -> Judged:
    """Results of the last hours belong to the same course of care and are watched, not recognized."""
    hours = case.policy.exclusion_hours
    if not hours:
        return Answer.NOT_REQUIRED, {"hours": 0}
    base = made(case)
    if base is None:
        return Answer.UNKNOWN, {"hours": hours}
    age = case.at - base
    evidence = {"hours": hours, "age_hours": round(age / timedelta(hours=1), 2)}
    return (Answer.MET if age >= timedelta(hours=hours) else Answer.NOT_MET), evidence


def _nobody(case: Case) -> Held | None:
    """Why neither mark nor assessment can be looked up, or None."""
    if not case.result.performer:
        return Held(None, "performer-unknown", {})
    return Held(None, "time-unknown", {}) if made(case) is None else None


def _marked(case: Case) -> tuple[Held, Mark | None]:
    at = made(case)
    assert at is not None
    region = case.rules.standing_of(case.order.facility).region
    return case.rules.register.marked(case.result.performer or "", case.item.code, at, region, case.at)


def _assessed(case: Case) -> Held:
    at = made(case)
    assert at is not None
    mark = _marked(case)[1]
    return case.rules.register.assessed(case.result.performer or "", case.item.code, at, case.at, mark)


_HELD: Final = {True: Answer.MET, False: Answer.NOT_MET, None: Answer.UNKNOWN}


def _told(held: Held, case: Case) -> Judged:
    reason = {"reason": held.reason} if held.reason else {}
    return _HELD[held.answer], {"laboratory": case.result.performer, **reason, **held.facts}


def mark(case: Case) -> Judged:
    answer, evidence = _told(_nobody(case) or _marked(case)[0], case)
    return answer, evidence | ({"as_sent": case.result.mark} if case.result.mark else {})


def eqa(case: Case) -> Judged:
    return _told(_nobody(case) or _assessed(case), case)


def level(case: Case) -> Judged:
    if not case.policy.levels:
        return Answer.NOT_REQUIRED, {"reason": "level-does-not-matter"}
    asking = case.rules.standing_of(case.order.facility).level
    performing = case.rules.standing_of(case.result.performer or "").level
    answer = levels.allowed(case.policy.levels, asking, performing)
    return _HELD[answer], {"asking": asking or None, "performing": performing or None}


def ownership(case: Case) -> Judged:
    if case.policy.private_institutions == "included":
        return Answer.NOT_REQUIRED, {"reason": "private-institutions-take-part"}
    private = case.rules.standing_of(case.result.performer or "").private
    evidence = {"performer": case.result.performer, "private": private}
    return _HELD[None if private is None else not private], evidence


def health_check(case: Case) -> Judged:
    if case.policy.health_checks == "included":
        return Answer.NOT_REQUIRED, {"reason": "health-checks-take-part"}
    stated = case.result.health_check
    return _HELD[None if stated is None else not stated], {"health_check": stated}


def own_facility(case: Case) -> Judged:
    if case.policy.own_facility_results:
        return Answer.NOT_REQUIRED, {"facility": case.result.facility}
    if not case.result.facility or not case.order.facility:
        return Answer.UNKNOWN, {"facility": case.result.facility}
    return (Answer.NOT_MET if case.result.facility == case.order.facility else Answer.MET), {
        "facility": case.result.facility
    }


def consortium(case: Case) -> Judged:
    # The issuing facility answers for the result, also where it sent the specimen elsewhere; who performed it decides mark and EQA.
    asking, issuing = (
        case.rules.consortium_of(case.order.facility),
        case.rules.consortium_of(case.result.facility or ""),
    )
    evidence = {"asking": asking or None, "issuing": issuing or None, "performer": case.result.performer}
    if not asking or not issuing:
        return Answer.UNKNOWN, evidence
    return (Answer.MET if asking == issuing else Answer.NOT_MET), evidence


def context(case: Case) -> Judged:
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
