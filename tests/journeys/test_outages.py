"""PostgreSQL stopped, out of connections, slow, stalled, its disk full, the clock set back: nothing is pretended, everything recovers.

Short in an ordinary run; TONGJIAN_OUTAGE_SECONDS (60 in ``make kills``) makes the outages longer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psycopg
import pytest

from fhir_server.store import embedded
from tests.journeys import evidence
from tests.journeys.feeds import FACILITIES, Line, write_profiles
from tests.journeys.installation import Installation
from tests.journeys.small_disk import SmallDisk, mounted
from tests.seeds import seed_of

OUTAGE = float(os.environ.get("TONGJIAN_OUTAGE_SECONDS", "1.5"))
pytestmark = pytest.mark.timeout(300 + 6 * OUTAGE)


class World:
    """An installation whose database the test may break, and lines that send to it. Evidence is about all lines so far."""

    def __init__(self, installation: Installation, seed: int) -> None:
        self.installation = installation
        self.lines: list[Line] = []
        self._seed = seed

    @contextmanager
    def sending(self, count: int, pause: float = 0.02) -> Iterator[list[Line]]:
        """One line of each facility sends ``count`` messages meanwhile; at the end all are acknowledged."""
        lines = [Line(f, len(self.lines) + n, self._seed + len(self.lines) + n) for n, f in enumerate(FACILITIES)]
        self.lines += lines

        async def everybody() -> None:
            async with asyncio.timeout(120 + 3 * OUTAGE):
                await asyncio.gather(*(line.send(self.installation.mllp_port, count, pause) for line in lines))

        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(asyncio.run, everybody())
            wait_until(lambda: all(line.acknowledged for line in lines) or sent.done())
            yield lines
            sent.result()

    def check(self) -> None:
        """Everything acknowledged so far is stored, once and in order."""
        self.installation.settle()
        evidence.check(self.installation.sql, self.lines)

    def said(self, text: str) -> bool:
        """Whether a log record of the server or a worker has this text."""
        return any(text in str(record["text"]) for record in self.installation.log())


def wait_until(condition: Callable[[], bool], within: float = 60.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


class Postgres:
    """The database server of an operator: not the embedded one of the installation, so nobody but the test starts it again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.server = embedded.start(folder)
        with self.admin() as conn:
            conn.execute("CREATE ROLE app LOGIN PASSWORD 'app'")
            conn.execute("ALTER DATABASE tongjian OWNER TO app")
            conn.execute("GRANT ALL ON SCHEMA public TO app")

    @property
    def url(self) -> str:
        """For an ordinary role."""
        scheme, _, address = self.server.url.partition("://")
        return f"{scheme}://app:app@{address.rpartition('@')[2]}"

    def admin(self) -> psycopg.Connection[Any]:
        """A connection of the superuser."""
        return psycopg.connect(self.server.url, autocommit=True)

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        url = self.server.url
        self.server = embedded.start(self._folder)
        assert self.server.url == url

    def processes(self) -> list[int]:
        """The postmaster and its children."""
        pid = self.server.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    running = Postgres(tmp_path_factory.mktemp("postgres"))
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def world(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    seed = seed_of("outages")
    folder = tmp_path_factory.mktemp("outages")
    installation = Installation(folder / "data", write_profiles(folder / "profiles"), database_url=postgres.url)
    installation.start()
    try:
        installation.await_worker()
        yield World(installation, seed)
    finally:
        installation.stop()


def test_a_stopped_database_is_told_to_senders_and_operators_and_waited_for(world: World, postgres: Postgres) -> None:
    with world.sending(60, pause=0.05) as lines:
        postgres.stop()
        try:
            wait_until(lambda: all(line.answers["AE"] for line in lines))
            status, body = world.installation.health()
            assert (status, body["status"]) == (503, "database away")
            accepted = [len(line.acknowledged) for line in lines]
            time.sleep(OUTAGE)
            assert [len(line.acknowledged) for line in lines] == accepted, "acknowledged without a database"
            assert world.said("inbox_away")
            assert world.said("database_away")
            assert 'tongjian_messages_acknowledged_total{channel="default",code="AE",facility="alpha"}' in (
                world.installation.metrics()
            )
        finally:
            postgres.start()
    wait_until(world.installation.ready)
    world.check()


def test_without_free_connections_senders_are_told_and_served_when_there_are_some(
    world: World, postgres: Postgres
) -> None:
    with world.sending(60, pause=0.05) as lines, postgres.admin() as conn:
        # The same answer (SQLSTATE 53300) as at max_connections, without a race for the slots that become free.
        conn.execute("ALTER ROLE app CONNECTION LIMIT 0")
        try:
            before = [len(line.acknowledged) for line in lines]
            wait_until(lambda: all(len(k.acknowledged) > n + 3 for k, n in zip(lines, before, strict=True)))
            assert not any(line.answers["AE"] for line in lines), "open connections go on working"
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
            wait_until(lambda: all(line.answers["AE"] for line in lines))
            time.sleep(OUTAGE / 3)
            status, body = world.installation.health()
            assert (status, body["status"]) == (503, "database away")
            assert world.said("inbox_away fault=TooManyConnectionsError")
        finally:
            conn.execute("ALTER ROLE app CONNECTION LIMIT -1")
    wait_until(world.installation.ready)
    world.check()


def test_a_slow_disk_makes_senders_wait_and_loses_nothing(world: World, postgres: Postgres) -> None:
    with postgres.admin() as conn:
        # Every commit waits 100 ms before its flush, the most PostgreSQL allows.
        for setting in ("commit_delay = 100000", "commit_siblings = 0"):
            conn.execute(f"ALTER SYSTEM SET {setting}")
        conn.execute("SELECT pg_reload_conf()")
        try:
            with world.sending(20, pause=0) as lines:
                pass
        finally:
            for setting in ("commit_delay", "commit_siblings"):
                conn.execute(f"ALTER SYSTEM RESET {setting}")
            conn.execute("SELECT pg_reload_conf()")
    assert median(t for line in lines for t in line.waited) > 0.05, "the disk was not slow"
    assert not any(line.answers["AE"] or line.answers["none"] for line in lines)
    world.check()


def ask_before_ordering(installation: Installation) -> float:
    """Asks the order-time service; seconds until its answer, which must be there and empty."""
    question = {
        "hook": "order-sign",
        "hookInstance": str(uuid.uuid4()),
        "context": {"userId": "u", "patientId": "nobody", "draftOrders": {"resourceType": "Bundle"}},
    }
    began = time.monotonic()
    answer = httpx.post(
        f"http://127.0.0.1:{installation.port}/cds-services/recognition-order-sign",
        json=question,
        headers={"Authorization": f"Bearer {installation.token()}"},
        timeout=20,
    )
    assert (answer.status_code, answer.json()) == (200, {"cards": []})
    return time.monotonic() - began


def test_a_disk_that_stalls_is_waited_for_or_told(world: World, postgres: Postgres) -> None:
    with world.sending(60, pause=0.05) as lines:
        stopped = postgres.processes()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            accepted = sum(len(line.acknowledged) for line in lines)
            time.sleep(1)
            # What was on the wire when it stopped may have been on the disk already: one of each line.
            assert sum(len(line.acknowledged) for line in lines) <= accepted + len(lines)
            assert world.installation.health()[0] == 503
            assert ask_before_ordering(world.installation) < 3, "an order is never held up"
            time.sleep(OUTAGE)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
    if OUTAGE > 20:
        # Longer than the receiver waits for the database.
        assert all(line.answers["AE"] for line in lines)
    wait_until(world.installation.ready)
    world.check()


def test_ends_in_order_while_the_database_is_away_and_starts_when_it_is_back(world: World, postgres: Postgres) -> None:
    postgres.stop()
    world.installation.stop()
    postgres.start()
    world.installation.start()
    with world.sending(10):
        pass
    world.check()


@contextmanager
def full(installation: Installation, disk: SmallDisk | None) -> Iterator[None]:
    """No space left while inside. Where nothing may be mounted, PostgreSQL is made to say so itself (SQLSTATE 53100)."""
    if disk is not None:
        disk.fill()
        try:
            yield
        finally:
            disk.free()
        return
    installation.sql(
        "CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
    )
    for table in ("inbox", "resource"):
        installation.sql(f"CREATE TRIGGER full_disk BEFORE INSERT ON {table} EXECUTE FUNCTION no_space()")
    try:
        yield
    finally:
        installation.sql("DROP FUNCTION no_space CASCADE")


def stay_full(disk: SmallDisk | None, lines: list[Line]) -> None:
    """Nothing is acknowledged meanwhile, unless PostgreSQL gives space back (old log segments): that is taken away again."""
    accepted, end = [len(line.acknowledged) for line in lines], time.monotonic() + OUTAGE
    while time.monotonic() < end:
        if disk is not None:
            disk.fill()
        time.sleep(0.1)
    if disk is None:
        assert [len(line.acknowledged) for line in lines] == accepted, "acknowledged without space"
    told = sum(line.answers["AE"] + line.answers["none"] for line in lines)

    def told_again() -> bool:
        if disk is not None:
            disk.fill()
        return sum(line.answers["AE"] + line.answers["none"] for line in lines) > told

    wait_until(told_again)


def test_a_full_disk_is_told_and_everything_goes_on_when_there_is_space(tmp_path: Path) -> None:
    seed = seed_of("outages")
    tmp_path.chmod(0o711)
    with mounted(tmp_path / "disk", 256) as disk:
        folder = tmp_path / "disk" / "data"
        installation = Installation(folder, write_profiles(tmp_path / "profiles"), log=tmp_path / "serve.log")
        installation.start()
        try:
            world = World(installation, seed)
            with world.sending(150, pause=0.03) as lines, full(installation, disk):
                wait_until(lambda: all(line.answers["AE"] for line in lines))
                wait_until(lambda: installation.health()[0] == 503)
                stay_full(disk, lines)
            wait_until(installation.ready)
            world.check()
            assert world.said("DiskFull") or world.said("embedded_database_down")
        finally:
            installation.stop()
