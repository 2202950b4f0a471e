"""DICOM ECG waveforms (PS3.3 A.34, C.10.9 Waveform, C.10.10 Waveform Annotation) -> the records of the other ECG formats.

Lead codes: MDC (CID 3001) and SCP-ECG 5.6.3. A sample in microvolts is sample * sensitivity * correction + baseline (C.10.9.1.4).
"""

from __future__ import annotations

import re
import sys
from array import array
from decimal import Decimal, InvalidOperation
from typing import Final

from adapters.dicom import order
from adapters.dicom.dataset import Item
from adapters.dicom.order import coded, date_time, moment
from adapters.dicom.structure import take_apart
from adapters.ecg.recording import Lead, Recording, write
from adapters.segments import Draft
from conformance.issue import Issue

ECG: Final = frozenset(f"1.2.840.10008.5.1.4.1.1.9.1.{n}" for n in (1, 2))
"""12-lead and General ECG Waveform Storage."""
_LEADS: Final = {
    1: "I", 2: "II", 3: "V1", 4: "V2", 5: "V3", 6: "V4", 7: "V5", 8: "V6", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF",
}  # fmt: skip
"""Last number of ``2:1`` (MDC) and ``5.6.3-9-1`` (SCP-ECG)."""
_LEAD_CODE: Final = re.compile(r"(?:2:|5\.6\.3-9-)([0-9]+)")
_MEASURES: Final = {
    "2:15872": "pr", "2:16156": "qrs", "2:16160": "qt", "2:15876": "qtc", "2:15880": "qtc", "2:15892": "qtc", "2:16128": "p-axis",
    "2:16132": "qrs-axis", "2:16136": "t-axis", "2:16016": "hr", "5.13.5-7": "pr", "5.13.5-9": "qrs", "5.13.5-11": "qt",
    "5.10.2.5-5": "qtc", "5.10.3-11": "p-axis", "5.10.3-13": "qrs-axis", "5.10.3-15": "t-axis",
}  # fmt: skip
"""Global measurements (CID 3227, 3228, 3229; SCP-ECG sections 7 and 10); by code, because meanings are written in every language."""
_RATES: Final = frozenset({"heart rate", "ventricular rate", "vent. rate", "心率", "心室率"})
_AXES: Final = frozenset({"p-axis", "qrs-axis", "t-axis"})
_UNITS: Final = {"uV": Decimal(1), "mV": Decimal(1000), "nV": Decimal("0.001"), "V": Decimal(1_000_000)}
_SAMPLES: Final = {("SS", 16): "h", ("US", 16): "H", ("SB", 8): "b", ("UB", 8): "B", ("SL", 32): "i", ("UL", 32): "I"}
_MOST_STATEMENTS: Final = 200


def write_ecg(item: Item, raw: bytes, draft: Draft, issues: list[Issue]) -> None:
    """One ECG as OBR, OBX and TXA with the object itself."""
    found = Recording("dicom")
    asked = order.request(item)
    found.order = asked.placer
    found.number = asked.filler or asked.accession or (item.text("StudyInstanceUID"),)
    found.document = item.text("SOPInstanceUID")
    found.taken = date_time(item, "AcquisitionDateTime") or moment(item, "StudyDate", "StudyTime")
    found.reported = moment(item, "ContentDate", "ContentTime")
    device = (item.text("Manufacturer"), item.text("ManufacturerModelName"))
    found.device = (" ".join(w for w in device if w), item.text("DeviceSerialNumber"))
    found.organization = item.text("InstitutionName")
    found.technician = order.person(item, "OperatorsName")
    # Nobody answers for what the cart says of itself; the report of a doctor comes as another statement.
    found.status = "P"
    little = take_apart(raw).little
    for number, group in enumerate(item.items("WaveformSequence"), 1):
        _group(group, little, f"waveform[{number}]", found)
    _annotations(item, found)
    issues += found.issues
    write(found, raw, draft, ("application", "dicom"))


