"""HL7 aECG (Annotated ECG, HL7 v3, R1; FDA XML data format): series, sequences, annotation sets -> Recording."""

from __future__ import annotations

from dataclasses import replace
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
_SECONDS = {"s": Decimal(1000), "ms": Decimal(1), "us": Decimal("0.001")}
_BEATS = ("REPRESENTATIVE_BEAT", "MEDIAN_BEAT", "AVERAGE_BEAT")
_UNITS = {"uV": Decimal(1), "mV": Decimal(1000), "nV": Decimal("0.001"), "V": Decimal(1_000_000)}


def read(raw: bytes, fallback_charset: str = "") -> Message:
    """One document: a report for each series. Raises Unreadable (adapters.xmltree.parse; ``bad-waveform``)."""
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
    found.comment = [t for e in root.iter("subjectFindingComment") if (t := words(e))]
    for site in ("testingSite", "trialSite"):
        found.organization = found.organization or words(root.find(f".//{site}/location/name"))
    every = list(root.iter("series"))
    more = [_further(found, series, number) for number, series in enumerate(every[1:], 2)]
    for recording, series in zip([found, *more], every, strict=False):
        _series(series, recording, len(every) > 1)
    for recording in more:
        found.issues += recording.issues
        found.unread += recording.unread
    found.unread += _settings(root)
    return message(found, raw, tree, more)


def _further(first: Recording, series: Element, number: int) -> Recording:
    """The recording of a series after the first: its own number and times; patient and place are those of the document."""
    key = _id(series.find("id")) or (f"{first.document}/{number}" if first.document else "")
    return replace(first, number=(key,) if key else (), taken="", until="", comment=[], measures={}, statements=[], leads=[],
                   issues=[], unread=[])  # fmt: skip


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


def _series(series: Element, found: Recording, own_times: bool) -> None:
    """A series with what was derived from it. ``own_times``: the document has more than one, so each has its own times."""
    start, end = _times(series.find("effectiveTime"))
    if own_times and start:
        found.taken, found.until = start, end
    found.taken, found.until = found.taken or start, found.until or end
    _people(series, found)
    derived = series.findall("derivation/derivedSeries")
    for part in (series, *derived):
        code = part.find("code")
        beat = part is not series and (code is None or code.get("code", "") in ("", *_BEATS))
        for group in part.findall("component/sequenceSet"):
            _group(group, beat, found)
    sets = [(part is not series, s) for part in (series, *derived) for s in part.findall("subjectOf/annotationSet")]
    _annotations(sets, found)


def _group(group: Element, beat: bool, found: Recording) -> None:
    """Sequences that were sampled together: one says the times, the others are leads."""
    period = start = ""
    for sequence in group.findall("component/sequence"):
        code, value = sequence.find("code"), sequence.find("value")
        name = code.get("code", "") if code is not None else ""
        if name.startswith("TIME_") and value is not None:
            period = _period(value)
            head = value.find("head")
            said = head.get("value", "") if head is not None else ""
            if name == "TIME_ABSOLUTE":
                start = said
            elif said.strip("0."):
                found.unread.append(Unread("sequence[TIME_RELATIVE]/head", f"{said} {head.get('unit', '')}".strip()))
    for sequence in group.findall("component/sequence"):
        code, value = sequence.find("code"), sequence.find("value")
        name = code.get("code", "") if code is not None else ""
        if name.startswith("MDC_ECG_LEAD_"):
            lead = _lead(name.removeprefix("MDC_ECG_LEAD_"), value, period, found)
            found.leads += [replace(lead, beat=beat, start="" if beat else start)] if lead is not None else []
        elif not name.startswith("TIME_"):
            found.unread.append(Unread(f"sequence[{name}]", "a sequence that is no lead of an ECG"))


def _period(value: Element) -> str:
    """Milliseconds between samples; empty when the increment, or its unit, is not said."""
    step = value.find("increment")
    number = _decimal(step.get("value", "")) if step is not None else None
    factor = _SECONDS.get(step.get("unit", "")) if step is not None else None
    if number is None or factor is None or number <= 0:
        return ""
    return format((number * factor).normalize(), "f")


def _decimal(written: str) -> Decimal | None:
    """A number of usual size; None for any other text."""
    try:
        number = Decimal(written)
    except InvalidOperation:
        return None
    return number if number.is_finite() and -12 <= number.adjusted() <= 12 else None


