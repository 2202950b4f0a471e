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
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from adapters.contract import Unreadable
from adapters.hl7v2 import ack
from adapters.transports.mllp_frames import Frame, Frames, frame
from conformance.issue import Issue

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 1024 * 1024
_CHUNK = 64 * 1024
_SETTLE = 0.2
"""Seconds to wait for the CR after FS before the frame counts as ended."""
_HANDSHAKE = 10.0
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound (not yet listening) TCP socket, and its TLS context when it speaks TLS."""

    socket: socket.socket
    tls: ssl.SSLContext | None = None


class Peer:
    """The other end of one connection.

    local_port         the port it connected to
    address            its IP address; an IPv4 address is never written in IPv6 form
    certificate_names  common name and DNS names of its verified client certificate; empty without one
    """

    __slots__ = ("_turn", "_writer", "address", "certificate_names", "local_port")

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._turn = asyncio.Lock()
        name = writer.get_extra_info("peername") or ("",)
        self.address = str(name[0]).removeprefix("::ffff:")
        self.local_port = int((writer.get_extra_info("sockname") or ("", 0))[1])
        self.certificate_names = _names(writer.get_extra_info("peercert") or {})

    @property
    def is_open(self) -> bool:
        """False once the connection is closed or closing."""
        return not self._writer.is_closing()

    async def send(self, message: bytes) -> None:
        """Send one message as a frame, now: an answer, or the application acknowledgement of enhanced mode later on.

        Raises ConnectionError when the connection is closed.
        """
        async with self._turn:
            if self._writer.is_closing():
                raise ConnectionResetError("the connection is closed")
            self._writer.write(frame(message))
            await self._writer.drain()


def _names(certificate: dict[str, tuple[tuple[tuple[str, str], ...], ...]]) -> tuple[str, ...]:
    """Common names and DNS names of ``ssl.SSLSocket.getpeercert()``."""
    subject = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    pairs: Sequence[Sequence[object]] = certificate.get("subjectAltName", ())
    return tuple(dict.fromkeys([*subject, *(str(pair[1]) for pair in pairs if pair[0] == "DNS")]))


Receive = Callable[[bytes, Peer], Awaitable[bytes | list[bytes] | None]]
"""Takes one message as received and gives its answer messages (without framing), or None for no answer now. When it raises, the
connection is closed without an answer, so the sender keeps the message."""

Report = Callable[[Frame, Peer], Awaitable[None]]
"""Is told of every frame with a fault: noise, frames cut off, frames over the limit (first 64 KiB of it)."""


@dataclass(frozen=True, slots=True)
class _Settings:
    receive: Receive
    report: Report | None
    max_bytes: Callable[[Peer], int]
    max_connections: int
    idle_seconds: float
    clock: Callable[[], datetime]


class _Connection:
    """One accepted connection."""

    def __init__(self, settings: _Settings, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._settings = settings
        self._reader = reader
        self._writer = writer
        self.peer = Peer(writer)
        self.limit = settings.max_bytes(self.peer)
        self._frames = Frames(self.limit)
        self._answering = False
        self.stopping = False

    @property
    def idle(self) -> bool:
        """True when no frame has begun and none is being answered."""
        return not self._answering and not self._frames.inside

    async def run(self) -> None:
        """Serve until the peer closes, is silent for too long, or the server stops."""
        try:
            while not (self.stopping and self.idle):
                found = await self._next()
                if found is None:
                    break
                self._answering = True
                for item in found:
                    await self._answer(item)
                self._answering = False
            for item in self._frames.close():
                await self._tell(item)
        except OSError as fault:
            log.info("mllp_connection_lost peer=%s error=%s", self.peer.address, type(fault).__name__)
        finally:
            self._writer.close()
            with contextlib.suppress(OSError):
                async with asyncio.timeout(1):
                    await self._writer.wait_closed()

    async def _next(self) -> list[Frame] | None:
        """The frames the next bytes complete; None when the peer is gone or silent for too long."""
        waiting = self._frames.waiting
        try:
            async with asyncio.timeout(_SETTLE if waiting else self._settings.idle_seconds):
                data = await self._reader.read(_CHUNK)
        except TimeoutError:
            return self._frames.settle() if waiting else None
        if data:
            return self._frames.feed(data)
        return (self._frames.settle() if waiting else None) or None

    async def _answer(self, item: Frame) -> None:
        if item.fault:
            await self._tell(item)
        if item.fault in ("noise", "unfinished"):
            return
        answers = (
            self._too_large(item) if item.fault == "oversize" else await self._settings.receive(item.data, self.peer)
        )
        if answers is None:
            return
        async with asyncio.timeout(self._settings.idle_seconds):
            for answer in [answers] if isinstance(answers, bytes) else answers:
                await self.peer.send(answer)

    def _too_large(self, item: Frame) -> bytes | None:
        """AR or CR naming the limit, as the message's own MSH-15/16 ask for."""
        known = ack.facts(item.data)
        code = ack.on_receipt(known.accept_ack, known.application_ack, "rejected")
        if code is None:
            return None
        issue = Issue("too-large", "error", "", f"The message has {item.size} bytes; the limit is {self.limit} bytes.")
        return ack.acknowledge(known, code, issue, uuid.uuid4().hex[:20], self._settings.clock())

    async def _tell(self, item: Frame) -> None:
        log.warning("mllp_frame_fault peer=%s fault=%s bytes=%d", self.peer.address, item.fault, item.size)
        if self._settings.report is not None:
            await self._settings.report(item, self.peer)


class Server:
    """A running MLLP server; made by ``serve``."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._servers: list[asyncio.Server] = []
        self._ports: list[int] = []
        self._running: dict[asyncio.Task[None], _Connection] = {}
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
                limit=_CHUNK,
                backlog=512,
            )
            self._servers.append(server)
            self._ports.append(int(listener.socket.getsockname()[1]))

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopping or len(self._running) >= self._settings.max_connections:
            log.warning("mllp_connection_refused open=%d", len(self._running))
            writer.close()
            return
        connection = _Connection(self._settings, reader, writer)
        task = asyncio.get_running_loop().create_task(connection.run())
        self._running[task] = connection
        task.add_done_callback(self._ended)

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
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Server:
    """Start serving; returns when every listener listens.

    receive          see Receive
    report           see Report
    max_bytes        largest message; or a function that gives it per peer. A longer one is skipped and refused with AR or CR
    max_connections  further ones are closed at once
    idle_seconds     a connection silent for so long, or not reading its answer for so long, is closed
    """
    limit = max_bytes if callable(max_bytes) else lambda _: max_bytes
    server = Server(_Settings(receive, report, limit, max_connections, idle_seconds, clock))
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
                    host, port, ssl=self._tls, local_addr=self._local, limit=_CHUNK
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
                async with asyncio.timeout(_SETTLE if self._frames.waiting else None):
                    data = await self._reader.read(_CHUNK)
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
