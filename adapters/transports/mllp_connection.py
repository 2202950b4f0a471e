"""One MLLP connection: frames in, answers out, and the patience it is given (HL7 v2.5.1 Appendix C.4)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from adapters.hl7v2 import ack, oversize
from adapters.transports.mllp_frames import Frame, Frames, frame
from conformance.issue import Issue

log = logging.getLogger(__name__)

CHUNK = 64 * 1024
"""Bytes read at once."""
SETTLE = 0.2
"""Seconds to wait for the CR after FS before the frame counts as ended."""


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


def _now() -> float:
    return asyncio.get_running_loop().time()


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
class Limits:
    """What a connection serves, and within which limits; see mllp.serve."""

    receive: Receive
    report: Report | None
    max_bytes: Callable[[Peer], int]
    max_connections: int
    idle_seconds: float
    frame_seconds: float
    closed: Callable[[str], None]
    clock: Callable[[], datetime]


class Connection:
    """One accepted connection."""

    def __init__(self, limits: Limits, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._limits = limits
        self._reader = reader
        self._writer = writer
        self.peer = Peer(writer)
        self.limit = limits.max_bytes(self.peer)
        self._frames = Frames(self.limit)
        self._answering = False
        self._frame_began: float | None = None
        self.served = False
        self.stopping = False

    @property
    def useless(self) -> bool:
        """True while it has never brought a whole frame: the first to go when there are too many."""
        return not self.served and not self._answering

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
                self._time_frame(bool(found))
                for item in found:
                    await self._answer(item)
                    self.served = self.served or not item.fault
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
        patience = self._limits.idle_seconds
        if self._frame_began is not None:
            # Bytes that drip keep no connection open: the frame as a whole has its time.
            patience = min(patience, self._frame_began + self._limits.frame_seconds - _now())
        try:
            async with asyncio.timeout(SETTLE if waiting else patience):
                data = await self._reader.read(CHUNK)
        except TimeoutError:
            if waiting:
                return self._frames.settle()
            self._limits.closed("idle" if self._frame_began is None else "slow-frame")
            return None
        if data:
            return self._frames.feed(data)
        return (self._frames.settle() if waiting else None) or None

    def _time_frame(self, ended: bool) -> None:
        """Notes when the frame began that is not over yet; ``ended``: the last bytes ended one."""
        if ended or not self._frames.inside:
            self._frame_began = None
        if self._frame_began is None and self._frames.inside:
            self._frame_began = _now()

    async def _answer(self, item: Frame) -> None:
        if item.fault:
            await self._tell(item)
        if item.fault in ("noise", "unfinished"):
            return
        answers = (
            self._too_large(item) if item.fault == "oversize" else await self._limits.receive(item.data, self.peer)
        )
        if answers is None:
            return
        async with asyncio.timeout(self._limits.idle_seconds):
            for answer in [answers] if isinstance(answers, bytes) else answers:
                await self.peer.send(answer)

    def _too_large(self, item: Frame) -> bytes | None:
        """AR or CR naming the limit, as the message's own MSH-15/16 ask for."""
        known = ack.facts(item.data)
        code = ack.on_receipt(known.accept_ack, known.application_ack, "rejected")
        if code is None:
            return None
        where, value = oversize.place(item.data, cut=True)
        words = f"The message has {item.size} bytes; the limit is {self.limit} bytes."
        if where:
            words += f" {where} takes most of it: send what is in it as a file, or raise the limit of the channel."
        issue = Issue("too-large", "error", where, words, value or None)
        return ack.acknowledge(known, code, issue, uuid.uuid4().hex[:20], self._limits.clock())

    async def _tell(self, item: Frame) -> None:
        log.warning("mllp_frame_fault peer=%s fault=%s bytes=%d", self.peer.address, item.fault, item.size)
        if self._limits.report is not None:
            await self._limits.report(item, self.peer)
