"""OBX-8, 11, 14, 29, 32, 33 -> interpretation, status, time, category, absent reason, specimen (guide: OBX[Observation])."""

from __future__ import annotations

from typing import Any

from conformance import systems
from mappings.code_table import table
from mappings.coded import concept
from mappings.context import Context
from mappings.datatypes import plain
from mappings.registry import call
from mappings.source import Element, Record, part

_ALTERNATE = "http://hl7.org/fhir/StructureDefinition/alternate-codes"
_FLAG_DIGITS = frozenset("0123")


@call("interpretation")
def interpretation(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-8 (repeats) -> interpretation: the profile's flags, then table 0078 and the words laboratories use."""
    elements = record.get(8)
    found, unknown = x.memo.get(("obx8", elements), lambda: _interpretations(elements, x))
    for word in unknown:
        x.issue_once("unknown-flag", "information", "The flag is in no table; it is kept as text.", word)
    if not found:
        return False
    out["interpretation"] = found
    return True


def _interpretations(elements: tuple[Element, ...], x: Context) -> tuple[list[dict[str, Any]], list[str]]:
    out: list[dict[str, Any]] = []
    unknown: list[str] = []
    flags = x.facility.flags
    for element in elements:
        word = plain(element, 1)
        if not word and not plain(element, 2):
            continue
        code = flags.get(word, word)
        row = table("Interpretation").get(code)
        if row is None:
            named = concept(element, x, "flags")
            if named:
                out.append(named)
            unknown.append(word)
            continue
        coding = {"system": systems.INTERPRETATION, "code": row.code}
        if row.display:
            coding["display"] = row.display
        out.append(
            {"coding": [coding], "text": plain(element, 2) or word} if word != row.code else {"coding": [coding]}
        )
    return out, unknown


@call("absent_reason")
def absent_reason(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-32 -> dataAbsentReason, only where there is no value (invariant obs-6)."""
    if any(key.startswith("value") for key in out) or "component" in out:
        return False
    found = concept(record.get(32)[0], x, "absent-reasons")
    if found:
        out["dataAbsentReason"] = found
    return bool(found)


# --- status and time -------------------------------------------------------------------------------------------------------


@call("result_status")
def result_status(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-11 -> status by the profile, then table 0085. A status that is missing or unknown is ``unknown``, never final."""
    code = record.first(11).strip()
    own = x.facility.observation_status.get(code)
    if own is not None:
        out["status"] = own
        return True
    row = table("ObservationStatus").get(code) if code else None
    if row is None:
        if code in _FLAG_DIGITS and code:
            words = "A digit in OBX-11 is a high/low flag of the analyser, not a status; the status is unknown."
        else:
            words = "The result status is not in table 0085; the status is unknown."
        if code:
            x.issue_once("unknown-status", "warning", words, code)
        return bool(code)
    out["status"] = row.code
    if code in ("B", "b"):
        out.setdefault("note", []).append(
            {"text": "Appended: reviewed, further information given, the value did not change (OBX-11 B)."}
        )
    if code == "X":
        out["_status"] = {
            "extension": [
                {"url": _ALTERNATE, "valueCodeableConcept": {"coding": [{"system": systems.V2 + "0085", "code": "X"}]}}
            ]
        }
    return True


@call("result_time")
def result_time(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-14 -> effectiveDateTime; recognition rests on it, so an impossible time holds the message."""
    moment = x.time(record.first(14), "error")
    if moment is None:
        return False
    if x.latest and moment.instant > x.latest:
        x.issue(
            "future-date",
            "error",
            "This lies in the future; correct the clock or the date and send again.",
            record.first(14),
        )
    out["effectiveDateTime"] = moment.fhir
    return True


@call("observation_type")
def observation_type(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-29 -> a further category (table 0936)."""
    code = plain(record.get(29)[0])
    if not code:
        return False
    out["category"] = [*x.order.category, {"coding": [{"system": systems.V2 + "0936", "code": code}]}]
    return True


@call("result_specimen")
def result_specimen(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-33 -> specimen: the Specimen of this order that carries the number, else its number alone."""
    element = record.get(33)[0]
    for value in (part(element, 2), part(element, 1)):
        for numbers, reference in x.order.specimens:
            if value and value in numbers:
                out["specimen"] = reference
                return True
    value = part(element, 2) or part(element, 1)
    if not value:
        return False
    out["specimen"] = {"identifier": {"system": systems.facility_system(x.facility.id, "specimen"), "value": value}}
    return True
