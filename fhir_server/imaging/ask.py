"""Asking an archive: which studies a day has, and what is known of each instance of one.

By QIDO-RS and WADO-RS (PS3.18), or by C-FIND at all levels (PS3.4 annex C)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Protocol

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association

from fhir_server.imaging.archive import Archive, ArchiveAway
from fhir_server.imaging.found import from_json
from mappings.facility import Pacs

_PAGE: Final = 100
_FIND: Final = UID("1.2.840.10008.5.1.4.1.2.2.1")
"""Study Root Query/Retrieve Information Model - FIND (PS3.6 table A-1)."""
_PENDING: Final = (0xFF00, 0xFF01)
_LEVELS: Final = {
    "STUDY": [
        "StudyInstanceUID",
        "StudyDate",
        "StudyTime",
        "StudyDescription",
        "AccessionNumber",
        "StudyID",
        "PatientID",
        "PatientName",
        "PatientSex",
        "PatientBirthDate",
        "IssuerOfPatientID",
        "OtherPatientIDs",
        "ReferringPhysicianName",
        "InstitutionName",
        "NumberOfStudyRelatedInstances",
    ],
    "SERIES": [
        "SeriesInstanceUID",
        "Modality",
        "SeriesNumber",
        "SeriesDescription",
        "SeriesDate",
        "SeriesTime",
        "BodyPartExamined",
        "Laterality",
        "ProtocolName",
        "InstitutionName",
        "PerformingPhysicianName",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
    ],
    "IMAGE": [
        "SOPInstanceUID",
        "SOPClassUID",
        "InstanceNumber",
        "Rows",
        "Columns",
        "NumberOfFrames",
        "ContentDate",
        "ContentTime",
        "ImageType",
        "ImageLaterality",
        "ViewPosition",
        "ContrastBolusAgent",
    ],
}
"""What is asked for at each level (PS3.4 section C.6.2)."""
_WHOSE: Final = {
    "PatientID": "00100020",
    "IssuerOfPatientID": "00100021",
    "PatientName": "00100010",
    "PatientBirthDate": "00100030",
    "PatientSex": "00100040",
    "AccessionNumber": "00080050",
}
"""What says whose a study is and which order asked for it, with its tag: when that is corrected, the study is fetched again."""


@dataclass(frozen=True, slots=True)
class Study:
    """A study an archive has. instances: their number, -1 when it does not say; told: digest of whose it is and of which order."""

    uid: str
    instances: int
    told: str


class Asking(Protocol):
    """One archive that is asked."""

    async def studies(self, day: date) -> list[Study]:
        """All studies of one Study Date. Raises ArchiveAway."""
        ...

    async def instances(self, uid: str) -> list[Dataset]:
        """Every instance of a study, without pixels. Raises ArchiveAway and NotUnderstood."""
        ...


class ByWeb:
    """QIDO-RS and WADO-RS."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    async def studies(self, day: date) -> list[Study]:
        """Page by page, until one has no study that is new."""
        out: dict[str, Study] = {}
        while True:
            page = await self._archive.json(
                "studies",
                {
                    "StudyDate": f"{day:%Y%m%d}",
                    "includefield": "00201208,00100021",
                    "limit": str(_PAGE),
                    "offset": str(len(out)),
                },
            )
            before = len(out)
            for item in page:
                uid = _first(item, "0020000D")
                if uid:
                    number = _first(item, "00201208")
                    told = _told(_first(item, tag) for tag in _WHOSE.values())
                    out[uid] = Study(uid, int(number) if number.isdecimal() else -1, told)
            if len(page) < _PAGE or len(out) == before:
                return list(out.values())

    async def instances(self, uid: str) -> list[Dataset]:
        """Study metadata in one answer."""
        found = await self._archive.json(f"studies/{uid}/metadata")
        return await asyncio.to_thread(from_json, found)


def _first(item: dict[str, Any], tag: str) -> str:
    value = item.get(tag)
    values = value.get("Value") if isinstance(value, dict) else None
    return str(values[0]) if isinstance(values, list) and values and values[0] is not None else ""


def _told(words: Iterable[str]) -> str:
    return hashlib.blake2b("\x1f".join(words).encode(), digest_size=16).hexdigest()


class ByFind:
    """C-FIND in the study root model."""

    def __init__(self, pacs: Pacs, calling: str) -> None:
        self._pacs = pacs
        self._calling = calling

    async def studies(self, day: date) -> list[Study]:
        """One query."""
        return await asyncio.to_thread(self._studies, f"{day:%Y%m%d}")

    async def instances(self, uid: str) -> list[Dataset]:
        """One query for the study, one for its series, one for the images of each."""
        return await asyncio.to_thread(self._instances, uid)

    def _studies(self, day: str) -> list[Study]:
        assoc = self._associated()
        try:
            found = list(self._find(assoc, "STUDY", StudyDate=day))
        finally:
            assoc.release()
        out = []
        for one in found:
            number = str(one.get("NumberOfStudyRelatedInstances", ""))
            if one.get("StudyInstanceUID"):
                told = _told(str(one.get(keyword) or "") for keyword in _WHOSE)
                out.append(Study(str(one.StudyInstanceUID), int(number) if number.isdecimal() else -1, told))
        return out

    def _instances(self, uid: str) -> list[Dataset]:
        assoc = self._associated()
        out = []
        try:
            for study in self._find(assoc, "STUDY", StudyInstanceUID=uid):
                for series in self._find(assoc, "SERIES", StudyInstanceUID=uid):
                    named = {"StudyInstanceUID": uid, "SeriesInstanceUID": str(series.get("SeriesInstanceUID", ""))}
                    for image in self._find(assoc, "IMAGE", **named):
                        whole = Dataset()
                        for part in (study, series, image):
                            whole.update({element.tag: element for element in part if element.tag != 0x00080052})
                        whole.StudyInstanceUID, whole.SeriesInstanceUID = named.values()
                        out.append(whole)
        finally:
            assoc.release()
        return out

    def _associated(self) -> Association:
        entity = ApplicationEntity(self._calling)
        entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = (
            self._pacs.timeout
        )
        entity.add_requested_context(_FIND)
        assoc = entity.associate(self._pacs.host, self._pacs.port, ae_title=self._pacs.ae)
        if not assoc.is_established:
            raise ArchiveAway("association rejected" if assoc.is_rejected else "no association")
        return assoc

    def _find(self, assoc: Association, level: str, **keys: str) -> Iterator[Dataset]:
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword in _LEVELS[level]:
            setattr(query, keyword, "" if keyword not in ("Rows", "Columns") else None)
        for keyword, value in keys.items():
            setattr(query, keyword, value)
        found = []
        for status, identifier in assoc.send_c_find(query, _FIND):
            code = status.get("Status", -1)
            if code in _PENDING and identifier is not None:
                identifier.decode()
                found.append(identifier)
            elif code != 0:
                raise ArchiveAway(f"C-FIND status {code:04X}" if code >= 0 else "C-FIND was not answered")
        return iter(found)


def asking(archive: Archive, calling: str) -> Asking:
    """How the profile says that an archive is asked."""
    return ByFind(archive.pacs, calling) if archive.pacs.poll == "find" else ByWeb(archive)
