"""HL7 v2 messages in the delimiter form -> Source (HL7 v2.5.1 chapter 2.5 to 2.7 and 2.10, ER7 encoding).

Bytes are decoded before anything is split, because GB18030 has trail bytes that look like delimiters. Whatever can be read is read;
what had to be assumed is an Issue of the Message; only bytes without a usable MSH raise Unreadable. Fields are split when asked for.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from adapters.charset import codec_named, decode, text_of, wide_codec
from adapters.contract import Unreadable
from adapters.hl7v2.continuation import joined
from adapters.hl7v2.delimiters import ABSENT, Separators, escapes
from adapters.hl7v2.segment import HEADER, Rules, Segment
from conformance.issue import Issue

_BLANK = b" \t\r\n\0\x0b\x0c\x1a\x1c"
_BOM = b"\xef\xbb\xbf"
_CONTROLS = bytes(b for b in range(32) if b not in b"\t\r\n")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")

# A header at the start of a line; marks of stripped framing ("[SOM]", "<VT>") and a byte order mark may stand before it.
_MARK = rb"(?:[\[<][A-Za-z0-9]{2,5}[\]>])?[ \t]*(?:\xef\xbb\xbf)?"
_HEADER = re.compile(rb"(?:\A|[\r\n\x0b\x1c\0])[ \t]*" + _MARK + rb"(MSH)(?=[^A-Za-z0-9\r\n])", re.IGNORECASE)
_ENVELOPE = re.compile(rb"(?:\A|[\r\n])[ \t]*" + _MARK + rb"(?:FHS|BHS)[^A-Za-z0-9]")
_PIECE = re.compile(
    rb"[\r\n\x0b\x1c\0](?=[ \t\[<\xefMmFB])[ \t]{0,8}(?:[\[<][A-Za-z0-9]{2,5}[\]>])?[ \t]{0,8}(?:\xef\xbb\xbf)?"
    rb"([Mm][Ss][Hh]|FHS|BHS|BTS|FTS)(?=[^A-Za-z0-9]|\Z)"
)
_PIECE_LENGTH = 32
"""No match of _PIECE is longer: so much of a chunk is looked at again with the next one."""
_CHUNK = 256 * 1024
_STRAY = 64 * 1024
_LONGEST = 16 * 1024 * 1024
"""Characters of one segment: as much as the default of a channel (max_bytes)."""
_NEXT = re.compile(r"\r\s*MSH(?=[^A-Za-z0-9\r])", re.IGNORECASE)
_FRAME_END = re.compile(r"\r?[\[<](?:EOM|EOB|EB|FS|0x1C|1C)[\]>](?:[\[<](?:CR|0x0D|0D)[\]>])?\s*\Z", re.IGNORECASE)
_SEGMENT = re.compile(r"[A-Za-z][A-Za-z0-9]{2}", re.ASCII)

_BATCH = frozenset(("FHS", "BHS", "BTS", "FTS"))
# Segments that may stand as a bare name. Any other line of three characters is text: "END" in a note is not a segment.
_NAMES = (
    "AL1 DG1 EVN GT1 IAM IN1 IN2 IN3 MSA MRG NK1 NTE OBR OBX ORC PD1 PID PR1 PV1 PV2 ROL SAC SPM TQ1 TXA "
    "MSH ERR FT1 RXA RXE RXO RXR SFT ZDS ZPI"
)
_OFTEN = frozenset(_NAMES.split())
_TEXTS = frozenset(("OBX", "NTE", "TXA", "OBR"))
"""Segments with long text: a line after them that looks like a segment with a misspelt id is rather their text."""
_ODD_ID = re.compile(r"[A-Z][A-Z0-9]{0,7}\Z")
_BARE = (_OFTEN | _BATCH | {"DSC"}) - {"MSH"}


class Message:
    """One message, a ``Source``.

    records     the segments in message order, MSH first
    separators  MSH-1 and MSH-2
    charset     Python codec the bytes were read with
    issues      everything that had to be assumed while reading; complete when ``read`` returns
    """

    __slots__ = ("charset", "issues", "records", "separators")

    def __init__(self, records: list[Segment], separators: Separators, charset: str, issues: list[Issue]) -> None:
        self.records = records
        self.separators = separators
        self.charset = charset
        self.issues = issues

    @property
    def format(self) -> str:
        """``hl7v2``"""
        return "hl7v2"

    @property
    def header(self) -> Segment:
        """The MSH segment."""
        return self.records[0]


class Opened:
    """A decoded message not yet split: one text, segments ended by ``\\r``, without framing and control characters."""

    __slots__ = ("charset", "header", "issues", "rules", "separators", "text")

    def __init__(self, message: str, separators: Separators, charset: str, issues: list[Issue]) -> None:
        self.text = message
        self.separators = separators
        self.charset = charset
        self.issues = issues
        self.rules = Rules(separators, escapes(separators, charset))
        end = message.find("\r")
        self.header = Segment("MSH", HEADER, message if end < 0 else message[:end], self.rules)


def _refuse(key: str, reason: str, where: str = "MSH[1]") -> NoReturn:
    raise Unreadable(Issue(key, "error", where, reason))


def _start(raw: bytes, issues: list[Issue]) -> int:
    """Offset of MSH. Raises Unreadable ``empty``, ``binary-noise`` or ``no-header``."""
    if raw[:3] == b"MSH" and not raw[3:4].isalnum():
        return 0
    found = _HEADER.search(raw)
    start = found.start(1) if found else raw.find(b"MSH|^~", 0, 512)
    if start < 0:
        if not raw.removeprefix(_BOM).strip(_BLANK):
            _refuse("empty", "The message is empty.", "")
        controls = len(raw) - len(raw.translate(None, _CONTROLS))
        if controls * 16 > len(raw):
            _refuse("binary-noise", "The bytes are not text; an HL7 v2 message starts with an MSH segment.", "")
        _refuse("no-header", "There is no MSH segment; an HL7 v2 message starts with one.")
    before = raw[:start].removeprefix(_BOM).strip(_BLANK)
    if _ENVELOPE.match(before):
        note = "The file or batch header (FHS, BHS) around the message was left out."
        issues.append(Issue("batch-envelope", "information", "MSH[1]", note))
    elif before and not re.fullmatch(rb"[\[<][A-Za-z0-9]{2,5}[\]>]", before.removesuffix(_BOM)):
        issues.append(Issue("leading-junk", "information", "MSH[1]", "Text before the MSH segment was left out."))
    return start


def _declared(header: bytes) -> str:
    """MSH-18 of an undecoded header line, repetitions separated by ``~``.

    Names of applications and facilities before it may be in any set, so each candidate reads the line; the one that agrees with what
    it finds wins, else the first that can read the line.
    """
    first = ""
    seen = False
    for codec in ("utf-8", "gb18030", "cp950", "cp932", "cp949", "iso2022_jp_2", "iso8859-1"):
        line = None if codec == "utf-8" and b"\x1b" in header else text_of(header, codec)
        if line is None or len(line) < 6:
            continue
        fields = line.split(line[3])
        declared = fields[17] if len(fields) > 17 else ""
        if len(fields[1]) > 1:
            declared = declared.replace(fields[1][1], "~")
        named = codec_named(declared.split("~")[0]) or ""
        if codec in ("utf-8", named) or (codec == "iso8859-1" and named.startswith("iso8859")):
            return declared
        if not seen:
            first, seen = declared, True
    return first


def _separators(header: str, issues: list[Issue]) -> Separators:
    """MSH-1 and MSH-2. Raises Unreadable ``bad-delimiters`` or ``too-short-header``."""
    field = header[3:4]
    if not field or field.isspace() or field.isalnum() or field < " ":
        _refuse("bad-delimiters", "MSH-1, the field separator, is missing, a blank, a letter or a digit.", "MSH[1]-1")
    fields = header.split(field)
    encoding = fields[1].strip()
    if len(fields) < 9:
        _refuse(
            "too-short-header",
            f"The MSH segment ends after MSH-{len(fields)}; MSH-9 (message type) is required.",
            "MSH[1]-9",
        )
    if encoding == "^~\\\\&":
        encoding = "^~\\&"
        issues.append(
            Issue(
                "doubled-escape", "warning", "MSH[1]-2", "The escape character is written twice in MSH-2; read as one."
            )
        )
    if not encoding or any(c.isalnum() or c.isspace() or c < " " for c in encoding):
        _refuse(
            "bad-delimiters", "MSH-2, the encoding characters, is empty or holds letters, digits or blanks.", "MSH[1]-2"
        )
    if len(encoding) > 5 or len(set(encoding)) != len(encoding):
        _refuse(
            "bad-delimiters",
            "MSH-2, the encoding characters, is longer than five or names one character twice.",
            "MSH[1]-2",
        )
    if len(encoding) < 4:
        note = "MSH-2 names fewer than four encoding characters; the missing ones do not separate anything."
        issues.append(Issue("short-delimiters", "information", "MSH[1]-2", note))
    return Separators(field, *encoding.ljust(5, ABSENT))


def opened(raw: bytes, fallback_charset: str = "") -> Opened:
    """Find the header, decode, take framing off. Raises Unreadable when that cannot be done, or when there is a second MSH."""
    issues: list[Issue] = []
    charset = wide_codec(raw)
    if charset and (wide := text_of(raw, charset)) is not None:
        message = wide.encode("utf-8", "replace")
        message = message[_start(message, issues) :]
        decoded = decode(message, "UTF-8")
    else:
        charset = None
        start = _start(raw, issues)
        message = raw[start:] if start else raw
        line = _first_line(message)
        declared = _declared(line)
        decoded = decode(_BOM + message if raw.startswith(_BOM) else message, declared, fallback_charset)
    issues.extend(decoded.issues)
    content = decoded.text
    if "\n" in content:
        content = content.replace("\r\n", "\r").replace("\n", "\r")
    if len(message) != len(message.translate(None, _CONTROLS)):
        content = _without_controls(content, issues)
    if "\ufeff" in content:
        # A byte order mark inside a message (files that were joined) has no meaning, and alone it is no text in FHIR.
        content = content.replace("\ufeff", "")
    content = content.rstrip("\r")
    if content.endswith(("]", ">")):
        content = _FRAME_END.sub("", content)
    if _NEXT.search(content):
        _refuse("several-messages", "There is more than one MSH segment; send one message in a frame.", "MSH[2]")
    separators = _separators(_first_text_line(content), issues)
    return Opened(content, separators, charset or decoded.codec, issues)


def _first_line(message: bytes) -> bytes:
    end = message.find(b"\r")
    line = message if end < 0 else message[:end]
    end = line.find(b"\n")
    return line if end < 0 else line[:end]


def _first_text_line(content: str) -> str:
    end = content.find("\r")
    return content if end < 0 else content[:end]


def _without_controls(content: str, issues: list[Issue]) -> str:
    """Text without what may not stand in it: what follows a frame end (FS), and control characters other than those MSH-1/2 name."""
    end = content.find("\x1c")
    if end >= 0 and content[3:4] != "\x1c":
        junk = content[end + 1 :].strip(" \t\r\0\x0b\x1a\x1c")
        if _NEXT.search("\r" + junk):
            _refuse("several-messages", "There is more than one MSH segment; send one message in a frame.", "MSH[2]")
        if junk:
            issues.append(
                Issue("trailing-junk", "information", "", "Bytes after the end of the message were left out.")
            )
        content = content[:end]
    content = content.rstrip("\0\x0b\x1a\r")
    clean = _CONTROL.sub(lambda m: " " if m[0] == "\x0b" else "", content)
    if clean != content:
        issues.append(Issue("control-character", "information", "", "Control characters in the text were left out."))
    return clean


def read(raw: bytes, fallback_charset: str = "") -> Message:
    """Bytes of one message -> Message.

    fallback_charset  the facility's own character set, used when nothing is declared and neither UTF-8 nor GB18030 fits
    Raises Unreadable: ``empty``, ``binary-noise``, ``no-header``, ``too-short-header``, ``bad-delimiters``, ``charset-unknown``,
    ``several-messages``.
    """
    start = opened(raw, fallback_charset)
    issues = start.issues
    lines, joined = segment_lines(start)
    rules = start.rules
    counts: dict[str, int] = {}
    records: list[Segment] = []
    for line in lines:
        name = line[:3]
        if name not in _OFTEN or line[3:4] != rules.field:
            name = line.partition(rules.field)[0].rstrip().upper()
        counts[name] = number = counts.get(name, 0) + 1
        records.append(Segment(name, f"{name}[{number}]", line, rules))
        if len(line) > _LONGEST:
            _report_length(records[-1], issues)
        if name not in _OFTEN or line[:3] != name:
            _report(records[-1], line, issues)
    for index, field in joined:
        where = f"{records[index].where}-{field}"
        issues.append(
            Issue(
                "line-joined", "information", where, "Lines that are not segments were joined to the field before them."
            )
        )
    if rules.escapes.any_odd(start.text[9:]):
        _report_escapes(records, lines, start, issues)
    return Message(records, start.separators, start.charset, issues)


def _is_segment(line: str, field: str) -> bool:
    """True when a line starts with a segment id followed by the field separator, or is a well-known bare id."""
    return bool(_SEGMENT.match(line)) and (line[3:4] == field or line.rstrip() in _BARE)


def segment_lines(start: Opened) -> tuple[list[str], list[tuple[int, int]]]:
    """Segments as one text each, and where lines were joined: (index of the segment, number of the field)."""
    field, issues = start.separators.field, start.issues
    lines: list[str] = []
    joined: list[tuple[int, int]] = []
    tail: list[str] = []
    blank = 0

    def close() -> None:
        if tail:
            joined.append((len(lines) - 1, lines[-1].count(field)))
            lines[-1] = "\n".join((lines[-1], *tail))
            tail.clear()

    for raw in start.text.split("\r"):
        line = raw
        if line[3:4] != field or line[:3] not in _OFTEN:
            if not line.strip():
                blank += 1
                continue
            if lines and not _is_segment(line, field):
                indented = line.lstrip()
                if indented != line and _is_segment(indented, field) and indented[:3].isupper():
                    line = indented
                elif _ODD_ID.match(line.partition(field)[0]) and field in line and lines[-1][:3] not in _TEXTS:
                    close()
                    lines.append(line)
                    continue
                elif len(lines) == 1:
                    note = "A line after the MSH segment is not a segment and was left out."
                    issues.append(Issue("stray-line", "warning", "MSH[1]", note, line))
                    continue
                else:
                    tail.extend([""] * blank)
                    tail.append(line)
                    blank = 0
                    continue
            name = line[:3].upper()
            if name == "ADD" and len(lines) > 1:
                # Section 2.10.2.1: ADD goes on with the last field of the segment before it.
                close()
                lines[-1] += line[4:]
                continue
            if name in _BATCH:
                close()
                if not any(i.key == "batch-envelope" for i in issues):
                    note = "The file or batch segments (FHS, BHS, BTS, FTS) around the message were left out."
                    issues.append(Issue("batch-envelope", "information", "MSH[1]", note))
                continue
        blank = 0
        close()
        lines.append(line)
    close()
    return lines, joined


def _report_length(record: Segment, issues: list[Issue]) -> None:
    """Issue about the longest field of a segment that is too long to be stored."""
    raws = [record.raw(n) for n in range(len(record.fields()))]
    field = max(range(len(raws)), key=lambda n: len(raws[n]))
    note = f"The field has {len(raws[field])} characters; more than {_LONGEST} in a segment are not taken."
    issues.append(Issue("too-long", "error", f"{record.where}-{field}", note, raws[field][:40]))


def _report(record: Segment, line: str, issues: list[Issue]) -> None:
    """Issues about a segment's name: not three characters, not in capitals; or the message goes on in another one."""
    if len(record.name) != 3:
        note = "A segment id has three characters; the segment could not be understood."
        issues.append(Issue("bad-segment-id", "warning", record.where, note))
    elif line[:3] != record.name:
        note = "The segment id is not in capitals; read as if it were."
        issues.append(Issue("segment-case", "information", record.where, note))
    if record.name == "DSC" and record.first(1):
        note = "The message goes on in another message, which has not come; held until it comes (within a day)."
        issues.append(Issue("continued-message", "error", f"{record.where}-1", note, record.first(1)))


