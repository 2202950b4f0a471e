"""DICOM storage server on pynetdicom: C-STORE, C-ECHO and storage commitment (PS3.4 annexes A, B, J; PS3.7 section 9).

It knows associations and files, and nothing of what an object says: ``Images`` supplies who may speak and what is answered. A data set
is written to a file while it arrives; the answer is given when ``store`` returns.
"""

from __future__ import annotations

import logging
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Protocol, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import _config, association, build_role, dimse_messages, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext, build_context

from adapters.transports.dicom_connection import LimitedMessages, LimitedServer, Limits, Overflow

__all__ = ["Caller", "Images", "Limits", "Received", "Reference", "Server", "Source", "serve"]

log = logging.getLogger(__name__)

# PS3.6 table A-1; pynetdicom makes its names while it runs, so a type checker does not know them.
VERIFICATION: Final = UID("1.2.840.10008.1.1")
STORAGE_COMMITMENT: Final = UID("1.2.840.10008.1.20.1")
"""Storage Commitment Push Model."""
SUCCESS: Final = 0x0000
NOT_AUTHORIZED: Final = 0x0124
OUT_OF_RESOURCES: Final = 0xA700
MISMATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
"""Status of a C-STORE response (PS3.4 table B.2-1, PS3.7 annex C)."""
NO_SUCH_ACTION: Final = 0x0123
NO_SUCH_INSTANCE: Final = 0x0112
PROCESSING_FAILURE: Final = 0x0110

_COMMITMENT_INSTANCE = UID("1.2.840.10008.1.20.1.1")
_STORAGE = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
_SYNTAXES = [
    "1.2.840.10008.1.2.1",  # explicit VR little endian
    "1.2.840.10008.1.2",  # implicit VR little endian
    "1.2.840.10008.1.2.2",  # explicit VR big endian, retired
    "1.2.840.10008.1.2.5",  # RLE
    *(
        f"1.2.840.10008.1.2.4.{number}"
        for number in (*range(50, 59), 70, 80, 81, 90, 91, 92, 93, 94, 95, *range(100, 109))
    ),
    *(f"1.2.840.10008.1.2.4.{number}" for number in (110, 111, 112, 201, 202, 203, 204, 205)),
]
"""Everything but deflated data sets: their header cannot be cut off before the pixels."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for an association: its title, the title it calls us by, its address, the names in its verified certificate."""

    ae: str
    called: str
    address: str
    certificate_names: tuple[str, ...] = ()


class Source(Protocol):
    """Whom a caller turned out to be."""

    @property
    def commits(self) -> bool:
        """Whether we keep its pixels, and so may be asked to commit to that."""
        ...

    @property
    def max_bytes(self) -> int:
        """Largest data set it may send."""
        ...


@dataclass(frozen=True, slots=True)
class Received:
    """One object. ``path``: Part 10 file, removed after ``store`` returned unless it was moved."""

    sop_class: str
    instance: str
    syntax: str
    path: Path
    association: int


@dataclass(frozen=True, slots=True)
class Reference:
    """An object somebody asks about."""

    sop_class: str
    instance: str


class Images(Protocol):
    """What the server asks; called from many threads at once."""

    def admit(self, caller: Caller) -> Source | None:
        """The source, or None when it may not speak for anybody."""
        ...

    def store(self, source: Source, received: Received) -> int:
        """Makes the object durable and gives the status to answer with (PS3.4 table B.2-1)."""
        ...

    def refuse(self, source: Source, status: int) -> None:
        """Told of an object that was refused before it came to ``store``."""
        ...

    def ended(self, source: Source, association: int) -> None:
        """Told that an association has ended, however it did."""
        ...

    def committed(self, source: Source, references: Sequence[Reference]) -> list[int]:
        """For each object 0 when it is kept for good, else why not (PS3.3 table C.14-1: failure reason)."""
        ...

    def report_to(self, source: Source) -> tuple[str, int] | None:
        """Host and port that outcomes of commitments are sent to; None: over the association that asked."""
        ...


