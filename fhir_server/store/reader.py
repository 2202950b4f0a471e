"""Reading what is stored (async): read, vread, history (http://hl7.org/fhir/R4/http.html#read ff.).

Bodies pass through as the JSON bytes that were stored; nothing here parses them. ``db`` is an asyncpg pool or connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from conformance.capability import RESOURCE_TYPES, TYPE_NAMES
from fhir_server.store.body import Codec
from mappings.ids import shard_of_id

Database = Any
"""asyncpg.Pool or asyncpg.Connection (asyncpg has no types)."""


class Stored(NamedTuple):
    """One version. ``body``: the JSON as served, empty when deleted. ``seq``: its change number. ``stale``: it never was current."""

    resource_type: str
    id: str
    version: int
    updated: datetime
    deleted: bool
    stale: bool
    seq: int
    shard: int
    patient: str | None
    inbox: int | None
    mapping: int | None
    body: bytes


_CURRENT: Final = """
SELECT rtype, id, version, updated, deleted, false AS stale, seq, shard, patient, inbox, mapping, dict, body, "order"
FROM resource
WHERE rtype = $1 AND id = $2 AND shard IN ($3, (SELECT shard FROM client_id WHERE rtype = $1 AND id = $2))
"""
_PAST: Final = """
SELECT rtype, id, version, updated, deleted, stale, seq, shard, patient, inbox, mapping, dict, body, "order"
FROM resource_history
WHERE rtype = $1 AND id = $2 AND shard IN ($3, (SELECT shard FROM client_id WHERE rtype = $1 AND id = $2))
"""
CURRENT: Final = _CURRENT
"""Where the current version stands: the arguments of ``place``."""
VERSION: Final = (_CURRENT + " AND version = $4", _PAST + " AND version = $4")
"""Where one version may stand: the arguments of ``place``, then its number."""
_MANY: Final = """
SELECT r.*
FROM unnest($1::smallint[], $2::text[], $3::smallint[]) AS k(rtype, id, derived)
CROSS JOIN LATERAL (
    SELECT rtype, id, version, updated, deleted, false AS stale, seq, shard, patient, inbox, mapping, dict, body, "order"
    FROM resource r
    WHERE r.rtype = k.rtype AND r.id = k.id
      AND r.shard IN (k.derived, (SELECT c.shard FROM client_id c WHERE c.rtype = k.rtype AND c.id = k.id))
    OFFSET 0) r
