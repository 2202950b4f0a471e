"""One segment to be written: the mirror image of ``mappings.source.Record``. Values only; delimiters and escapes are the adapter's."""

from __future__ import annotations

from dataclasses import dataclass, field

from mappings.source import Component, Element

Value = str | Element | tuple[Element, ...]


@dataclass(slots=True)
class Line:
    """A segment: its id and the filled fields by number (1-based), each with its repetitions."""

    name: str
    fields: dict[int, tuple[Element, ...]] = field(default_factory=dict)

    def put(self, number: int, *repetitions: Element | str) -> None:
        """Set a field. Repetitions without any text are left out, and a field without repetitions is not there."""
        kept = tuple(e for e in ((r,) if isinstance(r, str) else r for r in repetitions) if _filled(e))
        if kept:
            self.fields[number] = kept


def _filled(element: Element) -> bool:
    return any(component if isinstance(component, str) else any(component) for component in element)


def trimmed(*components: Component) -> Element:
    """An element without empty components at its end."""
    kept = list(components)
    while kept and not (kept[-1] if isinstance(kept[-1], str) else any(kept[-1])):
        kept.pop()
    return tuple(kept)
