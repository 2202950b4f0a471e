"""fhir_server.store.embedded: the server starts in any folder, survives being killed, and is shared."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest

from fhir_server.store import embedded, server_user
from fhir_server.store.embedded import Embedded, EmbeddedError


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder only its owner may enter (0700), short enough to be extended to any length by a test."""
    with tempfile.TemporaryDirectory(prefix="tj-") as path:
        yield Path(path)


def ask(server: Embedded, question: str) -> object:
    with psycopg.connect(server.url) as conn:
        row = conn.execute(question).fetchone()
    assert row is not None
    return row[0]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_starts_stops_and_starts_again_with_the_same_data_and_address(folder: Path) -> None:
    first = embedded.start(folder)
    with psycopg.connect(first.url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS n")
    assert ask(first, "SHOW server_encoding") == "UTF8"
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert ask(first, f"SHOW {setting}") == "on"
    assert ask(first, "SELECT version() LIKE 'PostgreSQL 18%'") is True
    first.stop()
    first.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(first.url)
    second = embedded.start(folder)
    assert second.url == first.url
    assert ask(second, "SELECT n FROM kept") == 42

    async def read() -> int:
        connection = await asyncpg.connect(second.url)
        try:
            return int(await connection.fetchval("SELECT n FROM kept"))
        finally:
            await connection.close()

    assert asyncio.run(read()) == 42
    second.stop()


def test_a_password_is_needed_and_stands_in_a_file_of_the_owner_alone(folder: Path) -> None:
    server = embedded.start(folder)
    try:
        password = folder / "postgres" / "password"
        assert password.stat().st_mode & 0o777 == 0o600
        wrong = server.url.replace(password.read_text(), "guess")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong)
    finally:
        server.stop()


def test_recovers_after_the_server_was_killed(folder: Path) -> None:
    server = embedded.start(folder)
    with psycopg.connect(server.url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    kill(server.pid)
    again = embedded.start(folder)
    assert again.pid != server.pid
    assert ask(again, "SELECT count(*) FROM kept") == 1000
    again.stop()
    server.stop()


def test_a_pid_file_that_names_another_living_process_is_stale(folder: Path) -> None:
    server = embedded.start(folder)
    kill(server.pid)
    pid_file = folder / "postgres" / "cluster" / "postmaster.pid"
    lines = pid_file.read_text().splitlines(keepends=True)
    pid_file.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))
    again = embedded.start(folder)
    assert ask(again, "SELECT 1") == 1
    again.stop()


def test_a_running_server_is_found_and_the_last_user_stops_it(folder: Path) -> None:
    first = embedded.start(folder)
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from fhir_server.store import embedded\n"
            "server = embedded.start(Path(sys.argv[1])); print(server.pid, flush=True); sys.stdin.read()",
            str(folder),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert int(other.stdout.readline()) == first.pid
    first.stop()
    assert ask(first, "SELECT 1") == 1, "the other process still uses it"
    other.kill()
    other.communicate()
    found = embedded.start(folder)
    assert found.pid == first.pid, "it outlives a killed user"
    found.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(found.url)


def test_starts_in_a_folder_with_a_difficult_name(folder: Path) -> None:
    server = embedded.start(folder / "with space 数据" / "quote'\"$x`y" / ("x" * 120) / ("y" * 120))
    try:
        assert ask(server, "SELECT 1") == 1
    finally:
        server.stop()


def test_a_relative_folder_means_the_current_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    server = embedded.start(Path("var"))
    try:
        assert (folder / "var" / "postgres" / "cluster" / "PG_VERSION").exists()
        monkeypatch.chdir("/")
        assert ask(server, "SELECT 1") == 1
    finally:
        server.stop()


def test_a_server_is_found_though_its_folder_was_renamed(folder: Path) -> None:
    server = embedded.start(folder / "before")
    (folder / "before").rename(folder / "after")
    again = embedded.start(folder / "after")
    assert again.pid == server.pid
    server.stop()
    assert ask(again, "SELECT 1") == 1
    again.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(again.url)


def test_changes_no_mode_of_the_folders_above(folder: Path) -> None:
    data = folder / "above" / "data"
    data.mkdir(parents=True, mode=0o700)
    modes = [p.stat().st_mode for p in (folder, folder / "above", data)]
    embedded.start(data).stop()
    assert [p.stat().st_mode for p in (folder, folder / "above", data)] == modes


def test_says_what_is_wrong_when_the_server_does_not_start(folder: Path) -> None:
    embedded.start(folder).stop()
    (folder / "postgres" / "cluster" / "postgresql.conf").write_text("shared_buffers = many\n")
    with pytest.raises(EmbeddedError, match=r"does not start.*postgresql\.conf"):
        embedded.start(folder)


def test_says_so_when_the_server_cannot_reach_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_user.os, "geteuid", lambda: 0)
    monkeypatch.setattr(server_user.os, "chown", lambda *_: None)
    monkeypatch.setattr(server_user.ServerUser, "_reaches", lambda *_: False)
    with pytest.raises(EmbeddedError, match=r"refuses to run as root.*cannot reach.*DATABASE_URL"):
        embedded.start(folder)


def test_a_file_in_the_way_is_a_clear_error(folder: Path) -> None:
    (folder / "file").write_text("x")
    with pytest.raises(EmbeddedError, match="cannot make the data folder"):
        embedded.start(folder / "file")


def test_a_server_that_hangs_in_its_shutdown_is_ended_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "FAST_SHUTDOWN_WITHIN", 0.5)
    server = embedded.start(folder)
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS n")
        # A process of the server that does nothing any more, as a recovery that is stuck.
        stuck = conn.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").fetchone()
    assert stuck is not None
    os.kill(stuck[0], signal.SIGSTOP)
    server.stop()
    again = embedded.start(folder)
    try:
        assert ask(again, "SELECT n FROM kept") == 42
    finally:
        again.stop()
