"""The server under test: ``tongjian serve`` as shipped, as a process of its own, and what its processes use (Linux /proc)."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from fhir_server.access import default_scopes, issue_token
from fhir_server.keys import Keys
from fhir_server.settings import Settings
from fhir_server.store import embedded
from fhir_server.store.database import database_url, migrate

_TICK = os.sysconf("SC_CLK_TCK")
_DURABLE = ("fsync", "synchronous_commit", "full_page_writes")
_STOP_WITHIN = 40.0


class BenchFailed(Exception):
    """The bench cannot go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers. url: of its database; token: for the API, may read everything; pid: of ``tongjian serve``."""

    url: str
    fhir: str
    mllp_host: str
    mllp_port: int
    token: str
    pid: int

    def workers(self) -> list[int]:
        """Process ids of the converters now."""
        return [pid for pid in _children(self.pid) if b"work" in _command(pid)]


@contextmanager
def database(settings: Settings, *, fresh: bool = True, name: str = "bench") -> Iterator[str]:
    """Address of a migrated database ``name``: on the server of ``database_url``, else on the embedded one of ``data_dir``.

    ``fresh``: whatever it held before is dropped. Raises BenchFailed where commits would not be durable.
    """
    server = None
    if settings.database_url:
        base = database_url(settings.database_url)
    else:
        server = embedded.start(settings.data_dir)
        base = server.url
    try:
        with psycopg.connect(base, autocommit=True) as conn:
            for setting in _DURABLE:
                if conn.execute(f"SHOW {setting}").fetchone() != ("on",):
                    raise BenchFailed(f"PostgreSQL runs with {setting} off; figures would mean nothing.")
            known = conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
            named = sql.Identifier(name)
            if known and fresh:
                conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(named))
            if fresh or not known:
                conn.execute(sql.SQL("CREATE DATABASE {}").format(named))
        url = base.rpartition("/")[0] + "/" + name
        migrate(url)
        yield url
    finally:
        if server is not None:
            server.stop()


@contextmanager
def serving(settings: Settings, url: str) -> Iterator[Running]:
    """`tongjian serve` on the database ``url``, on free ports; stopped in order at the end."""
    command = [sys.executable, "-m", "fhir_server.cli", "serve", "--port", "0", "--mllp-port", "0"]
    command += ["--data", str(settings.data_dir), "--workers", str(settings.workers)]
    environment = dict(os.environ, TONGJIAN_DATABASE_URL=url, TONGJIAN_LOG_LEVEL="WARNING")
    environment.pop("DATABASE_URL", None)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603
    try:
        fhir, host, port = _addresses(process)
        token = issue_token(
            Keys.load(settings.data_dir),
            subject="bench",
            role="system",
            facility="county-hospital",
            scopes=tuple(sorted(default_scopes("system"))),
            ttl=timedelta(hours=12),
            now=datetime.now(UTC),
        )
        yield Running(url, fhir, host, port, token, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _addresses(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    said: dict[str, str] = {}
    assert process.stdout is not None
    for line in process.stdout:
        word, _, address = line.strip().partition(" ")
        said[word] = address.strip()
        if "FHIR" in said and "MLLP" in said:
            host, _, port = said["MLLP"].rpartition(":")
            return said["FHIR"], host, int(port)
    raise BenchFailed("The server ended before it was ready; its messages stand above.")


def folder(given: Path | None) -> Path:
    """The data folder of a bench: the one given, else a fresh one."""
    return (
        given
        if given is not None
        else Path("var") / "bench" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    )


# --- what processes use (proc(5)) --------------------------------------------------------------------------------------------


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat after the name: state first; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields and fields[1] == str(pid):
            found.append(int(entry.name))
    return found


def cpu_seconds(pid: int, *, children: bool = False) -> float:
    """Processor time of a process since its start, user and system; with ``children`` those living and those waited for too."""
    fields = _stat(pid)
    if not fields:
        return 0.0
    total = sum(int(f) for f in fields[11 : 15 if children else 13]) / _TICK
    return total + (sum(cpu_seconds(c, children=True) for c in _children(pid)) if children else 0.0)


def peak_megabytes(pid: int) -> float:
    """Most resident memory a process had so far (VmHWM), in MB of 1,000,000 bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), 0.0)


@dataclass(frozen=True, slots=True)
class Used:
    """Processor seconds used by the parts of an installation."""

    server: float
    workers: float
    postgres: float

    def since(self, before: Used) -> Used:
        """The difference."""
        return Used(self.server - before.server, self.workers - before.workers, self.postgres - before.postgres)


def used(running: Running, postmaster: int | None) -> Used:
    """Processor seconds so far; PostgreSQL's only when it runs on this machine and its ``postmaster`` is known."""
    workers = sum(cpu_seconds(pid) for pid in running.workers())
    return Used(cpu_seconds(running.pid), workers, cpu_seconds(postmaster, children=True) if postmaster else 0.0)


def postmaster_of(conn: psycopg.Connection[Any]) -> int | None:
    """Process id of the PostgreSQL server of a connection when it is a process of this machine, else None."""
    row = conn.execute("SELECT pg_backend_pid()").fetchone()
    fields = _stat(row[0]) if row else []
    if not fields or b"postgres" not in _command(row[0] if row else 0):
        return None
    return int(fields[1])
