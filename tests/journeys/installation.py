"""An installation as an operator has it: ``tongjian serve`` as a process over a data folder, which a test may kill and break."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg

from fhir_server.access import issue_token
from fhir_server.keys import Keys

START_WITHIN = 120.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes() -> Iterator[tuple[int, int, str]]:
    """(pid, parent's pid, command line) of every live process."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            line = os.fsdecode((entry / "cmdline").read_bytes()).replace("\0", " ").strip()
            parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            if line:
                yield int(entry.name), int(parent), line


class Installation:
    """``database_url``: an external database; empty: the embedded one in ``folder``. Ports stay the same over restarts."""

    def __init__(
        self, folder: Path, profiles: Path, *, database_url: str = "", log: Path | None = None, **settings: object
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.mllp_port = free_port()
        self._profiles = profiles
        self._given = database_url
        self._settings = {f"TONGJIAN_{k.upper()}": str(v) for k, v in settings.items()}
        self._log = log or folder.with_name(f"{folder.name}.log")
        self._process: subprocess.Popen[str] | None = None
        self._keeper: threading.Thread | None = None
        self._kept = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)

    # --- the server ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        self._spawn()
        self._await_ready()

    def await_worker(self) -> None:
        """Waits until a worker has started: it does so after the server is ready."""
        end = time.monotonic() + START_WITHIN
        while not any("worker_started" in str(record["text"]) for record in self.log()):
            assert time.monotonic() < end, self.tail()
            time.sleep(0.1)

    def _spawn(self) -> None:
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "PYTHONWARNINGS": "default",
            **self._settings,
        }
        if self._given:
            environment["DATABASE_URL"] = self._given
        command = [sys.executable, "-m", "fhir_server.cli", "serve", "--data", str(self.folder)]
        command += ["--port", str(self.port), "--mllp-port", str(self.mllp_port), "--profiles", str(self._profiles)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _await_ready(self) -> None:
        end = time.monotonic() + START_WITHIN
        while not self.ready():
            assert self._process is not None
            assert self._process.poll() is None, self.tail()
            assert time.monotonic() < end, self.tail()
            time.sleep(0.1)

    def ready(self) -> bool:
        """True when /health/ready says so."""
        return self.health()[0] == 200

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and answer of /health/ready; 0 when nobody listens."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/health/ready", timeout=10)
        except httpx.TransportError:
            return 0, {}
        return answer.status_code, answer.json()

    def keep_running(self) -> None:
        """Starts the server again whenever it ends, as an init system does, until ``stop``."""
        self._kept.clear()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        while not self._kept.wait(0.1):
            if self._process is None or self._process.poll() is not None:
                self._spawn()

    def stop(self) -> None:
        """Graceful stop; fails when the server leaves processes of its own behind."""
        self._kept.set()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise AssertionError(f"the server does not stop\n{self.tail()}") from None
        end = time.monotonic() + 30
        while left := [*self.workers(), *self.postgres()]:
            if time.monotonic() > end:
                for pid in left:
                    _kill(pid)
                raise AssertionError(f"processes left behind: {left}\n{self.tail()}")
            time.sleep(0.1)

    # --- what it says -------------------------------------------------------------------------------------------------------

    def log(self) -> list[dict[str, Any]]:
        """Its log records so far (and those of its workers)."""
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                with contextlib.suppress(json.JSONDecodeError):
                    found.append(json.loads(line))
        return found

    def tail(self) -> str:
        """The end of its output, for the message of a failed assertion."""
        server = self.folder / "postgres" / "server.log"
        more = server.read_text(errors="replace")[-1500:] if server.exists() else ""
        return f"{self._log.read_text(errors='replace')[-4000:]}\n--- server.log\n{more}"

    def token(self, role: str = "system") -> str:
        """A bearer token of this installation."""
        return issue_token(
            Keys.load(self.folder),
            subject="journey",
            role=role,
            facility="",
            scopes=("system/*.cruds",) if role == "system" else (),
            ttl=timedelta(hours=2),
            now=datetime.now(UTC),
        )

    def metrics(self) -> str:
        """/metrics as text."""
        headers = {"Authorization": f"Bearer {self.token()}"}
        return httpx.get(f"http://127.0.0.1:{self.port}/metrics", headers=headers, timeout=10).text

    # --- its database -------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The database, from the files of the data folder."""
        if self._given:
            return self._given
        home = self.folder / "postgres"
        port = (home / "port").read_text().strip()
        return f"postgresql://tongjian:{(home / 'password').read_text().strip()}@127.0.0.1:{port}/tongjian"

    def sql(self, statement: str, *values: object, within: float = 60.0) -> list[tuple[Any, ...]]:
        """Rows of one statement; waits for a database that is away."""
        end = time.monotonic() + within
        while True:
            try:
                with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as conn:
                    cursor = conn.execute(statement, values or None)
                    return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def settle(self, within: float = 120.0) -> None:
        """Waits until every accepted message is converted or held."""
        end = time.monotonic() + within
        while self.sql("SELECT EXISTS (SELECT FROM inbox WHERE status IN ('ready', 'claimed'))") != [(False,)]:
            if time.monotonic() > end:
                rows = self.sql(
                    "SELECT status, attempts, claimed_by, lease_until, count(*) FROM inbox GROUP BY 1, 2, 3, 4"
                )
                raise AssertionError(f"{rows}\n{self.tail()}")
            time.sleep(0.1)

    # --- its processes ------------------------------------------------------------------------------------------------------

    def workers(self) -> list[int]:
        """Converter processes of this data folder."""
        return [pid for pid, _, line in processes() if " work " in line and str(self.folder) in line]

    def postmaster(self) -> int | None:
        """The embedded database server, when it runs."""
        try:
            pid = int((self.folder / "postgres" / "cluster" / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if any(p == pid and str(self.folder) in line for p, _, line in processes()) else None

    def postgres(self) -> list[int]:
        """All processes of the embedded database server."""
        postmaster = self.postmaster()
        return [] if postmaster is None else [p for p, parent, _ in processes() if postmaster in (p, parent)]

    def kill(self, what: str, rng: random.Random) -> bool:
        """SIGKILL to ``server``, a ``worker``, the ``postmaster``, or a ``backend`` (any process of PostgreSQL but the postmaster).

        False when there is no such process at this moment.
        """
        if what == "server":
            pids: Sequence[int] = [self._process.pid] if self._process and self._process.poll() is None else []
        elif what == "worker":
            pids = self.workers()
        elif what == "postmaster":
            pids = [pid for pid in [self.postmaster()] if pid]
        else:
            postmaster = self.postmaster()
            pids = [p for p in self.postgres() if p != postmaster]
        return bool(pids) and _kill(rng.choice(sorted(pids)))


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
