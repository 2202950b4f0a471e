"""The narrow waist: a message seen as values at paths.

Adapters turn bytes into a ``Source``; the mapping engine turns a ``Source`` into a transaction Bundle and knows no format.
A Source is a list of records (segments, table rows, XML elements) in message order. Each record has numbered fields; a field has
repetitions; a repetition is a tuple of components; a component is text, or a tuple of texts where sub-components were delimited.
Text is already unescaped and decoded; ``""`` (HL7 null) stays the two characters ``""`` so that "delete" differs from "absent".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

Component = str | tuple[str, ...]
Element = tuple[Component, ...]

NULL = '""'


class Record(Protocol):
    """One addressed part of a message."""

    @property
    def name(self) -> str:
        """Segment id, element or table name: ``OBX``."""
        ...

    @property
    def where(self) -> str:
        """Position for people: name and 1-based ordinal among equal names: ``OBX[3]``."""
        ...

    def fields(self) -> Sequence[tuple[Element, ...]]:
        """All fields by number (index 0 is unused), each as ``get`` gives it. Not to be changed by the reader."""
        ...

    def get(self, field: int) -> tuple[Element, ...]:
        """The repetitions of field ``field`` (1-based); the empty tuple when the field is absent or empty."""
        ...

    def first(self, field: int, component: int = 1) -> str:
        """Text of one component (1-based) of the first repetition; sub-components joined by ``&``; ``""`` as empty string."""
        ...

    def filled(self) -> Iterator[int]:
        """Numbers of the non-empty fields, ascending."""
        ...


class Values:
    """A record made of values: built from elements or columns, or with some fields put in from elsewhere."""

    __slots__ = ("_fields", "name", "where")

    def __init__(self, name: str, where: str, fields: Sequence[tuple[Element, ...]]) -> None:
        """fields: by number, index 0 unused."""
        self.name = name
        self.where = where
        self._fields = fields

    def fields(self) -> Sequence[tuple[Element, ...]]:
        """As Record.fields."""
        return self._fields

    def get(self, field: int) -> tuple[Element, ...]:
        """As Record.get."""
        return self._fields[field] if 0 < field < len(self._fields) else ()

    def first(self, field: int, component: int = 1) -> str:
        """As Record.first."""
        elements = self.get(field)
        found = text(elements[0][component - 1]) if elements and component <= len(elements[0]) else ""
        return "" if found == NULL else found

    def filled(self) -> Iterator[int]:
        """As Record.filled."""
        return (n for n, elements in enumerate(self._fields) if elements and n)


class Source(Protocol):
    """A whole message. Whatever the format, its records bear the names and field numbers of HL7 v2 segments (docs/adr/0018)."""

    @property
    def format(self) -> str:
        """Format word: ``hl7v2``."""
        ...

    @property
    def records(self) -> Sequence[Record]:
        """All records in message order."""
        ...


def text(component: Component) -> str:
    """A component as one text; sub-components joined by ``&`` (``4.50&5.90`` is a range, not two values)."""
    return component if isinstance(component, str) else "&".join(component)


def part(element: Element, component: int, sub: int = 1) -> str:
    """Text of sub-component ``sub`` of component ``component`` (1-based) of one repetition; empty when absent or HL7 null."""
    if component > len(element):
        return ""
    whole = element[component - 1]
    subs = (whole,) if isinstance(whole, str) else whole
    found = subs[sub - 1] if sub <= len(subs) else ""
    return "" if found == NULL else found
