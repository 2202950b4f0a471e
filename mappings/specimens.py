"""SPM and the specimen fields of OBR -> Specimen: the rows that need more than one field (guide: SPM[Specimen], OBR[Specimen])."""

from __future__ import annotations

from typing import Any

from conformance import systems
from mappings.coded import cwe_concept
from mappings.context import Context
from mappings.datatypes import bare, plain
from mappings.grammar import Rule, rule_for
from mappings.registry import call, datatype, ruled
from mappings.source import Element, Record

_TYPE, _ADDITIVE, _SITE = (
    rule_for("OBR-15", table="SpecimenType"),
    rule_for("OBR-15", table="Additive"),
    rule_for("OBR-15", table="BodySite"),
)
_CONDITION, _REJECT = rule_for("OBR-15", table="SpecimenCondition"), rule_for("SPM-21", table="SpecimenRejectReason")
_CONTAINER = rule_for("SPM-27", kind="containers")


@datatype("ST[Annotation]", "1")
def st_annotation(element: Element, x: Context) -> dict[str, Any] | None:
    """ST/TX -> Annotation."""
    return {"text": plain(element, 1)} if plain(element, 1) else None


@ruled("DR[dateTime]", "1 2")
def dr_datetime(element: Element, x: Context, rule: Rule) -> str | None:
    """DR without an end -> dateTime; with an end it is a period and this gives nothing (guide: SPM-17 conditions)."""
    if bare(element, 2):
        return None
    moment = x.time(bare(element, 1), x.severity(rule.hold))
    return moment.fhir if moment else None


@call("collected_period")
def collected_period(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """SPM-17 with an end -> collectedPeriod; equal times are one moment."""
    element = record.get(17)[0]
    if not bare(element, 2):
        return "collectedDateTime" in out.get("collection", {})
    start, end = x.time(bare(element, 1)), x.time(bare(element, 2))
    if start and end and start.instant == end.instant:
        out.setdefault("collection", {})["collectedDateTime"] = start.fhir
    elif start or end:
        ends = {k: m.fhir for k, m in (("start", start), ("end", end)) if m}
        out.setdefault("collection", {})["collectedPeriod"] = ends
    return bool(start or end)


@call("collected")
def collected(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBR-7 and OBR-8 -> when the specimen was taken."""
    start = x.time(record.first(7)) if record.get(7) else None
    end = x.time(record.first(8)) if record.get(8) else None
    if end:
        ends = {k: m.fhir for k, m in (("start", start), ("end", end)) if m}
        out.setdefault("collection", {})["collectedPeriod"] = ends
    elif start:
        out.setdefault("collection", {})["collectedDateTime"] = start.fhir
    return bool(start or end)


@call("specimen_parent")
def specimen_parent(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """SPM-3 (repeats) -> parent by identifier."""
    system = systems.facility_system(x.facility.id, "specimen")
    for element in record.get(3):
        value = bare(element, 2) or bare(element, 1)
        if value:
            out.setdefault("parent", []).append({"type": "Specimen", "identifier": {"system": system, "value": value}})
    return "parent" in out


@call("reject_reason")
def reject_reason(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """SPM-21 (repeats) -> the specimen is unsatisfactory, and why (table 0490)."""
    found = [c for element in record.get(21) if (c := cwe_concept(element, x, _REJECT))]
    if found:
        out["status"] = "unsatisfactory"
        out.setdefault("condition", []).extend(found)
    return bool(found)


@call("container_type")
def container_type(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """SPM-27 -> type of the one container."""
    found = cwe_concept(record.get(27)[0], x, _CONTAINER)
    if found:
        containers = out.setdefault("container", [{}])
        containers[0]["type"] = found
    return bool(found)


@call("specimen_source")
def specimen_source(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBR-15 (SPS to version 2.6; many write a plain code) -> type, additive, site, condition (guide: SPS[Specimen-Source])."""
    element = record.get(15)[0]
    first = element[0] if element else ""
    nested = isinstance(first, tuple)
    kind = cwe_concept(first if isinstance(first, tuple) else element[:3] if _is_coded(element) else (first,), x, _TYPE)
    if kind:
        out["type"] = kind
    read = {1} if kind else set()
    if _is_coded(element):
        read |= {2, 3}
    else:
        for component, rule in ((2, _ADDITIVE), (4, _SITE), (6, _CONDITION)):
            found = cwe_concept(_subs(element, component), x, rule)
            if found is None:
                continue
            read.add(component)
            if component == 2:
                out["container"] = [{"additiveCodeableConcept": found}]
            elif component == 4:
                out.setdefault("collection", {})["bodySite"] = found
            else:
                out.setdefault("condition", []).append(found)
        if plain(element, 3):
            out.setdefault("note", []).append({"text": plain(element, 3)})
            read.add(3)
    x.leftover(element, tuple(n for n in range(1, len(element) + 1) if n not in read), 0)
    return bool(read) or nested


def _is_coded(element: Element) -> bool:
    """True for a plain code triplet ``SER^Serum^HL70070`` where the standard has sub-components."""
    return all(isinstance(c, str) for c in element[:3]) and 1 < len(element) <= 3 and bool(plain(element, 2))


def _subs(element: Element, component: int) -> Element:
    found = element[component - 1] if component <= len(element) else ""
    return found if isinstance(found, tuple) else (found,)
