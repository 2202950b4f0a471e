"""The delivering part of a server: fills the queue from the outbox and sends what is due, one task for each destination.

Of several servers on one database one delivers; when it ends or dies, its advisory lock is free and another takes over. An outage of
the database is waited for. At least once: after a crash, or when no answer came, the same bytes go again under the same control id.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

import asyncpg

from fhir_server import telemetry
from fhir_server.publish import outbox, queue
from fhir_server.publish.courier import AWAY, Courier, Outcome, courier
from fhir_server.publish.matching import Matcher
from fhir_server.publish.notify import Notifier, Subscribing
from fhir_server.publish.pause import first, pause_before
from fhir_server.publish.publisher import BATCH, Publisher
from fhir_server.store.body import Codec, UnknownDictionary
from fhir_server.store.database import open_pool
from mappings.facility import Destination
from mappings.profile import Profile

log = logging.getLogger(__name__)

CONNECTIONS: Final = 4
"""Database connections delivering needs: one holds the lock and reads the outbox, the others serve the destinations."""
_LOCK: Final = 0x746A_6465_6C69_7672
"""Advisory lock of the one server that delivers."""
_POLL: Final = 2.0
_PAUSE: Final = 5.0
_FORGET_EVERY: Final = timedelta(hours=1)
_AT_ONCE: Final = 20
_LOST: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, UnknownDictionary)


class Delivering:
    """Deliveries running in a server. ``task`` ends only with a fault, or after ``stop``."""

    def __init__(self, deliveries: Deliveries, pool: asyncpg.Pool) -> None:
        self._deliveries = deliveries
        self._pool = pool
        self.task = asyncio.create_task(deliveries.run())

    async def stop(self, within: float) -> None:
        """Messages under way are answered and written down first; what takes longer is cut off and goes again after the next start."""
        self._deliveries.close()
        await asyncio.wait([self.task], timeout=within)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self._pool.terminate()


async def start(
    url: str,
    profiles: Mapping[str, Profile],
    codec: Codec,
    clock: Callable[[], datetime],
    keep_days: int = 0,
    subscribing: Subscribing | None = None,
) -> Delivering:
    """Starts delivering, with database connections of its own. ``keep_days``: as in Settings.delivery_keep_days; ``subscribing``: to
    notify subscribers too."""
    pool = await open_pool(url, CONNECTIONS, application_name="tongjian-deliver")
    return Delivering(Deliveries(pool, profiles, codec, clock, keep_days, subscribing), pool)


class Deliveries:
    """Runs until ``close``. ``profiles`` as read when it starts say where results go."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        profiles: Mapping[str, Profile],
        codec: Codec,
        clock: Callable[[], datetime],
        keep_days: int = 0,
        subscribing: Subscribing | None = None,
    ) -> None:
        self._pool = pool
        self._keep_days = keep_days
        self._forgot: datetime | None = None
        self._clock = clock
        matcher = Matcher(subscribing.settings, subscribing.base, codec) if subscribing else None
        self._publisher = Publisher(profiles, codec, clock, matcher)
        self._notifier = Notifier(pool, codec, clock, subscribing) if subscribing else None
        self._places = [(p.id, d) for p in profiles.values() for d in p.facility.destinations]
        self._stop = asyncio.Event()
        self._over = asyncio.Event()
        self._news = asyncio.Event()
        self._wake = {(facility, d.name): asyncio.Event() for facility, d in self._places}

    async def run(self) -> None:
        """Until ``close``; ends after the messages under way."""
        while not self._stop.is_set():
            try:
                await self._hold()
            except _LOST as fault:
                log.warning("deliveries_wait fault=%s", type(fault).__name__)
                await self._sleep(_PAUSE)

    def close(self) -> None:
        """Ends ``run`` after the messages under way; one that is cut off instead goes again after the next start."""
        self._stop.set()
        self._over.set()
        self._news.set()
        self._rouse()

    async def _hold(self) -> None:
        """Deliver while the lock is ours. Raises when the database goes."""
        async with self._pool.acquire() as conn:
            if not await conn.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                await self._sleep(_PAUSE)
                return
            await conn.add_listener(outbox.CHANNEL, self._heard)
            self._over.clear()
            # The lock goes with its connection: from then on another server may deliver, and this one must not.
            conn.add_termination_listener(self._lost)
            sending = [asyncio.create_task(self._serve(facility, place)) for facility, place in self._places]
            if self._notifier:
                sending.append(asyncio.create_task(self._notifier.run(self._over)))
            try:
                await self._publish(conn)
            finally:
                self._over.set()
                self._rouse()
                if sending and self._stop.is_set() and not conn.is_closed():
                    # What is under way is answered and written down first; Delivering.stop cuts off who hangs.
                    await asyncio.wait(sending)
                for task in sending:
                    task.cancel()
                await asyncio.gather(*sending, return_exceptions=True)
                if not conn.is_closed():
                    conn.remove_termination_listener(self._lost)
                    await conn.remove_listener(outbox.CHANNEL, self._heard)

    def _heard(self, *_: object) -> None:
        self._news.set()

    def _lost(self, _: object) -> None:
        self._over.set()
        self._news.set()
        self._rouse()

    def _rouse(self) -> None:
        for event in self._wake.values():
            event.set()
        if self._notifier:
            self._notifier.news.set()

    async def _publish(self, conn: asyncpg.Connection) -> None:
        while not self._stop.is_set():
            self._news.clear()
            closed = await self._publisher.publish(conn)
            self._rouse()
            if closed < BATCH:
                await self._forget(conn)
                await first(self._news, _POLL)

    async def _forget(self, conn: asyncpg.Connection) -> None:
        """Once an hour: bytes of deliveries older than the setting keeps."""
        now = self._clock()
        if not self._keep_days or (self._forgot is not None and now - self._forgot < _FORGET_EVERY):
            return
        before = now - timedelta(days=self._keep_days)
        await conn.execute("DELETE FROM subscription_event WHERE at < $1", before)
        if await queue.forget(conn, before) == 0:
            self._forgot = now

    # --- one destination ---------------------------------------------------------------------------------------------------

    async def _serve(self, facility: str, place: Destination) -> None:
        """Send what is due, in order, until the stop. Faults of the database are waited for; they never end another destination."""
        try:
            carrier = courier(place)
        except (ssl.SSLError, OSError) as fault:
            log.error("destination_unusable facility=%s destination=%s", facility, place.name, exc_info=fault)
            return
        wake = self._wake[facility, place.name]
        missed = 0
        try:
            while not self._over.is_set():
                wake.clear()
                try:
                    missed = await self._round(facility, place, carrier, missed)
                    pause = pause_before(place.retry, missed) if missed else await self._until_due(facility, place)
                except _LOST as fault:
                    log.warning("deliveries_wait facility=%s fault=%s", facility, type(fault).__name__)
                    pause = _PAUSE
                # New messages are no reason to try a receiver that is away again.
                await first(self._over if missed else wake, pause)
        finally:
            await carrier.close()

    async def _round(self, facility: str, place: Destination, carrier: Courier, missed: int) -> int:
        """Everything due now; gives how often in a row the receiver was not reached or silent (0: it answers)."""
        while not self._over.is_set():
            found = await queue.due(self._pool, facility, place.name, self._clock(), _AT_ONCE)
            if not found:
                # Nothing to send: an idle connection would only be cut by somebody on the way.
                await carrier.close()
                return missed
            for one in found:
                if self._over.is_set():
                    return missed
                outcome = await carrier.carry(one.message, one.control_id)
                telemetry.DELIVERIES.labels(facility, place.name, outcome.verdict).inc()
                await self._settle(one, outcome, facility, place, missed)
                if outcome.verdict in ("away", "silent"):
                    log.info("destination_%s facility=%s destination=%s", outcome.verdict, facility, place.name)
                    await carrier.close()
                    return missed + 1
                if missed:
                    missed = 0
                    await queue.back_again(self._pool, facility, place.name, AWAY, self._clock())
        return missed

    async def _settle(self, one: queue.Due, outcome: Outcome, facility: str, place: Destination, missed: int) -> None:
        """Write down what became of it, however long the database takes: a delivered message is not to go twice."""
        while True:
            try:
                now = self._clock()
                if outcome.verdict == "delivered":
                    await queue.delivered(self._pool, one, now, outcome.reason)
                    return
                counts = outcome.verdict != "away"
                dead = outcome.verdict == "refused" or (counts and one.attempts + 1 >= place.retry.most)
                again = now + timedelta(seconds=pause_before(place.retry, one.attempts + 1 if counts else missed + 1))
                await queue.failed(self._pool, one, outcome.reason, None if dead else again, counts=counts)
                if dead:
                    log.warning("delivery_dead id=%d facility=%s destination=%s", one.id, facility, place.name)
                return
            except _LOST:
                if self._over.is_set():
                    raise
                await self._sleep(1.0)

    async def _until_due(self, facility: str, place: Destination) -> float:
        at = await queue.next_due(self._pool, facility, place.name)
        return _POLL * 5 if at is None else min(max((at - self._clock()).total_seconds(), 0.01), _POLL * 5)

    async def _sleep(self, seconds: float) -> None:
        await first(self._stop, seconds)
