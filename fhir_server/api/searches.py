"""Searches over HTTP (http://hl7.org/fhir/R4/http.html#search): a type, all types, a compartment; by GET and by POST ``_search``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request, Response

from conformance.capability import RESOURCE_TYPES
from fhir_server.access import Principal
from fhir_server.api import audit_events, interaction
from fhir_server.api.bundle import searchset
from fhir_server.api.content import form_pairs, preferences, query_of, query_pairs, require_json_answer
from fhir_server.api.interaction import Touched, audited, base_of, context_of
from fhir_server.api.responses import fhir
from fhir_server.api.security import Asker, permit, services_of
from fhir_server.errors import Category, Fault
from fhir_server.search import types
from fhir_server.search.query import Query, parse

router = APIRouter()

READ: Final = ["GET", "HEAD"]
Pairs = list[tuple[str, str]]


def require_served(kind: str) -> None:
    """Raises Fault NOT_FOUND for a resource type that is not served."""
    if kind not in RESOURCE_TYPES:
        raise Fault(Category.NOT_FOUND, "This is not a resource type served here.")


async def _posted(request: Request) -> Pairs:
    return await form_pairs(request, services_of(request).settings.max_request)


async def search_system(request: Request, asker: Asker) -> Response:
    """Search over all types, or those of ``_type``."""
    return await _several(request, asker, list(RESOURCE_TYPES), "", query_pairs(query_of(request)))


@router.post("/_search")
async def search_system_post(request: Request, asker: Asker) -> Response:
    """The same, its parameters in the body."""
    return await _several(request, asker, list(RESOURCE_TYPES), "", await _posted(request))


@router.api_route("/{kind}", methods=READ)
async def search_type(request: Request, asker: Asker, kind: str) -> Response:
    """Search by type."""
    return await _one(request, asker, kind, query_pairs(query_of(request)))


@router.post("/{kind}/_search")
async def search_post(request: Request, asker: Asker, kind: str) -> Response:
    """The same, its parameters in the body."""
    return await _one(request, asker, kind, await _posted(request))


async def search_compartment(request: Request, asker: Asker, kind: str, logical: str, inner: str) -> Response:
    """Search in a compartment: ``Patient/1/Observation``, ``Patient/1/*``."""
    return await _compartment(request, asker, kind, logical, inner, query_pairs(query_of(request)))


@router.post("/{kind}/{logical}/{inner}/_search")
async def search_compartment_post(request: Request, asker: Asker, kind: str, logical: str, inner: str) -> Response:
    """The same, its parameters in the body."""
    return await _compartment(request, asker, kind, logical, inner, await _posted(request))


async def _one(request: Request, asker: Principal, kind: str, pairs: Pairs) -> Response:
    require_json_answer(request)
    require_served(kind)
    await permit(request, asker, "search-type", kind)
    if audit_events.wants_log(asker, kind, pairs):
        return await audit_events.search(request, asker, pairs)
    pairs = [pair for pair in pairs if pair[0] != audit_events.STORED] if kind == "AuditEvent" else pairs
    query = parse(kind, pairs, strict=preferences(request.headers).strict)
    return await _answer(request, asker, "search-type", [query], pairs)


async def _compartment(
    request: Request, asker: Principal, kind: str, logical: str, inner: str, pairs: Pairs
) -> Response:
    place = f"{kind}/{logical}/{inner}"
    within = types.types_of(kind)
    if inner == "*" and within:
        return await _several(request, asker, within, place, pairs, (kind, logical))
    require_json_answer(request)
    if inner not in within:
        raise Fault(Category.NOT_FOUND, "There is nothing at this address.")
    await permit(request, asker, "search-type", inner)
    query = parse(inner, pairs, strict=preferences(request.headers).strict)
    query.place = place
    types.in_compartment(query, kind, logical)
    return await _answer(request, asker, "search-type", [query], pairs)


async def _several(
    request: Request,
    asker: Principal,
    known: Sequence[str],
    place: str,
    pairs: Pairs,
    focus: tuple[str, str] = ("", ""),
) -> Response:
    """A search over several types; those of ``_type``, else all of ``known`` that the asker may search."""
    require_json_answer(request)
    wanted = await searched(request, asker, known, [v for n, v in pairs if n == "_type"])
    queries = types.read(wanted, pairs, place, strict=preferences(request.headers).strict)
    if focus[0]:
        for query in queries:
            types.in_compartment(query, *focus)
    return await _answer(request, asker, "search-system", queries, pairs)


async def searched(request: Request, asker: Principal, known: Sequence[str], said: Sequence[str]) -> list[str]:
    """The types a search over several looks at: those of ``_type`` (each value a list with commas), else all of ``known`` that the
    asker may search. Raises Fault INVALID for a type not known, FORBIDDEN for one, or for all, that may not be searched."""
    named = [set(value.split(",")) for value in said]
    for name in set().union(*named):
        if name not in known:
            raise Fault(Category.INVALID, "_type must name resource types that can be found here.", where="_type")
    wanted = [t for t in known if all(t in names for names in named)]
    if not named:
        wanted = [t for t in wanted if asker.may("search-type", t)] or wanted
    await permit(request, asker, "search-type", *wanted)
    if not wanted:
        raise Fault(Category.INVALID, "_type leaves no resource type to search.", where="_type")
    return wanted


async def _answer(request: Request, asker: Principal, name: str, queries: Sequence[Query], pairs: Pairs) -> Response:
    found = await interaction.search(services_of(request), queries, context_of(request), asker)
    touched = [Touched(hit.type, hit.patient) for hit in found.hits]
    told = "&".join(n for n, _ in pairs)
    await audited(request, asker, "R", name, touched, types={q.type for q in queries}, query=told)
    return fhir(request, searchset(queries[0], found, base_of(request)))
