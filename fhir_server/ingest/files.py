"""Files into the inbox: what a drop folder holds is recognised, peeked at and made durable, then the file is moved away.

The folder speaks for one facility. A crash between storing and moving does no harm: the same bytes are stored once. What cannot be read
is stored all the same, held with its reason, and the file goes to ``failed`` with that reason beside it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol

from adapters.contract import Unreadable
from adapters.dicom.signature import is_object
from adapters.hl7v2.batch import shortage
from adapters.transports.folder import DropFolder
from conformance.issue import Issue
from fhir_server import telemetry
from fhir_server.ingest.group_commit import Refused
from fhir_server.ingest.intake import Intake
from fhir_server.ingest.receive import Receiver
from mappings.facility import Channel
from mappings.profile import Profile

log = logging.getLogger(__name__)

CHANNEL = "folder"
MOST = 64 * 1024 * 1024
"""Bytes of one file."""


class Gathering(Protocol):
    """Objects of one study come as many files and are one message (fhir_server.imaging.dropped)."""

    async def take(self, raw: bytes) -> None:
        """Makes one object durable. Raises Unreadable when it is none that could be gathered."""
        ...

    async def pack(self, *, last: bool = False) -> None:
        """Studies that are quiet, or with ``last`` all that were taken, go to the inbox."""
        ...


class FileIntake:
    """Takes the files of one folder for one facility."""

    def __init__(
        self,
        folder: Path,
        profile: Profile,
        receiver: Receiver,
        clock: Callable[[], datetime],
        others: Mapping[str, Profile],
        images: Callable[[str], Gathering],
    ) -> None:
        """receiver: open; images: gathers objects of DICOM that come by a channel (its name);
        others: all profiles. The profile's channel named ``folder`` may set ``max_bytes`` and ``backfill``."""
        self._drop = DropFolder(folder)
        self._profile = profile
        self._receiver = receiver
        self._clock = clock
        facility = profile.facility
        channel = next((c for c in facility.channels if c.name == CHANNEL), Channel(name=CHANNEL, max_bytes=MOST))
        self._intake = Intake(profile, channel, others)
        self._images = images(channel.name)

    async def watch(self, seconds: float) -> None:
        """Looks every ``seconds`` until cancelled. A folder that is away is waited for."""
        while True:
            try:
                await self.look()
            except OSError as fault:
                log.warning("folder_away facility=%s fault=%s", self._profile.id, type(fault).__name__)
            await asyncio.sleep(seconds)

    async def look(self) -> int:
        """Takes what is complete; gives the number of files. Waits while the database is away. A file that cannot be read or moved is
        left where it is, and keeps nobody else's waiting. Raises OSError when the folder cannot be used."""
        await asyncio.to_thread(self._drop.prepare)
        taken = 0
        for path in await asyncio.to_thread(self._drop.complete):
            try:
                raw = await asyncio.to_thread(self._drop.read, path, self._intake.channel.max_bytes)
                faults = [self._too_large()] if raw is None else await self._take(raw)
                await asyncio.to_thread(self._drop.finish, path, "\n".join(map(_said, faults)))
            except OSError as fault:
                # No name: it may be a patient's.
                log.warning("file_left facility=%s fault=%s", self._profile.id, type(fault).__name__)
                continue
            taken += 1
            log.info("file_taken facility=%s faults=%d", self._profile.id, len(faults))
        await self._images.pack()
        return taken

    async def end(self) -> None:
        """Nothing more comes: studies that were begun go to the inbox as they are."""
        await self._images.pack(last=True)

    def _too_large(self) -> Issue:
        words = (
            f"The file has more than {self._intake.channel.max_bytes} bytes, the limit of this folder; it was not read."
        )
        return Issue("too-large", "error", "", words)

    async def _take(self, raw: bytes) -> list[Issue]:
        """Makes every message of a file durable; gives why some cannot be read."""
        faults: list[Issue] = []
        if is_object(raw):
            telemetry.RECEIVED.labels(self._profile.id, CHANNEL, "dicom").inc()
            try:
                await self._images.take(raw)
            except Unreadable:
                pass  # Kept and held with the reason, as any other file.
            else:
                self._receiver.hear(self._profile.id, CHANNEL)
                return []
        kind, messages = await asyncio.to_thread(self._intake.messages, raw)
        for message in messages:
            arrival, fault = await asyncio.to_thread(self._intake.arrival, message, kind, self._clock())
            telemetry.RECEIVED.labels(self._profile.id, CHANNEL, kind).inc()
            try:
                await self._receiver.store(arrival)
            except Refused:
                fault = Issue(
                    "store-refused", "error", "", "The message could not be stored: report it to the operators."
                )
            if fault is not None:
                faults.append(fault)
            else:
                self._receiver.hear(self._profile.id, CHANNEL)
        short = await asyncio.to_thread(shortage, raw) if kind == "hl7v2" else None
        return [short, *faults] if short is not None else faults


def _said(issue: Issue) -> str:
    """A line of the sidecar: key, place and words, never the value."""
    return " ".join(part for part in (f"{issue.key}:", issue.where, issue.text) if part)
