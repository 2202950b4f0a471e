"""Indexing what is stored by posted parameters, and forgetting deleted ones: in chunks, while everything goes on.

Each chunk is a transaction that also records how far it came, so a crash loses one chunk. Resources are taken in the order of their
change number under the locks of those who write them; what is written meanwhile is indexed by its writer.
"""

from __future__ import annotations

from typing import Any

import psycopg

from conformance import fhirjson
from conformance.capability import RESOURCE_TYPES
from fhir_server.search import posted
from fhir_server.store import posted_parameters, rows
from fhir_server.store.body import Codec
from fhir_server.store.statement import Key
from fhir_server.store.versions import stored_resource

CHUNK = 200
"""Resources of a chunk: their writers wait that long."""
_GONE = 5000
"""Rows removed at once."""
_NEXT = (
    "SELECT number, definition, state, generation, rtype, seq FROM posted_parameter WHERE state <> 'ready'"
    " ORDER BY state = 'gone', number LIMIT 1 FOR UPDATE SKIP LOCKED"
)
_WRITERS = "SELECT pg_advisory_xact_lock(1886352740, g) FROM generate_series(greatest(0, %s - 1000), %s - 1) g"


def step(conn: psycopg.Connection[Any], codec: Codec) -> bool:
    """One chunk of the first parameter that needs work, in a transaction of its own; False when there is nothing to do.

    A chunk that the database broke off because of others (deadlock) is done again by the next call.
    """
    try:
        with conn.transaction(), conn.cursor(binary=True) as cursor:
            row = cursor.execute(_NEXT).fetchone()
            if row is None:
                return False
            number, text, state, generation, rtype, seq = row
            if state == "new":
                cursor.execute(_WRITERS, (generation, generation))
                cursor.execute("UPDATE posted_parameter SET state = 'building' WHERE number = %s", (number,))
            elif state == "gone":
                _forget(cursor, number, generation)
            else:
                _index(cursor, codec, number, fhirjson.loads(text), rtype, seq)
    except psycopg.errors.DeadlockDetected:
        return True
    return True


def _index(cursor: psycopg.Cursor[Any], codec: Codec, number: int, definition: Any, rtype: int, seq: int) -> None:
    made = {RESOURCE_TYPES[name]: (name, p) for name, p in posted.compiled(definition, number).items()}
    left = sorted(t for t in made if t >= rtype)
    if not left:
        posted_parameters.ready(cursor, number)
        return
    here = left[0]
    found = cursor.execute(
        "SELECT shard, rtype, id, patient, seq FROM resource WHERE rtype = %s AND seq > %s ORDER BY seq LIMIT %s",
        (here, seq if here == rtype else 0, CHUNK),
    ).fetchall()
    if not found:
        cursor.execute("UPDATE posted_parameter SET rtype = %s, seq = 0 WHERE number = %s", (here + 1, number))
        return
    name, parameter = made[here]
    rows.lock(cursor, (patient or f"{name}/{logical}" for _, _, logical, patient, _ in found))
    keys = [row[:3] for row in found]
    _remove(cursor, keys, number)
    stored = rows.bodies(cursor, keys)
    values = [
        (*key, n, *value)
        for key, one in stored.items()
        for n, value in enumerate(posted.values(name, parameter, stored_resource(codec, one)))
    ]
    rows.copy(cursor, "search_value", values)
    cursor.execute(
        "UPDATE posted_parameter SET rtype = %s, seq = %s, done = done + %s WHERE number = %s",
        (here, found[-1][4], len(found), number),
    )


def _remove(cursor: psycopg.Cursor[Any], keys: list[Key], number: int) -> None:
    cursor.execute(
        "DELETE FROM search_value v USING unnest(%s::smallint[], %s::smallint[], %s::text[]) AS k(shard, rtype, id)"
        " WHERE v.shard = k.shard AND v.rtype = k.rtype AND v.id = k.id AND v.param BETWEEN %s AND %s + 1",
        (
            rows.numbers([k[0] for k in keys]),
            rows.numbers([k[1] for k in keys]),
            rows.texts([k[2] for k in keys]),
            number,
            number,
        ),
    )


def _forget(cursor: psycopg.Cursor[Any], number: int, generation: int) -> None:
    cursor.execute(_WRITERS, (generation, generation))
    for column in ("string", "low", "number"):
        gone = cursor.execute(
            f"DELETE FROM search_value WHERE ctid = ANY(ARRAY(SELECT ctid FROM search_value WHERE rtype = ANY(%s::smallint[])"  # noqa: S608 -- our own names
            f" AND param BETWEEN %s AND %s + 1 AND {column} IS NOT NULL LIMIT {_GONE}))",
            (rows.numbers(RESOURCE_TYPES.values()), number, number),
        )
        if gone.rowcount:
            return
    cursor.execute("DELETE FROM posted_parameter WHERE number = %s", (number,))