class Server:
    """A running server; made by ``serve``."""

    def __init__(self, ae: ApplicationEntity, server: LimitedServer) -> None:
        self._ae = ae
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(0.2,), name="dicom-accept", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The local port."""
        return int(self._server.server_address[1])

    @property
    def associations(self) -> int:
        """Connections open now."""
        return len(self._server.active_associations)

    def stop(self) -> None:
        """Stops accepting, aborts what is open, closes the socket. An object without an answer is sent again by its sender."""
        self._server.shutdown()
        for assoc in self._server.active_associations:
            assoc.abort(block=False)
        self._thread.join(10)


def serve(
    bound: socket.socket,
    images: Images,
    *,
    ae_title: str,
    incoming: Path,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
) -> Server:
    """Starts serving on a bound socket; returns when it listens. For one server in a process: pynetdicom's settings are global.

    ae_title  our own; who calls another one is rejected
    incoming  folder for objects that are arriving; what a crash left there is removed
    """
    incoming.mkdir(parents=True, exist_ok=True)
    for left in incoming.glob("*.dcm"):
        left.unlink()
    # Where pynetdicom writes data sets to; only its own name for the function is changed.
    vars(dimse_messages)["NamedTemporaryFile"] = partial(tempfile.NamedTemporaryFile, dir=incoming)
    # Its loop sleeps a millisecond before each look for a message; LimitedMessages waits for one instead.
    vars(association)["time"] = SimpleNamespace(sleep=_sleep)
    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    # Its own lines quote what peers send.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    chosen = limits or Limits()
    ae = ApplicationEntity(ae_title)
    ae.maximum_associations = chosen.max_associations
    ae.maximum_pdu_size = chosen.max_pdu
    ae.network_timeout = chosen.idle_seconds
    ae.acse_timeout = chosen.pdu_seconds
    ae.dimse_timeout = chosen.idle_seconds
    ae.require_called_aet = True
    work = _Work(images)
    handlers = [
        (evt.EVT_REQUESTED, work.requested),
        (evt.EVT_C_STORE, work.store),
        (evt.EVT_C_ECHO, lambda _: SUCCESS),
        (evt.EVT_N_ACTION, work.commit),
        (evt.EVT_CONN_CLOSE, work.closed),
    ]
    server = LimitedServer(ae, bound, chosen, tls, handlers)
    ae._servers.append(server)
    return Server(ae, server)


def _sleep(seconds: float) -> None:
    time.sleep(0 if seconds == 0.001 else seconds)


class _Work:
    """What happens at the events of associations."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._sources: dict[int, Source] = {}

    def requested(self, event: evt.Event) -> None:
        assoc: Any = event.assoc
        asked = assoc.requestor.primitive
        caller = Caller(
            str(asked.calling_ae_title).strip(),
            str(asked.called_ae_title).strip(),
            assoc.requestor.address_info.address,
            _certificate_names(assoc),
        )
        source = self._images.admit(caller)
        if source is None:
            # Rejected for good by the service user: calling AE title not recognized (PS3.8 table 9-21).
            assoc.acse.send_reject(0x01, 0x01, 0x03)
            assoc.is_rejected = True
            evt.trigger(assoc, evt.EVT_REJECTED, {})
            assoc.kill()
            return
        self._sources[id(assoc)] = source
        assoc.dimse.max_object = min(assoc.dimse.max_object, source.max_bytes)
        assoc.acceptor.supported_contexts = _contexts(assoc, source)

    def store(self, event: evt.Event) -> int:
        source = self._sources[id(event.assoc)]
        request: Any = event.request
        if isinstance(request._dataset_file, Overflow):
            log.warning("dicom_object_too_large")
            self._images.refuse(source, OUT_OF_RESOURCES)
            return OUT_OF_RESOURCES
        received = Received(
            str(request.AffectedSOPClassUID),
            str(request.AffectedSOPInstanceUID),
            str(event.context.transfer_syntax),
            Path(request._dataset_file.name),
            id(event.assoc),
        )
        return self._images.store(source, received)

    def commit(self, event: evt.Event) -> tuple[int, Dataset | None]:
        assoc = event.assoc
        source = self._sources[id(assoc)]
        request: Any = event.request
        if request.ActionTypeID != 1:
            return NO_SUCH_ACTION, None
        asked = event.action_information
        transaction = str(asked.get("TransactionUID", ""))
        references = [
            Reference(str(item.get("ReferencedSOPClassUID", "")), str(item.get("ReferencedSOPInstanceUID", "")))
            for item in asked.get("ReferencedSOPSequence", [])
        ]
        if not transaction or not references:
            return 0x0115, None
        threading.Thread(
            target=self._report, args=(assoc, source, transaction, references), name="dicom-commitment", daemon=True
        ).start()
        return SUCCESS, None

    def _report(self, assoc: Association, source: Source, transaction: str, references: list[Reference]) -> None:
        """N-EVENT-REPORT: 1 when everything is kept, 2 when something is not (PS3.4 section J.3.3)."""
        outcome = Dataset()
        outcome.TransactionUID = transaction
        failed: list[Dataset] = []
        kept: list[Dataset] = []
        for reference, reason in zip(references, self._images.committed(source, references), strict=True):
            item = Dataset()
            item.ReferencedSOPClassUID = reference.sop_class
            item.ReferencedSOPInstanceUID = reference.instance
            if reason:
                item.FailureReason = reason
            (failed if reason else kept).append(item)
        if kept:
            outcome.ReferencedSOPSequence = kept
        if failed:
            outcome.FailedSOPSequence = failed
        kind = 2 if failed else 1
        place = self._images.report_to(source)
        if place is None:
            if assoc.is_established:
                assoc.send_n_event_report(outcome, kind, STORAGE_COMMITMENT, _COMMITMENT_INSTANCE)
            return
        ae = ApplicationEntity(assoc.acceptor.ae_title)
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 30
        contexts = [build_context(STORAGE_COMMITMENT)]
        role = build_role(STORAGE_COMMITMENT, scp_role=True)
        report = ae.associate(*place, contexts=contexts, ae_title=assoc.requestor.ae_title, ext_neg=[role])
        if report.is_established:
            report.send_n_event_report(outcome, kind, STORAGE_COMMITMENT, _COMMITMENT_INSTANCE)
            report.release()
        else:
            log.warning("dicom_commitment_unreported")

    def closed(self, event: evt.Event) -> None:
        assoc = event.assoc
        cast(LimitedMessages, assoc.dimse).discard()
        source = self._sources.pop(id(assoc), None)
        if source is not None:
            self._images.ended(source, id(assoc))


def _contexts(assoc: Association, source: Source) -> list[PresentationContext]:
    """Of the proposed abstract syntaxes those that are served: verification, storage, and commitment where pixels are kept."""
    out = []
    asked: Any = assoc.requestor.primitive
    for name in {str(context.abstract_syntax) for context in asked.presentation_context_definition_list}:
        if name in _STORAGE:
            out.append(build_context(name, _SYNTAXES))
        elif name == VERIFICATION or (name == STORAGE_COMMITMENT and source.commits):
            out.append(build_context(name, _SYNTAXES[:2]))
    return out


def _certificate_names(assoc: Association) -> tuple[str, ...]:
    """Common name and DNS names of the peer's verified certificate."""
    line = assoc.dul.socket.socket if assoc.dul.socket is not None else None
    if not isinstance(line, ssl.SSLSocket):
        return ()
    found: Any = line.getpeercert() or {}
    common = [value for part in found.get("subject", ()) for key, value in part if key == "commonName"]
    return (*common, *(value for kind, value in found.get("subjectAltName", ()) if kind == "DNS"))
