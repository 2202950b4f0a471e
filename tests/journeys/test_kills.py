"""SIGKILL of the server, of workers and of PostgreSQL at random moments: nothing acknowledged is lost, doubled or overtaken.

Short in an ordinary run. ``make kills`` is the long form: TONGJIAN_KILLS kills while TONGJIAN_KILL_MESSAGES messages are sent.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from fhir_server.evidence import verify
from tests.journeys import evidence
from tests.journeys.feeds import FACILITIES, Line, write_profiles
from tests.journeys.installation import Installation
from tests.seeds import seed_of

KILLS = int(os.environ.get("TONGJIAN_KILLS", "6"))
MESSAGES = int(os.environ.get("TONGJIAN_KILL_MESSAGES", "480"))
LINES = 12
_TARGETS = ("server", "worker", "worker", "postmaster", "backend", "backend")


class Crasher:
    """A worker that kills itself at seeded moments inside conversion, apply and commit; started again each time."""

    def __init__(self, installation: Installation, profiles: Path, seed: int) -> None:
        self._installation = installation
        self._profiles = profiles
        self._seed = seed
        self._process: subprocess.Popen[bytes] | None = None
        self.deaths: Counter[str] = Counter()

    def tend(self) -> None:
        """Starts it when it does not run."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            where, _ = self._process.communicate()
            self.deaths.update(where.decode().split()[-1:])
        self._seed += 1
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.journeys.crashing_worker",
                self._installation.url,
                str(self._profiles),
                str(self._seed),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        """Stops it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


class Reader:
    """Somebody who reads results all the while. What was seen once is never taken back, and every answer is in the audit log."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._seen: dict[str, int] = {}
        self.answers = 0

    async def read(self, rng: random.Random, most: int | None = None) -> None:
        """Until there were ``most`` answers in all, or until cancelled."""
        headers = {"Authorization": f"Bearer {self._installation.token()}"}
        base = f"http://127.0.0.1:{self._installation.port}/fhir/Observation"
        open_results = "SELECT id FROM result WHERE code = 'SERIAL' AND until IS NULL"
        async with httpx.AsyncClient(headers=headers, timeout=30) as client:
            while most is None or self.answers < most:
                rows = await asyncio.to_thread(self._installation.sql, open_results)
                for (logical,) in rng.sample(rows, min(20, len(rows))):
                    await asyncio.sleep(0.05)
                    try:
                        answer = await client.get(f"{base}/{logical}")
                    except httpx.HTTPError:
                        continue
                    if answer.status_code != 503:
                        assert answer.status_code == 200, answer.text
                        version = int(answer.json()["meta"]["versionId"])
                        assert version >= self._seen.get(logical, 0), f"version {version} of {logical} was taken back"
                        self._seen[logical] = version
                        self.answers += 1
                await asyncio.sleep(0.2)

    async def check(self, rng: random.Random) -> None:
        """Reads once more, now that all is quiet. The audit log holds every answer, and its chains hold."""
        await self.read(rng, self.answers + 20)
        read = '%"action":"R"%"interaction":"read"%"outcome":"0"%'
        ((entries,),) = self._installation.sql("SELECT count(*) FROM audit_entry WHERE entry LIKE %s", read)
        assert entries >= self.answers
        assert await verify(self._installation.url) == []


async def storm(
    installation: Installation, crasher: Crasher, reader: Reader, rng: random.Random, lines: list[Line]
) -> Counter[str]:
    """Sends and kills at the same time; returns the kills by target."""
    kills: Counter[str] = Counter()
    share = math.ceil(MESSAGES / len(lines))
    # Senders are slowed down so that the kills fall into the time of sending.
    length = KILLS * 2.0
    senders = [
        asyncio.create_task(line.send(installation.mllp_port, share, pause=length * 0.5 / share)) for line in lines
    ]
    reading = asyncio.create_task(reader.read(random.Random(rng.random())))
    try:
        while kills.total() + crasher.deaths.total() < KILLS or not all(s.done() for s in senders):
            await asyncio.sleep(rng.uniform(0.1, 3.0))
            for task in (*senders, reading):
                if task.done():
                    task.result()
            await asyncio.to_thread(crasher.tend)
            what, done = rng.choice(_TARGETS), kills.total() + crasher.deaths.total()
            # The kills are spread over the messages: on a slow machine the next one waits until something was achieved again.
            due = sum(len(line.acknowledged) for line in lines) >= 0.9 * MESSAGES * done / KILLS
            if due and done < KILLS and await asyncio.to_thread(installation.kill, what, rng):
                kills[what] += 1
        await asyncio.gather(*senders)
    finally:
        for task in (*senders, reading):
            task.cancel()
    return kills


@pytest.mark.timeout(300 + 15 * KILLS)
def test_every_acknowledged_message_is_stored_once_and_in_order_whatever_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = seed_of("kills")
    rng = random.Random(seed)
    profiles = write_profiles(tmp_path / "profiles")
    tmp_path.chmod(0o711)
    installation = Installation(tmp_path / "data", profiles, lease_seconds=3, workers=1)
    lines = [Line(list(FACILITIES)[n % 3], n, seed + n) for n in range(LINES)]
    crasher = Crasher(installation, profiles, seed)
    reader = Reader(installation)
    began = time.monotonic()
    installation.start()
    try:
        installation.keep_running()
        kills = asyncio.run(storm(installation, crasher, reader, rng, lines))
        sent = time.monotonic() - began
        crasher.end()
        installation.settle(120 + MESSAGES / 25)
        evidence.check(installation.sql, lines)
        asyncio.run(reader.check(rng))
    except BaseException:
        print(installation.tail())  # noqa: T201
        raise
    finally:
        crasher.end()
        installation.stop()
    with capsys.disabled():
        answers = sum((line.answers for line in lines), Counter())
        print(  # noqa: T201 - docs/resilience.md quotes it
            f"\nseed {seed}: {kills.total() + crasher.deaths.total()} kills {dict(kills)}, of itself {dict(crasher.deaths)};"
            f" {sum(len(line.acknowledged) for line in lines)} messages acknowledged, answers {dict(answers)};"
            f" {reader.answers} reads answered;"
            f" {sent:.0f} s to send, {time.monotonic() - began - sent:.0f} s to settle and check"
        )
