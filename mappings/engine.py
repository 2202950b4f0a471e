"""Source -> Conversion, following the HL7 V2-to-FHIR guide 1.0.0 (http://hl7.org/fhir/uv/v2mappings/STU1).

Pure: the same source and profile give the same conversion, to the byte. The maps are data (``hl7v2/messages``, ``hl7v2/segments``,
``hl7v2/tables``), compiled once; this module only leads through the groups of a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conformance import systems
from mappings import plausible
from mappings.assemble_order import map_request, map_specimens
from mappings.assemble_patient import map_patient, map_visit, place
from mappings.assemble_result import LABORATORY, Reports, map_observation, map_report
from mappings.context import Context, Memo
from mappings.directory import facility_organization, facility_organization_id
from mappings.documents import map_document
from mappings.grouping import Groups, Order, Patient, group
from mappings.header import OWN_CODES
from mappings.imaging_study import map_study
from mappings.model import Conversion, Entry, Merge, Recency, Tier, Unread
from mappings.order_state import OrderState
from mappings.paths import rewritten
from mappings.patient_key import patient_key
from mappings.profile import Profile
from mappings.provenance import finish, map_header, read_more
from mappings.quality_control import is_quality_control
from mappings.source import Record, Source, text
from mappings.statements import Plan, plan
from mappings.trigger import trigger

_MEMOS: dict[str, Memo] = {}
_MEMO_LIMIT = 64
_NOTHING: frozenset[int] = frozenset()


def _memo(profile: Profile) -> Memo:
    found = _MEMOS.get(profile.digest)
    if found is None:
        if len(_MEMOS) >= _MEMO_LIMIT:
            _MEMOS.clear()
        found = _MEMOS[profile.digest] = Memo()
    return found


def convert(source: Source, profile: Profile, digest: str = "", received_at: str = "") -> Conversion:
    """Map one message.

    source   the message as values at paths
    profile  everything known about its sender
    digest   ``urn:sha256:<hex>`` of the raw bytes, for Provenance; empty when unknown
    received_at  when the message was received (FHIR instant): a date of the past that is later holds the message; empty: not looked at
    Gives entries, issues, unread fields, worklist rows and merge statements. A message with an issue of severity error is held: its
    entries are what could be mapped and are not to be applied. Raises nothing for bad content.
    """
    x = Context(profile, _memo(profile))
    records, taken = rewritten(source.records, profile.facility)
    for moved, field in taken:
        x.fields_read(moved).add(field)
    header = next((r for r in records if r.name == "MSH"), None)
    if header is None:
        x.issue("no-message-type", "error", "There is no MSH segment.", where="MSH[1]")
        return x.conversion
    event = next((r for r in records if r.name == "EVN"), None)
    code, x.trigger = trigger(header, event.first(1) if event is not None else "")
    if not code:
        x.issue("no-message-type", "error", "The message type (MSH-9) is empty.", where=f"{header.where}-9")
        return x.conversion
    if is_quality_control(records, profile.facility):
        x.conversion.quality_control = True
        return x.conversion
    x.control_id = header.first(10).strip()
    x.source_uri = systems.source_uri(profile.facility.id, x.control_id)
    happened = x.quiet_time(event.first(6) or event.first(2)) if event is not None else None
    x.event_at = happened.instant if happened else ""
    received = x.quiet_time(received_at)
    # Images and rows of files carry no time of sending: they were sent when they came, so that a corrected export counts.
    sent = x.quiet_time(header.first(7)) or (received if source.format in ("dicom", "table") else None)
    x.sent_at = sent.instant if sent else ""
    x.latest = plausible.latest(received_at)
    x.received_at = received.instant if received else ""
    plausible.check_header(header, code, x)
    if code in OWN_CODES:
        x.relation = header.first(9, 3)
    found = plan(code)
    x.family = found.map.family
    groups = group(records)
    plausible.check_times(groups, x)
    provenance = map_header(groups, x, found)
    _hold(groups, x, found)
    reports: Reports = {}
    named: list[str] = []
    for patient in groups.patients:
        _map_group(patient, reports, x, found, provenance)
        named.append(x.patient)
    if x.trigger in found.map.links:
        _link(named, x)
    finish(provenance, header, digest, x)
    _directory(x)
    _list_unread(records, x)
    return x.conversion


def _hold(groups: Groups, x: Context, found: Plan) -> None:
    """The faults of the whole message that hold it; what can be mapped is still mapped, for whoever mends it."""
    if not groups.patients:
        x.issue("no-patient", "error", "The message names no patient (PID is missing).", where="PID[1]")
    if found.map.family not in ("result", "order", "document"):
        return
    keys = {patient_key(p.pid, x.facility) for p in groups.patients if p.pid is not None} - {""}
    if len(keys) > 1:
        words = "A message of orders, results or documents names two patients; send one message for each."
        second = groups.patients[1].pid
        value = second.first(3) if second is not None else None
        x.issue("two-patients", "error", words, value, f"{second.where if second is not None else 'PID[2]'}-3")
    for patient in groups.patients if found.map.family == "result" else ():
        if patient.results and not any(order.obr is not None for order in patient.orders):
            words = "There are results (OBX) without an order (OBR); it is not known what was reported."
            record = patient.results[0].record
            x.issue("obx-without-obr", "error", words, record.first(3), f"{record.where}-3")
            return


def _link(named: list[str], x: Context) -> None:
    """A24 and A37: the patients of two PIDs are, or are not, one person (HL7 v2.5.1 sections 3.3.24 and 3.3.37)."""
    patients = list(dict.fromkeys(named))
    if len(patients) != 2:
        words = "A link needs two different patients (two PID segments); there is nothing to link."
        x.issue("no-link", "error", words, where="PID[2]")
        return
    x.conversion.merges.append(Merge(patients[0], patients[1], x.trigger))


def _map_group(patient: Patient, reports: Reports, x: Context, found: Plan, provenance: dict[str, Any]) -> None:
    """One PID with its visit, orders, results and documents."""
    if not place(patient, x):
        return
    map_patient(patient, x, found)
    if patient.pid is not None:
        read_more(patient.pid, "patient", provenance, x, found)
    map_visit(patient, x, found)
    x.study = None
    for study in patient.studies:
        x.study = map_study(study, x)
    requests: list[dict[str, str]] = []
    for ordinal, order in enumerate(patient.orders):
        if order.other_detail and order.obr is None:
            continue
        if order.orc is not None:
            read_more(order.orc, "order", provenance, x, found)
        if found.maps("order", "DiagnosticReport"):
            map_report(order, reports, x, found, ordinal)
        else:
            _map_order(order, x, found, ordinal, requests)
    if patient.documents:
        requests += [{"reference": f"DiagnosticReport/{logical}"} for logical in reports]
        if x.study is not None:
            requests.append(x.study)
        for document in patient.documents:
            read_more(document.record, "document", provenance, x, found)
            if found.maps("document", "DocumentReference"):
                map_document(document, patient, x, found, requests)
    elif patient.results and (found.maps("patient", "Observation") or found.maps("order", "Observation")):
        _map_loose_results(patient, x, found)


def _map_order(order: Order, x: Context, found: Plan, ordinal: int, requests: list[dict[str, str]]) -> None:
    """An order of an order or document message: ServiceRequest, its specimens and the results that support it."""
    x.order = OrderState(category=LABORATORY, day=x.sent_at[:10], reported_at=x.sent_at)
    reference = map_request(order, x, found, ordinal)
    if reference is None:
        return
    requests.append(reference)
    logical = reference["reference"].partition("/")[2]
    request = x.stated(logical) or {}
    x.order.scope = logical
    references = map_specimens(order, logical, x, found, x.order, "")
    if references:
        request["specimen"] = references
    supporting = [r for result in order.results if (r := map_observation(result, x, found, None)) is not None]
    if supporting:
        request["supportingInfo"] = supporting


def _map_loose_results(patient: Patient, x: Context, found: Plan) -> None:
    """OBX below PID or PV1 (height, weight, blood group at admission): Observations without a report."""
    states: dict[str, OrderState] = {}
    for result in patient.results:
        visit = (x.encounter or {}).get("reference", "")
        scope = f"{visit}|{result.record.first(14)}"
        x.order = states.setdefault(scope, OrderState(scope=scope, day=x.sent_at[:10], reported_at=x.sent_at))
        map_observation(result, x, found, None)


def _directory(x: Context) -> None:
    """Put the directory resources before what refers to them; the sender's own Organization among them."""
    own = facility_organization_id(x.facility.id)
    if any(e.patient is not None for e in x.conversion.entries):
        x.directory[own] = Entry(
            {**facility_organization(x.facility), "meta": x.meta()}, Recency(Tier.PRELIMINARY), None
        )
    x.conversion.entries[:0] = x.directory.values()


def _list_unread(records: Sequence[Record], x: Context) -> None:
    """Every filled field no rule read, with its place."""
    unread: list[Unread] = []
    for record in records:
        read = x.reading.get(id(record), _NOTHING)
        if read is None:
            continue
        for field in record.filled():
            if field not in read:
                value = _field_text(record, field)
                if value:
                    unread.append(Unread(f"{record.where}-{field}", value))
    x.conversion.unread[:0] = unread


def _field_text(record: Record, field: int) -> str:
    return "~".join("^".join(text(c) for c in element).rstrip("^") for element in record.get(field))
