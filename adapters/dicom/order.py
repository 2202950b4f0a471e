"""What an object says of its patient, its order and its codes, as fields of HL7 v2 segments (PS3.3 C.7.1.1, C.7.2.1, C.4.11, 8.8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from adapters.dicom.dataset import Item
from adapters.segments import Draft
from mappings import resident_id
from mappings.facility import Facility
from mappings.outbound.line import trimmed
from mappings.source import Component, Element

_SEX: Final = {"M": "M", "F": "F", "O": "O"}


def coded(item: Item) -> Element:
    """An item of a code sequence (PS3.3 section 8.8) as CWE: code, meaning, scheme, then the scheme's version as component 7."""
    code = item.text("CodeValue") or item.text("LongCodeValue") or item.text("URNCodeValue")
    scheme = item.text("CodingSchemeDesignator") or ("URN" if item.text("URNCodeValue") else "")
    return trimmed(code, item.text("CodeMeaning"), scheme, "", "", "", item.text("CodingSchemeVersion"))


def codes(item: Item, keyword: str) -> list[Element]:
    """Every item of a code sequence that says something."""
    return [found for inner in item.items(keyword) if (found := coded(inner))]


def moment(item: Item, day: str, time: str) -> str:
    """Date and time elements by keyword -> HL7 time, with the object's offset (0008,0201) when it names one; a date alone stays one."""
    date = item.text(day).replace(".", "")
    clock = item.text(time).replace(":", "") if date else ""
    return f"{date}{clock}{item.text('TimezoneOffsetFromUTC')}" if clock else date


def date_time(item: Item, keyword: str) -> str:
    """A DT element -> HL7 time; its own offset, else the object's."""
    found = item.text(keyword)
    if len(found) <= 8 or found[-5:-4] in ("+", "-"):
        return found
    return found + item.text("TimezoneOffsetFromUTC")


def issuer(item: Item, keyword: str) -> Component:
    """An HL7v2 Hierarchic Designator sequence (PS3.3 table 10-17) as HD: namespace, universal id, its type; empty when absent."""
    of = item.item(keyword)
    space, universal = of.text("LocalNamespaceEntityID"), of.text("UniversalEntityID")
    return (space, universal, of.text("UniversalEntityIDType")) if universal else space


def number(item: Item, keyword: str, issued: str) -> Element:
    """A number with its issuer as EI; empty when absent."""
    value = item.text(keyword)
    if not value:
        return ()
    of = issuer(item, issued)
    return trimmed(value, *(of if isinstance(of, tuple) else (of,)))


@dataclass(frozen=True, slots=True)
class Request:
    """The numbers of an order: accession (0008,0050), placer (0040,2016), filler (0040,2017), and what was asked for."""

    accession: Element = ()
    placer: Element = ()
    filler: Element = ()
    procedure: tuple[Element, ...] = ()
    description: str = ""


def request(item: Item) -> Request:
    """The order an object names: its own elements, else the first item of its request sequences (0040,0275), (0040,A370)."""
    places = [item, *item.items("RequestAttributesSequence"), *item.items("ReferencedRequestSequence")]

    def first(keyword: str, issued: str) -> Element:
        return next((found for place in places if (found := number(place, keyword, issued))), ())

    procedure = next(
        (
            tuple(found)
            for name in ("ProcedureCodeSequence", "RequestedProcedureCodeSequence")
            for place in places
            if (found := codes(place, name))
        ),
        (),
    )
    words = next((w for place in places if (w := place.text("RequestedProcedureDescription"))), "")
    return Request(
        first("AccessionNumber", "IssuerOfAccessionNumberSequence"),
        first("PlacerOrderNumberImagingServiceRequest", "OrderPlacerIdentifierSequence"),
        first("FillerOrderNumberImagingServiceRequest", "OrderFillerIdentifierSequence"),
        procedure,
        words,
    )


def person(item: Item, keyword: str, identified: str = "") -> Element:
    """A person name, and its number where the identification sequence gives one, as XCN."""
    name = item.name(keyword)
    own = item.item(identified) if identified else Item.empty()
    code = own.item("PersonIdentificationCodeSequence").text("CodeValue")
    family, given, middle, prefix, suffix = (*name, *[""] * (5 - len(name)))
    return trimmed(code, family, given, middle, suffix, prefix)


def write_patient(item: Item, facility: Facility, draft: Draft) -> None:
    """The patient of an object -> PID: numbers with their issuers, every group of the name, birth date, sex."""
    pid = draft.add("PID", "patient")
    numbers = [_numbered(item, facility.identifiers.dicom_issuer)]
    for other in item.items("OtherPatientIDsSequence"):
        if other.text("TypeOfPatientID") in ("", "TEXT"):
            numbers.append(_numbered(other, ""))
    numbers += [(value,) for value in item.texts("OtherPatientIDs")]
    pid.put(3, *dict.fromkeys(n for n in numbers if n))
    name = item.name("PatientName")
    family, given, middle, prefix, suffix = (*name, *[""] * (5 - len(name)))
    pid.put(5, trimmed(family, given, middle, suffix, prefix))
    pid.put(7, item.text("PatientBirthDate").replace(".", ""))
    pid.put(8, _SEX.get(item.text("PatientSex").upper(), item.text("PatientSex")))


def _numbered(item: Item, default: str) -> Element:
    """Patient ID with its issuer (0010,0021), qualified by (0010,0024), as CX; a resident ID number names itself."""
    value = item.text("PatientID")
    if not value:
        return ()
    space = item.text("IssuerOfPatientID")
    qualified = item.item("IssuerOfPatientIDQualifiersSequence")
    universal = qualified.text("UniversalEntityID")
    if not space and not universal and resident_id.read(value) is None:
        space = default
    authority: Component = (space, universal, qualified.text("UniversalEntityIDType")) if universal else space
    return trimmed(value, "", "", authority, qualified.text("IdentifierTypeCode"))
