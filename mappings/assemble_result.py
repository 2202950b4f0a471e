"""An order group with results -> DiagnosticReport and Observations (guide: ORU_R01.ORDER_OBSERVATION)."""

from __future__ import annotations

from typing import Any

from conformance import systems
from mappings import conclusion, ids, microbiology, sub_ids
from mappings.annotations import REPORT_NOTE, add_notes, participation
from mappings.assemble_order import map_request, map_specimens, peers
from mappings.code_table import table
from mappings.context import Context
from mappings.datatypes import plain
from mappings.directory import named_facility
from mappings.documents import ATTACHMENTS, VALUE_ATTACHMENT, attachments, document_reference
from mappings.grouping import Order, Result
from mappings.model import Entry, Recency
from mappings.order_state import OrderState
from mappings.orders import code_key, order_number
from mappings.performers import default_performer
from mappings.results import NO_CODE, data_absent, finish_value, missing_status
from mappings.source import Record, text
from mappings.statements import STATUS_RANK, Plan, tier_of

LABORATORY = [{"coding": [{"system": systems.OBSERVATION_CATEGORY, "code": "laboratory", "display": "Laboratory"}]}]
_MEASURED = frozenset(
    {
        "valueQuantity", "valueCodeableConcept", "valueBoolean", "valueInteger", "valueRange", "valueRatio",
        "valueSampledData", "valueTime", "valueDateTime", "valuePeriod",
    }
)  # fmt: skip
"""Observation.value[x] but for text (http://hl7.org/fhir/R4/observation.html)."""

Reports = dict[str, tuple[OrderState, dict[str, Any]]]
"""The reports of one message by logical id; two OBR with the same number and code are one report."""


