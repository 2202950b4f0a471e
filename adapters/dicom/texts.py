"""Bytes of a text value -> text, by Specific Character Set (0008,0005), or by the bytes where that fails (PS3.5 section 6.1).

Chinese modalities often name no character set, or ISO_IR 100, and write GBK. Then the facility's profile says the set, else it is told
from the bytes (adapters.charset) and an issue says so; nothing is read as Latin letters in silence.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydicom.charset import decode_bytes, python_encoding

from adapters import charset
from adapters.contract import Unreadable
from conformance.issue import Issue

WHERE: Final = "(0008,0005)"
_DELIMITERS: Final = {0x5C, 0x5E, 0x3D, 0x0A, 0x0D, 0x09, 0x0C}
_BLANKS: Final = " \0\t\r\n"
# ISO 2022 without an escape sequence in the values is the plain set of the same number.
_PLAIN: Final = {"ISO 2022 IR 58": "GB18030", "ISO 2022 58": "GB18030", "ISO 2022 GBK": "GB18030"}
_GB2312: Final = ("gb2312",)
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")
_CHINESE: Final = frozenset({"GB18030", "GBK", *_PLAIN})


@dataclass(frozen=True, slots=True)
class Texts:
    """How the texts of one object are read: with one codec, or by escape sequences between several.

    codec     Python codec; empty: ``escaped`` says
    issues    what had to be assumed
    fallback  the facility's character set, for items that name none of use
    """

    codec: str
    escaped: tuple[str, ...] = ()
    issues: tuple[Issue, ...] = ()
    fallback: str = ""

    def read(self, raw: bytes) -> str:
        """One value, or several with backslashes between them; blanks around it gone (PS3.5 section 6.2)."""
        if raw.isascii() and b"\x1b" not in raw:
            return _clean(raw.decode("ascii"))
        if self.escaped == _GB2312:
            # GB 2312 stands in the upper half beside ASCII in the lower one: the escapes say nothing that the bytes do not.
            raw = raw.replace(b"\x1b$)A", b"").replace(b"\x1b(B", b"")
            return _clean(charset.text_of(raw, "gb18030") or raw.decode("gb18030", "replace"))
        if self.escaped:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _clean(decode_bytes(raw, self.escaped, _DELIMITERS))
        found = charset.text_of(raw, self.codec)
        return _clean(found if found is not None else raw.decode(self.codec, "replace"))


def _clean(text: str) -> str:
    return _CONTROLS.sub("", text).strip(_BLANKS)


def choose(labels: Sequence[str], values: Sequence[bytes], fallback: str) -> Texts:
    """How to read the texts of an object.

    labels    values of (0008,0005); empty: none is named, which means plain ASCII
    values    its text values that are not ASCII, or hold an escape sequence
    fallback  the facility's character set by its profile, or empty
    Raises Unreadable (``charset-unknown``) when no set reads the bytes.
    """
    names = [label.strip() for label in labels]
    named = [name for name in names if name]
    whole = b"\n".join(values)
    unknown = [name for name in named if name not in python_encoding]
    issues = [
        Issue(
            "charset-unknown-name", "warning", WHERE, "The character set is not one of DICOM (PS3.3 C.12.1.1.2).", name
        )
        for name in unknown
    ]
    if b"\x1b" in whole and any(name.startswith("ISO 2022") for name in named):
        sets = tuple(python_encoding.get(name or "ISO_IR 6", "iso8859") for name in names)
        if {*named} <= {*_PLAIN, "ISO 2022 IR 6"}:
            sets = _GB2312
        return Texts("", sets, tuple(issues), fallback)
    chosen = next((n for n in reversed(named) if n in python_encoding), "")
    chosen = _PLAIN.get(chosen, chosen)
    if not values:
        return Texts(_codec(chosen) if chosen else "ascii", (), tuple(issues), fallback)
    if chosen in ("", "ISO_IR 6", "ISO_IR 100", "ISO 2022 IR 6", "ISO 2022 IR 100", "ISO_IR 192", *_CHINESE):
        return _looked_at(chosen, whole, fallback, issues)
    codec = _codec(chosen)
    if charset.text_of(whole, codec) is None:
        issues.append(_mismatch(chosen, codec))
    return Texts(codec, (), tuple(issues), fallback)


def _looked_at(chosen: str, whole: bytes, fallback: str, issues: list[Issue]) -> Texts:
    ascii_alone = chosen in ("", "ISO_IR 6", "ISO 2022 IR 6")
    declared = chosen.replace("ISO 2022 IR", "ISO_IR")
    if ascii_alone or (declared == "ISO_IR 100" and fallback):
        # A profile that names a set knows its modalities: Latin-1 would read any bytes.
        declared = fallback
    try:
        found = charset.decode(whole, declared)
    except Unreadable as refused:
        words = (
            "The texts are in no character set that is named here or known; the sender has to name it in (0008,0005)."
        )
        raise Unreadable(Issue("charset-unknown", "error", WHERE, words, refused.issue.value)) from None
    if ascii_alone and not fallback:
        words = f"The object names no character set but holds other letters; read as {found.codec}. Write it into the profile."
        issues.append(Issue("charset-detected", "warning", WHERE, words))
    elif found.issues:
        issues.append(_mismatch(chosen, found.codec))
    return Texts(found.codec, (), tuple(issues), fallback)


def _mismatch(chosen: str, codec: str) -> Issue:
    words = f"The texts are not in the character set that the object names; read as {codec}."
    return Issue("charset-mismatch", "warning", WHERE, words, chosen or None)


def _codec(name: str) -> str:
    found = python_encoding[name]
    return "gb18030" if name in _CHINESE else "ascii" if name in ("ISO_IR 6", "ISO 2022 IR 6") else str(found)


_NAME_GROUP: Final = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def person_name(written: str) -> tuple[str, ...]:
    """PN (PS3.5 section 6.2.1) -> family, given, middle, prefix, suffix of the ideographic group, else the first that says anything.

    ``Wang^Xiaodong=王^小东``. A group without carets is the whole name, in the first place.
    """
    groups = [group for group in written.split("=") if group.strip(" ^")]
    best = next((g for g in groups if _NAME_GROUP.search(g)), groups[0] if groups else "")
    parts = [" ".join(part.split()) for part in best.split("^")[:5]]
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)
