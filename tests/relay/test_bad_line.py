"""fhir_server.relay: what stands between a relay and its server gives no message up, and a person is told what is wrong."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from adapters.transports.folder import DropFolder
from fhir_server.relay.doors import FolderDoor
from fhir_server.relay.forward import Cut, Forwarder, Way
from fhir_server.relay.queue import Queue
from tests.edge.certificates import Authority

AT = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
OUTCOME = {
    "resourceType": "OperationOutcome",
    "issue": [{"severity": "error", "code": "invalid", "diagnostics": "No."}],
}


def clock() -> datetime:
    return AT


async def sent(
    folder: Path, answer: Callable[[httpx.Request], httpx.Response], *messages: bytes
) -> tuple[int, str, int]:
    """One attempt: how many still wait, why it was cut, how many were given up."""
    (folder / "token").write_text("secret") if not (folder / "token").exists() else None
    queue = Queue(folder, most_bytes=2**20, keep_free=0)
    words = ""
    try:
        for message in messages:
            await queue.put(message, "mllp", "hl7v2", AT)
        way = Way("https://county.example", folder / "token")
        async with httpx.AsyncClient(
            transport=httpx.MockTransport(answer), base_url=way.address, trust_env=False
        ) as http:
            try:
                await Forwarder(queue, way, clock).send(http)
            except Cut as cut:
                words = str(cut)
        counts = await queue.counts()
        return counts.waiting, words, counts.dead
    finally:
        await queue.close()


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 415, 422, 429, 500, 502, 503])
def test_what_a_proxy_or_a_hotel_answers_gives_no_message_up(tmp_path: Path, status: int) -> None:
    page = httpx.Response(status, html="<html>log in first</html>", headers={"Location": "https://hotel.example/"})
    waiting, words, dead = asyncio.run(sent(tmp_path, lambda _: page, b"MSH|1", b"MSH|2"))
    assert (waiting, dead) == (2, 0)
    assert str(status) in words


def test_a_page_with_status_200_is_no_receipt(tmp_path: Path) -> None:
    page = httpx.Response(200, html="<html>log in first</html>")
    assert asyncio.run(sent(tmp_path, lambda _: page, b"MSH|1")) == (1, "the answer is not one of this server's", 0)


def test_only_the_server_s_own_refusal_gives_a_message_up(tmp_path: Path) -> None:
    refused = httpx.Response(422, content=json.dumps(OUTCOME))
    assert asyncio.run(sent(tmp_path, lambda _: refused, b"MSH|1")) == (0, "", 1)


def test_a_secret_file_of_a_windows_editor_is_read_and_one_that_is_none_is_said(tmp_path: Path) -> None:
    shown: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        shown.append(request.headers["authorization"])
        return httpx.Response(200, content=json.dumps({"at": AT.isoformat(), "stored": [1]}))

    (tmp_path / "token").write_bytes(b"\xef\xbb\xbfsecret\r\n")
    assert asyncio.run(sent(tmp_path, answer, b"MSH|1")) == (0, "", 0)
    assert shown == ["Bearer secret"]
    (tmp_path / "token").write_bytes("密码".encode("gb18030"))
    assert asyncio.run(sent(tmp_path, answer, b"MSH|2")) == (
        1,
        "relay_secret_file is empty or holds more than a secret",
        0,
    )


def test_a_person_reads_why_the_server_cannot_be_reached(tmp_path: Path) -> None:
    def raising(cause: Exception) -> str:
        def answer(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("") from cause

        return asyncio.run(sent(tmp_path, answer, b"MSH|1"))[1]

    young = ssl.SSLCertVerificationError()
    young.verify_message = "certificate is not yet valid"
    assert raising(young) == (
        "away (its certificate is not accepted: certificate is not yet valid; is the clock of this machine right?)"
    )
    assert raising(ConnectionRefusedError()) == "away (nothing listens there)"


def test_a_certificate_of_another_authority_is_named_as_the_reason(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    pair, other = Authority(tmp_path).issue("localhost", server=True), Authority(tmp_path / "other").file
    queue_folder = tmp_path / "queue"
    queue_folder.mkdir()
    (queue_folder / "token").write_text("secret")

    async def story() -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        queue = Queue(queue_folder, most_bytes=2**20, keep_free=0)
        try:
            await queue.put(b"MSH|1", "mllp", "hl7v2", AT)
            way = Way(f"https://127.0.0.1:{port}", queue_folder / "token")
            verify = ssl.create_default_context(cafile=other)
            async with httpx.AsyncClient(base_url=way.address, verify=verify, trust_env=False) as http:
                with pytest.raises(Cut) as told:
                    await Forwarder(queue, way, clock).send(http)
            return str(told.value)
        finally:
            await queue.close()
            server.close()
            await server.wait_closed()

    assert asyncio.run(story()).startswith("away (its certificate is not accepted: ")


def test_a_disk_that_takes_nothing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forwarder goes on when what the server has could not be struck off: it is known there when it is sent again."""
    (tmp_path / "token").write_text("secret")
    asked: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(1)
        return httpx.Response(200, content=json.dumps({"at": AT.isoformat(), "known": [1]}))

    async def story() -> int:
        queue = Queue(tmp_path, most_bytes=2**20, keep_free=0)
        done, struck = queue.done, asyncio.Event()

        async def full_once(numbers: list[int]) -> None:
            if len(asked) == 1:
                raise sqlite3.OperationalError("database or disk is full")
            await done(numbers)
            struck.set()

        monkeypatch.setattr(queue, "done", full_once)
        monkeypatch.setattr("fhir_server.relay.forward.FIRST_PAUSE", 0.01)
        client = httpx.AsyncClient

        def through(**given: object) -> httpx.AsyncClient:
            return client(transport=httpx.MockTransport(answer), base_url=str(given["base_url"]))

        monkeypatch.setattr(httpx, "AsyncClient", through)
        await queue.put(b"MSH|1", "mllp", "hl7v2", AT)
        running = asyncio.create_task(Forwarder(queue, Way("https://county.example", tmp_path / "token"), clock).run())
        async with asyncio.timeout(60):
            await asyncio.wait({running, asyncio.create_task(struck.wait())}, return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        left = (await queue.counts()).waiting
        await queue.close()
        return left

    assert asyncio.run(story()) == 0
    assert len(asked) >= 2


def test_a_file_that_cannot_be_read_is_left_and_the_others_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "a.csv").write_bytes(b"locked")
    (drop / "z.csv").write_bytes(b"open")
    read = DropFolder.read

    def refusing(folder: DropFolder, path: Path, most: int) -> bytes | None:
        if path.name == "a.csv":
            raise PermissionError
        return read(folder, path, most)

    monkeypatch.setattr(DropFolder, "read", refusing)

    async def story() -> tuple[int, int, list[bytes]]:
        queue = Queue(tmp_path / "queue", most_bytes=2**20, keep_free=0)
        door = FolderDoor(drop, queue, 1000, clock)
        try:
            return await door.look(), await door.look(), [m.raw for m in await queue.next(9, 999)]
        finally:
            await queue.close()

    assert asyncio.run(story()) == (0, 1, [b"open"])
    assert (drop / "a.csv").exists()
    assert (drop / "done" / "z.csv").exists()
