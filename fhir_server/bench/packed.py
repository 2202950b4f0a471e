"""Rows of ``resource`` for a binary COPY, most of whose fields are the same in thousands of rows: those are written out once.

https://www.postgresql.org/docs/current/sql-copy.html (binary format): number of fields, then length and bytes of each; -1 for null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any, Final

import psycopg
from psycopg.adapt import PyFormat

from fhir_server.store import rows

NULL: Final = b"\xff\xff\xff\xff"
_HEAD: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_END: Final = b"\xff\xff"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LENGTH = Struct(">i").pack
_TIME = Struct(">iq").pack


def data(value: bytes) -> bytes:
    """A field of bytes or of UTF-8 text."""
    return _LENGTH(len(value)) + value


def text(value: str | None) -> bytes:
    """A field of text."""
    return NULL if value is None else data(value.encode())


def integer(value: int | None, size: int) -> bytes:
    """A field of an integer of ``size`` bytes."""
    return NULL if value is None else data(value.to_bytes(size, "big", signed=True))


def instant(at: datetime | None, later: timedelta = timedelta(0)) -> bytes:
    """A field of timestamptz."""
    return NULL if at is None else _TIME(8, (at + later - _EPOCH) // _MICROSECOND)


def _numeric(value: Any) -> bytes:
    dumped = psycopg.adapters.get_dumper(type(value), PyFormat.BINARY)(type(value)).dump(value)
    assert dumped is not None
    return data(bytes(dumped))


_FORMS: Final[dict[str, Callable[[Any], bytes]]] = {
    "int2": lambda v: integer(v, 2),
    "int4": lambda v: integer(v, 4),
    "bool": lambda v: data(bytes([v])),
    "text": text,
    "bytea": data,
    "timestamptz": instant,
    "numeric": _numeric,
}


def parts(row: Sequence[Any], holes: dict[str, int]) -> tuple[bytes | int, ...]:
    """A row of ``resource`` (``versions.current_row``) as bytes between holes. holes: name of a column -> number of what fills it
    (a whole field, with its length)."""
    columns = rows.columns("resource")
    out: list[bytes | int] = [Struct(">h").pack(len(columns))]
    for (name, form), value in zip(columns, row, strict=True):
        if name in holes:
            out.append(holes[name])
            continue
        field = NULL if value is None else _FORMS[form](value)
        last = out[-1]
        if isinstance(last, bytes):
            out[-1] = last + field
        else:
            out.append(field)
    return tuple(out)


@contextmanager
def copying(cursor: rows.Cursor) -> Iterator[Callable[[bytes], None]]:
    """A COPY into ``resource``: gives the function that adds rows (any number of them in one call)."""
    names = ", ".join(name for name, _ in rows.columns("resource"))
    with cursor.copy(f"COPY resource ({names}) FROM STDIN (FORMAT BINARY)") as target:
        target.write(_HEAD)
        yield target.write
        target.write(_END)
