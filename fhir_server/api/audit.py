"""The duplicate audit for auditors: live over a period, kept findings, and their review (docs/auditors.md). No names or numbers of
patients: findings name resources by logical id. A token of a facility sees that facility's orders only; findings about sensitive items
need the grant for their results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, TypeVar

import psycopg
from fastapi import APIRouter, Request, Response

from fhir_server.access import Principal, sensitive_grants
from fhir_server.api.cds_hooks import answer, read_json
from fhir_server.api.security import Asker, address_of, permit, permit_role, services_of
from fhir_server.audit_event import Action
from fhir_server.duplicates import cases, detect, findings, report, review
from fhir_server.duplicates.findings import Wanted
from fhir_server.duplicates.report import Report, Scope
from fhir_server.duplicates.review import Reviewer
from fhir_server.errors import Category, Fault
from fhir_server.recognition.feedback import read_string
from fhir_server.recognition.rules import Rules

router = APIRouter(prefix="/audit")

T = TypeVar("T")
SERVICE: Final = "duplicate-audit"
_TYPES: Final = ("Observation", "DiagnosticReport", "ServiceRequest")
MEDIA: Final = {
    "csv": "text/csv; charset=utf-8",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
_MOST: Final = 1000
_AWAY: Final = (psycopg.OperationalError, OSError)


@router.get("/duplicates")
async def duplicates(request: Request, asker: Asker) -> Response:
    """The audit of a period, judged now: ``from``, ``to`` (exclusive), ``facility``, ``department``, ``doctor``, ``item``, ``format``
    (json, csv or xlsx). Nothing is kept; ``POST /audit/findings`` keeps."""
    await may(request, asker)
    form = request.query_params.get("format", "json")
    if form not in ("json", *MEDIA):
        raise Fault(Category.INVALID, "format is json, csv or xlsx.", where="format")
    found = _shown(await _audited(request, asker, request.query_params), hidden(request, asker))
    await seen(request, asker, "R")
    if form == "json":
        return answer(report.as_dict(found))
    return Response(report.as_csv(found) if form == "csv" else report.as_xlsx(found), media_type=MEDIA[form])


@router.get("/duplicates/cases")
async def duplicate_cases(request: Request, asker: Asker) -> Response:
    """The orders behind a figure of ``/duplicates``, judged now: ``figure`` (orders, repeats, avoidable, justified, undetermined,
    system, partial or not-understood), ``basis`` (order or collection) and ``orderable`` of a row, period and filters, ``_count`` (at
    most 1000) and ``_offset``, ``format`` (json, csv or xlsx). ``total``: how many there are."""
    await may(request, asker)
    query = request.query_params
    figure, form = query.get("figure", ""), query.get("format", "json")
    if figure not in cases.FIGURES:
        raise Fault(Category.INVALID, f"figure is {', '.join(cases.FIGURES)}.", where="figure")
    if form not in ("json", *MEDIA):
        raise Fault(Category.INVALID, "format is json, csv or xlsx.", where="format")
    count, offset = min(number(query, "_count", 100), _MOST), number(query, "_offset", 0)
    audited = _shown(await _audited(request, asker, query, listed=True), hidden(request, asker))
    found = [
        c
        for c in cases.of(figure, audited.cases)
        if query.get("basis") in (None, "", c.basis) and query.get("orderable") in (None, "", c.orderable)
    ]
    page = found[offset : offset + count]
    await seen(request, asker, "R")
    if form == "json":
        shown = {"figure": figure, "total": len(found), "cases": list(map(cases.as_dict, page))}
        return answer(shown | {"_count": count, "_offset": offset})
    return Response(cases.as_csv(page) if form == "csv" else cases.as_xlsx(page), media_type=MEDIA[form])


@router.post("/findings")
async def keep(request: Request, asker: Asker) -> Response:
    """Audits a period (names as in the query of ``/duplicates``) and keeps its findings: how many new, changed, same, ended."""
    await may(request, asker)
    body = await read_json(request)
    found = await _audited(request, asker, {k: v for k, v in body.items() if isinstance(v, str)})
    now = services_of(request).clock()
    kept = await written(request, lambda conn: findings.keep(conn, found, now))
    await seen(request, asker, "C")
    return answer({"new": kept.new, "changed": kept.changed, "same": kept.same, "ended": kept.ended})


@router.get("/findings")
async def search(request: Request, asker: Asker) -> Response:
    """Kept findings of a period; also ``kind``, ``cause``, ``_count`` (at most 1000) and ``_offset``."""
    await may(request, asker)
    query = request.query_params
    start, end, scope = period(request, asker, query)
    count, offset = number(query, "_count", 100), number(query, "_offset", 0)
    wanted = Wanted(
        start,
        end,
        scope,
        query.get("kind", ""),
        query.get("cause", ""),
        hidden(request, asker),
        min(count, _MOST),
        offset,
    )
    found = await written(request, lambda conn: findings.search(conn, wanted))
    await seen(request, asker, "R")
    return answer({"findings": found, "_count": wanted.limit, "_offset": offset})


@router.get("/findings/{finding}")
async def read(finding: str, request: Request, asker: Asker) -> Response:
    """One finding with its versions and its review."""
    await may(request, asker)
    versions = await _one(request, asker, finding)
    line = await written(request, lambda conn: review.steps(conn, finding))
    await seen(request, asker, "R")
    return answer({"finding": versions[-1], "versions": versions, "review": line, **review.state(line)})


@router.post("/samples")
async def sample(request: Request, asker: Asker) -> Response:
    """Draws findings for review by lot: ``from``, ``to``, ``size``, ``seed``, and what narrows them, ``kind`` too."""
    await may(request, asker)
    body = await read_json(request)
    text = {k: v for k, v in body.items() if isinstance(v, str)}
    start, end, scope = period(request, asker, text)
    size = body.get("size")
    if not isinstance(size, int) or not 0 < size <= _MOST:
        raise Fault(Category.INVALID, f"size is a number from 1 to {_MOST}.", where="size")
    wanted = Wanted(start, end, scope, text.get("kind", ""), "", hidden(request, asker), 1_000_000)
    seed, now = read_string(body, "seed", ""), services_of(request).clock()
    drawn = await written(request, lambda conn: review.sample(conn, wanted, size, seed, _reviewer(asker), now))
    await seen(request, asker, "C")
    return answer({"findings": drawn, "seed": seed}, 201)


@router.get("/reviews")
async def waiting(request: Request, asker: Asker) -> Response:
    """Findings drawn or appealed against that wait for a verdict."""
    await may(request, asker)
    found = await written(request, lambda conn: review.waiting(conn, asker.facility))
    await seen(request, asker, "R")
    return answer({"waiting": found})


@router.post("/findings/{finding}/verdict")
async def verdict(finding: str, request: Request, asker: Asker) -> Response:
    """A reviewer's verdict: ``verdict`` (a kind) and ``text``; never by the facility that is judged."""
    await may(request, asker)
    body = await read_json(request)
    found, text = read_string(body, "verdict", ""), read_string(body, "text", "")
    now = services_of(request).clock()
    await _one(request, asker, finding)
    number = await written(request, lambda conn: review.judge(conn, finding, found, text, _reviewer(asker), now))
    await seen(request, asker, "C")
    return answer({"finding": finding, "number": number, "verdict": found}, 201)


