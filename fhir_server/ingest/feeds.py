"""When each channel was heard last (table ``feed``): kept in memory by the receiver, written every few seconds when it changed.

A crash loses at most EVERY seconds of this; the messages themselves are in the inbox.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Final

import asyncpg

from fhir_server.ingest.group_commit import AWAY

log = logging.getLogger(__name__)

EVERY: Final = 5.0

Feed = tuple[str, str]
"""Facility and channel."""

_WRITE = """
INSERT INTO feed AS f (facility, channel, received_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[])
ON CONFLICT (facility, channel) DO UPDATE SET received_at = greatest(f.received_at, EXCLUDED.received_at)
"""


class Feeds:
    """The channels of one receiving process."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._heard: dict[Feed, datetime] = {}

    def hear(self, facility: str, channel: str, at: datetime) -> None:
        """A message of a known channel arrived."""
        self._heard[facility, channel] = at

    async def run(self) -> None:
        """Writes what was heard, until cancelled; then what is left."""
        try:
            while True:
                await asyncio.sleep(EVERY)
                await self._try()
        finally:
            await self._try()

    async def _try(self) -> None:
        try:
            await self.write()
        except AWAY as fault:
            log.info("feeds_wait fault=%s", type(fault).__name__)

    async def write(self) -> None:
        """Writes what was heard since the last time. Raises what the database raises; then it is written the next time."""
        heard, self._heard = self._heard, {}
        if not heard:
            return
        try:
            async with asyncio.timeout(10), self._pool.acquire() as conn:
                rows = sorted((*name, at) for name, at in heard.items())
                await conn.execute(_WRITE, [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
        except AWAY:
            self._heard = heard | self._heard
            raise
