"""Polled databases into the inbox: new and changed reports become raw messages, never twice, and late commits are not missed.

The position, the digests of the reports and the messages commit together, on one connection that holds an advisory lock: of two
pollers one works and the other waits. A look begins an overlap behind the position; what is known there is told by its digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import asyncpg

from adapters.transports.dbpoll import PolledDatabase, PollFault, Report
from fhir_server.ingest import inbox
from fhir_server.ingest.group_commit import AWAY
from fhir_server.ingest.inbox import READY_CHANNEL, Arrival
from fhir_server.ingest.intake import Intake
from mappings import polls
from mappings.facility import Channel, Poll
from mappings.polls import Mark
from mappings.profile import Profile
from mappings.times import sortable

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
_FLAGGED_KEPT: Final = timedelta(days=7)
"""How long a report fetched by flag is remembered: the same rows flagged again within it are no new message."""
_COUNT_EVERY: Final = timedelta(hours=1)

_HERE: Final = """
INSERT INTO poll (facility, name, seen) VALUES ($1, $2, clock_timestamp())
ON CONFLICT (facility, name) DO UPDATE SET seen = clock_timestamp() RETURNING position
"""
_FAULT: Final = """
UPDATE poll SET seen = clock_timestamp(), fault = $3::text,
       fault_since = CASE WHEN $3::text IS NULL THEN NULL ELSE coalesce(fault_since, clock_timestamp()) END
WHERE facility = $1 AND name = $2
"""
_LOOKED: Final = """
UPDATE poll SET seen = clock_timestamp(), looked = clock_timestamp(), fault = NULL, fault_since = NULL,
       unmarked = coalesce($3::bigint, unmarked) WHERE facility = $1 AND name = $2
