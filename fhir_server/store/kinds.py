"""Kinds of resources (table ``resource_kind``): what thousands of resources have in common, written once and named by their rows.

A kind is a resource type, the hashes its resources share (search/params), which paths have a value, and for Observations about a
patient the common part of the flat result. Its number is a 64-bit hash of all that, so that nobody has to ask for it.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from functools import lru_cache
from struct import pack
from typing import Any, Final, NamedTuple

import xxhash

from fhir_server.search.params import Indexed
from fhir_server.search.quantities import base_of
from fhir_server.store import rows
from fhir_server.store.results import Common

_LOCK: Final = int.from_bytes(b"kinds", "big")
_NOTHING: Final = (None,) * len(Common._fields)


class Kind(NamedTuple):
    """One row of ``resource_kind`` without its number. result: of an Observation about a patient, else None."""

    rtype: int
    present: int
    tokens: tuple[int, ...]
    result: Common | None
    texts: tuple[str, ...] = ()


NOTHING: Final = Kind(0, 0, (), None)


def kind_of(rtype: int, indexed: Indexed, result: Common | None) -> Kind:
    """The kind of a resource of type number ``rtype``."""
    return Kind(rtype, indexed.present, indexed.common, result, indexed.texts)


@lru_cache(maxsize=65536)
def number_of(kind: Kind) -> int:
    """The number a kind has, if nobody else was recording it at the same moment: signed, 64 bits."""
    told = "\x1f".join("\x1e" if value is None else value for value in (*(kind.result or ()), *kind.texts))
    fixed = pack(f"<hq{len(kind.tokens)}q?", kind.rtype, kind.present, *kind.tokens, kind.result is not None)
    return xxhash.xxh3_64_intdigest(fixed + told.encode(errors="surrogatepass")) - (1 << 63)


def record(cursor: rows.Cursor, wanted: Collection[Kind]) -> dict[Kind, int]:
    """The numbers of the kinds; those that are new are recorded.

    Nobody waits for another here, since a writer who waits with locks in hand can be part of a ring: while another transaction
    records new kinds, ours get drawn numbers. A kind may so stand in two rows; each says the same.
    """
    numbers = {kind: number_of(kind) for kind in wanted}
    fresh = _unknown(cursor, numbers)
    if fresh:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,))
        row = cursor.fetchone()
        if row is not None and row[0]:
            # Whoever held the lock before has committed; what was recorded then can be seen now.
            fresh = _unknown(cursor, fresh)
        else:
            fresh = {kind: random.getrandbits(64) - (1 << 63) for kind in fresh}
            numbers |= fresh
        rows.copy(cursor, "resource_kind", [_row(number, kind) for kind, number in fresh.items()])
    return numbers


def _unknown(cursor: rows.Cursor, numbers: dict[Kind, int]) -> dict[Kind, int]:
    cursor.execute("SELECT id FROM resource_kind WHERE id = ANY(%s::bigint[])", (rows.numbers(numbers.values()),))
    known = {row[0] for row in cursor.fetchall()}
    return {kind: number for kind, number in numbers.items() if number not in known}


def _row(number: int, kind: Kind) -> tuple[Any, ...]:
    # What the unit converts to is not part of the kind: it follows from it.
    base = base_of(kind.result.unit) if kind.result and kind.result.unit else None
    return (
        number,
        kind.rtype,
        kind.present,
        rows.packed(kind.tokens),
        *(kind.result or _NOTHING),
        *(base or (None, None)),
        list(kind.texts),
    )
