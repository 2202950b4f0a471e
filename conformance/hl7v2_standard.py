"""A message against the HL7 v2 standard of its own version: segments, cardinality, data types, lengths, tables.

The definitions are hl7apy's (versions 2.1 to 2.8.2); its parser is not used, so that a message the standard does not know is checked as
far as it goes. Off the hot path: only the check of a feed uses this. Nothing here carries a value of a patient; a code outside its
table is quoted where it cannot be a person's data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

from hl7apy import SUPPORTED_LIBRARIES, load_library

from conformance.hl7v2_order import UNENDING, faults, structure_of

Component = str | tuple[str, ...]
Element = tuple[Component, ...]
Kind = Literal[
    "version", "structure", "missing-segment", "unexpected-segment", "too-many-segments", "missing-field", "too-many-repetitions",
    "unknown-field", "unknown-component", "missing-component", "data-type", "length", "table",
]  # fmt: skip

NEWEST = "2.8.2"
_NULL = '""'
_REMEMBERED = 10_000
_LONGEST_CODE = 20
_LONGEST_SIGN = 3
_IMPERSONAL = frozenset({"MSH", "EVN", "ORC", "OBR", "OBX", "SPM", "TXA"})
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)", re.ASCII)
_DATE = re.compile(r"\d{4}(?:(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])?)?", re.ASCII)
_CLOCK = r"(?:[01]\d|2[0-3])(?:[0-5]\d(?:[0-5]\d(?:\.\d{1,4})?)?)?"
_TIME = re.compile(rf"{_CLOCK}(?:[+-]\d{{4}})?", re.ASCII)
_STAMP = re.compile(rf"\d{{4}}(?:\d\d(?:\d\d(?:({_CLOCK})([+-]\d{{4}})?)?)?)?", re.ASCII)
_MEASURED = frozenset({"FT", "ID", "IS", "NM", "SI", "ST", "TX"})
"""Base data types whose length hl7apy knows."""


class Segment(Protocol):
    """What the check needs of a segment (mappings.source.Record is one)."""

    @property
    def name(self) -> str:
        """Segment id."""
        ...

    @property
    def where(self) -> str:
        """Segment id and 1-based ordinal: ``OBX[3]``."""
        ...

    def fields(self) -> Sequence[tuple[Element, ...]]:
        """All fields by number; index 0 is unused."""
        ...


@dataclass(frozen=True, slots=True)
class Deviation:
    """One deviation from the standard.

    kind    what is wrong
    place   segment, field and component without ordinal: ``OBX-11``, ``PID-3.5``; equal for equal faults of a feed
    where   where it is in this message: ``OBX[3]-11``
    detail  what was expected; the code for a table; never another value
    required  the standard demands it (a code of a user-defined table is only suggested)
    """

    kind: Kind
    place: str
    where: str
    detail: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Times:
    """Times of day in a message: how many, and the places (``OBR-7``) of those without an offset, one for each."""

    stated: int
    without_zone: tuple[str, ...]


def check(
    segments: Sequence[Segment], version: str, code: str, event: str, structure: str = ""
) -> tuple[list[Deviation], Times]:
    """All deviations of one message, and its times.

    segments   in message order
    version    MSH-12.1; an unknown one is told and the newest is taken
    code, event, structure  MSH-9.1 to MSH-9.3
    """
    out: list[Deviation] = []
    taken = version.strip()
    if taken not in SUPPORTED_LIBRARIES:
        out.append(Deviation("version", "MSH-12", "MSH[1]-12", f"not a version of HL7 v2 known here; read as {NEWEST}"))
        taken = NEWEST
    known = structure_of(taken, code, event, structure)
    if known is None:
        out.append(Deviation("structure", "MSH-9", "MSH[1]-9", f"no such message in HL7 {taken}"))
    else:
        ordered = faults([s for s in segments if not s.name.startswith("Z")], known)
        out += [Deviation(f.kind, f.segment, f.where, f.detail) for f in ordered]
    checker = _Checker(taken)
    for segment in segments:
        if not segment.name.startswith("Z"):
            checker.segment(segment)
    return out + checker.found, Times(checker.stated, tuple(checker.zoneless))


# --- fields ------------------------------------------------------------------------------------------------------------------


class _Checker:
    """Collects the deviations of fields; one per message."""

    def __init__(self, version: str) -> None:
        self._library = load_library(version)
        self._tables: dict[str, Any] = getattr(self._library, "TABLES", {})
        self._lengths = _lengths(version)
        self._sound = _sound(version)
        self.found: list[Deviation] = []
        self.stated = 0
        self.zoneless: list[str] = []

    def segment(self, segment: Segment) -> None:
        defined = self._library.SEGMENTS.get(segment.name)
        if defined is None:
            self._tell("unexpected-segment", segment.name, segment.where, "not a segment of this version")
            return
        fields = segment.fields()
        header = segment.name == "MSH"
        for number, (_, reference, (least, most), _) in enumerate(defined[1], 1):
            repetitions = fields[number] if number < len(fields) else ()
            if not (repetitions or least) or (header and number <= 2):
                continue
            place, where = f"{segment.name}-{number}", f"{segment.where}-{number}"
            if not repetitions:
                self._tell("missing-field", place, where, _title(reference))
                continue
            if most not in (UNENDING, 0) and len(repetitions) > most:
                self._tell("too-many-repetitions", place, where, f"at most {most}")
            kind = self._varies(segment, number, fields) or reference
            for element in repetitions:
                known = (place, kind[2], element)
                if known in self._sound:
                    continue
                before = len(self.found), self.stated
                self._value(element, kind, place, where, 0)
                if before == (len(self.found), self.stated) and len(self._sound) < _REMEMBERED:
                    self._sound.add(known)
        for number in range(len(defined[1]) + 1, len(fields)):
            if fields[number]:
                self._tell(
                    "unknown-field",
                    f"{segment.name}-{number}",
                    f"{segment.where}-{number}",
                    f"{len(defined[1])} fields are defined",
                )

    def _varies(self, segment: Segment, number: int, fields: Sequence[tuple[Element, ...]]) -> Any:
        """OBX-5 has the type OBX-2 names (HL7 v2.5.1 section 7.4.2.5); None for other fields and unknown types."""
        if segment.name != "OBX" or number != 5 or len(fields) < 3 or not fields[2]:
            return None
        kind = _text(fields[2][0][0]).strip()
        inner = self._library.DATATYPES_STRUCTS.get(kind)
        if inner is not None:
            return ("sequence", inner, kind, "OBSERVATION_VALUE", None, -1)
        return (
            ("leaf", None, kind, "OBSERVATION_VALUE", None, -1) if kind in self._library.get_base_datatypes() else None
        )

    def _value(self, value: Element | tuple[str, ...], reference: Any, place: str, where: str, depth: int) -> None:
        """One repetition (depth 0), component (1) or sub-component (2)."""
        if reference[0] != "sequence" or not isinstance(reference[1], tuple):
            self._leaf(value, reference, place, where, depth)
            return
        parts = reference[1]
        if value == (_NULL,):
            return
        for number, (_, inner, (least, _), _) in enumerate(parts, 1):
            part = value[number - 1] if number <= len(value) else ""
            if not _text(part).strip():
                if least and any(_text(v).strip() for v in value):
                    self._tell("missing-component", f"{place}.{number}", f"{where}.{number}", _title(inner))
                continue
            below = part if isinstance(part, tuple) else (part,)
            self._value(below, inner, f"{place}.{number}", f"{where}.{number}", depth + 1)
        for number in range(len(parts) + 1, len(value) + 1):
            if _text(value[number - 1]).strip():
                self._tell("unknown-component", f"{place}.{number}", f"{where}.{number}", f"{len(parts)} are defined")

    def _leaf(self, value: Element | tuple[str, ...], reference: Any, place: str, where: str, depth: int) -> None:
        kind, table = reference[2], reference[4]
        first = _text(value[0]) if value else ""
        extra = [n for n in range(2, len(value) + 1) if _text(value[n - 1]).strip()]
        if extra and kind not in ("TX", "FT", "ST"):
            self._tell("unknown-component", f"{place}.{extra[0]}", f"{where}.{extra[0]}", f"{kind} has no parts")
        text = first.strip()
        if not text or text == _NULL:
            return
        if (wrong := self._form(kind, text, place)) is not None:
            self._tell("data-type", place, where, wrong)
            return
        limit = self._lengths.get(kind, 0)
        if limit and len(text) > limit:
            self._tell("length", place, where, f"{kind} has at most {limit} characters")
        codes = self._tables.get(table, ("", ()))[1] if table else ()
        if codes and kind in ("ID", "IS") and text not in codes:
            said = f"{_shown(text, place)} is not in table {table.removeprefix('HL7')}"
            self._tell("table", place, where, said, kind == "ID")

    def _form(self, kind: str, text: str, place: str) -> str | None:
        """What a value of a data type has to look like, when this one does not; None when it does."""
        if kind == "NM":
            return None if _NUMBER.fullmatch(text) else "a number (NM) is needed"
        if kind == "SI":
            return None if text.isascii() and text.isdigit() else "a sequence number (SI) is needed"
        if kind == "DT":
            return None if _DATE.fullmatch(text) else "a date YYYYMMDD (DT) is needed"
        if kind == "TM":
            return None if _TIME.fullmatch(text) else "a time HHMMSS (TM) is needed"
        if kind in ("DTM", "TS", "TSComponentOne"):
            found = _STAMP.fullmatch(text)
            if found is None:
                return "a time YYYYMMDDHHMMSS (DTM) is needed"
            if found[1]:
                self.stated += 1
                if not found[2]:
                    self.zoneless.append(place.removesuffix(".1"))
        return None

    def _tell(self, kind: Kind, place: str, where: str, detail: str, required: bool = True) -> None:
        self.found.append(Deviation(kind, place, where, detail, required))


@lru_cache(maxsize=16)
def _sound(version: str) -> set[tuple[str, str, Element]]:
    """Fields (place, type, content) of a version found right before: codes, names of tests and units come again and again."""
    return set()


@lru_cache(maxsize=16)
def _lengths(version: str) -> dict[str, int]:
    """Longest value of the base data types of a version that have one (chapter 2.A)."""
    out: dict[str, int] = {}
    types = load_library(version).get_base_datatypes()
    for kind in _MEASURED & types.keys():
        made = types[kind](None if kind in ("NM", "SI") else "")
        if made.max_length:
            out[kind] = int(made.max_length)
    return out


def _shown(text: str, place: str) -> str:
    """A code outside its table as it may be told: not where a person's data could stand by mistake, unless it is too short for them."""
    segment = place[:3]
    ordering = segment in _IMPERSONAL and not place.startswith("OBX-5")
    short = len(text) == 1 or (len(text) <= _LONGEST_SIGN and text.isascii())
    return repr(text) if text.isprintable() and (short or (ordering and len(text) <= _LONGEST_CODE)) else "the text"


def _title(reference: Any) -> str:
    return str(reference[3]).replace("_", " ").lower() + " is required"


def _text(component: Component) -> str:
    return component if isinstance(component, str) else "&".join(component)
