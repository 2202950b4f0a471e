"""Claiming: which messages a worker takes next.

Rules: oldest first; never past an unfinished message of the same lane that shares an ordering key, unless that one is in the same batch
(a batch is applied in order); never while another worker holds a message that shares a key; each channel with waiting messages
gets an equal share of a batch; the backfill lane is looked at when the live one has nothing to give, and at every tenth claim.

A claim belongs to the database session it was made in, and all work on it is done in that session. When the session is gone, nothing
of that work can be committed any more, so the messages are free at once; the lease is for sessions that live but do not move. That
does not depend on anybody's clock.

Claims run one after the other under an advisory lock, and each statement under READ COMMITTED sees what the claim before it
committed. So no claim can decide on a picture in which an earlier message of a patient is not yet, or no longer, taken. Finishing
needs no such lock: it only frees keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from conformance.issue import Issue
from fhir_server.ingest.inbox import BACKFILL, LIVE, Claimed, decompress, issues_json

MAX_ATTEMPTS = 8
"""Workers that may die over a message before it is held. Enough that somebody who kills workers for other reasons holds no message
up: each time but the first he would have to meet the moment in which this one is alone (tests/journeys/test_kills.py)."""
CRASHED = Issue(
    "conversion-crashed",
    "fatal",
    "",
    f"The converter ended {MAX_ATTEMPTS} times while it had this message: report it, and replay it with a mended version.",
)
_LOCK = 0x696E626F78  # "inbox"
_SEEN_PER_TAKEN = 4
_SEEN_PER_CHANNEL = 10
_BATCH_BYTES = 1024 * 1024
_BACKFILL_EVERY = 10


@dataclass(frozen=True, slots=True)
class Waiting:
    """A ready message as the claim sees it. ``after``: ids of the ready messages right before it that share a key with it."""

    shard: int
    id: int
    channel: tuple[str, str]
    keys: tuple[int, ...]
    after: tuple[int, ...]
    size: int
    attempts: int


def choose(waiting: Sequence[Waiting], busy: Iterable[int], limit: int, max_bytes: int = _BATCH_BYTES) -> list[Waiting]:
    """The batch (pure): at most ``limit`` messages and about ``max_bytes``, in the order to apply them.

    ``waiting``: the oldest of each channel, ascending by id inside it; ``busy``: keys that other workers hold. A message that was
    there when a worker died is taken alone, so that one that kills takes no other with it.
    """
    taken_keys = frozenset(busy)
    free = [w for w in waiting if not taken_keys.intersection(w.keys)]
    oldest = min((w for w in free if not w.after), key=lambda w: w.id, default=None)
    if oldest is not None and oldest.attempts:
        return [oldest]
    queues: dict[tuple[str, str], list[Waiting]] = {}
    for w in sorted((w for w in free if not w.attempts), key=lambda w: w.id, reverse=True):
        queues.setdefault(w.channel, []).append(w)
    taken: dict[int, Waiting] = {}
    size = 0
    while queues:
        for channel in sorted(queues, key=lambda c: queues[c][-1].id):
            queue = queues[channel]
            while queue:
                w = queue.pop()
                if all(before in taken for before in w.after):
                    if taken and size + w.size > max_bytes:
                        return _in_order(taken)
                    taken[w.id] = w
                    size += w.size
                    break
            if not queue:
                del queues[channel]
            if len(taken) >= limit:
                return _in_order(taken)
    return _in_order(taken)


def _in_order(taken: Mapping[int, Waiting]) -> list[Waiting]:
    return [taken[i] for i in sorted(taken)]


# A role that may not see a session of another role gets no start time: then only the lease counts.
_GONE = """
SELECT claimed_by FROM (SELECT DISTINCT claimed_by, split_part(claimed_by, '@', 2) AS session FROM inbox WHERE status = 'claimed') c
WHERE session <> '' AND NOT EXISTS (
    SELECT FROM pg_stat_get_activity(split_part(session, '.', 1)::integer) s WHERE coalesce(
        (extract(epoch FROM s.backend_start) * 1000000)::bigint = split_part(session, '.', 2)::bigint, s.pid IS NOT NULL))
"""

_EXPIRED = f"""
UPDATE inbox SET claimed_by = NULL, lease_until = NULL,
    status = CASE WHEN attempts >= %(most)s THEN 'held' ELSE 'ready' END,
    reason = CASE WHEN attempts >= %(most)s THEN %(key)s ELSE reason END,
    issues = CASE WHEN attempts >= %(most)s THEN %(issues)s::jsonb ELSE issues END
WHERE (shard, id) IN (
    SELECT shard, id FROM inbox
    WHERE status = 'claimed' AND (lease_until < clock_timestamp() OR claimed_by IN ({_GONE})) FOR UPDATE SKIP LOCKED)
