"""How long the audit log is kept: at least 6 months (Cybersecurity Law article 21), by default 3 years; what is older is removed from
the front of each chain, and the log itself says so.

A removal is an entry of a chain of its own, written in the same transaction: for each chain the number and the hash of the last row
removed. ``audit_event.verify`` starts a chain behind that row, and no removal that nobody stated passes for one.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from conformance import chain
from fhir_server.audit_event import SHORTEST_KEPT, canonical, hashed, heads, removals_in

log = logging.getLogger(__name__)

_LOCK: Final = 7_405_071
_ROWS: Final = 20_000
"""Rows of one chain removed in one transaction."""

_DAILY: Final = 86_400.0
_AGAIN: Final = 3600.0

_CHAINS: Final = """
WITH RECURSIVE c AS (
  (SELECT chain FROM audit_entry ORDER BY chain LIMIT 1)
  UNION ALL
  SELECT (SELECT e.chain FROM audit_entry e WHERE e.chain > c.chain ORDER BY e.chain LIMIT 1) FROM c WHERE c.chain IS NOT NULL)
SELECT chain FROM c WHERE chain IS NOT NULL"""
# The rows of a chain stand in the order of time, give or take a request that waited.
_FRONT: Final = (
    "SELECT number, at, entry, hash FROM audit_entry WHERE chain = $1 AND number > $2 ORDER BY number LIMIT $3"
)
_INSERT: Final = "INSERT INTO audit_entry (chain, number, at, entry, hash) VALUES ($1, $2, $3, $4, $5)"


@dataclass(frozen=True, slots=True)
class Removed:
    """How many entries are gone, of how many chains; or would be."""

    entries: int
    chains: int


async def prune(connection: asyncpg.Connection, days: int, now: datetime, *, dry: bool = False) -> Removed:
    """Removes what is older than ``days``. One process at a time; another that comes meanwhile removes nothing.

    Raises ValueError for less than SHORTEST_KEPT.
    """
    if timedelta(days=days) < SHORTEST_KEPT:
        raise ValueError(f"audit entries are kept {SHORTEST_KEPT.days} days at least")
    before = now - timedelta(days=days)
    writer = _Writer(f"{now.astimezone(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex}", before, now)
    entries, touched = 0, set()
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
        return Removed(0, 0)
    try:
        for row in await connection.fetch(_CHAINS):
            after = 0
            while found := await _front(connection, row["chain"], before, after if dry else 0):
                if not dry:
                    async with connection.transaction():
                        await writer.remove(connection, row["chain"], found)
                entries, after = entries + len(found), found[-1]["number"]
                touched.add(row["chain"])
                if len(found) < _ROWS:
                    break
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)
    return Removed(entries, len(touched))


async def _front(connection: asyncpg.Connection, name: str, before: datetime, after: int) -> list[Any]:
    """The oldest rows of a chain, up to the first that is to be kept."""
    out = []
    for row in await connection.fetch(_FRONT, name, after, _ROWS):
        if row["at"] >= before:
            break
        out.append(row)
    return out


async def keep(url: str, days: int, clock: Callable[[], datetime]) -> None:
    """Removes once a day what is older than ``days``, until it is cancelled."""
    while True:
        try:
            connection = await asyncpg.connect(url, timeout=10)
            try:
                found = await prune(connection, days, clock())
            finally:
                await connection.close()
            if found.entries:
                log.info("audit_entries_removed entries=%s chains=%s", found.entries, found.chains)
            wait = _DAILY
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as fault:
            log.warning("audit_entries_not_removed fault=%s", type(fault).__name__)
            wait = _AGAIN
        await asyncio.sleep(wait)


@dataclass(slots=True)
class _Writer:
    """The chain that states the removals of one run."""

    chain: str
    before: datetime
    now: datetime
    number: int = 0
    previous: bytes = b""

    async def remove(self, connection: asyncpg.Connection, name: str, rows: list[Any]) -> None:
        """Removes rows from the front of a chain and states it, together with what removals stated that are among them."""
        if not self.number:
            self.previous = chain.genesis(self.chain)
            await self._add(connection, canonical({"anchor": await heads(connection, self.chain)}))
        carried = [list(r) for row in rows for r in removals_in(row["entry"])]
        last = rows[-1]
        told = [*carried, [name, last["number"], last["hash"].hex(), self.before.isoformat()]]
        entry = {
            **{
                "action": "D",
                "address": "",
                "facility": "",
                "interaction": "audit-log-prune",
                "outcome": "0",
                "patients": [],
            },
            **{
                "query": "",
                "removed": told,
                "resource": "",
                "role": "",
                "subject": "tongjian",
                "types": ["AuditEvent"],
            },
        }
        await self._add(connection, canonical(entry))
        await connection.execute("DELETE FROM audit_entry WHERE chain = $1 AND number <= $2", name, last["number"])

    async def _add(self, connection: asyncpg.Connection, entry: str) -> None:
        self.number += 1
        self.previous = chain.next_hash(self.previous, hashed(self.number, self.now, entry))
        await connection.execute(_INSERT, self.chain, self.number, self.now, entry, self.previous)
