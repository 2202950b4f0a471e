"""Searches over several types (http://hl7.org/fhir/R4/http.html#search: ``?_type=Patient,Observation``) and compartments
(http://hl7.org/fhir/R4/search.html#compartment): the same search once per type, merged in one order.

Every page asks each type for its next matches by the same place, so pages neither skip nor repeat, as with one type (search/page).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from typing import Any

from fhir_server.errors import Category, Fault
from fhir_server.search import include, page
from fhir_server.search.definitions import compartments, parameters
from fhir_server.search.followed import followed
from fhir_server.search.page import Row, Sql
from fhir_server.search.query import CURSOR, Filter, Query, parse
from fhir_server.search.run import Decompress, Found, come_along, hit_of, settled
from fhir_server.search.statement import Context

Pairs = Sequence[tuple[str, str]]
Match = tuple[Query, Row]


def in_compartment(query: Query, compartment: str, logical: str) -> None:
    """Narrows a search to what is in a compartment. Raises Fault NOT_FOUND when the type never is."""
    codes = compartments().get(compartment, {}).get(query.type)
    if codes is None:
        raise Fault(Category.NOT_FOUND, f"There is no {query.type} in the compartment of a {compartment}.")
    known = parameters(query.type)
    places = [Filter(c, "reference", "", (f"{compartment}/{logical}",), known[c]) for c in codes if c in known]
    if query.type == compartment:
        places.append(Filter("_id", "id", "", (logical,)))
    one = places[0] if len(places) == 1 else None
    query.filters.insert(0, one or Filter("", "any", "", (logical,), None, tuple((query.type, p) for p in places)))


def types_of(compartment: str) -> list[str]:
    """Resource types of a compartment."""
    return list(compartments().get(compartment, {}))


def read(types: Sequence[str], pairs: Pairs, place: str, *, strict: bool) -> list[Query]:
    """One query per type. A parameter counts only when every type has it; others are reported by the first query.

    Raises Fault INVALID, also for an order that types do not share.
    """
    ignored: dict[tuple[str, str], str] = {}
    asked = [(n, v) for n, v in pairs if n != "_type"]
    for name in types:
        for code, reason in parse(name, _own(asked, name, types), strict=strict).ignored:
            ignored.setdefault((code, name), reason)
    gone = {code for code, _ in ignored}
    queries = [parse(name, [p for p in _own(asked, name, types) if p[0] not in gone]) for name in types]
    used = [(n, v) for n, v in pairs if n not in gone and n not in (CURSOR, "_format", "_pretty")]
    told = {code: reason for (code, _), reason in reversed(ignored.items())}
    for query in queries:
        query.place, query.used, query.ignored = place, used, list(told.items())
        if len(types) > 1 and any(s.column not in ("id", "updated") for s in query.sort):
            raise Fault(Category.INVALID, "Several types are sorted by _id and _lastUpdated only.", where="_sort")
    return queries


def _own(pairs: Pairs, type: str, types: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs that concern a type: an ``_include`` names the type it starts from."""

    def foreign(name: str, value: str) -> bool:
        source = value.partition(":")[0]
        return name == "_include" and source != type and source in types

    return [(n, v) for n, v in pairs if not foreign(n, v)]


def search(
    queries: Sequence[Query], context: Context, decompress: Decompress, *, allowed: Callable[[str], bool]
) -> Generator[Sql, Sequence[Row], Found]:
    """As ``run.search``, over the types of all queries."""
    found = Found()
    first = queries[0]
    settled_: list[Query] = []
    for query in queries:
        own = yield from settled(query, decompress, allowed)
        settled_.append((yield from followed(own, context, decompress)))
    if first.summary != "count" and first.count:
        matches: list[Match] = []
        for query in settled_:
            rows = yield from page.rows(query, context, query.count + 1)
            matches.extend((query, row) for row in rows)
        shown = _first(matches, first)
        if len(shown) < len(matches):
            found.next = page.place_of(first, shown[-1][1])
        found.matches = [hit_of(query.type, row, decompress) for query, row in shown]
        wanted = {i: None for q in settled_ for i in q.includes if any(map(allowed, include.included_types(i)))}
        if wanted and found.matches:
            yield from come_along(wanted, found, context, decompress, allowed)
    if first.summary == "count" or not first.count or first.total != "none":
        found.total = 0
        for query in settled_:
            found.total += next(iter((yield page.count(query, context))))["count"]
    return found


def _column(name: str) -> Callable[[Match], Any]:
    return lambda match: match[1][name]


def _first(matches: Iterable[Match], query: Query) -> list[Match]:
    """The first of the matches in the order of the query, as many as a page holds; what stands at the very same place as the last
    of them comes with it, because the next page begins after that place."""
    ordered = sorted(matches, key=lambda m: (m[1]["shard"], m[1]["id"]))
    for number, sort in reversed(list(enumerate(query.sort))):
        ordered.sort(key=_column(f"k{number}"), reverse=sort.descending)
    if len(ordered) <= query.count:
        return ordered
    last = page.place_of(query, ordered[query.count - 1][1])
    end = query.count
    while end < len(ordered) and page.place_of(query, ordered[end][1]) == last:
        end += 1
    return ordered[:end]


def cares(queries: Iterable[Query], start: str, end: str) -> list[Query]:
    """The queries narrowed to care between two dates (either may be empty)."""
    care = Filter("start", "care", "", (start or "0001", end or "9998"))
    return [replace(q, filters=[*q.filters, care]) for q in queries]