def _lead(name: str, value: Element | None, period: str, found: Recording) -> Lead | None:
    origin, scale, digits = (value.find(tag) if value is not None else None for tag in ("origin", "scale", "digits"))
    samples = " ".join((digits.text or "").split()) if digits is not None else ""
    unit = scale.get("unit", "") if scale is not None else ""
    if not samples or not period or unit not in _UNITS or scale is None or not scale.get("value"):
        _bad(name, "has no samples, no sampling interval with its unit, or no scale in volts", found)
        return None
    factor = _decimal(scale.get("value", ""))
    start = _decimal(origin.get("value") or "0") if origin is not None else Decimal(0)
    if factor is None or start is None:
        told = "The scale or origin of a lead is no number; send the file again."
        raise Unreadable(Issue("bad-waveform", "error", f"lead[{name}]", told))
    base = _UNITS.get(origin.get("unit", "") if origin is not None else "")
    if start and base is None:
        _bad(name, "has an origin without a unit in volts", found)
        return None
    if not all(s.lstrip("+-").replace(".", "", 1).isdigit() for s in samples.split()):
        raise Unreadable(
            Issue(
                "bad-waveform", "error", f"lead[{name}]", "The samples of a lead are not numbers; send the file again."
            )
        )
    zero = start * (base or Decimal(1))
    factor *= _UNITS[unit]
    return Lead(name, period, format(factor.normalize(), "f"), format(zero.normalize(), "f"), samples)


def _bad(name: str, fault: str, found: Recording) -> None:
    told = f"A lead {fault}; it is kept in the file alone."
    found.issues.append(Issue("bad-waveform", "warning", f"lead[{name}]", told))


def _annotations(sets: list[tuple[bool, Element]], found: Recording) -> None:
    """What a person annotated counts before what the device did, which is then listed as unread where it differs."""
    by_people = [s for _, s in sets if s.find("author//assignedPerson/name") is not None]
    if by_people:
        found.status = "F"
        found.reader = trimmed("", words(by_people[-1].find("author//assignedPerson/name")))
        found.reported = max(_times(s.find("activityTime"))[0] for s in by_people)
    for person in (True, False):
        said: list[str] = []
        for derived, one in sets:
            if (one in by_people) == person:
                for annotation in one.findall("component/annotation"):
                    _annotation(annotation, derived, said, found)
        if person or not found.statements:
            found.statements += said
        else:
            found.unread += [Unread("annotation[device]", s) for s in said if s not in found.statements]


def _annotation(annotation: Element, derived: bool, said: list[str], found: Recording) -> None:
    """Measurements of the average beat or of the whole series; those of single beats stay in the file, listed as unread."""
    code = annotation.find("code")
    name = code.get("code", "") if code is not None else ""
    if name == "MDC_ECG_BEAT" and not derived:
        _unread("MDC_ECG_BEAT", "measurements of single beats", found)
        return
    for inner in annotation.iter("annotation"):
        kind, value = inner.find("code"), inner.find("value")
        name = kind.get("code", "") if kind is not None else ""
        if not name or value is None:
            continue
        key = _MEASURES.get(name)
        if key and value.get("value"):
            unit = value.get("unit", "")
            measured = value.get("value", ""), {"bpm": "/min"}.get(unit, unit)
            if found.measures.setdefault(key, measured) != measured:
                _unread(name, " ".join(measured), found)
        elif name.startswith(_STATEMENTS):
            text = words(value) or value.get("displayName", "") or value.get("code", "")
            if text and text not in said:
                said.append(text)
        elif not name.startswith(("MDC_ECG_WAVC", "MDC_ECG_BEAT")):
            text = words(value) or " ".join(value.get(a, "") for a in ("value", "unit", "code") if value.get(a))
            if text:
                _unread(name, text, found)


def _unread(name: str, said: str, found: Recording) -> None:
    one = Unread(f"annotation[{name}]", said)
    if one not in found.unread:
        found.unread.append(one)


def _settings(root: Element) -> list[Unread]:
    """Filters and other settings of the recorder, and what else was noted beside the waveforms: each kind once."""
    out: dict[Unread, None] = {}
    for inner in root.iter("controlVariable", "relatedObservation"):
        code, value = inner.find("code"), inner.find("value")
        if code is not None and value is not None:
            said = words(value) or " ".join(value.get(a, "") for a in ("value", "unit", "code") if value.get(a))
            out[Unread(f"controlVariable[{code.get('displayName') or code.get('code', '')}]", said)] = None
    return [u for u in out if u.value]


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