def _report_escapes(records: list[Segment], lines: list[str], start: Opened, issues: list[Issue]) -> None:
    """Issues about escape sequences that were kept or needed a guess; at most one per field."""
    unescaper = start.rules.escapes
    field = start.separators.field
    for record, line in zip(records, lines, strict=True):
        if start.separators.escape not in line:
            continue
        header = record.where == HEADER
        body = 9 if header else 0
        last = 0
        for position, sequence, codec in unescaper.odd(line[body:]):
            number = line.count(field, 0, body + position) + header
            if number == last:
                continue
            last = number
            where = f"{record.where}-{number}"
            if codec:
                note = f"Hexadecimal text does not fit the message's character set; read as {codec}."
                issues.append(Issue("charset-mismatch", "information", where, note, sequence))
            else:
                note = "An escape sequence or escape character without meaning was kept as it is."
                issues.append(Issue("unknown-escape", "information", where, note, sequence))


def split(stream: BinaryIO) -> Iterator[bytes]:
    """The messages of a file, one after another, continued ones put together (continuation.joined)."""
    return joined(_pieces(stream))


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """The messages of a file, one after another: batches (FHS, BHS ... BTS, FTS; section 2.10.3), MLLP frames, or messages in a row.

    Memory use is that of the largest message. Framing, blank lines and the batch segments are left out; each message ends with CR.
    Bytes before the first header (at most the first 64 KiB of them) are given as they are, so that reading them says what is wrong.
    Lines are told apart by CR and LF, which are never part of a character in any supported set. UTF-16 files come out as UTF-8.
    """
    head = stream.read(_CHUNK)
    charset = wide_codec(head)
    decoder = codecs.getincrementaldecoder(charset)("replace") if charset else None
    # A header may be the first thing in the file: the line end before it is put there.
    buffer = bytearray(b"\r")
    inside = b""
    looked = 0
    chunk = head
    while True:
        last = not chunk
        buffer += decoder.decode(chunk, last).encode("utf-8", "replace") if decoder else chunk
        start = 0
        at = looked
        while found := _PIECE.search(buffer, at):
            if not last and found.end(1) == len(buffer):
                break
            if (piece := _piece(buffer[start : found.start()], inside)) is not None:
                yield piece
            inside = found[1].upper()
            start = at = found.start(1)
            at += 3
        del buffer[:start]
        looked = max(3 if inside else 0, len(buffer) - _PIECE_LENGTH)
        if inside != b"MSH" and len(buffer) > _STRAY:
            # Nothing of a message: bytes without a header, or what follows a batch trailer.
            del buffer[_STRAY:-_PIECE_LENGTH]
            looked = max(0, len(buffer) - _PIECE_LENGTH)
        if last:
            break
        chunk = stream.read(_CHUNK)
    if (piece := _piece(buffer, inside)) is not None:
        yield piece


def _piece(data: bytearray, inside: bytes) -> bytes | None:
    """One message, or the bytes before any header; None for blanks and batch segments."""
    if inside not in (b"", b"MSH"):
        return None
    message = bytes(data).strip(_BLANK)
    return message + b"\r" if message.removeprefix(_BOM).strip(_BLANK) else None
