"""The delivery queue (table ``delivery``): what is to be sent, what was, what was given up. Every function works in the caller's
transaction or in one statement of its own.

Order: for each destination the messages about one patient are sent in the order of their ids; a message that waits for its next attempt
holds back the later ones of that patient only, one that was given up holds back nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import asyncpg
import psycopg
import zstandard

Status = Literal["waiting", "delivered", "dead", "closed"]

_LARGEST = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Parcel:
    """One message for one destination, before it is in the queue. ``message`` None: none could be made, ``reason`` says why."""

    shard: int
    outbox: int
    facility: str
    destination: str
    topic: str
    patient: str | None
    resource: str
    control_id: str
    message: bytes | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """One delivery to be tried now."""

    shard: int
    id: int
    attempts: int
    control_id: str
    message: bytes


@dataclass(frozen=True, slots=True)
class Listed:
    """One delivery as an operator sees it; no patient data but the logical id in ``resource``."""

    id: int
    facility: str
    destination: str
    topic: str
    resource: str
    control_id: str
    status: str
    attempts: int
    due: datetime
    reason: str | None
    created: datetime
    delivered: datetime | None


async def add(conn: asyncpg.Connection, parcels: Sequence[Parcel], at: datetime) -> None:
    """Puts parcels into the queue; one that is there already (same outbox row, same destination) stays as it is."""
    compress = zstandard.ZstdCompressor().compress
    await conn.executemany(
        "INSERT INTO delivery (shard, outbox, facility, destination, topic, patient, resource, control_id, message, status, due,"
        " created, reason) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12)"
        " ON CONFLICT (shard, outbox, facility, destination) DO NOTHING",
        [
            (p.shard, p.outbox, p.facility, p.destination, p.topic, p.patient, p.resource, p.control_id,
             None if p.message is None else compress(p.message), "dead" if p.message is None else "waiting", at, p.reason)
            for p in parcels
        ],
    )  # fmt: skip


_DUE = """
SELECT d.shard, d.id, d.attempts, d.control_id, d.message FROM delivery d
WHERE d.facility = $1 AND d.destination = $2 AND d.status = 'waiting' AND d.due <= $3
  AND NOT EXISTS (
    SELECT FROM delivery e WHERE e.facility = d.facility AND e.destination = d.destination AND e.status = 'waiting'
      AND e.patient = d.patient AND e.id < d.id)
ORDER BY d.id LIMIT $4
"""


async def due(db: Any, facility: str, destination: str, now: datetime, most: int) -> list[Due]:
    """What may be sent now, oldest first, at most one of each patient."""
    decompress = zstandard.ZstdDecompressor().decompress
    rows = await db.fetch(_DUE, facility, destination, now, most)
    return [Due(r[0], r[1], r[2], r[3], decompress(r[4], max_output_size=_LARGEST)) for r in rows]


async def next_due(db: Any, facility: str, destination: str) -> datetime | None:
    """When the next attempt is due; None when nothing waits."""
    found: datetime | None = await db.fetchval(
        "SELECT min(due) FROM delivery WHERE facility = $1 AND destination = $2 AND status = 'waiting'",
        facility,
        destination,
    )
    return found


async def delivered(db: Any, sent: Due, at: datetime, answer: str) -> None:
    """The receiver has it; ``answer``: its acknowledgement code or HTTP status."""
    await db.execute(
        "UPDATE delivery SET status = 'delivered', delivered = $3, attempts = attempts + 1, reason = $4"
        " WHERE shard = $1 AND id = $2",
        sent.shard, sent.id, at, answer,
    )  # fmt: skip


async def failed(db: Any, sent: Due, reason: str, again: datetime | None, *, counts: bool = True) -> None:
    """An attempt failed: try ``again`` then, or never (dead letter). ``counts`` False: it was none, the receiver was not reached."""
    await db.execute(
        "UPDATE delivery SET status = CASE WHEN $4::timestamptz IS NULL THEN 'dead' ELSE status END, due = coalesce($4, due),"
        " attempts = attempts + $5, reason = $3 WHERE shard = $1 AND id = $2",
        sent.shard, sent.id, reason, again, int(counts),
    )  # fmt: skip


_FORGET = """
UPDATE delivery SET message = NULL WHERE (shard, id) IN (
    SELECT shard, id FROM delivery WHERE status IN ('delivered', 'closed') AND message IS NOT NULL
    AND coalesce(delivered, created) < $1 LIMIT $2)