"""
# Each type is read down its own index and stops after a page, so the size of the history does not matter.
_FEED: Final = """
SELECT v.*
FROM unnest($1::smallint[]) AS t(rtype)
CROSS JOIN LATERAL (
    (SELECT rtype, id, version, updated, deleted, false AS stale, seq, shard, patient, inbox, mapping, dict, body, "order"
     FROM resource
     WHERE rtype = t.rtype AND seq < $2 AND updated >= $3 AND updated < $6 ORDER BY seq DESC LIMIT $4)
    UNION ALL
    (SELECT rtype, id, version, updated, deleted, stale, seq, shard, patient, inbox, mapping, dict, body, "order"
     FROM resource_history
     WHERE rtype = t.rtype AND seq < $2 AND updated >= $3 AND NOT stale AND updated < $6 AND until > $5 ORDER BY seq DESC LIMIT $4)
) v
ORDER BY v.seq DESC LIMIT $4
"""
_LAST: Final = 2**63 - 1
_BEGINNING: Final = datetime.fromisoformat("0001-01-02T00:00:00+00:00")
_END: Final = datetime.fromisoformat("9999-12-30T00:00:00+00:00")


async def read(db: Database, codec: Codec, resource_type: str, logical: str) -> Stored | None:
    """The current version, a deleted one too; None when there never was one."""
    row = await db.fetchrow(_CURRENT, *place(resource_type, logical))
    return _stored(codec, row) if row is not None else None


async def vread(db: Database, codec: Codec, resource_type: str, logical: str, version: int) -> Stored | None:
    """One version, current, past or stale; None when there is none of that number."""
    if version >= 2**31:
        return None
    where = place(resource_type, logical)
    row = None
    # Between two looks a newer version may have moved the current one to history, or the other way round on a move.
    for text in (*VERSION, VERSION[0]):
        row = row or await db.fetchrow(text, *where, version)
    return _stored(codec, row) if row is not None else None


async def history(
    db: Database,
    codec: Codec,
    resource_type: str | None = None,
    logical: str | None = None,
    *,
    since: datetime | None = None,
    at: tuple[datetime, datetime] | None = None,
    before: int | None = None,
    count: int = 100,
) -> list[Stored]:
    """Up to ``count`` versions, newest first: of one resource, of a type, or of everything.

    ``before`` continues after a page: the ``seq`` of its last version. ``since`` leaves out what was stored earlier
    (meta.lastUpdated), ``at`` what was not current at some time in that span.

    The history of one resource starts with its current version and holds stale ones too; that of a type or of
    everything leaves them out, for a client that follows it takes the first version it sees for the current one.
    """
    since = since or _BEGINNING
    if logical is not None and resource_type is not None:
        return await _instance(db, codec, resource_type, logical, since, at, before, count)
    types = [RESOURCE_TYPES[resource_type]] if resource_type else list(TYPE_NAMES)
    found = await db.fetch(_FEED, types, before or _LAST, since, count, *(at or (_BEGINNING, _END)))
    return [_stored(codec, row) for row in found]


async def read_many(db: Database, codec: Codec, references: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Stored]:
    """The current versions of many (type, id) in one query; unknown ones are missing from the answer."""
    wanted = [(RESOURCE_TYPES[t], i, _derived(i)) for t, i in dict.fromkeys(references) if t in RESOURCE_TYPES]
    if not wanted:
        return {}
    columns = [list(column) for column in zip(*wanted, strict=True)]
    found = [_stored(codec, row) for row in await db.fetch(_MANY, *columns)]
    return {(stored.resource_type, stored.id): stored for stored in found}


async def _instance(
    db: Database,
    codec: Codec,
    resource_type: str,
    logical: str,
    since: datetime,
    at: tuple[datetime, datetime] | None,
    before: int | None,
    count: int,
) -> list[Stored]:
    where = place(resource_type, logical)
    current = await db.fetchrow(_CURRENT, *where)
    # The current version leads, though stale ones may have come after it: the page after it begins at the newest of the others.
    past_before = _LAST if before is None or (current is not None and before == current["seq"]) else before
    low, high = at or (_BEGINNING, _END)
    # A stale version never was current.
    then = " AND updated < $7 AND until > $8" if at else ""
    past = await db.fetch(
        f"{_PAST} AND updated >= $4 AND seq < $5{then} ORDER BY seq DESC LIMIT $6",
        *(*where, since, past_before, count, *((high, low) if at else ())),
    )
    leads = before is None and current is not None and since <= current["updated"] < high
    first = [current] if leads else []
    seen = {row["seq"] for row in first}
    return [_stored(codec, row) for row in [*first, *(row for row in past if row["seq"] not in seen)]][:count]


def _derived(logical: str) -> int:
    shard = shard_of_id(logical)
    return -1 if shard is None else shard


def place(resource_type: str, logical: str) -> tuple[int, str, int]:
    """The arguments $1, $2, $3 that name a resource."""
    return RESOURCE_TYPES[resource_type], logical, _derived(logical)


def _stored(codec: Codec, row: Any) -> Stored:
    rtype, logical, version, updated, deleted, stale, seq, shard, patient, inbox, mapping, dictionary, body, order = row
    return Stored(
        TYPE_NAMES[rtype],
        logical,
        version,
        updated,
        deleted,
        stale,
        seq,
        shard,
        patient,
        inbox,
        mapping,
        b"" if deleted else codec.decompress(dictionary, body, (logical, patient, order)),
    )
