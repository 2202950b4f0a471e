"""ORC, OBR -> ServiceRequest and DiagnosticReport: the rows that need more than one field
(guide: ORC[ServiceRequest], OBR[ServiceRequest], OBR[DiagnosticReport])."""

from __future__ import annotations

import re
from typing import Any

from conformance import systems
from conformance.terminology import loinc_valid
from mappings import ids
from mappings.code_table import table
from mappings.coded import codings, not_loinc, system_uri
from mappings.contacts import xad_address, xtn_contact_point
from mappings.context import Context
from mappings.datatypes import bare, ei_identifier, eip_part, identifier_type, named_system, plain
from mappings.directory import practitioner, role, xon_organization
from mappings.grammar import Rule, rule_for
from mappings.registry import call, ruled
from mappings.source import Element, Record

# fmt: off
_NO_STATUS = frozenset((
    "CN", "LI", "MC", "NR", "OF", "OP", "OW", "RA", "RC", "RD", "RE", "RF",
    "RR", "SC", "SQ", "SR", "SS", "UC", "UD", "UF", "UH", "UM", "UN", "UR", "UX", "CP",
))
# fmt: on
"""Codes of table 0119 (HL7 v2.8) that say nothing of how the order stands: ORC-5 does."""
_SUPPORTING = "http://hl7.org/fhir/5.0/StructureDefinition/extension-ServiceRequest.supportingInfo"
_EVENT = "http://hl7.org/fhir/StructureDefinition/businessEvent"


