"""Backup and restore: one consistent picture of the database and of the files beside it, every byte of it checked by hash.

A backup is a folder: ``database/`` (pg_dump, directory format: compressed, any PostgreSQL from the server's version on takes it),
``files/`` (the data folder without the database: signing keys, ledger spool) and ``manifest.json`` with the SHA-256 of each file and
the number of rows of each table as they were in the snapshot that was dumped. The manifest is written last: a folder without one is
not a backup. It holds patient data and private keys, so the folder is open to its owner alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from fhir_server.store import embedded
from fhir_server.store.database import current_revision

_MANIFEST = "manifest.json"
_FORMAT = 1
_JOBS = 2
_DATABASE_FOLDER = "postgres"
"""The embedded server's folder in the data folder; the dump stands for it."""


class BackupError(Exception):
    """A backup that cannot be made or used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a backup: its size and the SHA-256 of its bytes in hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup is. tables: rows of each; files: by path inside the folder."""

    made_at: str
    made_by: str
    schema: str
    server: str
    tables: Mapping[str, int]
    files: Mapping[str, File]

    @property
    def bytes(self) -> int:
        """Size of the whole."""
        return sum(f.bytes for f in self.files.values())


def back_up(url: str, data_dir: Path, target: Path, now: datetime) -> Manifest:
    """Makes a backup in ``target`` (absent or empty) of the database and the data folder, while everything goes on running.

    The picture is the one of the moment it begins. Raises BackupError; then there is no manifest.
    """
    if target.resolve().is_relative_to(data_dir.resolve()):
        raise BackupError(f"{target} is inside the data folder: a backup belongs on another disk.")
    _make_empty(target)
    try:
        # The spool first: what is drained from it from now on is in the dump as well, and twice the same row is one row.
        _copy_files(data_dir, target / "files")
        with psycopg.connect(url) as conn:
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            snapshot = _value(conn, "SELECT pg_export_snapshot()")
            server = _value(conn, "SHOW server_version")
            dump = [f"--snapshot={snapshot}", "--compress=gzip:1", f"--file={target / 'database'}"]
            _run("pg_dump", url, ["--format=directory", f"--jobs={_JOBS}", "--no-owner", "--no-privileges", *dump])
            tables = _count(conn)
        made = Manifest(
            made_at=now.astimezone(UTC).isoformat(timespec="seconds"),
            made_by=f"tongjian {version('tongjian')}",
            schema=current_revision(url),
            server=server,
            tables=tables,
            files=_hash_all(target),
        )
        _write(target / _MANIFEST, json.dumps({"format": _FORMAT, **asdict(made)}, indent=1).encode())
        _sync_folder(target)
    except (OSError, psycopg.Error) as fault:
        raise BackupError(f"The backup in {target} is not complete: {fault}") from fault
    return made


