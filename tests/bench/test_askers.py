"""The clients of the recognition bench: how many calls they make, and what each one carries."""

from __future__ import annotations

import asyncio

import orjson

from fhir_server.bench.askers import INSTANCE, drive
from fhir_server.bench.clients import Asked

BODIES = [b'{"hookInstance":"%s","n":1}' % INSTANCE, b'{"hookInstance":"%s","n":2}' % INSTANCE]


def driven(*, seconds: float, clients: int, rate: float) -> tuple[Asked, list[dict[str, object]]]:
    """What the clients saw, and the bodies a server got."""
    got: list[dict[str, object]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                writer.close()
                return
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert b"authorization: bearer token" in head.lower()
            got.append(orjson.loads(await reader.readexactly(length)))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async def run() -> Asked:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            return await drive(
                f"http://127.0.0.1:{port}/cds-services/x", "token", BODIES, seconds=seconds, clients=clients, rate=rate
            )
        finally:
            server.close()

    return asyncio.run(run()), got


def test_an_open_loop_makes_the_calls_that_are_due_however_long_they_take() -> None:
    seen, got = driven(seconds=0.2, clients=4, rate=50)
    assert len(seen.ms) == len(got) == 10
    assert [one["n"] for one in sorted(got, key=lambda o: str(o["n"]))] == [1] * 5 + [2] * 5


def test_every_call_has_a_hook_instance_of_its_own() -> None:
    _, got = driven(seconds=0.1, clients=2, rate=100)
    assert len({one["hookInstance"] for one in got}) == len(got) == 10


def test_a_closed_loop_ends_with_its_time() -> None:
    seen, got = driven(seconds=0.05, clients=3, rate=0)
    assert len(seen.ms) == len(got) >= 3
    assert seen.size == 2 * len(got)
