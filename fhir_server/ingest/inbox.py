"""The inbox: messages durable before their acknowledgement, claimed, finished or held (table ``inbox``).

Status: ready -> claimed -> done | held | quality-control, and failed for bytes that were refused. A crash of a worker leaves
``claimed`` rows whose lease runs out (see claim). Everything a worker writes about a message commits together with its status,
under a row lock that proves the lease is still its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson
import psycopg
import zstandard
from asyncpg import exceptions as asyncpg_errors

from conformance.issue import Issue
from mappings.ids import SHARDS, shard_of

if TYPE_CHECKING:
    import asyncpg

LIVE, BACKFILL = 0, 1
READY_CHANNEL = "tongjian_ready"
"""NOTIFY channel that wakes idle workers."""
REUSED = "control-id-reused"
_TEXT_LIMIT = 250


class LeaseLost(Exception):
    """Another worker has, or had, the messages: nothing of this transaction may be kept."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message on its way into the inbox. ``sha256`` is of the bytes as received, ``raw`` their zstd form, ``size`` their number.

    part: of a continued message;
    keys: ordering keys (``ordering_keys``); status: ready, quality-control, or for the first of ``issues`` failed or held.
    """

    shard: int
    facility: str
    channel: str
    format: str
    trigger: str
    control_id: str
    sent_at: datetime | None
    received_at: datetime
    sha256: bytes
    size: int
    charset: str
    lane: int
    keys: tuple[int, ...]
    status: str
    issues: tuple[Issue, ...]
    raw: bytes
    part: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message that is durable. ``fresh`` is False when the same bytes were there before: then everything tells of the first time."""

    shard: int
    id: int
    received_at: datetime
    fresh: bool


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message a worker has taken; ``raw`` are the bytes as received."""

    shard: int
    id: int
    facility: str
    channel: str
    format: str
    control_id: str
    sent_at: datetime | None
    received_at: datetime
    lane: int
    attempts: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a claimed message: ``done``, ``held`` (reason: issue key) or ``quality-control``. ``unread``: positions alone."""

    message: Claimed
    status: str
    reason: str | None
    issues: Sequence[Issue]
    unread: Sequence[str]
    mapping: int | None


def ordering_keys(
    facility: str, control_id: str, patient_keys: Sequence[str], pointers: Sequence[str] = ()
) -> tuple[int, tuple[int, ...]]:
    """Shard and ordering keys (signed 64-bit) of a message; without a patient the control id stands in for one.

    ``pointers``: of a part of a continued message (Envelope.pointers): parts that belong together are worked on one after the other.
    """
    names = [*(patient_keys or (f"message\x1e{control_id}",)), *(f"continued\x1e{pointer}" for pointer in pointers)]
    keys = {_key(f"{facility}\x1f{name}"): None for name in names}
    return shard_of(facility, names[0].encode(errors="replace").decode()), tuple(keys)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "big", signed=True)


def compress(raw: bytes) -> bytes:
    """The form in which bytes rest in the inbox: one zstd frame that knows its size."""
    return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(raw)


def decompress(stored: bytes) -> bytes:
    """The bytes as received."""
    return zstandard.ZstdDecompressor().decompress(stored)


def plain(text: str) -> str:
    """Text for an indexed column: cut to what an index takes."""
    # Neither NUL nor half a surrogate pair can stand in a PostgreSQL text; an index entry has a largest size.
    return text.replace("\x00", "").encode(errors="replace").decode()[:_TEXT_LIMIT]


def issues_json(issues: Sequence[Issue]) -> str | None:
    """Issues as JSON text for a jsonb column; None when there are none."""
    return orjson.dumps(_issue_rows(issues)).decode() if issues else None


def _issue_rows(issues: Sequence[Issue]) -> list[dict[str, Any]]:
    """Issues as plain JSON values. ``value`` is text of the sender: jsonb takes no NUL, and JSON no half of a surrogate pair."""
    rows = [i.as_dict() for i in issues]
    for row in rows:
        value = row.get("value")
        if value is not None and not value.isprintable():
            row["value"] = value.replace("\x00", "\ufffd").encode(errors="replace").decode()
    return rows


_ACCEPT = """
INSERT INTO inbox (shard, facility, channel, format, trigger, control_id, sent_at, received_at, sha256, size, charset, lane, keys,
                   status, flag, reason, issues, raw)
SELECT a.shard, a.facility, a.channel, a.format, a.trigger, a.control_id, a.sent_at, a.received_at, a.sha256, a.size, a.charset,
       a.lane, a.keys::bigint[], a.status,
       CASE WHEN a.part THEN 'part' WHEN a.reused OR a.control_id <> '' AND a.status <> 'failed' AND EXISTS (
           SELECT FROM inbox b WHERE b.facility = a.facility AND b.control_id = a.control_id AND b.sha256 <> a.sha256
       ) THEN 'control-id-reused' END,
       a.reason, a.issues::jsonb, a.raw
FROM unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::timestamptz[],
            $9::bytea[], $10::integer[], $11::text[], $12::smallint[], $13::text[], $14::text[], $15::boolean[], $16::text[],
            $17::text[], $18::bytea[], $19::boolean[])
    AS a(shard, facility, channel, format, trigger, control_id, sent_at, received_at, sha256, size, charset, lane, keys, status,
         reused, reason, issues, raw, part)
ON CONFLICT (shard, facility, sha256) DO NOTHING
RETURNING shard, id, facility, sha256, received_at
"""

