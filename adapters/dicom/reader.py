"""DICOM bytes -> Source: one object, or a package of what is known of a study (PS3.10; adapters.dicom.package).

Images become records STUDY and SERIES; what an object without pixels says (report, document, key images, ECG) is read as the segments
of a result message, as with the other formats (docs/adr/0018).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from adapters import segments
from adapters.contract import Envelope, Unreadable
from adapters.dicom import dataset, package, report, waveform
from adapters.dicom.dataset import Item
from adapters.dicom.order import moment, write_patient
from adapters.dicom.signature import LISTED, is_package
from adapters.dicom.structure import check_pixels, take_apart
from adapters.dicom.study import WANTED, Study, write_study
from adapters.segments import Draft, Message
from conformance.issue import Issue
from mappings.facility import Facility
from mappings.model import Unread

_ABOUT: Final = frozenset({0x0010, 0x0032, 0x0038, 0x0040})
"""Groups about the patient, the order, the visit and the procedure: what of them is not read is listed. Technical groups are not."""
_DIRECTORY: Final = "1.2.840.10008.1.3.10"
"""Media Storage Directory Storage."""
_UID: Final = re.compile(r"[0-9.]{1,64}")
Write = Callable[[Item, bytes, Draft, list[Issue]], None]
"""Reads one object without pixels: the object, its bytes, where its segments go, and the problems found."""
CONTENT: Final[dict[str, Write]] = {
    **dict.fromkeys(report.STRUCTURED, report.write_report),
    **dict.fromkeys(report.ENCAPSULATED, report.write_encapsulated),
    **dict.fromkeys(waveform.ECG, waveform.write_ecg),
    report.KEY_OBJECTS: report.write_key_objects,
}
"""SOP class UID -> how objects of the class are read beside the study they belong to."""


def read(raw: bytes, facility: Facility) -> Message:
    """One message.

    Raises Unreadable: of ``package.unpack``, ``structure.take_apart`` and ``dataset.of_part``; ``dicom-no-uid``, ``dicom-directory``,
    ``two-studies``, ``two-patients``.
    """
    issues: list[Issue] = []
    study: Study | None = None
    contents: list[tuple[str, Item, bytes]] = []
    unread: list[Unread] = []
    codec = "ascii"
    for place, one in enumerate(package.unpack(raw), 1):
        part = take_apart(one)
        if not is_package(raw):
            check_pixels(part.dataset, part.pixels)
        item, found = dataset.of_part(part, facility.charset, WANTED)
        codec = found.codec or "iso-2022"
        issues += [i for i in found.issues if i not in issues]
        kind = item.text("SOPClassUID")
        if study is None:
            study = Study(_uid(item, place), item)
            unread = [Unread(*o) for o in dataset.of_part(part, facility.charset)[0].others(_ABOUT, WANTED)]
        _check(item, study, place)
        if kind in CONTENT:
            contents.append((kind, dataset.of_part(part, facility.charset)[0], one))
        study.add(item, image=kind not in CONTENT)
    if study is None:
        raise _refuse("dicom-empty", "", "The study package holds no object.")
    message = _message(study, contents, raw, facility, codec, issues)
    message.unread = unread
    return message


def _message(
    study: Study,
    contents: list[tuple[str, Item, bytes]],
    raw: bytes,
    facility: Facility,
    codec: str,
    issues: list[Issue],
) -> Message:
    draft = _header(study, raw, facility)
    refused = report.rejected(item for kind, item, _ in contents if kind == report.KEY_OBJECTS)
    study.reject(refused)
    if study.rejected:
        words = "Images were rejected by a note in the study (IHE IOCM); they are not among its instances, nor are they used."
        told = f"{len(study.rejected)}: {', '.join(sorted(set(refused.values())))}"
        issues.append(Issue("images-rejected", "warning", "study", words, told))
    if study.images:
        write_study(study, draft, extent=_extent(raw))
    drafts = report.replaced(item for _, item, _ in contents) | refused.keys()
    for kind, item, one in sorted(contents, key=_place):
        if item.text("SOPInstanceUID") not in drafts:
            CONTENT[kind](item, one, draft, issues)
    return Message("dicom", draft.records(), codec, issues, [])


def _extent(raw: bytes) -> str:
    return "listed" if raw.startswith(LISTED) else "whole" if is_package(raw) else "part"


def _place(content: tuple[str, Item, bytes]) -> tuple[bool, str, str]:
    """Older reports first; documents of their own last: what follows a TXA belongs to it."""
    kind, item, _ = content
    stated = moment(item, "ContentDate", "ContentTime")
    return kind == report.KEY_OBJECTS or kind in waveform.ECG, stated, item.text("SOPInstanceUID")


def _header(study: Study, raw: bytes, facility: Facility) -> Draft:
    draft = Draft()
    msh = draft.add("MSH")
    msh.put(4, study.first.text("InstitutionName"))
    msh.put(9, ("RPT", "DICOM"))
    msh.put(10, f"{study.uid}/{hashlib.sha256(raw).hexdigest()[:12]}")
    write_patient(study.first, facility, draft)
    return draft


def peek(raw: bytes, facility: Facility) -> Envelope:
    """What must be known before the package is accepted, from its first object. Raises Unreadable as far as that is looked at."""
    one = next(package.unpack(raw), None)
    if one is None:
        raise _refuse("dicom-empty", "", "The study package holds no object.")
    part = take_apart(one)
    if not is_package(raw):
        check_pixels(part.dataset, part.pixels)
    item, found = dataset.of_part(part, facility.charset, WANTED)
    draft = _header(Study(_uid(item, 1), item), raw, facility)
    codec = found.codec or "iso-2022"
    return segments.envelope(Message("dicom", draft.records(), codec, list(found.issues), []), facility)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which object a file is (UIDs), and its bytes up to the pixels."""

    study: str
    series: str
    instance: str
    header: bytes


