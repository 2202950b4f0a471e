"""Fixtures that all tests share: one PostgreSQL of our own, and a fresh migrated database for each test that asks for one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fhir_server.store import database, embedded
from tests import seeds
from tests.databases import Databases

_TEMPLATE = "template_tongjian"
_REAL_TIME = ("adapters/transports", "bench", "demo", "edge", "journeys")
_ALONE = ("adapters/transports", "bench", "edge/test_limits", "journeys", "publish/test_kill")
"""Those whose outcome depends on how busy the machine is: they run one at a time, after all others."""

seeds.load_profile()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that runs real processes on real sockets and clocks may be disturbed by the machine (a stall of seconds, a port taken):
    it is run again, and counted as rerun, up to twice. All others have one chance, and so have all when TONGJIAN_SEED looks further:
    what is found then may not come again."""
    here = Path(__file__).parent
    for item in items:
        real_time = item.path.relative_to(here).as_posix().startswith(_REAL_TIME)
        if item.path.relative_to(here).as_posix().startswith(_ALONE):
            item.add_marker(pytest.mark.real_time)
        if not seeds.GIVEN and (real_time or "postgres" in getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=1))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a running embedded server in a temporary folder; stopped and removed at the end of the run.

    It need not outlive the machine, so it does not wait for the disk. Tests of durability (journeys, store/test_embedded.py)
    have servers of their own, which do.
    """
    folder = Path(tempfile.mkdtemp(prefix="tongjian-test-"))
    folder.chmod(0o711)
    try:
        server = embedded.start(folder)
        try:
            with psycopg.connect(server.url, autocommit=True) as conn:
                conn.execute("ALTER SYSTEM SET fsync = off")
                conn.execute("SELECT pg_reload_conf()")
            yield server.url
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template_database(postgres: str) -> str:
    """Name of a migrated, empty database to copy from."""
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {_TEMPLATE}")
    database.migrate(_named(postgres, _TEMPLATE))
    return _TEMPLATE


@pytest.fixture(scope="session")
def databases(postgres: str, template_database: str) -> Iterator[Databases]:
    """One stock of databases for the session."""
    stock = Databases(postgres, template_database)
    try:
        yield stock
    finally:
        stock.end()


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """URL of a fresh migrated database; dropped after the test."""
    url = databases.take()
    try:
        yield url
    finally:
        databases.drop(url)


def _named(url: str, database_name: str) -> str:
    return url.rpartition("/")[0] + "/" + database_name
