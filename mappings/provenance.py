"""One Provenance per message: what it stated, when, who sent it, and the bytes it stands on
(guide: MSH[Provenance-Source], EVN[Provenance], ORC[Provenance], PID[Provenance-Patient], TXA[Provenance])."""

from __future__ import annotations

from typing import Any

from mappings import ids
from mappings.context import Context
from mappings.directory import named_facility
from mappings.grouping import Groups
from mappings.header import activity
from mappings.model import Entry, Recency, Tier
from mappings.source import Record
from mappings.statements import Plan

_AUTHOR = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/provenance-participant-type", "code": "author"}]
}


def map_header(groups: Groups, x: Context, plan: Plan) -> dict[str, Any]:
    """MSH, SFT, EVN -> the Provenance so far. Reading it first also finds the time zone of the message."""
    out: dict[str, Any] = {"resourceType": "Provenance"}
    for compiled in plan.maps("header", "Provenance"):
        for record in groups.header.get(compiled.segment, ()):
            kept = out.pop("recorded", None)
            compiled.apply(record, x, out)
            if kept is not None:
                # MSH-7: when the sender recorded the statement; EVN-2 only where MSH-7 is silent.
                out["recorded"] = kept
    return out


def read_more(record: Record, group: str, out: dict[str, Any], x: Context, plan: Plan) -> None:
    """PID, ORC or TXA -> further agents, times and reasons of the same Provenance."""
    for compiled in plan.maps(group, "Provenance"):
        if compiled.segment == record.name:
            compiled.apply(record, x, out)


def finish(out: dict[str, Any], header: Record, digest: str, x: Context) -> None:
    """Add the Provenance over everything the message stated about patients. Without a time there is none: ``recorded`` is required.

    digest  ``urn:sha256:...`` of the raw bytes, empty when unknown
    """
    stated = [e for e in x.conversion.entries if e.patient is not None]
    if not stated:
        return
    if "recorded" not in out and x.sent_at:
        # Images name no time of sending; they were sent when they came.
        out["recorded"] = x.sent_at
    if "recorded" not in out:
        words = "The message has no usable time (MSH-7); no Provenance is made."
        x.issue("no-message-time", "information", words, where=f"{header.where}-7")
        return
    targets = [{"reference": f"{e.resource['resourceType']}/{e.resource['id']}"} for e in stated]
    key = (
        (x.control_id, header.first(7), x.trigger)
        if x.control_id
        else (header.first(7), x.trigger, *(t["reference"] for t in targets))
    )
    made: dict[str, Any] = {
        "resourceType": "Provenance",
        "id": ids.logical_id(x.shard, x.facility.id, "Provenance", *key),
        "meta": {**x.meta(), **out.pop("meta", {})},
        "target": targets,
    }
    out.pop("resourceType")
    out.setdefault("activity", activity(header))
    agents = [{"type": _AUTHOR, "who": named_facility(x.facility.id, "", x)}, *out.pop("agent", [])]
    made |= out
    made["agent"] = agents
    if digest:
        what = {"identifier": {"system": "urn:ietf:rfc:3986", "value": digest}}
        made["entity"] = [{"role": "source", "what": what}, *made.get("entity", [])]
    x.conversion.entries.append(Entry(made, Recency(Tier.FINAL, "", x.sent_at), x.patient))
