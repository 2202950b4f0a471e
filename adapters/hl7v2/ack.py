"""Acknowledgements (HL7 v2.5.1 section 2.9 rules, 2.15.8 MSA, 2.15.5 ERR, tables 0008, 0155, 0357 and 0516)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from adapters.charset import codec_named
from adapters.contract import Unreadable
from adapters.hl7v2.delimiters import STANDARD, Separators, escape
from adapters.hl7v2.reader import opened, read
from adapters.hl7v2.segment import Segment
from conformance.issue import Issue
from mappings.trigger import trigger_name

Code = Literal["AA", "AE", "AR", "CA", "CE", "CR"]
Outcome = Literal["accepted", "error", "rejected"]

_CONDITIONS = ("AL", "NE", "ER", "SU")
_FIRST_LINE = 64 * 1024
"""Bytes looked at for the MSH of a message that cannot be read as a whole."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What an answer takes over from the message it answers. Texts of MSH are raw: delimiters and escapes as the sender wrote them.

    sender, receiver   (MSH-3, MSH-4) and (MSH-5, MSH-6)
    trigger            ``ORU^R01``, parts joined by ``^`` whatever the separators are; empty when unknown
    processing_id      MSH-11
    version            MSH-12.1
    accept_ack, application_ack  MSH-15, MSH-16; empty unless they are in table 0155
    charset            Python codec the message was read with, and so the answer is written with
    declared           MSH-18 as sent
    """

    separators: Separators = STANDARD
    sender: tuple[str, str] = ("", "")
    receiver: tuple[str, str] = ("", "")
    trigger: str = ""
    control_id: str = ""
    processing_id: str = ""
    version: str = ""
    accept_ack: str = ""
    application_ack: str = ""
    charset: str = "utf-8"
    declared: str = ""

    @property
    def enhanced(self) -> bool:
        """True for enhanced mode: MSH-15 or MSH-16 is valued (section 2.9.2)."""
        return bool(self.accept_ack or self.application_ack)


def facts(raw: bytes, fallback_charset: str = "") -> Facts:
    """Facts of any bytes; never raises. Of bytes that are not a message, or cut off, whatever the MSH line still tells."""
    line = raw
    for _ in range(2):
        try:
            start = opened(line, fallback_charset)
        except Unreadable:
            found = re.search(rb"MSH[^A-Za-z0-9\r\n][^\r\n]*", raw[:_FIRST_LINE])
            if found is None:
                break
            line = found[0]
        else:
            return _facts_of(start.header, start.separators, start.charset)
    return Facts()


def _facts_of(header: Segment, separators: Separators, charset: str) -> Facts:
    accept, application = header.first(15).strip().upper(), header.first(16).strip().upper()
    return Facts(
        separators,
        (header.raw(3), header.raw(4)),
        (header.raw(5), header.raw(6)),
        trigger_name(header),
        header.raw(10).strip(),
        header.raw(11),
        header.first(12).strip(),
        accept if accept in _CONDITIONS else "",
        application if application in _CONDITIONS else "",
        charset,
        header.raw(18),
    )


# Original mode (section 2.9.2): one application acknowledgement, always.
_ORIGINAL: dict[Outcome, Code] = {"accepted": "AA", "error": "AE", "rejected": "AR"}

# Enhanced mode, accept acknowledgement by MSH-15 (section 2.9.3.1, table 0155). Not valued means never.
_ACCEPT: dict[tuple[str, Outcome], Code | None] = {
    ("AL", "accepted"): "CA",
    ("AL", "error"): "CE",
    ("AL", "rejected"): "CR",
    ("NE", "accepted"): None,
    ("NE", "error"): None,
    ("NE", "rejected"): None,
    ("ER", "accepted"): None,
    ("ER", "error"): "CE",
    ("ER", "rejected"): "CR",
    ("SU", "accepted"): "CA",
    ("SU", "error"): None,
    ("SU", "rejected"): None,
    ("", "accepted"): None,
    ("", "error"): None,
    ("", "rejected"): None,
}

# Enhanced mode, application acknowledgement by MSH-16 (section 2.9.3.2, table 0155).
_APPLICATION: dict[tuple[str, Outcome], Code | None] = {
    ("AL", "accepted"): "AA",
    ("AL", "error"): "AE",
    ("AL", "rejected"): "AR",
    ("NE", "accepted"): None,
    ("NE", "error"): None,
    ("NE", "rejected"): None,
    ("ER", "accepted"): None,
    ("ER", "error"): "AE",
    ("ER", "rejected"): "AR",
    ("SU", "accepted"): "AA",
    ("SU", "error"): None,
    ("SU", "rejected"): None,
    ("", "accepted"): None,
    ("", "error"): None,
    ("", "rejected"): None,
}


def on_receipt(accept_ack: str, application_ack: str, outcome: Outcome) -> Code | None:
    """MSA-1 to send at once, when the message is safely stored (``accepted``), cannot be stored now (``error``) or never will be
    (``rejected``); None when the sender wants no answer now.

    A refused message never reaches an application. A sender that wants no accept acknowledgement but application acknowledgements
    would wait for ever, so it gets the refusal as application acknowledgement.
    """
    accept, application = (c if c in _CONDITIONS else "" for c in (accept_ack, application_ack))
    if not accept and not application:
        return _ORIGINAL[outcome]
    code = _ACCEPT[accept, outcome]
    if code is None and outcome != "accepted" and accept in ("", "NE"):
        return _APPLICATION[application, outcome]
    return code


def on_completion(accept_ack: str, application_ack: str, outcome: Outcome) -> Code | None:
    """MSA-1 to send later, when the stored message was converted (``accepted``), has a content fault (``error``) or is of a kind the
    application does not take (``rejected``). None in original mode (it was answered on receipt) and when MSH-16 asks for none."""
    if accept_ack not in _CONDITIONS and application_ack not in _CONDITIONS:
        return None
    return _APPLICATION[application_ack if application_ack in _CONDITIONS else "", outcome]


# Table 0357, message error condition codes, by our issue keys. Others are 207, application internal error.
_TEXTS = {
    "0": "Message accepted",
    "100": "Segment sequence error",
    "101": "Required field missing",
    "102": "Data type error",
    "103": "Table value not found",
    "104": "Value too long",
    "200": "Unsupported message type",
    "201": "Unsupported event code",
    "202": "Unsupported processing ID",
    "203": "Unsupported version ID",
    "204": "Unknown key identifier",
    "205": "Duplicate key identifier",
    "206": "Application record locked",
    "207": "Application internal error",
}
_CONDITION_OF = {
    **dict.fromkeys(
        (
            "no-header",
            "empty",
            "binary-noise",
            "several-messages",
            "no-patient",
            "frame-unfinished",
            "obx-without-obr",
            "two-patients",
            "continued-message",
            "no-link",
        ),
        "100",
    ),
    **dict.fromkeys(
        (
            "too-short-header",
            "no-key",
            "no-identifier",
            "missing-field",
            "no-message-type",
            "no-code",
            "no-control-id",
            "no-patient-key",
            "no-merge-key",
        ),
        "101",
    ),
    **dict.fromkeys(
        (
            "bad-delimiters",
            "charset-unknown",
            "bad-date",
            "bad-number",
            "bad-value",
            "future-date",
            "birth-date-conflict",
        ),
        "102",
    ),
    **dict.fromkeys(("unmapped-code", "unknown-code", "unknown-unit", "unknown-status"), "103"),
    **dict.fromkeys(("too-large", "too-long"), "104"),
    **dict.fromkeys(("unsupported-type", "unsupported-message"), "200"),
    **dict.fromkeys(("unsupported-event", "unknown-trigger"), "201"),
    "unsupported-version": "203",
    **dict.fromkeys(("unknown-facility", "foreign-facility", "unknown-sender", "unknown-channel"), "204"),
    "duplicate-key": "205",
}
# Table 0516.
_SEVERITY = {"fatal": "F", "error": "E", "warning": "W", "information": "I"}

_WHERE = re.compile(r"([A-Z][A-Z0-9]{2})(?:\[(\d+)\])?(?:-(\d+)(?:[\[(](\d+)[\])])?(?:\.(\d+)(?:\.(\d+))?)?)?")


def condition(issue: Issue) -> tuple[str, str]:
    """Code and text of HL7 table 0357 for an Issue."""
    code = _CONDITION_OF.get(issue.key, "207")
    return code, _TEXTS[code]


def _version(version: str) -> tuple[int, ...]:
    numbers = re.findall(r"\d+", version)[:3]
    return tuple(int(n) for n in numbers) or (2, 5, 1)


def _err(issue: Issue, version: tuple[int, ...], s: Separators) -> str:
    code, meaning = condition(issue)
    found = _WHERE.fullmatch(issue.where)
    segment, sequence, field, repetition, component, sub = found.groups() if found else ("",) * 6
    if field and not repetition and component:
        repetition = "1"
    if version < (2, 5):
        # ERR-1, ELD: segment ^ sequence ^ field position ^ code identifying the error (CE).
        inner = s.subcomponent if len(s.encoding) > 3 else " "
        error = inner.join((code, meaning, "HL70357"))
        return f"ERR{s.field}{s.component.join((segment or '', sequence or '', field or '', error))}"
    location = s.component.join(p or "" for p in (segment, sequence, field, repetition, component, sub)).rstrip(
        s.component
    )
    cwe = s.component.join((code, meaning, "HL70357"))
    own = s.component.join((escape(issue.key, s), "", "L"))
    fields = ("ERR", "", location, cwe, _SEVERITY[issue.severity], own, "", "", escape(issue.text, s))
    return s.field.join(fields)


def _charset_field(known: Facts) -> str:
    """MSH-18 of the answer: as sent when it names the codec in use, else the name of table 0211 for that codec."""
    first = known.declared.split(known.separators.repetition)[0]
    if not first or codec_named(first) == known.charset:
        return first
    return {"utf-8": "UNICODE UTF-8", "gb18030": "GB 18030-2000", "ascii": "ASCII"}.get(known.charset, "")


def acknowledge(
    known: Facts, code: Code, issues: Sequence[Issue] | Issue | None, control_id: str, now: datetime, text: str = ""
) -> bytes:
    """One acknowledgement message, segments ended by CR, without framing.

    known       facts of the message answered
    code        MSA-1
    issues      what is wrong: one ERR each (severity information is left out); texts only, never Issue.value
    control_id  MSH-10 of the answer, unique among our messages
    now         aware datetime for MSH-7
    text        MSA-3, at most 80 characters; the first issue's text when empty
    """
    problems = [issues] if isinstance(issues, Issue) else list(issues or ())
    s = known.separators
    version = _version(known.version)
    kind = "ACK"
    event = known.trigger.partition("^")[2]
    if event and version >= (2, 2):
        kind = f"ACK{s.component}{event}"
        if version >= (2, 3, 1):
            kind += f"{s.component}ACK"
    stamp = now.strftime("%Y%m%d%H%M%S%z" if version >= (2, 3) else "%Y%m%d%H%M%S")
    head = ["MSH", s.encoding, *known.receiver, *known.sender, stamp, "", kind, escape(control_id, s)]
    head += [known.processing_id or "P", known.version or "2.5.1", "", ""]
    # Enhanced mode: the answer itself is not to be answered.
    head += ["NE", "NE"] if known.enhanced else ["", ""]
    head += ["", _charset_field(known)]
    note = (text or (problems[0].text if problems else ""))[:80]
    lines = [
        s.field.join(head).rstrip(s.field),
        s.field.join(("MSA", code, known.control_id, escape(note, s))).rstrip(s.field),
    ]
    lines += [_err(issue, version, s) for issue in problems if issue.severity != "information"]
    return ("\r".join(lines) + "\r").encode(known.charset, "replace")


@dataclass(frozen=True, slots=True)
class AcknowledgedError:
    """One ERR: location as sent (``OBX^3^5``), code of table 0357, severity of table 0516, text for people."""

    location: str
    code: str
    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """An acknowledgement received: MSA-1, MSA-2 (as written), MSA-3, and its ERRs. ``code`` is empty when none was asked for."""

    code: str
    control_id: str
    text: str = ""
    errors: tuple[AcknowledgedError, ...] = ()

    @property
    def accepted(self) -> bool:
        """True for AA and CA."""
        return self.code in ("AA", "CA")


def parse(raw: bytes) -> Acknowledgement:
    """Read an acknowledgement. Raises Unreadable when the bytes are no message or have no MSA (``no-acknowledgement``)."""
    message = read(raw)
    msa = next((r for r in message.records if r.name == "MSA"), None)
    if msa is None:
        raise Unreadable(
            Issue(
                "no-acknowledgement", "error", "MSA[1]", "The answer has no MSA segment; it is not an acknowledgement."
            )
        )
    errors: list[AcknowledgedError] = []
    for record in message.records:
        if record.name != "ERR":
            continue
        for element in record.get(1):
            parts = [p if isinstance(p, str) else p[0] for p in (*element, "", "", "", "")]
            meaning = element[3] if len(element) > 3 else ""
            words = meaning[1] if isinstance(meaning, tuple) and len(meaning) > 1 else ""
            errors.append(AcknowledgedError("^".join(parts[:3]).rstrip("^"), parts[3], "E", words))
        if record.get(3):
            location = "^".join(record.first(2, n) for n in range(1, 7)).rstrip("^")
            words = record.first(8) or record.first(7) or record.first(3, 2)
            errors.append(AcknowledgedError(location, record.first(3), record.first(4), words))
    return Acknowledgement(msa.first(1).strip().upper(), msa.raw(2).strip(), msa.first(3), tuple(errors))
