"""Bundle -> the same as ``message.segments`` says, as plain JSON for a HIS that reads neither HL7 v2 nor FHIR (docs/outbound.md).

Codes, numbers and times are the receiver's own, as in the message. Values are text with the digits of the laboratory. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from conformance import systems
from mappings import times
from mappings.outbound.dialect import Dialect
from mappings.outbound.message import Letter, by_reference
from mappings.outbound.people import Resources
from mappings.outbound.value import digits, range_text

VOID: Final = frozenset({"entered-in-error", "cancelled"})
"""Statuses of what must not be used for care any more."""
_KINDS: Final = {
    "result-new": "new",
    "result-corrected": "corrected",
    "result-voided": "voided",
    "answer-reopened": "reopened",
}


def notice(bundle: Mapping[str, Any], letter: Letter, topic: str) -> dict[str, Any]:
    """One notice. ``topic``: of the outbox row, ``result-new``, ``result-corrected``, ``result-voided`` or ``answer-reopened``. Absent
    keys: not known."""
    resources = by_reference(bundle)
    dialect = Dialect(letter.receiver, letter.sender)
    reports = [r for r in resources.values() if r["resourceType"] == "DiagnosticReport"]
    told = {r.get("reference") for report in reports for r in report.get("result", ())}
    alone = [r for k, r in resources.items() if r["resourceType"] == "Observation" and k not in told]
    subject: dict[str, Any] = next((r.get("subject", {}) for r in (*reports, *alone)), {})
    return {
        "id": letter.control_id,
        "kind": _KINDS.get(topic, topic),
        "at": letter.at.astimezone(letter.receiver.zone).isoformat(timespec="seconds"),
        "from": {"facility": letter.sender.id, "name": letter.sender.facility.organization.name},
        "to": letter.receiver.id,
        "patient": _patient(resources.get(str(subject.get("reference", ""))), letter),
        "reports": [_report(r, resources, letter, dialect) for r in reports],
        "results": [_result(o, dialect) for o in alone],
    }


def _known(**parts: Any) -> dict[str, Any]:
    return {key.rstrip("_"): value for key, value in parts.items() if value not in (None, "", [])}


def _patient(resource: dict[str, Any] | None, letter: Letter) -> dict[str, Any]:
    numbers = []
    for holder, whose in ((letter.own_patients, letter.receiver.id), ((resource or {},), letter.sender.id)):
        for identifier in (i for patient in holder for i in patient.get("identifier", ()) if i.get("value")):
            national = identifier.get("system") == systems.RESIDENT_ID
            numbers.append({"value": identifier["value"], "of": "resident-id" if national else whose})
    names = (resource or {}).get("name", ())
    return _known(
        numbers=[n for i, n in enumerate(numbers) if n not in numbers[:i]],
        name=next((n["text"] for n in names if n.get("text")), ""),
        birth_date=(resource or {}).get("birthDate"),
        gender=(resource or {}).get("gender"),
    )


def _report(report: dict[str, Any], resources: Resources, letter: Letter, dialect: Dialect) -> dict[str, Any]:
    members = [resources.get(str(r.get("reference", ""))) for r in report.get("result", ())]
    day = str(report.get("effectiveDateTime") or report.get("effectivePeriod", {}).get("start", ""))[:10]
    code = dialect.order_code(report.get("code", {}), day)
    own = [n for order in letter.own_orders for n in _numbers(order, "PLAC")]
    return _known(
        number=next(iter(_numbers(report, "FILL")), ""),
        order=next(iter([*own, *_numbers(report, "PLAC")]), ""),
        code=code[0] if code else "",
        name=report.get("code", {}).get("text"),
        status=report["status"],
        usable=report["status"] not in VOID,
        taken=_time(report.get("effectiveDateTime") or report.get("effectivePeriod", {}).get("start"), dialect),
        reported=_time(report.get("issued"), dialect),
        conclusion=report.get("conclusion"),
        results=[_result(o, dialect) for o in members if o is not None],
    )


def _numbers(resource: dict[str, Any], kind: str) -> list[str]:
    return [
        i["value"]
        for i in resource.get("identifier", ())
        if i.get("value") and any(c.get("code") == kind for c in i.get("type", {}).get("coding", ()))
    ]


def _result(observation: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    code, _ = dialect.test_code(observation["code"], str(observation.get("effectiveDateTime", ""))[:10])
    value, unit = _value(observation)
    sent = [c["code"] for i in observation.get("interpretation", ()) for c in i.get("coding", ()) if "code" in c]
    words = [i["text"] for i in observation.get("interpretation", ()) if i.get("text") and not i.get("coding")]
    return _known(
        code=code[0] if code else "",
        name=observation["code"].get("text"),
        value=value,
        unit=unit,
        range_=range_text(observation),
        flags=[dialect.flag(c) or c for c in sent] + words,
        status=observation["status"],
        usable=observation["status"] not in VOID,
        taken=_time(observation.get("effectiveDateTime"), dialect),
        notes=[n["text"] for n in observation.get("note", ()) if n.get("text")],
        parts=[_part(c) for c in observation.get("component", ())],
    )


def _part(component: dict[str, Any]) -> dict[str, Any]:
    value, unit = _value(component)
    return _known(name=component.get("code", {}).get("text"), value=value, unit=unit)


def _value(holder: dict[str, Any]) -> tuple[str, str]:
    """(value as text, unit as text); empty when there is none."""
    for key, value in holder.items():
        match key:
            case "valueQuantity":
                return _amount(value), str(value.get("unit", ""))
            case "valueRatio":
                return f"{_amount(value['numerator'])}:{_amount(value['denominator'])}", ""
            case "valueRange":
                low, high = value.get("low", {}), value.get("high", {})
                return f"{_amount(low)}-{_amount(high)}", str((low or high).get("unit", ""))
            case "valueCodeableConcept":
                shown = (c.get("display") or c.get("code", "") for c in value.get("coding", ()))
                return str(value.get("text") or next(shown, "")), ""
            case "valuePeriod":
                return f"{value.get('start', '')}/{value.get('end', '')}", ""
            case _ if key.startswith("value"):
                return str(value), ""
    return "", ""


def _amount(quantity: dict[str, Any]) -> str:
    return quantity.get("comparator", "") + digits(quantity["value"]) if "value" in quantity else ""


def _time(written: str | None, dialect: Dialect) -> str:
    moment = times.parse(written, dialect.zone) if written else None
    if moment is None or not moment.has_time:
        return written or ""
    return moment.at.astimezone(dialect.zone).isoformat(timespec="seconds")