"""  # noqa: S608 - a text of our own

# The channels by a loose index scan (https://wiki.postgresql.org/wiki/Loose_indexscan), then the oldest of each, fewer the more
# channels there are: the cost does not grow with the backlog.
_WAITING = """
WITH RECURSIVE channels AS (
    (SELECT facility, channel FROM inbox WHERE status = 'ready' AND lane = %(lane)s ORDER BY facility, channel LIMIT 1)
    UNION ALL
    SELECT n.facility, n.channel FROM channels c CROSS JOIN LATERAL (
        SELECT facility, channel FROM inbox
        WHERE status = 'ready' AND lane = %(lane)s AND (facility, channel) > (c.facility, c.channel)
        ORDER BY facility, channel LIMIT 1) n
)
SELECT w.shard, w.id, c.facility, c.channel, w.keys, w.size, w.attempts, ARRAY(
    SELECT DISTINCT q.id FROM unnest(w.keys) AS k(key) CROSS JOIN LATERAL (
        SELECT p.id FROM inbox p WHERE p.status = 'ready' AND p.keys[1] = k.key AND p.id < w.id AND p.lane = %(lane)s
        ORDER BY p.id DESC LIMIT 1) q)
FROM channels c CROSS JOIN LATERAL (
    SELECT shard, id, keys, size, attempts FROM inbox
    WHERE status = 'ready' AND lane = %(lane)s AND facility = c.facility AND channel = c.channel
    ORDER BY id LIMIT (SELECT greatest(%(seen)s::integer / count(*), %(least)s) FROM channels)) w
"""

# Messages of several patients (merges) are few; the index on the first key does not find them by their others.
_SEVERAL = """
SELECT id, keys FROM inbox
WHERE status = 'ready' AND cardinality(keys) > 1 AND lane = %(lane)s AND id < %(last)s AND keys && %(keys)s::bigint[] ORDER BY id
"""

_TAKE = """
UPDATE inbox i SET status = 'claimed', claimed_by = %(token)s, attempts = i.attempts + 1,
    lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
FROM unnest(%(shards)s::smallint[], %(ids)s::bigint[]) AS a(shard, id)
WHERE i.shard = a.shard AND i.id = a.id AND i.status = 'ready'
RETURNING i.shard, i.id, i.facility, i.channel, i.format, i.control_id, i.sent_at, i.received_at, i.lane, i.attempts, i.raw
"""


def session(conn: psycopg.Connection[Any]) -> str:
    """Names the database session of ``conn``: number of its process and when that began."""
    row = conn.execute(
        "SELECT s.pid || '.' || (extract(epoch FROM s.backend_start) * 1000000)::bigint"
        " FROM pg_stat_get_activity(pg_backend_pid()) s"
    ).fetchone()
    assert row is not None
    return str(row[0])


def claim(conn: psycopg.Connection[Any], token: str, lease: float, limit: int, turn: int = 1) -> list[Claimed]:
    """Takes up to ``limit`` messages for ``lease`` seconds; empty when there is nothing to take.

    ``token`` names the claim: never used before; with ``@<session>`` at its end the claim ends with that session (see ``session``).
    ``turn`` counts the claims of a worker: the backfill lane comes first at every tenth, with a quarter of the batch.
    """
    lanes = [(LIVE, limit), (BACKFILL, max(1, limit // 4))]
    if turn % _BACKFILL_EVERY == 0:
        lanes.reverse()
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        conn.execute(_EXPIRED, {"most": MAX_ATTEMPTS, "key": CRASHED.key, "issues": issues_json([CRASHED])})
        busy = {key for (keys,) in conn.execute("SELECT keys FROM inbox WHERE status = 'claimed'") for key in keys}
        for lane, most in lanes:
            chosen = choose(_waiting(conn, lane, most * _SEEN_PER_TAKEN), busy, most)
            if chosen:
                break
        else:
            return []
        rows = conn.execute(
            _TAKE, {"token": token, "lease": lease, "shards": [w.shard for w in chosen], "ids": [w.id for w in chosen]}
        ).fetchall()
        if len(rows) != len(chosen):
            # Somebody took a chosen message out by hand; what comes after it may not go first.
            raise psycopg.errors.SerializationFailure("the chosen messages changed while being claimed")
    rows.sort(key=lambda row: row[1])
    return [
        Claimed(
            shard=row[0],
            id=row[1],
            facility=row[2],
            channel=row[3],
            format=row[4],
            control_id=row[5],
            sent_at=row[6],
            received_at=row[7],
            lane=row[8],
            attempts=row[9],
            raw=decompress(row[10]),
        )
        for row in rows
    ]


def _waiting(conn: psycopg.Connection[Any], lane: int, seen: int) -> list[Waiting]:
    with conn.cursor(binary=True) as cursor:
        rows = cursor.execute(_WAITING, {"lane": lane, "seen": seen, "least": _SEEN_PER_CHANNEL}).fetchall()
        if not rows:
            return []
        keys = {key for row in rows for key in row[4]}
        several: dict[int, list[int]] = {}
        cursor.execute(_SEVERAL, {"lane": lane, "last": max(row[1] for row in rows), "keys": list(keys)})
        for number, others in cursor.fetchall():
            for key in others:
                several.setdefault(key, []).append(number)
    out = []
    for shard, number, facility, channel, own, size, attempts, after in rows:
        before = set(after)
        for key in own:
            before.update(n for n in several.get(key, ()) if n < number)
        out.append(Waiting(shard, number, (facility, channel), tuple(own), tuple(before), size, attempts))
    return out
