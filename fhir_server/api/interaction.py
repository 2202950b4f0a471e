"""What the interactions share: the search driver, write transactions in threads, the audit entry, history paging."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from datetime import datetime, tzinfo
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

import asyncpg
import psycopg
from fastapi import Request

from fhir_server.access import Principal
from fhir_server.api.content import query_of, query_pairs
from fhir_server.api.security import address_of, services_of
from fhir_server.api.visible import require_searchable, seen_by
from fhir_server.api.writes import ATTEMPTS, Door, Writer, wake
from fhir_server.audit_event import Action, Outcome
from fhir_server.errors import Category, Fault
from fhir_server.publish.endpoints import Endpoints
from fhir_server.scope.asker import scope_of
from fhir_server.search import dates, run, types
from fhir_server.search.definitions import about
from fhir_server.search.page import Row, Sql
from fhir_server.search.query import MAX_COUNT, Query
from fhir_server.search.statement import Context
from fhir_server.services import Services
from fhir_server.store import posted_parameters

T = TypeVar("T")
HISTORY_COUNT: Final = 50
_TOO_COSTLY: Final = (
    "This search looks at too much and was stopped. Add what narrows it: a patient, an identifier, a code or dates; ask for _total "
    "only with these."
)
_WIDE: Final = frozenset({"quantity", "number", "composite", "chain", "has", "any"})
"""Kinds of filters that may have to look at every resource of a type."""
BEFORE: Final = "_before"
"""Our parameter in ``next`` links of a history: the change number of the last version shown."""


class Touched(NamedTuple):
    """One resource an answer shows or a write changed: its type and the Patient it is about."""

    type: str
    patient: str | None


def base_of(request: Request) -> str:
    """Address of the FHIR API as clients see it, without trailing slash."""
    base: str = request.app.state.base_url
    return base


def context_of(request: Request) -> Context:
    """What search values mean in this request."""
    services = services_of(request)
    return Context(services.settings.zone, base_of(request), services.clock())


async def in_thread(act: Callable[..., T], *arguments: object) -> T:
    """``act`` outside the event loop."""
    return await asyncio.to_thread(act, *arguments)


async def search(services: Services, queries: Sequence[Query], context: Context, asker: Principal) -> run.Found:
    """Runs a search, of one type or of several, on the read pool; what comes along, and what chains look at, is of types the asker
    may search."""

    def allowed(type: str) -> bool:
        return asker.may("search-type", type)

    require_searchable(asker, queries)
    services = await seen_by(services, asker, context, "s")
    decompress = services.codec.decompress
    if len(queries) == 1:
        steps = run.search(queries[0], context, decompress, allowed=allowed)
    else:
        steps = types.search(queries, context, decompress, allowed=allowed)
    try:
        async with asyncio.timeout(services.settings.statement_timeout_ms / 1000) as limit:
            return await carried_out(services, steps)
    except (asyncpg.QueryCanceledError, TimeoutError) as fault:
        if isinstance(fault, TimeoutError) and not limit.expired():
            raise
        if not any(map(_is_wide, queries)):
            raise  # something holds it up
        raise Fault(Category.TOO_COSTLY, _TOO_COSTLY) from None


def _is_wide(query: Query) -> bool:
    """True for a search whose cost grows with all that is stored."""
    kinds = {f.kind for f in query.filters}
    named = "id" in kinds or any(
        f.kind == "reference" and f.parameter and about(query.type, f.parameter) for f in query.filters
    )
    return not named and (query.total == "accurate" or not _WIDE.isdisjoint(kinds))


async def carried_out(services: Services, steps: Generator[Sql, Sequence[Row], T]) -> T:
    """Runs the statements that a search yields on one connection of a read pool (visible.ScopedPool); its outcome."""
    try:
        sql = next(steps)
    except StopIteration as end:
        nothing_asked: T = end.value
        return nothing_asked
    pool: Any = (sql.keyed and services.keyed) or services.pool
    async with pool.borrowed() as connection:
        while True:
            rows = await connection.fetch(sql.text, *sql.args)
            try:
                sql = steps.send(rows)
            except StopIteration as end:
                out: T = end.value
                return out


async def in_transaction(services: Services, context: Context, asker: Principal, act: Callable[[Writer], T]) -> T:
    """``act`` with a Writer, in one transaction, in a thread. A transaction that the database broke off because of another one
    (deadlock) is tried again."""

    # Only searches and reads of a batch see bodies of others; an auditor's token writes nothing.
    codec = (await seen_by(services, asker, context, "r")).codec
    settings = services.settings
    door = Door(
        asker,
        scope_of(settings, asker, context, "s"),
        scope_of(settings, asker, context, "r"),
        Endpoints.of(settings),
    )

    def transaction() -> T:
        with services.writer.connection() as conn:
            with conn.transaction():
                writer = Writer(conn, codec, context, asker.facility, lambda t: asker.may("search-type", t), door)
                result = act(writer)
                told = writer.finish()
            if any(c.resource_type == "SearchParameter" for c in writer.changes):
                posted_parameters.learn(conn)
            if told:
                wake(conn)
            return result

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await in_thread(transaction)
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
            if attempt == ATTEMPTS:
                raise Fault(
                    Category.CONFLICT, "Others change the same resources at the same time. Try again."
                ) from None
    raise AssertionError("the loop returns or raises")


async def audited(
    request: Request,
    asker: Principal,
    action: Action,
    name: str,
    touched: Iterable[Touched],
    *,
    types: Collection[str],
    resource: str = "",
    query: str | None = None,
    outcome: Outcome = "0",
) -> None:
    """Returns when the access is in the audit log. Raises Fault UNAVAILABLE when it cannot be; then nothing may be answered."""
    services = services_of(request)
    seen = list(touched)
    await services.audit.record(
        asker,
        action,
        name,
        sorted({*types, *(t.type for t in seen)}),
        [t.patient for t in seen if t.patient],
        query=query_of(request) if query is None else query,
        outcome=outcome,
        at=services.clock(),
        resource=resource,
        address=address_of(request),
    )


class Asked(NamedTuple):
    """Parameters of a history: ``_count``, ``_since``, ``_at`` as a span, place of the page."""

    page: int
    since: datetime | None
    at: dates.Span | None
    before: int | None


def history_parameters(pairs: list[tuple[str, str]], zone: tzinfo, *, strict: bool) -> Asked:
    """What a history is asked for. Raises Fault INVALID for a value that cannot be read, with ``strict`` for an unknown parameter."""
    count, since, at, before = HISTORY_COUNT, None, None, None
    for name, value in pairs:
        if name == "_count":
            if not value.isdecimal():
                raise Fault(Category.INVALID, "_count must be a whole number.", where="_count")
            count = max(1, min(int(value[:9]), MAX_COUNT))
        elif name in ("_since", "_at"):
            try:
                span = dates.span(value.replace(" ", "+"), zone)
            except (ValueError, OverflowError):
                raise Fault(Category.INVALID, f"{name} must be a date or an instant.", where=name) from None
            since, at = (span[0], at) if name == "_since" else (since, span)
        elif name == BEFORE:
            if not value.isdecimal() or len(value) > 18:
                raise Fault(Category.INVALID, "The page link is not one of this server.", where=BEFORE)
            before = int(value)
        elif strict and name not in ("_format", "_pretty"):
            raise Fault(Category.INVALID, f"A history has no parameter {name}.", where=name)
    return Asked(count, since, at, before)


def history_url(place: str, query: str, before: int | None = None) -> str:
    """A history as a URL: the parameters as asked, and the place of the page."""
    pairs = [
        (n, v) for n, v in query_pairs(query) if n in ("_count", "_since", "_at") or (n == BEFORE and before is None)
    ]
    if before is not None:
        pairs.append((BEFORE, str(before)))
    return f"{place}?{urlencode(pairs, quote_via=quote, safe=':')}" if pairs else place