"""
_KNOWN: Final = "SELECT report, digest FROM poll_report WHERE facility = $1 AND poll = $2 AND report = ANY($3::bytea[])"
_KEEP: Final = """
INSERT INTO poll_report AS p (facility, poll, report, digest, mark)
SELECT $1, $2, * FROM unnest($3::bytea[], $4::bytea[], $5::text[])
ON CONFLICT (facility, poll, report) DO UPDATE SET digest = EXCLUDED.digest, mark = EXCLUDED.mark
"""
_FORGET: Final = "DELETE FROM poll_report WHERE facility = $1 AND poll = $2 AND mark < $3"
_MOVE: Final = """
UPDATE poll SET position = coalesce($3::text, position), rows = rows + $4, messages = messages + $5, seen = clock_timestamp()
WHERE facility = $1 AND name = $2
"""


class Poller:
    """One poll of one facility. ``look`` once, or ``run`` until cancelled."""

    def __init__(
        self, database: PolledDatabase, poll: Poll, profile: Profile, url: str, clock: Callable[[], datetime]
    ) -> None:
        """url: of our database; clock: gives the time of reading."""
        self._source = database
        self._poll = poll
        self._profile = profile
        self._name = (profile.id, poll.name)
        self._url = url
        self._clock = clock
        self._zone = ZoneInfo(profile.facility.time_zone)
        self._intake = Intake(profile, Channel(name=poll.name, backfill=poll.backfill))
        self._conn: asyncpg.Connection | None = None
        self._known: dict[tuple[Any, ...], tuple[frozenset[bytes], str]] = {}
        self._ready = False
        self._counted: datetime | None = None

    async def run(self) -> None:
        """Looks every ``seconds`` of the poll until cancelled; what is away is waited for, ever longer up to LONGEST_PAUSE."""
        pause = FIRST_PAUSE
        try:
            while True:
                try:
                    await self.look()
                    pause = FIRST_PAUSE
                    await asyncio.sleep(self._poll.seconds)
                    continue
                except PollFault as fault:
                    log.warning("poll_away facility=%s poll=%s reason=%s again_in=%.0f", *self._name, fault.key, pause)
                except AWAY as fault:
                    log.warning("poll_store_away facility=%s poll=%s fault=%s", *self._name, type(fault).__name__)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            await self.close()

    async def close(self) -> None:
        """Lets the lock and the connections go."""
        await asyncio.to_thread(self._source.close)
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(*AWAY):
                await conn.close(timeout=5)

    async def look(self) -> int:
        """Stores what is new; gives the number of messages, 0 also while another poller has the lock. Raises PollFault (kept in the
        table ``poll`` too), and what asyncpg raises while our own database is away."""
        try:
            conn = await self._locked()
            if conn is None:
                return 0
            position = await conn.fetchval(_HERE, *self._name)
            try:
                return await self._look(conn, position)
            except PollFault as fault:
                self._ready = False
                await asyncio.to_thread(self._source.close)
                await conn.execute(_FAULT, *self._name, f"{fault.key}: {fault.words}")
                raise
        except AWAY:
            await self._let_go()
            raise

    async def _look(self, conn: asyncpg.Connection, position: str | None) -> int:
        if not self._ready:
            others = await asyncio.to_thread(self._source.look)
            self._ready = True
            log.info("poll_columns facility=%s poll=%s not_read=%s", *self._name, ",".join(others))
        stored = await (self._by_flag(conn) if self._poll.watermark is None else self._by_watermark(conn, position))
        unmarked = None
        now = self._clock()
        if self._counted is None or now - self._counted >= _COUNT_EVERY:
            if self._poll.watermark is not None:
                unmarked = await asyncio.to_thread(self._source.unmarked)
            # A view may have an optional column by then that it had not.
            self._ready = self._counted is None
            self._counted = now
        await conn.execute(_LOOKED, *self._name, unmarked)
        if stored:
            await conn.execute(f"NOTIFY {READY_CHANNEL}")
        return stored

    async def _by_watermark(self, conn: asyncpg.Connection, position: str | None) -> int:
        watermark = self._poll.watermark
        assert watermark is not None
        reached = polls.read(watermark, position) if position is not None else None
        start = polls.since(watermark) if reached is None else polls.before(watermark, reached)
        stored = 0
        while True:
            known = {name: digests for name, (digests, _) in self._known.items()}
            chunk = await asyncio.to_thread(self._source.changed, start, known)
            found = await asyncio.to_thread(self._source.reports, chunk.names)
            for name, report, digests in found:
                self._known[name] = digests, "" if report.mark is None else polls.written(report.mark)
            if chunk.last is not None:
                last = polls.capped(watermark, chunk.last, self._clock(), self._zone)
                reached = last if reached is None else max(reached, last, key=polls.written)
            stored += await self._store(conn, [report for _, report, _ in found], chunk.rows, reached)
            start = chunk.last
            oldest = self._oldest(self._clock(), reached)
            self._known = {name: kept for name, kept in self._known.items() if kept[1] >= oldest}
            if chunk.complete or chunk.last is None:
                return stored

    async def _by_flag(self, conn: asyncpg.Connection) -> int:
        stored = 0
        while True:
            try:
                chunk, found = await asyncio.to_thread(self._source.lock_unread)
                stored += await self._store(conn, found, chunk.rows, None)
                await asyncio.to_thread(self._source.mark_read)
            finally:
                await asyncio.to_thread(self._source.release)
            if chunk.complete:
                return stored

    async def _store(self, conn: asyncpg.Connection, reports: Sequence[Report], rows: int, reached: Mark | None) -> int:
        """One transaction: the messages of reports that are new or changed, what is known of them, and the position."""
        now = self._clock()
        # In the order the facility wrote them, as far as it says.
        ordered = sorted(reports, key=lambda r: polls.written(r.mark) if r.mark is not None else "")
        async with conn.transaction():
            known = {r["report"]: r["digest"] for r in await conn.fetch(_KNOWN, *self._name, [r.name for r in reports])}
            fresh = [r for r in ordered if known.get(r.name) != r.digest]
            if fresh:
                arrivals = await asyncio.to_thread(self._arrivals, fresh, now)
                await inbox.accept(conn, arrivals)
                marks = [sortable(now) if r.mark is None else polls.written(r.mark) for r in fresh]
                await conn.execute(_KEEP, *self._name, [r.name for r in fresh], [r.digest for r in fresh], marks)
            await conn.execute(_FORGET, *self._name, self._oldest(now, reached))
            await conn.execute(
                _MOVE, *self._name, None if reached is None else polls.written(reached), rows, len(fresh)
            )
        return len(fresh)

    def _oldest(self, now: datetime, reached: Mark | None) -> str:
        """The mark before which no report need be known."""
        watermark = self._poll.watermark
        if watermark is None:
            return sortable(now.astimezone(UTC) - _FLAGGED_KEPT)
        return "" if reached is None else polls.written(polls.before(watermark, reached))

    def _arrivals(self, reports: Sequence[Report], now: datetime) -> list[Arrival]:
        return [self._intake.arrival(report.message(self._poll.table, now), "table", now)[0] for report in reports]

    async def _locked(self) -> asyncpg.Connection | None:
        """Our connection with the advisory lock of this poll; None while another poller has it."""
        if self._conn is None or self._conn.is_closed():
            self._conn = None
            conn = await asyncpg.connect(
                self._url,
                timeout=10,
                command_timeout=120,
                server_settings={"application_name": "tongjian-poll", "jit": "off"},
            )
            number = hashlib.blake2b("\x1f".join(("poll", *self._name)).encode(), digest_size=8).digest()
            if not await conn.fetchval("SELECT pg_try_advisory_lock($1)", int.from_bytes(number, "big", signed=True)):
                await conn.close()
                return None
            self._conn = conn
            # Another poller may have been at work meanwhile.
            self._known.clear()
        return self._conn

    async def _let_go(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.terminate()
