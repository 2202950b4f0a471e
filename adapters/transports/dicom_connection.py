"""pynetdicom's server with limits: what one peer may make us hold, and how long it may take (PS3.8).

pynetdicom reads a protocol data unit of any declared length, waits for it for ever, shakes TLS hands in the thread that accepts, and
takes objects of any size. Here each of these ends.
"""

from __future__ import annotations

import logging
import queue
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
_COMMAND_BYTES = 64 * 1024
_MESSAGE_BYTES = 4 * 1024 * 1024
"""Largest data set of a message that stores nothing (N-ACTION: some ten thousand references)."""
_NEGOTIATION_BYTES = 256 * 1024
_WAITING = 4
"""Requests of one association that wait for their answer; who sends more did not agree on that (PS3.7 annex D.3.3.3)."""
_INVALID_PDU = "Evt19"
_LOOKS_UP, _LOOKS_UP_BUSY = 0.02, 0.0005
"""Seconds after which a thread that waits for its peer looks whether anything else happened; the shorter in its first idle second."""


@dataclass(frozen=True, slots=True)
class Limits:
    """max_associations: open at once; max_pdu: bytes of a PDU (announced to the peer); max_object: bytes of a data set;
    idle_seconds: without anything received; pdu_seconds: for a PDU that began; object_seconds: for an object that began.
    ``closed`` is told of connections closed in self-defence: ``limit``, ``tls``, ``slow``, ``size``."""

    max_associations: int = 20
    max_pdu: int = 131072
    max_object: int = 2 * 1024**3
    idle_seconds: float = 60.0
    pdu_seconds: float = 30.0
    object_seconds: float = 600.0
    closed: Callable[[str], None] = lambda _: None


class LimitedSocket(AssociationSocket):
    """Reads no PDU larger than the limit, and waits no longer than the limit for one that began."""

    def __init__(self, assoc: Association, request: socket.socket, limits: Limits) -> None:
        super().__init__(assoc, client_socket=request)
        self._limits = limits
        self._busy = time.monotonic()
        request.settimeout(limits.pdu_seconds)

    @property
    def ready(self) -> bool:
        """Whether the peer has sent something; waits for it a moment, where the base class would be asked a thousand times a second."""
        line = self.socket
        if line is None or not self._is_connected:
            return False
        if isinstance(line, ssl.SSLSocket) and line.pending():
            return True
        # Nothing is waited for over what other threads have put there, and hardly while there may be an answer to send.
        patience = _LOOKS_UP if time.monotonic() - self._busy > 1 else _LOOKS_UP_BUSY
        if not self.event_queue.empty() or not self.provider_queue.empty():
            patience = 0
        try:
            found, _, _ = select.select([line], [], [], patience)
        except (OSError, ValueError):
            # Evt17: the transport connection is closed (PS3.8 table 9-2).
            self.event_queue.put("Evt17")
            return False
        if found:
            self._busy = time.monotonic()
        return bool(found)

    def recv(self, nr_bytes: int) -> bytearray:
        """``nr_bytes``, or fewer when the peer closed. Raises OSError when it is too slow or announces too much."""
        line = cast(socket.socket, self.socket)
        if nr_bytes > max(self._limits.max_pdu, _NEGOTIATION_BYTES):
            self._limits.closed("size")
            raise OSError("the PDU is too large")
        buffer = bytearray(nr_bytes)
        view = memoryview(buffer)
        have = 0
        until = time.monotonic() + self._limits.pdu_seconds
        while have < nr_bytes:
            try:
                count = line.recv_into(view[have:])
            except TimeoutError:
                self._limits.closed("slow")
                raise
            if not count:
                view.release()
                del buffer[have:]
                return buffer
            have += count
            if have < nr_bytes and time.monotonic() > until:
                self._limits.closed("slow")
                raise TimeoutError("the PDU was not finished in time")
        return buffer


class Overflow:
    """Stands in for the file of an object that is too large: the rest of it is read and dropped, so that its sender gets an answer."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.name: str = file.name
        self.file = self

    def write(self, data: bytes) -> int:
        """Drops it."""
        return len(data)

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Closes the file that holds the beginning."""
        self._file.close()


def store_response(answer: C_STORE) -> bytes:
    """The command set of a C-STORE response (PS3.7 table 9.3-2), implicit VR little endian as every command set (section 6.3.1)."""
    body = b"".join(
        struct.pack("<HHL", 0x0000, element, len(value)) + value
        for element, value in (
            (0x0002, _uid(answer.AffectedSOPClassUID)),
            (0x0100, b"\x01\x80"),
            (0x0120, struct.pack("<H", answer.MessageIDBeingRespondedTo)),
            (0x0800, b"\x01\x01"),
            (0x0900, struct.pack("<H", answer.Status)),
            (0x1000, _uid(answer.AffectedSOPInstanceUID)),
        )
        if value
    )
    return struct.pack("<HHLL", 0x0000, 0x0000, 4, len(body)) + body


def _uid(written: str | None) -> bytes:
    value = (written or "").encode("ascii", "replace")
    return value + b"\0" * (len(value) % 2)


