"""Studies that are quiet go to the inbox: everything known of one as one package, once for each state it comes to rest in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

import asyncpg

from adapters.dicom.package import pack
from fhir_server import telemetry
from fhir_server.ingest import inbox
from fhir_server.ingest.group_commit import AWAY
from fhir_server.ingest.intake import Intake
from mappings.facility import Channel
from mappings.profile import Profile

log = logging.getLogger(__name__)

FORMAT: Final = "dicom"
_LOOK_EVERY: Final = 1.0
_LEASE: Final = 60.0
"""Seconds after which a study whose packing was not finished is packed again; the same bytes are stored once."""

_TAKE = """
UPDATE image_study s SET due = clock_timestamp() + make_interval(secs => $1)
FROM (SELECT shard, facility, study FROM image_study
      WHERE due <= clock_timestamp() AND facility = ANY($2::text[])
      ORDER BY due LIMIT 1 FOR UPDATE SKIP LOCKED) t
WHERE s.shard = t.shard AND s.facility = t.facility AND s.study = t.study
RETURNING s.shard, s.facility, s.study, s.channel, s.version
"""
_HEADERS = "SELECT header FROM image_object WHERE shard = $1 AND facility = $2 AND study = $3 ORDER BY instance"
_DONE = """
UPDATE image_study SET due = NULL, packed = clock_timestamp()
WHERE shard = $1 AND facility = $2 AND study = $3 AND version = $4
"""


class Packer:
    """Looks for quiet studies. Any number may run on one database."""

    def __init__(self, pool: asyncpg.Pool, profiles: Mapping[str, Profile], clock: Callable[[], datetime]) -> None:
        self._pool = pool
        self._profiles = profiles
        self._clock = clock
        self._intakes = {
            (p.id, source.name): Intake(p, Channel(name=source.name, backfill=source.backfill))
            for p in profiles.values()
            for source in p.facility.image_sources
        }

    async def run(self) -> None:
        """Until cancelled. An outage of the database is waited for."""
        while True:
            try:
                while await self.pack_one():
                    pass
            except AWAY as fault:
                log.warning("image_studies_wait fault=%s", type(fault).__name__)
            await asyncio.sleep(_LOOK_EVERY)

    async def pack_one(self) -> bool:
        """Puts one quiet study into the inbox; False when there is none. Raises what asyncpg raises."""
        study = await self._pool.fetchrow(_TAKE, _LEASE, list(self._profiles))
        if study is None:
            return False
        key = (study["shard"], study["facility"], study["study"])
        rows = await self._pool.fetch(_HEADERS, *key)
        raw = await asyncio.to_thread(lambda: pack(inbox.decompress(r["header"]) for r in rows))
        name = (study["facility"], study["channel"])
        # A source that left the profile since: its images are here all the same.
        intake = self._intakes.get(name) or Intake(self._profiles[name[0]], Channel(name=name[1]))
        await put(self._pool, intake, raw, self._clock())
        await self._pool.execute(_DONE, *key, study["version"])
        log.info("image_study_packed facility=%s channel=%s objects=%d", study["facility"], study["channel"], len(rows))
        return True


async def put(pool: asyncpg.Pool, intake: Intake, raw: bytes, received_at: datetime) -> bool:
    """A study package into the inbox; False when the same bytes are there. Raises what asyncpg raises."""
    row, _ = await asyncio.to_thread(intake.arrival, raw, FORMAT, received_at)
    async with pool.acquire() as conn:
        (accepted,) = await inbox.accept(conn, [row])
        await conn.execute(f"NOTIFY {inbox.READY_CHANNEL}")
    if accepted.fresh:
        telemetry.IMAGE_STUDIES.labels(row.facility, row.channel).inc()
    return accepted.fresh
