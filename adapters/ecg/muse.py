"""GE MUSE RestingECG XML -> Recording, by its public layout: demographics, measurements, diagnosis, Base64 samples of 16 bits."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from adapters import xmltree
from adapters.ecg.recording import AXES, MEASURES, Lead, Recording, message, numbered, samples_of
from adapters.segments import Message
from adapters.xmltree import Element, words
from conformance.issue import Issue
from mappings.model import Unread
from mappings.outbound.line import trimmed

ROOT = "RestingECG"
_MEASURES = {
    "VentricularRate": "hr", "PRInterval": "pr", "QRSDuration": "qrs", "QTInterval": "qt", "QTCorrected": "qtc", "PAxis": "p-axis",
    "RAxis": "qrs-axis", "TAxis": "t-axis",
}  # fmt: skip
_STATUS = {"CONFIRMED": "F", "UNCONFIRMED": "P", "EDITED": "P"}
_DATE = re.compile(r"(\d{2})-(\d{2})-(\d{4})")
_SCALE = re.compile(r"\d{1,6}(?:\.\d{1,9})?")
_TIME = re.compile(r"(\d{2}):(\d{2})(?::(\d{2}))?")
_READ = {
    "PatientDemographics": {"PatientID", "PatientLastName", "PatientFirstName", "DateofBirth", "Gender"},
    "TestDemographics": {
        "AcquisitionDate", "AcquisitionTime", "EditDate", "EditTime", "Status", "AcquisitionDevice", "CartNumber", "SiteName",
        "AcquisitionTechLastName", "AcquisitionTechFirstName", "OverreaderLastName", "OverreaderFirstName",
    },
    "Order": {"RequisitionNumber"},
    "RestingECGMeasurements": set(_MEASURES),
}  # fmt: skip
"""Blocks of which single elements are read; what else they hold is listed as unread."""
_WHOLE = ("MuseInfo", "Diagnosis", "OriginalDiagnosis", "Waveform")


def read(raw: bytes, fallback_charset: str = "") -> Message:
    """One file. Raises Unreadable (adapters.xmltree.parse)."""
    tree = xmltree.parse(raw, fallback_charset)
    root = tree.root
    found = Recording("muse")
    person, test = root.find("PatientDemographics"), root.find("TestDemographics")
    found.patient = (_text(person, "PatientID"),) if _text(person, "PatientID") else ()
    found.family, found.given = _text(person, "PatientLastName"), _text(person, "PatientFirstName")
    found.birth = _moment(_text(person, "DateofBirth"), "")
    sex = _text(person, "Gender")
    found.sex = {"MALE": "M", "FEMALE": "F", "UNKNOWN": "U"}.get(sex.upper(), sex)
    found.taken = _moment(_text(test, "AcquisitionDate"), _text(test, "AcquisitionTime"))
    found.reported = _moment(_text(test, "EditDate"), _text(test, "EditTime"))
    found.status = _STATUS.get(_text(test, "Status").upper(), "")
    found.device = (_text(test, "AcquisitionDevice"), _text(test, "CartNumber"))
    found.organization = _text(test, "SiteName")
    found.technician = trimmed("", _text(test, "AcquisitionTechLastName"), _text(test, "AcquisitionTechFirstName"))
    if found.status == "F":
        found.reader = trimmed("", _text(test, "OverreaderLastName"), _text(test, "OverreaderFirstName"))
    order = root.find("Order")
    if _text(order, "RequisitionNumber"):
        found.order = (_text(order, "RequisitionNumber"),)
    found.number = numbered(_text(test, "CartNumber"), _text(person, "PatientID"), found.taken)
    found.document = str(found.number[0]) if found.number else ""
    _measures(root.find("RestingECGMeasurements"), found)
    found.statements = _statements(root.find("Diagnosis"))
    if not found.statements:
        found.statements = _statements(root.find("OriginalDiagnosis"))
    elif root.find("OriginalDiagnosis") is not None:
        found.unread.append(Unread("OriginalDiagnosis", " ".join(_statements(root.find("OriginalDiagnosis")))))
    for waveform in root.findall("Waveform"):
        _waveform(waveform, found)
    found.unread += [
        Unread(f"{block.tag}/{e.tag}", words(e)[:80])
        for block in root
        if block.tag in _READ
        for e in block
        if e.tag not in _READ[block.tag] and words(e)
    ]
    found.unread += [Unread(e.tag, words(e)[:80]) for e in root if e.tag not in (*_READ, *_WHOLE) and words(e)]
    return message(found, raw, tree)


def _text(parent: Element | None, name: str) -> str:
    return words(parent.find(name)) if parent is not None else ""


def _moment(day: str, time: str) -> str:
    """MM-DD-YYYY and HH:MM:SS -> HL7 time; a date of another form is passed on as written, and is then read or said to be wrong."""
    found, clock = _DATE.fullmatch(day), _TIME.fullmatch(time)
    if not found:
        return f"{day} {time}".strip()
    return f"{found[3]}{found[1]}{found[2]}" + (f"{clock[1]}{clock[2]}{clock[3] or '00'}" if clock else "")


def _measures(block: Element | None, found: Recording) -> None:
    for tag, key in _MEASURES.items():
        value = _text(block, tag)
        # The cart writes 0 for an interval it could not measure; an axis may be 0.
        if value and (value.lstrip("0") or key in AXES):
            found.measures[key] = (value, MEASURES[key][2])


def _statements(block: Element | None) -> list[str]:
    """Statements up to the end of each line (ENDSLINE); without that flag a statement goes on with the next."""
    out: list[str] = []
    open_ = ""
    for statement in block.findall("DiagnosisStatement") if block is not None else ():
        open_ = f"{open_} {words(statement.find('StmtText'))}".strip()
        if any(words(f) == "ENDSLINE" for f in statement.findall("StmtFlag")) and open_:
            out.append(open_)
            open_ = ""
    return [*out, open_] if open_ else out


def _waveform(waveform: Element, found: Recording) -> None:
    beat = _text(waveform, "WaveformType").lower() == "median"
    try:
        rate = Decimal(_text(waveform, "SampleBase")) * Decimal(10) ** int(_text(waveform, "SampleExponent") or "0")
        period = format((1000 / rate).normalize(), "f") if rate else ""
    except (InvalidOperation, ValueError, ArithmeticError):
        period = ""
    for lead in waveform.findall("LeadData"):
        name, factor = _text(lead, "LeadID"), _text(lead, "LeadAmplitudeUnitsPerBit")
        samples = samples_of(words(lead.find("WaveFormData")))
        said = _text(lead, "LeadSampleCountTotal")
        sized = _text(lead, "LeadSampleSize") in ("", "2") and (not said or said == str(len(samples.split())))
        scaled = bool(_SCALE.fullmatch(factor)) and _text(lead, "LeadAmplitudeUnits").upper() == "MICROVOLTS"
        if not (name and period and samples and scaled and sized):
            told = "A lead has no samples, not as many as it says, no rate, or no scale in microvolts; it is kept in the file alone."
            found.issues.append(Issue("bad-waveform", "warning", f"lead[{name}]", told))
            continue
        if _text(lead, "LeadOff").upper() == "TRUE":
            found.unread.append(Unread(f"lead[{name}]/LeadOff", "TRUE: the electrode was off"))
        found.leads.append(Lead(name, period, factor, "0", samples, beat))
