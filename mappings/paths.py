"""What a facility writes in another place than the standard's, by its profile: Z segments, swapped components, own message types.

``paths: {PID-19: ZPI-2, OBX-3.1: OBX-3.4}`` says where a field or component is really found; ``triggers: {ZLB^Z01: ORU^R01}`` what an
own message means. The records are rewritten before anything else looks at them, so that peek and mapping see the same message. A
place the sender leaves empty changes nothing. Sources are read as sent: two components can change places.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from mappings.facility import Facility
from mappings.source import Element, Record, Values, text
from mappings.trigger import trigger_name

_PATH = re.compile(r"([A-Z][A-Z0-9]{2})-(\d{1,3})(?:\.(\d{1,2}))?")
Read = tuple[Record, int]
"""A field that was taken from somewhere, so that it is not listed as unread."""


@lru_cache(maxsize=1024)
def parse(path: str) -> tuple[str, int, int]:
    """``OBX-3.1`` -> (segment, field, component or 0). Raises ValueError when it is no path."""
    found = _PATH.fullmatch(path)
    if not found or int(found[2]) < 1 or found[3] == "0":
        raise ValueError(f"{path!r} is not a place like PID-19 or OBX-3.1")
    return found[1], int(found[2]), int(found[3] or 0)


def segments(facility: Facility) -> frozenset[str]:
    """Segments the profile's paths take something from."""
    return frozenset(parse(source)[0] for source in facility.paths.values())


def rewritten(records: Sequence[Record], facility: Facility) -> tuple[Sequence[Record], list[Read]]:
    """The records as the profile reads them, and the fields that were taken from their places."""
    if not facility.paths and not facility.triggers:
        return records, []
    out: list[Record] = list(records)
    read: list[Read] = []
    for at, record in enumerate(records):
        moves = [(parse(t), parse(s)) for t, s in facility.paths.items() if t[:3] == record.name]
        fields = list(record.fields()) if moves else []
        for (_, field, component), source in moves:
            found = _source(records, at, source[0])
            if found is None or not _put(fields, field, component, found, source):
                continue
            read.append((found, source[1]))
        if moves:
            out[at] = Values(record.name, record.where, fields)
            read += [(out[at], field) for held, field in read if held is record]
    if facility.triggers:
        _mean(out, facility)
    return out, read


def _source(records: Sequence[Record], at: int, name: str) -> Record | None:
    """The record of that name which belongs to ``records[at]``: itself, one below it, or the nearest before."""
    here = records[at]
    if here.name == name:
        return here
    for record in records[at + 1 :]:
        if record.name == here.name:
            break
        if record.name == name:
            return record
    return next((r for r in reversed(records[:at]) if r.name == name), None)


def _put(
    fields: list[tuple[Element, ...]], field: int, component: int, record: Record, source: tuple[str, int, int]
) -> bool:
    elements = record.get(source[1])
    if not elements:
        return False
    if source[2]:
        if source[2] > len(elements[0]) or not text(elements[0][source[2] - 1]):
            return False
        elements = ((elements[0][source[2] - 1],),)
    fields.extend(() for _ in range(field + 1 - len(fields)))
    if component:
        held = list(fields[field][0]) if fields[field] else []
        held.extend("" for _ in range(component - len(held)))
        held[component - 1] = elements[0][0]
        fields[field] = (tuple(held), *fields[field][1:])
    else:
        fields[field] = elements
    return True


def _mean(records: list[Record], facility: Facility) -> None:
    for at, record in enumerate(records):
        if record.name != "MSH":
            continue
        event = next((r.first(1) for r in records if r.name == "EVN"), "")
        means = facility.triggers.get(trigger_name(record, event))
        if means:
            fields = list(record.fields())
            fields[9] = (tuple(means.split("^")),)
            records[at] = Values(record.name, record.where, fields)
        return
