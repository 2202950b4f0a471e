"""adapters.transports.mllp: server and sender over real sockets."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from adapters.hl7v2 import ack
from adapters.hl7v2.reader import read
from adapters.transports import mllp
from adapters.transports.mllp import Listener, Peer, Sender, SendError, Server
from adapters.transports.mllp_frames import Frame, frame

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def message(number: int, modes: str = "|", text: str = "张三") -> bytes:
    return f"MSH|^~\\&|L|H|||20260102||ORU^R01|M{number}|P|2.5.1|||{modes}\rPID|1||P1||{text}\r".encode()


def accept(raw: bytes, code: ack.Code = "AA") -> bytes:
    return ack.acknowledge(ack.facts(raw), code, None, "A1", NOW)


class Inbox:
    """A receive callback that remembers what it was given and accepts it."""

    def __init__(self, delay: float = 0) -> None:
        self.messages: list[bytes] = []
        self.peers: list[Peer] = []
        self.faults: list[Frame] = []
        self._delay = delay

    async def receive(self, raw: bytes, peer: Peer) -> bytes | list[bytes] | None:
        await asyncio.sleep(self._delay)
        self.messages.append(raw)
        self.peers.append(peer)
        return accept(raw)

    async def report(self, item: Frame, peer: Peer) -> None:
        self.faults.append(item)


def bound() -> socket.socket:
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    return found


@asynccontextmanager
async def serving(receive: mllp.Receive, tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[Server]:
    server = await mllp.serve([Listener(bound(), tls)], receive, clock=lambda: NOW, **options)
    try:
        yield server
    finally:
        await server.stop(grace=1)


class Raw:
    """A client that sends bytes as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> ack.Acknowledgement:
        async with asyncio.timeout(5):
            data = await self.reader.readuntil(b"\x1c\r")
        assert data.startswith(b"\x0b")
        return ack.parse(data[1:-2])

    async def ended(self) -> bool:
        async with asyncio.timeout(5):
            return await self.reader.read() == b""


@asynccontextmanager
async def connected(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.ports[0], ssl=tls)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            assert writer.is_closing()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens on the other side of a socket and tells nobody."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(limited())


def test_several_messages_on_one_connection_are_answered_in_order() -> None:
    async def test() -> None:
        inbox = Inbox()
        async with serving(inbox.receive) as server, connected(server) as client:
            await client.send(b"".join(frame(message(n)) for n in range(20)))
            assert [(await client.answer()).control_id for _ in range(20)] == [f"M{n}" for n in range(20)]
        assert inbox.messages == [message(n) for n in range(20)]
        assert inbox.peers[0].address == "127.0.0.1"
        assert inbox.peers[0].local_port == server.ports[0]
        assert inbox.peers[0].certificate_names == ()

    run(test)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_frames_cut_anywhere_by_the_network_arrive_whole(seed: int) -> None:
    async def test() -> None:
        rng = random.Random(seed)
        inbox = Inbox()
        stream = b"".join(frame(message(n, text="长" * 300)) for n in range(5))
        async with serving(inbox.receive) as server, connected(server) as client:
            at = 0
            while at < len(stream):
                step = rng.choice([1, 1, 2, 7, 100, 500])
                await client.send(stream[at : at + step])
                await asyncio.sleep(rng.choice([0, 0.002]))
                at += step
            for n in range(5):
                assert (await client.answer()).control_id == f"M{n}"
        assert inbox.messages == [message(n, text="长" * 300) for n in range(5)]

    run(test)


def test_many_connections_are_served_at_once() -> None:
    async def test() -> None:
        inbox = Inbox(delay=0.2)
        async with serving(inbox.receive, max_connections=200) as server:

            async def one(number: int) -> str:
                async with Sender("127.0.0.1", server.ports[0]) as sender:
                    return (await sender.send(message(number))).code

            began = asyncio.get_running_loop().time()
            assert await asyncio.gather(*(one(n) for n in range(100))) == ["AA"] * 100
            assert asyncio.get_running_loop().time() - began < 10

    run(test)


def test_connections_beyond_the_limit_are_closed() -> None:
    async def test() -> None:
        async with serving(Inbox().receive, max_connections=1) as server, connected(server) as first:
            await first.send(frame(message(1)))
            await first.answer()
            async with connected(server) as second:
                assert await second.ended()
            await first.send(frame(message(2)))
            assert (await first.answer()).control_id == "M2"

    run(test)


def test_a_frame_without_a_start_mark_is_answered_and_reported() -> None:
    async def test() -> None:
        inbox = Inbox()
        async with serving(inbox.receive, report=inbox.report) as server, connected(server) as client:
            await client.send(message(1) + b"\x1c\r")
            assert (await client.answer()).control_id == "M1"
        assert [f.fault for f in inbox.faults] == ["no-start"]

    run(test)