def read(source: Path) -> Manifest:
    """The manifest of a backup whose every file is there and has the right hash. Raises BackupError that names the first wrong one."""
    try:
        stated = json.loads((source / _MANIFEST).read_bytes())
        if stated.pop("format") != _FORMAT:
            raise BackupError(f"{source} was made by a newer version; restore it with that one.")
        stated["files"] = {name: File(**f) for name, f in stated["files"].items()}
        made = Manifest(**stated)
    except FileNotFoundError:
        raise BackupError(f"{source} is not a backup: it has no {_MANIFEST}.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise BackupError(f"The {_MANIFEST} of {source} cannot be read ({type(fault).__name__}).") from fault
    try:
        found = _hash_all(source)
    except OSError as fault:
        raise BackupError(f"The backup cannot be read: {fault}") from fault
    for name, file in made.files.items():
        if name not in found:
            raise BackupError(f"{source / name} is missing: this backup cannot be used.")
        if found[name] != file:
            raise BackupError(f"{source / name} is not as it was written: this backup cannot be used.")
    for name in found.keys() - made.files.keys():
        raise BackupError(f"{source / name} does not belong to the backup: take it away.")
    return made


def restore(source: Path, data_dir: Path, url: str = "") -> Manifest:
    """Brings a backup back: into a data folder that is absent or empty, or with ``url`` into an empty database (and the files into
    ``data_dir``, over nothing that is there). All or nothing. Raises BackupError.
    """
    made = read(source)
    try:
        if url:
            _restore_into_database(source, data_dir, url, made)
        else:
            _restore_into_folder(source, data_dir, made)
    except (OSError, psycopg.Error, embedded.EmbeddedError) as fault:
        raise BackupError(f"The backup was not restored: {fault}") from fault
    return made


def _restore_into_folder(source: Path, data_dir: Path, made: Manifest) -> None:
    data_dir = data_dir.resolve()
    if data_dir.exists() and any(data_dir.iterdir()):
        raise BackupError(f"{data_dir} is not empty: restore into a new folder.")
    # Beside, and renamed at the end: a restore that was broken off leaves nothing that looks like an installation.
    fresh = data_dir.with_name(f"{data_dir.name}.restoring")
    if fresh.exists():
        raise BackupError(f"{fresh} is left from a restore that was broken off: delete it and try again.")
    server = embedded.start(fresh)
    try:
        _load(source, server.url, made, [f"--jobs={_JOBS}"])
    finally:
        server.stop()
    _copy_files(source / "files", fresh)
    fresh.rename(data_dir)
    _sync_folder(data_dir.parent)


def _restore_into_database(source: Path, data_dir: Path, url: str, made: Manifest) -> None:
    with psycopg.connect(url) as conn:
        if tables := _count(conn):
            raise BackupError(
                f"The database has tables ({', '.join(sorted(tables)[:3])} ...): restore into an empty one."
            )
    for path in _regular_files(source / "files"):
        if (data_dir / path).exists():
            raise BackupError(f"{data_dir / path} is there already: restore with an empty data folder.")
    _load(source, url, made, ["--single-transaction"])
    data_dir.mkdir(parents=True, exist_ok=True)
    _copy_files(source / "files", data_dir)


def _load(source: Path, url: str, made: Manifest, options: Sequence[str]) -> None:
    arguments = ["--format=directory", "--exit-on-error", "--no-owner", "--no-privileges", *options]
    _run("pg_restore", url, [*arguments, f"--dbname={_SERVICE}", str(source / "database")])
    with psycopg.connect(url, autocommit=True) as conn:
        if (found := _count(conn)) != dict(made.tables):
            wrong = sorted(t for t in made.tables.keys() | found.keys() if made.tables.get(t) != found.get(t))
            raise BackupError(
                f"The restored tables {', '.join(wrong)} have other numbers of rows than the backup says."
            )
        conn.execute("ANALYZE")


# --- PostgreSQL's programs --------------------------------------------------------------------------------------------------

_SERVICE = "service=tongjian"


@contextmanager
def _environment(url: str) -> Iterator[dict[str, str]]:
    # A command line can be read by everybody on the machine: the password goes into a file of ours (libpq "Connection Service File").
    with tempfile.TemporaryDirectory(prefix="tongjian-") as folder:
        service = Path(folder) / "service.conf"
        lines = "".join(f"{key}={value}\n" for key, value in conninfo_to_dict(url).items())
        _write(service, f"[tongjian]\n{lines}".encode())
        path = os.environ.get("PATH", "/usr/bin:/bin")
        yield {"PATH": path, "LC_ALL": "C", "PGSERVICEFILE": str(service), "PGSERVICE": "tongjian"}


def _run(program: str, url: str, arguments: Sequence[str]) -> None:
    try:
        command = [str(embedded.binaries() / program), *arguments]
    except embedded.EmbeddedError as fault:
        raise BackupError(str(fault)) from fault
    with _environment(url) as environment:
        done = subprocess.run(  # noqa: S603 - the programs that come with us
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if done.returncode:
        # The first line names the fault; further ones may quote rows.
        said = (
            [line for line in done.stderr.splitlines() if "error:" in line] or done.stderr.splitlines() or ["nothing"]
        )
        raise BackupError(f"{program} failed: {said[0].partition('DETAIL')[0].strip()}")


def _value(conn: psycopg.Connection[Any], question: str) -> str:
    row = conn.execute(question.encode()).fetchone()
    assert row is not None
    return str(row[0])


def _count(conn: psycopg.Connection[Any]) -> dict[str, int]:
    names = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    counts = {}
    for (name,) in names:
        row = conn.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))).fetchone()
        assert row is not None
        counts[name] = int(row[0])
    return counts


# --- files ------------------------------------------------------------------------------------------------------------------


def _make_empty(target: Path) -> None:
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise BackupError(f"{target} is not empty: name a new folder for each backup.")
        target.chmod(0o700)
    except OSError as fault:
        raise BackupError(f"{target} cannot be used: {fault.strerror}") from fault


def _regular_files(folder: Path) -> Iterator[Path]:
    """Paths of the regular files under ``folder``, relative to it, without the embedded database."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        if here == folder and _DATABASE_FOLDER in folders:
            folders.remove(_DATABASE_FOLDER)
        for name in names:
            if (here / name).is_file() and not (here / name).is_symlink():
                yield (here / name).relative_to(folder)


def _copy_files(source: Path, target: Path) -> None:
    for path in _regular_files(source):
        (target / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(target / path, (source / path).read_bytes())


def _hash_all(folder: Path) -> dict[str, File]:
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            relative = path.relative_to(folder).as_posix()
            if relative != _MANIFEST:
                with path.open("rb") as source:
                    found[relative] = File(path.stat().st_size, hashlib.file_digest(source, "sha256").hexdigest())
    return found


def _write(path: Path, content: bytes) -> None:
    """A file only its owner can read, on disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
