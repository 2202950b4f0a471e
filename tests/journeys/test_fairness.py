"""One flooding channel and three quiet ones: everybody gets an equal share, the flood waits for itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import quantiles

import pytest

from tests.journeys.feeds import Line, write_profiles
from tests.journeys.installation import Installation
from tests.seeds import seed_of

CONNECTIONS = int(os.environ.get("TONGJIAN_FLOOD_CONNECTIONS", "32"))
MESSAGES = int(os.environ.get("TONGJIAN_FLOOD_MESSAGES", "20"))
"""Of each connection of the flood."""
QUIET = ("beta", "gamma", "delta")
QUIET_MESSAGES = int(os.environ.get("TONGJIAN_QUIET_MESSAGES", "12"))


@pytest.fixture
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("fairness")
    running = Installation(folder / "data", write_profiles(folder / "profiles"), workers=1)
    running.start()
    try:
        running.await_worker()
        yield running
    finally:
        running.stop()


@dataclass
class Flood:
    """A flood under way. mean: seconds each of its messages waited for its acknowledgement; known when it has ended."""

    process: subprocess.Popen[str]
    mean: float = 0.0


@contextmanager
def flooding(installation: Installation) -> Iterator[Flood]:
    """The flood as a process; accepted in full when it ends."""
    arguments = [installation.mllp_port, "alpha", CONNECTIONS, MESSAGES]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.journeys.flood", *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    flood = Flood(process)
    try:
        yield flood
        out, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        process.communicate()
    accepted, seconds = out.split()
    assert int(accepted) == CONNECTIONS * MESSAGES
    flood.mean = float(seconds) / MESSAGES


def quiet_lines(seed: int, first: int) -> list[Line]:
    return [Line(facility, first + n, seed + n) for n, facility in enumerate(QUIET)]


async def trickle(port: int, lines: list[Line]) -> None:
    await asyncio.gather(*(line.send(port, QUIET_MESSAGES, pause=0.2) for line in lines))


def percentile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def check(what: str, lines: list[Line], flood: Flood, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints how long quiet messages waited. A machine that other programs load is slow for all, so what is asserted is the share."""
    waited = [t for line in lines for t in line.waited]
    p50, p99 = (1000 * percentile(waited, p) for p in (50, 99))
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{what}: quiet ACK p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {1000 * max(waited):.1f} ms, n {len(waited)};"
            f" flood ACK mean {1000 * flood.mean:.1f} ms"
        )
    assert p50 < max(100, 500 * flood.mean), "quiet messages wait as long as those of the flood"
    assert p99 < 2000


@pytest.mark.timeout(600)
def test_a_flood_and_its_repetition_starve_nobody(
    installation: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = seed_of("fairness")
    first, second = quiet_lines(seed, 0), quiet_lines(seed + 10, 10)
    with flooding(installation) as flood:
        while installation.sql("SELECT count(*) >= 100 FROM inbox WHERE facility = 'alpha'") != [(True,)]:
            assert flood.process.poll() is None
        asyncio.run(trickle(installation.mllp_port, first))
        ((backlog,),) = installation.sql("SELECT count(*) FROM inbox WHERE facility = 'alpha' AND status <> 'done'")
    check(f"new messages over {CONNECTIONS} connections", first, flood, capsys)
    # While messages of the flood were waiting, what came quietly was converted as if it were alone.
    assert backlog > 0
    lag = "SELECT extract(epoch FROM converted_at - received_at)::float FROM inbox WHERE status = 'done' AND facility "
    while installation.sql("SELECT count(*) FROM inbox WHERE facility <> 'alpha' AND status <> 'done'") != [(0,)]:
        time.sleep(0.05)
    quiet = [row[0] for row in installation.sql(lag + "<> 'alpha'")]
    installation.settle(300)
    flooded = [row[0] for row in installation.sql(lag + "= 'alpha'")]
    with capsys.disabled():
        print(  # noqa: T201
            f"conversion lag p50, p99: quiet {percentile(quiet, 50):.2f}, {percentile(quiet, 99):.2f} s;"
            f" flood {percentile(flooded, 50):.2f}, {percentile(flooded, 99):.2f} s; backlog {backlog}"
        )
    assert percentile(quiet, 99) < max(3.0, percentile(flooded, 50))

    # The sender replays its whole history: nothing is stored twice, and nobody else feels it.
    versions = "SELECT count(*), sum(version) FROM resource r JOIN inbox i ON i.id = r.inbox WHERE i.facility = 'alpha'"
    before = installation.sql(versions)
    with flooding(installation) as again:
        time.sleep(0.5)
        asyncio.run(trickle(installation.mllp_port, second))
    check(f"history again over {CONNECTIONS} connections", second, again, capsys)
    installation.settle(60)
    assert installation.sql("SELECT count(*) FROM inbox WHERE facility = 'alpha'") == [(CONNECTIONS * MESSAGES,)]
    assert installation.sql(versions) == before
