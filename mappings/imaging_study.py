"""STUDY and SERIES, records of our own that the DICOM reader makes -> ImagingStudy (http://hl7.org/fhir/R4/imagingstudy.html).

STUDY   1 UID, 2 accession number (EI), 3 placer and 4 filler order number (EI), 5 started, 6 description, 7 procedure (CWE, repeats),
        8 referrer and 9 reader (XCN), 10 reason, 11 and 12 number of series and instances the headers name, 13 ``whole``, ``listed``
        or ``part``, 14 number of instances that were rejected, 15 when no image is left: ``error`` (never of this examination),
        ``unavailable``
SERIES  1 UID, 2 number, 3 modality, 4 description, 5 started, 6 body part as sent, and the anatomic region (code, meaning, scheme),
        7 side (L, R, B), 8 performers (XCN, repeats), 9 number of instances the headers name, 10 views and 11 contrast agents (repeat),
        12 ``without``: the headers say that no contrast was given, 13 device, 14 instances (UID, SOP class UID, number; repeat)

A ``whole`` study is all its sender has: its counts are then known, and the greater of two statements wins whatever came first: C-STORE
can add images and not take them back (PS3.4 annex B; a rejection note does, IHE IOCM). A ``listed`` study is what an archive says that
it consists of (QIDO-RS, C-FIND): its last word counts, also when it has fewer images, which were moved or deleted there. One object
alone says nothing of the others: it makes the study known when nothing else did, and tells no counts.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from conformance import systems
from mappings import ids
from mappings.coded import concept
from mappings.context import Context
from mappings.csv_rows import read_rows
from mappings.datatypes import ei_identifier, identifier_type, plain
from mappings.directory import practitioner
from mappings.grammar import rule_for
from mappings.grouping import Study
from mappings.model import Recency, Tier
from mappings.source import Record

_NUMBERS: Final = (
    (2, "ACSN", rule_for("OBR-2", kind="accession")),
    (3, "PLAC", rule_for("OBR-2", kind="placer")),
    (4, "FILL", rule_for("OBR-3", kind="filler")),
)
_SIDES: Final = {"L": ("7771000", "Left"), "R": ("24028007", "Right"), "B": ("51440002", "Bilateral")}
_UID: Final = re.compile(r"[0-2](?:\.(?:0|[1-9]\d*))+")
_UNSIGNED: Final = re.compile(r"\d{1,9}")
_DIGITS: Final = 2_147_483_647
_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC)
_WITHDRAWN: Final = {"error": "entered-in-error", "unavailable": "cancelled"}
NOT_ACQUIRED: Final = frozenset({
    "ANN", "ASMT", "CTPROTOCOL", "DOC", "FID", "HC", "KO", "M3D", "PLAN", "PR", "REG", "RTDOSE", "RTINTENT", "RTPLAN", "RTRAD",
    "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SMR", "SR", "STAIN", "TEXTUREMAP", "XAPROTOCOL",
})  # fmt: skip
"""Modalities (PS3.3 C.7.3.1.1.1) of what was not acquired from the patient: ImagingStudy.modality has those of CID 29 alone."""
_WADO: Final = {"system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type", "code": "dicom-wado-rs"}


def study_id(uid: str, x: Context) -> str:
    """Logical id of the ImagingStudy of a Study Instance UID."""
    return ids.logical_id(x.shard, x.facility.id, "ImagingStudy", x.patient, uid)


def map_study(study: Study, x: Context) -> dict[str, str] | None:
    """One study; gives the reference to it, None when its UID is none."""
    record = study.record
    x.record, x.field = record, 1
    uid = record.first(1)
    x.fields_read(record).update(range(1, 16))
    if _UID.fullmatch(uid) is None or len(uid) > 64:
        words = "The Study Instance UID (0020,000D) is no UID (PS3.5 chapter 9); the study cannot be found by it."
        x.issue("bad-uid", "error", words, uid)
        return None
    logical = study_id(uid, x)
    extent = record.first(13)
    whole = extent != "part"
    out: dict[str, Any] = {
        "resourceType": "ImagingStudy",
        "id": logical,
        "meta": x.meta(),
        "identifier": [{"system": systems.STUDY_UID, "value": f"urn:oid:{uid}"}],
        "status": _WITHDRAWN.get(record.first(15), "available"),
        "modality": [],
        "subject": x.subject,
    }
    asked = _numbers(record, x, out)
    if asked:
        out["basedOn"] = asked
    _started(record, 5, x, out)
    for field, key in ((8, "referrer"), (9, "interpreter")):
        x.field = field
        who = practitioner(record.get(field)[0], x) if record.get(field) else None
        if who is not None:
            out[key] = who if key == "referrer" else [who]
    series = [_series(s, x, whole) for s in study.series]
    out["modality"] = list(
        {m["code"]: m for s in series if "code" in (m := s["modality"]) and m["code"] not in NOT_ACQUIRED}.values()
    )
    if whole:
        present = sum(len(s["instance"]) for s in series)
        out["numberOfSeries"] = max(len(series), _count(record, 11))
        out["numberOfInstances"] = max(present, _count(record, 12))
        _missing(record, out, present, len(series), x)
    x.field = 7
    procedures = [c for e in record.get(7) if (c := concept(e, x, "procedures"))]
    if procedures:
        out["procedureCode"] = procedures
    reason, description = record.first(10), record.first(6)
    if reason:
        out["reasonCode"] = [{"text": reason}]
    if description:
        out["description"] = description
    endpoint = _endpoint(x)
    if endpoint is not None:
        out["endpoint"] = [endpoint]
    out["series"] = series
    for key in ("modality", "series"):
        if not out[key]:
            del out[key]
    # Images are of one person: a study that is told again under another number of a patient is no longer the first one's.
    x.add(out, _recency(series, _count(record, 14), extent, x), business=f"ImagingStudy|{uid}")
    return {"reference": f"ImagingStudy/{logical}"}


def _recency(series: list[dict[str, Any]], rejected: int, extent: str, x: Context) -> Recency:
    """More instances (also rejected ones) are the newer statement, whatever came first; of as many, what was received later. What an
    archive lists goes before both, the later list before the earlier.

    The number stands where others have the time of their report: microseconds after the year 1.
    """
    if extent == "part":
        return Recency(Tier.MENTION, "", x.received_at)
    if extent == "listed" and x.received_at:
        return Recency(Tier.FINAL, x.received_at, x.received_at)
    present = sum(len(s["instance"]) for s in series) + rejected
    counted = (_FIRST + timedelta(microseconds=present)).isoformat(timespec="microseconds")
    return Recency(Tier.FINAL, counted, x.received_at)


def _numbers(record: Record, x: Context, out: dict[str, Any]) -> list[dict[str, Any]]:
    """Accession number -> identifier; it and the order numbers name the order, until the store knows it (fhir_server.store.images)."""
    asked: list[dict[str, Any]] = []
    for field, kind, rule in _NUMBERS:
        x.field = field
        found = ei_identifier(record.get(field)[0], x, rule) if record.get(field) else None
        if found is None:
            continue
        typed = {"type": identifier_type(kind), **found}
        if field == 2:
            out["identifier"].append(typed)
        asked.append({"type": "ServiceRequest", "identifier": typed})
    return asked


def _started(record: Record, field: int, x: Context, out: dict[str, Any]) -> None:
    x.field = field
    moment = x.time(record.first(field)) if record.get(field) else None
    if moment is None:
        return
    if x.in_future(moment):
        words = "The examination starts in the future; correct the clock of the device and send again."
        x.issue("future-date", "error", words, record.first(field))
    out["started"] = moment.fhir


def _count(record: Record, field: int) -> int:
    written = record.first(field)
    return int(written) if _UNSIGNED.fullmatch(written) else 0


def _missing(record: Record, out: dict[str, Any], present: int, series: int, x: Context) -> None:
    if out["numberOfInstances"] > present or out["numberOfSeries"] > series:
        words = "The headers name more series or instances than were received; the study is not complete."
        told = f"{present} of {out['numberOfInstances']} instances, {series} of {out['numberOfSeries']} series"
        x.issue("images-missing", "warning", words, told, where=f"{record.where}-12")


def _series(record: Record, x: Context, whole: bool) -> dict[str, Any]:
    x.record = record
    x.fields_read(record).update(range(1, 15))
    modality = record.first(3)
    out: dict[str, Any] = {"uid": record.first(1)}
    _whole_number(record.first(2), "number", out)
    unknown = {"extension": [{"url": systems.ABSENT, "valueCode": "unknown"}]}
    out["modality"] = {"system": systems.DCM, "code": modality} if modality else unknown
    if record.first(4):
        out["description"] = record.first(4)
    instances = [_instance(e) for e in record.get(14)]
    if whole:
        out["numberOfInstances"] = len(instances)
        told = _count(record, 9)
        if told > len(instances):
            words = "The headers of a series name more instances than were received."
            x.issue("images-missing", "warning", words, f"{len(instances)} of {told}", where=f"{record.where}-9")
            out["numberOfInstances"] = told
    site = _site(record, x)
    if site:
        out["bodySite"] = site
    side = _SIDES.get(record.first(7))
    if side:
        out["laterality"] = {"system": systems.SNOMED, "code": side[0], "display": side[1]}
    _started(record, 5, x, out)
    x.field = 8
    performers = [{"actor": who} for e in record.get(8) if (who := practitioner(e, x))]
    device = (
        " ".join(plain(record.get(13)[0], n) for n in (1, 2) if plain(record.get(13)[0], n)) if record.get(13) else ""
    )
    if device:
        performers.append({"actor": {"type": "Device", "display": device}})
    if performers:
        out["performer"] = performers
    said = [{"url": systems.VIEW, "valueString": plain(e)} for e in record.get(10)]
    said += [{"url": systems.CONTRAST, "valueString": plain(e)} for e in record.get(11)]
    if record.first(12):
        said.append({"url": systems.CONTRAST, "valueString": "without"})
    if said:
        out = {"extension": said, **out}
    out["instance"] = instances
    return out


def _instance(element: Any) -> dict[str, Any]:
    out = {
        "uid": plain(element, 1),
        "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{plain(element, 2)}"},
    }
    _whole_number(plain(element, 3), "number", out)
    return out


def _whole_number(written: str, key: str, out: dict[str, Any]) -> None:
    """unsignedInt; DICOM lets a number be negative (IS), which FHIR cannot say."""
    if _UNSIGNED.fullmatch(written.removeprefix("+")) and int(written) <= _DIGITS:
        out[key] = int(written)


@cache
def _parts() -> dict[str, tuple[str, str]]:
    """PS3.16 annex L: Body Part Examined -> SNOMED CT code, meaning."""
    rows = read_rows(Path(__file__).parent / "body-parts.csv", ("part", "code", "display"), (), [])
    return {row["part"]: (row["code"], row["display"]) for row in rows}


def _site(record: Record, x: Context) -> dict[str, Any] | None:
    """Anatomic region as coded by the device, else Body Part Examined by the standard's table, else the word as sent."""
    x.field = 6
    element = record.get(6)[0] if record.get(6) else ()
    part, code, meaning, scheme = (plain(element, n) for n in (1, 2, 3, 4))
    if code and scheme:
        found = (concept((code, meaning, scheme), x, "body-sites") or {}).get("coding") or [{}]
        if found[0].get("system") == systems.SNOMED or not part:
            return dict(found[0])
    known = _parts().get(part.upper().replace(" ", ""))
    if known is not None:
        return {"system": systems.SNOMED, "code": known[0], "display": known[1]}
    return {"display": part} if part else None


def _endpoint(x: Context) -> dict[str, str] | None:
    """The DICOMweb services of the facility's archive by its profile, as an Endpoint."""
    archive = next((p for p in x.facility.pacs if p.endpoint or p.dicomweb), None)
    if archive is None:
        return None
    logical = ids.directory_id(x.facility.id, "Endpoint", archive.name)
    return x.mention(
        {
            "resourceType": "Endpoint",
            "id": logical,
            "identifier": [{"system": systems.facility_system(x.facility.id, "pacs"), "value": archive.name}],
            "status": "active",
            "connectionType": _WADO,
            "name": archive.name,
            "payloadType": [
                {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/endpoint-payload-type", "code": "any"}]}
            ],
            "payloadMimeType": ["application/dicom"],
            "address": archive.endpoint or archive.dicomweb,
        }
    )
