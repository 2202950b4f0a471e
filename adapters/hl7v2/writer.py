"""Segments as values -> bytes of one HL7 v2 message (HL7 v2.5.1 sections 2.5 to 2.7, ER7 encoding): the inverse of ``reader``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adapters.hl7v2.delimiters import STANDARD, Separators, escape
from mappings.outbound import message
from mappings.outbound.line import Line
from mappings.source import Component, Element

CHARSETS: dict[str, str] = {"utf-8": "UNICODE UTF-8", "gb18030": "GB 18030-2000"}
"""Codec -> its name in table 0211 (MSH-18)."""


def write(lines: Iterable[Line], separators: Separators = STANDARD, codec: str = "utf-8") -> bytes:
    """One message, segments ended by CR, without framing. A character the codec has not becomes ``?``."""
    return "".join(_segment(line, separators) + "\r" for line in lines).encode(codec, "replace")


def oru(
    bundle: dict[str, Any], letter: message.Letter, separators: Separators = STANDARD, codec: str = "utf-8"
) -> bytes:
    """Bundle -> ORU^R01 for the receiver of the letter. Pure; the letter names the character set that ``codec`` is."""
    return write(message.segments(bundle, letter), separators, codec)


def _segment(line: Line, s: Separators) -> str:
    last = max(line.fields, default=0)
    fields = [_field(line.fields.get(n, ()), s) for n in range(1, last + 1)]
    if line.name == "MSH":
        fields = [s.encoding, *fields[2:]]
    return s.field.join((line.name, *fields))


def _field(repetitions: tuple[Element, ...], s: Separators) -> str:
    return s.repetition.join(s.component.join(_component(c, s) for c in element) for element in repetitions)


def _component(component: Component, s: Separators) -> str:
    if isinstance(component, str):
        return escape(_lines(component), s)
    return s.subcomponent.join(escape(_lines(part), s) for part in component)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
