"""Objects that are reports or documents: structured reports, encapsulated documents, key object selections -> segments of a result.

Structured Report Document (PS3.3 C.17.2, C.17.3; templates TID 2000, 1500 of PS3.16): every TEXT, CODE, NUM and date of the tree is an
OBX under its own concept name, in the order of the tree. Encapsulated Document (C.24): the file is the report's presented form. Key
Object Selection (C.17.6, TID 2010) is a document that names images: a DocumentReference, as IHE XDS-I.b makes of a manifest.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Final

from adapters.dicom import order
from adapters.dicom.dataset import Item
from adapters.dicom.order import coded, codes, date_time, moment
from adapters.ecg import recording as ecg
from adapters.segments import Draft
from conformance.issue import Issue
from mappings.outbound.line import Line, trimmed
from mappings.source import Element

STRUCTURED: Final = frozenset(f"1.2.840.10008.5.1.4.1.1.88.{n}" for n in ("11", "22", "33", "34", "35"))
"""Basic Text, Enhanced, Comprehensive, Comprehensive 3D and Extensible SR (PS3.4 annex B.5)."""
ENCAPSULATED: Final = {
    "1.2.840.10008.5.1.4.1.1.104.1": ("application", "pdf"),
    "1.2.840.10008.5.1.4.1.1.104.2": ("application", "xml"),
}
"""Encapsulated PDF and CDA: the type of the document where (0042,0012) does not say."""
KEY_OBJECTS: Final = "1.2.840.10008.5.1.4.1.1.88.59"
_WRONG: Final = frozenset({"113037", "113038"})
_REJECTIONS: Final = _WRONG | {"113001", "113039"}
"""Titles of a rejection note (IHE IOCM; CID 7011): Patient Safety Reasons, Incorrect Modality Worklist Entry; Quality Reasons, Data
Retention Policy Expired. The first two say that the images were never those of this examination."""
_CONCLUSIONS: Final = frozenset({"121072", "121073", "121076", "121077", "19005-8"})
"""Impressions, Impression, Conclusions, Conclusion (CID 7001, 7002), and LOINC's impression."""
_SITES: Final = frozenset({"363698007", "G-C0E3"})
_SIDES: Final = frozenset({"272741003", "G-C171"})
_METHODS: Final = frozenset({"370129005", "G-C036", "121401"})
_TRACKING: Final = "112039"
_MOST_ITEMS: Final = 5000
_MODALITY_GROUP: Final = {
    "US": "RUS", "CT": "CT", "MR": "NMR", "NM": "NMS", "PT": "NMS", "CR": "RX", "DX": "RX", "MG": "RX", "RF": "RX", "XA": "RX",
    "ECG": "EC", "ES": "OTH",
}  # fmt: skip
"""Modality -> diagnostic service section (HL7 table 0074)."""


def write_report(item: Item, raw: bytes, draft: Draft, issues: list[Issue]) -> None:
    """One structured report as OBR and OBX."""
    title = coded(item.item("ConceptNameCodeSequence"))
    status = report_status(item)
    obr = ordered(item, title, status, draft)
    verified = [o for o in item.items("VerifyingObserverSequence") if o]
    stated = max((date_time(o, "VerificationDateTime") for o in verified), default="")
    obr.put(22, stated or moment(item, "ContentDate", "ContentTime"))
    readers = [
        order.person(o, "VerifyingObserverName", "VerifyingObserverIdentificationCodeSequence") for o in verified
    ]
    readers += [
        order.person(a, "PersonName")
        for a in item.items("AuthorObserverSequence")
        if not verified and a.text("PersonName")
    ]
    obr.put(32, *((tuple(str(c) for c in who[:3]),) for who in readers if who))
    made = 0
    for found in _leaves(item, (), ""):
        if made >= _MOST_ITEMS:
            words = "The report has more content items than are read; the rest stays in the object."
            issues.append(Issue("sr-too-long", "warning", "content", words))
            break
        made += _write_leaf(found, status, draft, issues)
    if not made:
        words = "The structured report holds no text, code or measurement; the object is kept as it is."
        issues.append(Issue("sr-empty", "warning", "content", words))


class _Leaf:
    """A content item with a value: where it stands, the headings above it, the group of measurements it belongs to, and what the
    group says of all of them (site, side, method)."""

    __slots__ = ("common", "group", "headings", "item", "where")

    def __init__(
        self, item: Item, where: str, headings: tuple[Element, ...], group: str, common: list[tuple[str, Element]]
    ) -> None:
        self.item, self.where, self.headings, self.group, self.common = item, where, headings, group, common


def _modifiers(item: Item) -> list[tuple[str, Element]]:
    """Site, side and method of an item, by the code of the concept; a side may stand below its site (TID 1501, TID 300)."""
    out = []
    for inner in item.items("ContentSequence"):
        code, value = _code(inner), coded(inner.item("ConceptCodeSequence"))
        if value and code in _SITES | _SIDES | _METHODS:
            out.append((code, value))
            out += [found for found in _modifiers(inner) if found[0] in _SIDES]
    return out


