"""Philips Sierra ECG (restingecgdata 1.03, 1.04) -> Recording, by its public layout."""

from __future__ import annotations

import base64
import binascii
import re
from decimal import Decimal

from adapters import xmltree
from adapters.ecg import xli
from adapters.ecg.recording import MEASURES, Lead, Recording, message, numbered, samples_of
from adapters.segments import Message
from adapters.xmltree import Element, words
from conformance.issue import Issue
from mappings.model import Unread
from mappings.outbound.line import trimmed

ROOT = "restingecgdata"
_MEASURES = {
    "heartrate": "hr", "print": "pr", "qrsdur": "qrs", "qtint": "qt", "qtcb": "qtc", "pfrontaxis": "p-axis", "qrsfrontaxis": "qrs-axis",
    "tfrontaxis": "t-axis", "meanventrate": "hr", "meanprint": "pr", "meanqrsdur": "qrs", "meanqtint": "qt", "meanqtc": "qtc",
}  # fmt: skip
_LIMBS = ["I", "II", "III", "aVR", "aVL", "aVF"]
_NUMBER = re.compile(r"-?\d{1,9}(?:\.\d{1,9})?", re.ASCII)
_PLAIN = re.compile(r"[\s\d-]+", re.ASCII)
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
        found.technician = (
            trimmed(operator.get("id", ""), words(operator))
            if operator is not None
            else trimmed(words(acquirer.find("operatorid")))
        )
        found.organization = words(acquirer.find("institutionname")) or words(acquirer.find("facilityname"))
    order = words(root.find("orderinfo/ordernumber")) or words(root.find("orderinfo/uniqueorderid"))
    found.order = (order,) if order else ()
    found.number = numbered(found.device[1], str(found.patient[0]) if found.patient else "", found.taken)
    found.document = str(found.number[0]) if found.number else ""
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
    sex = words(person.find("sex"))
    found.sex = {"male": "M", "female": "F", "unknown": "U"}.get(sex.lower(), sex)


def _interpretation(root: Element, found: Recording) -> None:
    """The last interpretation counts; final when the file says that a doctor confirmed it, or says nothing and names one."""
    every = root.findall("interpretations/interpretation")
    last = every[-1] if every else None
    _measures(root, last, found)
    if last is None:
        return
    for earlier in every[:-1]:
        said = " ".join(s for e in earlier.findall("statement") if (s := _statement(e)))
        found.unread += [Unread("interpretation[earlier]", said)] if said else []
    for statement in last.findall("statement"):
        if said := _statement(statement):
            found.statements.append(said)
    if words(last.find("severity")):
        found.statements.append(words(last.find("severity")))
    doctor = last.find("confirmingclinician")
    # What the file says of itself goes before a name that stands in it.
    said = root.get("status", "").strip().lower()
    confirmed = said == "confirmed" or (not said and doctor is not None and bool(words(doctor)))
    found.status = "F" if confirmed else "P"
    found.reported = _moment(doctor if doctor is not None and doctor.get("date") else last)
    if doctor is not None and words(doctor):
        family, _, given = words(doctor).partition(",")
        found.reader = trimmed(doctor.get("id", ""), family.strip(), given.strip())


def _statement(statement: Element) -> str:
    return " ".join(w for w in (words(statement.find("leftstatement")), words(statement.find("rightstatement"))) if w)


def _measures(root: Element, last: Element | None, found: Recording) -> None:
    """1.04: globalmeasurements of the interpretation. 1.03: those of the recording, after interpretationmeasurements."""
    blocks = [last.find("globalmeasurements"), last.find("interpretationmeasurements")] if last is not None else []
    for block in (*blocks, root.find("measurements/globalmeasurements")):
        for element in block if block is not None else ():
            key, value = _MEASURES.get(element.tag), words(element)
            if not key or not _NUMBER.fullmatch(value):
                if value and (key or block is not root.find("measurements/globalmeasurements")):
                    found.unread.append(Unread(f"{block.tag}/{element.tag}", value[:80]))
            elif found.measures.setdefault(key, (value, MEASURES[key][2]))[0] != value:
                found.unread.append(Unread(f"{block.tag}/{element.tag}", value))


