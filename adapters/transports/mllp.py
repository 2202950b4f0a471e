"""MLLP server and sender on asyncio (HL7 v2.5.1 Appendix C.4, minimal lower layer protocol, release 1).

The server knows frames and connections, and nothing of what a message means: ``receive`` supplies the answers. One frame of a
connection is answered before the next one is looked at, so answers keep the order of the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from adapters.contract import Unreadable
from adapters.hl7v2 import ack
from adapters.transports.mllp_connection import CHUNK, SETTLE, Connection, Limits, Peer, Receive, Report
from adapters.transports.mllp_frames import Frames, frame

__all__ = ["MAX_BYTES", "Listener", "Peer", "Receive", "Report", "SendError", "Sender", "Server", "serve"]

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 1024 * 1024
_HANDSHAKE = 10.0
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound (not yet listening) TCP socket, and its TLS context when it speaks TLS."""

    socket: socket.socket
    tls: ssl.SSLContext | None = None


class Server:
    """A running MLLP server; made by ``serve``."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._servers: list[asyncio.Server] = []
        self._ports: list[int] = []
        self._running: dict[asyncio.Task[None], Connection] = {}
        self._stopping = False

    @property
    def ports(self) -> list[int]:
        """The local ports, in the order of the listeners."""
        return list(self._ports)

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._running)

    async def _listen(self, listeners: Sequence[Listener]) -> None:
        for listener in listeners:
            timeout = _HANDSHAKE if listener.tls else None
            server = await asyncio.start_server(
                self._connected,
                sock=listener.socket,
                ssl=listener.tls,
                ssl_handshake_timeout=timeout,
                limit=CHUNK,
                backlog=512,
            )
            self._servers.append(server)
            self._ports.append(int(listener.socket.getsockname()[1]))

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopping or (len(self._running) >= self._limits.max_connections and not self._make_room()):
            log.warning("mllp_connection_refused open=%d", len(self._running))
            self._limits.closed("limit")
            writer.close()
            return
        line = writer.get_extra_info("socket")
        if line is not None:
            # A peer that vanished without a word is noticed long before the idle time is over.
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection = Connection(self._limits, reader, writer)
        task = asyncio.get_running_loop().create_task(connection.run())
        self._running[task] = connection
        task.add_done_callback(self._ended)

    def _make_room(self) -> bool:
        """Closes the oldest connection that never brought a message, so that idle ones cannot keep a sender out."""
        for task, connection in self._running.items():
            if connection.useless and not task.cancelling():
                self._limits.closed("limit")
                task.cancel()
                return True
        return False

    def _ended(self, task: asyncio.Task[None]) -> None:
        connection = self._running.pop(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("mllp_connection_failed peer=%s", connection.peer.address, exc_info=fault)

    async def stop(self, grace: float = 10.0) -> None:
        """Stop accepting, close idle connections, let frames that have begun be finished and answered, then close.

        grace  seconds for the frames in progress; after that their connections are closed without an answer
        """
        self._stopping = True
        for server in self._servers:
            server.close()
        for task, connection in list(self._running.items()):
            connection.stopping = True
            if connection.idle:
                task.cancel()
        if tasks := list(self._running):
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()


async def serve(
    listeners: Sequence[Listener],
    receive: Receive,
    *,
    report: Report | None = None,
    max_bytes: int | Callable[[Peer], int] = MAX_BYTES,
    max_connections: int = 1000,
    idle_seconds: float = 3600,
    frame_seconds: float = 300,
    closed: Callable[[str], None] = lambda _: None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Server:
    """Start serving; returns when every listener listens.

    receive          see Receive
    report           see Report
    max_bytes        largest message; or a function that gives it per peer. A longer one is skipped and refused with AR or CR
    max_connections  beyond it the oldest connection that never brought a message is closed, or else the new one
    idle_seconds     a connection silent for so long, or not reading its answer for so long, is closed
    frame_seconds    a frame that began has to end within this time, else its connection is closed
    closed           is told of connections closed in self-defence: ``limit``, ``idle``, ``slow-frame``
    """
    limit = max_bytes if callable(max_bytes) else lambda _: max_bytes
    server = Server(Limits(receive, report, limit, max_connections, idle_seconds, frame_seconds, closed, clock))
    await server._listen(listeners)
    return server


class SendError(Exception):
    """No acknowledgement: the connection failed or broke, or the answer came too late. Whether the message arrived is unknown."""


class Sender:
    """Sends messages over one connection and waits for each acknowledgement. Connects when needed, also again after a break.

    host, port     the server
    local_address  own address to connect from; empty for any
    tls            client context, for TLS
    timeout        seconds to wait for a connection, and for each acknowledgement
    retries        how often a message is sent again after AE, CE, or no acknowledgement; 0: never
    backoff        seconds before the first repetition, doubled for each further one up to 30
    late           acknowledgements that came while another one was awaited: application acknowledgements of enhanced mode
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        local_address: str = "",
        tls: ssl.SSLContext | None = None,
        timeout: float = 30.0,
        retries: int = 0,
        backoff: float = 0.5,
    ) -> None:
        self._address = (host, port)
        self._local = (local_address, 0) if local_address else None
        self._tls = tls
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._frames = Frames(MAX_BYTES)
        self._arrived: deque[ack.Acknowledgement] = deque()
        self.late: deque[ack.Acknowledgement] = deque()

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect now instead of with the first message. Raises SendError."""
        if self._reader is not None and not self._reader.at_eof():
            return
        await self.close()
        host, port = self._address
        try:
            async with asyncio.timeout(self._timeout):
                self._reader, self._writer = await asyncio.open_connection(
                    host, port, ssl=self._tls, local_addr=self._local, limit=CHUNK
                )
        except OSError as fault:
            raise SendError(f"cannot connect to {host}:{port}: {fault or 'no answer'}") from fault
        self._frames = Frames(MAX_BYTES)

    async def close(self) -> None:
        """Close the connection; the next ``send`` opens a new one."""
        writer, self._reader, self._writer = self._writer, None, None
        self._arrived.clear()
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()

    async def send(self, message: bytes) -> ack.Acknowledgement:
        """Send one message; give its acknowledgement (MSA-2 is the message's MSH-10, or one of both is empty).

        In enhanced mode that is the accept acknowledgement when MSH-15 asks for one. A message that asks for none gives an
        Acknowledgement with an empty code. Raises SendError.
        """
        known = ack.facts(message)
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(min(self._backoff * 2 ** (attempt - 1), _LONGEST_PAUSE))
            try:
                answer = await self._exchange(message, known)
            except SendError:
                await self.close()
                if attempt == self._retries:
                    raise
                continue
            if answer.code not in ("AE", "CE") or attempt == self._retries:
                return answer
        raise SendError("retries must not be negative")

    async def _exchange(self, message: bytes, known: ack.Facts) -> ack.Acknowledgement:
        await self.connect()
        if self._writer is None:
            raise SendError("the connection is closed")
        silent = known.enhanced and "AL" not in (known.accept_ack, known.application_ack)
        try:
            self._writer.write(frame(message))
            await self._writer.drain()
        except OSError as fault:
            raise SendError("the connection broke while sending") from fault
        if silent and {known.accept_ack, known.application_ack} <= {"", "NE"}:
            return ack.Acknowledgement("", known.control_id)
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    answer = await self._next()
                    if not answer.control_id or not known.control_id or answer.control_id == known.control_id:
                        return answer
                    self.late.append(answer)
        except TimeoutError as fault:
            if silent:
                # ER or SU: silence is an answer too.
                return ack.Acknowledgement("", known.control_id)
            raise SendError(f"no acknowledgement within {self._timeout:g} s") from fault

    async def receive(self, within: float) -> ack.Acknowledgement:
        """The next acknowledgement nobody waited for yet, within so many seconds. Raises SendError."""
        if self.late:
            return self.late.popleft()
        try:
            async with asyncio.timeout(within):
                return await self._next()
        except TimeoutError as fault:
            raise SendError(f"no acknowledgement within {within:g} s") from fault

    async def _next(self) -> ack.Acknowledgement:
        """The next acknowledgement from the connection. Raises SendError and TimeoutError."""
        while not self._arrived:
            if self._reader is None:
                raise SendError("the connection is closed")
            try:
                async with asyncio.timeout(SETTLE if self._frames.waiting else None):
                    data = await self._reader.read(CHUNK)
            except TimeoutError:
                found = self._frames.settle()
            except OSError as fault:
                raise SendError("the connection broke before the acknowledgement") from fault
            else:
                if not data:
                    raise SendError("the connection was closed before the acknowledgement")
                found = self._frames.feed(data)
            for item in found:
                if item.fault in ("", "no-start"):
                    try:
                        self._arrived.append(ack.parse(item.data))
                    except Unreadable as fault:
                        raise SendError(f"the answer is not an acknowledgement: {fault}") from fault
        return self._arrived.popleft()
