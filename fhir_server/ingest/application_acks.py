"""Application acknowledgements of enhanced mode (HL7 v2.5.1 section 2.9.3.2): after conversion, on the connection of the message.

A sender that has gone gets none: it asks again by sending the message again, and the answer is there at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import asyncpg

from adapters.hl7v2 import ack
from adapters.transports.mllp import Peer
from conformance.issue import Issue
from fhir_server import telemetry
from fhir_server.ingest import inbox
from fhir_server.ingest.feeds import Feed
from fhir_server.ingest.group_commit import AWAY
from fhir_server.ingest.inbox import Accepted

log = logging.getLogger(__name__)

_FASTEST, _SLOWEST = 0.02, 1.0
_MOST = 1000
_NOT_TAKEN = ("200", "201", "202", "203")
"""Table 0357: kinds of message the application does not take, whatever they contain."""


@dataclass(frozen=True, slots=True)
class _Awaited:
    peer: Peer
    known: ack.Facts
    feed: Feed


class ApplicationAcks:
    """Waits for conversions and tells the senders that asked. ``run`` has to be running."""

    def __init__(self, pool: asyncpg.Pool, clock: Callable[[], datetime], most: int = 20_000) -> None:
        """``most``: senders' requests kept at once; beyond, the oldest is given up."""
        self._pool = pool
        self._clock = clock
        self._most = most
        self._awaited: dict[tuple[int, int], list[_Awaited]] = {}
        self._work = asyncio.Event()

    def expect(self, accepted: Accepted, peer: Peer, known: ack.Facts, feed: Feed) -> None:
        """Tell ``peer`` when the message is converted or held, if its MSH-16 asks for that."""
        if known.application_ack not in ("AL", "ER", "SU"):
            return
        self._awaited.setdefault((accepted.shard, accepted.id), []).append(_Awaited(peer, known, feed))
        if len(self._awaited) > self._most:
            del self._awaited[next(iter(self._awaited))]
        self._work.set()

    async def run(self) -> None:
        """Until cancelled."""
        pause = _FASTEST
        while True:
            if not self._awaited:
                self._work.clear()
                await self._work.wait()
                pause = _FASTEST
            await asyncio.sleep(pause)
            try:
                told = await self._tell_finished()
            except AWAY as fault:
                log.info("application_acks_wait fault=%s", type(fault).__name__)
                told = False
            pause = _FASTEST if told else min(pause * 1.5, _SLOWEST)

    async def _tell_finished(self) -> bool:
        for message in [m for m, awaited in self._awaited.items() if not any(a.peer.is_open for a in awaited)]:
            del self._awaited[message]
        asked = list(islice(self._awaited, _MOST))
        if not asked:
            return False
        async with asyncio.timeout(10), self._pool.acquire() as conn:
            finished = await inbox.finished(conn, asked)
        for message in asked:
            if message in finished:
                for awaited in self._awaited.pop(message):
                    await self._tell(awaited, message[1], *finished[message])
            elif len(self._awaited) > _MOST:
                # The next look is at others.
                self._awaited[message] = self._awaited.pop(message)
        return bool(finished)

    async def _tell(self, awaited: _Awaited, number: int, status: str, issues: Sequence[Issue]) -> None:
        outcome, faults = verdict(status, issues)
        code = ack.on_completion(awaited.known.accept_ack, awaited.known.application_ack, outcome)
        if code is None:
            return
        answer = ack.acknowledge(awaited.known, code, faults, f"{number}A", self._clock())
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(10):
                await awaited.peer.send(answer)
                telemetry.ACKNOWLEDGED.labels(*awaited.feed, code).inc()


def verdict(status: str, issues: Sequence[Issue]) -> tuple[ack.Outcome, list[Issue]]:
    """Inbox status and issues -> outcome, and the issues that hold the message."""
    if status not in ("held", "failed"):
        return "accepted", []
    faults = [i for i in issues if i.severity in ("error", "fatal")]
    rejected = status == "failed" or any(ack.condition(i)[0] in _NOT_TAKEN for i in faults[:1])
    return "rejected" if rejected else "error", faults
