"""Objects whose pixels go on to an archive (STOW-RS): kept in the spool until it has confirmed them, however long it is away."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

import asyncpg

from fhir_server import telemetry
from fhir_server.imaging import objects
from fhir_server.imaging.archive import Archive
from fhir_server.ingest.group_commit import AWAY

log = logging.getLogger(__name__)

_LOOK_EVERY: Final = 1.0
_AT_ONCE: Final = 4
_LEASE: Final = 900.0
_LONGEST: Final = 300.0
_MOST: Final = 20
"""Attempts after which an object that the archive answers with an error is given up; one that is away is waited for."""

_TAKE = """
UPDATE image_object o SET due = clock_timestamp() + make_interval(secs => $3), attempts = o.attempts + 1
FROM (SELECT shard, facility, study, instance FROM image_object
      WHERE pixels = 'waiting' AND facility = $1 AND archive = $2 AND due <= clock_timestamp()
      ORDER BY due LIMIT $4 FOR UPDATE SKIP LOCKED) t
WHERE o.shard = t.shard AND o.facility = t.facility AND o.study = t.study AND o.instance = t.instance
RETURNING o.shard, o.facility, o.study, o.instance, o.place, o.attempts
"""
_DONE = """
UPDATE image_object SET pixels = $6, due = CASE WHEN $6 = 'waiting' THEN clock_timestamp() + make_interval(secs => $7) END, reason = $8
WHERE shard = $1 AND facility = $2 AND study = $3 AND instance = $4 AND place = $5 AND pixels = 'waiting'
"""


class Forwarder:
    """Sends what waits for one archive, a few objects at once."""

    def __init__(self, pool: asyncpg.Pool, facility: str, archive: Archive, spool: Path) -> None:
        self._pool = pool
        self._facility = facility
        self._archive = archive
        self._spool = spool

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                try:
                    while await self.send_some():
                        pass
                except AWAY as fault:
                    log.warning("image_forward_waits fault=%s", type(fault).__name__)
                await asyncio.sleep(_LOOK_EVERY)
        finally:
            await self._archive.close()

    async def send_some(self) -> bool:
        """Tries what is due; False when nothing is, or the archive is away. Raises what asyncpg raises."""
        rows = await self._pool.fetch(_TAKE, self._facility, self._archive.pacs.name, _LEASE, _AT_ONCE)
        verdicts = await asyncio.gather(*(self._send(row) for row in rows))
        return bool(rows) and "away" not in verdicts

    async def _send(self, row: asyncpg.Record) -> str:
        path = self._spool / row["place"]
        found = await self._archive.store(path)
        pixels = {"stored": "sent", "refused": "dead"}.get(found.verdict, "waiting")
        if found.verdict == "again" and row["attempts"] >= _MOST:
            pixels = "dead"
        pause = min(2.0 ** min(row["attempts"], 9), _LONGEST)
        key = (row["shard"], row["facility"], row["study"], row["instance"], row["place"])
        await self._pool.execute(_DONE, *key, pixels, pause, None if pixels == "sent" else found.reason)
        telemetry.IMAGES_FORWARDED.labels(self._facility, self._archive.pacs.name, found.verdict).inc()
        if pixels == "sent":
            path.unlink(missing_ok=True)
        else:
            log.warning(
                "image_not_forwarded facility=%s archive=%s reason=%s",
                self._facility,
                self._archive.pacs.name,
                found.reason,
            )
        return found.verdict


async def sweep(pool: asyncpg.Pool, spool: Path) -> int:
    """Removes files of the spool that nothing waits for: their archive has them, or their sender was never answered. Run before the
    first object is taken. Gives their number."""
    return await asyncio.to_thread(_remove_others, spool, await objects.places(pool))


def _remove_others(spool: Path, wanted: set[str]) -> int:
    left = [path for path in spool.rglob("*") if path.is_file() and path.relative_to(spool).as_posix() not in wanted]
    for path in left:
        path.unlink()
    return len(left)