def test_noise_between_frames_is_reported_and_the_connection_lives_on() -> None:
    async def test() -> None:
        inbox = Inbox()
        async with serving(inbox.receive, report=inbox.report) as server, connected(server) as client:
            await client.send(b"\xff\xfe noise" + frame(message(1)) + b"\x0bMSH|cut off" + frame(message(2)))
            assert (await client.answer()).control_id == "M1"
            assert (await client.answer()).control_id == "M2"
        assert [(f.fault, f.data) for f in inbox.faults] == [
            ("noise", b"\xff\xfe noise"),
            ("unfinished", b"MSH|cut off"),
        ]

    run(test)


def test_an_end_mark_without_cr_ends_the_frame_after_a_moment() -> None:
    async def test() -> None:
        inbox = Inbox()
        async with serving(inbox.receive) as server, connected(server) as client:
            for n in range(2):
                await client.send(b"\x0b" + message(n) + b"\x1c")
                assert (await client.answer()).control_id == f"M{n}"
        assert inbox.messages == [message(0), message(1)]

    run(test)


@pytest.mark.parametrize(
    ("modes", "code"),
    [("|", "AR"), ("AL|NE", "CR"), ("ER|NE", "CR"), ("NE|AL", "AR"), ("|2", "AR"), ("NE|NE", None), ("SU|NE", None)],
)
def test_a_message_over_the_limit_is_refused_naming_the_limit(modes: str, code: str | None) -> None:
    async def test() -> None:
        inbox = Inbox()
        async with serving(inbox.receive, report=inbox.report, max_bytes=10_000) as server, connected(server) as client:
            await client.send(frame(message(1, modes, "x" * 5_000_000)) + frame(message(2)))
            if code:
                answer = await client.answer()
                assert (answer.code, answer.control_id) == (code, "M1")
                assert "10000 bytes" in answer.errors[0].text
                assert answer.errors[0].code == "104"
            assert (await client.answer()).control_id == "M2"
        assert inbox.messages == [message(2)]
        assert [(f.fault, len(f.data)) for f in inbox.faults] == [("oversize", 64 * 1024)]
        assert inbox.faults[0].size > 5_000_000

    run(test)


def test_the_limit_may_depend_on_the_peer() -> None:
    async def test() -> None:
        async with (
            serving(Inbox().receive, max_bytes=lambda peer: 100 if peer.address == "127.0.0.1" else 10**6) as server,
            connected(server) as client,
        ):
            await client.send(frame(message(1, text="x" * 200)))
            assert (await client.answer()).code == "AR"

    run(test)


def test_a_silent_connection_is_closed() -> None:
    async def test() -> None:
        async with serving(Inbox().receive, idle_seconds=0.2) as server, connected(server) as client:
            await client.send(b"\x0bMSH|")
            assert await client.ended()

    run(test)


def test_a_fault_in_receive_closes_that_connection_without_an_answer_and_the_server_lives_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async def receive(raw: bytes, _: Peer) -> bytes:
            if b"M1" in raw:
                raise ValueError("database driver bug")
            return accept(raw)

        async with serving(receive) as server:
            async with connected(server) as client:
                await client.send(frame(message(1)))
                assert await client.ended()
            async with connected(server) as client:
                await client.send(frame(message(2)))
                assert (await client.answer()).control_id == "M2"

    run(test)
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == ["mllp_connection_failed peer=127.0.0.1"]


def test_a_peer_that_goes_away_in_a_frame_is_reported() -> None:
    async def test() -> None:
        inbox = Inbox()
        async with serving(inbox.receive, report=inbox.report) as server:
            async with connected(server) as client:
                await client.send(b"\x0b" + message(1)[:50])
            await until(lambda: bool(inbox.faults))
        assert [(f.fault, f.data) for f in inbox.faults] == [("unfinished", message(1)[:50])]
        assert inbox.messages == []

    run(test)


def test_a_peer_that_sends_and_closes_its_side_still_gets_its_answer() -> None:
    async def test() -> None:
        async with serving(Inbox(delay=0.1).receive) as server, connected(server) as client:
            await client.send(frame(message(1)))
            client.writer.write_eof()
            assert (await client.answer()).control_id == "M1"

    run(test)


def test_receive_may_answer_with_nothing_or_with_several_messages() -> None:
    async def test() -> None:
        async def receive(raw: bytes, _: Peer) -> list[bytes] | None:
            return None if b"M1" in raw else [accept(raw, "CA"), accept(raw, "AA")]

        async with serving(receive) as server, connected(server) as client:
            await client.send(frame(message(1)) + frame(message(2)))
            assert [(await client.answer()).code for _ in range(2)] == ["CA", "AA"]

    run(test)


