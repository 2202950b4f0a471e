"""A patient group -> Patient, RelatedPerson, AllergyIntolerance, Encounter, Condition (guide: ADT_A01 and the patient groups of other
messages)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mappings import ids, plausible
from mappings.annotations import NOTE, add_notes, participation
from mappings.compiled import CompiledMap
from mappings.context import Context
from mappings.datatypes import bare, cx_identifier, identifier_type, plain
from mappings.grammar import rule_for
from mappings.grouping import Described, Patient
from mappings.model import Merge, Recency, Tier
from mappings.patient_key import patient_key, patient_keys
from mappings.people import diagnosis_code, encounter_status, unknown_class
from mappings.source import Record
from mappings.statements import Plan

_VISIT = rule_for("PV1-19", kind="visit")
_ACCOUNT = rule_for("PID-18", kind="account")
_DELETE_VISIT, _DELETE_PERSON = "A23", "A29"
"""HL7 v2.5.1 sections 3.3.23 (a purge: "when an event was entered erroneously, use one of the cancel transactions") and 3.3.29."""
_CANCEL_DISCHARGE = "A13"
_CATEGORY = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-category", "code": "encounter-diagnosis"}]
}
_CLINICAL = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical", "code": "active"}]
}


def patient_id(facility: str, key: str) -> tuple[int, str]:
    """(shard, logical id) of the Patient a facility names by a patient key."""
    shard = ids.shard_of(facility, key)
    return shard, ids.logical_id(shard, facility, "Patient", key)


def place(group: Patient, x: Context) -> bool:
    """Make the context speak of the group's patient. False, with an issue that holds the message, when there is no PID.

    A PID without an identifier holds the message too; what it says is still mapped under a provisional key, so that whoever mends
    the message sees it. A held conversion is never applied.
    """
    if group.pid is None:
        x.issue("no-patient", "error", "The message names no patient (PID is missing).", where="PID[1]")
        return False
    key = patient_key(group.pid, x.facility)
    if not key:
        words = "The patient has no identifier (PID-3, and PID-2, 4, 18, 19 are empty); send one and send again."
        x.issue("no-patient-key", "error", words, where=f"{group.pid.where}-3")
        key = f"unidentified|{x.control_id}"
    x.shard, x.patient = patient_id(x.facility.id, key)
    x.subject = {"reference": f"Patient/{x.patient}"}
    x.encounter = None
    return True


def recency(x: Context, plan: Plan, kind: str) -> Recency:
    """Recency of the family's statement about a resource type that has no status of its own. A sender that deletes its record of a
    visit (A23) takes nothing back: it states nothing about what is known here."""
    if x.trigger == _DELETE_VISIT and plan.map.family == "admission":
        return Recency(Tier.MENTION, "", x.sent_at)
    return Recency(plan.tier(kind), "", x.sent_at)


def map_patient(group: Patient, x: Context, plan: Plan) -> None:
    """PID, PD1, NK1, AL1 -> Patient and what hangs on it. ``place`` has been called."""
    out: dict[str, Any] = {
        "resourceType": "Patient",
        "id": x.patient,
        "meta": x.meta(),
        "active": x.trigger != _DELETE_PERSON,
    }
    x.peers = {}
    for compiled in plan.maps("patient", "Patient"):
        record = group.pid if compiled.segment == "PID" else group.pd1
        if record is not None:
            compiled.apply(record, x, out)
    if group.pid is not None:
        plausible.check_resident_id(out, group.pid, x)
    for relative in group.relatives:
        _relative(relative, x, plan)
        for compiled in plan.maps("patient", "Contact"):
            compiled.apply(relative.record, x, out)
    for index, allergy in enumerate(group.allergies):
        _allergy(allergy, index, x, plan)
    if "identifier" not in out and group.pid is not None and group.pid.get(18):
        # Nothing else names the patient: the account number does (mappings.patient_key).
        account = _account(group.pid, x)
        if account is not None:
            out["identifier"] = [account]
    add_notes(group.notes, x, out, NOTE)
    for record in group.participations:
        who = participation(record, x)
        if who is not None and record.first(4) in ("PP", "FHCP"):
            _append(out, "generalPractitioner", who.reference)
    for record in group.roles:
        _role(record, x, out)
    x.add(out, recency(x, plan, "Patient"))
    _merges(group, x, plan)


def _append(out: dict[str, Any], key: str, value: dict[str, Any] | None) -> None:
    if value is not None and value not in out.setdefault(key, []):
        out[key].append(value)


def _role(record: Record, x: Context, out: dict[str, Any]) -> None:
    """ROL after PID -> Patient.generalPractitioner when the role says so (guide: ROL[Patient-GeneralPractitioner])."""
    if record.first(3) not in ("PP", "FHCP"):
        return
    who = participation(record, x)
    if who is not None:
        _append(out, "generalPractitioner", who.reference)


def _account(pid: Record, x: Context) -> dict[str, Any] | None:
    """PID-18 -> Identifier of type account number; marks the field as read."""
    x.record, x.field = pid, 18
    found = cx_identifier(pid.get(18)[0], x, _ACCOUNT)
    if found is None:
        return None
    x.fields_read(pid).add(18)
    return {"type": identifier_type("AN"), **found}


def _merges(group: Patient, x: Context, plan: Plan) -> None:
    """MRG -> the retired Patient, and the merge statement when the event merges patients."""
    maps = plan.maps("patient", "Merged")
    if maps and x.trigger in plan.map.merges and not group.merged:
        words = "The message merges patients but names no prior patient (MRG is missing); send it again with MRG-1."
        x.issue("no-merge-key", "error", words, where="MRG[1]-1")
    held = set(patient_keys(group.pid, x.facility)) if group.pid is not None else set()
    for record in group.merged if maps else ():
        if x.trigger not in plan.map.merges:
            continue
        keys = patient_keys(record, x.facility)
        if not keys:
            words = "The merge names no prior patient identifier (MRG-1)."
            x.issue("no-merge-key", "error", words, where=f"{record.where}-1")
            continue
        # A number that the surviving side bears as well (a resident ID) is not given up.
        retired = [i for key in keys if key not in held and (i := patient_id(x.facility.id, key)[1]) != x.patient]
        if not retired:
            words = "The prior identifier names the same patient; there is nothing to merge."
            x.issue("merge-with-itself", "warning", words, where=f"{record.where}-1")
        for logical in retired:
            # Earlier messages may have named the patient by any of the numbers: each made a Patient of its own.
            out: dict[str, Any] = {"resourceType": "Patient", "id": logical, "meta": x.meta()}
            for compiled in maps:
                compiled.apply(record, x, out)
            x.add(out, Recency(Tier.MENTION, "", x.sent_at), patient=logical)
            x.conversion.merges.append(Merge(x.patient, logical, x.trigger))


def _keyed(x: Context, kind: str, *parts: str) -> str:
    return ids.logical_id(x.shard, x.facility.id, kind, x.patient, *parts)


def _relative(relative: Described, x: Context, plan: Plan) -> None:
    out: dict[str, Any] = {"resourceType": "RelatedPerson", "id": "", "meta": x.meta(), "patient": x.subject}
    for compiled in plan.maps("patient", "RelatedPerson"):
        compiled.apply(relative.record, x, out)
    x.check_period(out)
    relationship = relative.record.first(3) or relative.record.first(7)
    numbers = [i["value"] for i in out.get("identifier", ())]
    names = [n.get("text", "") for n in out.get("name", ())]
    if not (numbers or names or "telecom" in out or relationship):
        return
    out["id"] = _keyed(x, "RelatedPerson", relationship, *(numbers[:1] or names[:1] or [relative.record.first(1)]))
    add_notes(relative.notes, x, out, NOTE)
    x.add(out, recency(x, plan, "RelatedPerson"))


def _allergy(allergy: Described, index: int, x: Context, plan: Plan) -> None:
    out: dict[str, Any] = {
        "resourceType": "AllergyIntolerance",
        "id": "",
        "meta": x.meta(),
        "clinicalStatus": _CLINICAL,
        "patient": x.subject,
    }
    for compiled in plan.maps("patient", "AllergyIntolerance"):
        compiled.apply(allergy.record, x, out)
    if "reaction" in out and "manifestation" not in out["reaction"][0]:
        del out["reaction"]
    code = out.get("code", {})
    key = (code.get("coding") or [{}])[0].get("code") or code.get("text") or f"#{index}"
    out["id"] = _keyed(x, "AllergyIntolerance", key)
    add_notes(allergy.notes, x, out, "")
    x.add(out, recency(x, plan, "AllergyIntolerance"))


# --- visit -----------------------------------------------------------------------------------------------------------------


_BEGINNING = frozenset({"A01", "A04", "A05", "A14"})
"""Events that begin a visit, or announce it (HL7 v2.5.1 section 3.3)."""


def visit_key(group: Patient, x: Context) -> tuple[str, ...]:
    """What names the visit: PV1-19, PV1-50, PID-18, the admission time PV1-44; empty when nothing does.

    Without these, an event that begins a visit names it by its own time (EVN-6, EVN-2), and orders, results and documents name it
    by their number: what they say of the visit is kept with them and never taken for another visit.
    """
    visit = group.visit.record if group.visit else None
    for record, field, kind in ((visit, 19, "visit"), (visit, 50, "visit"), (group.pid, 18, "account")):
        for element in record.get(field) if record is not None else ():
            found = cx_identifier(element, x, _VISIT)
            if found:
                return (kind, found["system"], found["value"])
    admitted = visit.first(44) if visit is not None else ""
    if admitted:
        return ("admitted", admitted)
    if visit is None or not _says_something(visit):
        return ()
    if x.family == "admission":
        return ("begun", x.event_at) if x.trigger in _BEGINNING and x.event_at else ()
    for record, field in _numbers(group):
        if record is not None and record.first(field).strip():
            return ("of", f"{record.name[0]}{field}", record.first(field).strip())
    return ()


def _says_something(visit: Record) -> bool:
    return any(field != 1 for field in visit.filled())


def _numbers(group: Patient) -> Iterator[tuple[Record | None, int]]:
    for order in group.orders:
        yield from ((record, field) for field in (3, 2) for record in (order.obr, order.orc))
    yield from ((document.record, 12) for document in group.documents)


def map_visit(group: Patient, x: Context, plan: Plan) -> None:
    """PV1, PV2, DG1, ROL -> Encounter and Conditions. A visit that nothing names is not stored; its fields are then unread."""
    maps = plan.maps("visit", "Encounter")
    if not maps:
        return
    if group.visit is None:
        _conditions(group, None, x, plan)
        return
    key = visit_key(group, x)
    if not key:
        if _says_something(group.visit.record):
            words = (
                "The visit has no number (PV1-19, PV1-50, PID-18) and no admission time (PV1-44); no Encounter is made."
            )
            x.issue("no-visit-key", "information", words, where=f"{group.visit.record.where}-19")
        _conditions(group, None, x, plan)
        return
    visit = group.visit.record
    out: dict[str, Any] = {
        "resourceType": "Encounter",
        "id": _keyed(x, "Encounter", *key),
        "meta": x.meta(),
        "status": "unknown",
    }
    out["subject"] = x.subject
    x.peers = {"PV1": visit}
    for compiled in maps:
        record = visit if compiled.segment == "PV1" else group.visit_more
        if record is not None:
            compiled.apply(record, x, out)
    if x.trigger == _CANCEL_DISCHARGE:
        out.get("period", {}).pop("end", None)  # when the patient was said to have left, and did not
    x.check_period(out)
    out["status"] = encounter_status(x.trigger if plan.map.family == "admission" else "", visit)
    out.setdefault("class", unknown_class())
    if group.pid is not None and group.pid.get(18):
        account = _account(group.pid, x)
        if account is not None:
            _append(out, "identifier", account)
    add_notes(group.visit.notes, x, out, NOTE)
    for record in [*group.visit.participations, *group.roles]:
        if record.first(3 if record.name == "ROL" else 4) in ("PP", "FHCP"):
            continue
        who = participation(record, x, individual=True)
        if who is not None and who.reference is not None:
            _append(out, "participant", {**({"type": who.codes} if who.codes else {}), "individual": who.reference})
    reference = {"reference": f"Encounter/{out['id']}"}
    diagnoses = _conditions(group, reference, x, plan)
    if diagnoses:
        out["diagnosis"] = diagnoses
    x.encounter = reference
    x.add(out, recency(x, plan, "Encounter"))


def _conditions(group: Patient, encounter: dict[str, str] | None, x: Context, plan: Plan) -> list[dict[str, Any]]:
    out = []
    for diagnosis in group.diagnoses:
        reference = map_condition(diagnosis, encounter, plan.maps("visit", "Condition"), x, plan)
        if reference is None:
            continue
        entry: dict[str, Any] = {"condition": reference}
        if encounter is not None:
            for compiled in plan.maps("visit", "Diagnosis"):
                compiled.apply(diagnosis.record, x, entry)
        if entry not in out:
            out.append(entry)
    return out


def map_condition(
    diagnosis: Described, encounter: dict[str, str] | None, maps: tuple[CompiledMap, ...], x: Context, plan: Plan
) -> dict[str, str] | None:
    """DG1 -> Condition; gives the reference to it, or None when the segment names no diagnosis."""
    record = diagnosis.record
    if not maps or not (record.get(3) or record.get(4)):
        return None
    out: dict[str, Any] = {
        "resourceType": "Condition",
        "id": "",
        "meta": x.meta(),
        "category": [_CATEGORY],
        "subject": x.subject,
    }
    for compiled in maps:
        compiled.apply(record, x, out)
    diagnosis_code(record, x, out)
    if "code" not in out:
        return None
    if encounter is not None:
        out["encounter"] = encounter
    number = bare(record.get(20)[0], 1) if record.get(20) else ""
    element = record.get(3)[0] if record.get(3) else ()
    words = plain(element, 1) or out["code"].get("text", "")
    key = ("number", number) if number else ((encounter or {}).get("reference", ""), words, record.first(6))
    out["id"] = _keyed(x, "Condition", *key)
    add_notes(diagnosis.notes, x, out, "")
    x.add(out, recency(x, plan, "Condition"))
    return {"reference": f"Condition/{out['id']}"}
