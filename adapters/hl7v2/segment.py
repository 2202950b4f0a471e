"""Segments of an HL7 v2 message as records: fields, repetitions, components, sub-components (HL7 v2.5.1 section 2.5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adapters.hl7v2.delimiters import Escapes, Separators
from mappings.source import NULL, Component, Element, text

HEADER = "MSH[1]"
"""The one segment that counts its fields from the separator."""


class Rules:
    """What the segments of one message share."""

    __slots__ = ("component", "delimiters", "escape", "escapes", "field", "leads", "repetition", "subcomponent")

    def __init__(self, separators: Separators, unescaper: Escapes) -> None:
        self.field = separators.field
        self.component = separators.component
        self.repetition = separators.repetition
        self.subcomponent = separators.subcomponent
        self.escape = separators.escape
        self.escapes = unescaper
        self.delimiters = self.component + self.repetition + self.subcomponent + " "
        self.leads = tuple(self.field + first for first in (" ", self.component, self.subcomponent))

    def fields(self, raws: list[str], line: str) -> list[tuple[Element, ...]]:
        """All fields of one segment; a field that is absent, or holds only blanks and delimiters, is the empty tuple."""
        component, escape, subcomponent = self.component, self.escape, self.subcomponent
        blank, component_first, sub_first = self.leads
        if self.repetition in line or blank in line or component_first in line or sub_first in line:
            return [self._elements(raw, escape in raw or subcomponent in raw) if raw else () for raw in raws]
        if escape not in line and subcomponent not in line:
            # The usual line. No field starts with a blank or a delimiter, so none holds nothing else.
            return [
                (((raw,),) if component not in raw else (tuple(raw.split(component)),)) if raw else () for raw in raws
            ]
        return [
            (
                (self._element(raw, True),)
                if escape in raw or subcomponent in raw
                else ((raw,),)
                if component not in raw
                else (tuple(raw.split(component)),)
            )
            if raw
            else ()
            for raw in raws
        ]

    def _elements(self, raw: str, special: bool) -> tuple[Element, ...]:
        if not raw.strip(self.delimiters):
            return ()
        if self.repetition not in raw:
            return (self._element(raw, special),)
        return tuple(self._element(part, special) for part in raw.rstrip(self.repetition).split(self.repetition))

    def _element(self, raw: str, special: bool) -> Element:
        if special:
            return tuple(map(self._component, raw.split(self.component)))
        return tuple(raw.split(self.component)) if self.component in raw else (raw,)

    def _component(self, raw: str) -> Component:
        unescape = self.escapes.unescape
        if self.subcomponent in raw:
            return tuple(map(unescape, raw.split(self.subcomponent)))
        return unescape(raw)


class Segment:
    """One segment, a ``Record``. MSH-1 is the field separator itself (section 2.15.9.1)."""

    __slots__ = ("_fields", "_line", "_rules", "name", "where")

    def __init__(self, name: str, where: str, line: str, rules: Rules) -> None:
        self.name = name
        self.where = where
        self._line = line
        self._rules = rules
        self._fields: list[tuple[Element, ...]] = []

    def _raws(self) -> list[str]:
        raws = self._line.split(self._rules.field)
        if self.where == HEADER:
            raws.insert(1, self._rules.field)
        return raws

    def _split(self) -> list[tuple[Element, ...]]:
        raws = self._raws()
        line = self._line
        if self.where == HEADER:
            # MSH-2 holds the delimiters themselves: it is neither split nor a reason to look for escapes.
            raws[2] = ""
            line = line[5 + len(self._rules.field) :]
        fields = self._rules.fields(raws, line)
        if self.where == HEADER:
            fields[1] = ((self._rules.field,),)
            fields[2] = ((self.raw(2),),)
        self._fields = fields
        return fields

    def raw(self, field: int) -> str:
        """Field ``field`` (1-based) as written, delimiters and escapes included; empty when absent."""
        raws = self._raws()
        return raws[field] if 0 < field < len(raws) else ""

    def fields(self) -> Sequence[tuple[Element, ...]]:
        """All fields by number; index 0 holds the segment id."""
        return self._fields or self._split()

    def get(self, field: int) -> tuple[Element, ...]:
        """The repetitions of a field; the empty tuple when it is absent, or holds only blanks and delimiters."""
        fields = self._fields or self._split()
        return fields[field] if 0 < field < len(fields) else ()

    def first(self, field: int, component: int = 1) -> str:
        """Text of one component of the first repetition; empty when absent or HL7 null."""
        elements = self.get(field)
        if not elements or component > len(elements[0]):
            return ""
        found = text(elements[0][component - 1])
        return "" if found == NULL else found

    def filled(self) -> Iterator[int]:
        """Numbers of the non-empty fields, ascending."""
        for number, elements in enumerate(self._fields or self._split()):
            if elements and number:
                yield number

    def __repr__(self) -> str:
        return f"Segment({self.where})"
