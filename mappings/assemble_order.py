"""An order group -> ServiceRequest, Specimen (guide: ORM_O01, OML_O21, and the order groups of ORU_R01 and MDM_T02)."""

from __future__ import annotations

from typing import Any

from conformance import systems
from mappings import ids
from mappings.annotations import add_notes, participation
from mappings.assemble_patient import map_condition
from mappings.context import Context
from mappings.datatypes import bare, paired, plain
from mappings.grouping import Described, Order
from mappings.model import Recency, Tier
from mappings.order_state import OrderState
from mappings.orders import code_key, order_number, request_id
from mappings.source import Record
from mappings.statements import REQUEST_RANK, Plan

_SPECIMEN_FIELDS = (9, 10, 14, 15, 39)
"""OBR fields that say something about a specimen; OBR-7/8 alone do not make one."""


def peers(order: Order) -> dict[str, Record]:
    """Records of an order group by segment id, for the conditions of rules."""
    return {name: record for name, record in (("ORC", order.orc), ("OBR", order.obr)) if record is not None}


def map_request(order: Order, x: Context, plan: Plan, ordinal: int) -> dict[str, str] | None:
    """ORC and OBR -> ServiceRequest; gives the reference, None when the family makes none or nothing names the order."""
    maps = plan.maps("order", "ServiceRequest")
    if not maps:
        return None
    placer, filler = order_number(order.orc, order.obr, 2, x), order_number(order.orc, order.obr, 3, x)
    code = code_key(order.obr)
    logical = request_id(placer, filler, code, x)
    stating = plan.tier("ServiceRequest") is Tier.FINAL
    if not logical:
        if not stating and not _names_orderer(order):
            return None
        where = (order.obr or order.orc or _nobody()).where
        if stating:
            words = "The order has neither placer nor filler number; it is kept under its code and time."
            x.issue("no-order-key", "warning", words, where=where)
        asked = (order.obr.first(6) or order.obr.first(7)) if order.obr is not None else ""
        asked = asked or (order.orc.first(9) if order.orc is not None else "")
        logical = ids.logical_id(
            x.shard, x.facility.id, "ServiceRequest", x.patient, "", code, asked, *([str(ordinal)] if not asked else [])
        )
    out: dict[str, Any] = {
        "resourceType": "ServiceRequest",
        "id": logical,
        "meta": x.clinical_meta(),
        "status": "unknown",
        "intent": "order",
    }
    out["subject"] = x.subject
    x.peers = peers(order)
    for compiled in maps:
        record = order.orc if compiled.segment == "ORC" else order.obr
        if record is not None:
            compiled.apply(record, x, out)
    if order.obr is None and stating:
        words = "The order has no detail segment (OBR); it is stored without a code."
        x.issue("order-without-detail", "information", words, where=order.orc.where if order.orc is not None else "")
    for timing in order.timings:
        for compiled in plan.maps("order", "Timing"):
            compiled.apply(timing, x, out)
    for procedure in order.imaging:
        for compiled in plan.maps("order", "Imaging"):
            compiled.apply(procedure, x, out)
    _restate(x.stated(logical), out)
    if "orderDetail" in out and "code" not in out:
        # Invariant prr-1: details need a code.
        out["code"] = {"coding": [{"system": systems.DATA_ABSENT, "code": "unknown"}]}
    if "occurrenceTiming" in out:
        out.pop("occurrenceDateTime", None)
        x.check_period(out["occurrenceTiming"].get("repeat", {}), "boundsPeriod")
    if x.encounter is not None:
        out["encounter"] = x.encounter
    for diagnosis in order.diagnoses:
        reference = map_condition(diagnosis, x.encounter, plan.maps("order", "Condition"), x, plan)
        if reference is not None and reference not in out.setdefault("reasonReference", []):
            out["reasonReference"].append(reference)
    for record in order.participations:
        who = participation(record, x) if record.first(4) == "OP" else None
        if who is not None and who.reference is not None:
            out.setdefault("requester", who.reference)
    if stating:
        add_notes(order.notes, x, out, "")
    x.add(out, Recency(plan.tier("ServiceRequest"), "", x.sent_at, REQUEST_RANK.get(out["status"], 1)))
    return {"reference": f"ServiceRequest/{logical}"}


def _names_orderer(order: Order) -> bool:
    """Whether a result says who ordered it (ORC-12, OBR-16): a bedside test (ORU^R30) has no numbers before that."""
    return bool((order.orc is not None and order.orc.get(12)) or (order.obr is not None and order.obr.get(16)))


def _restate(earlier: dict[str, Any] | None, out: dict[str, Any]) -> None:
    """Two OBR of one placer order and code (susceptibilities of two organisms): the numbers and parents of both stay."""
    for key in ("identifier", "basedOn") if earlier is not None else ():
        held = earlier.get(key, ()) if earlier is not None else ()
        if held or key in out:
            out[key] = [*held, *(value for value in out.get(key, ()) if value not in held)]