_STORED = """
SELECT i.shard, i.id, i.facility, i.sha256, i.received_at, i.status
FROM unnest($1::smallint[], $2::text[], $3::bytea[]) AS a(shard, facility, sha256) JOIN inbox i USING (shard, facility, sha256)
"""


_Name = tuple[int, str, bytes]
"""(shard, facility, SHA-256): what makes a message the same."""


async def accept(conn: asyncpg.Connection, arrivals: Sequence[Arrival]) -> list[Accepted]:
    """Makes messages durable: one statement, one commit; answers in the order of ``arrivals``.

    The same bytes of one facility are stored once. Bytes that were ``failed`` and are now acceptable take the place of the failure.
    Of copies in one call that came over several channels, one that is acceptable counts. Nothing here waits for a row that a worker has
    locked. Raises what asyncpg raises; then none is stored, or all are and nobody was told.
    """
    first: dict[_Name, Arrival] = {}
    for a in arrivals:
        known = first.setdefault((a.shard, a.facility, a.sha256), a)
        if known.status == "failed" and a.status != "failed":
            first[a.shard, a.facility, a.sha256] = a
    found = await _insert(conn, list(first.values()))
    old = [name for name in first if name not in found]
    if old:
        stored = await conn.fetch(_STORED, [n[0] for n in old], [n[1] for n in old], [n[2] for n in old])
        mended = []
        for r in stored:
            name = (r["shard"], r["facility"], r["sha256"])
            if r["status"] == "failed" and first[name].status != "failed":
                mended.append((r["shard"], r["id"], first[name]))
            else:
                found[name] = Accepted(r["shard"], r["id"], r["received_at"], False)
        if mended:
            async with conn.transaction():
                await conn.executemany("DELETE FROM inbox WHERE shard = $1 AND id = $2", [m[:2] for m in mended])
                found |= await _insert(conn, [m[2] for m in mended])
    out = []
    for a in arrivals:
        name = (a.shard, a.facility, a.sha256)
        given = found.get(name)
        if given is None:
            # Another server took the row away between two statements of ours. The sender repeats it.
            raise asyncpg_errors.SerializationError("the message changed while it was being stored")
        # A second copy inside the same group is a repeat as well.
        out.append(given if first[name] is a else Accepted(given.shard, given.id, given.received_at, False))
    return out


async def _insert(conn: asyncpg.Connection, rows: Sequence[Arrival]) -> dict[_Name, Accepted]:
    """Inserts those that are not there yet, and tells which these are."""
    seen = set[tuple[str, str]]()
    reused = []
    for a in rows:
        reused.append(bool(a.control_id) and a.status != "failed" and (a.facility, a.control_id) in seen)
        seen.add((a.facility, a.control_id))
    inserted = await conn.fetch(
        _ACCEPT,
        [a.shard for a in rows],
        [a.facility for a in rows],
        [a.channel for a in rows],
        [a.format for a in rows],
        [plain(a.trigger) for a in rows],
        [plain(a.control_id) for a in rows],
        [a.sent_at for a in rows],
        [a.received_at for a in rows],
        [a.sha256 for a in rows],
        [a.size for a in rows],
        [plain(a.charset) for a in rows],
        [a.lane for a in rows],
        ["{" + ",".join(map(str, a.keys)) + "}" for a in rows],
        [a.status for a in rows],
        reused,
        [a.issues[0].key if a.issues and a.status in ("failed", "held") else None for a in rows],
        [issues_json(a.issues) for a in rows],
        [a.raw for a in rows],
        [a.part for a in rows],
    )
    return {
        (r["shard"], r["facility"], r["sha256"]): Accepted(r["shard"], r["id"], r["received_at"], True)
        for r in inserted
    }


_STATUS = """
SELECT i.shard, i.id, i.status, i.issues
FROM unnest($1::smallint[], $2::bigint[]) AS a(shard, id) JOIN inbox i USING (shard, id)
WHERE i.status NOT IN ('ready', 'claimed')
"""


async def finished(
    conn: asyncpg.Connection, messages: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], tuple[str, list[Issue]]]:
    """Of the messages (shard, id) those that are converted, held or refused: status and issues."""
    rows = await conn.fetch(_STATUS, [m[0] for m in messages], [m[1] for m in messages])
    return {(r["shard"], r["id"]): (r["status"], issues_of(r["issues"])) for r in rows}


_TOLD = "SELECT i.id, i.status, i.format, i.trigger, i.control_id, i.received_at, i.converted_at, i.reason, i.issues FROM inbox i"


