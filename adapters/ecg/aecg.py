"""HL7 aECG (Annotated ECG, HL7 v3, R1; FDA XML data format): series, sequences, annotation sets -> Recording."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from adapters import xmltree
from adapters.contract import Unreadable
from adapters.ecg.recording import Lead, Recording, message
from adapters.segments import Message, authority_type
from adapters.xmltree import Element, words
from conformance.issue import Issue
from mappings.model import Unread
from mappings.outbound.line import trimmed

ROOT = "AnnotatedECG"
_MEASURES = {
    "MDC_ECG_HEART_RATE": "hr", "MDC_ECG_TIME_PD_PR": "pr", "MDC_ECG_TIME_PD_QRS": "qrs", "MDC_ECG_TIME_PD_QRSD": "qrs",
    "MDC_ECG_TIME_PD_QT": "qt",
    "MDC_ECG_TIME_PD_QTc": "qtc", "MDC_ECG_TIME_PD_QTC": "qtc", "MDC_ECG_ANGLE_P_FRONT": "p-axis",
    "MDC_ECG_ANGLE_QRS_FRONT": "qrs-axis",
    "MDC_ECG_ANGLE_T_FRONT": "t-axis",
}  # fmt: skip
_STATEMENTS = ("MDC_ECG_INTERPRETATION", "MDC_ECG_RHY")
_UNITS = {"uV": Decimal(1), "mV": Decimal(1000), "nV": Decimal("0.001"), "V": Decimal(1_000_000)}


def read(raw: bytes, fallback_charset: str = "") -> Message:
    """One document. Raises Unreadable (adapters.xmltree.parse; ``not-a-document``)."""
    tree = xmltree.parse(raw, fallback_charset)
    root = tree.root
    found = Recording("aecg")
    own = root.find("id")
    found.number = trimmed(
        _id(own),
        "",
        *(
            ("", "")
            if own is None or not own.get("extension")
            else (own.get("root", ""), authority_type(own.get("root", "")))
        ),
    )
    found.document = _id(own)
    found.taken, found.until = _times(root.find("effectiveTime"))
    subject = root.find(".//trialSubject")
    if subject is not None:
        _subject(subject, found)
    for series in root.iter("series", "derivedSeries"):
        _series(series, found)
    first = root.find(".//series")
    if first is not None:
        start, end = _times(first.find("effectiveTime"))
        found.taken, found.until = found.taken or start, found.until or end
        _people(first, found)
    found.comment = [t for e in root.iter("subjectFindingComment") if (t := words(e))]
    for site in ("testingSite", "trialSite"):
        found.organization = found.organization or words(root.find(f".//{site}/location/name"))
    return message(found, raw, tree)


def _id(element: Element | None) -> str:
    return (element.get("extension") or element.get("root") or "").strip() if element is not None else ""


def _times(element: Element | None) -> tuple[str, str]:
    if element is None:
        return "", ""
    value = {
        side: (e.get("value") or "") for side in ("low", "center", "high") if (e := element.find(side)) is not None
    }
    return element.get("value") or value.get("center") or value.get("low") or value.get("high", ""), value.get(
        "high", ""
    )


def _subject(subject: Element, found: Recording) -> None:
    own = subject.find("id")
    if own is not None and own.get("extension"):
        found.patient = trimmed(own.get("extension", ""), "", "", ("", own.get("root", ""), "ISO"))
    elif own is not None and own.get("root"):
        found.patient = (own.get("root", ""),)
    person = subject.find("subjectDemographicPerson")
    if person is None:
        return
    name = person.find("name")
    if name is not None and len(name):
        found.family, found.given = words(name.find("family")), words(name.find("given"))
    found.family = found.family or words(name)
    birth, sex = person.find("birthTime"), person.find("administrativeGenderCode")
    found.birth = birth.get("value", "") if birth is not None else ""
    found.sex = {"UN": "O"}.get(sex.get("code", ""), sex.get("code", "")) if sex is not None else ""


def _series(series: Element, found: Recording) -> None:
    beat = series.tag == "derivedSeries"
    for group in series.findall("component/sequenceSet"):
        period = ""
        for sequence in group.findall("component/sequence"):
            code, value = sequence.find("code"), sequence.find("value")
            name = code.get("code", "") if code is not None else ""
            if value is None:
                continue
            if name.startswith("TIME_"):
                period = _period(value)
            elif name.startswith("MDC_ECG_LEAD_"):
                _lead(name.removeprefix("MDC_ECG_LEAD_"), value, period, beat, found)
    for annotation in series.iterfind("subjectOf/annotationSet/component/annotation"):
        _annotation(annotation, beat, found)
    if any(p.find(".//assignedPerson/name") is not None for p in series.iterfind("subjectOf/annotationSet/author")):
        found.status = "F"
        who = series.find("subjectOf/annotationSet/author//assignedPerson/name")
        found.reader = trimmed("", words(who))


def _period(value: Element) -> str:
    step = value.find("increment")
    if step is None:
        return ""
    try:
        number = Decimal(step.get("value", ""))
    except InvalidOperation:
        return ""
    factor = {"s": Decimal(1000), "ms": Decimal(1), "us": Decimal("0.001")}.get(step.get("unit", "s"))
    return format((number * factor).normalize(), "f") if factor is not None else ""


def _lead(name: str, value: Element, period: str, beat: bool, found: Recording) -> None:
    origin, scale, digits = value.find("origin"), value.find("scale"), value.find("digits")
    samples = " ".join((digits.text or "").split()) if digits is not None else ""
    unit = scale.get("unit", "") if scale is not None else ""
    if not samples or not period or unit not in _UNITS or scale is None:
        told = "A lead has no samples, no sampling interval, or no scale in volts; it is kept in the file alone."
        found.issues.append(Issue("bad-waveform", "warning", f"lead[{name}]", told))
        return
    try:
        factor = Decimal(scale.get("value", "0")) * _UNITS[unit]
        start = origin.get("value") or "0" if origin is not None else "0"
        zero = Decimal(start) * _UNITS.get(origin.get("unit", unit) if origin is not None else unit, Decimal(1))
    except InvalidOperation:
        told = "The scale or origin of a lead is no number; send the file again."
        raise Unreadable(Issue("bad-waveform", "error", f"lead[{name}]", told)) from None
    if not all(s.lstrip("+-").replace(".", "", 1).isdigit() for s in samples.split()):
        raise Unreadable(
            Issue(
                "bad-waveform", "error", f"lead[{name}]", "The samples of a lead are not numbers; send the file again."
            )
        )
    found.leads.append(
        Lead(name, period, format(factor.normalize(), "f"), format(zero.normalize(), "f"), samples, beat)
    )


def _annotation(annotation: Element, beat: bool, found: Recording) -> None:
    """Measurements of the average beat or of the whole series; those of single beats stay in the file, listed as unread."""
    code, value = annotation.find("code"), annotation.find("value")
    name = code.get("code", "") if code is not None else ""
    if name == "MDC_ECG_BEAT" and not beat:
        if not any(u.where == "annotation[MDC_ECG_BEAT]" for u in found.unread):
            found.unread.append(Unread("annotation[MDC_ECG_BEAT]", "measurements of single beats"))
        return
    for inner in annotation.iter("annotation"):
        kind, measured = inner.find("code"), inner.find("value")
        key = _MEASURES.get(kind.get("code", "")) if kind is not None else None
        if key and measured is not None and measured.get("value"):
            found.measures.setdefault(
                key,
                (measured.get("value", ""), {"bpm": "/min"}.get(measured.get("unit", ""), measured.get("unit", ""))),
            )
        elif kind is not None and kind.get("code", "").startswith(_STATEMENTS) and measured is not None:
            said = words(measured) or measured.get("displayName", "") or measured.get("code", "")
            if said and said not in found.statements:
                found.statements.append(said)
    if (
        value is not None
        and name.startswith("MDC_ECG_INTERPRETATION")
        and words(value)
        and words(value) not in found.statements
    ):
        found.statements.append(words(value))


def _people(series: Element, found: Recording) -> None:
    device = series.find("author/seriesAuthor/manufacturedSeriesDevice")
    if device is not None:
        maker = words(series.find("author/seriesAuthor/manufacturerOrganization/name"))
        found.device = (
            " ".join(
                w for w in (maker, words(device.find("manufacturerModelName")), words(device.find("softwareName"))) if w
            ),
            "",
        )
    technician = series.find("secondaryPerformer/seriesPerformer")
    if technician is not None:
        found.technician = trimmed(_id(technician.find("id")), words(technician.find("assignedPerson/name")))
    # Statements of the machine alone are a first reading; a doctor's over-reading makes the report final.
    found.status = found.status or "P"
