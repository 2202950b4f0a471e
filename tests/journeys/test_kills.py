"""Server, workers and PostgreSQL are killed at random moments: nothing acknowledged is lost, nothing doubled, the order of each
patient kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from adapters.transports.mllp import Sender, SendError
from conformance.capability import RESOURCE_TYPES
from fhir_server.store import embedded

KILLS = 12
PATIENTS = 12
SENDERS = {"127.0.1.11": ("LIS", "YXRMYY"), "127.0.1.13": ("NHLIS", "NHWSY")}
"""Address and MSH-3/4 of two facilities of the shipped county."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def message(application: str, facility: str, patient: int, number: int) -> bytes:
    """Correction ``number`` of the one report of a patient."""
    at = f"202603{1 + number // 1440:02d}{number // 60 % 24:02d}{number % 60:02d}00"
    return (
        f"MSH|^~\\&|{application}|{facility}|TJ|TJ|{at}||ORU^R01^ORU_R01|{facility}-{patient}-{number}|P|2.5.1\r"
        f"PID|1||{patient}^^^{facility}^PI||测试者{patient}||19700101|F\r"
        f"OBR|1||R{patient}|X^检验|||{at}|||||||||||||||{at}|||C\r"
        f"OBX|1|NM|K^钾||{number}|mmol/L|||||C|||{at}\r"
    ).encode()


class County:
    """PostgreSQL and ``tongjian serve`` in a folder of their own, and the hands to kill them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mllp_port = free_port()
        self.http_port = free_port()
        self.database = embedded.start(folder)
        self.log = (folder / "serve.log").open("ab")
        self.serve()

    def serve(self) -> None:
        command = [sys.executable, "-m", "fhir_server.cli", "serve", "--data", str(self.folder), "--workers", "2"]
        self.server = subprocess.Popen(
            [*command, "--port", str(self.http_port), "--mllp-port", str(self.mllp_port)],
            env={**os.environ, "DATABASE_URL": self.database.url, "TONGJIAN_LEASE_SECONDS": "2"},
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def workers(self) -> list[int]:
        try:
            children = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in children.split()]

    def kill_server(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    async def supervise(self) -> None:
        """Starts a server that has ended again, as an operating system does: killed, or started while there was no database."""
        while True:
            await asyncio.sleep(0.5)
            if self.server.poll() is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.server.pid, signal.SIGKILL)
                self.serve()

    def kill_worker(self, rng: random.Random) -> None:
        if found := self.workers():
            os.kill(rng.choice(found), signal.SIGKILL)

    def kill_database(self) -> None:
        os.kill(self.database.pid, signal.SIGKILL)
        time.sleep(0.5)
        url = self.database.url
        self.database = embedded.start(self.folder)
        assert self.database.url == url

    def stop(self) -> None:
        self.server.send_signal(signal.SIGTERM)
        try:
            assert self.server.wait(60) == 0
        finally:
            if self.server.poll() is None:
                os.killpg(self.server.pid, signal.SIGKILL)
                self.server.wait()
            self.log.close()
            self.database.stop()


@pytest.fixture
def county() -> Iterator[County]:
    folder = Path(tempfile.mkdtemp(prefix="tongjian-kills-"))
    folder.chmod(0o711)
    try:
        running = County(folder)
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(folder)


async def feed(
    port: int, address: str, done: asyncio.Event, progress: asyncio.Event, acknowledged: dict[str, int]
) -> None:
    """Sends one message after the other until ``done``, each again until it is acknowledged, as a HIS does."""
    application, facility = SENDERS[address]
    async with Sender("127.0.0.1", port, local_address=address, timeout=5) as sender:
        number = 0
        while not done.is_set():
            patient, correction = number % PATIENTS, number // PATIENTS
            raw = message(application, facility, patient, correction)
            while True:
                try:
                    answer = await sender.send(raw)
                except SendError:
                    await asyncio.sleep(0.2)
                    continue
                assert answer.code in ("AA", "AE"), answer
                if answer.code == "AA":
                    break
                await asyncio.sleep(0.1)
            acknowledged[f"{facility}-{patient}"] = correction + 1
            number += 1
            progress.set()
            await asyncio.sleep(0.01)


async def torture(county: County, rng: random.Random) -> dict[str, int]:
    done, progress = asyncio.Event(), asyncio.Event()
    acknowledged: dict[str, int] = {}
    feeding = [asyncio.create_task(feed(county.mllp_port, a, done, progress, acknowledged)) for a in SENDERS]
    supervising = asyncio.create_task(county.supervise())
    await progress.wait()
    for _ in range(KILLS):
        await asyncio.sleep(rng.uniform(0.3, 2.5))
        kind = rng.choice(["server", "worker", "worker", "database"])
        if kind == "server":
            await asyncio.to_thread(county.kill_server)
        elif kind == "worker":
            county.kill_worker(rng)
        else:
            await asyncio.to_thread(county.kill_database)
    before = sum(acknowledged.values())
    async with asyncio.timeout(60):
        while sum(acknowledged.values()) < before + 20:
            progress.clear()
            await progress.wait()
    done.set()
    await asyncio.gather(*feeding)
    supervising.cancel()
    return acknowledged


def rows(county: County, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(county.database.url) as conn:
        return conn.execute(statement, values or None).fetchall()  # type: ignore[arg-type]


@pytest.mark.timeout(280)
def test_nothing_acknowledged_is_lost_or_doubled_or_out_of_order(county: County) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 - to run it again
    acknowledged = asyncio.run(torture(county, random.Random(seed)))
    end = time.monotonic() + 90
    while rows(county, "SELECT count(*) FROM inbox WHERE status IN ('ready', 'claimed')") != [(0,)]:
        assert time.monotonic() < end, rows(county, "SELECT status, count(*), max(attempts) FROM inbox GROUP BY 1")
        time.sleep(0.2)
    expected = {f"{name}-{n}" for name, count in acknowledged.items() for n in range(count)}
    stored = rows(county, "SELECT control_id, count(*), min(status), min(flag) FROM inbox GROUP BY 1")
    assert {r[0] for r in stored} == expected
    assert {r[1:] for r in stored} == {(1, "done", None)}
    # Each correction of a report is one version of its result; one that came out of order would be stale.
    observation = RESOURCE_TYPES["Observation"]
    versions = rows(county, "SELECT version, top FROM resource WHERE rtype = %s", observation)
    assert sorted(v for v, _ in versions) == sorted(acknowledged.values())
    assert all(version == top for version, top in versions)
    assert rows(county, "SELECT count(*) FROM resource_history WHERE stale") == [(0,)]
    assert rows(county, "SELECT count(*) FROM result WHERE until IS NULL") == [(len(acknowledged),)]
