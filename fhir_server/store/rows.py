"""The SQL of the write path: each function is one round trip (or one COPY) for a whole batch, whatever its size.

Keys travel as three parallel arrays. ``LATERAL ... OFFSET 0`` keeps the planner on the primary key even while a table is too new
to have statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from struct import Struct
from typing import Any, Final

import psycopg
import psycopg.sql
import xxhash

from conformance.capability import RESOURCE_TYPES
from fhir_server.store.results import Common
from fhir_server.store.statement import RECENCY_LENGTH, RECENCY_TIE, Key, State

Cursor = psycopg.Cursor[Any]

# Columns and types of each COPY, in the order of the rows that versions.py makes. Tokens come packed (``packed``), as bytes.
_COLUMNS: Final = {
    "resource": """
        shard int2, rtype int2, id text, version int4, top int4, updated timestamptz, deleted bool, patient text,
        parent text, start_at timestamptz, end_at timestamptz, issued_at timestamptz, tokens bytea, recency bytea,
        content bytea, withdrawn text, inbox int8, mapping int4, backfill bool, "order" text, number numeric,
        value_text text, effective_at timestamptz, reported_at timestamptz, sensitivity int2, dict int2, body bytea
    """,
    "resource_history": """
        shard int2, rtype int2, id text, version int4, updated timestamptz, deleted bool, stale bool, patient text,
        content bytea, inbox int8, mapping int4, sensitivity int2, dict int2, body bytea
    """,
    "resource_kind": f"""
        id int8, rtype int2, present int8, tokens bytea, {", ".join(f"{name} text" for name in Common._fields)},
        base text, factor numeric, texts text[]
    """,
    "search_value": """
        shard int2, rtype int2, id text, ordinal int2, param int2, string text, low timestamptz, high timestamptz,
        number numeric, number_high numeric
    """,
}


def lock(cursor: Cursor, names: Iterable[str]) -> None:
    """Takes the transaction locks of ``names`` (patient ids, ``Type/id``, report numbers), in one order for everybody: no deadlock.

    A lock is the 64-bit hash of its name; two names that share one only wait for each other.
    """
    wanted = sorted({xxhash.xxh3_64_intdigest(name.encode()) - (1 << 63) for name in names})
    if wanted:
        cursor.execute("SELECT pg_advisory_xact_lock(n) FROM unnest(%s::bigint[]) AS n", (numbers(wanted),))


def states(cursor: Cursor, keys: Collection[Key]) -> dict[Key, State]:
    """The current state of those of ``keys`` that have a row."""
    if not keys:
        return {}
    cursor.execute(
        """
        SELECT r.*
        FROM unnest(%s::smallint[], %s::smallint[], %s::text[]) AS k(shard, rtype, id)
        CROSS JOIN LATERAL (
            SELECT shard, rtype, id, version, top, updated, deleted, patient, parent, recency, content, withdrawn, inbox,
                mapping
            FROM resource r WHERE r.shard = k.shard AND r.rtype = k.rtype AND r.id = k.id OFFSET 0) r
        """,
        _arrays(keys),
    )
    return {row[:3]: _state(*row[3:]) for row in cursor.fetchall()}


def family(cursor: Cursor, reports: Collection[tuple[int, str]]) -> dict[Key, State]:
    """The states of all resources that belong to the given reports (shard, id) by ``parent``."""
    if not reports:
        return {}
    cursor.execute(
        """
        SELECT r.*
        FROM unnest(%s::smallint[], %s::text[]) AS k(shard, id)
        CROSS JOIN LATERAL (
            SELECT shard, rtype, id, version, top, updated, deleted, patient, parent, recency, content, withdrawn, inbox,
                mapping
            FROM resource r WHERE r.shard = k.shard AND r.parent = k.id OFFSET 0) r
        """,
        (numbers([r[0] for r in reports]), texts([r[1] for r in reports])),
    )
    return {row[:3]: _state(*row[3:]) for row in cursor.fetchall()}


def _state(
    version: int,
    top: int,
    updated: datetime,
    deleted: bool,
    patient: str | None,
    parent: str | None,
    recency: bytes,
    content: bytes,
    *rest: Any,
) -> State:
    # Of equal times the content decides (statement.RECENCY_TIE): those bytes are not stored twice.
    return State(version, top, updated, deleted, patient, parent, recency + content[:RECENCY_TIE], content, *rest)


def stored_recency(state: State) -> bytes:
    """The recency column: without the bytes that the content column holds."""
    return state.recency[:RECENCY_LENGTH]


Stored = tuple[int, bytes, tuple[str | None, ...]]
"""Dictionary id, compressed body, names of its row: what ``Codec.decompress`` takes."""


def bodies(cursor: Cursor, keys: Collection[Key]) -> dict[Key, Stored]:
    """The current bodies; deleted resources are left out."""
    if not keys:
        return {}
    cursor.execute(
        """
        SELECT r.*
        FROM unnest(%s::smallint[], %s::smallint[], %s::text[]) AS k(shard, rtype, id)
        CROSS JOIN LATERAL (SELECT shard, rtype, id, dict, body, patient, "order" FROM resource r
            WHERE r.shard = k.shard AND r.rtype = k.rtype AND r.id = k.id AND NOT r.deleted OFFSET 0) r
        """,
        _arrays(keys),
    )
    return {row[:3]: (row[3], bytes(row[4]), (row[2], *row[5:])) for row in cursor.fetchall()}


def past_bodies(cursor: Cursor, keys: Collection[Key]) -> list[tuple[Key, bytes, datetime | None, Stored]]:
    """Of each version in history: key, content digest, when its message was sent (a write: when it was made), body."""
    if not keys:
        return []
    cursor.execute(
        """
        SELECT h.*, CASE WHEN h.inbox IS NULL THEN h.updated ELSE i.sent_at END
        FROM unnest(%s::smallint[], %s::smallint[], %s::text[]) AS k(shard, rtype, id)
        CROSS JOIN LATERAL (SELECT shard, rtype, id, content, dict, body, patient, "order", updated, inbox FROM resource_history h
            WHERE h.shard = k.shard AND h.rtype = k.rtype AND h.id = k.id AND NOT h.deleted OFFSET 0) h
        LEFT JOIN inbox i ON i.shard = h.shard AND i.id = h.inbox
        """,
        _arrays(keys),
    )
    return [(r[:3], bytes(r[3]), r[-1], (r[4], bytes(r[5]), (r[2], *r[6:8]))) for r in cursor.fetchall()]


def of_patients(
    cursor: Cursor, homes: Collection[tuple[int, str]], rtypes: Sequence[int], tokens: Sequence[int] | None
) -> list[tuple[Key, str, Stored]]:
    """Key, patient and body of the current resources of types ``rtypes`` of patients (shard, id), in force and not deleted; with
    ``tokens`` those that have one of these hashes."""
    if not homes or tokens == []:
        return []
    cursor.execute(
        """
        SELECT r.*
        FROM unnest(%s::smallint[], %s::text[]) AS k(shard, patient)
        CROSS JOIN LATERAL (
            SELECT shard, rtype, id, patient, dict, body, "order" FROM resource r
            WHERE r.shard = k.shard AND r.patient = k.patient AND r.rtype = ANY(%s::smallint[])
                AND NOT r.deleted AND r.withdrawn IS NULL AND (%s::bigint[] IS NULL OR r.tokens && %s::bigint[]) OFFSET 0) r
        """,
        (
            numbers([home[0] for home in homes]),
            texts([home[1] for home in homes]),
            numbers(rtypes),
            *[None if tokens is None else numbers(tokens)] * 2,
        ),
    )
    return [(row[:3], row[3], (row[4], bytes(row[5]), (row[2], row[3], row[6]))) for row in cursor.fetchall()]


def kept_contents(cursor: Cursor, keys: Collection[Key]) -> dict[Key, set[bytes]]:
    """The content digests history holds of each of ``keys``."""
    out: dict[Key, set[bytes]] = {key: set() for key in keys}
    if keys:
        cursor.execute(
            """
            SELECT h.*
            FROM unnest(%s::smallint[], %s::smallint[], %s::text[]) AS k(shard, rtype, id)
            CROSS JOIN LATERAL (SELECT shard, rtype, id, content FROM resource_history h
                WHERE h.shard = k.shard AND h.rtype = k.rtype AND h.id = k.id OFFSET 0) h
            """,
            _arrays(keys),
        )
        for shard, rtype, logical, content in cursor.fetchall():
            out[shard, rtype, logical].add(bytes(content))
    return out


Owner = tuple[int, int, str, str, bytes]
"""business_key: shard, rtype, id of the report; patient; claim."""


def owners(cursor: Cursor, numbers: Collection[bytes]) -> dict[bytes, Owner]:
    """Whose the report numbers (digests) are now."""
    if not numbers:
        return {}
    cursor.execute(
        "SELECT b.* FROM unnest(%s::bytea[]) AS k(key) CROSS JOIN LATERAL"
        " (SELECT key, shard, rtype, id, patient, claim FROM business_key b WHERE b.key = k.key OFFSET 0) b",
        (list(numbers),),
    )
    return {bytes(row[0]): (*row[1:5], bytes(row[5])) for row in cursor.fetchall()}


def put_owners(cursor: Cursor, changed: dict[bytes, Owner]) -> None:
    """Records new owners and newer claims."""
    if changed:
        columns = zip(*((key, *owner) for key, owner in changed.items()), strict=True)
        cursor.execute(
            "INSERT INTO business_key (key, shard, rtype, id, patient, claim) SELECT * FROM"
            " unnest(%s::bytea[], %s::smallint[], %s::smallint[], %s::text[], %s::text[], %s::bytea[])"
            " ON CONFLICT (key) DO UPDATE SET shard = excluded.shard, rtype = excluded.rtype, id = excluded.id,"
            " patient = excluded.patient, claim = excluded.claim",
            [list(column) for column in columns],
        )


def supersede(cursor: Cursor, past: Mapping[Key, datetime]) -> None:
    """Moves current rows to history, each as of the time it ends, and drops their search values."""
    if not past:
        return
    cursor.execute(
        """
        WITH k AS MATERIALIZED (
            SELECT * FROM unnest(%s::smallint[], %s::smallint[], %s::text[], %s::timestamptz[]) AS k(shard, rtype, id, at)),
        gone AS (
            DELETE FROM resource r USING k WHERE r.shard = k.shard AND r.rtype = k.rtype AND r.id = k.id RETURNING r.*, k.at),
        values_gone AS (
            DELETE FROM search_value v USING k WHERE v.shard = k.shard AND v.rtype = k.rtype AND v.id = k.id)
        INSERT INTO resource_history
            (shard, rtype, id, version, seq, updated, deleted, stale, patient, content, inbox, mapping, dict, body,
             until, kind, backfill, effective, issued, parent, "order", number, value_text, sensitivity)
        SELECT shard, rtype, id, version, seq, updated, deleted, false, patient, content, inbox, mapping, dict, body,
            greatest(at, updated), CASE WHEN result THEN tokens[1] END, backfill,
            CASE WHEN result THEN coalesce(start_at, effective_at) END,
            CASE WHEN result THEN coalesce(issued_at, reported_at) END,
            CASE WHEN result THEN parent END, "order", number, value_text, sensitivity
        FROM (SELECT *, rtype = %s AND patient IS NOT NULL AS result FROM gone) gone
        """,
        [*_arrays(past), list(past.values()), RESOURCE_TYPES["Observation"]],
    )


def advance(cursor: Cursor, moved: dict[Key, State]) -> None:
    """Records a higher ``top`` or ``recency`` of rows whose current version stays."""
    if moved:
        cursor.execute(
            "UPDATE resource r SET top = k.top, recency = k.recency FROM"
            " unnest(%s::smallint[], %s::smallint[], %s::text[], %s::int[], %s::bytea[]) AS k(shard, rtype, id, top, recency)"
            " WHERE r.shard = k.shard AND r.rtype = k.rtype AND r.id = k.id",
            [*_arrays(moved), [s.top for s in moved.values()], [stored_recency(s) for s in moved.values()]],
        )


def locate(cursor: Cursor, rtype: int, logical: str, derived: int | None) -> int | None:
    """The shard a resource is stored in, None when there is no row. ``derived`` is the shard its id names, if it names one."""
    cursor.execute(
        "SELECT shard FROM resource WHERE rtype = %(rtype)s AND id = %(id)s"
        " AND shard IN (%(derived)s, (SELECT shard FROM client_id WHERE rtype = %(rtype)s AND id = %(id)s))",
        {"rtype": rtype, "id": logical, "derived": derived},
    )
    row = cursor.fetchone()
    return row[0] if row else None


def given_shard(cursor: Cursor, rtype: int, logical: str) -> int | None:
    """The shard recorded for an id given by a client."""
    cursor.execute("SELECT shard FROM client_id WHERE rtype = %s AND id = %s", (rtype, logical))
    row = cursor.fetchone()
    return row[0] if row else None


def record_given(cursor: Cursor, key: Key) -> None:
    """Records where a resource is whose id does not say so."""
    cursor.execute(
        "INSERT INTO client_id (shard, rtype, id) VALUES (%s, %s, %s)"
        " ON CONFLICT (rtype, id) DO UPDATE SET shard = excluded.shard",
        key,
    )


def move(cursor: Cursor, key: Key, shard: int) -> None:
    """Moves everything about one resource to another shard."""
    old, rtype, logical = key
    for table in ("resource", "resource_history", "search_value"):
        cursor.execute(
            psycopg.sql.SQL("UPDATE {} SET shard = %s WHERE shard = %s AND rtype = %s AND id = %s").format(
                psycopg.sql.Identifier(table)
            ),
            (shard, old, rtype, logical),
        )


def columns(table: str) -> list[tuple[str, str]]:
    """(name, type) of each column of a COPY into ``table``."""
    return [(name, form) for name, form in (column.split() for column in _COLUMNS[table].split(","))]


@contextmanager
def copying(cursor: Cursor, table: str) -> Iterator[Callable[[tuple[Any, ...]], None]]:
    """A binary COPY into ``table``: gives the function that adds a row. The server works on earlier rows meanwhile."""
    named = columns(table)
    with cursor.copy(f"COPY {table} ({', '.join(n for n, _ in named)}) FROM STDIN (FORMAT BINARY)") as target:
        target.set_types([t for _, t in named])
        yield target.write_row


def copy(cursor: Cursor, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Adds ``rows`` to ``table`` by COPY; nothing is asked of the server when there are none."""
    if rows:
        with copying(cursor, table) as add:
            for row in rows:
                add(row)


def packed(values: Sequence[int]) -> bytes:
    """A bigint[] in PostgreSQL's binary form: dimensions, no null, element type, length, lower bound, then size and value of each."""
    count = len(values)
    layout = _LAYOUTS.get(count)
    if layout is None:
        layout = _LAYOUTS[count] = Struct(">iiIii" + "iq" * count)
    flat = [8] * (2 * count)
    flat[1::2] = values
    return layout.pack(1, 0, _INT8, count, 1, *flat)


_INT8: Final = 20  # pg_type.oid of bigint
_LAYOUTS: Final[dict[int, Struct]] = {}


def _arrays(keys: Collection[Key]) -> list[str]:
    return [numbers([key[0] for key in keys]), numbers([key[1] for key in keys]), texts([key[2] for key in keys])]


def numbers(values: Iterable[int]) -> str:
    """Integers as an array literal. A list would be dumped item by item, and a batch asks for a thousand keys several times."""
    return "{" + ",".join(map(str, values)) + "}"


def texts(values: Collection[str]) -> str:
    """Texts as an array literal (PostgreSQL manual, section 8.15.6)."""
    if not values:
        return "{}"
    if any('"' in value or "\\" in value for value in values):
        values = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    return '{"' + '","'.join(values) + '"}'
