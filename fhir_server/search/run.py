"""A search from the first statement to the last, without I/O: it yields SQL and is sent the rows, so that the API (asyncpg) and a
transaction (psycopg) run the same search.

Rows are mappings with the columns of ``page.COLUMNS`` and ``rtype`` where several types may come.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import orjson

from conformance.capability import TYPE_NAMES
from fhir_server.search import include, page, sort_keys
from fhir_server.search.followed import followed
from fhir_server.search.page import Place, Row, Sql
from fhir_server.search.query import Include, Query, restrict
from fhir_server.search.statement import Context
from fhir_server.search.value_sets import Terminology, resolve

Decompress = Callable[[int, bytes, Sequence[str | None]], bytes]
"""Dictionary, compressed body, names of its row (store.body) -> JSON."""
MAX_ROUNDS: Final = 8
"""Most rounds of ``:iterate``."""


@dataclass(slots=True)
class Hit:
    """One resource of the answer: JSON as stored, and what the envelope needs."""

    type: str
    id: str
    patient: str | None
    body: bytes


@dataclass(slots=True)
class Found:
    """The answer to a search: one page of matches, what came along, the place of the next page, the number of all matches."""

    matches: list[Hit] = field(default_factory=list)
    included: list[Hit] = field(default_factory=list)
    next: Place | None = None
    total: int | None = None
    cut: bool = False
    """True when more than MAX_INCLUDED resources should have come along."""

    @property
    def hits(self) -> list[Hit]:
        """Matches, then included resources."""
        return [*self.matches, *self.included]


def search(
    query: Query, context: Context, decompress: Decompress, *, allowed: Callable[[str], bool]
) -> Generator[Sql, Sequence[Row], Found]:
    """Yields statements, is sent their rows, returns the answer. ``allowed``: whether resources of a type may come along, and be
    looked at by a chain."""
    found = Found()
    query = yield from settled(query, decompress, allowed)
    query = yield from followed(query, context, decompress)
    if query.summary != "count" and query.count:
        if sort_keys.needed(query):
            rows = yield from sort_keys.rows_of(query, context, decompress)
        else:
            rows = yield from page.rows(query, context, query.count + 1)
        if len(rows) > query.count:
            rows = rows[: query.count]
            found.next = page.place_of(query, rows[-1])
        found.matches = [hit_of(query.type, row, decompress) for row in rows]
        wanted = [i for i in query.includes if any(map(allowed, include.included_types(i)))]
        if wanted and found.matches:
            yield from come_along(wanted, found, context, decompress, allowed)
    if query.summary == "count" or not query.count or query.total != "none":
        found.total = (yield page.count(query, context))[0]["count"]
    return found


def settled(
    query: Query, decompress: Decompress, allowed: Callable[[str], bool]
) -> Generator[Sql, Sequence[Row], Query]:
    """The query as it is carried out: without what the asker may not look at, value sets as their codes."""
    restrict(query, allowed)
    return replace(query, filters=(yield from resolve(query.filters, Terminology(decompress))))


def hit_of(type: str, row: Row, decompress: Decompress) -> Hit:
    """A row with ``page.COLUMNS`` as a resource of the answer."""
    logical, patient = row["id"], row["patient"]
    return Hit(type, logical, patient, decompress(row["dict"], bytes(row["body"]), (logical, patient, row["order"])))


def come_along(
    includes: Iterable[Include], found: Found, context: Context, decompress: Decompress, allowed: Callable[[str], bool]
) -> Generator[Sql, Sequence[Row], None]:
    """Adds to ``found`` what its matches bring along."""
    known = {(hit.type, hit.id) for hit in found.matches}
    fresh = found.matches
    for number in range(MAX_ROUNDS):
        before = len(found.included)
        for wanted in includes:
            if number and not wanted.iterate:
                continue
            starts = [hit for hit in fresh if include.sources(wanted, hit.type)]
            sql = _statement(wanted, starts, known, context, include.MAX_INCLUDED - len(found.included) + 1)
            if sql is None:
                continue
            for row in (yield sql):
                name = TYPE_NAMES[row["rtype"]]
                if (name, row["id"]) in known or not allowed(name):
                    continue
                if len(found.included) == include.MAX_INCLUDED:
                    found.cut = True
                    return
                known.add((name, row["id"]))
                found.included.append(hit_of(name, row, decompress))
        fresh = found.included[before:]
        if not fresh:
            return


def _statement(
    wanted: Include, starts: Sequence[Hit], known: set[include.Target], context: Context, limit: int
) -> Sql | None:
    if not starts:
        return None
    if wanted.reverse:
        return include.pointing_at(wanted, [(hit.type, hit.id) for hit in starts], limit)
    bodies = [orjson.loads(hit.body) for hit in starts]
    targets = include.targets(wanted, bodies, context.base) - known
    return include.by_id(sorted(targets)[:limit]) if targets else None
