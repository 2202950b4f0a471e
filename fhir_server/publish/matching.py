"""Outbox rows x subscriptions -> numbered events, in the transaction that closes the rows.

A subscription has an event only when its filters hold and its client could read the resource now: a number never tells that there is
something he may not see. Filters and access are one SQL statement for each subscription and type, the same as a search makes.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg

from conformance import subscription_topics as backport
from conformance.capability import RESOURCE_TYPES, TYPE_NAMES
from conformance.fhirjson import loads
from fhir_server.access import Principal
from fhir_server.errors import Fault
from fhir_server.publish.subscription import cut, facilities_of, query_of
from fhir_server.scope.asker import scope_of
from fhir_server.scope.rows import Scope
from fhir_server.search import run
from fhir_server.search.query import Query
from fhir_server.search.sql import where_of
from fhir_server.search.statement import Context, Statement
from fhir_server.settings import Settings
from fhir_server.store import reader
from fhir_server.store.body import Codec

log = logging.getLogger(__name__)

_LIVE: Final = "SELECT * FROM subscription WHERE status IN ('requested', 'active', 'error') ORDER BY id"
BROKEN: Final = -1
"""``failures`` of a subscription whose criteria could not be looked at: it goes into error."""
_BROKEN: Final = f"UPDATE subscription SET failures = {BROKEN}, due = $2 WHERE id = $1"  # noqa: S608 -- our own number
_BUGS: Final = (Fault, asyncpg.DataError, asyncpg.SyntaxOrAccessError, LookupError, TypeError, ValueError)
"""What one subscription's criteria may come to; the others, and the deliveries, go on."""


@dataclass(frozen=True, slots=True)
class News:
    """One outbox row about a resource. results: logical ids of the results of a report."""

    number: int
    topic: str
    facility: str
    patient: str | None
    shard: int
    kind: str
    id: str
    version: int
    results: tuple[str, ...] = ()


class Matcher:
    """Finds out who is told of a batch."""

    def __init__(self, settings: Settings, base: str, codec: Codec) -> None:
        self._settings = settings
        self._base = base
        self._codec = codec

    async def anybody(self, conn: asyncpg.Connection) -> bool:
        """Does anybody subscribe?"""
        found: bool = await conn.fetchval("SELECT EXISTS (SELECT FROM subscription WHERE status <> 'off')")
        return found

    async def match(self, conn: asyncpg.Connection, rows: Sequence[asyncpg.Record], at: datetime) -> int:
        """Writes the events of a batch in the caller's transaction; how many."""
        subscriptions = await conn.fetch(_LIVE)
        if not subscriptions or not rows:
            return 0
        news = [n for row in rows if (n := _news(row)) is not None]
        if any("Observation?" in text for s in subscriptions for text in s["criteria"]):
            news = await self._with_results(conn, news)
        context = Context(self._settings.zone, self._base, at)
        made = 0
        for subscription in subscriptions:
            try:
                async with conn.transaction():
                    made += await self._of_one(conn, subscription, news, context)
            except _BUGS as fault:
                log.error("subscription_not_matched id=%s fault=%s", subscription["id"], type(fault).__name__)
                await conn.execute(_BROKEN, subscription["id"], at)
        return made

    async def _with_results(self, conn: asyncpg.Connection, news: Sequence[News]) -> list[News]:
        """The news with the results of their reports, as the reports are now."""
        wanted = [("DiagnosticReport", n.id) for n in news if n.kind == "DiagnosticReport"]
        stored = await reader.read_many(conn, self._codec, wanted)
        out = []
        for n in news:
            report = stored.get((n.kind, n.id))
            named = [] if report is None or report.deleted else loads(report.body).get("result", [])
            ids = [str(r.get("reference", "")).rpartition("Observation/")[2] for r in named]
            out.append(
                News(
                    n.number, n.topic, n.facility, n.patient, n.shard, n.kind, n.id, n.version, tuple(filter(None, ids))
                )
            )
        return out

    async def _of_one(
        self, conn: asyncpg.Connection, subscription: asyncpg.Record, news: Sequence[News], context: Context
    ) -> int:
        topic = backport.TOPICS.get(subscription["topic"])
        told = topic.told if topic else frozenset({"resource-changed"})
        asker = principal_of(subscription)
        types = {TYPE_NAMES[t] for t in subscription["types"]}
        found = [n for n in news if n.topic in told and n.kind in types and asker.may("read", n.kind)]
        if not found:
            return 0
        scope = scope_of(self._settings, asker, context, "r")
        gone = {
            n.id for kind in types for n in await self._gone(conn, scope, kind, [n for n in found if n.kind == kind])
        }
        filters = [cut(text) for text in subscription["criteria"]]
        kept = [n for n in found if all(n.facility in f for _, pairs in filters for f in facilities_of(pairs))]
        there = [n for n in kept if n.id not in gone]
        for kind in sorted({n.kind for n in there}):
            mine = [n for n in there if n.kind == kind]
            there = [n for n in there if n.kind != kind] + await self._holding(conn, asker, scope, kind, mine, filters)
        # A deleted resource has nothing left that a filter could look at: that it is gone is told to all it may concern.
        told_of = [*there, *(n for n in kept if n.id in gone and _same_patient(n, filters))]
        return await _number(conn, subscription["id"], sorted(told_of, key=lambda n: n.number), gone, context.now)

    async def _gone(self, conn: asyncpg.Connection, scope: Scope, kind: str, news: Sequence[News]) -> list[News]:
        """Those that were deleted, and that the client could have read."""
        if not news:
            return []
        out = Statement()
        text = f"SELECT r.id FROM resource r WHERE r.rtype = {out.arg(RESOURCE_TYPES[kind], 'smallint')} AND r.deleted AND "  # noqa: S608
        wrapped, args = scope.wrap(text + _among([(n.shard, n.id) for n in news], out), out.args)
        seen = {row["id"] for row in await conn.fetch(wrapped, *args)}
        return [n for n in news if n.id in seen]

    async def _holding(
        self,
        conn: asyncpg.Connection,
        asker: Principal,
        scope: Scope,
        kind: str,
        news: list[News],
        filters: Sequence[tuple[str, list[tuple[str, str]]]],
    ) -> list[News]:
        """Those of one type that the client may read and for which every filter holds."""
        own = [query_of(kind, pairs) for named, pairs in filters if named in ("", kind)]
        seen = await self._ids(conn, asker, scope, kind, own, [(n.shard, n.id) for n in news])
        news = [n for n in news if n.id in seen]
        for named, pairs in filters:
            if named == "Patient" and news:
                people = [(n.shard, n.patient) for n in news if n.patient]
                right = await self._ids(conn, asker, scope, "Patient", [query_of("Patient", pairs)], people)
                news = [n for n in news if n.patient in right]
            elif named == "Observation" and kind == "DiagnosticReport" and news:
                results = [(n.shard, r) for n in news for r in n.results]
                right = await self._ids(conn, asker, scope, named, [query_of(named, pairs)], results)
                news = [n for n in news if right.intersection(n.results)]
            elif named not in ("", kind, "Patient", "Observation"):
                news = [] if kind == "Observation" else news
        return news

    async def _ids(
        self,
        conn: asyncpg.Connection,
        asker: Principal,
        scope: Scope,
        kind: str,
        queries: Sequence[Query],
        keys: Sequence[tuple[int, str]],
    ) -> set[str]:
        """Which of the resources, by shard and id, the client may read and meet the queries."""
        if not keys:
            return set()
        out, conditions = Statement(), list[str]()
        for query in queries or [Query(kind)]:
            steps = run.settled(query, self._codec.decompress, lambda t: asker.may("search-type", t))
            settled = await _carried_out(conn, scope, steps)
            conditions += where_of(kind, settled.filters, scope.context, out).each()
        text = f"SELECT r.id FROM resource r WHERE {' AND '.join([_among(keys, out), *conditions])}"  # noqa: S608
        wrapped, args = scope.wrap(text, out.args)
        return {row["id"] for row in await conn.fetch(wrapped, *args)}


