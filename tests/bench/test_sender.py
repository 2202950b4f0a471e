"""fhir_server.bench.sender and http: the measuring side sends what it was given and counts what it gets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fhir_server.bench import sender
from fhir_server.bench.clients import drive
from fhir_server.bench.http import Client, Refused
from fhir_server.bench.messages import Message

MESSAGES = [Message("a", f"127.0.0.{n % 2 + 1}", b"MSH|^~\\&|" + bytes([65 + n]) * 10) for n in range(6)]


def test_messages_come_back_from_the_file_as_they_went_in(tmp_path: Path) -> None:
    assert sender.write(tmp_path / "m", iter(MESSAGES)) == len(MESSAGES)
    assert list(sender.read(tmp_path / "m")) == [(m.address, m.raw) for m in MESSAGES]


@pytest.mark.parametrize(("part", "value"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_percentiles_are_values_that_occurred(part: float, value: float) -> None:
    assert sender.percentile([1.0, 2.0, 3.0, 4.0], part) == value
    assert sender.percentile([], part) == 0.0


@pytest.mark.parametrize("rate", [None, 200.0])
def test_every_message_is_sent_once_and_refusals_are_counted(rate: float | None) -> None:
    got: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                frame = await reader.readuntil(b"\x1c\r")
                got.append(frame[1:-2])
                code = b"AE" if b"CCC" in frame else b"AA"
                writer.write(b"\x0bMSH|^~\\&|\rMSA|" + code + b"|1\r\x1c\r")
        except asyncio.IncompleteReadError:
            writer.close()
            await writer.wait_closed()

    async def scenario() -> sender.Sent:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        told = [(m.address, m.raw) for m in MESSAGES]
        sent = await sender.send("127.0.0.1", port, told, connections=2, rate=rate)
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.05)
        return sent

    sent = asyncio.run(scenario())
    assert sorted(got) == [m.raw for m in MESSAGES]
    assert (sent.messages, sent.refused, len(sent.ack_ms)) == (len(MESSAGES), 1, len(MESSAGES))
    if rate:
        assert sent.seconds >= (len(MESSAGES) - 1) / rate


ANSWERS = {
    b"/fhir/whole": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"/fhir/parts": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
    b"/fhir/gone": b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n",
}


async def _serve() -> tuple[asyncio.Server, str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"authorization: bearer secret" in head.lower()
                writer.write(ANSWERS[head.split()[1]])
        except asyncio.IncompleteReadError:
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/fhir"


def test_clients_read_whole_and_chunked_answers() -> None:
    async def scenario() -> None:
        server, base = await _serve()

        def blocking() -> None:
            with Client(base, "secret") as client:
                assert client.get("whole").body == client.get("parts").body == b"hello"
                with pytest.raises(Refused, match="410"):
                    client.get("gone")

        await asyncio.to_thread(blocking)
        seen = await drive(base, "secret", ["whole", "parts"], seconds=0.2, clients=3)
        assert seen.size == 5 * len(seen.ms) > 0
        with pytest.raises(ExceptionGroup):
            await drive(base, "secret", ["gone"], seconds=0.2, clients=1)
        server.close()
        await asyncio.sleep(0.05)

    asyncio.run(scenario())