def test_the_application_acknowledgement_can_follow_later_on_the_same_connection() -> None:
    async def test() -> None:
        later: list[asyncio.Task[None]] = []

        async def receive(raw: bytes, peer: Peer) -> bytes:
            async def push() -> None:
                await asyncio.sleep(0.1)
                await peer.send(accept(raw, "AA"))

            later.append(asyncio.create_task(push()))
            return accept(raw, "CA")

        async with serving(receive) as server, Sender("127.0.0.1", server.ports[0]) as sender:
            assert (await sender.send(message(1, "AL|AL"))).code == "CA"
            assert (await sender.send(message(2, "AL|AL"))).code == "CA"
            found = [await sender.receive(5) for _ in range(2)]
            assert [(a.code, a.control_id) for a in found] == [("AA", "M1"), ("AA", "M2")]
            await asyncio.gather(*later)

    run(test)


def test_sending_to_a_closed_connection_says_so() -> None:
    async def test() -> None:
        inbox = Inbox()
        async with serving(inbox.receive) as server:
            async with connected(server) as client:
                await client.send(frame(message(1)))
                await client.answer()
            await until(lambda: not server.connections)
            assert not inbox.peers[0].is_open
            with pytest.raises(ConnectionError):
                await inbox.peers[0].send(b"x")

    run(test)


def test_stop_lets_the_frame_in_progress_be_finished_and_answered() -> None:
    async def test() -> None:
        inbox = Inbox(delay=0.3)
        server = await mllp.serve([Listener(bound())], inbox.receive)
        port = server.ports[0]
        async with connected(server) as idle, connected(server) as begun, connected(server) as answering:
            await begun.send(b"\x0b" + message(1)[:20])
            await answering.send(frame(message(2)))
            await asyncio.sleep(0.1)
            stopping = asyncio.create_task(server.stop(grace=5))
            assert await idle.ended()
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            await begun.send(message(1)[20:] + b"\x1c\r")
            assert (await answering.answer()).control_id == "M2"
            assert (await begun.answer()).control_id == "M1"
            assert await begun.ended()
            await stopping
        assert server.connections == 0

    run(test)


def test_stop_gives_up_on_an_unfinished_frame_after_the_grace() -> None:
    async def test() -> None:
        server = await mllp.serve([Listener(bound())], Inbox().receive)
        async with connected(server) as begun:
            await begun.send(b"\x0b" + message(1)[:20])
            await asyncio.sleep(0.05)
            await server.stop(grace=0.2)
            assert await begun.ended()

    run(test)


# --- TLS -----------------------------------------------------------------------------------------------------------------------------


def _certificate(folder: Path, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None) -> Any:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    authority = issuer[0].subject if issuer else subject
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"{name}.example"), x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, key


def test_a_client_certificate_names_the_peer(tmp_path: Path) -> None:
    authority = _certificate(tmp_path, "authority", None)
    for name in ("server", "township"):
        _certificate(tmp_path, name, authority)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    server_side.load_verify_locations(tmp_path / "authority.pem")
    server_side.verify_mode = ssl.CERT_REQUIRED
    client_side = ssl.create_default_context(cafile=str(tmp_path / "authority.pem"))
    without = ssl.create_default_context(cafile=str(tmp_path / "authority.pem"))
    client_side.load_cert_chain(tmp_path / "township.pem", tmp_path / "township.key")

    async def test() -> None:
        inbox = Inbox()
        async with serving(inbox.receive, server_side) as server:
            async with Sender("localhost", server.ports[0], tls=client_side) as sender:
                assert (await sender.send(message(1))).code == "AA"
            assert inbox.peers[0].certificate_names == ("township", "township.example", "localhost")
            async with Sender("localhost", server.ports[0], tls=without, timeout=5) as stranger:
                with pytest.raises(SendError):
                    await stranger.send(message(2))
            async with Sender("localhost", server.ports[0], timeout=5) as plain:
                with pytest.raises(SendError):
                    await plain.send(message(3))
            async with Sender("localhost", server.ports[0], tls=client_side) as sender:
                assert (await sender.send(message(4))).code == "AA"
        assert len(inbox.messages) == 2

    run(test)


# --- sender --------------------------------------------------------------------------------------------------------------------------


def test_the_sender_connects_from_a_given_address() -> None:
    async def test() -> None:
        inbox = Inbox()
        async with (
            serving(inbox.receive) as server,
            Sender("127.0.0.1", server.ports[0], local_address="127.0.0.7") as sender,
        ):
            await sender.send(message(1))
        assert inbox.peers[0].address == "127.0.0.7"

    run(test)


def test_the_sender_waits_for_the_answer_to_its_own_message() -> None:
    async def test() -> None:
        async def receive(raw: bytes, _: Peer) -> list[bytes]:
            return [accept(message(99)), accept(raw)]

        async with serving(receive) as server, Sender("127.0.0.1", server.ports[0]) as sender:
            assert (await sender.send(message(1))).control_id == "M1"
            assert [a.control_id for a in sender.late] == ["M99"]

    run(test)