async def told(
    conn: asyncpg.Connection, facilities: Sequence[str], messages: Sequence[tuple[int | None, int]]
) -> list[asyncpg.Record]:
    """What the sender may know of messages of some facilities (shard, or None when it is not known, and id)."""
    if any(shard is None for shard, _ in messages):
        # The key leads with the shard: every shard is looked into.
        messages = [(shard, number) for _, number in messages for shard in range(SHARDS)]
    rows: list[asyncpg.Record] = await conn.fetch(
        f"{_TOLD} JOIN unnest($1::smallint[], $2::bigint[]) AS a(shard, id) USING (shard, id) WHERE i.facility = ANY($3)",
        [shard for shard, _ in messages],
        [number for _, number in messages],
        facilities,
    )
    return rows


async def told_of(
    conn: asyncpg.Connection, facilities: Sequence[str], control_id: str, most: int
) -> list[asyncpg.Record]:
    """The same by control id, newest first."""
    rows: list[asyncpg.Record] = await conn.fetch(
        f"{_TOLD} WHERE i.facility = ANY($1) AND i.control_id = $2 ORDER BY i.received_at DESC, i.id DESC LIMIT $3",
        facilities,
        plain(control_id),
        most,
    )
    return rows


def issues_of(stored: str | None) -> list[Issue]:
    """Issues of a jsonb column as asyncpg gives it."""
    return [Issue(**i) for i in orjson.loads(stored)] if stored else []


def lock(conn: psycopg.Connection[Any], token: str, messages: Sequence[Claimed]) -> None:
    """First statement of the transaction that applies ``messages``: holds their rows until it ends. Raises LeaseLost."""
    row = conn.execute(
        "SELECT count(*) FROM (SELECT FROM unnest(%s::smallint[], %s::bigint[]) AS a(shard, id) JOIN inbox i USING (shard, id)"
        " WHERE i.claimed_by = %s AND i.status = 'claimed' FOR UPDATE OF i) x",
        ([m.shard for m in messages], [m.id for m in messages], token),
    ).fetchone()
    if row is None or row[0] != len(messages):
        raise LeaseLost


def finish(conn: psycopg.Connection[Any], outcomes: Sequence[Outcome], at: datetime) -> None:
    """Writes what became of locked messages; the caller's transaction commits it with everything they changed."""
    rows = [
        {
            "shard": o.message.shard,
            "id": o.message.id,
            "status": o.status,
            "reason": o.reason,
            "issues": _issue_rows(o.issues) or None,
            "unread": o.unread or None,
            "mapping": o.mapping,
        }
        for o in outcomes
    ]
    # One JSON text: an array of texts would be escaped again, character by character.
    conn.execute(
        "UPDATE inbox i SET status = a.status, reason = a.reason, issues = a.issues, unread = a.unread, mapping = a.mapping,"
        " converted_at = %s, claimed_by = NULL, lease_until = NULL, attempts = 0 FROM jsonb_to_recordset(%s::jsonb)"
        " AS a(shard smallint, id bigint, status text, reason text, issues jsonb, unread jsonb, mapping integer)"
        " WHERE i.shard = a.shard AND i.id = a.id",
        (at, orjson.dumps(rows).decode()),
    )


def heartbeat(conn: psycopg.Connection[Any], token: str, lease: float) -> None:
    """Prolongs the lease of what ``token`` holds by ``lease`` seconds from now; rows being applied are locked and need none."""
    conn.execute(
        "UPDATE inbox SET lease_until = clock_timestamp() + make_interval(secs => %s) WHERE (shard, id) IN ("
        "SELECT shard, id FROM inbox WHERE status = 'claimed' AND claimed_by = %s FOR UPDATE SKIP LOCKED)",
        (lease, token),
    )


def release(conn: psycopg.Connection[Any], token: str, messages: Sequence[Claimed]) -> int:
    """Gives back what ``token`` holds of ``messages`` as if it had never been tried: an outage is nobody's fault. Also when others
    found its session gone first: what they have taken since stays theirs. Returns how many."""
    return conn.execute(
        "UPDATE inbox i SET attempts = greatest(i.attempts - 1, 0),"
        " status = CASE WHEN i.claimed_by = %(token)s THEN 'ready' ELSE i.status END,"
        " lease_until = CASE WHEN i.claimed_by = %(token)s THEN NULL ELSE i.lease_until END,"
        " claimed_by = nullif(i.claimed_by, %(token)s)"
        " FROM (SELECT b.shard, b.id FROM unnest(%(shards)s::smallint[], %(ids)s::bigint[]) AS a(shard, id)"
        " JOIN inbox b USING (shard, id) WHERE b.status IN ('ready', 'claimed') FOR UPDATE OF b SKIP LOCKED) AS mine"
        " WHERE i.shard = mine.shard AND i.id = mine.id",
        {"token": token, "shards": [m.shard for m in messages], "ids": [m.id for m in messages]},
    ).rowcount
