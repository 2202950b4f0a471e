"""The mapping worklist: local codes and units without a mapping, with what helps to decide and ranked proposals.

Counts come from table unmapped; units, ranges and specimens from resource_kind; a few example values from stored results. They
stand without patient, time or report; only numbers and short words are shown, never free text.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import psycopg

from mappings.codes import clean_name
from mappings.proposals import Local, Proposal, shipped_order_proposer, shipped_proposer

EXAMPLES: Final = 5
"""Example values of a code."""
_READ: Final = 200
"""Results looked at to find them."""
_LONGEST_WORD: Final = 12

_OPEN = """
SELECT u.facility, u.kind, u.code, u.name, u.unit, u.count, u.first_seen, u.last_seen FROM unmapped u
WHERE (%(facility)s::text IS NULL OR u.facility = %(facility)s) AND (%(kind)s::text IS NULL OR u.kind = %(kind)s)
  AND NOT EXISTS (
    SELECT FROM code_mapping m WHERE m.until IS NULL AND m.facility = u.facility AND m.kind = u.kind
      AND m.code = CASE u.kind WHEN 'unit' THEN u.unit ELSE u.code END AND (m.code <> '' OR m.name = u.name))
"""
_SENT = """
SELECT facility, kind, CASE kind WHEN 'unit' THEN unit ELSE code END, name FROM unmapped
UNION SELECT facility, kind, code, name FROM code_mapping
"""
_KINDS = """
SELECT id, facility, code, unit_text, range_text, specimen FROM resource_kind WHERE item IS NULL AND facility = ANY(%s)
"""
_VALUES = """
SELECT number, value_text FROM resource WHERE tokens && %(kinds)s::bigint[] AND NOT deleted LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One open entry. kind as in mappings.model.Unmapped; for a unit ``code`` is the unit's text and ``name`` the tests it came with.

    units, ranges, specimens  as sent, most frequent first; empty for orders and units
    examples                  at most EXAMPLES values, distinct
    proposals                 best first; empty when nothing is likely, and for units
    """

    facility: str
    kind: str
    code: str
    name: str
    count: int
    first_seen: datetime
    last_seen: datetime
    units: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    specimens: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    proposals: tuple[Proposal, ...] = field(default=())


def entries(
    conn: psycopg.Connection[Any], *, facility: str | None = None, kind: str | None = None, limit: int | None = None
) -> list[Entry]:
    """Open entries with everything that helps to decide, the most frequent first."""
    found = _open(conn, facility, kind)[:limit]
    seen = _kinds(conn, {e.facility for e in found if e.kind == "code"})
    return [_with_proposals(_with_circumstances(conn, entry, seen)) for entry in found]


def sent(conn: psycopg.Connection[Any]) -> dict[tuple[str, str, str], set[str]]:
    """Every code a message brought without a mapping or somebody decided on: facility, kind and code -> the names it came with."""
    out: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    for facility, kind, code, name in conn.execute(_SENT):
        out[facility, kind, code].add(name)
    return dict(out)


def _open(conn: psycopg.Connection[Any], facility: str | None, kind: str | None) -> list[Entry]:
    """A code with several names is one entry each; a unit is one entry however many tests came with it."""
    out: list[Entry] = []
    units: dict[tuple[str, str], Entry] = {}
    names: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in conn.execute(_OPEN, {"facility": facility, "kind": kind}):
        where, what, code, name, unit, count, first, last = row
        if what != "unit":
            out.append(Entry(where, what, code, name, count, first, last))
            continue
        old = units.get((where, unit))
        names[where, unit].append(name or code)
        units[where, unit] = Entry(
            where, what, unit, "", count + (old.count if old else 0), min(first, old.first_seen) if old else first,
            max(last, old.last_seen) if old else last,
        )  # fmt: skip
    out += [replace(e, name=", ".join(dict.fromkeys(names[key]))) for key, e in units.items()]
    return sorted(out, key=lambda e: (-e.count, e.facility, e.kind, e.code, e.name))


@dataclass(slots=True)
class _Seen:
    kinds: list[int] = field(default_factory=list)
    units: Counter[str] = field(default_factory=Counter)
    ranges: Counter[str] = field(default_factory=Counter)
    specimens: Counter[str] = field(default_factory=Counter)


def _kinds(conn: psycopg.Connection[Any], facilities: Iterable[str]) -> Mapping[tuple[str, str], _Seen]:
    out: defaultdict[tuple[str, str], _Seen] = defaultdict(_Seen)
    for number, facility, code, unit, span, specimen in conn.execute(_KINDS, (sorted(facilities),)):
        seen = out[facility, clean_name(code or "")[0]]
        seen.kinds.append(number)
        for counter, text in ((seen.units, unit), (seen.ranges, span), (seen.specimens, specimen)):
            if text:
                counter[text] += 1
    return out


def _with_circumstances(conn: psycopg.Connection[Any], entry: Entry, seen: Mapping[tuple[str, str], _Seen]) -> Entry:
    if entry.kind != "code":
        return entry
    found = seen.get((entry.facility, clean_name(entry.code or entry.name)[0]))
    if found is None:
        return entry
    return replace(
        entry,
        units=_most(found.units),
        ranges=_most(found.ranges),
        specimens=_most(found.specimens),
        examples=_examples(conn, found.kinds),
    )


def _most(counter: Counter[str]) -> tuple[str, ...]:
    return tuple(text for text, _ in counter.most_common(3))


def _examples(conn: psycopg.Connection[Any], kinds: Sequence[int]) -> tuple[str, ...]:
    out: dict[str, None] = {}
    for number, words in conn.execute(_VALUES, {"kinds": kinds, "limit": _READ}):
        text = format(number, "f") if number is not None else (words or "")
        if text and (number is not None or len(text) <= _LONGEST_WORD):
            out[text] = None
        if len(out) == EXAMPLES:
            break
    return tuple(out)


def _with_proposals(entry: Entry) -> Entry:
    if entry.kind == "unit":
        return entry
    proposer = shipped_proposer() if entry.kind == "code" else shipped_order_proposer()
    local = Local(
        entry.code,
        entry.name,
        entry.units[0] if entry.units else "",
        entry.ranges[0] if entry.ranges else "",
        entry.specimens[0] if entry.specimens else "",
    )
    return replace(entry, proposals=tuple(proposer.propose(local)))
