"""Specimen -> SPM (HL7 v2.5.1 section 7.4.3)."""

from __future__ import annotations

from typing import Any

from conformance import systems
from mappings.outbound.dialect import Dialect
from mappings.outbound.line import Line, trimmed
from mappings.outbound.people import cx, ei, identifier_code
from mappings.outbound.value import digits
from mappings.source import Component, Element

_REJECTED = systems.V2 + "0490"
_AVAILABLE = {"available": "Y", "unavailable": "N"}


def specimen(number: int, resource: dict[str, Any], dialect: Dialect) -> Line:
    """One SPM; ``number`` is SPM-1."""
    line = Line("SPM")
    line.put(1, str(number))
    numbers = [i for i in resource.get("identifier", ()) if i.get("value")]
    assigned: dict[str, dict[str, Any]] = {}
    for identifier in numbers:
        assigned.setdefault("PLAC" if identifier_code(identifier) == "PLAC" else "FILL", identifier)
    ends: list[Component] = [
        _part(ei(assigned[k], "specimen", dialect)) if k in assigned else "" for k in ("PLAC", "FILL")
    ]
    line.put(2, trimmed(*ends))
    line.put(3, *(("", p["identifier"]["value"]) for p in resource.get("parent", ()) if "identifier" in p))
    if "type" in resource:
        line.put(4, dialect.coded(resource["type"], "SpecimenType"))
    containers = resource.get("container", [{}])
    line.put(
        6,
        *(
            dialect.coded(c["additiveCodeableConcept"], "Additive")
            for c in containers
            if "additiveCodeableConcept" in c
        ),
    )
    taken = resource.get("collection", {})
    if "method" in taken:
        line.put(7, dialect.coded(taken["method"], "CollectionMethod"))
    if "bodySite" in taken:
        line.put(8, dialect.coded(taken["bodySite"], "BodySite"))
    amount = taken.get("quantity", {})
    if "value" in amount:
        line.put(12, trimmed(digits(amount["value"]), amount.get("unit", "") or amount.get("code", "")))
    line.put(14, *((n.get("text", ""),) for n in resource.get("note", ())))
    period = taken.get("collectedPeriod", {})
    start = dialect.time(taken.get("collectedDateTime", "") or period.get("start", ""))
    line.put(17, trimmed(start, dialect.time(period.get("end", ""))))
    line.put(18, dialect.time(resource.get("receivedTime", "")))
    line.put(20, _AVAILABLE.get(resource.get("status", ""), ""))
    rejected: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for condition in resource.get("condition", ()):
        why = any(c.get("system") == _REJECTED for c in condition.get("coding", ()))
        (rejected if why or resource.get("status") == "unsatisfactory" else others).append(condition)
    line.put(21, *(dialect.coded(c, "SpecimenRejectReason") for c in rejected))
    line.put(24, *(dialect.coded(c, "SpecimenCondition") for c in others))
    line.put(27, *(dialect.coded(c["type"], "containers") for c in containers[:1] if "type" in c))
    accession = resource.get("accessionIdentifier", {})
    line.put(30, cx(accession, "accession", dialect) if accession.get("value") else ())
    further = [i for i in numbers if i not in assigned.values()]
    line.put(31, *(cx(i, "specimen", dialect) for i in further))
    return line


def _part(element: Element) -> Component:
    """An EI as one component of an EIP: its parts are sub-components."""
    flat = tuple(c if isinstance(c, str) else c[0] for c in element)
    return flat if len(flat) > 1 else flat[0]
