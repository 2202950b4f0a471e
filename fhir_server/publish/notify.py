"""The sender of notifications: handshakes, events in order, heartbeats, one task for each subscription that has something to do.

At least once, in the order of the numbers: the number is written down as sent after the endpoint took it, so a crash sends it again
under the same number. An endpoint that fails is tried again ever more slowly; after Settings.subscription_attempts in a row the
subscription goes into error, and its events wait until the client asks for a new start.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import asyncpg
import httpx
import psycopg
import psycopg_pool

from conformance import fhirjson
from fhir_server import telemetry
from fhir_server.access import Principal
from fhir_server.audit_event import AuditLog
from fhir_server.errors import Fault
from fhir_server.publish import notices, subscription_rows
from fhir_server.publish.endpoints import Endpoints, NotAllowed
from fhir_server.publish.matching import BROKEN
from fhir_server.publish.notification import Event, Kind, State, notification
from fhir_server.publish.pause import first, pause_before
from fhir_server.settings import Settings
from fhir_server.smart_clients import Client
from fhir_server.store.body import Codec, UnknownDictionary
from mappings.facility import Retry

log = logging.getLogger(__name__)

_AT_ONCE: Final = 8
_RETRY: Final = Retry(first_seconds=1.0, longest_seconds=300.0)
_AGAIN: Final = timedelta(seconds=5)
_LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    psycopg.Error,
    psycopg_pool.PoolTimeout,
    UnknownDictionary,
)
_READY: Final = """
SELECT id FROM subscription WHERE due <= $1 AND (status = 'requested' OR failures = -1 OR status IN ('active', 'error') AND ends <= $1
  OR status = 'active' AND (sent < events OR heartbeat IS NOT NULL AND contacted + heartbeat * interval '1 second' <= $1))
