"""Bad input over MLLP, through the inbox and a worker: what the sender is told, and that nothing of it is stored."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fhir_server.ingest.worker import Worker
from mappings.profile import Profile

_TOMORROW = (datetime.now(UTC) + timedelta(days=3)).strftime("%Y%m%d%H%M%S+0000")


def _replace(old: bytes, new: bytes) -> Any:
    return lambda raw: raw.replace(old, new)


def _drop(segment: bytes) -> Any:
    return lambda raw: b"\r".join(line for line in raw.split(b"\r") if not line.startswith(segment))


_CASES: dict[str, tuple[Any, str, str, str]] = {
    "unknown trigger": (_replace(b"ORU^R01^ORU_R01", b"ORU^Q99"), "unknown-trigger", "MSH^1^9", "201"),
    "missing control id": (_replace(b"|BAD|P|", b"||P|"), "no-control-id", "MSH^1^10", "101"),
    "OBX without OBR": (_drop(b"OBR"), "obx-without-obr", "OBX^1^3", "100"),
    "two patients": (lambda raw: raw + b"PID|2||P9^^^ALPHA^PI||x\r", "two-patients", "PID^2^3", "100"),
    "future date": (
        _replace(b"|N|||F|||20260301080000", b"|N|||F|||" + _TOMORROW.encode()),
        "future-date",
        "OBX^1^14",
        "102",
    ),
    "13 digits": (_replace(b"|N|||F|||20260301080000", b"|N|||F|||2026030108000"), "bad-date", "OBX^1^14", "102"),
    "another's number": (_replace(b"^PI|", b"^PI~11010119900307475X^^^^NI|"), "birth-date-conflict", "PID^1^7", "102"),
    "half a message": (lambda raw: raw + b"DSC|P2|F\r", "continued-message", "DSC^1^1", "100"),
}


def test_the_sender_is_told_segment_and_field_and_nothing_is_stored(
    serve: Any, oru: Any, database_url: str, profiles: Mapping[str, Profile]
) -> None:
    stop = threading.Event()
    worker = threading.Thread(target=Worker(database_url, profiles, stop).run)

    async def story() -> None:
        async with serve() as server, server.sender() as sender:
            worker.start()
            for damage, key, location, condition in _CASES.values():
                raw = damage(oru("BAD", "P1", accept="AL", application_ack="AL"))
                assert (await sender.send(raw)).code == "CA"
                answer = await sender.receive(10)
                # An event nobody knows is rejected (section 2.9.2.2); a content fault is an error.
                assert answer.code == ("AR" if condition == "201" else "AE"), key
                assert [(e.location, e.code) for e in answer.errors][:1] == [(location, condition)], (
                    key,
                    answer.errors,
                )
                await server.pool.execute("UPDATE inbox SET control_id = $1 WHERE control_id = 'BAD'", key)
            held = await server.inbox("reason, status")
            assert held == [(key, "held") for _, key, _, _ in _CASES.values()]
            assert await server.pool.fetchval("SELECT count(*) FROM resource") == 0

    try:
        asyncio.run(story())
    finally:
        stop.set()
        worker.join(20)


def test_private_codes_labelled_loinc_are_kept_local_and_named(
    serve: Any, oru: Any, database_url: str, profiles: Mapping[str, Profile]
) -> None:
    stop = threading.Event()
    worker = threading.Thread(target=Worker(database_url, profiles, stop).run)

    async def story() -> None:
        async with serve() as server, server.sender() as sender:
            raw = oru("M1").replace("T1^项目1".encode(), "1037^检查所见^LN".encode())
            assert (await sender.send(raw)).code == "AA"
            worker.start()
            async with asyncio.timeout(30):
                while (await server.inbox("status"))[0] != ("done",):  # noqa: ASYNC110 - the worker has no event to wait for
                    await asyncio.sleep(0.05)
            issues = await server.pool.fetchval(
                "SELECT jsonb_agg(i) FROM inbox, jsonb_array_elements(issues) i WHERE i ->> 'key' = 'not-loinc'"
            )
            assert [(i["where"], i["value"]) for i in json.loads(issues)] == [("OBX[1]-3", "1037")]
            assert [tuple(r) for r in await server.pool.fetch("SELECT code, loinc, item FROM result")] == [
                ("1037", None, None)
            ]

    try:
        asyncio.run(story())
    finally:
        stop.set()
        worker.join(20)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
def test_a_message_cut_off_in_its_frame_is_never_taken(serve: Any, oru: Any, kept: float) -> None:
    async def story() -> None:
        async with serve() as server:
            framed = b"\x0b" + oru("M1") + b"\x1c\r"
            _, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=("127.0.3.1", 0))
            writer.write(framed[: int(len(framed) * kept)])
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            for _ in range(100):
                rows = await server.inbox("status, reason")
                if rows:
                    break
                await asyncio.sleep(0.05)
            assert rows == [("failed", "frame-unfinished")]

    asyncio.run(story())
