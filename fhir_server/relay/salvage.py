"""A queue file that was damaged (a disk that fails, power cut under a cheap card): what can be read of it goes into a new one.

The damaged file stays beside it under another name. Numbers and the queue's id are kept where they can be read, so that what the
server has already is known there and is not doubled.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import zstandard

_SIDES: Final = ("-wal", "-shm", "")
_COLUMNS: Final = "seq, received_at, offset_ms, channel, format, sha256, size, raw, dead"


def sound(path: Path) -> bool:
    """Whether a file is a whole database: every page can be read, and its tables agree. One that is not there yet is."""
    if not path.exists():
        return True
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        return bool(db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        return False
    finally:
        db.close()


def unpacked(raw: bytes, sha256: str) -> bytes | None:
    """A message as it was received; None when its bytes are no longer the ones that were stored."""
    try:
        plain = zstandard.ZstdDecompressor().decompress(raw)
    except zstandard.ZstdError:
        return None
    return plain if hashlib.sha256(plain).hexdigest() == sha256 else None


def mended(path: Path, create: Callable[[Path], sqlite3.Connection], at: datetime) -> str:
    """Puts a sound file in the place of a damaged one; gives words about it, empty when nothing was damaged.

    create  makes an empty queue at a path. A crash in between is made good by the next call. Raises OSError, sqlite3.Error.
    """
    fresh = path.with_suffix(".new")
    if path.exists():
        for side in _SIDES:
            fresh.with_name(fresh.name + side).unlink(missing_ok=True)
    elif fresh.exists():
        fresh.rename(path)
    if sound(path):
        return ""
    aside = path.with_name(f"{path.stem}-damaged-{at:%Y%m%dT%H%M%S}{path.suffix}")
    words = f"{at.isoformat(timespec='seconds')} the queue file was damaged and is kept as {aside.name}"
    with contextlib.closing(create(fresh)) as new:
        saved = _copy(path, new)
        words += f"; {saved} messages were saved, how many were lost cannot be told"
        new.execute("INSERT OR REPLACE INTO state VALUES ('damage', ?)", (words,))
    for side in _SIDES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + side).rename(aside.with_name(aside.name + side))
    fresh.rename(path)
    return words


def _copy(path: Path, new: sqlite3.Connection) -> int:
    old = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        new.execute("BEGIN")
        for name, value in _read(old, "SELECT name, value FROM state"):
            new.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))
        saved = 0
        for row in _messages(old):
            new.execute("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            saved += 1
        last = _one(old, "SELECT seq FROM sqlite_sequence WHERE name = 'message'")
        if last is not None and new.execute("UPDATE sqlite_sequence SET seq = max(seq, ?)", (last,)).rowcount == 0:
            new.execute("INSERT INTO sqlite_sequence VALUES ('message', ?)", (last,))
        new.execute("COMMIT")
    finally:
        old.close()
    return saved


def _messages(old: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """Every message that can be read and is whole, by its number: a damaged page hides only those that stand on it."""
    first, last = _one(old, "SELECT min(seq) FROM message"), _one(old, "SELECT max(seq) FROM message")
    last = last if last is not None else _one(old, "SELECT seq FROM sqlite_sequence WHERE name = 'message'")
    for number in range(first or 1, (last or 0) + 1):
        for row in _read(old, f"SELECT {_COLUMNS} FROM message NOT INDEXED WHERE seq = ?", number):  # noqa: S608
            with contextlib.suppress(ValueError, TypeError):
                datetime.fromisoformat(row[1])
                if unpacked(row[7], row[5]) is not None:
                    yield row


def _one(db: sqlite3.Connection, statement: str) -> int | None:
    found = _read(db, statement)
    return int(found[0][0]) if found and isinstance(found[0][0], int) else None


def _read(db: sqlite3.Connection, statement: str, *values: object) -> list[tuple[Any, ...]]:
    try:
        return db.execute(statement, values).fetchall()
    except sqlite3.DatabaseError:
        return []