"""


async def forget(db: Any, before: datetime, most: int = 1000) -> int:
    """Removes the bytes of what was delivered or closed before then, at most so many; how many. The rows stay: corrections go to
    whoever got the report, and a replay makes the message again."""
    done: str = await db.execute(_FORGET, before, most)
    return int(done.rpartition(" ")[2])


async def back_again(db: Any, facility: str, destination: str, reason: str, now: datetime) -> None:
    """A receiver that was away answers: what failed for that reason need not wait any longer."""
    await db.execute(
        "UPDATE delivery SET due = $4 WHERE facility = $1 AND destination = $2 AND status = 'waiting' AND due > $4"
        " AND starts_with(reason, $3)",
        facility, destination, reason, now,
    )  # fmt: skip


# --- for the operator --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """Which deliveries: each given condition narrows."""

    facility: str | None = None
    destination: str | None = None
    status: str | None = None
    ids: tuple[int, ...] = ()
    since: datetime | None = None

    def where(self) -> tuple[str, dict[str, Any]]:
        """SQL condition and its values."""
        parts = {
            "facility = %(facility)s": self.facility,
            "destination = %(destination)s": self.destination,
            "status = %(status)s": self.status,
            "id = ANY(%(ids)s)": list(self.ids) or None,
            "created >= %(since)s": self.since,
        }
        used = [sql for sql, value in parts.items() if value is not None]
        values = {name: getattr(self, name) for name in ("facility", "destination", "status", "since")}
        return " AND ".join(used) or "true", {**values, "ids": list(self.ids)}


def select(conn: psycopg.Connection[Any], chosen: Selection, most: int) -> list[Listed]:
    """Deliveries, newest first."""
    where, values = chosen.where()
    rows = conn.execute(
        "SELECT id, facility, destination, topic, resource, control_id, status, attempts, due, reason, created, delivered"  # noqa: S608 - conditions of our own
        f" FROM delivery WHERE {where} ORDER BY id DESC LIMIT %(most)s",
        {**values, "most": most},
    ).fetchall()
    return [Listed(*row) for row in rows]


def close(conn: psycopg.Connection[Any], ids: Sequence[int], why: str) -> int:
    """Dead letters that need not be sent any more, with the operator's reason (no patient data); how many."""
    return conn.execute(
        "UPDATE delivery SET status = 'closed', reason = concat_ws('; ', reason, 'closed: ' || %s::text)"
        " WHERE status = 'dead' AND id = ANY(%s)",
        (why, list(ids)),
    ).rowcount


_NEWER = """EXISTS (
    SELECT FROM delivery n WHERE n.resource = d.resource AND n.facility = d.facility AND n.destination = d.destination
      AND n.id > d.id AND n.status IN ('waiting', 'delivered'))"""


def replay(conn: psycopg.Connection[Any], chosen: Selection, now: datetime) -> tuple[int, int]:
    """Puts deliveries back into the queue, with the same bytes and control id; how many, and how many were left.

    Left is what a newer message about the same report has overtaken: the receiver has the later state, or gets it without this. An id
    sends it all the same. What could not be made into a message is made again: its outbox row is open once more.
    """
    where, values = chosen.where()
    values["now"] = now
    overtaken = "false" if chosen.ids else _NEWER
    left = conn.execute(
        f"SELECT count(*) FROM delivery d WHERE message IS NOT NULL AND {where} AND {overtaken}",  # noqa: S608 - conditions of our own
        values,
    ).fetchall()[0][0]
    again = conn.execute(
        "UPDATE delivery d SET status = 'waiting', due = %(now)s, attempts = 0, delivered = NULL"  # noqa: S608 - conditions of our own
        f" WHERE message IS NOT NULL AND {where} AND NOT {overtaken}",
        values,
    ).rowcount
    anew = conn.execute(
        f"WITH gone AS (DELETE FROM delivery d WHERE message IS NULL AND {where} AND NOT {overtaken} RETURNING shard, outbox)"  # noqa: S608 - conditions of our own
        " UPDATE outbox o SET published = NULL FROM gone g WHERE o.shard = g.shard AND o.id = g.outbox",
        values,
    ).rowcount
    return again + anew, left
