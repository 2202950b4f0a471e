"""Bodies at rest: the JSON as served, compressed by Zstandard (RFC 8878) with a dictionary trained on such JSON.

A dictionary is package data, ``body-<id>.zdict``; a retrained one gets the next id and the old files stay. Each is copied into the
table ``zstd_dictionary``, so that a database can be read by a program that was not shipped with its dictionary.

Ids are what compresses worst, and some stand in columns beside the body: the resource's own, its patient's, its order's. In the body at
rest each of them is one control character, which JSON text never holds (RFC 8259 section 7). That is a quarter of a result's bytes.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final, TypeGuard

import psycopg
import zstandard

PLAIN: Final = 0
"""Dictionary id of bodies compressed without a dictionary."""
_LEVEL: Final = 3
Names = Sequence[str | None]
"""The columns ``id``, ``patient`` and ``"order"`` of the row a body stands in. Always these three: a body is read as it was written."""
_MARKS: Final = (b"\x01", b"\x02", b"\x03")
_SHORTEST: Final = 8


class UnknownDictionary(Exception):
    """A body names a dictionary that this program does not have."""


class Codec:
    """Compresses and decompresses bodies; may be shared by threads.

    ``dictionaries``: id -> dictionary bytes; new bodies use the highest id.
    """

    def __init__(self, dictionaries: Mapping[int, bytes]) -> None:
        self._dictionaries = {number: zstandard.ZstdCompressionDict(data) for number, data in dictionaries.items()}
        self.current = max(self._dictionaries, default=PLAIN)
        if self.current != PLAIN:
            self._dictionaries[self.current].precompute_compress(level=_LEVEL)
        # A compressor or decompressor serves one call at a time: each thread has its own.
        self._threads = threading.local()

    @classmethod
    def load(cls, conn: psycopg.Connection[Any]) -> Codec:
        """The codec of one database: its dictionaries and the shipped ones, which it registers. Runs in the caller's transaction.

        Raises ValueError when the database has another dictionary under a shipped number.
        """
        shipped = shipped_dictionaries()
        with conn.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO zstd_dictionary (id, data) VALUES (%s, %s) ON CONFLICT DO NOTHING", sorted(shipped.items())
            )
            known = {number: bytes(data) for number, data in cursor.execute("SELECT id, data FROM zstd_dictionary")}
        for number, data in shipped.items():
            if known[number] != data:
                raise ValueError(f"zstd dictionary {number} of this database is not the one shipped with this program")
        return cls(known)

    def compress(self, body: bytes, names: Names) -> tuple[int, bytes]:
        """JSON bytes, to stand in a row with these ``names`` -> (dictionary id, compressed bytes)."""
        body = marked(body, names)
        compressor = getattr(self._threads, "compressor", None)
        if compressor is None:
            # The dictionary id stands in the row, so four bytes of every frame are saved.
            compressor = zstandard.ZstdCompressor(
                level=_LEVEL, dict_data=self._dictionaries.get(self.current), write_dict_id=False, write_checksum=False
            )
            self._threads.compressor = compressor
        return self.current, compressor.compress(body)

    def decompress(self, dictionary: int, data: bytes, names: Names) -> bytes:
        """The JSON bytes again, of a row with these ``names``.

        Raises UnknownDictionary, or zstandard.ZstdError when the bytes are damaged.
        """
        decompressors = getattr(self._threads, "decompressors", None)
        if decompressors is None:
            decompressors = self._threads.decompressors = {}
        decompressor = decompressors.get(dictionary)
        if decompressor is None:
            if dictionary != PLAIN and dictionary not in self._dictionaries:
                raise UnknownDictionary(
                    f"a stored body needs zstd dictionary {dictionary}, which was not there when this program started: restart it"
                )
            decompressor = zstandard.ZstdDecompressor(dict_data=self._dictionaries.get(dictionary))
            decompressors[dictionary] = decompressor
        body: bytes = decompressor.decompress(data)
        for mark, name in zip(_MARKS, names, strict=True):
            if name is not None:
                body = body.replace(mark, name.encode())
        return body


def marked(body: bytes, names: Names) -> bytes:
    """A body as it is compressed: a mark in each place where one of ``names`` stood."""
    for mark, name in zip(_MARKS, names, strict=True):
        if _is_marked(name):
            body = body.replace(name.encode(), mark)
    return body


def _is_marked(name: str | None) -> TypeGuard[str]:
    return name is not None and len(name) >= _SHORTEST and name.isprintable()


def shipped_dictionaries() -> dict[int, bytes]:
    """The dictionaries of this package: id -> bytes."""
    found = {}
    for file in resources.files(__package__).iterdir():
        match = re.fullmatch(r"body-(\d+)\.zdict", file.name)
        if match:
            found[int(match[1])] = file.read_bytes()
    return found
