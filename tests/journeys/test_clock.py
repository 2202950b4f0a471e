"""A clock that jumps back and forth while messages arrive: versions, times and links stay in order.

What a database clock that jumps does to the claims of workers is tested with the claims (tests/ingest/test_claim.py).
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from adapters.transports import mllp
from fhir_server.ingest.receive import Receiver
from fhir_server.ingest.worker import Worker
from fhir_server.store import database
from mappings.profile import load_profiles
from tests.journeys import evidence
from tests.journeys.feeds import FACILITIES, Line, write_profiles
from tests.seeds import seed_of

MESSAGES = int(os.environ.get("TONGJIAN_CLOCK_MESSAGES", "60"))
"""Of each facility."""


class JumpingClock:
    """Every few readings it is set back or forward by up to a day."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._offset = timedelta()
        self._lock = threading.Lock()
        self.back = 0

    def __call__(self) -> datetime:
        with self._lock:
            if self._rng.random() < 0.2:
                jump = timedelta(seconds=self._rng.uniform(-86_400, 86_400))
                self._offset += jump
                self.back += jump < timedelta()
            return datetime.now(UTC) + self._offset


@pytest.mark.timeout(300 + MESSAGES)
def test_a_jumping_clock_disturbs_neither_order_nor_versions(database_url: str, tmp_path: Path) -> None:
    seed = seed_of("clock")
    clock = JumpingClock(seed)
    profiles = load_profiles(write_profiles(tmp_path / "profiles"))
    lines = [Line(facility, n, seed + n) for n, facility in enumerate(FACILITIES)]

    async def story() -> None:
        pool = await database.open_pool(database_url, 4)
        receiver = Receiver(pool, profiles, clock=clock)
        await receiver.open()
        listener = mllp.Listener(socket.create_server(("127.0.0.1", 0)))
        server = await mllp.serve([listener], receiver.receive, clock=clock)
        try:
            await asyncio.gather(*(line.send(server.ports[0], MESSAGES) for line in lines))
        finally:
            await server.stop()
            await receiver.close()
            await pool.close()

    stop = threading.Event()
    workers = [
        threading.Thread(target=Worker(database_url, profiles, stop, batch=5, clock=clock).run) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    try:
        asyncio.run(story())
        with psycopg.connect(database_url, autocommit=True) as conn:

            def sql(statement: str, *values: object) -> list[tuple[Any, ...]]:
                return conn.execute(statement, values or None).fetchall()

            while sql("SELECT EXISTS (SELECT FROM inbox WHERE status IN ('ready', 'claimed'))") == [(True,)]:
                stop.wait(0.1)
            evidence.check(sql, lines)
            assert clock.back > 20
            # A later version never seems older, a result never ends before it was recorded.
            assert sql(
                "SELECT count(*) FROM (SELECT updated < lag(updated) OVER (PARTITION BY rtype, id ORDER BY version) AS wrong FROM ("
                " SELECT rtype, id, version, updated FROM resource"
                " UNION ALL SELECT rtype, id, version, updated FROM resource_history) v) w WHERE wrong"
            ) == [(0,)]
            assert sql("SELECT count(*) FROM result WHERE until < recorded") == [(0,)]
            assert sql("SELECT count(*) FROM identity_link WHERE until <= recorded") == [(0,)]
    finally:
        stop.set()
        for worker in workers:
            worker.join()
