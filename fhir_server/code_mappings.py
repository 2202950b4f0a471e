"""Code mappings accepted in the worklist (table code_mapping), laid over the profiles a process has loaded.

A change is seen by its number: the newest id of the table. Workers ask before each batch, the server every second, so that an accepted
code counts for the next message without a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import asyncpg
import psycopg

from mappings.accepted import Accepted, overlay
from mappings.profile import Profile

log = logging.getLogger(__name__)

_VERSION = "SELECT coalesce(max(id), 0) FROM code_mapping"
_CURRENT = (
    "SELECT facility, kind, code, name, target, valid_from, valid_to FROM code_mapping"
    " WHERE until IS NULL AND target IS NOT NULL ORDER BY id"
)
EVERY = 1.0
"""Seconds between two looks of a server process."""


class LiveProfiles(Mapping[str, Profile]):
    """Profiles by facility id with what was accepted by now. As read-only mapping it can be handed on like the loaded profiles."""

    def __init__(self, loaded: Mapping[str, Profile]) -> None:
        """loaded: profiles as their files say them; they stay as they are."""
        self._loaded = loaded
        self._now: Mapping[str, Profile] = loaded
        self._version = 0

    def __getitem__(self, facility: str) -> Profile:
        """The profile of a facility id."""
        return self._now[facility]

    def __iter__(self) -> Iterator[str]:
        """Facility ids."""
        return iter(self._now)

    def __len__(self) -> int:
        """How many facilities."""
        return len(self._now)

    def refresh(self, conn: psycopg.Connection[Any]) -> bool:
        """Take over what was decided since; True when something was. One small query while nothing was."""
        row = conn.execute(_VERSION).fetchone()
        if row is None or row[0] == self._version:
            return False
        self._take(row[0], conn.execute(_CURRENT).fetchall())
        return True

    async def follow(self, pool: asyncpg.Pool, every: float = EVERY) -> None:
        """Refresh for ever; an outage of the database is waited for. Ends when cancelled."""
        while True:
            try:
                version = await pool.fetchval(_VERSION)
                if version != self._version:
                    self._take(version, [tuple(row) for row in await pool.fetch(_CURRENT)])
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as fault:
                log.debug("code_mappings_not_read fault=%s", type(fault).__name__)
            await asyncio.sleep(every)

    def _take(self, version: int, rows: Iterable[Sequence[Any]]) -> None:
        accepted: defaultdict[str, list[Accepted]] = defaultdict(list)
        for facility, kind, code, name, target, start, end in rows:
            accepted[facility].append(Accepted(kind, code, name, target, _day(start), _day(end)))
        self._now = {key: overlay(profile, accepted.get(key, ())) for key, profile in self._loaded.items()}
        self._version = version
        log.info("code_mappings version=%d accepted=%d", version, sum(map(len, accepted.values())))


def _day(value: date | None) -> str:
    return value.isoformat() if value is not None else ""
