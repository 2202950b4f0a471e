"""``tongjian watch``: a drop folder of one facility into the inbox, from a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from fhir_server import clock
from fhir_server.imaging.dropped import DroppedImages
from fhir_server.ingest.files import FileIntake
from fhir_server.ingest.receive import Receiver
from fhir_server.settings import Settings
from fhir_server.store.database import open_pool
from mappings.profile import Profile


async def watch_folder(
    folder: Path, profile: Profile, profiles: Mapping[str, Profile], url: str, settings: Settings, *, once: bool
) -> int:
    """Takes files until stopped; with ``once`` only what is there and complete. Gives the number of files. Raises OSError."""
    pool = await open_pool(url, 2, application_name="tongjian-watch")
    now = clock.of(settings)
    receiver = Receiver(pool, {profile.id: profile}, clock=now)
    await receiver.open()
    images = partial(DroppedImages, pool, profile, quiet=settings.dicom_study_seconds, clock=now)
    intake = FileIntake(folder, profile, receiver, now, profiles, images)
    try:
        if not once:
            await intake.watch(settings.drop_seconds)
        await intake.look()
        await asyncio.sleep(settings.drop_seconds)
        taken = await intake.look()
        await intake.end()
        return taken
    finally:
        await receiver.close()
        await pool.close()