class LimitedMessages(DIMSEServiceProvider):
    """Receives DIMSE messages (PS3.7) within the limits."""

    def __init__(self, assoc: Association, limits: Limits, max_object: int) -> None:
        super().__init__(assoc)
        self._limits = limits
        self.max_object = max_object
        self._size = 0
        self._began = 0.0

    def receive_primitive(self, primitive: P_DATA) -> None:
        """One P-DATA primitive; ends the association when it is beyond a limit."""
        size = sum(len(data) for _, data in primitive.presentation_data_value_list)
        if self.message is None:
            self._size, self._began = 0, time.monotonic()
        self._size += size
        if fault := self._fault():
            log.warning("dicom_message_refused reason=%s", fault)
            self._limits.closed(fault)
            self.dul.event_queue.put(_INVALID_PDU)
            return
        super().receive_primitive(primitive)
        message: Any = self.message
        if message is None or self._size <= self.max_object or message._data_set_file is None:
            return
        if not isinstance(message._data_set_file, Overflow):
            message._data_set_file = Overflow(message._data_set_file)

    def get_msg(self, block: bool = False) -> Any:
        """The next message; waits a moment for one where the base class would be asked a thousand times a second."""
        if block:
            return super().get_msg(block)
        try:
            return self.msg_queue.get(timeout=_LOOKS_UP)
        except queue.Empty:
            return None, None

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Sends a message. The answer to C-STORE, one for each image, is written here: its few fixed elements through the data set
        of a library take longer than all else about the image."""
        if not isinstance(primitive, C_STORE) or primitive.MessageIDBeingRespondedTo is None or primitive.ErrorComment:
            super().send_msg(primitive, context_id)
            return
        data = P_DATA()
        # Message control header: a command, its last fragment (PS3.8 annex E.2).
        data.presentation_data_value_list.append((context_id, b"\x03" + store_response(primitive)))
        self.dul.send_pdu(data)

    def _fault(self) -> str:
        if self.message is None:
            return "size" if self.msg_queue.qsize() >= _WAITING else ""
        stores = self.message._data_set_file is not None
        if not stores and self._size > (_MESSAGE_BYTES if self.message.context_id else _COMMAND_BYTES):
            return "size"
        return "slow" if time.monotonic() - self._began > self._limits.object_seconds else ""

    def discard(self) -> None:
        """Removes the files of objects that were not finished or not answered."""
        waiting = [message for _, message in list(self.msg_queue.queue)]
        files = [getattr(message, "_dataset_file", None) for message in waiting]
        if self.message is not None:
            files.append(self.message._data_set_file)
        for file in files:
            if file is not None:
                file.close()
                Path(file.name).unlink(missing_ok=True)


class Connected(RequestHandler):
    """One connection: TLS in its own thread, then an association with the limits of the server."""

    server: LimitedServer

    def handle(self) -> None:
        """Starts the association. A connection that does not shake hands in time is closed."""
        line = self.request
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self.server.tls is not None:
            line.settimeout(HANDSHAKE_SECONDS)
            try:
                self.request = self.server.tls.wrap_socket(line, server_side=True)
            except OSError as fault:  # ssl.SSLError is one
                log.info("dicom_tls_failed peer=%s fault=%s", self.client_address[0], type(fault).__name__)
                self.server.limits.closed("tls")
                line.close()
                return
        assoc = self._create_association()
        limits = self.server.limits
        # The socket it came with has told of the connection already (Evt5); ours does so again.
        assoc.dul.event_queue.get_nowait()
        assoc.dul.socket = LimitedSocket(assoc, self.request, limits)
        assoc.dul._run_loop_delay = 0
        assoc.dimse = LimitedMessages(assoc, limits, limits.max_object)
        evt.trigger(assoc, evt.EVT_CONN_OPEN, {"address": self.client_address})
        assoc.start()


class LimitedServer(ThreadedAssociationServer):
    """Accepts on a socket that is bound already. Connections beyond twice the associations are closed at once."""

    daemon_threads = True

    def __init__(
        self,
        ae: ApplicationEntity,
        bound: socket.socket,
        limits: Limits,
        tls: ssl.SSLContext | None,
        handlers: list[Any],
    ) -> None:
        self.limits = limits
        self.tls = tls
        self._bound = bound
        address = bound.getsockname()
        super().__init__(ae, address[:2], ae.ae_title, [], None, handlers, Connected)

    def server_bind(self) -> None:
        """Takes the bound socket instead of the one the base class made."""
        assert self.socket is not None
        self.socket.close()
        self.socket = self._bound
        self.server_address = self._bound.getsockname()[:2]

    def server_activate(self) -> None:
        """Listens."""
        assert self.socket is not None
        self.socket.listen(128)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that failed before it was an association: its type alone, and the server goes on."""
        log.error("dicom_connection_failed peer=%s", client_address[0], exc_info=True)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """False for a connection too many."""
        open_now = sum(thread.name.startswith("AcceptorThread") for thread in threading.enumerate())
        if open_now < 2 * self.limits.max_associations:
            return True
        log.warning("dicom_connection_refused open=%d", open_now)
        self.limits.closed("limit")
        return False
