"""What a message says, in a form in which two conversions can be compared: by whatever profile they were read."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from conformance import systems
from mappings.model import Conversion
from mappings.outbound.people import Resources, facility_of, resolve
from mappings.times import parse

_KEPT = (
    "status", "valueQuantity", "valueRatio", "valueRange", "valueString", "valueDateTime", "valueTime", "valuePeriod",
    "dataAbsentReason", "component", "referenceRange", "conclusion",
)  # fmt: skip


def facts(conversion: Conversion, zone: Any) -> dict[str, Any]:
    """Patient, and each report with its results, without ids, systems of local codes, and echoes of the order."""
    resources = {f"{e.resource['resourceType']}/{e.resource['id']}": e.resource for e in conversion.entries}
    patient = next(r for r in resources.values() if r["resourceType"] == "Patient")
    reports = [r for r in resources.values() if r["resourceType"] == "DiagnosticReport"]
    return {
        "patient": _patient(patient),
        "reports": sorted((_report(r, resources, zone) for r in reports), key=repr),
    }


def _patient(patient: dict[str, Any]) -> dict[str, Any]:
    return {
        "identifiers": {(i["system"], i["value"]) for i in patient.get("identifier", ())},
        "names": [n["text"] for n in patient.get("name", ())],
        "birth": patient.get("birthDate"),
        "sex": patient.get("gender"),
    }


def _report(report: dict[str, Any], resources: Resources, zone: Any) -> dict[str, Any]:
    results = [resources[r["reference"]] for r in report.get("result", ())]
    specimens = [resources[s["reference"]] for s in report.get("specimen", ())]
    return {
        **_kept(report),
        "numbers": {(i["type"]["coding"][0]["code"], i["system"], i["value"]) for i in report.get("identifier", ())},
        "code": _code(report, systems.ORDERABLES),
        "times": _times(report, zone),
        "specimens": sorted((_specimen(s, zone) for s in specimens), key=repr),
        "notes": [e["valueAnnotation"]["text"] for e in report.get("extension", ()) if "valueAnnotation" in e],
        "files": sorted(_file(f, resources) for f in report.get("presentedForm", ())),
        "results": sorted((_result(o, resources, zone) for o in results), key=repr),
    }


def _file(attachment: dict[str, Any], resources: Resources) -> tuple[str, str]:
    binary = resolve({"reference": attachment.get("url", "")}, resources) or {}
    return attachment.get("contentType", ""), binary.get("data", "") or attachment.get("url", "")


def _specimen(specimen: dict[str, Any], zone: Any) -> dict[str, Any]:
    return {
        "type": (specimen.get("type", {}).get("text"), _standard(specimen.get("type", {}))),
        "numbers": {(i["system"], i["value"]) for i in specimen.get("identifier", ())},
        "taken": [_at(v, zone) for v in (specimen.get("collection", {}).get("collectedDateTime"),) if v],
        "received": _at(specimen.get("receivedTime", ""), zone),
        "condition": [_standard(c) for c in specimen.get("condition", ())],
    }


def _result(observation: dict[str, Any], resources: Resources, zone: Any) -> dict[str, Any]:
    specimen = resolve(observation.get("specimen", {}), resources) or {}
    first = next(iter(observation.get("performer", ())), {})
    coded = observation.get("valueCodeableConcept", {})
    extensions = observation.get("extension", ())
    return {
        **_kept(observation),
        "code": _code(observation, systems.ITEMS),
        "coded": (coded.get("text"), [c["code"] for c in coded.get("coding", ())]),
        "flags": [
            [c["code"] for c in i.get("coding", ())] or i.get("text") for i in observation.get("interpretation", ())
        ],
        "times": _times(observation, zone),
        "notes": [n["text"] for n in observation.get("note", ())],
        "specimen": (specimen.get("type", {}).get("text"), [i["value"] for i in specimen.get("identifier", ())]),
        "performer": facility_of(first, resources) or first.get("display"),
        "mark": [e["valueString"] for e in extensions if e["url"] == systems.MARK],
        "sub": [p for e in extensions if e["url"].endswith("v2-subid") for p in e["extension"]],
        "organism": [r["identifier"]["value"] for r in observation.get("derivedFrom", ()) if "identifier" in r],
        "members": sorted(resources[r["reference"]]["code"].get("text", "") for r in observation.get("hasMember", ())),
        "method": observation.get("method", {}).get("text"),
    }


def _kept(resource: dict[str, Any]) -> dict[str, Any]:
    return {k: _plain(resource[k]) for k in _KEPT if k in resource}


def _plain(value: Any) -> Any:
    """Numbers with their digits; without source texts (how a value was typed), and without the code a component repeats."""
    if isinstance(value, dict):
        return {
            k: _plain(v) for k, v in value.items() if k not in ("extension", "code") or not isinstance(v, list | dict)
        }
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Decimal) else value


def _code(resource: dict[str, Any], ours: str) -> tuple[Any, ...]:
    """The common code when there is one, else the code as sent; the name as sent."""
    codings = resource["code"].get("coding", [])
    common = sorted(c["code"] for c in codings if c["system"] in (ours,))
    return common or [c["code"] for c in codings[:1]], resource["code"].get("text")


def _standard(concept: dict[str, Any]) -> list[str]:
    return [c["code"] for c in concept.get("coding", ()) if c["system"].startswith(systems.V2)]


def _times(resource: dict[str, Any], zone: Any) -> list[str]:
    period = resource.get("effectivePeriod", {})
    found = [resource.get("effectiveDateTime"), period.get("start"), period.get("end"), resource.get("issued")]
    return [_at(t, zone) for t in found if t]


def _at(written: str, zone: Any) -> str:
    moment = parse(written, zone) if written else None
    return f"{moment.instant} {len(moment.date)} {moment.has_time}" if moment else ""
