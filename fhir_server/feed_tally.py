"""Which numbers were seen in a feed, in constant memory: a temporary file on disk, gone when closed. Only digests are written to it."""

from __future__ import annotations

import hashlib
import sqlite3
from types import TracebackType

CONTROL, CONTENT, ORDERS, ORDER_KEYS, ANSWERS, ANSWER_KEYS = range(6)
"""Control ids; whole messages; orders by their first number and by all their numbers; results likewise."""
_CACHE_KIB = 8192


class Tally:
    """Sets of texts on disk, by kind. Use as a context manager."""

    def __init__(self) -> None:
        # An empty name is a temporary database: on disk beyond the cache, removed on close.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(
            "CREATE TABLE seen (kind INTEGER, digest BLOB, PRIMARY KEY (kind, digest)) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def __enter__(self) -> Tally:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the file."""
        self._database.close()

    def add(self, kind: int, what: str | bytes) -> bool:
        """True when it was not seen under this kind before."""
        raw = what if isinstance(what, bytes) else what.encode(errors="surrogatepass")
        digest = hashlib.blake2b(raw, digest_size=12).digest()
        return bool(self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (kind, digest)).rowcount)

    def count(self, kind: int) -> int:
        """How many different texts."""
        return int(self._database.execute("SELECT count(*) FROM seen WHERE kind = ?", (kind,)).fetchone()[0])

    def only(self, kind: int, other: int) -> int:
        """How many texts of a kind were never seen under the other."""
        query = "SELECT count(*) FROM (SELECT digest FROM seen WHERE kind = ? EXCEPT SELECT digest FROM seen WHERE kind = ?)"
        return int(self._database.execute(query, (kind, other)).fetchone()[0])