def _waveforms(root: Element, found: Recording) -> None:
    rhythm = root.find("waveforms/parsedwaveforms")
    signal = root.find("dataacquisition/signalcharacteristics")
    if rhythm is not None:
        _rhythm(rhythm, signal, found)
    beats = root.find("waveforms/repbeats")
    if beats is None:
        return
    period = _period(beats.get("samplespersec", "") or _of(signal, "samplingrate"))
    factor = beats.get("resolution", "") or _resolution(signal)
    for beat in beats.findall("repbeat"):
        data = beat.find("waveform") if beat.find("waveform") is not None else beat
        text, plain = data.text or "", beats.get("dataencoding", "").lower() == "plain"
        samples = " ".join(text.split()) if plain and _PLAIN.fullmatch(text) else "" if plain else samples_of(text)
        if samples and period and _NUMBER.fullmatch(factor):
            found.leads.append(Lead(beat.get("leadname", ""), period, factor, "0", samples, True))
        else:
            _bad(beat.get("leadname", ""), found)


def _of(signal: Element | None, name: str) -> str:
    return words(signal.find(name)) if signal is not None else ""


def _resolution(signal: Element | None) -> str:
    return _of(signal, "resolution") or _of(signal, "signalresolution")


def _period(rate: str) -> str:
    """Milliseconds between samples at so many a second; empty when that is no usual number."""
    return format((1000 / Decimal(rate)).normalize(), "f") if _NUMBER.fullmatch(rate) and Decimal(rate) > 0 else ""


def _bad(name: str, found: Recording) -> None:
    told = "The samples, their number, rate or scale cannot be read; the waveform is kept in the file alone."
    found.issues.append(Issue("bad-waveform", "warning", f"lead[{name}]", told))


def _labels(rhythm: Element, signal: Element | None) -> list[str]:
    """Names of the leads. 1.03 says them by the kind of acquisition: the twelve of the standard, in order."""
    said: list[str] = rhythm.get("leadlabels", "").split()
    number = rhythm.get("numberofleads", "") if said else _of(signal, "numberchannelsallocated")
    if not said and _of(signal, "acquisitiontype").upper() in ("STD-12", "10-WIRE"):
        said = [*_LIMBS, *(f"V{n}" for n in range(1, 7))]
    return said[: int(number)] if number.isdigit() else said


def _rhythm(rhythm: Element, signal: Element | None, found: Recording) -> None:
    labels = _labels(rhythm, signal)
    rate = rhythm.get("samplespersecond", "") or _of(signal, "samplingrate")
    period = _period(rate)
    factor = rhythm.get("resolution", "") or _resolution(signal)
    # What another offset, or samples of another kind, would mean the layout does not say.
    usual = all(
        (rhythm.get(name, "") or _of(signal, name) or said[0]).lower() in said
        for name, said in (("signaloffset", ("0",)), ("bitspersample", ("16",)), ("signalsigned", ("true", "yes")))
    )
    try:
        every = _samples(rhythm, labels)
    except (xli.XliError, ValueError, binascii.Error):
        every = []
    sound = usual and period and _NUMBER.fullmatch(factor) and labels and len(every) >= len(labels)
    length = rhythm.get("durationperchannel", "")
    # As long as the file says, or nobody knows what the samples are.
    if sound and _NUMBER.fullmatch(length):
        number = Decimal(length) * Decimal(rate) / 1000
        sound = all(abs(len(s) - number) <= 1 for s in every[: len(labels)])
    if not sound:
        _bad("rhythm", found)
        return
    for name, samples in zip(labels, every, strict=False):
        found.leads.append(Lead(name, period, factor, "0", " ".join(map(str, samples))))


def _samples(rhythm: Element, labels: list[str]) -> list[list[int]]:
    """Samples of each lead. Raises ValueError, binascii.Error, XliError."""
    text = rhythm.text or ""
    packing = (rhythm.get("compressmethod", "") or rhythm.get("compression", "")).upper()
    if rhythm.get("compressflag", "").lower() == "false":
        packing = ""
    if packing == "XLI":
        stored = xli.leads(base64.b64decode("".join(text.split()), validate=True))
        return xli.limbs(stored) if labels[:6] == _LIMBS else stored
    if packing not in ("", "NONE", "UNCOMPRESSED"):
        raise ValueError
    if rhythm.get("dataencoding", "").lower() == "plain":
        numbers = [int(n) for n in text.split()]
    else:
        numbers = [int(n) for n in samples_of(text).split()]
    size, left = divmod(len(numbers), len(labels) or 1)
    if left or not labels:
        raise ValueError
    return [numbers[n * size : (n + 1) * size] for n in range(len(labels))]
