"""The DICOM server over real sockets: who may come in, what is answered, and what it takes from nobody."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE

from adapters.transports import dicom_scp
from adapters.transports.dicom_connection import store_response
from adapters.transports.dicom_scp import Caller, Limits, Received, Reference, Server, Source
from fhir_server.serve import server_tls
from tests.ct_slices import ct_slice
from tests.edge.certificates import Authority, Pair

WITHIN = 20.0


@dataclass(frozen=True)
class Known:
    """A source of the tests."""

    commits: bool = True
    max_bytes: int = 1 << 30


@dataclass
class Images:
    """Answers as told, remembers what it was given."""

    sources: dict[str, Known]
    status: int = 0
    stored: list[tuple[str, bytes]] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    ended_ones: list[int] = field(default_factory=list)
    place: tuple[str, int] | None = None
    callers: list[Caller] = field(default_factory=list)

    def admit(self, caller: Caller) -> Source | None:
        self.callers.append(caller)
        return self.sources.get(caller.ae)

    def store(self, source: Source, received: Received) -> int:
        self.stored.append((received.instance, received.path.read_bytes()))
        return self.status

    def refuse(self, source: Source, status: int) -> None:
        self.refused.append(status)

    def ended(self, source: Source, association: int) -> None:
        self.ended_ones.append(association)

    def committed(self, source: Source, references: Sequence[Reference]) -> list[int]:
        known = {instance for instance, _ in self.stored}
        return [0 if r.instance in known else dicom_scp.NO_SUCH_INSTANCE for r in references]

    def report_to(self, source: Source) -> tuple[str, int] | None:
        return self.place


Start = Callable[..., tuple[Server, Images, list[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers; they are stopped at the end."""
    running: list[Server] = []

    def started(
        sources: dict[str, Known] | None = None, tls: ssl.SSLContext | None = None, **limits: Any
    ) -> tuple[Server, Images, list[str]]:
        images = Images(sources or {"CT1": Known()})
        closed: list[str] = []
        chosen = Limits(closed=closed.append, **limits)
        bound = socket.create_server(("127.0.0.1", 0))
        incoming = tmp_path / "incoming"
        server = dicom_scp.serve(bound, images, ae_title="TONGJIAN", incoming=incoming, limits=chosen, tls=tls)
        running.append(server)
        return server, images, closed

    yield started
    for server in running:
        server.stop()


def associated(port: int, ae: str = "CT1", called: str = "TONGJIAN", *kinds: str) -> Association:
    entity = AE(ae)
    for kind in kinds or (dicom_scp.VERIFICATION, CTImageStorage):
        entity.add_requested_context(kind)
    return entity.associate("127.0.0.1", port, ae_title=called)