@router.post("/findings/{finding}/appeal")
async def appeal(finding: str, request: Request, asker: Asker) -> Response:
    """The audited facility's appeal: ``text``."""
    await may(request, asker)
    text, now = read_string(await read_json(request), "text", ""), services_of(request).clock()
    await _one(request, asker, finding)
    number = await written(request, lambda conn: review.appeal(conn, finding, text, _reviewer(asker), now))
    await seen(request, asker, "C")
    return answer({"finding": finding, "number": number}, 201)


# --- who may see what ----------------------------------------------------------------------------------------------------------


async def may(request: Request, asker: Principal) -> None:
    """Raises Fault FORBIDDEN unless the asker audits and may search results."""
    await permit_role(request, asker, SERVICE, "auditor")
    await permit(request, asker, "search-type", *_TYPES)


def hidden(request: Request, asker: Principal) -> list[str]:
    """Codes of orderables and items whose results the asker may not know of."""
    return sensitive_codes(services_of(request).rules, sensitive_grants(asker.scopes))


def sensitive_codes(rules: Rules, grants: Iterable[str]) -> list[str]:
    """Codes of items of a sensitivity class that is not granted, and of orderables with such a member."""
    granted = set(grants)
    items = {code for code, item in rules.items.items() if item.sensitivity and item.sensitivity not in granted}
    return sorted(
        items | {o.code for o in rules.orderables.values() if not items.isdisjoint((*o.required, *o.optional))}
    )