def _leaves(
    item: Item,
    headings: tuple[Element, ...],
    where: str,
    common: list[tuple[str, Element]] | None = None,
    group: str = "",
) -> Iterator[_Leaf]:
    """The content items below one, in document order. Depth is limited by the structure (adapters.dicom.structure).

    group: the tracking identifier of what stands around; what is nested deeper is about the same unless it has its own.
    """
    common = _modifiers(item) or common or []
    for inner in item.items("ContentSequence"):
        if _code(inner) == _TRACKING:
            group = inner.text("TextValue")
    for number, inner in enumerate(item.items("ContentSequence"), 1):
        place = f"{where}.{number}" if where else f"content[{number}]"
        if inner.text("ValueType") == "CONTAINER":
            yield from _leaves(inner, (*headings, coded(inner.item("ConceptNameCodeSequence"))), place, common, group)
            continue
        if inner.text("RelationshipType") in ("HAS OBS CONTEXT", "HAS CONCEPT MOD", "HAS ACQ CONTEXT"):
            continue
        if _code(inner) != _TRACKING:
            yield _Leaf(inner, place, headings, group, common)
        # What a finding was inferred from, or has as property, is said below it.
        if inner.items("ContentSequence"):
            yield from _leaves(inner, headings, place, common, group)


def _code(item: Item) -> str:
    return item.item("ConceptNameCodeSequence").text("CodeValue")


def _write_leaf(found: _Leaf, status: str, draft: Draft, issues: list[Issue]) -> bool:
    item = found.item
    kind = item.text("ValueType")
    concept = coded(item.item("ConceptNameCodeSequence")) or next((h for h in reversed(found.headings) if h), ())
    if not concept:
        return False
    under = next((h for h in found.headings if h and str(h[0]) in _CONCLUSIONS), ())
    if under and kind in ("TEXT", "CODE"):
        # What stands under the heading of the conclusion is the conclusion, whatever the sentence is called.
        concept = under
    line = Line("OBX")
    line.put(3, concept)
    line.put(4, found.group)
    if kind == "TEXT":
        line.put(2, "TX")
        line.put(5, *((row,) for row in item.text("TextValue").splitlines() if row.strip()))
    elif kind == "CODE":
        line.put(2, "CWE" if not under else "TX")
        value = coded(item.item("ConceptCodeSequence"))
        line.put(5, value if not under else (str(value[1] if len(value) > 1 else value[0]),) if value else ())
    elif kind == "NUM":
        measured = item.item("MeasuredValueSequence")
        line.put(2, "NM")
        line.put(5, measured.text("NumericValue"))
        line.put(6, _unit(measured.item("MeasurementUnitsCodeSequence")))
        if 5 not in line.fields:
            # Why there is none stands beside it (0040,A301), PS3.3 table C.18.1-1.
            line.put(32, coded(item.item("NumericValueQualifierCodeSequence")))
    elif kind in ("DATE", "DATETIME"):
        line.put(2, "DT" if kind == "DATE" else "TS")
        line.put(5, item.text("Date") if kind == "DATE" else date_time(item, "DateTime"))
    else:
        return False
    if 5 not in line.fields:
        words = "The content item has no value; nothing is put in its place."
        issues.append(Issue("sr-no-value", "warning", found.where, words))
        if kind != "NUM":
            return False
    own = _modifiers(item)
    for code, value in own + [one for one in found.common if one[0] not in {code for code, _ in own}]:
        if code in _METHODS:
            line.put(17, value)
        else:
            line.fields[20] = (*line.fields.get(20, ()), value)
    # Table 0085 has no word for a part of a report: what is there may still change.
    line.put(11, "P" if status == "A" else status)
    out = draft.add("OBX", found.where)
    out.fields |= line.fields
    return True


def _unit(item: Item) -> Element:
    """A unit of UCUM; ``1`` is no unit to show."""
    code, scheme = item.text("CodeValue"), item.text("CodingSchemeDesignator")
    if scheme != "UCUM":
        return trimmed(code or item.text("CodeMeaning"), item.text("CodeMeaning") if code else "")
    return () if code in ("1", "") else (code, "", "UCUM")


def replaced(items: Iterable[Item]) -> set[str]:
    """SOP Instance UIDs that reports name as their predecessors (0040,A360): drafts whose place they take."""
    return {
        sop.text("ReferencedSOPInstanceUID")
        for item in items
        for study in item.items("PredecessorDocumentsSequence")
        for series in study.items("ReferencedSeriesSequence")
        for sop in series.items("ReferencedSOPSequence")
    }


def rejected(notes: Iterable[Item]) -> dict[str, str]:
    """SOP Instance UIDs that rejection notes among key object selections take back -> ``error`` or ``unavailable``."""
    out: dict[str, str] = {}
    for note in notes:
        title = note.item("ConceptNameCodeSequence")
        code = title.text("CodeValue")
        if code not in _REJECTIONS or title.text("CodingSchemeDesignator") != "DCM":
            continue
        for _, uid in _chosen(note):
            if code in _WRONG or uid not in out:
                out[uid] = "error" if code in _WRONG else "unavailable"
    return out


