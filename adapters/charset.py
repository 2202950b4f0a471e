"""Bytes -> text: the declared character set, or what the bytes themselves say (HL7 v2.5.1 section 2.15.9.18 MSH-18, table 0211).

Order: byte order mark; the declared names, each strictly; then strict UTF-8, GB18030, the facility's setting; else unreadable. GB18030
is a superset of GBK and GB2312, so all three names mean it. Latin-1 reads every byte string, so it is used only when somebody named it.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from adapters.contract import Unreadable
from conformance.issue import Issue


@dataclass(frozen=True, slots=True)
class Decoded:
    """text without byte order mark; codec: the Python codec that read it; issues: what had to be assumed."""

    text: str
    codec: str
    issues: tuple[Issue, ...] = ()


MSH_18 = "MSH-18"
"""Where HL7 v2 names the character set; what ``decode`` speaks of unless it is told another place."""
_UNICODE = "unicode"
"""``UNICODE`` alone does not say which encoding: UTF-16 when it looks so, else UTF-8."""

# Table 0211 and what senders write instead, upper case without blanks and punctuation -> codec. CNS 11643-1992 has no codec in Python.
_CODECS = {
    **dict.fromkeys(("ASCII", "USASCII", "ISOIR6", "ISO646", "ANSIX341968"), "ascii"),
    **dict.fromkeys(("UNICODEUTF8", "UTF8", "UTF8BOM", "UTF8N", "ISOIR192", "CP65001", "65001", "UTF8MB4"), "utf-8"),
    **dict.fromkeys(("UNICODE", "ISO10646", "ISO106461"), _UNICODE),
    **dict.fromkeys(("UNICODEUTF16", "UTF16", "UCS2"), "utf-16"),
    **dict.fromkeys(("UTF16LE", "UNICODEUTF16LE"), "utf-16-le"),
    **dict.fromkeys(("UTF16BE", "UNICODEUTF16BE"), "utf-16-be"),
    **dict.fromkeys(("UNICODEUTF32", "UTF32"), "utf-32"),
    **dict.fromkeys(("GB180302000", "GB180302005", "GB180302022", "GB18030", "CP54936"), "gb18030"),
    **dict.fromkeys(("GBK", "CP936", "MS936", "936", "WINDOWS936"), "gb18030"),
    **dict.fromkeys(("GB2312", "GB231280", "GB23121980", "GBT231280", "EUCCN", "ISOIR58"), "gb18030"),
    **dict.fromkeys(("BIG5", "CP950", "950", "BIG5ETEN"), "cp950"),
    **dict.fromkeys(("ISOIR14", "ISOIR13", "JISX0201", "JISX02011976", "SHIFTJIS", "SJIS", "CP932", "MS932"), "cp932"),
    **dict.fromkeys(("ISOIR87", "ISOIR159", "JISX0202", "JIS", "ISO2022JP"), "iso2022_jp_2"),
    **dict.fromkeys(("KSX1001", "KSC5601", "EUCKR", "CP949", "ISOIR149"), "cp949"),
    **dict.fromkeys(("CP1252", "WINDOWS1252", "1252"), "cp1252"),
    **dict.fromkeys(("LATIN1", "ISOLATIN1", "L1", "ISOIR100"), "iso8859-1"),
}
_PUNCTUATION = re.compile(r"[\s\-_/.,:()]+")
_PART = re.compile(r"(?:ISO)?8859(\d{1,2})(?:19\d\d)?$")

# The 19 characters GB 18030-2022 (and 2005: A8BC) moved out of the private use area; Python's codec still has them there.
_GB18030_2022 = dict(
    zip(
        (*range(0xE78D, 0xE797), 0xE7C7, 0xE81E, 0xE826, 0xE82B, 0xE82C, 0xE832, 0xE843, 0xE854, 0xE864),
        (0xFE10, 0xFE12, 0xFE11, *range(0xFE13, 0xFE1A), 0x1E3F, *range(0x9FB4, 0x9FBC)),
        strict=True,
    )
)
_PRIVATE = re.compile("[\ue78d-\ue796\ue7c7\ue81e-\ue864]")

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF32_BE, "utf-32"),
)
_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
_WIDE_UTF8 = re.compile(rb"[\xe0-\xf4][\x80-\xbf]{2}")
_UTF8_RUN = re.compile(rb"(?<![\x80-\xff])(?:[\xe2-\xef][\x80-\xbf]{2}){2,}(?![\x80-\xff])")
_MIXED = 9
"""So many bytes that would be words in UTF-8 do not come about by chance in GB18030."""
_CONTROLS = bytes(b for b in range(32) if b not in b"\t\r\n\x0b\x1b\x1c")
_WIDE = ("utf-16", "utf-32")
_ONE_BYTE = ("iso8859-", "cp1252")


def codec_named(name: str) -> str | None:
    """Python codec for one name of table 0211 or a usual other spelling; None when the name is unknown or has no codec."""
    key = _PUNCTUATION.sub("", name.upper())
    if found := _CODECS.get(key):
        return found
    if (part := _PART.match(key)) and 1 <= int(part[1]) <= 16 and part[1] != "12":
        return f"iso8859-{int(part[1])}"
    return None


def wide_codec(raw: bytes) -> str | None:
    """Codec when the bytes are UTF-16 or UTF-32: by their mark, or by the zero bytes around an ASCII start. None otherwise."""
    for bom, codec in _BOMS:
        if raw.startswith(bom):
            return None if codec == "utf-8-sig" else codec
    if len(raw) >= 4 and b"\0" in raw[:2]:
        if raw[0] == 0 != raw[1] and raw[2] == 0 != raw[3]:
            return "utf-16-be"
        if raw[1] == 0 != raw[0] and raw[3] == 0 != raw[2]:
            return "utf-16-le"
    return None


def text_of(raw: bytes, codec: str) -> str | None:
    """Strictly decoded text without byte order mark, or None when ``raw`` is not valid in ``codec``."""
    try:
        text = raw.decode(codec)
    except (UnicodeDecodeError, LookupError):
        return None
    if codec == "gb18030" and _PRIVATE.search(text):
        text = text.translate(_GB18030_2022)
    return text.removeprefix("\ufeff")


def decode(raw: bytes, declared: str = "", fallback: str = "", said_in: str = MSH_18) -> Decoded:
    """Decode a whole message.

    raw       the bytes as received
    declared  MSH-18 as text; repetitions separated by ``~``, the first is the default set; empty when none is declared
    fallback  the facility's own setting, tried last, and believed against what is declared; empty for none
    said_in   the part of the format that names the set, for the words of issues; empty when it has none (tables of text)
    Raises Unreadable (``charset-unknown``) when no candidate reads the bytes.
    """
    marked = wide_codec(raw)
    if raw.startswith(codecs.BOM_UTF8):
        marked = "utf-8"
    issues: list[Issue] = []
    place = "MSH[1]-18" if said_in == MSH_18 else ""
    names = [n.strip() for n in declared.split("~") if n.strip().strip('"')]
    wanted = _declared_codecs(names, issues, place)
    own = codec_named(fallback) if fallback else None
    if own == _UNICODE or (own and own.startswith(_WIDE)):
        own = "utf-8"
    if marked and (text := text_of(raw, marked)) is not None:
        if wanted and marked not in wanted and _UNICODE not in wanted:
            issues.append(_mismatch(names, marked, own, "the byte order says so", said_in))
        return Decoded(text, marked, tuple(issues))
    if raw.isascii() and b"\x1b" not in raw:
        codec = next((c for c in (*wanted, own) if c and not c.startswith(_WIDE) and c != _UNICODE), "utf-8")
        return Decoded(raw.decode("ascii"), codec, tuple(issues))
    for codec in wanted:
        if codec.startswith(_WIDE):
            # Such a message is known by its zero bytes; these bytes have none.
            continue
        strict = "utf-8" if codec == _UNICODE else codec
        if better := _contradicted(raw, strict):
            break
        if (text := text_of(raw, strict)) is not None:
            return Decoded(text, strict, (*_mixed(raw, strict, place), *issues))
    else:
        better = None
    for codec in dict.fromkeys(c for c in (better, "utf-8", "gb18030", own) if c):
        text = text_of(raw, codec)
        if text is None or _is_noise(raw):
            continue
        if wanted:
            issues.append(_mismatch(names, codec, own, "the bytes do not fit the declared set", said_in))
        elif codec not in (own, "utf-8") and not issues:
            note = f"{said_in[:1].upper()}{said_in[1:]} declares no character set; read as {codec}."
            issues.append(Issue("charset-detected", "information", place, note))
        return Decoded(text, codec, (*_mixed(raw, codec, place), *issues))
    mend = (
        f"Correct {said_in}."
        if said_in
        else "Save the file as UTF-8, or write its charset into the facility's profile."
    )
    reason = f"The bytes are neither in the declared character set nor in UTF-8, GB18030 or the facility's set. {mend}"
    raise Unreadable(Issue("charset-unknown", "error", place, reason, "~".join(names) or None))


def _declared_codecs(names: list[str], issues: list[Issue], place: str) -> list[str]:
    found: list[str] = []
    for name in names:
        codec = codec_named(name)
        if codec is None:
            table = "in HL7 table 0211" if place else "known"
            text = f"The declared character set is not {table} or not supported; the set was detected from the bytes."
            issues.append(Issue("charset-unknown-name", "warning", place, text, name))
        elif codec not in found:
            found.append(codec)
    return found


def _mismatch(names: list[str], codec: str, own: str | None, why: str, said_in: str) -> Issue:
    """Holds the message, unless the facility's profile says that this is its set whatever it declares."""
    place = "MSH[1]-18" if said_in == MSH_18 else ""
    if codec == own:
        text = f"The declared character set was not used: {why}; read as {codec}, as the profile says."
        return Issue("charset-mismatch", "information", place, text, "~".join(names))
    text = (
        f"The declared character set is not the one used: {why}, they read as {codec}. Correct {said_in} at the sender, "
        f"or write charset: {codec} into the facility's profile and replay."
    )
    return Issue("charset-mismatch", "error", place, text, "~".join(names))