def _shown(found: Report, without: Iterable[str]) -> Report:
    closed = set(without)
    return replace(
        found,
        rows=tuple(r for r in found.rows if r.orderable not in closed),
        findings=tuple(f for f in found.findings if f.orderable not in closed),
        cases=tuple(c for c in found.cases if c.orderable not in closed),
    )


def _reviewer(asker: Principal) -> Reviewer:
    return Reviewer(asker.subject, asker.facility)


async def _one(request: Request, asker: Principal, finding: str) -> list[dict[str, Any]]:
    versions = await written(request, lambda conn: findings.versions(conn, finding))
    last = versions[-1] if versions else {}
    if not last or asker.facility not in ("", last["facility"]) or last["orderable"] in hidden(request, asker):
        raise Fault(Category.NOT_FOUND, "There is no finding of that id.")
    return versions


# --- parameters, database, evidence --------------------------------------------------------------------------------------------


def period(request: Request, asker: Principal, query: Mapping[str, str]) -> tuple[datetime, datetime, Scope]:
    """Period and what narrows it; a token of a facility is for that one. Raises Fault INVALID, FORBIDDEN."""
    start, end = period_of(request, query)
    scope = Scope(*(query.get(name, "") for name in ("facility", "department", "doctor", "item")))
    if asker.facility:
        if scope.facility not in ("", asker.facility):
            raise Fault(Category.FORBIDDEN, "The token is for one facility; ask for its orders.", where="facility")
        scope = replace(scope, facility=asker.facility)
    return start, end, scope


def period_of(request: Request, query: Mapping[str, str]) -> tuple[datetime, datetime]:
    """``from`` and ``to`` as aware times; without a zone they are local. Raises Fault INVALID."""
    found = []
    for name in ("from", "to"):
        try:
            at = datetime.fromisoformat(query.get(name, ""))
        except ValueError:
            raise Fault(
                Category.INVALID, f"{name} is a date or time as ISO 8601, such as 2026-01-01.", where=name
            ) from None
        found.append(at if at.tzinfo else at.replace(tzinfo=services_of(request).settings.zone))
    if found[1] <= found[0]:
        raise Fault(Category.INVALID, "to is not after from; the period is empty.", where="to")
    return found[0], found[1]


def number(query: Mapping[str, str], name: str, otherwise: int) -> int:
    """A parameter that is a number. Raises Fault INVALID."""
    text = query.get(name, str(otherwise))
    if not text.isdecimal() or len(text) > 9:
        raise Fault(Category.INVALID, f"{name} is a number.", where=name)
    return int(text)


async def _audited(request: Request, asker: Principal, query: Mapping[str, str], *, listed: bool = False) -> Report:
    services = services_of(request)
    start, end, scope = period(request, asker, query)
    rules, profiles = services.rules, services.profiles
    return await written(request, lambda conn: detect.audit(conn, rules, profiles, start, end, scope, cases=listed))


async def written(request: Request, work: Callable[[psycopg.Connection[Any]], T]) -> T:
    """Runs work on a connection in a thread. Raises Fault UNAVAILABLE when the database is away."""
    writer = services_of(request).writer

    def run() -> T:
        with writer.connection() as conn:
            return work(conn)

    try:
        return await asyncio.to_thread(run)
    except _AWAY:
        raise Fault(Category.UNAVAILABLE, "The audit cannot be read now. Try again later.") from None


async def seen(request: Request, asker: Principal, action: Action) -> None:
    """The audit entry of an answer; before it leaves."""
    services = services_of(request)
    await services.audit.record(asker, action, SERVICE, _TYPES, [], at=services.clock(), address=address_of(request))
