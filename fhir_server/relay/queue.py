"""The relay's queue: one SQLite file, every message on disk (fsync) before anybody is told that it was taken.

Many callers share a commit. The file grows to a limit and no further, and stops before the disk is full: then ``Full`` is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import zstandard

from fhir_server.relay.salvage import mended, unpacked

T = TypeVar("T")

log = logging.getLogger(__name__)

FILE: Final = "relay.sqlite"
_PAGE: Final = 4096
_SPOILT: Final = "damaged on the disk of the relay: have it sent again"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS message (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, received_at TEXT NOT NULL, offset_ms INTEGER, channel TEXT NOT NULL, format TEXT NOT NULL,
    sha256 TEXT NOT NULL, size INTEGER NOT NULL, raw BLOB NOT NULL, dead TEXT);
CREATE INDEX IF NOT EXISTS message_same ON message (sha256) WHERE dead IS NULL;
CREATE INDEX IF NOT EXISTS message_dead ON message (seq) WHERE dead IS NOT NULL;
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Full(Exception):
    """The queue is at its limit, or the disk has no more room: nothing was taken."""


class Busy(Exception):
    """Another relay uses the folder."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message in the queue. received_at, offset_ms: see batch.Head; sha256: hexadecimal; raw: as received."""

    seq: int
    received_at: datetime
    offset_ms: int | None
    channel: str
    format: str
    sha256: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Counts:
    """Messages that wait, those given up, bytes of the file, and when the oldest that waits came."""

    waiting: int
    dead: int
    bytes: int
    oldest: datetime | None


_New = tuple[str, str, str, str, int, bytes]
"""received_at, channel, format, sha256, size, compressed bytes."""