def test_an_answer_without_a_control_id_answers_what_was_sent() -> None:
    async def test() -> None:
        async def receive(raw: bytes, _: Peer) -> bytes:
            return ack.acknowledge(ack.facts(b""), "AR", None, "A1", NOW, "no MSH")

        async with serving(receive) as server, Sender("127.0.0.1", server.ports[0]) as sender:
            assert (await sender.send(message(1))).code == "AR"
            assert (await sender.send(b"noise")).text == "no MSH"

    run(test)


def test_no_answer_in_time_is_an_error() -> None:
    async def test() -> None:
        async with (
            serving(Inbox(delay=2).receive) as server,
            Sender("127.0.0.1", server.ports[0], timeout=0.2) as sender,
        ):
            with pytest.raises(SendError, match=r"within 0\.2 s"):
                await sender.send(message(1))

    run(test)


def test_nobody_listening_is_an_error() -> None:
    async def test() -> None:
        free = bound()
        port = free.getsockname()[1]
        free.close()
        with pytest.raises(SendError, match="cannot connect"):
            await Sender("127.0.0.1", port).send(message(1))

    run(test)


@pytest.mark.parametrize(("retries", "code", "tries"), [(0, "AE", 1), (1, "AE", 2), (5, "AA", 3)])
def test_an_error_answer_is_retried_only_when_told(retries: int, code: str, tries: int) -> None:
    async def test() -> None:
        seen = 0

        async def receive(raw: bytes, _: Peer) -> bytes:
            nonlocal seen
            seen += 1
            return accept(raw, "AA" if seen == 3 else "AE")

        async with (
            serving(receive) as server,
            Sender("127.0.0.1", server.ports[0], retries=retries, backoff=0.01) as sender,
        ):
            assert (await sender.send(message(1))).code == code
        assert seen == tries

    run(test)


def test_a_refusal_is_not_retried() -> None:
    async def test() -> None:
        seen = 0

        async def receive(raw: bytes, _: Peer) -> bytes:
            nonlocal seen
            seen += 1
            return accept(raw, "AR")

        async with serving(receive) as server, Sender("127.0.0.1", server.ports[0], retries=3, backoff=0.01) as sender:
            assert (await sender.send(message(1))).code == "AR"
        assert seen == 1

    run(test)


def test_a_broken_connection_is_opened_again_when_told_to_retry() -> None:
    async def test() -> None:
        seen = 0

        async def receive(raw: bytes, peer: Peer) -> bytes:
            nonlocal seen
            seen += 1
            if seen == 1:
                raise ConnectionResetError("gone")
            return accept(raw)

        async with serving(receive) as server, Sender("127.0.0.1", server.ports[0], retries=1, backoff=0.01) as sender:
            assert (await sender.send(message(1))).code == "AA"
        assert seen == 2

    run(test)


def test_a_connection_the_server_closed_is_opened_again_for_the_next_message() -> None:
    async def test() -> None:
        inbox = Inbox()
        async with serving(inbox.receive, idle_seconds=0.1) as server, Sender("127.0.0.1", server.ports[0]) as sender:
            assert (await sender.send(message(1))).code == "AA"
            await until(lambda: not server.connections)
            await asyncio.sleep(0.05)
            assert (await sender.send(message(2))).code == "AA"
        assert inbox.messages == [message(1), message(2)]

    run(test)


@pytest.mark.parametrize(("modes", "waits"), [("NE|NE", False), ("NE|", False), ("ER|NE", True)])
def test_a_message_that_asks_for_no_answer_gets_an_empty_one(modes: str, waits: bool) -> None:
    async def test() -> None:
        async def receive(raw: bytes, _: Peer) -> None:
            return None

        async with serving(receive) as server, Sender("127.0.0.1", server.ports[0], timeout=0.2) as sender:
            began = asyncio.get_running_loop().time()
            assert (await sender.send(message(1, modes))).code == ""
            assert (asyncio.get_running_loop().time() - began >= 0.2) is waits

    run(test)


def test_what_arrives_is_what_was_sent() -> None:
    async def test() -> None:
        inbox = Inbox()
        raw = "MSH|^~\\&|检验科|县医院|||20260102||ORU^R01|M1|P|2.4\rOBX|1|TX|R||袮裓辌\r".encode("gb18030")
        async with serving(inbox.receive) as server, Sender("127.0.0.1", server.ports[0]) as sender:
            assert (await sender.send(raw)).control_id == "M1"
        assert inbox.messages == [raw]
        assert read(inbox.messages[0]).charset == "gb18030"

    run(test)
