"""Attachments and documents: OBX of type ED or RP, MDM with TXA -> Binary and DocumentReference
(guide: ED[Attachment], RP[Attachment], TXA[DocumentReference], OBX[DocumentReference])."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from conformance import systems
from mappings import ids, values
from mappings.annotations import add_notes
from mappings.context import Context
from mappings.datatypes import bare, ei_identifier, plain
from mappings.grammar import rule_for
from mappings.grouping import Document, Patient, Result
from mappings.model import Recency, Tier
from mappings.source import Element, Record, text
from mappings.statements import Plan

ATTACHMENTS = frozenset({"ED", "RP"})
VALUE_ATTACHMENT = "http://hl7.org/fhir/5.0/StructureDefinition/extension-Observation.valueAttachment"

_SUBTYPES = {
    "PDF": "application/pdf", "JPEG": "image/jpeg", "JPG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "TIFF": "image/tiff",
    "HTML": "text/html", "XML": "application/xml", "HL7-CDA-LEVEL-ONE": "application/xml", "CDA": "application/xml",
    "RTF": "application/rtf", "TEXT": "text/plain", "PLAIN": "text/plain", "DICOM": "application/dicom", "BASIC": "audio/basic",
    "OCTET-STREAM": "application/octet-stream",
}  # fmt: skip
"""Table 0291 subtype of referenced data -> media type."""
_TOP_LEVEL = frozenset({"application", "audio", "image", "model", "multipart", "text", "video"})
_MEDIA = re.compile(r"[a-z]+/[A-Za-z0-9.+-]+")
_BLANK = re.compile(r"\s+")
_SIGNATURES = (
    (b"%PDF", "application/pdf"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG", "image/png"),
    (b"<?xml", "application/xml"),
)
_DOCUMENT = rule_for("TXA-12", kind="document")


def media_type(kind: str, subtype: str, data: bytes) -> str:
    """ED.2/ED.3 -> media type; the data itself is asked when they do not say."""
    for said in (subtype, kind):
        if _MEDIA.fullmatch(said):
            return said
    if kind.lower() in _TOP_LEVEL and re.fullmatch(r"[A-Za-z0-9.+-]+", subtype):
        return f"{kind.lower()}/{subtype.lower()}"
    found = _SUBTYPES.get(subtype.upper())
    if found:
        return found
    return next(
        (media for start, media in _SIGNATURES if data.startswith(start)),
        _SUBTYPES.get(kind.upper(), "application/octet-stream"),
    )


def _decoded(element: Element, x: Context) -> bytes | None:
    """ED.5 by ED.4 (Base64, Hex, A) -> bytes; Base64 wrapped over lines is joined. None, with an issue, when it cannot be read."""
    written = text(element[4]) if len(element) > 4 else ""
    if len(element) > 5:
        # XML with unescaped component separators fell apart.
        written = "^".join(text(c) for c in element[4:])
    encoding = plain(element, 4).upper()
    compact = _BLANK.sub("", written)
    if not compact:
        return None
    try:
        if encoding == "HEX":
            return bytes.fromhex(compact)
        if encoding == "BASE64" or (not encoding and re.fullmatch(r"[A-Za-z0-9+/]{16,}={0,2}", compact)):
            return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (ValueError, binascii.Error):
        x.issue(
            "bad-attachment", "warning", f"The attachment is not {encoding or 'Base64'}; its text is kept as it is."
        )
    return written.encode()


def attachments(record: Record, x: Context, scope: str, patient_text: str = "") -> list[dict[str, Any]]:
    """OBX-5 of type ED or RP -> Attachments; encapsulated data goes to a Binary, so that a list of results stays small.

    scope         what keys the Binary: report, code and ordinal, or document
    patient_text  title of the attachment
    """
    x.record, x.field = record, 5
    out: list[dict[str, Any]] = []
    for number, element in enumerate(record.get(5)):
        if record.first(2).upper() == "RP":
            found = _pointer(element, x)
        else:
            data = _decoded(element, x)
            found = (
                None
                if data is None
                else _binary(data, media_type(plain(element, 2), plain(element, 3), data), f"{scope}#{number}", x)
            )
        if found is not None:
            if record.first(2) == "ED":
                x.leftover(element, (1,), number)
            out.append({**found, "title": patient_text} if patient_text else found)
    return out


def _pointer(element: Element, x: Context) -> dict[str, Any] | None:
    """RP -> Attachment with url and content type (guide: RP[Attachment])."""
    url = _BLANK.sub("", text(element[0])) if element else ""
    if not url or url == '""':
        return None
    out: dict[str, Any] = {}
    kind, subtype = plain(element, 3), plain(element, 4)
    if kind or subtype:
        out["contentType"] = media_type(kind, subtype, b"")
    out["url"] = url
    if bare(element, 2):
        x.leftover(element, (2,), 0)
    return out


def _binary(data: bytes, media: str, scope: str, x: Context) -> dict[str, Any]:
    logical = ids.logical_id(x.shard, x.facility.id, "Binary", x.patient, scope)
    resource = {
        "resourceType": "Binary",
        "id": logical,
        "meta": x.meta(),
        "contentType": media,
        "securityContext": x.subject,
        "data": base64.b64encode(data).decode("ascii"),
    }
    x.add(resource, Recency(Tier.FINAL, "", x.sent_at))
    return {"contentType": media, "url": f"Binary/{logical}", "size": len(data)}


def document_reference(
    contents: list[dict[str, Any]], scope: str, x: Context, **more: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """A DocumentReference over attachments, and the reference to it."""
    out: dict[str, Any] = {
        "resourceType": "DocumentReference",
        "id": ids.logical_id(x.shard, x.facility.id, "DocumentReference", x.patient, scope),
        "meta": x.meta(),
        "status": "current",
    }
    out |= {key: value for key, value in more.items() if value}
    out["subject"] = x.subject
    out["content"] = [{"attachment": content} for content in contents]
    return out, {"reference": f"DocumentReference/{out['id']}"}


# --- MDM -------------------------------------------------------------------------------------------------------------------


def map_document(document: Document, group: Patient, x: Context, plan: Plan, related: list[dict[str, str]]) -> None:
    """TXA with the OBX that follow it -> DocumentReference and Binary."""
    record = document.record
    elements = record.get(12)
    x.record, x.field = record, 12
    number = ei_identifier(elements[0], x, _DOCUMENT) if elements else None
    scope = (
        f"document|{number['system']}|{number['value']}"
        if number
        else f"document|{record.first(2)}|{record.first(4) or record.first(6)}"
    )
    if number is None:
        words = "The document has no number (TXA-12); it is kept under its type and time."
        x.issue("no-document-key", "warning", words, where=f"{record.where}-12")
    results = [*group.results, *document.results] if document is group.documents[0] else document.results
    contents = _contents(results, scope, x)
    out, _ = document_reference(contents, scope, x)
    for compiled in plan.maps("document", "DocumentReference"):
        compiled.apply(record, x, out)
    media = out.pop("_contentType", None)
    if not contents:
        # MDM^T01 announces a document without its content.
        absent = {"url": systems.ABSENT, "valueCode": "unknown"}
        out["content"] = [{"attachment": {"contentType": media} if media else {"extension": [absent]}}]
    if x.trigger in plan.map.cancels:
        out["status"] = "entered-in-error"
    context: dict[str, Any] = {}
    if x.encounter is not None:
        context["encounter"] = [x.encounter]
    service = _service_time(record, x)
    if service:
        context["period"] = {"start": service}
    if related:
        context["related"] = related
    if context:
        out["context"] = context
    add_notes(document.notes, x, out, "http://hl7.org/fhir/StructureDefinition/note")
    x.add(out, Recency(Tier.FINAL, "", x.sent_at))


def _service_time(record: Record, x: Context) -> str:
    """TXA-4 activity time -> start of the period the document is about (the guide has no row; losing it would lose the exam's time)."""
    x.record, x.field = record, 4
    moment = x.time(record.first(4), x.severity("document"))
    if moment is None:
        return ""
    x.fields_read(record).add(4)
    return moment.fhir


def _contents(results: list[Result], scope: str, x: Context) -> list[dict[str, Any]]:
    """OBX below TXA: texts become one text document, attachments one content each."""
    lines: list[str] = []
    out: list[dict[str, Any]] = []
    for index, result in enumerate(results):
        record = result.record
        read = x.fields_read(record)
        title = plain(record.get(3)[0], 2) or plain(record.get(3)[0], 1) if record.get(3) else ""
        read |= {1, 2, 3, 5}
        if record.first(2).upper() in ATTACHMENTS:
            out += attachments(record, x, f"{scope}#{index}", title)
        else:
            lines += [values.joined(element) for element in record.get(5)]
    whole = "\n".join(lines).replace('""', "").strip()
    if whole:
        out.insert(0, _binary(whole.encode(), "text/plain; charset=utf-8", f"{scope}#text", x))
    return out