def _group(group: Item, little: bool, where: str, found: Recording) -> None:
    channels, kind = group.number("NumberOfWaveformChannels") or 0, group.text("WaveformSampleInterpretation")
    frequency = _decimal(group.text("SamplingFrequency"))
    code = _SAMPLES.get((kind, group.number("WaveformBitsAllocated") or 0))
    data = group.data("WaveformData")
    if not channels or not frequency or code is None or not data:
        words = "The waveform has no samples, no sampling rate, or samples of a kind that is not read; it is kept in the object alone."
        found.issues.append(Issue("bad-waveform", "warning", where, words))
        return
    samples = array(code)
    samples.frombytes(data[: len(data) - len(data) % (samples.itemsize * channels)])
    if little != (sys.byteorder == "little"):
        samples.byteswap()
    period = format((1000 / frequency).normalize(), "f")
    count = group.number("NumberOfWaveformSamples") or 0
    beat = "MEDIAN" in group.text("MultiplexGroupLabel").upper() or group.text("WaveformOriginality") == "DERIVED"
    for index, channel in enumerate(group.items("ChannelDefinitionSequence")[:channels]):
        own = samples[index::channels]
        name, scale = _lead(channel), _scale(channel)
        if not name or scale is None or len(own) != count:
            words = "A lead has no name, no scale in volts, or another number of samples than is named; it is kept in the object alone."
            found.issues.append(Issue("bad-waveform", "warning", f"{where}.channel[{index + 1}]", words))
            continue
        found.leads.append(Lead(name, period, *scale, " ".join(map(str, own)), beat))


def _lead(channel: Item) -> str:
    source = coded(channel.item("ChannelSourceSequence"))
    code, meaning = (str(source[n]) if len(source) > n else "" for n in (0, 1))
    known = _LEAD_CODE.fullmatch(code.replace(" ", ""))
    if known is not None and int(known[1]) in _LEADS:
        return _LEADS[int(known[1])]
    words = [w for w in meaning.replace("(", " ").replace(")", " ").split() if w.lower() not in ("lead", "einthoven")]
    return words[0] if len(words) == 1 and len(words[0]) <= 6 and words[0].isalnum() else ""


def _scale(channel: Item) -> tuple[str, str] | None:
    """Microvolts of one step, and of sample 0; None without sensitivity or a unit of volts."""
    step = _decimal(channel.text("ChannelSensitivity"))
    correction = _decimal(channel.text("ChannelSensitivityCorrectionFactor") or "1")
    base = _decimal(channel.text("ChannelBaseline") or "0")
    unit = _UNITS.get(channel.item("ChannelSensitivityUnitsSequence").text("CodeValue"))
    if not step or correction is None or base is None or unit is None:
        return None
    return format((step * correction * unit).normalize(), "f"), format((base * unit).normalize(), "f")


def _decimal(text: str) -> Decimal | None:
    try:
        found = Decimal(text)
    except InvalidOperation:
        return None
    return found if found.is_finite() and -20 < found.adjusted() < 20 else None


def _annotations(item: Item, found: Recording) -> None:
    for note in item.items("WaveformAnnotationSequence"):
        said = note.text("UnformattedTextValue")
        if said and said not in found.statements and len(found.statements) < _MOST_STATEMENTS:
            found.statements.append(said)
        concept, value = note.item("ConceptNameCodeSequence"), note.text("NumericValue")
        meaning = concept.text("CodeMeaning")
        key = _MEASURES.get(concept.text("CodeValue").replace(" ", "")) or ("hr" if meaning.lower() in _RATES else "")
        # A cart writes 0 for an interval it could not measure; an axis may be 0.
        if key and value and (value.strip("0.") or key in _AXES):
            unit = note.item("MeasurementUnitsCodeSequence").text("CodeValue")
            found.measures.setdefault(key, (value, {"{H.B.}/min": "/min", "bpm": "/min"}.get(unit, unit)))
