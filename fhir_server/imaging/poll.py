"""Polling an archive: new and grown studies become packages in the inbox, none twice, none of the overlap missed.

The archive is asked day by day (Study Date), from ``overlap_hours`` before the day up to which everything was seen. Every study found
is a row, so that a stop at any place goes on there; one whose number of instances, patient or order changed is fetched again, and every
hour one of an archive that tells no number (0020,1208 is optional, PS3.4 table C.6-5). Tables archive_poll, archive_study.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from math import ceil
from typing import Final

import asyncpg

from fhir_server.imaging.archive import ArchiveAway
from fhir_server.imaging.ask import Asking, Study
from fhir_server.imaging.found import NotUnderstood, package
from fhir_server.imaging.studies import put
from fhir_server.ingest.group_commit import AWAY
from fhir_server.ingest.intake import Intake
from mappings.facility import Channel, Pacs
from mappings.ids import shard_of
from mappings.profile import Profile

log = logging.getLogger(__name__)

_UID = re.compile(r"[0-9.]{1,64}")
_LEASE: Final = 300.0
_LONGEST: Final = 3600.0
_AGAIN: Final = 3600.0
"""Seconds after which a study without a known number of instances may have grown."""

_SEEN = """
INSERT INTO archive_study AS s (shard, facility, archive, study, day, instances, told, due)
SELECT a.shard, $1, $2, a.study, $3, a.instances, a.told, clock_timestamp() + make_interval(secs => $4)
FROM unnest($5::smallint[], $6::text[], $7::integer[], $8::text[]) AS a(shard, study, instances, told)
ON CONFLICT (shard, facility, archive, study) DO UPDATE SET
    instances = EXCLUDED.instances, told = EXCLUDED.told, fetched = NULL, attempts = 0, due = EXCLUDED.due
WHERE (s.instances, s.told) <> (EXCLUDED.instances, EXCLUDED.told)
   OR (EXCLUDED.instances < 0 AND s.fetched < clock_timestamp() - make_interval(secs => $9))
"""
_DAY = """
INSERT INTO archive_poll (facility, archive, day, asked) VALUES ($1, $2, $3, clock_timestamp())
ON CONFLICT (facility, archive) DO UPDATE SET day = EXCLUDED.day, asked = EXCLUDED.asked, reason = NULL
"""
_TAKE = """
UPDATE archive_study s SET due = clock_timestamp() + make_interval(secs => $3), attempts = s.attempts + 1
FROM (SELECT shard, study FROM archive_study
      WHERE facility = $1 AND archive = $2 AND fetched IS NULL AND due <= clock_timestamp()
      ORDER BY due LIMIT 1 FOR UPDATE SKIP LOCKED) t
WHERE s.shard = t.shard AND s.facility = $1 AND s.archive = $2 AND s.study = t.study
RETURNING s.shard, s.study, s.instances, s.told, s.attempts
"""
_FETCHED = """
UPDATE archive_study SET fetched = clock_timestamp(), due = NULL
WHERE shard = $1 AND facility = $2 AND archive = $3 AND study = $4 AND instances = $5 AND told = $6
"""
_LATER = """
UPDATE archive_study SET due = clock_timestamp() + make_interval(secs => $5)
WHERE shard = $1 AND facility = $2 AND archive = $3 AND study = $4 AND fetched IS NULL
"""


class Poller:
    """One archive of one facility."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        profile: Profile,
        pacs: Pacs,
        asking: Asking,
        *,
        quiet: float,
        clock: Callable[[], datetime],
    ) -> None:
        """quiet: seconds between the first sight of a study, or of its growth, and its fetching."""
        self._pool = pool
        self._pacs = pacs
        self._asking = asking
        self._quiet = quiet
        self._clock = clock
        self._zone = profile.zone
        self._name = (profile.id, pacs.name)
        self._intake = Intake(profile, Channel(name=pacs.name))

    async def run(self) -> None:
        """Until cancelled. An archive or database that is away is waited for."""
        while True:
            try:
                await self.round()
            except AWAY as fault:
                log.warning("archive_poll_waits fault=%s", type(fault).__name__)
            await asyncio.sleep(self._pacs.poll_seconds)

    async def round(self) -> int:
        """Asks for new studies, then fetches what is due; gives the number of packages that were new. Raises what asyncpg raises."""
        try:
            await self._look()
        except ArchiveAway as fault:
            log.warning("archive_away facility=%s archive=%s reason=%s", *self._name, str(fault))
            await self._pool.execute(
                "UPDATE archive_poll SET reason = $3 WHERE facility = $1 AND archive = $2", *self._name, str(fault)
            )
            return 0
        fresh = 0
        while (study := await self._pool.fetchrow(_TAKE, *self._name, _LEASE)) is not None:
            fresh += await self._fetch(study)
        return fresh

    async def _look(self) -> None:
        today = self._clock().astimezone(self._zone).date()
        known = await self._pool.fetchval(
            "SELECT day FROM archive_poll WHERE facility = $1 AND archive = $2", *self._name
        )
        first = date.fromisoformat(known) if known else self._pacs.since or today
        day = first - timedelta(days=ceil(self._pacs.overlap_hours / 24)) if known else first
        # One day ahead: the clock of a modality may be.
        while day <= today + timedelta(days=1):
            found = await self._asking.studies(day)
            await self._pool.execute(
                _SEEN, *self._name, day.isoformat(), self._quiet, *_columns(self._name[0], found), _AGAIN
            )
            await self._pool.execute(_DAY, *self._name, min(max(day, first), today).isoformat())
            day += timedelta(days=1)

    async def _fetch(self, study: asyncpg.Record) -> bool:
        key = (study["shard"], *self._name, study["study"])
        try:
            raw = await asyncio.to_thread(package, await self._asking.instances(study["study"]))
            fresh = await put(self._pool, self._intake, raw, self._clock())
        except (ArchiveAway, NotUnderstood) as fault:
            log.warning("archive_study_not_fetched facility=%s archive=%s reason=%s", *self._name, str(fault))
            await self._pool.execute(_LATER, *key, min(10.0 * 2 ** min(study["attempts"], 9), _LONGEST))
            return False
        await self._pool.execute(_FETCHED, *key, study["instances"], study["told"])
        return fresh


def _columns(facility: str, found: list[Study]) -> tuple[list[int], list[str], list[int], list[str]]:
    wanted = [s for s in found if _UID.fullmatch(s.uid)]
    return (
        [shard_of(facility, s.uid) for s in wanted],
        [s.uid for s in wanted],
        [s.instances for s in wanted],
        [s.told for s in wanted],
    )