def map_report(order: Order, reports: Reports, x: Context, plan: Plan, ordinal: int) -> None:
    """ORC, OBR, SPM, OBX -> ServiceRequest, DiagnosticReport, Specimens, Observations."""
    obr = order.obr
    maps = plan.maps("order", "DiagnosticReport")
    if obr is None or not maps:
        return
    filler, placer = order_number(order.orc, obr, 3, x), order_number(order.orc, obr, 2, x)
    code = code_key(obr)
    number = filler if filler[1] else placer
    business = ""
    taken_on = _day_of(obr.first(7), x) or (_day_of(order.results[0].record.first(14), x) if order.results else "")
    if number[1]:
        daily = (taken_on,) if x.facility.order_numbers == "daily" else ()
        logical = ids.logical_id(x.shard, x.facility.id, "DiagnosticReport", x.patient, *number, code, *daily)
        # The day belongs to the key: a number that an analyser uses again another day takes no result from anybody.
        business = "|".join(("DiagnosticReport", *number, code, taken_on)).rstrip("|")
    else:
        words = "The report has neither filler nor placer number; it is kept under its code and time."
        x.issue("no-report-key", "warning", words, where=f"{obr.where}-3")
        taken = obr.first(7) or (order.results[0].record.first(14) if order.results else "")
        unsure = () if taken else (str(ordinal),)
        logical = ids.logical_id(x.shard, x.facility.id, "DiagnosticReport", x.patient, "", code, taken, *unsure)
    known = reports.get(logical)
    out: dict[str, Any]
    if known is None:
        state = OrderState(report=logical, scope=logical)
        out = {"resourceType": "DiagnosticReport", "id": logical, "meta": x.clinical_meta(), "status": "unknown"}
    else:
        state, out = known
    x.order = state
    _set_day(order, state, x)
    x.peers = peers(order)
    # A further OBR of the report states its own time; effective[x] has one form only.
    earlier: dict[str, Any] = {key: out.pop(key) for key in ("effectiveDateTime", "effectivePeriod") if key in out}
    for compiled in maps:
        record = order.orc if compiled.segment == "ORC" else obr
        if record is not None:
            compiled.apply(record, x, out)
    if "effectiveDateTime" not in out and "effectivePeriod" not in out:
        out.update(earlier)
    if not obr.get(25):
        _missing_report_status(obr.where, x, out)
    if "code" not in out:
        x.issue("no-order-code", "warning", "The order has no code (OBR-4).", where=f"{obr.where}-4")
        out["code"] = {**data_absent("unknown"), "text": "unknown"}
    out["subject"] = x.subject
    if x.encounter is not None:
        out["encounter"] = x.encounter
    _read_times(order, out, state, x)
    if out["status"] == "cancelled" and _all_wrong(order, x):
        out["status"] = "entered-in-error"
    state.withdrawn = out["status"] == "entered-in-error"
    state.category = _category(obr.first(24))
    state.based_on = map_request(order, x, plan, ordinal)
    x.order = state
    if state.based_on is not None:
        _append(out, "basedOn", state.based_on)
    if order.specimens:
        # A further OBR of the same report with a specimen of its own: its results are of that one.
        state.specimens.clear()
    for reference in map_specimens(order, logical, x, plan, state, logical):
        _append(out, "specimen", reference)
    if "effectiveDateTime" not in out and "effectivePeriod" not in out:
        state.effective = _taken(x)
        out |= state.effective
    if x.study is not None:
        out["imagingStudy"] = [x.study]
    _participants(order, x, out)
    add_notes(order.notes, x, out, REPORT_NOTE)
    kinds: set[str] = set()
    results = out.setdefault("result", [])
    made: list[tuple[Record, dict[str, Any]]] = []
    entries = x.conversion.entries
    for result in order.results:
        observation = map_observation(result, x, plan, out)
        if observation is not None:
            results.append(observation)
            kinds.add(result.record.first(2))
            made.append((result.record, entries[-1].resource))
    if x.facility.sub_ids == "components" and len(made) > 1:
        made = sub_ids.together(made, x)
        out["result"] = results = [{"reference": f"Observation/{observation['id']}"} for _, observation in made]
    microbiology.link(order, made, x)
    if not results:
        del out["result"]
    # Numbers and findings (positive, 1:16) are results and no words of a doctor, also where they are sent as text (a urine strip).
    measured = {id(record) for record, o in made if not _MEASURED.isdisjoint(o)}
    said = conclusion.of([r.record for r in order.results], kinds <= {"TX", "FT"} and not measured, measured)
    if said:
        out["conclusion"] = said
    for who in state.performers:
        _append(out, "performer", who)
    if known is None:
        reports[logical] = state, out
        status = out["status"]
        x.add(
            out, Recency(tier_of(status), state.reported_at, x.sent_at, STATUS_RANK.get(status, 1)), business=business
        )
    else:
        _restate(x.conversion.entries, out, state, x)


def _restate(entries: list[Entry], out: dict[str, Any], state: OrderState, x: Context) -> None:
    """A second OBR of the same report: its status and time speak for the whole report."""
    for index, entry in enumerate(entries):
        if entry.resource is out:
            recency = Recency(tier_of(out["status"]), state.reported_at, x.sent_at, STATUS_RANK.get(out["status"], 1))
            entries[index] = Entry(out, max(entry.recency, recency), entry.patient, entry.business, entry.parent)


def _all_wrong(order: Order, x: Context) -> bool:
    """Table 0123 has no code for a report entered in error: X (no results available) over results that are all W or D says it."""
    own, shipped = x.facility.observation_status, table("ObservationStatus")
    codes = {result.record.first(11).strip() for result in order.results}
    meanings = {own.get(code) or (row.code if (row := shipped.get(code)) else "") for code in codes}
    return meanings == {"entered-in-error"}


def _append(out: dict[str, Any], key: str, value: Any) -> None:
    held = out.setdefault(key, [])
    if value not in held:
        held.append(value)