class Queue:
    """The queue of one folder. One process has it open at a time."""

    def __init__(self, folder: Path, *, most_bytes: int, keep_free: int) -> None:
        """most_bytes: of the file; keep_free: bytes of the disk that stay free. Raises Busy, OSError, sqlite3.Error."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._keep_free = keep_free
        self._lock = os.open(folder / "relay.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise Busy(f"Another relay uses {folder}.") from None
        # SQLite is used by one thread alone.
        self._thread = ThreadPoolExecutor(1, "relay-queue")
        self._db = self._thread.submit(_open, folder / FILE, most_bytes).result()
        self.damaged = asyncio.Event()
        self._pending: list[tuple[_New, asyncio.Future[int]]] = []
        self._writing: asyncio.Task[None] | None = None
        self.fresh = asyncio.Event()
        self.offset_ms: int | None = None

    async def close(self) -> None:
        """What was put in is on disk; the folder is free for another relay."""
        if self._writing is not None:
            await self._writing
        await self._run(self._db.close)
        self._thread.shutdown()
        os.close(self._lock)

    async def put(self, raw: bytes, channel: str, format: str, at: datetime) -> int:
        """Returns the number of the message once it is on disk; the same bytes that wait already keep theirs. Raises Full."""
        if shutil.disk_usage(self._folder).free < self._keep_free:
            raise Full
        packed = await asyncio.to_thread(_packed, raw) if len(raw) > 256 * 1024 else _packed(raw)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pending.append(((at.isoformat(), channel, format, *packed), future))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return await future

    async def _write(self) -> None:
        while self._pending:
            group, self._pending = self._pending[:256], self._pending[256:]
            numbers: list[int] = []
            try:
                numbers = await self._run(self._insert, [new for new, _ in group])
            except sqlite3.Error as fault:
                # Full, or a disk that fails, or a damaged file: in each case nothing was taken.
                log.warning("relay_queue_refuses fault=%s", type(fault).__name__)
            for position, (_, future) in enumerate(group):
                if future.done():
                    continue
                if numbers:
                    future.set_result(numbers[position])
                else:
                    future.set_exception(Full())
            if numbers:
                self.fresh.set()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # Of a full disk SQLite may have ended the transaction itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _insert(self, rows: Sequence[_New]) -> list[int]:
        out = []
        with self._transaction():
            for at, channel, kind, sha256, size, raw in rows:
                known = self._db.execute(
                    "SELECT seq FROM message WHERE sha256 = ? AND dead IS NULL", (sha256,)
                ).fetchone()
                if known:
                    out.append(int(known[0]))
                    continue
                done = self._db.execute(
                    "INSERT INTO message (received_at, offset_ms, channel, format, sha256, size, raw) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (at, self.offset_ms, channel, kind, sha256, size, raw),
                )
                out.append(int(done.lastrowid or 0))
        return out

    async def next(self, most: int, most_bytes: int) -> list[Waiting]:
        """The oldest messages in order: at most so many, and so many bytes, but one at least."""
        return await self._run(self._next, most, most_bytes)

    def _next(self, most: int, most_bytes: int) -> list[Waiting]:
        out: list[Waiting] = []
        spoilt: list[int] = []
        size = 0
        rows = self._db.execute(
            "SELECT seq, received_at, offset_ms, channel, format, sha256, size, raw FROM message WHERE dead IS NULL"
            " ORDER BY seq LIMIT ?",
            (most,),
        )
        for seq, at, offset, channel, kind, sha256, length, raw in rows:
            if out and size + length > most_bytes:
                break
            size += length
            if (plain := unpacked(raw, sha256)) is None:
                spoilt.append(seq)
                continue
            out.append(Waiting(seq, datetime.fromisoformat(at), offset, channel, kind, sha256, plain))
        for seq in spoilt:
            log.error("relay_message_damaged seq=%d", seq)
        self._change("UPDATE message SET dead = ? WHERE seq = ?", [(_SPOILT, seq) for seq in spoilt])
        return out

    async def done(self, numbers: Sequence[int]) -> None:
        """The server has these."""
        await self._run(self._change, "DELETE FROM message WHERE seq = ?", [(n,) for n in numbers])

    async def give_up(self, number: int, reason: str) -> None:
        """The server will never take this one: kept, and passed over."""
        await self._run(self._change, "UPDATE message SET dead = ? WHERE seq = ?", [(reason, number)])

    async def remember(self, **values: object) -> None:
        """Facts for people and for the next start."""
        put = "INSERT INTO state VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        with contextlib.suppress(sqlite3.Error):  # a full disk keeps no facts; messages come first
            await self._run(self._change, put, [(name, str(value)) for name, value in values.items()])

    async def counts(self) -> Counts:
        """How it stands."""
        return await self._run(counts, self._db)

    async def id(self) -> str:
        """The id of this queue; the first use draws it."""
        return await self._run(self._id)

    async def renew(self) -> None:
        """Draws another id: the server knows other messages under these numbers (the file was restored from a copy)."""
        await self._run(self._change, "DELETE FROM state WHERE name = ?", [("id",)])

    def _id(self) -> str:
        with self._transaction():
            self._db.execute("INSERT INTO state VALUES ('id', ?) ON CONFLICT (name) DO NOTHING", (uuid.uuid4().hex,))
        return str(self._db.execute("SELECT value FROM state WHERE name = 'id'").fetchone()[0])

    def _change(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        with self._transaction():
            self._db.executemany(statement, rows)

    async def _run(self, act: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, act, *arguments)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            self.damaged.set()
            raise


def _open(path: Path, most_bytes: int) -> sqlite3.Connection:
    if words := mended(path, lambda place: _create(place, most_bytes), datetime.now(UTC)):
        log.error("relay_queue_damaged %s", words)
    return _create(path, most_bytes)


def _create(path: Path, most_bytes: int) -> sqlite3.Connection:
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.execute(f"PRAGMA page_size = {_PAGE}")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA max_page_count = {max(64, most_bytes // _PAGE)}")
    db.executescript(_SCHEMA)
    return db


def _packed(raw: bytes) -> tuple[str, int, bytes]:
    packed = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(raw)
    return hashlib.sha256(raw).hexdigest(), len(raw), packed


def counts(db: sqlite3.Connection) -> Counts:
    """How a queue stands, for its process and for others."""
    waiting, oldest = db.execute("SELECT count(*), min(received_at) FROM message WHERE dead IS NULL").fetchone()
    dead = db.execute("SELECT count(*) FROM message WHERE dead IS NOT NULL").fetchone()[0]
    size = db.execute("PRAGMA page_count").fetchone()[0] * _PAGE
    return Counts(waiting, dead, size, datetime.fromisoformat(oldest) if oldest else None)


@contextlib.contextmanager
def looked_into(folder: Path) -> Iterator[sqlite3.Connection]:
    """The queue of a folder for another process, beside a running relay. Raises FileNotFoundError."""
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(path)
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        yield db
    finally:
        db.close()


def dead(db: sqlite3.Connection) -> list[tuple[int, str, str, int, str]]:
    """Messages given up: number, when they came, channel, bytes, reason."""
    return db.execute(
        "SELECT seq, received_at, channel, size, dead FROM message WHERE dead IS NOT NULL ORDER BY seq"
    ).fetchall()


def retry(db: sqlite3.Connection, numbers: Sequence[int]) -> int:
    """Messages given up wait again (all without ``numbers``); gives how many."""
    some = f"AND seq IN ({','.join('?' * len(numbers))})" if numbers else ""
    return db.execute(f"UPDATE message SET dead = NULL WHERE dead IS NOT NULL {some}", tuple(numbers)).rowcount  # noqa: S608


def state(db: sqlite3.Connection) -> dict[str, str]:
    """What the relay remembered: contact, fault, fault_at, offset_ms, round_trip_ms, id, damage."""
    return dict(db.execute("SELECT name, value FROM state").fetchall())
