"""``$everything``: the compartment of a patient or encounter, and what it refers to
(http://hl7.org/fhir/R4/patient-operation-everything.html)."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final

import orjson
from fastapi import Request

from conformance.capability import PATIENT_TYPES, RESOURCE_TYPES, TYPE_NAMES
from fhir_server.access import Principal
from fhir_server.api.content import preferences
from fhir_server.api.inputs import Inputs
from fhir_server.api.searches import searched
from fhir_server.errors import Category, Fault
from fhir_server.search import include, types
from fhir_server.search.leaves import reference_text
from fhir_server.search.page import Row, Sql
from fhir_server.search.query import Query
from fhir_server.search.run import Decompress, Found, hit_of
from fhir_server.search.statement import Context

_KNOWN: Final = ("start", "end", "_since", "_type", "_count", "_cursor", "_elements", "_summary", "_total")
_ALONG: Final = frozenset(RESOURCE_TYPES) - PATIENT_TYPES
"""Types that come along when something refers to them; what is about a patient comes only when it is in the compartment."""
_ROUNDS: Final = 3


async def queries(request: Request, asker: Principal, kind: str, logical: str, asked: Inputs) -> list[Query]:
    """One query per type. Raises Fault INVALID for a value that cannot be read, with strict handling for an unknown parameter."""
    strict = preferences(request.headers).strict
    unknown = [n for n, _ in asked.pairs if n not in _KNOWN]
    if unknown and strict:
        raise Fault(Category.INVALID, f"$everything has no parameter {unknown[0]}.", where=unknown[0])
    wanted = await searched(request, asker, types.types_of(kind), [v for n, v in asked.pairs if n == "_type"])
    pairs = [(n, v) for n, v in asked.pairs if n in ("_count", "_cursor", "_elements", "_summary", "_total")]
    since = asked.text("_since")
    if since:
        pairs.append(("_lastUpdated", f"ge{since}"))
    if not asked.text("_count"):
        pairs.append(("_count", "1000"))
    out = types.read(wanted, pairs, f"{kind}/{logical}/$everything", strict=strict)
    start, end = asked.text("start"), asked.text("end")
    for query in out:
        types.in_compartment(query, kind, logical)
        query.used = [(n, v) for n, v in asked.pairs if n in _KNOWN and n != "_cursor"]
        query.ignored = [(n, f"$everything has no parameter {n}; it was ignored.") for n in unknown]
    return types.cares(out, start, end) if start or end else out


def search(
    queries: Sequence[Query], context: Context, decompress: Decompress, asker: Principal, focus: str
) -> Generator[Sql, Sequence[Row], Found]:
    """One page; the patient (or encounter) itself stands first, what the page refers to last."""

    def allowed(type: str) -> bool:
        return asker.may("search-type", type)

    found: Found = yield from types.search(queries, context, decompress, allowed=allowed)
    found.matches.sort(key=lambda hit: f"{hit.type}/{hit.id}" != focus)
    known = {(hit.type, hit.id) for hit in found.matches}
    fresh = found.matches
    for _ in range(_ROUNDS):
        named = {
            (kind, logical)
            for hit in fresh
            for text in _literals(orjson.loads(hit.body))
            for kind, _, logical in [reference_text(text, context.base).partition("/")]
            if kind in _ALONG and logical and allowed(kind)
        }
        wanted = sorted(named - known)[: include.MAX_INCLUDED]
        if not wanted:
            break
        known |= named
        rows = yield include.by_id(wanted)
        fresh = [hit_of(TYPE_NAMES[row["rtype"]], row, decompress) for row in rows]
        found.included += fresh
    return found


def _literals(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        literal = value.get("reference")
        if isinstance(literal, str) and literal and literal[0] != "#":
            yield literal
        for part in value.values():
            if isinstance(part, dict | list):
                yield from _literals(part)
    elif isinstance(value, list):
        for part in value:
            yield from _literals(part)