def _chosen(item: Item) -> list[tuple[str, str]]:
    """Series and instance of what a key object selection is about (PS3.3 C.17.6.2)."""
    return [
        (series.text("SeriesInstanceUID"), sop.text("ReferencedSOPInstanceUID"))
        for study in item.items("CurrentRequestedProcedureEvidenceSequence")
        for series in study.items("ReferencedSeriesSequence")
        for sop in series.items("ReferencedSOPSequence")
    ]


def report_status(item: Item) -> str:
    """Completion, verification and preliminary flags (0040,A491), (0040,A493), (0040,A496) -> OBR-25; empty when none is there.

    Final is what somebody answers for: complete and verified. A complete report nobody has verified is a preliminary one.
    """
    verified, complete = item.text("VerificationFlag").upper(), item.text("CompletionFlag").upper()
    if item.text("PreliminaryFlag").upper() == "PRELIMINARY":
        return "P"
    if complete == "PARTIAL":
        return "A"
    if verified == "VERIFIED":
        return "F"
    return "P" if verified == "UNVERIFIED" or complete == "COMPLETE" else ""


def ordered(item: Item, title: Element, status: str, draft: Draft) -> Line:
    """OBR of a report: the order's numbers, its title, when it was taken, the kind of examination, how it stands."""
    asked = order.request(item)
    obr = draft.add("OBR", "report")
    number = asked.filler or asked.accession or (item.text("StudyInstanceUID"),)
    obr.put(2, asked.placer)
    obr.put(3, number)
    obr.put(
        4,
        ecg.STUDY
        if item.text("Modality") == "ECG"
        else title
        or next(iter(asked.procedure), ())
        or ("", item.text("SeriesDescription") or item.text("StudyDescription")),
    )
    obr.put(7, moment(item, "StudyDate", "StudyTime"))
    obr.put(24, _MODALITY_GROUP.get(item.text("Modality"), "RAD"))
    obr.put(25, status)
    return obr


def write_encapsulated(item: Item, raw: bytes, draft: Draft, issues: list[Issue]) -> None:
    """A PDF or CDA inside an object: a report whose presented form it is."""
    title = next(iter(codes(item, "ConceptNameCodeSequence")), ()) or trimmed("", item.text("DocumentTitle"))
    status = report_status(item)
    obr = ordered(item, title, status, draft)
    obr.put(22, moment(item, "ContentDate", "ContentTime"))
    data = item.data("EncapsulatedDocument")
    length = item.number("EncapsulatedDocumentLength")
    if length is not None and 0 < length <= len(data):
        data = data[:length]
    if not data:
        issues.append(Issue("no-document", "warning", "(0042,0011)", "The object holds no document."))
        return
    kind, _, subtype = item.text("MIMETypeOfEncapsulatedDocument").partition("/")
    media = (kind, subtype) if subtype else ENCAPSULATED[item.text("SOPClassUID")]
    if media == ("application", "pdf"):
        # One byte is added where the length is odd (PS3.5 section 6.2, OB).
        data = data.rstrip(b"\0")
    obx = draft.add("OBX", "document")
    obx.put(2, "ED")
    obx.put(3, title if any(title) else ("PDF", "report"))
    obx.put(5, ("", *media, "Base64", base64.b64encode(data).decode("ascii")))
    obx.put(11, "P" if status == "A" else status)


def write_key_objects(item: Item, raw: bytes, draft: Draft, issues: list[Issue]) -> None:
    """Key images: a document of its own (TXA) with the object itself, and in words what was chosen and why."""
    title = coded(item.item("ConceptNameCodeSequence"))
    chosen = _chosen(item)
    words = [leaf.item.text("TextValue") for leaf in _leaves(item, (), "") if leaf.item.text("ValueType") == "TEXT"]
    txa = draft.add("TXA", "key-objects")
    txa.put(2, title)
    txa.put(4, moment(item, "StudyDate", "StudyTime"))
    txa.put(6, moment(item, "ContentDate", "ContentTime"))
    txa.put(12, (item.text("SOPInstanceUID"),))
    txa.put(25, "; ".join([*words, f"{len(chosen)} images"]))
    obx = draft.add("OBX", "key-objects")
    obx.put(2, "ED")
    obx.put(3, title or ("KO", "key objects"))
    obx.put(5, ("", "application", "dicom", "Base64", base64.b64encode(raw).decode("ascii")))
    for number, (_, uid) in enumerate(chosen[:_MOST_ITEMS], 1):
        line = draft.add("OBX", f"key-object[{number}]")
        line.put(2, "TX")
        line.put(3, title or ("KO", "key objects"))
        line.put(5, (f"urn:oid:{uid}",))