def _mixed(raw: bytes, codec: str, place: str) -> tuple[Issue, ...]:
    """Holds GB18030 with words in UTF-8 among it (a system that passes on texts of another one): they would be read as other words, and
    one of an odd number of bytes takes the delimiter behind it along."""
    runs = list(_UTF8_RUN.finditer(raw)) if codec == "gb18030" else []
    if sum(len(run[0]) for run in runs) < _MIXED:
        return ()
    at = runs[0].start()
    start = max(raw.rfind(b"\r", 0, at), raw.rfind(b"\n", 0, at)) + 1
    name = raw[start : start + 3]
    number = len(re.findall(rb"(?:\A|[\r\n])" + re.escape(name), raw[:at]))
    field = raw[start:at].count(raw[3:4]) + (name == b"MSH")
    where = f"{name.decode('ascii')}[{number}]-{field}" if place and name.isalnum() else place
    words = "The message is in GB18030 and has words in UTF-8 among it; send all of it in one character set."
    return (Issue("charset-mixed", "error", where, words, runs[0][0].decode("utf-8", "replace")),)


def _contradicted(raw: bytes, codec: str) -> str | None:
    """The codec the bytes are surely in although ``codec`` would read them without an error, or None.

    A one-byte set reads everything, and GB18030 reads most UTF-8. UTF-8 with three-byte characters does not come about by chance.
    Text in ISO 8859-1 does not consist of byte pairs that are all Chinese characters of GB2312, most of them of its first level.
    """
    one_byte = codec.startswith(_ONE_BYTE)
    if not one_byte and codec not in ("gb18030", "cp950", "cp932", "cp949"):
        return None
    if text_of(raw, "utf-8") is not None and (one_byte or _WIDE_UTF8.search(raw)):
        return "utf-8"
    if codec not in ("iso8859-1", "cp1252"):
        return None
    runs = _HIGH_RUN.findall(raw)
    if any(len(run) % 2 for run in runs):
        return None
    pairs = b"".join(runs)
    if len(pairs) < 4 or text_of(pairs, "gb2312") is None:
        return None
    first_level = sum(1 for lead in pairs[::2] if 0xB0 <= lead <= 0xD7)
    return "gb18030" if first_level * 4 >= len(pairs) // 2 * 3 else None


def _is_noise(raw: bytes) -> bool:
    """True when more than one byte in eight is a control character: noise that happens to be decodable."""
    return (len(raw) - len(raw.translate(None, _CONTROLS))) * 8 > len(raw)