@call("seen")
def seen(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """A field another map or module reads: OBX-2 types the value, SPM-11 tells controls, ORC-2/3 repeat OBR-2/3."""
    return True


# --- code ------------------------------------------------------------------------------------------------------------------


def _order_concept(element: Element, day: str, x: Context) -> tuple[dict[str, Any], str, str, list[str]]:
    """OBR-4 -> (codings [local, orderable, others as sent] and text, code, name, codes wrongly labelled LOINC)."""
    code, name = plain(element, 1), plain(element, 2)
    foreign = systems.of_another_facility(plain(element, 3), x.facility.id)
    found = x.profile.orders.find("" if foreign else code, "" if foreign else name, day)
    bad: list[str] = []
    sent = codings(element, x, "orders", bad)
    local_system = systems.local_codes(x.facility.id, "orders")
    out: list[dict[str, Any]] = []
    if code:
        mine = next((c for c in sent if c["code"] == code), None)
        own = systems.local_codes(x.facility.id, "")
        keep = mine is not None and not mine["system"].startswith(own) and mine["system"] != systems.LOINC
        local = {"system": mine["system"] if mine is not None and keep else local_system, "code": code}
        out.append({**local, "display": found.name or name} if name else local)
    if found.mapping is not None:
        out.append({"system": systems.ORDERABLES, "code": found.mapping.orderable, "display": found.mapping.display})
    known = {(c["system"], c["code"]) for c in out}
    out += [
        c for c in sent if (c["system"], c["code"]) not in known and (c["code"] != code or c["system"] == systems.LOINC)
    ]
    if sent and sent[0]["system"] == systems.LOINC and sent[0]["code"] == code:
        # A valid LOINC code sent first stays first (guide: CWE[CodeableConcept]).
        out.sort(key=lambda coding: coding["system"] != systems.LOINC)
    body: dict[str, Any] = {"coding": out} if out else {}
    text = plain(element, 9) or name or plain(element, 5) or code or plain(element, 4)
    if text:
        body["text"] = text
    return body, code or name or plain(element, 4), found.name or name, bad


@call("order_code")
def order_code(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBR-4 -> code, with the orderable the facility's table gives it."""
    element = record.get(4)[0]
    day = x.order.day
    body, code, name, bad = x.memo.get(("obr4", element, day), lambda: _order_concept(element, day, x))
    for wrong in bad:
        not_loinc(wrong, x)
    if not body:
        return False
    out["code"] = body
    if not any(c["system"] == systems.ORDERABLES for c in body.get("coding", ())):
        words = "The order code has no row in the facility's table; it is stored with the local code alone."
        x.issue_once("unmapped-order", "information", words, code)
        x.unmapped("order", code, name)
    if len(element) > 9:
        x.leftover(element, tuple(range(14, len(element) + 1)), 0)
    return True


def code_key(record: Record | None) -> str:
    """The code of OBR-4 that keys orders and reports: its code, else its alternate code, else its text."""
    if record is None or not record.get(4):
        return ""
    element = record.get(4)[0]
    return plain(element, 1) or plain(element, 4) or plain(element, 2)


# --- status and times of an order ------------------------------------------------------------------------------------------


@call("order_control")
def order_control(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """ORC-1 -> the business event, and the status where ORC-5 does not give one."""
    code = plain(record.get(1)[0])
    if not code:
        return False
    coding = {"system": systems.V2 + "0119", "code": code}
    event = {"url": _EVENT, "extension": [{"url": "value", "valueCodeableConcept": {"coding": [coding]}}]}
    out.setdefault("extension", []).append(event)
    row = table("OrderControl").get(code)
    if row is not None:
        out["status"] = row.code
    elif x.family == "order" and code not in _NO_STATUS:
        words = "The order control code is not in table 0119; the status of the order is unknown."
        x.issue_once("code-not-in-table", "warning", words, code)
    return True


@call("order_event_time")
def order_event_time(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """ORC-9 -> date of the business event."""
    told = any(i.key == "bad-date" and i.where == x.at() for i in x.conversion.issues)
    moment = x.quiet_time(record.first(9)) if told else x.time(record.first(9), x.severity("order"))
    if moment is None:
        return False
    for extension in out.get("extension", ()):
        if extension["url"] == _EVENT:
            extension["extension"].append({"url": "date", "valueDateTime": moment.fhir})
            return True
    out.setdefault("extension", []).append(
        {"url": _EVENT, "extension": [{"url": "date", "valueDateTime": moment.fhir}]}
    )
    return True


@call("order_status")
def order_status(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """ORC-5 -> status; it outweighs ORC-1, except that a cancelled order stays cancelled."""
    code = record.first(5).strip()
    row = table("OrderStatus").get(code)
    if row is None:
        x.issue_once("code-not-in-table", "warning", "The order status is not in table 0038.", code)
        return False
    if out.get("status") != "revoked" or row.code in ("revoked", "entered-in-error"):
        out["status"] = row.code
    return True


@call("same_callback")
def same_callback(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """ORC-14 beside OBR-17: read when OBR-17 says the same (guide: IF OBR-17 NOT VALUED); another number is listed as unread."""
    request = x.peers.get("OBR")
    return request is not None and record.get(14) == request.get(17)


@call("order_intent")
def order_intent(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBR-11: G is a reflex order, A an add-on (still an order); what else it says (O: specimen drawn elsewhere) has no element."""
    code = record.first(11)
    if code == "G":
        out["intent"] = "reflex-order"
    return code in ("A", "G")


# --- people ----------------------------------------------------------------------------------------------------------------


@call("requester")
def requester(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """ORC-12 (with ORC-21 the organisation) -> requester."""
    person = practitioner(record.get(12)[0], x)
    if person is None:
        return False
    facilities = record.get(21)
    employer = xon_organization(facilities[0], x) if facilities else None
    out["requester"] = role(person, employer, [], x) if employer else person
    return True


@call("requester_organization")
def requester_organization(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """ORC-21 alone -> requester."""
    employer = xon_organization(record.get(21)[0], x)
    if employer:
        out["requester"] = employer
    return bool(employer)


def _ordering_facility(record: Record, x: Context) -> dict[str, Any]:
    elements = record.get(21)
    return (xon_organization(elements[0], x) if elements else None) or {}


@call("organization_address")
def organization_address(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """ORC-22 -> address of the ordering organisation."""
    address = xad_address(record.get(22)[0], x)
    return address is not None and x.enrich(_ordering_facility(record, x), "address", [address])


@call("organization_telecom")
def organization_telecom(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """ORC-23 -> telecom of the ordering organisation."""
    contact = xtn_contact_point(record.get(23)[0], x)
    return contact is not None and x.enrich(_ordering_facility(record, x), "telecom", [contact])


@call("practitioner_address")
def practitioner_address(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """ORC-24 -> address of the ordering provider."""
    address = xad_address(record.get(24)[0], x)
    elements = record.get(12)
    who = (practitioner(elements[0], x) if elements else None) or {}
    return address is not None and x.enrich(who, "address", [address])


@ruled("CWE[Device]", "1-3")
def cwe_device(element: Element, x: Context, rule: Rule) -> dict[str, Any] | None:
    """ORC-18 -> reference to a device by identifier."""
    if not plain(element, 1) and not plain(element, 2):
        return None
    out: dict[str, Any] = {"type": "Device", "display": plain(element, 2) or plain(element, 1)}
    if plain(element, 1):
        out["identifier"] = {"system": named_system(plain(element, 3), "", "", x, "device"), "value": plain(element, 1)}
    return out


@call("parent_order")
def parent_order(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBR-29, else ORC-8 -> basedOn by identifier (guide: IF OBR-50 NOT VALUED)."""
    if record.get(50):
        return False
    element = record.get(x.field)[0]
    for component, kind, code in ((1, "placer", "PLAC"), (2, "filler", "FILL")):
        found = eip_part(element, component, x, kind)
        if found:
            reference = {"type": "ServiceRequest", "identifier": {"type": identifier_type(code), **found}}
            out.setdefault("basedOn", []).append(reference)
    return "basedOn" in out


@call("study_instance")
def study_instance(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """IPC-3 -> identifier of the study, as DICOM UIDs are written in FHIR (http://hl7.org/fhir/R4/imagingstudy.html#notes)."""
    uid = plain(record.get(3)[0], 1)
    if not re.fullmatch(r"[0-2](?:\.(?:0|[1-9]\d*))+", uid):
        return False
    out.setdefault("identifier", []).append({"system": systems.STUDY_UID, "value": f"urn:oid:{uid}"})
    return True


@call("parent_result")
def parent_result(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBR-26 of an order (reflex test, susceptibility) -> the result that made it necessary, as supporting information: its code,
    and in words its name and value (HL7 v2.5.1 section 4.5.3.26). In results the organism is linked (mappings.microbiology)."""
    if x.family != "order":
        return False
    element = record.get(26)[0]
    code, name, system = (bare(element, 1, n) for n in (1, 2, 3))
    text = " ".join(v for v in (name or code, plain(element, 3)) if v)
    if not text:
        return False
    body: dict[str, Any] = {"text": text}
    if code:
        found = system_uri(system, x, "tests")
        valid = found != systems.LOINC or loinc_valid(code)
        coding = {"system": found if valid else x.local_system("tests"), "code": code}
        body = {"coding": [{**coding, "display": name} if name else coding], **body}
    concept = {"url": "concept", "valueCodeableConcept": body}
    out.setdefault("extension", []).append({"url": _SUPPORTING, "extension": [concept]})
    if plain(element, 2):
        x.leftover(element, (2,), 0)
    return True


# --- report ----------------------------------------------------------------------------------------------------------------


@call("report_status")
def report_status(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBR-25 -> DiagnosticReport.status by the profile, then table 0123; unknown is ``unknown``."""
    code = record.first(25).strip()
    own = x.facility.report_status.get(code)
    row = None if own is not None else table("ReportStatus").get(code)
    if own is not None:
        out["status"] = own
    elif row is not None:
        out["status"] = row.code
    else:
        x.issue_once(
            "unknown-status", "warning", "The report status is not in table 0123; the status is unknown.", code
        )
    return True


_NUMBERS = {2: rule_for("OBR-2", kind="placer"), 3: rule_for("OBR-3", kind="filler")}


def order_number(order_control: Record | None, request: Record | None, field: int, x: Context) -> tuple[str, str]:
    """Placer (field 2) or filler (field 3) order number as (system, value): OBR's, else ORC's; both empty when there is none."""
    for record in (request, order_control):
        elements = record.get(field) if record is not None else ()
        found = ei_identifier(elements[0], x, _NUMBERS[field]) if elements else None
        if found:
            return found["system"], found["value"]
    return "", ""


def request_id(placer: tuple[str, str], filler: tuple[str, str], code: str, x: Context) -> str:
    """Logical id of the ServiceRequest: placer number (else filler number) and OBR-4; empty when there is neither."""
    number_ = placer if placer[1] else filler
    if not number_[1]:
        return ""
    daily = (x.order.day,) if x.facility.order_numbers == "daily" and not placer[1] else ()
    return ids.logical_id(x.shard, x.facility.id, "ServiceRequest", x.patient, *number_, code, *daily)