def principal_of(subscription: Mapping[str, Any]) -> Principal:
    """Who is told, as his token said when he subscribed."""
    scopes = frozenset(subscription["scopes"].split())
    return Principal(
        subscription["subject"], subscription["role"], subscription["facility"], scopes, subscription["patient"]
    )


async def _carried_out(conn: asyncpg.Connection, scope: Scope, steps: Generator[Any, Any, Query]) -> Query:
    try:
        sql = next(steps)
        while True:
            text, args = scope.wrap(sql.text, sql.args)
            sql = steps.send(await conn.fetch(text, *args))
    except StopIteration as end:
        found: Query = end.value
        return found


def _news(row: asyncpg.Record) -> News | None:
    kind, _, rest = row["resource"].partition("/")
    logical, _, version = rest.partition("/_history/")
    if not version:
        return None
    return News(row["id"], row["topic"], row["facility"], row["patient"], row["shard"], kind, logical, int(version))


def _among(keys: Sequence[tuple[int, str]], out: Statement) -> str:
    shards = out.arg([shard for shard, _ in keys], "smallint[]")
    return f"(r.shard, r.id) IN (SELECT * FROM unnest({shards}, {out.arg([i for _, i in keys], 'text[]')}))"  # noqa: S608


def _same_patient(news: News, filters: Sequence[tuple[str, list[tuple[str, str]]]]) -> bool:
    """False when a filter names other patients."""
    for kind, pairs in filters:
        for name, value in pairs:
            named = name in ("patient", "subject") or (kind == "Patient" and name == "_id")
            if named and news.patient not in {v.rpartition("/")[2] for v in value.split(",")}:
                return False
    return True


async def _number(
    conn: asyncpg.Connection, subscription: str, news: Sequence[News], gone: set[str], at: datetime
) -> int:
    if not news:
        return 0
    last: int = await conn.fetchval(
        "UPDATE subscription SET events = events + $2, due = CASE WHEN failures = 0 THEN least(due, $3) ELSE due END"
        " WHERE id = $1 RETURNING events",
        subscription, len(news), at,
    )  # fmt: skip
    await conn.executemany(
        "INSERT INTO subscription_event (subscription, number, at, rtype, focus, version, gone) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [
            (subscription, number, at, RESOURCE_TYPES[n.kind], n.id, n.version, int(n.id in gone))
            for number, n in enumerate(news, last - len(news) + 1)
        ],
    )
    return len(news)