def _set_day(order: Order, state: OrderState, x: Context) -> None:
    """The day local codes are looked up for: OBR-7, else the first OBX-14, else OBR-22, else the message."""
    obr = order.obr
    candidates = [obr.first(7) if obr is not None else "", *(r.record.first(14) for r in order.results[:1])]
    candidates.append(obr.first(22) if obr is not None else "")
    for written in candidates:
        if day := _day_of(written, x):
            state.day = day
            return
    state.day = x.sent_at[:10]


def _day_of(written: str, x: Context) -> str:
    """Calendar date of a time as written, empty when it has none."""
    digits = x.hl7_time(written)[:8] if written else ""
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}" if len(digits) == 8 and digits.isdigit() else ""


def _missing_report_status(where: str, x: Context, out: dict[str, Any]) -> None:
    own = x.facility.report_status.get("")
    if own is not None:
        out["status"] = own
        return
    words = "The report has no status (OBR-25); it is stored as unknown."
    x.issue_once("no-report-status", "warning", words, where=f"{where}-25")


def _read_times(order: Order, out: dict[str, Any], state: OrderState, x: Context) -> None:
    """Times the results inherit, and when the report was stated."""
    x.check_period(out, "effectivePeriod")
    state.effective = {k: out[k] for k in ("effectiveDateTime", "effectivePeriod") if k in out}
    state.issued = out.get("issued", "")
    obr = order.obr
    reported = ""
    if obr is not None and obr.get(22):
        x.record, x.field = obr, 22
        from_obr = x.quiet_time(obr.first(22))
        reported = from_obr.instant if from_obr else ""
    state.reported_at = reported or x.sent_at


def _taken(x: Context) -> dict[str, Any]:
    """When no time of the order says when it was measured: when the specimen was taken."""
    for _, reference in x.order.specimens:
        collection = (x.stated(reference["reference"].partition("/")[2]) or {}).get("collection", {})
        if "collectedDateTime" in collection:
            return {"effectiveDateTime": collection["collectedDateTime"]}
        if "collectedPeriod" in collection:
            return {"effectivePeriod": collection["collectedPeriod"]}
    return {}


def _category(section: str) -> list[dict[str, Any]]:
    row = table("ObservationCategory").get(section) if section else None
    return [{"coding": [row.coding()]}] if row else LABORATORY


def _participants(order: Order, x: Context, out: dict[str, Any]) -> None:
    """PRT below OBR: interpreters, technicians, and the organisation that performs (guide: PRT rows of ORU_R01)."""
    for record in order.participations:
        role = record.first(4)
        who = participation(record, x)
        if who is None or who.reference is None:
            continue
        if role in ("PRI", "PI", "ARI"):
            _append(out, "resultsInterpreter", who.reference)
        elif role in ("TN", "TR", "PO", "POMD"):
            _append(out, "performer", who.reference)
            if role == "PO" and who.reference not in x.order.performers:
                name = who.reference.get("display", "")
                known = x.facility.performers.get(name)
                x.order.performers.append(named_facility(known, name, x) if known else who.reference)


# --- observations ----------------------------------------------------------------------------------------------------------