def identify(raw: bytes, facility: Facility) -> Identity:
    """One object with what it takes to gather it with the others of its study. Raises Unreadable like ``read``."""
    part = take_apart(raw)
    check_pixels(part.dataset, part.pixels)
    item, _ = dataset.of_part(part, facility.charset, WANTED)
    study = Study(_uid(item, 1), item)
    _check(item, study, 1)
    return Identity(study.uid, item.text("SeriesInstanceUID"), item.text("SOPInstanceUID"), package.header_bytes(raw))


def _uid(item: Item, place: int) -> str:
    if item.text("SOPClassUID") == _DIRECTORY or item.number("FileSetConsistencyFlag") is not None:
        raise _refuse("dicom-directory", "", "The file is a DICOMDIR, a list of files; send the files it names.")
    uid = item.text("StudyInstanceUID")
    if not uid:
        words = "The object names no study (0020,000D); it belongs to no patient's examination."
        raise _refuse("dicom-no-uid", f"object[{place}]", words)
    return uid


def _check(item: Item, study: Study, place: int) -> None:
    """The objects of a message are of one study and one patient, and can be told apart."""
    where = f"object[{place}]"
    if _uid(item, place) != study.uid:
        raise _refuse("two-studies", where, "The package holds objects of two studies; send one package for each.")
    if item.text("PatientID") != study.first.text("PatientID"):
        words = "The objects of the study name two patients (0010,0020); correct them in the archive and send again."
        raise _refuse("two-patients", where, words)
    if not all(_UID.fullmatch(item.text(k)) for k in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")):
        words = "SOP Class UID, SOP Instance UID (0008,0018) or Series Instance UID (0020,000E) is missing or no UID (PS3.5 chapter 9)."
        raise _refuse("dicom-no-uid", where, words)


def _refuse(key: str, where: str, words: str) -> Unreadable:
    return Unreadable(Issue(key, "error", where, words))
