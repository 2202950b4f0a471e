"""The processes of a cluster: found by the pid file and by their titles, told apart from others that got the same number.

``home`` is the folder that holds ``cluster`` (PGDATA). Without /proc (not Linux) a number in the pid file is taken at its word.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Final

from fhir_server.store.server_user import EmbeddedError

ORPHANS_END_WITHIN: Final = 300.0
"""Seconds that processes of a killed server may take to end."""


def command_line(pid: int) -> list[str] | None:
    """Arguments of a live process; None when there is none (or it is a zombie), or the system has no /proc."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return os.fsdecode(raw).rstrip("\0").split("\0") if raw else None


def alive(home: Path, pid: int) -> bool:
    """True when ``pid`` is the postmaster of ``home``: a number alone may have been given to another process since.

    It was started with the path of its folder, which the pid file repeats: the folder may have been renamed under it.
    """
    if Path("/proc/self/cmdline").exists():
        line = command_line(pid)
        return line is not None and not {str(home / "cluster"), *pid_file(home)[1:2]}.isdisjoint(line)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def pid_file(home: Path) -> list[str]:
    """The lines of postmaster.pid: pid, data folder, start time, port, socket folder, address, shared memory, status; none without."""
    try:
        return (home / "cluster" / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def running(home: Path) -> int | None:
    """The pid of the server of ``home``; None when it does not run."""
    lines = pid_file(home)
    if not lines or not lines[0].strip().isdigit():
        return None
    pid = int(lines[0])
    return pid if alive(home, pid) else None


def title(home: Path) -> str:
    """cluster_name: stands in the title of each server process, so that those left by a killed postmaster can be found."""
    return "tongjian-" + hashlib.sha256(os.fsencode(home)).hexdigest()[:12]


def orphans(home: Path) -> list[int]:
    """Processes of the server of ``home`` beside its postmaster."""
    mark = f"postgres: {title(home)}:"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        line = command_line(int(entry.name))
        if line and line[0].startswith(mark):
            found.append(int(entry.name))
    return found


def clear_stale(home: Path) -> None:
    """Makes the cluster of a killed postmaster startable.

    PostgreSQL refuses while processes of the old server live (they end by themselves; told to, at once), and also when another
    process has got the number in the pid file (usual after a container restart): with no such process left the file is stale.
    """
    deadline = time.monotonic() + ORPHANS_END_WITHIN
    told = False
    while left := orphans(home):
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"processes of a killed server still run in {home} (pid {left[0]}): end them and start again"
            )
        if not told:
            for pid in left:
                tell(pid, signal.SIGTERM)
            told = True
        time.sleep(0.05)
    if pid_file(home) and Path("/proc/self/cmdline").exists():
        (home / "cluster" / "postmaster.pid").unlink()


def tell(pid: int, number: signal.Signals) -> None:
    """Sends a signal; a process that is gone needs none. Raises EmbeddedError when it is another user's."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise EmbeddedError(f"the server (pid {pid}) belongs to another user: stop it as that user") from None
