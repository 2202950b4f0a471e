"""Philips Sierra ECG (restingecgdata 1.03, 1.04) -> Recording, by its public layout."""

from __future__ import annotations

import base64
import binascii
import re
from decimal import Decimal, InvalidOperation

from adapters import xmltree
from adapters.ecg import xli
from adapters.ecg.recording import Lead, Recording, message, samples_of
from adapters.segments import Message
from adapters.xmltree import Element, words
from conformance.issue import Issue
from mappings.outbound.line import trimmed

ROOT = "restingecgdata"
_MEASURES = {
    "heartrate": "hr", "print": "pr", "qrsdur": "qrs", "qtint": "qt", "qtcb": "qtc", "pfrontaxis": "p-axis", "qrsfrontaxis": "qrs-axis",
    "tfrontaxis": "t-axis",
}  # fmt: skip
_STANDARD = ["I", "II", "III", "AVR", "AVL", "AVF"]
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_CLOCK = re.compile(r"\D")


def read(raw: bytes, fallback_charset: str = "") -> Message:
    """One file. Raises Unreadable (adapters.xmltree.parse)."""
    tree = xmltree.parse(raw, fallback_charset)
    root = tree.root
    found = Recording("philips")
    person = root.find("patient/generalpatientdata")
    _person(person, found)
    taken = root.find("dataacquisition")
    found.taken = _moment(taken)
    machine = root.find("dataacquisition/machine")
    if machine is not None:
        found.device = (words(machine), machine.get("machineid", ""))
    acquirer = root.find("dataacquisition/acquirer")
    if acquirer is not None:
        operator = acquirer.find("operator")
        found.technician = trimmed(operator.get("id", ""), words(operator)) if operator is not None else ()
        found.organization = words(acquirer.find("institutionname")) or words(acquirer.find("facilityname"))
    order = words(root.find("orderinfo/ordernumber")) or words(root.find("orderinfo/uniqueorderid"))
    found.order = (order,) if order else ()
    if found.taken:
        found.number = (f"{found.device[1] or 'ECG'}-{found.taken}",)
        found.document = found.number[0] if isinstance(found.number[0], str) else ""
    _interpretation(root, found)
    _waveforms(root, found)
    return message(found, raw, tree)


def _moment(element: Element | None) -> str:
    return _CLOCK.sub("", f"{element.get('date', '')}{element.get('time', '')}")[:14] if element is not None else ""


def _person(person: Element | None, found: Recording) -> None:
    if person is None:
        return
    number = words(person.find("MRN")) or words(person.find("patientid"))
    found.patient = (number,) if number else ()
    name = person.find("name")
    if name is not None:
        found.family, found.given = (words(name.find(p)).strip("-") for p in ("lastname", "firstname"))
    found.birth = _CLOCK.sub("", words(person.find("age/dateofbirth")) or words(person.find("dateofbirth")))
    found.sex = {"male": "M", "female": "F", "unknown": "U"}.get(words(person.find("sex")).lower(), "")


def _interpretation(root: Element, found: Recording) -> None:
    """The last interpretation counts; it is final when a doctor confirmed it."""
    every = root.findall("interpretations/interpretation")
    if not every:
        return
    last = every[-1]
    block = last.find("globalmeasurements")
    for tag, key in _MEASURES.items():
        value = words(block.find(tag)) if block is not None else ""
        if _NUMBER.fullmatch(value):
            found.measures[key] = (value, "")
    for statement in last.findall("statement"):
        said = " ".join(
            w for w in (words(statement.find("leftstatement")), words(statement.find("rightstatement"))) if w
        )
        if said:
            found.statements.append(said)
    if words(last.find("severity")):
        found.statements.append(words(last.find("severity")))
    doctor = last.find("confirmingclinician")
    confirmed = root.get("status", "").lower() == "confirmed" or (doctor is not None and bool(words(doctor)))
    found.status = "F" if confirmed else "P"
    found.reported = _moment(doctor if doctor is not None and doctor.get("date") else last)
    if doctor is not None and words(doctor):
        family, _, given = words(doctor).partition(",")
        found.reader = trimmed(doctor.get("id", ""), family.strip(), given.strip())


def _waveforms(root: Element, found: Recording) -> None:
    rhythm = root.find("waveforms/parsedwaveforms")
    signal = root.find("dataacquisition/signalcharacteristics")
    if rhythm is not None:
        _rhythm(rhythm, signal, found)
    beats = root.find("waveforms/repbeats")
    if beats is None:
        return
    period = _period(beats.get("samplespersec", "") or _of(signal, "samplingrate"))
    factor = beats.get("resolution", "") or _of(signal, "resolution")
    for beat in beats.findall("repbeat"):
        data = beat.find("waveform") if beat.find("waveform") is not None else beat
        samples = samples_of(data.text or "")
        if samples and period and factor:
            found.leads.append(Lead(beat.get("leadname", ""), period, factor, "0", samples, True))
        else:
            _bad(beat.get("leadname", ""), found)


def _of(signal: Element | None, name: str) -> str:
    return words(signal.find(name)) if signal is not None else ""


def _period(rate: str) -> str:
    try:
        return format((1000 / Decimal(rate)).normalize(), "f")
    except (InvalidOperation, ArithmeticError):
        return ""


def _bad(name: str, found: Recording) -> None:
    told = "The samples, their rate or their scale cannot be read; the waveform is kept in the file alone."
    found.issues.append(Issue("bad-waveform", "warning", f"lead[{name}]", told))


def _rhythm(rhythm: Element, signal: Element | None, found: Recording) -> None:
    labels = rhythm.get("leadlabels", "").split()
    period = _period(rhythm.get("samplespersecond", "") or _of(signal, "samplingrate"))
    factor = rhythm.get("resolution", "") or _of(signal, "resolution")
    try:
        every = _samples(rhythm, labels)
    except (xli.XliError, ValueError, binascii.Error):
        every = []
    if not (period and factor and labels) or len(every) < len(labels):
        _bad("rhythm", found)
        return
    for name, samples in zip(labels, every, strict=False):
        found.leads.append(Lead(name, period, factor, "0", " ".join(map(str, samples))))


def _samples(rhythm: Element, labels: list[str]) -> list[list[int]]:
    """Samples of each lead. Raises ValueError, binascii.Error, XliError."""
    text = rhythm.text or ""
    if rhythm.get("dataencoding", "").lower() == "plain":
        numbers = [int(n) for n in text.split()]
    elif rhythm.get("compression", "").upper() == "XLI":
        stored = xli.leads(base64.b64decode("".join(text.split()), validate=True))
        return xli.limbs(stored) if [n.upper() for n in labels[:6]] == _STANDARD else stored
    else:
        numbers = [int(n) for n in samples_of(text).split()]
    size = len(numbers) // len(labels) if labels else 0
    return [numbers[n * size : (n + 1) * size] for n in range(len(labels))] if size else []
