"""MSH, SFT, NTE, TXA: the rows that need more than one field
(guide: MSH[Provenance-Source], SFT[Device], NTE[...], TXA[DocumentReference])."""

from __future__ import annotations

from typing import Any

from conformance import systems
from mappings.code_table import table
from mappings.context import Context
from mappings.datatypes import ei_identifier, plain
from mappings.grammar import rule_for
from mappings.registry import call
from mappings.source import NULL, Record, text
from mappings.trigger import trigger

NOT_CARE = frozenset({"T", "D"})
"""Table 0103: training, debugging."""


@call("processing_id")
def processing_id(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """MSH-11 P is the normal case; anything else (training, debugging) becomes a tag on what the message says (guide: PT[Meta]).

    What is sent for training or debugging is no result of care: its orders, reports and results carry the tag as well, so that nobody
    recognizes them, unless the facility's profile says that the sender writes this everywhere.
    """
    code = record.first(11).strip()
    if code in NOT_CARE and x.facility.processing_id == "counts":
        x.tag = {"system": systems.V2 + "0103", "code": code}
        words = "MSH-11 says training (T) or debugging (D): what it says is kept and never recognized; processing_id: ignored if the feed always says so."  # noqa: E501 - one sentence
        x.issue("not-production", "information", words, code, f"{record.where}-11")
    if code not in ("", NULL, "P"):
        out.setdefault("meta", {}).setdefault("tag", []).append({"system": systems.V2 + "0103", "code": code})
    mode = record.first(11, 2).strip()
    if mode not in ("", NULL):
        out.setdefault("meta", {}).setdefault("tag", []).append({"system": systems.V2 + "0207", "code": mode})
    return bool(code or mode)


@call("software")
def software(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """SFT -> entity of the sending software, named by its identifier and display."""
    named = [plain(record.get(n)[0], 1) if record.get(n) else "" for n in (1, 3, 2)]
    shown = " ".join(v for v in named if v)
    if not shown:
        return False
    what: dict[str, Any] = {"type": "Device", "display": shown}
    if record.first(4):
        what["identifier"] = {"system": systems.facility_system(x.facility.id, "software"), "value": record.first(4)}
    entity = {"role": "derivation", "what": what}
    if entity not in out.setdefault("entity", []):
        out["entity"].append(entity)
    return True


OWN_CODES = frozenset({"RPT", "CDA"})
"""Message codes of other formats than HL7 v2 (hl7v2/messages/report.yaml, document.yaml); MSH-9.2 names the kind of document."""


def activity(header: Record) -> dict[str, Any]:
    """MSH-9 -> Provenance.activity (guide: MSH-9, "message - ADT^A01")."""
    code, event = trigger(header)
    if code in OWN_CODES:
        return {"text": f"document - {event}"}
    shown = "^".join(v for v in (code, event, header.first(9, 3)) if v)
    out: dict[str, Any] = {"text": f"message - {shown}"}
    if event:
        out["coding"] = [{"system": systems.V2 + "0003", "code": event}]
    return out


@call("note_text")
def note_text(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """NTE-3 (repeats) -> text, one line a repetition; unescaped delimiters of a careless sender come back."""
    lines = ["^".join(text(c) for c in element).rstrip("^") for element in record.get(3)]
    words = "\n".join(line for line in lines if line and line != '""').strip()
    if words:
        out["text"] = words
    return bool(words)


_CONTENT_TYPES = {
    "AP": "application/octet-stream", "AU": "audio/basic", "FT": "text/plain", "IM": "image/*", "MP": "multipart/mixed",
    "SD": "application/octet-stream", "TEXT": "text/plain", "TX": "text/plain", "PDF": "application/pdf", "HTML": "text/html",
    "XML": "application/xml", "RTF": "text/rtf", "JPEG": "image/jpeg", "PNG": "image/png",
}  # fmt: skip
"""Table 0191 type of referenced data, and the subtypes of table 0291 people put there."""


@call("presentation")
def presentation(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """TXA-3 -> content type, for documents that do not say it themselves."""
    found = _CONTENT_TYPES.get(record.first(3).upper())
    if found and "*" not in found:
        out["_contentType"] = found
    return bool(found)


@call("document_date")
def document_date(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """TXA-6 -> date when it has a time of day; a date alone has no element in R4 (guide: TXA-6)."""
    moment = x.time(record.first(6), x.severity("document"))
    if moment is None:
        return False
    if moment.has_time:
        out["date"] = moment.fhir
    else:
        url = "http://hl7.org/fhir/6.0/StructureDefinition/extension-date"
        out.setdefault("extension", []).append({"url": url, "valueDateTime": moment.fhir})
    return True


_RELATION = {
    "T05": "appends",
    "T06": "appends",
    "T09": "replaces",
    "T10": "replaces",
    "RPLC": "replaces",
    "APND": "appends",
    "XFRM": "transforms",
}
"""Trigger event, or typeCode of a CDA relatedDocument -> how it relates to its parent (HL7 v2.5.1 section 9.6)."""
_PARENT = rule_for("TXA-13", kind="document")


@call("parent_document")
def parent_document(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """TXA-13 -> relatesTo by identifier: an addendum (T05, T06) appends, a replacement (T09, T10) replaces its parent document."""
    code = _RELATION.get(x.relation or x.trigger)
    for element in record.get(13) if code else ():
        found = ei_identifier(element, x, _PARENT)
        if found:
            target = {"type": "DocumentReference", "identifier": found}
            out.setdefault("relatesTo", []).append({"code": code, "target": target})
    return "relatesTo" in out


@call("completion")
def completion(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """TXA-17 -> docStatus by table 0271."""
    row = table("DocumentStatus").get(record.first(17))
    if row:
        out["docStatus"] = row.code
    return row is not None


@call("availability")
def availability(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """TXA-19 -> status: AV current, OB superseded (obsolete), CA entered-in-error (deleted), UN as it is; the v2 code is kept."""
    code = record.first(19)
    status = {"AV": "current", "OB": "superseded", "CA": "entered-in-error", "UN": "current"}.get(code)
    if status is None:
        return False
    out["status"] = status
    if code != "AV":
        kept = {"coding": [{"system": systems.V2 + "0273", "code": code}]}
        url = "http://hl7.org/fhir/StructureDefinition/alternate-codes"
        out["_status"] = {"extension": [{"url": url, "valueCodeableConcept": kept}]}
    return True
