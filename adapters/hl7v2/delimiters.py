"""Delimiters and escape sequences (HL7 v2.5.1 sections 2.5.4 and 2.7; v2.7 section 2.5.5.2 for the truncation character)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from adapters.charset import text_of

ABSENT = "\0"
"""Stands for a delimiter MSH-2 leaves out. NUL never stays in decoded text, so nothing is split or unescaped by it."""


@dataclass(frozen=True, slots=True)
class Separators:
    """MSH-1 and the characters of MSH-2; ABSENT where MSH-2 is too short."""

    field: str
    component: str
    repetition: str = ABSENT
    escape: str = ABSENT
    subcomponent: str = ABSENT
    truncation: str = ABSENT

    @property
    def encoding(self) -> str:
        """MSH-2 as written."""
        return (self.component + self.repetition + self.escape + self.subcomponent + self.truncation).replace(
            ABSENT, ""
        )


STANDARD = Separators("|", "^", "~", "\\", "&")

# Formatting commands of FT data (section 2.7.6) as plain text: line ends, and blanks for moves to the right.
_LINE_ENDS = {"br": 1, "sp": 1, "ce": 1}
_BLANKS = ("in", "ti", "sk")
_MOST = 80
"""A vertical or horizontal skip is not allowed to blow a text up."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def _hex_text(body: str, escape: str, codec: str) -> tuple[str, str] | None:
    """Text of joined ``\\Xdd..\\`` sequences and the codec that read it; None when no codec does or control characters come out."""
    data = bytes.fromhex(body.replace(escape + "X", "").replace(escape + "x", "").replace(escape, ""))
    for candidate in dict.fromkeys((codec, "utf-8", "gb18030")):
        text = None if candidate.startswith("utf-16") else text_of(data, candidate)
        if text is not None:
            return None if _CONTROL.search(text) else (text.replace("\ufeff", ""), candidate)
    return None


class Escapes:
    """Reads and finds the escape sequences of one message."""

    __slots__ = ("_codec", "_escape", "_known", "_letters", "_simple", "_unknown")

    def __init__(self, separators: Separators, codec: str) -> None:
        mark = re.escape(separators.escape)
        self._escape = separators.escape
        self._codec = codec
        self._letters = {
            "F": separators.field,
            "S": separators.component,
            "T": "&" if separators.subcomponent == ABSENT else separators.subcomponent,
            "R": separators.repetition,
            "E": separators.escape,
            "P": "#" if separators.truncation == ABSENT else separators.truncation,
            "H": "",
            "N": "",
        }
        self._simple = frozenset(self._letters)
        self._known = re.compile(
            f"((?:{mark}[Xx](?:[0-9A-Fa-f]{{2}})+{mark})+)"
            f"|{mark}([FSTREPHN]){mark}"
            rf"|{mark}\.(br|sp|ce|fi|nf|in|ti|sk) ?([+-]?\d*){mark}"
            f"|{mark}([CMZ][0-9A-Za-z]*){mark}",
            re.IGNORECASE,
        )
        self._unknown = re.compile(f"{mark}[^{mark}\\s]{{0,20}}{mark}|{mark}")

    def unescape(self, text: str) -> str:
        """Text with its escape sequences replaced; unknown ones, ``\\Z..\\``, ``\\C..\\`` and ``\\M..\\`` stay as they are."""
        if self._escape not in text:
            return text
        parts = text.split(self._escape)
        if len(parts) % 2 and self._simple.issuperset(parts[1::2]):
            parts[1::2] = map(self._letters.__getitem__, parts[1::2])
            return "".join(parts)
        return self._known.sub(self._text, text)

    def any_odd(self, text: str) -> bool:
        """True when ``odd`` could find something in ``text``: a quick look at a whole message."""
        if self._escape not in text:
            return False
        parts = text.split(self._escape)
        return len(parts) % 2 == 0 or not self._simple.issuperset(parts[1::2])

    def _text(self, match: re.Match[str]) -> str:
        hexed, letter, command, number, kept = match.groups()
        if letter:
            return self._letters[letter] if letter in self._letters else match[0]
        if hexed:
            found = _hex_text(hexed, self._escape, self._codec)
            return found[0] if found else hexed
        if kept is not None:
            return match[0]
        count = min(int(number), _MOST) if number not in ("", "+", "-") else 1
        command = command.lower()
        if command in _LINE_ENDS:
            return "\n" * max(count, 1)
        return " " * count if command in _BLANKS and number else ""

    def odd(self, line: str) -> Iterator[tuple[int, str, str]]:
        """Sequences of ``line`` that stay as they are or need a guess: (position, text, codec that read it or empty)."""
        last = 0
        for match in self._known.finditer(line):
            yield from self._strays(line, last, match.start())
            last = match.end()
            if match[5] is not None or (match[2] and match[2] not in self._letters):
                yield match.start(), match[0], ""
            elif match[1]:
                found = _hex_text(match[1], self._escape, self._codec)
                if found is None or found[1] != self._codec:
                    yield match.start(), match[0], found[1] if found else ""
        yield from self._strays(line, last, len(line))

    def _strays(self, line: str, start: int, end: int) -> Iterator[tuple[int, str, str]]:
        for match in self._unknown.finditer(line, start, end):
            yield match.start(), match[0], ""


@lru_cache(maxsize=64)
def escapes(separators: Separators, codec: str) -> Escapes:
    """The Escapes for these delimiters and character set; few combinations exist, so they are kept."""
    return Escapes(separators, codec)


@lru_cache(maxsize=64)
def _writer(separators: Separators) -> Callable[[str], str]:
    mark = separators.escape
    pairs = (
        ("field", "F"),
        ("component", "S"),
        ("subcomponent", "T"),
        ("repetition", "R"),
        ("escape", "E"),
        ("truncation", "P"),
    )
    table: dict[int, str] = {}
    for part, letter in pairs:
        delimiter: str = getattr(separators, part)
        if delimiter != ABSENT:
            table[ord(delimiter)] = " " if mark == ABSENT else f"{mark}{letter}{mark}"
    for control in range(32):
        table[control] = " " if mark == ABSENT else f"{mark}X{control:02X}{mark}"
    if mark != ABSENT:
        table[ord("\n")] = f"{mark}.br{mark}"
    del table[ord("\t")]
    return lambda text: text.translate(table)


def escape(text: str, separators: Separators = STANDARD) -> str:
    """Text made safe for a field of a message with these delimiters; without an escape character delimiters become blanks."""
    return _writer(separators)(text)
