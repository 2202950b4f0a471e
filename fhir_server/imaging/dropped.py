"""Objects of DICOM that are dropped as files: their headers are gathered as those of C-STORE are, and a quiet study is one message.

The file itself stays where it was put (``done``); only the header bytes are ours. Any number may work on one database.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Final

import asyncpg

from adapters.dicom.reader import Identity, identify
from fhir_server.imaging import objects
from fhir_server.imaging.objects import ImageObject
from fhir_server.imaging.studies import Packer
from fhir_server.ingest import inbox
from fhir_server.ingest.group_commit import AWAY
from mappings.ids import shard_of
from mappings.profile import Profile

log = logging.getLogger(__name__)

_AGAIN: Final = 1.0


class DroppedImages:
    """The objects of one drop folder."""

    def __init__(
        self, pool: asyncpg.Pool, profile: Profile, channel: str, quiet: float, clock: Callable[[], datetime]
    ) -> None:
        """quiet: seconds after its last file when a study is taken to be complete."""
        self._pool = pool
        self._profile = profile
        self._channel = channel
        self._quiet = quiet
        self._clock = clock
        self._packer = Packer(pool, {profile.id: profile}, clock)

    async def take(self, raw: bytes) -> None:
        """Makes the header of one object durable; waits while the database is away.

        Raises Unreadable (adapters.dicom.reader.identify) when it is no object that could be gathered.
        """
        found = await asyncio.to_thread(identify, raw, self._profile.facility)
        row = self._row(found, len(raw))
        while True:
            try:
                async with self._pool.acquire() as conn:
                    await objects.accept(conn, [row])
                break
            except AWAY as fault:
                log.warning("dropped_image_waits fault=%s", type(fault).__name__)
            await asyncio.sleep(_AGAIN)

    def _row(self, found: Identity, size: int) -> ImageObject:
        facility = self._profile.id
        return ImageObject(
            shard=shard_of(facility, found.study),
            facility=facility,
            channel=self._channel,
            study=found.study,
            series=found.series,
            instance=found.instance,
            received_at=self._clock(),
            digest=hashlib.sha256(found.header).digest(),
            raw=inbox.compress(found.header),
            size=size,
            pixels="dropped",
            content=None,
            place=None,
            archive=None,
            quiet=self._quiet,
        )

    async def pack(self, *, last: bool = False) -> None:
        """Studies that are quiet become messages of the inbox; with ``last`` all that came by its channel. An outage is waited for."""
        try:
            if last:
                await objects.settle_channel(self._pool, self._profile.id, self._channel)
            while await self._packer.pack_one():
                pass
        except AWAY as fault:
            log.warning("image_studies_wait fault=%s", type(fault).__name__)
