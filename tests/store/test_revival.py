"""fhir_server.store.revival: an embedded server that dies comes back by itself, at the same address, with its data."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fhir_server.store import embedded
from fhir_server.store.embedded import Embedded, EmbeddedError
from fhir_server.store.revival import kept_alive


@pytest.fixture
def server() -> Iterator[Embedded]:
    with tempfile.TemporaryDirectory(prefix="tj-") as path:
        running = embedded.start(Path(path))
        try:
            yield running
        finally:
            running.stop()


def answer(url: str, question: str, within: float = 60.0) -> object:
    """Asks until the server answers."""
    end = time.monotonic() + within
    while True:
        try:
            with psycopg.connect(url, connect_timeout=5) as conn:
                row = conn.execute(question).fetchone()
            assert row is not None
            return row[0]
        except psycopg.OperationalError:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_killed_server_comes_back_with_its_data_at_the_same_address(
    server: Embedded, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(server.url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS n")
    with kept_alive(server):
        for _ in range(2):
            old = server.pid
            os.kill(old, signal.SIGKILL)
            assert answer(server.url, "SELECT n FROM kept") == 42
            end = time.monotonic() + 30
            while server.pid == old:
                assert time.monotonic() < end
                time.sleep(0.05)
    assert sum("embedded_database_revived" in r.getMessage() for r in caplog.records) == 2
    server.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.url)


def test_is_not_revived_once_it_was_stopped(server: Embedded) -> None:
    server.stop()
    assert server.revive() is False


def test_never_comes_back_at_another_address(server: Embedded, caplog: pytest.LogCaptureFixture) -> None:
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    os.kill(server.pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while True:
        try:
            taken = socket.create_server(("127.0.0.1", port))
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.01)
    with taken:
        # Everybody who uses it knows the address: to be away and say why is better than to be somewhere else.
        with pytest.raises(EmbeddedError, match=f"port {port} on 127.0.0.1 is taken"):
            server.revive()
        with kept_alive(server):
            while not any("embedded_database_down" in r.getMessage() for r in caplog.records):
                assert time.monotonic() < end
                time.sleep(0.05)
            taken.close()
            assert answer(server.url, "SELECT 1") == 1
