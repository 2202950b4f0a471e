"""Group commit: the messages or images of many connections share a commit, so that each waits for one fsync at most two long.

One task writes, one group after the other: inbox ids grow in the order of commits, and a message is visible before the next one of the
same connection gets its id. A group takes from the waiting channels in turn, so a flooding channel delays a quiet one by one
group, however many connections it opens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

import asyncpg

from fhir_server.ingest.inbox import READY_CHANNEL

log = logging.getLogger(__name__)

_MOST = 128
_MOST_BYTES = 4 * 1024 * 1024
_WAKE_EVERY = 0.05
_FAULT_COUNTS = 60.0
_ROW_FAULTS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    OverflowError,
)
"""One row is wrong. Everything else says that the database cannot do it now."""
AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


class DatabaseAway(Exception):
    """The message is not durable, or nobody knows whether it is: the sender has to keep it."""


class Refused(Exception):
    """The database refuses this one message."""


class Row(Protocol):
    """What can be committed in groups."""

    @property
    def facility(self) -> str:
        """Facility that sent it."""
        ...

    @property
    def channel(self) -> str:
        """Channel it came by: channels take turns."""
        ...

    @property
    def raw(self) -> bytes:
        """The bytes that are stored; their number limits a group."""
        ...


R = TypeVar("R", bound=Row)
A = TypeVar("A")


class GroupCommit(Generic[R, A]):
    """``accept`` for many callers at once. ``run`` has to be running."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        store: Callable[[asyncpg.Connection, Sequence[R]], Awaitable[Sequence[A]]],
        *,
        timeout: float = 10.0,
    ) -> None:
        """store: makes rows durable, all or none, and gives one answer for each (``inbox.accept``)."""
        self._pool = pool
        self._insert = store
        self._timeout = timeout
        self._channels: dict[tuple[str, str], deque[tuple[R, asyncio.Future[A]]]] = {}
        self._work = asyncio.Event()
        self._fresh = asyncio.Event()
        self._fault = ""
        self._failed_at = 0.0
        self._running = False
        self._conn: asyncpg.Connection | None = None

    @property
    def fault(self) -> str:
        """Type of what kept the last messages from being stored; empty when they were, or when nobody sent any for a while."""
        return self._fault if time.monotonic() - self._failed_at < _FAULT_COUNTS else ""

    async def accept(self, arrival: R) -> A:
        """Returns once the message is durable. Raises DatabaseAway or Refused."""
        if not self._running:
            raise DatabaseAway
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._channels.setdefault((arrival.facility, arrival.channel), deque()).append((arrival, future))
        self._work.set()
        return await future

    async def run(self) -> None:
        """Writes groups until cancelled; then what still waits is written too."""
        self._running = True
        waker = asyncio.create_task(self._wake_workers())
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                await self._write_all()
        finally:
            # Whatever ended the writing: from here on nobody waits for it.
            self._running = False
            waker.cancel()
            await self._write_all()
            await self._let_go()

    async def _write_all(self) -> None:
        while group := self._next_group():
            await self._write(group)

    def _next_group(self) -> list[tuple[R, asyncio.Future[A]]]:
        group: list[tuple[R, asyncio.Future[A]]] = []
        size = 0
        while self._channels and len(group) < _MOST and size < _MOST_BYTES:
            for name in list(self._channels):
                queue = self._channels[name]
                group.append(queue.popleft())
                size += len(group[-1][0].raw)
                if not queue:
                    del self._channels[name]
                if len(group) >= _MOST or size >= _MOST_BYTES:
                    # Whoever was served goes to the end of the round.
                    if name in self._channels:
                        self._channels[name] = self._channels.pop(name)
                    break
        return group

    async def _write(self, group: list[tuple[R, asyncio.Future[A]]]) -> None:
        try:
            accepted = await self._store([arrival for arrival, _ in group])
        except _ROW_FAULTS as fault:
            if len(group) > 1:
                for one in group:
                    await self._write([one])
                return
            log.error("inbox_refused fault=%s", type(fault).__name__)
            _settle(group[0][1], Refused())
            return
        except AWAY as fault:
            name = type(fault).__name__
            if name != self._fault:
                log.warning("inbox_away fault=%s", name)
            self._fault, self._failed_at = name, time.monotonic()
            await self._let_go(broken=True)
        else:
            if self._fault:
                log.info("inbox_back")
            self._fault = ""
            for (_, future), answer in zip(group, accepted, strict=True):
                if not future.done():
                    future.set_result(answer)
            self._fresh.set()
        finally:
            # Also when the writing was cancelled: who has no answer by now gets none from here.
            for _, future in group:
                _settle(future, DatabaseAway())

    async def _store(self, arrivals: list[R]) -> Sequence[A]:
        # The connection is kept: readers that use up the pool must not delay an acknowledgement.
        async with asyncio.timeout(self._timeout):
            if self._conn is None:
                self._conn = await self._pool.acquire()
            return await self._insert(self._conn, arrivals)

    async def _let_go(self, *, broken: bool = False) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(*AWAY):
                if broken:
                    conn.terminate()
            with contextlib.suppress(*AWAY):
                await self._pool.release(conn)

    async def _wake_workers(self) -> None:
        # After the commit and outside it: NOTIFY inside would make the commits of the workers wait for each other's fsync.
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            with contextlib.suppress(*AWAY):
                async with asyncio.timeout(self._timeout):
                    await self._pool.execute(f"NOTIFY {READY_CHANNEL}")
            await asyncio.sleep(_WAKE_EVERY)


def _settle(future: asyncio.Future[A], fault: Exception) -> None:
    if not future.done():
        future.set_exception(fault)


class Throttle:
    """A token bucket: ``per_second`` messages on average, a second's worth at once; more has to wait, nothing is refused."""

    def __init__(self, per_second: float, now: Callable[[], float]) -> None:
        self._interval = 1 / per_second
        self._burst = max(1.0, per_second) * self._interval
        self._now = now
        self._next = 0.0

    async def take(self) -> None:
        """Returns when the next message may come in; callers are served in the order they ask."""
        now = self._now()
        self._next = max(self._next, now - self._burst) + self._interval
        if self._next > now:
            await asyncio.sleep(self._next - now)