def map_observation(result: Result, x: Context, plan: Plan, report: dict[str, Any] | None) -> dict[str, str] | None:
    """OBX -> Observation, added to the conversion; gives the reference to it, None when it has neither code nor name."""
    record = result.record
    maps = plan.maps("order", "Observation") or plan.maps("patient", "Observation")
    if not maps:
        return None
    fields = record.fields()
    size = len(fields)
    if size < 4 or not fields[3]:
        x.issue("no-result-code", "warning", NO_CODE, where=f"{record.where}-3")
        return None
    state = x.order
    out: dict[str, Any] = {
        "resourceType": "Observation",
        "id": "",
        "meta": x.clinical_meta(),
        "status": "unknown",
    }
    maps[0].apply_kept(record, x, out, x.profile.tests.period(state.day))
    if size < 12 or not fields[11]:
        missing_status(record, x, out)
    if state.withdrawn:
        out["status"] = "entered-in-error"
    if "category" not in out and state.category:
        out["category"] = state.category
    out["subject"] = x.subject
    if x.encounter is not None:
        out["encounter"] = x.encounter
    if state.effective and "effectiveDateTime" not in out:
        out.update(state.effective)
    if state.issued:
        out["issued"] = state.issued
    elif size > 19 and fields[19]:
        analysed = x.quiet_time(record.first(19))
        if analysed is not None and analysed.has_time:
            out["issued"] = analysed.fhir
    if state.based_on is not None:
        out["basedOn"] = [state.based_on]
    if state.specimens and "specimen" not in out:
        _specimen(result, state, out)
    noted = state.noted
    key = (
        noted.code if noted is not None else "",
        "&".join(map(text, fields[4][0])) if fields[4:5] and fields[4] else "",
    )
    place = (x.patient, state.scope, *key)
    ordinal = x.seen.get(place, 0)
    x.seen[place] = ordinal + 1
    parts = (state.scope, *key, str(ordinal)) if ordinal else (state.scope, *key)
    logical = out["id"] = ids.logical_id(x.shard, x.facility.id, "Observation", x.patient, *parts)
    _perform(result, out, x)
    if record.first(2) in ATTACHMENTS:
        _attach(result, "|".join(parts), out, report, x)
    finish_value(record, x, out)
    if result.notes:
        add_notes(result.notes, x, out, "")
    status = out["status"]
    recency = state.recencies.get(status)
    if recency is None:
        recency = state.recencies[status] = Recency(
            tier_of(status), state.reported_at, x.sent_at, STATUS_RANK.get(status, 1)
        )
    x.conversion.entries.append(Entry(out, recency, x.patient, "", state.report))
    return {"reference": f"Observation/{logical}"}


def _specimen(result: Result, state: OrderState, out: dict[str, Any]) -> None:
    """The one specimen of the order; with several, the one whose SPM stands right before the result."""
    if len(state.specimens) == 1:
        out["specimen"] = state.specimens[0][1]
    elif result.specimen is not None:
        numbers = [
            e
            for element in result.specimen.record.get(2)
            for c in element
            for e in (c if isinstance(c, tuple) else (c,))
        ]
        for values, reference in state.specimens:
            if values and set(values) & set(numbers):
                out["specimen"] = reference
                return


def _perform(result: Result, out: dict[str, Any], x: Context) -> None:
    """PRT of the result, then the performer of the whole order, then the profile's default."""
    state = x.order
    for record in result.participations:
        who = participation(record, x)
        if who is None:
            continue
        if who.device is not None:
            out.setdefault("device", who.device)
        if who.reference is not None:
            _append(out, "performer", who.reference)
    held = out.get("performer")
    if held and "reference" in held[0] and held[0]["reference"].startswith("Organization/"):
        organization = held[0]
    else:
        if state.performers:
            organization = state.performers[0]
        else:
            default = default_performer(x)
            if default is None:
                return
            organization = default
        out["performer"] = [organization, *held] if held else [organization]
    if organization not in state.performers:
        state.performers.append(organization)


def _attach(result: Result, scope: str, out: dict[str, Any], report: dict[str, Any] | None, x: Context) -> None:
    """ED, RP -> Binary, DocumentReference, presentedForm of the report, and the attachment on the Observation."""
    record = result.record
    title = plain(record.get(3)[0], 2) or plain(record.get(3)[0], 1)
    found = attachments(record, x, scope, title)
    if not found:
        return
    moment = out.get("issued")
    document, reference = document_reference(found, scope, x, type=out.get("code"), date=moment)
    x.add(document, Recency(tier_of(out["status"]), x.order.reported_at, x.sent_at, STATUS_RANK.get(out["status"], 1)))
    out.setdefault("extension", []).extend({"url": VALUE_ATTACHMENT, "valueAttachment": content} for content in found)
    out["derivedFrom"] = [reference]
    if report is not None:
        for content in found:
            _append(report, "presentedForm", content)
