"""One ECG as values, and as the segments of a report: measurements, statements, and each lead as sampled data without loss.

Codes: LOINC for the study and the global measurements, MDC (ISO/IEEE 11073-10101) for leads, as HL7 aECG names them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from adapters.segments import Draft, Message
from adapters.xmltree import Tree
from conformance.issue import Issue
from mappings.model import Unread
from mappings.outbound.line import trimmed
from mappings.source import Component
from mappings.source import Element as Field

MDC = "2.16.840.1.113883.6.24"
MEASURES = {
    "hr": ("8867-4", "Heart rate", "/min"),
    "pr": ("8625-6", "PR interval", "ms"),
    "qrs": ("8633-0", "QRS duration", "ms"),
    "qt": ("8634-8", "QT interval", "ms"),
    "qtc": ("8636-3", "QTc interval", "ms"),
    "p-axis": ("8626-4", "P wave axis", "deg"),
    "qrs-axis": ("8632-2", "QRS axis", "deg"),
    "t-axis": ("8638-9", "T wave axis", "deg"),
}
"""Global measurement -> LOINC code, name, unit."""
AXES = frozenset({"p-axis", "qrs-axis", "t-axis"})
STUDY = ("11524-6", "常规十二导联心电图", "LN")
_NO_MEASURE = re.compile(r"-.*|0+(?:\.0*)?")
_POSITIVE = re.compile(r"(?=.*[1-9])\d{1,12}(?:\.\d{1,60})?")
_STATEMENT = ("18844-1", "心电图诊断", "LN")


@dataclass(slots=True)
class Lead:
    """One lead. period: milliseconds between samples; microvolts = sample * factor + origin; samples: as written.

    beat   the series is an average beat, not the rhythm
    start  time of the first sample where the file says it for this lead
    """

    name: str
    period: str
    factor: str
    origin: str
    samples: str
    beat: bool = False
    start: str = ""


@dataclass(slots=True)
class Recording:
    """What an ECG file says.

    status  of the report (OBR-25): P machine statements alone, F read over and signed; empty when the file does not tell
    person  id as CX, family, given, birth, sex
    """

    kind: str
    patient: Field = ()
    family: str = ""
    given: str = ""
    birth: str = ""
    sex: str = ""
    number: Field = ()
    order: Field = ()
    document: str = ""
    taken: str = ""
    until: str = ""
    reported: str = ""
    status: str = ""
    device: tuple[str, str] = ("", "")
    technician: tuple[Component, ...] = ()
    reader: tuple[Component, ...] = ()
    organization: str = ""
    comment: list[str] = field(default_factory=list)
    measures: dict[str, tuple[str, str]] = field(default_factory=dict)
    statements: list[str] = field(default_factory=list)
    leads: list[Lead] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)


def message(found: Recording, raw: bytes, tree: Tree, more: Sequence[Recording] = ()) -> Message:
    """The recording, and those recorded in the same file, as a Source: MSH, PID, OBR, OBX, TXA with the file itself."""
    draft = Draft()
    digest = hashlib.sha256(raw).hexdigest()[:32]
    msh = draft.add("MSH")
    msh.put(4, found.organization)
    msh.put(7, found.reported or found.taken)
    msh.put(9, ("RPT", "ECG"))
    # The same recording is sent again when it was read over: the bytes tell the two apart.
    msh.put(10, f"{found.document or 'ECG'}/{digest[:12]}")
    pid = draft.add("PID", "patient")
    pid.put(3, found.patient)
    pid.put(5, trimmed(found.family, found.given))
    pid.put(7, found.birth)
    pid.put(8, found.sex)
    for one in (found, *more):
        _measured(one, found.issues)
        _scaled(one, found.issues)
        _report(one, draft)
    _file(found, raw, draft, ("application", "xml"))
    return Message(found.kind, draft.records(), tree.charset, [*tree.issues, *found.issues], found.unread)


def write(found: Recording, raw: bytes, draft: Draft, media: tuple[str, str]) -> None:
    """The report of a recording: OBR, OBX, and TXA with the file itself, whose media type is ``media``."""
    _measured(found, found.issues)
    _scaled(found, found.issues)
    _report(found, draft)
    _file(found, raw, draft, media)


def _measured(found: Recording, issues: list[Issue]) -> None:
    """Leaves out rates and intervals of 0 and below, the marks carts write for what they could not measure. An axis may be any."""
    for key in [k for k, (value, _) in found.measures.items() if k not in AXES and _NO_MEASURE.fullmatch(value)]:
        words = "A rate or interval of 0 or below is no measurement, but a mark for none; it is left out and kept in the file."
        issues.append(Issue("no-measurement", "warning", f"measurement[{key}]", words, found.measures.pop(key)[0]))


def _scaled(found: Recording, issues: list[Issue]) -> None:
    """Leaves out leads whose steps are nothing or whose samples have no time between them: they would be shown as a flat line."""
    for lead in [one for one in found.leads if not _POSITIVE.fullmatch(one.period) or not one.factor.strip("-0.")]:
        words = "The scale of the samples is 0, or their rate is no rate; the waveform is kept in the file alone."
        issues.append(Issue("bad-waveform", "warning", f"lead[{lead.name}]", words))
        found.leads.remove(lead)


def _report(found: Recording, draft: Draft) -> None:
    obr = draft.add("OBR", found.kind)
    obr.put(2, found.order)
    obr.put(3, found.number or _by_samples(found))
    obr.put(4, STUDY)
    obr.put(7, found.taken)
    obr.put(8, found.until if found.until != found.taken else "")
    obr.put(22, found.reported)
    obr.put(24, "EC")
    obr.put(25, found.status)
    if found.reader:
        obr.put(32, (tuple(str(c) for c in found.reader[:3]),))
    if found.technician:
        obr.put(34, (tuple(str(c) for c in found.technician[:3]),))
    for text in found.comment:
        draft.add("NTE", found.kind).put(3, (text,))
    for key, (value, unit) in found.measures.items():
        code, name, _ = MEASURES[key]
        obx = draft.add("OBX", f"measurement[{key}]")
        obx.put(2, "NM")
        obx.put(3, (code, name, "LN"))
        obx.put(5, (value,))
        if unit:
            obx.put(6, (unit, "", "UCUM"))
        _common(obx.fields, found)
    for number, statement in enumerate(found.statements, 1):
        obx = draft.add("OBX", f"statement[{number}]")
        obx.put(2, "TX")
        obx.put(3, _STATEMENT)
        obx.put(5, (statement,))
        _common(obx.fields, found)
    for lead in found.leads:
        obx = draft.add("OBX", f"lead[{lead.name}{' beat' if lead.beat else ''}]")
        obx.put(2, "SD")
        obx.put(3, (f"MDC_ECG_LEAD_{lead.name.upper()}", f"Lead {lead.name}", MDC))
        obx.put(4, "REPRESENTATIVE_BEAT" if lead.beat else "")
        obx.put(5, (lead.origin, "uV", lead.period, lead.factor, lead.samples))
        _common(obx.fields, found)
        if lead.start:
            obx.put(14, lead.start)


def _file(found: Recording, raw: bytes, draft: Draft, media: tuple[str, str]) -> None:
    digest = hashlib.sha256(raw).hexdigest()[:32]
    txa = draft.add("TXA", found.kind)
    txa.put(2, STUDY)
    txa.put(6, found.reported or found.taken)
    txa.put(12, found.number or found.order or (digest,))
    txa.put(17, "LA" if found.status in ("F", "C") else "")
    data = base64.b64encode(raw).decode("ascii")
    draft.add("OBX", found.kind).fields |= {
        2: (("ED",),),
        3: (("ECG", "ECG"),),
        5: (("", *media, "Base64", data),),
    }


def _common(fields: dict[int, tuple[Field, ...]], found: Recording) -> None:
    for number, value in ((11, found.status), (14, found.taken), (23, found.organization)):
        if value:
            fields[number] = ((value,),)
    if any(found.device):
        fields[18] = ((found.device[0], "", found.device[1]) if found.device[1] else (found.device[0],),)


def _by_samples(found: Recording) -> Field:
    """Number of a recording that has none: its samples, which stay the same when it is read over. None without samples."""
    digest = hashlib.sha256("".join(f"{lead.name}:{lead.samples};" for lead in found.leads).encode()).hexdigest()
    return (f"ECG-{digest[:24]}",) if found.leads else ()


def numbered(cart: str, patient: str, taken: str) -> Field:
    """Number of a recording whose file has none: the cart and the second it was taken, also after it was read over; without a cart
    the patient instead, since two carts may record in one second. None without a time: then its samples tell."""
    clock = re.sub(r"\D", "", taken)
    return (f"{cart or patient or 'ECG'}-{clock}",) if len(clock) >= 12 else ()


def samples_of(text: str) -> str:
    """Base64 of little-endian 16-bit integers -> the integers, blank-separated; empty when it is none."""
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        return ""
    if len(data) % 2:
        return ""
    numbers = array("h")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return " ".join(map(str, numbers))
