"""The objects of a study -> records STUDY and SERIES (PS3.3 C.7.2.1 General Study, C.7.3.1 General Series, C.12.1 SOP Common).

Records of our own, because HL7 v2 has no segment for them; mappings/imaging_study.py says what each field is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pydicom.datadict import tag_for_keyword

from adapters.dicom import order
from adapters.dicom.dataset import Item
from adapters.dicom.order import coded, codes, moment
from adapters.segments import Draft
from mappings.source import Element

_KEYWORDS: Final = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyDate", "StudyTime", "SeriesDate", "SeriesTime",
    "TimezoneOffsetFromUTC", "AccessionNumber", "IssuerOfAccessionNumberSequence", "Modality", "InstitutionName", "Manufacturer",
    "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence", "StudyDescription", "ProcedureCodeSequence",
    "SeriesDescription", "PerformingPhysicianName", "PerformingPhysicianIdentificationSequence", "NameOfPhysiciansReadingStudy",
    "PhysiciansReadingStudyIdentificationSequence", "OperatorsName", "OperatorIdentificationSequence", "ManufacturerModelName",
    "StationName", "AnatomicRegionSequence", "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthDate", "PatientSex", "OtherPatientIDs", "OtherPatientIDsSequence", "ContrastBolusAgent", "ContrastBolusAgentSequence",
    "BodyPartExamined", "ProtocolName", "ViewPosition", "ViewCodeSequence", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "InstanceNumber", "Laterality", "ImageLaterality", "NumberOfStudyRelatedSeries", "NumberOfSeriesRelatedInstances",
    "NumberOfStudyRelatedInstances", "RequestingPhysician", "RequestedProcedureDescription", "RequestedProcedureCodeSequence",
    "ReasonForTheRequestedProcedure", "ReasonForStudy", "RequestAttributesSequence", "RequestedProcedureID",
    "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest", "OrderPlacerIdentifierSequence",
    "OrderFillerIdentifierSequence", "DeviceSerialNumber", "FileSetConsistencyFlag", "SharedFunctionalGroupsSequence",
)  # fmt: skip
WANTED: Final = frozenset(tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None)
"""Tags read of an image; its other elements are technical and stay in the bytes that are kept."""
_NO_CONTRAST: Final = frozenset({"NO", "NONE", "N", "0", "WITHOUT", "NO CONTRAST", "无", "未用", "平扫"})
_MOST_NAMES: Final = 8


@dataclass(slots=True)
class Series:
    """What the objects of one series say. instances: (UID, SOP class UID, number) in order of arrival, each once."""

    first: Item
    instances: dict[str, tuple[str, str]] = field(default_factory=dict)
    sides: set[str] = field(default_factory=set)
    sites: Counter[Element] = field(default_factory=Counter)
    views: dict[str, None] = field(default_factory=dict)
    contrast: dict[str, None] = field(default_factory=dict)
    plain: bool = False
    unclear: bool = False
    told: int | None = None


@dataclass(slots=True)
class Study:
    """A study as far as its objects are known. told: numbers of series and instances that headers name (0020,1206), (0020,1208);
    images, rejected: SOP Instance UIDs."""

    uid: str
    first: Item
    series: dict[str, Series] = field(default_factory=dict)
    told_series: int | None = None
    told_instances: int | None = None
    images: set[str] = field(default_factory=set)
    rejected: set[str] = field(default_factory=set)
    withdrawn: str = ""

    def add(self, item: Item, *, image: bool) -> None:
        """One more object; the same one again counts once."""
        uid = item.text("SeriesInstanceUID")
        series = self.series.get(uid)
        if series is None:
            series = self.series[uid] = Series(item)
        instance = item.text("SOPInstanceUID")
        if instance in series.instances:
            return
        series.instances[instance] = (item.text("SOPClassUID"), item.text("InstanceNumber"))
        if image:
            self.images.add(instance)
        self.told_series = _more(self.told_series, item.number("NumberOfStudyRelatedSeries"))
        self.told_instances = _more(self.told_instances, item.number("NumberOfStudyRelatedInstances"))
        series.told = _more(series.told, item.number("NumberOfSeriesRelatedInstances"))
        _describe(item, series)

    def reject(self, refused: Mapping[str, str]) -> None:
        """Takes back instances (UID -> ``error`` or ``unavailable``); withdrawn says it of a study that has no other images."""
        self.rejected = {uid for one in self.series.values() for uid in one.instances} & refused.keys()
        if self.images and self.images <= self.rejected:
            whys = {refused[uid] for uid in self.images}
            self.withdrawn = "error" if "error" in whys else "unavailable"


def _more(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


def _describe(item: Item, series: Series) -> None:
    # Of an enhanced multi-frame object what all its frames share (PS3.3 C.7.6.16).
    shared = item.item("SharedFunctionalGroupsSequence")
    anatomy = shared.item("FrameAnatomySequence")
    for place, keyword in ((item, "Laterality"), (item, "ImageLaterality"), (anatomy, "FrameLaterality")):
        if (side := place.text(keyword).upper()) in ("L", "R", "B"):
            series.sides.add(side)
    part = item.text("BodyPartExamined")
    region = next(iter(codes(item, "AnatomicRegionSequence") or codes(anatomy, "AnatomicRegionSequence")), ())
    if part or region:
        series.sites[(part, *region[:3])] += 1
    view = coded(item.item("ViewCodeSequence"))
    said = item.text("ViewPosition") or (str(view[1]) if len(view) > 1 else "")
    if said:
        series.views[said] = None
    agent = item.text("ContrastBolusAgent")
    named = next(iter(codes(item, "ContrastBolusAgentSequence")), ())
    given = {usage.text("ContrastBolusAgentAdministered") for usage in shared.items("ContrastBolusUsageSequence")}
    refused = agent.upper() in _NO_CONTRAST
    if given == {"NO"} or (refused and not named):
        series.plain = True
    elif refused:
        # "NO" beside the code of an agent: nobody can say which of them is true.
        series.unclear = True
    elif agent or named:
        series.contrast[agent or str(named[1] if len(named) > 1 else named[0])] = None


def write_study(study: Study, draft: Draft, *, extent: str) -> None:
    """The study and its series as records. extent: ``whole``, all that came of the study is here; ``listed``, all its archive has;
    ``part``, one object of it."""
    item = study.first
    asked = order.request(item)
    record = draft.add("STUDY", "study")
    record.put(1, study.uid)
    record.put(2, asked.accession)
    record.put(3, asked.placer)
    record.put(4, asked.filler)
    record.put(5, moment(item, "StudyDate", "StudyTime"))
    record.put(6, item.text("StudyDescription") or asked.description)
    record.put(7, *asked.procedure)
    referrer = order.person(item, "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence")
    record.put(8, referrer or order.person(item, "RequestingPhysician"))
    record.put(9, order.person(item, "NameOfPhysiciansReadingStudy", "PhysiciansReadingStudyIdentificationSequence"))
    record.put(10, item.text("ReasonForTheRequestedProcedure") or item.text("ReasonForStudy"))
    record.put(11, _number(None if study.rejected else study.told_series))
    told = study.told_instances
    record.put(12, _number(told - len(study.rejected) if told is not None else None))
    record.put(13, extent)
    record.put(14, _number(len(study.rejected)))
    record.put(15, study.withdrawn)
    kept = {uid: series for uid, series in study.series.items() if series.instances.keys() - study.rejected}
    for number, (uid, series) in enumerate(_sorted(kept.items()), 1):
        _write_series(uid, series, study.rejected, draft, number)


def _number(value: int | None) -> str:
    return str(value) if value is not None and value > 0 else ""


def _sorted(series: Iterable[tuple[str, Series]]) -> list[tuple[str, Series]]:
    return sorted(series, key=lambda pair: (_order(pair[1].first.text("SeriesNumber")), pair[0]))


def _order(number: str) -> tuple[int, str]:
    try:
        return int(number), ""
    except ValueError:
        return 1 << 31, number


def _write_series(uid: str, series: Series, rejected: set[str], draft: Draft, number: int) -> None:
    item = series.first
    record = draft.add("SERIES", f"series[{number}]")
    record.put(1, uid)
    record.put(2, item.text("SeriesNumber"))
    record.put(3, item.text("Modality"))
    record.put(4, item.text("SeriesDescription") or item.text("ProtocolName"))
    record.put(5, moment(item, "SeriesDate", "SeriesTime"))
    site = series.sites.most_common(1)
    record.put(6, site[0][0] if site else ())
    # A series of both breasts has images of either side, and no side of its own.
    record.put(7, next(iter(series.sides)) if len(series.sides) == 1 else "")
    people = (
        ("OperatorsName", "OperatorIdentificationSequence"),
        ("PerformingPhysicianName", "PerformingPhysicianIdentificationSequence"),
    )
    record.put(8, *(order.person(item, *names) for names in people))
    left = [(uid, said) for uid, said in series.instances.items() if uid not in rejected]
    gone = len(series.instances) - len(left)
    record.put(9, _number(series.told - gone if series.told is not None else None))
    record.put(10, *((view,) for view in list(series.views)[:_MOST_NAMES]))
    agents = [] if series.unclear else list(series.contrast)
    record.put(11, *((agent,) for agent in agents[:_MOST_NAMES]))
    record.put(12, "without" if series.plain and not series.contrast and not series.unclear else "")
    device = (item.text("Manufacturer"), item.text("ManufacturerModelName"), item.text("DeviceSerialNumber"))
    record.put(13, tuple(device) if any(device) else ())
    found = sorted(left, key=lambda i: (_order(i[1][1]), i[0]))
    record.put(14, *((uid, *said) for uid, said in found))
