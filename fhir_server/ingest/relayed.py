"""Batches of relays into the inbox: each message once, whatever was sent again, in the order of the relay.

One transaction holds the messages, the numbers they have at the relay (the idempotency key), and what the relay says of itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg

from conformance.issue import Issue
from fhir_server.ingest import inbox
from fhir_server.ingest.inbox import READY_CHANNEL, Arrival
from fhir_server.ingest.intake import Intake
from fhir_server.relay.batch import Head, Said

CHANNEL: Final = "relay"
_STORED: Final = "SELECT seq, sha256 FROM relayed WHERE facility = $1 AND relay = $2 AND seq = ANY($3::bigint[])"
_KEEP: Final = """
INSERT INTO relayed (shard, inbox, facility, relay, seq, sha256, received_at, offset_ms, stored_at)
SELECT a.shard, a.inbox, $1, $2, a.seq, a.sha256, a.received_at, a.offset_ms, $3
FROM unnest($4::smallint[], $5::bigint[], $6::bigint[], $7::bytea[], $8::timestamptz[], $9::integer[])
    AS a(shard, inbox, seq, sha256, received_at, offset_ms)
"""
_RELAY: Final = """
INSERT INTO relay AS r (facility, relay, name, version, address, seen, offset_ms, waiting, dead, oldest, messages)
VALUES ($1, $2, $3, $4, $5, clock_timestamp(), $6, $7, $8, $9, $10)
ON CONFLICT (facility, relay) DO UPDATE SET name = EXCLUDED.name, version = EXCLUDED.version, address = EXCLUDED.address,
    seen = EXCLUDED.seen, offset_ms = coalesce(EXCLUDED.offset_ms, r.offset_ms), waiting = EXCLUDED.waiting, dead = EXCLUDED.dead,
    oldest = EXCLUDED.oldest, messages = r.messages + EXCLUDED.messages
"""
_HEARD: Final = """
INSERT INTO feed AS f (facility, channel, received_at) VALUES ($1, $2, $3)
ON CONFLICT (facility, channel) DO UPDATE SET received_at = greatest(f.received_at, EXCLUDED.received_at)
"""
_LARGEST_OFFSET: Final = 2**31 - 1


class NumberReused(Exception):
    """The relay sends another message under a number that is known: its queue is an old copy."""


class NotWhole(Exception):
    """A message is not the one whose digest was sent."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Numbers stored now, those known before, and those held with their reason (issue key)."""

    stored: tuple[int, ...]
    known: tuple[int, ...]
    held: tuple[tuple[int, str], ...]


_Arrived = tuple[Head, list[tuple[Arrival, Issue | None]]]


def arrivals(intake: Intake, said: Said, messages: Sequence[bytes], at: datetime) -> list[_Arrived]:
    """The messages of a batch as the inbox takes them; a file gives one or more. Raises NotWhole."""
    out = []
    for head, raw in zip(said.messages, messages, strict=True):
        if hashlib.sha256(raw).hexdigest() != head.sha256:
            raise NotWhole
        kind, parts = intake.messages(raw, head.format)
        out.append((head, [intake.arrival(part, kind, at) for part in parts]))
    return out


async def store(
    conn: asyncpg.Connection, facility: str, said: Said, arrived: Sequence[_Arrived], at: datetime, address: str
) -> Taken:
    """Makes the batch durable, all or nothing. Raises NumberReused and what asyncpg raises."""
    async with conn.transaction():
        # The same batch again, sent while the first is still being stored, waits for it.
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 7))", f"{facility}\x1f{said.relay}")
        rows = await conn.fetch(_STORED, facility, said.relay, [head.seq for head, _ in arrived])
        known: dict[int, bytes] = {r["seq"]: r["sha256"] for r in rows}
        if any(known.get(head.seq, bytes.fromhex(head.sha256)) != bytes.fromhex(head.sha256) for head, _ in arrived):
            raise NumberReused
        fresh = [(head, parts) for head, parts in arrived if head.seq not in known]
        if fresh:
            await _insert(conn, facility, said, fresh, at)
        offset = _bounded(said.offset_ms)
        told: tuple[Any, ...] = (said.name, said.version, address, offset, said.waiting, said.dead, said.oldest)
        await conn.execute(_RELAY, facility, said.relay, *told, len(fresh))
    if fresh:
        await conn.execute(f"NOTIFY {READY_CHANNEL}")
    held = [(head.seq, fault.key) for head, parts in fresh for _, fault in parts if fault is not None]
    return Taken(tuple(h.seq for h, _ in fresh), tuple(sorted(known)), tuple(held))


async def _insert(conn: asyncpg.Connection, facility: str, said: Said, fresh: Sequence[_Arrived], at: datetime) -> None:
    accepted = await inbox.accept(conn, [arrival for _, parts in fresh for arrival, _ in parts])
    places, position = [], 0
    for _, parts in fresh:
        places.append(accepted[position])
        position += len(parts)
    await conn.execute(
        _KEEP,
        facility,
        said.relay,
        at,
        [place.shard for place in places],
        [place.id for place in places],
        [head.seq for head, _ in fresh],
        [bytes.fromhex(head.sha256) for head, _ in fresh],
        [head.received_at for head, _ in fresh],
        [_bounded(head.offset_ms) for head, _ in fresh],
    )
    await conn.execute(_HEARD, facility, CHANNEL, at)


def _bounded(offset: int | None) -> int | None:
    return None if offset is None else max(-_LARGEST_OFFSET, min(offset, _LARGEST_OFFSET))