def wait_for(state: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN
    while not state():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_an_object_arrives_whole_and_is_answered_with_what_storing_it_gave(start: Start, tmp_path: Path) -> None:
    server, images, _ = start()
    assoc = associated(server.port)
    assert assoc.is_established
    assert assoc.send_c_echo().Status == 0
    sent = ct_slice(1, pixels=300_000)
    assert assoc.send_c_store(sent).Status == 0
    images.status = 0xA700
    assert assoc.send_c_store(sent).Status == 0xA700
    assoc.release()
    ((instance, raw), _) = images.stored
    assert instance == sent.SOPInstanceUID
    assert raw[128:132] == b"DICM"
    assert raw.endswith(sent.PixelData)
    wait_for(lambda: len(images.ended_ones) == 1)
    wait_for(lambda: not list((tmp_path / "incoming").iterdir()))


@pytest.mark.parametrize("status", [0, 0xA700, 0xC000])
@pytest.mark.parametrize("instance", ["1.2.3", "1.2.34"], ids=["odd", "even"])
def test_the_answer_to_an_object_is_the_one_the_library_would_write(status: int, instance: str) -> None:
    answer = C_STORE()
    answer.MessageIDBeingRespondedTo, answer.Status = 517, status
    answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID = CTImageStorage, instance
    message = C_STORE_RSP()
    message.primitive_to_message(answer)
    (data,) = message.encode_msg(1, 16384)
    assert data.presentation_data_value_list == [(1, b"\x03" + store_response(answer))]


def context_of(authority: Authority, own: Pair | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


def encrypted(port: int, authority: Authority, own: Pair | None) -> Association:
    entity = AE("CT1")
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = WITHIN
    entity.add_requested_context(CTImageStorage)
    return entity.associate("127.0.0.1", port, ae_title="TONGJIAN", tls_args=(context_of(authority, own), "127.0.0.1"))


def refused(port: int, authority: Authority, own: Pair | None) -> bool:
    """In TLS 1.2 the client learns within the handshake that its certificate is not taken."""
    context = context_of(authority, own)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    line = socket.create_connection(("127.0.0.1", port), WITHIN)
    try:
        context.wrap_socket(line, server_hostname="127.0.0.1").close()
    except OSError:
        return True
    return False


def test_objects_come_over_tls_and_a_plain_caller_does_not_get_in(start: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("tongjian", server=True)
    server, images, closed = start(tls=server_tls(pair.certificate, pair.key, None))
    assoc = encrypted(server.port, authority, None)
    assert assoc.send_c_store(ct_slice(1, pixels=300_000)).Status == 0
    assoc.release()
    assert images.stored[0][1].endswith(ct_slice(1, pixels=300_000).PixelData)
    assert images.callers[0].certificate_names == ()
    with socket.create_connection(("127.0.0.1", server.port), WITHIN) as plain:
        plain.sendall(b"\x01\x00" + bytes(200))
        wait_for(lambda: closed == ["tls"])
    assert len(images.callers) == 1


def test_with_an_authority_for_modalities_only_their_certificates_get_in(start: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("tongjian", server=True)
    server, images, closed = start(tls=server_tls(pair.certificate, pair.key, authority.file))
    assert refused(server.port, authority, None)
    stranger = Authority(tmp_path, "stranger").issue("ct-1.example.org")
    assert refused(server.port, authority, stranger)
    wait_for(lambda: closed == ["tls", "tls"])
    assert not images.callers
    assoc = encrypted(server.port, authority, authority.issue("ct-2.example.org"))
    assert assoc.send_c_store(ct_slice(1)).Status == 0
    assoc.release()
    # The profile's image source binds the title to this name (mappings/facility.py, certificate).
    assert set(images.callers[0].certificate_names) == {"ct-2.example.org"}


@pytest.mark.parametrize(("ae", "called"), [("NOBODY", "TONGJIAN"), ("CT1", "OTHER")])
def test_an_unknown_caller_and_a_wrong_called_title_are_rejected(start: Start, ae: str, called: str) -> None:
    server, images, _ = start()
    assert associated(server.port, ae, called).is_rejected
    assert not images.stored


def test_an_object_beyond_the_limit_is_answered_out_of_resources_and_the_next_is_taken(start: Start) -> None:
    server, images, _ = start({"CT1": Known(max_bytes=200_000)})
    assoc = associated(server.port)
    assert assoc.send_c_store(ct_slice(1, pixels=900_000)).Status == 0xA700
    assert assoc.send_c_store(ct_slice(2)).Status == 0
    assoc.release()
    assert images.refused == [0xA700]
    assert [instance for instance, _ in images.stored] == [ct_slice(2).SOPInstanceUID]


def test_one_association_too_many_is_rejected_for_the_time_being(start: Start) -> None:
    server, _, _ = start(max_associations=1)
    first = associated(server.port)
    second = associated(server.port)
    assert second.is_rejected
    # Result 2, rejected for the time being; local limit exceeded (PS3.8 table 9-21).
    assert second.acceptor.primitive is not None
    assert second.acceptor.primitive.result == 2
    first.release()


def answered(port: int) -> bool:
    assoc = associated(port)
    ok = bool(assoc.is_established and assoc.send_c_echo().Status == 0)
    assoc.release()
    return ok


def test_an_absurd_length_and_a_slow_sender_are_closed_and_others_are_served(start: Start) -> None:
    server, _, closed = start(pdu_seconds=0.5)
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.settimeout(WITHIN)
        line.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFF0) + b"x" * 10)
        assert line.recv(100) == b""
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.settimeout(WITHIN)
        line.sendall(struct.pack(">BBL", 1, 0, 200) + b"x")
        assert line.recv(100) == b""
    wait_for(lambda: {"size", "slow"} <= set(closed))
    assert answered(server.port)


def test_commitment_is_not_offered_where_pixels_are_not_kept(start: Start) -> None:
    server, _, _ = start({"CT1": Known(commits=False)})
    assoc = associated(server.port, "CT1", "TONGJIAN", CTImageStorage, dicom_scp.STORAGE_COMMITMENT)
    assert [str(c.abstract_syntax) for c in assoc.rejected_contexts] == [dicom_scp.STORAGE_COMMITMENT]
    assoc.release()


def test_commitment_says_which_objects_are_kept_and_which_are_not(start: Start) -> None:
    server, images, _ = start()
    reports: list[tuple[int, Dataset]] = []
    told = threading.Event()

    def report(event: evt.Event) -> tuple[int, None]:
        reports.append((event.request.EventTypeID, event.event_information))
        told.set()
        return 0x0000, None

    listener = AE("CT1")
    listener.add_supported_context(dicom_scp.STORAGE_COMMITMENT, scu_role=True, scp_role=True)
    scp = listener.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)])
    assert scp is not None
    images.place = ("127.0.0.1", scp.server_address[1])
    assoc = associated(server.port, "CT1", "TONGJIAN", CTImageStorage, dicom_scp.STORAGE_COMMITMENT)
    assert assoc.send_c_store(ct_slice(1)).Status == 0
    asked = Dataset()
    asked.TransactionUID = "1.2.826.0.1.3680043.8.498.7"
    asked.ReferencedSOPSequence = []
    for number in (1, 2):
        item = Dataset()
        item.ReferencedSOPClassUID = CTImageStorage
        item.ReferencedSOPInstanceUID = ct_slice(number).SOPInstanceUID
        asked.ReferencedSOPSequence.append(item)
    status, _ = assoc.send_n_action(asked, 1, dicom_scp.STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1")
    assert status.Status == 0
    assert told.wait(WITHIN)
    assoc.release()
    scp.shutdown()
    ((kind, outcome),) = reports
    assert kind == 2
    assert [i.ReferencedSOPInstanceUID for i in outcome.ReferencedSOPSequence] == [ct_slice(1).SOPInstanceUID]
    (failed,) = outcome.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (ct_slice(2).SOPInstanceUID, 0x0112)