def _nobody() -> Record:
    raise ValueError("an order group has an ORC or an OBR")


# --- specimens -------------------------------------------------------------------------------------------------------------


def map_specimens(
    order: Order, scope: str, x: Context, plan: Plan, state: OrderState, parent: str
) -> list[dict[str, str]]:
    """SPM -> Specimens of the order, else OBR's own specimen fields -> one; gives the references.

    scope  what keys a specimen without a number of its own: the report or order
    """
    out: list[dict[str, str]] = []
    maps = plan.maps("order", "Specimen")
    for index, specimen in enumerate(order.specimens if maps else ()):
        reference, values = _specimen(specimen, f"{scope}#{index}", order, x, plan, parent)
        state.specimens.append((values, reference))
        if reference not in out:
            out.append(reference)
    obr = order.obr
    if (
        not order.specimens
        and obr is not None
        and plan.maps("order", "SpecimenOfOrder")
        and any(obr.get(n) for n in _SPECIMEN_FIELDS)
    ):
        resource = _blank(ids.logical_id(x.shard, x.facility.id, "Specimen", x.patient, scope, "OBR"), x)
        for compiled in plan.maps("order", "SpecimenOfOrder"):
            compiled.apply(obr, x, resource)
        x.check_period(resource.get("collection", {}), "collectedPeriod")
        x.add(resource, _specimen_recency(x, plan), parent=parent)
        reference = {"reference": f"Specimen/{resource['id']}"}
        state.specimens.append(((), reference))
        out.append(reference)
    return out


def _blank(logical: str, x: Context) -> dict[str, Any]:
    return {"resourceType": "Specimen", "id": logical, "meta": x.meta(), "subject": x.subject}


def _specimen_recency(x: Context, plan: Plan) -> Recency:
    tier = Tier.FINAL if plan.map.family == "result" else plan.tier("Specimen")
    return Recency(tier, "", x.sent_at)


def specimen_key(record: Record) -> tuple[str, ...]:
    """Numbers of a specimen, best first: SPM-2 filler, placer, SPM-30, SPM-31, each with its name space."""
    for element in map(paired, record.get(2)):
        for component in (2, 1):
            if bare(element, component):
                return (bare(element, component, 2) or bare(element, component, 3), bare(element, component))
    for field in (30, 31):
        for element in record.get(field):
            if bare(element, 1):
                return (bare(element, 4), bare(element, 1))
    return ()


def _specimen(
    specimen: Described, scope: str, order: Order, x: Context, plan: Plan, parent: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    record = specimen.record
    key = specimen_key(record) or ("", scope)
    if x.facility.order_numbers == "daily":
        key = (*key, x.order.day)
    logical = ids.logical_id(x.shard, x.facility.id, "Specimen", x.patient, *key)
    out = _blank(logical, x)
    for compiled in plan.maps("order", "Specimen"):
        compiled.apply(record, x, out)
    x.check_period(out.get("collection", {}), "collectedPeriod")
    for container in specimen.containers:
        for compiled in plan.maps("order", "Container"):
            compiled.apply(container, x, out)
    obr = order.obr
    if obr is not None and obr.get(14) and "receivedTime" not in out:
        x.record, x.field = obr, 14
        received = x.time(obr.first(14))
        if received:
            out["receivedTime"] = received.fhir
            x.fields_read(obr).add(14)
    elif obr is not None and obr.get(14):
        x.fields_read(obr).add(14)
    if obr is not None and obr.get(15) and "type" in out and plain(obr.get(15)[0], 1):
        # SPM replaces OBR-15 (2.5 and later); one that repeats it adds nothing.
        codes = {c.get("code") for c in out["type"].get("coding", ())} | {out["type"].get("text")}
        if plain(obr.get(15)[0], 1) in codes:
            x.fields_read(obr).add(15)
    for prt in [*specimen.participations, *order.participations]:
        who = participation(prt, x) if prt.first(4) == "SC" else None
        if who is not None and who.reference is not None:
            out.setdefault("collection", {}).setdefault("collector", who.reference)
    add_notes(specimen.notes, x, out, "")
    values = tuple(
        i["value"]
        for i in [*out.get("identifier", ()), *([out["accessionIdentifier"]] if "accessionIdentifier" in out else ())]
    )
    if x.stated(logical) is None or not parent:
        x.add(out, _specimen_recency(x, plan), parent=parent)
    reference: dict[str, str] = {"reference": f"Specimen/{logical}"}
    shown = out.get("type", {}).get("text")
    return ({**reference, "display": shown} if shown else reference), values
