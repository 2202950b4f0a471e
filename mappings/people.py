"""PID, PV1, PV2, DG1, AL1, ROL: the rows that need more than one field
(guide: PID[Patient], PV1[Encounter], PV2[Encounter], DG1[Condition], AL1[AllergyIntolerance])."""

from __future__ import annotations

from html import escape
from typing import Any

from conformance import systems
from mappings import ids
from mappings.code_table import table
from mappings.coded import concept, system_uri
from mappings.context import Context
from mappings.datatypes import bare, cx_identifier, plain
from mappings.grammar import rule_for
from mappings.model import Recency, Tier
from mappings.registry import call, datatype
from mappings.source import Element, Record

_EXT = "http://hl7.org/fhir/StructureDefinition/"


@call("birth")
def birth(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """PID-7 -> birthDate; a time of birth goes to patient-birthTime. An impossible date holds the message: identity rests on it."""
    written = record.first(7)
    moment = x.time(written, "error", birth=True)
    if moment is None:
        return False
    out["birthDate"] = moment.date
    # Midnight without seconds of meaning is how many systems write "date only".
    if moment.has_time and written.strip()[8:].strip("0 ") != "":
        out["_birthDate"] = {"extension": [{"url": _EXT + "patient-birthTime", "valueDateTime": moment.fhir}]}
    return True


@call("county")
def county(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """PID-12 -> district of the one address, else an address of its own (guide: PID-12, four conditions)."""
    name = plain(record.get(12)[0], 1)
    if not name:
        return False
    addresses = out.setdefault("address", [])
    if len(addresses) == 1 and "district" not in addresses[0]:
        addresses[0]["district"] = name
    elif not (len(addresses) == 1 and addresses[0]["district"] == name):
        addresses.append({"district": name})
    return True


_MOTHER = rule_for("PID-21", kind="patient")


@call("mother")
def mother(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """PID-21 -> RelatedPerson with relationship MTH (guide: CX[RelatedPerson-Mother])."""
    found = [i for element in record.get(21) if (i := cx_identifier(element, x, _MOTHER))]
    if not found:
        return False
    key = (found[0]["system"], found[0]["value"])
    person = {
        "resourceType": "RelatedPerson",
        "id": ids.logical_id(x.shard, x.facility.id, "RelatedPerson", x.patient, "MTH", *key),
        "meta": x.meta(),
        "identifier": found,
        "patient": x.subject,
        "relationship": [{"coding": [{"system": systems.V3 + "RoleCode", "code": "MTH", "display": "mother"}]}],
    }
    x.add(person, Recency(Tier.MENTION, "", x.sent_at))
    return True


@datatype("ST[Address]", "1")
def st_address(element: Element, x: Context) -> dict[str, Any] | None:
    """PID-23 -> an Address with text only."""
    return {"text": plain(element, 1)} if plain(element, 1) else None


@call("breed")
def breed(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """PID-36 -> breed in the patient-animal extension."""
    found = concept(record.get(36)[0], x, "breed")
    if not found:
        return False
    animal = next((e for e in out.get("extension", ()) if e["url"].endswith("patient-animal")), None)
    if animal is None:
        # The extension requires the species.
        return False
    animal["extension"].append({"url": "breed", "valueCodeableConcept": found})
    return True


# --- visit -----------------------------------------------------------------------------------------------------------------


@call("bed_status")
def bed_status(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """PV1-40 -> operationalStatus of the bed or room named by PV1-3."""
    places = record.get(3)
    row = table("BedStatus").get(record.first(40))
    if row is None or not places or not (plain(places[0], 2) or plain(places[0], 3)) or not out.get("location"):
        return False
    return x.enrich(out["location"][0]["location"], "operationalStatus", row.coding())


@call("narrative")
def narrative(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """PV2-12 -> text."""
    words = plain(record.get(12)[0], 1)
    if not words:
        return False
    div = f'<div xmlns="http://www.w3.org/1999/xhtml">{escape(words)}</div>'
    out["text"] = {"status": "additional", "div": div}
    return True


@call("protection")
def protection(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """PV2-22 Y -> the visit is restricted; N says nothing that is not so anyway."""
    said = record.first(22)
    if said == "Y":
        security = out.setdefault("meta", {}).setdefault("security", [])
        security.append({"system": systems.V3 + "Confidentiality", "code": "R", "display": "restricted"})
    return said in ("Y", "N")


def encounter_status(event: str, visit: Record) -> str:
    """Encounter.status: PV1-45 and the trigger event (guide: PV1-45, MSH[Encounter]), else PV1-2."""
    row = table("EventEncounterStatus").get(event)
    if (
        visit.get(45)
        and visit.first(45)
        and not (row and row.code in ("cancelled", "in-progress") and event in ("A11", "A13", "A27", "A38"))
    ):
        return "finished"
    if event == "A23":
        return "unknown"  # the sender has deleted the visit: its class no longer says that it goes on
    if row and row.code != "unknown":
        return row.code
    of_class = table("ClassEncounterStatus").get(visit.first(2))
    return of_class.code if of_class else "unknown"


def unknown_class() -> dict[str, str]:
    """Encounter.class is required; a visit without PV1-2 has an unknown one."""
    return {"system": systems.V3 + "NullFlavor", "code": "UNK", "display": "unknown"}


# --- diagnoses -------------------------------------------------------------------------------------------------------------


@call("diagnosis_system")
def diagnosis_system(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """DG1-2 names the code system for a DG1-3 that does not (before 2.3.1, see diagnosis_code); beside one that does it repeats it."""
    return bool(record.get(3))


@call("diagnosis_text")
def diagnosis_text(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """DG1-4 -> code.text (guide: DG1-4), the words of the diagnosis."""
    words = plain(record.get(4)[0], 1)
    if not words:
        return False
    out["code"] = {**out.get("code", {}), "text": words}
    return True


def diagnosis_code(record: Record, x: Context, out: dict[str, Any]) -> None:
    """A code of DG1-3 without a system of its own takes that of DG1-2."""
    elements = record.get(3)
    method = record.first(2)
    if elements and method and plain(elements[0], 1) and not plain(elements[0], 3):
        coding = {"system": system_uri(method, x, "diagnoses"), "code": plain(elements[0], 1)}
        if plain(elements[0], 2):
            coding["display"] = plain(elements[0], 2)
        out["code"] = {"coding": [coding], "text": out.get("code", {}).get("text") or plain(elements[0], 1)}


_VERIFICATION = "http://terminology.hl7.org/CodeSystem/condition-ver-status"


@call("diagnosis_action")
def diagnosis_action(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """DG1-21 D -> entered-in-error; A and U say nothing about the Condition (guide: DG1-21)."""
    said = record.first(21)
    if said == "D":
        out["verificationStatus"] = {"coding": [{"system": _VERIFICATION, "code": "entered-in-error"}]}
    return said in ("A", "D", "U")


@call("diagnosis_parent")
def diagnosis_parent(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """DG1-22 -> condition-dueTo with the parent's number."""
    value = bare(record.get(22)[0], 1)
    if not value:
        return False
    system = systems.facility_system(x.facility.id, "diagnosis")
    reference = {"type": "Condition", "identifier": {"system": system, "value": value}}
    out.setdefault("extension", []).append({"url": _EXT + "condition-dueTo", "valueReference": reference})
    return True


# --- allergies -------------------------------------------------------------------------------------------------------------


@call("allergy_kind")
def allergy_kind(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """AL1-2 -> category and type, with the v2 code kept beside the category."""
    code = record.first(2)
    category, kind = table("AllergyCategory").get(code), table("AllergyType").get(code)
    if category:
        out["category"] = [category.code]
        row = table("AllergenType").get(code)
        if row:
            kept = {"url": _EXT + "alternate-codes", "valueCodeableConcept": {"coding": [row.coding()]}}
            out["_category"] = [{"extension": [kept]}]
    if kind:
        out["type"] = kind.code
    return bool(category or kind)


def _reaction(out: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = out.setdefault("reaction", [{}])[0]
    return found


@call("allergy_severity")
def allergy_severity(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """AL1-4 beside a reaction (AL1-5) -> reaction.severity."""
    row = table("AllergySeverity").get(record.first(4))
    if row:
        _reaction(out)["severity"] = row.code
    return row is not None


@call("allergy_reaction")
def allergy_reaction(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """AL1-5 (repeats) -> reaction.manifestation."""
    found = [{"text": words} for element in record.get(5) if (words := plain(element, 1) or plain(element, 2))]
    if found:
        _reaction(out)["manifestation"] = found
    return bool(found)