ORDER BY due LIMIT 1000"""
_ONE: Final = "SELECT * FROM subscription WHERE id = $1"
_TAKEN: Final = """
UPDATE subscription SET sent = greatest(sent, $3), contacted = $4, failures = 0, reason = NULL, due = $4
WHERE id = $1 AND version = $2"""
_MISSED: Final = "UPDATE subscription SET failures = failures + 1, reason = $3, due = $4 WHERE id = $1 AND version = $2"
_LATER: Final = "UPDATE subscription SET due = $2 WHERE id = $1"
_A_CLIENT: Final = "UPDATE subscription SET known = 'client' WHERE id = $1"
_GONE_ACCOUNT: Final = "The account or client that subscribed is no longer registered, or belongs to another facility."
_BROKEN: Final = "Its criteria could not be evaluated."


@dataclass(frozen=True, slots=True)
class Subscribing:
    """What the sender works with. base: address of the FHIR API as clients see it; writer: for status changes."""

    settings: Settings
    base: str
    audit: AuditLog
    clients: Mapping[str, Client]
    writer: psycopg_pool.ConnectionPool


class Notifier:
    """Sends what is due; ``run`` until ``over``."""

    def __init__(self, pool: asyncpg.Pool, codec: Codec, clock: Callable[[], datetime], with_: Subscribing) -> None:
        self._pool, self._codec, self._clock, self._with = pool, codec, clock, with_
        self._endpoints = Endpoints.of(with_.settings)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self.news = asyncio.Event()

    async def run(self, over: asyncio.Event) -> None:
        """Until ``over``; what is under way is answered and written down first."""
        verify = self._trust()
        try:
            async with httpx.AsyncClient(verify=verify, follow_redirects=False, trust_env=False) as http:
                while not over.is_set():
                    self.news.clear()
                    try:
                        ready = [row["id"] for row in await self._pool.fetch(_READY, self._clock())]
                    except _LOST as fault:
                        log.warning("notifications_wait fault=%s", type(fault).__name__)
                        ready = []
                    for one in ready:
                        if one not in self._running:
                            task = self._running[one] = asyncio.create_task(self._serve(http, one, over))
                            task.add_done_callback(partial(self._ended, one))
                    await first(self.news, 1.0)
                if self._running:
                    await asyncio.wait(self._running.values())
        finally:
            for task in self._running.values():
                task.cancel()

    def _ended(self, key: str, _: asyncio.Task[None]) -> None:
        self._running.pop(key, None)
        self.news.set()

    def _trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._with.settings.subscription_ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    async def _serve(self, http: httpx.AsyncClient, logical: str, over: asyncio.Event) -> None:
        """Everything that is due for one subscription, one request after the other."""
        async with self._turns:
            try:
                while not over.is_set() and await self._turn(http, logical):
                    pass
            except (*_LOST, Fault) as fault:
                log.warning("notification_waits id=%s fault=%s", logical, type(fault).__name__)
                try:
                    await self._pool.execute(_LATER, logical, self._clock() + _AGAIN)
                except _LOST:
                    await first(over, _AGAIN.total_seconds())

    async def _turn(self, http: httpx.AsyncClient, logical: str) -> bool:
        """One step; False when nothing is left to do now."""
        row = await self._pool.fetchrow(_ONE, logical)
        now = self._clock()
        if row is None or row["status"] == "off" or row["due"] > now:
            return False
        asker = await notices.standing(self._pool, row, self._with.clients)
        if asker is None or (row["ends"] is not None and row["ends"] <= now):
            return await self._settle(row, "off", _GONE_ACCOUNT if asker is None else None)
        if row["failures"] == BROKEN:
            return await self._settle(row, "error", _BROKEN)
        if row["status"] == "requested":
            if row["known"] == "token" and row["subject"] in self._with.clients:
                await self._pool.execute(_A_CLIENT, logical)
            if not row["topic"]:
                return await self._settle(row, "active", None)
            fault = await self._send(http, row, asker, "handshake", [])
            return await self._settle(row, "error" if fault else "active", fault)
        if row["status"] != "active":
            return False
        beat = row["heartbeat"] and row["contacted"] + timedelta(seconds=row["heartbeat"]) <= now
        if row["sent"] < row["events"]:
            return await self._events(http, row, asker, now)
        if beat and row["topic"]:
            return await self._told(row, row["sent"], await self._send(http, row, asker, "heartbeat", []))
        return False

    async def _events(self, http: httpx.AsyncClient, row: Mapping[str, Any], asker: Principal, now: datetime) -> bool:
        settings, full = self._with.settings, row["content"] == "full-resource"
        context = notices.context_of(settings, self._with.base, now)
        numbers = row["sent"] + 1, row["events"]
        most = row["most"] if row["topic"] else 1
        seen = await notices.events(
            self._pool, row["id"], numbers, most, settings, self._codec, asker, context, full=full
        )
        if not seen.events:
            # Their rows were kept no longer.
            return await self._told(row, row["events"], None)
        told = row["content"] != "empty"
        await self._with.audit.record(
            asker, "R", "notification", seen.types if told else [], seen.patients if told else [],
            at=now, query="", resource=f"Subscription/{row['id']}", address=self._endpoints.require(row["endpoint"]).hostname or "",
        )  # fmt: skip
        if row["topic"]:
            fault = await self._send(http, row, asker, "event-notification", seen.events)
        else:
            fault = await self._update(http, row, seen.events[0])
        return await self._told(row, seen.events[-1].number, fault)

    async def _send(
        self, http: httpx.AsyncClient, row: Mapping[str, Any], asker: Principal, kind: Kind, events: list[Event]
    ) -> str | None:
        state = State(row["id"], row["topic"], row["status"], row["events"])
        body = notification(state, kind, events, row["content"], self._with.base, self._clock())
        return await self._request(http, row, "POST", row["endpoint"], fhirjson.dumps(body))

    async def _update(self, http: httpx.AsyncClient, row: Mapping[str, Any], event: Event) -> str | None:
        """A query's notification: POST without a body, or the resource by PUT (http://hl7.org/fhir/R4/codesystem-subscription-channel-type.html)."""
        if not row["mime"]:
            return await self._request(http, row, "POST", row["endpoint"], b"")
        if event.resource is None:
            return None
        url = f"{row['endpoint'].rstrip('/')}/{event.focus}"
        return await self._request(http, row, "PUT", url, fhirjson.dumps(dict(event.resource)))

    async def _request(
        self, http: httpx.AsyncClient, row: Mapping[str, Any], method: str, url: str, body: bytes
    ) -> str | None:
        """None when the endpoint took it, else why not (free of patient data)."""
        try:
            parts = self._endpoints.require(url)
            address = await self._endpoints.address(parts)
        except NotAllowed as refused:
            return str(refused)
        except (OSError, TimeoutError):
            return "The name of the endpoint cannot be looked up."
        headers = [(n, v.strip()) for n, _, v in (h.partition(":") for h in row["headers"])]
        headers.append(("Host", parts.netloc))
        if body:
            headers.append(("Content-Type", row["mime"] or "application/fhir+json"))
        port = f":{parts.port}" if parts.port else ""
        target = parts._replace(netloc=(f"[{address}]" if ":" in address else address) + port)
        try:
            async with asyncio.timeout(row["timeout"]), http.stream(
                method, target.geturl(), content=body, headers=headers, timeout=row["timeout"],
                extensions={"sni_hostname": str(parts.hostname)},
            ) as response:  # fmt: skip
                code = response.status_code
        except TimeoutError:
            return f"The endpoint did not answer within {row['timeout']} s."
        except httpx.HTTPError as fault:
            return f"The endpoint could not be reached: {type(fault).__name__}."
        return None if 200 <= code < 300 else f"The endpoint answered with HTTP {code}."

    async def _told(self, row: Mapping[str, Any], number: int, fault: str | None) -> bool:
        now = self._clock()
        telemetry.NOTIFICATIONS.labels("failed" if fault else "delivered").inc()
        if fault is None:
            done: str = await self._pool.execute(_TAKEN, row["id"], row["version"], number, now)
            return done != "UPDATE 0"
        if row["failures"] + 1 >= self._with.settings.subscription_attempts:
            return await self._settle(row, "error", fault)
        again = now + timedelta(seconds=pause_before(_RETRY, row["failures"] + 1))
        await self._pool.execute(_MISSED, row["id"], row["version"], fault, again)
        return False

    async def _settle(self, row: Mapping[str, Any], status: str, reason: str | None) -> bool:
        """A status of the server's own, in the resource too. True: go on with what follows from it."""

        def written() -> bool:
            with self._with.writer.connection() as conn:
                return subscription_rows.settle(
                    conn, self._codec, row["id"], row["version"], status, reason, self._clock()
                )

        if await asyncio.to_thread(written):
            log.info("subscription_%s id=%s", status, row["id"])
            return status == "active"
        # A client was faster: what he wrote is looked at next.
        return (
            await self._pool.fetchval("SELECT version <> $2 FROM subscription WHERE id = $1", row["id"], row["version"])
            or False
        )
