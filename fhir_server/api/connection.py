"""One HTTP connection with limits that uvicorn lacks: a request's head has to arrive in time and in size, an answer has to be read,
and at the limit of connections the one that waits longest without a request makes room (against slow loris, slow read and floods)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fhir_server import telemetry

MAX_HEAD = 64 * 1024
"""Bytes of request line and headers, beyond what one read brings (256 KiB)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """connections: open at once; head_seconds: from connecting, or from the first byte of a further request, to the end of the head;
    stall_seconds: time in which a client has to take something of an answer that waits for it."""

    connections: int
    head_seconds: float
    stall_seconds: float


class Connection(HttpToolsProtocol):
    """See the module. ``limits`` belongs to the class: uvicorn makes the instances (see limited)."""

    limits: Limits

    _head: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _unread = 0
    _head_bytes = 0
    _waits_since = 0.0
    _served = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, and closes one when there are too many."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._waits_since = self.loop.time()
        self._expect_head()
        if len(self.connections) > self.limits.connections:
            waiting = [c for c in self.connections if isinstance(c, Connection) and c.waits and c is not self]
            victim = min(waiting, key=lambda c: (c._served, c._waits_since), default=self)
            victim.give_up("limit")

    @property
    def waits(self) -> bool:
        """True while no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def give_up(self, reason: str) -> None:
        """Ends the connection at once."""
        if not self.transport.is_closing():
            telemetry.CONNECTIONS_CLOSED.labels("http", reason).inc()
            self.transport.abort()
        # Another connection may be made before the loop says that this one is lost.
        self.connections.discard(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._head_came()
        self._flows()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or of a body."""
        super().data_received(data)
        if self.waits and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self.give_up("head-size")
            elif self._head is None:
                self._expect_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_came()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """The connection waits for the next request (uvicorn's timeout_keep_alive) or has it already."""
        self._served = True
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not take the answer as fast as it is written."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """The client took it."""
        self._flows()
        super().resume_writing()

    def _expect_head(self) -> None:
        self._head = self.loop.call_later(self.limits.head_seconds, self.give_up, "slow-head")

    def _head_came(self) -> None:
        self._head_bytes = 0
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _watch_reader(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(self.limits.stall_seconds, self._look_at_reader)

    def _look_at_reader(self) -> None:
        if self.transport.get_write_buffer_size() < self._unread:
            self._watch_reader()
            return
        telemetry.CONNECTIONS_CLOSED.labels("http", "slow-read").inc()
        self.transport.abort()

    def _flows(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


def limited(limits: Limits) -> type[Any]:
    """The class of connections with these limits, for uvicorn.Config(http=...)."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
