"""Files into the inbox: what a drop folder holds is recognised, peeked at and made durable, then the file is moved away.

The folder speaks for one facility. A crash between storing and moving does no harm: the same bytes are stored once. What cannot be read
is stored all the same, held with its reason, and the file goes to ``failed`` with that reason beside it.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from adapters.contract import Envelope, Unreadable
from adapters.convert import peek, recognise, split
from adapters.transports.folder import DropFolder
from conformance.issue import Issue
from fhir_server import telemetry
from fhir_server.ingest import inbox
from fhir_server.ingest.channels import Binding, Channels
from fhir_server.ingest.group_commit import Refused
from fhir_server.ingest.inbox import BACKFILL, LIVE, Arrival
from fhir_server.ingest.receive import Receiver
from mappings.facility import Channel
from mappings.profile import Profile

log = logging.getLogger(__name__)

CHANNEL = "folder"
MOST = 64 * 1024 * 1024
"""Bytes of one file."""


class FileIntake:
    """Takes the files of one folder for one facility."""

    def __init__(self, folder: Path, profile: Profile, receiver: Receiver, clock: Callable[[], datetime]) -> None:
        """receiver: open. The profile's channel named ``folder`` may set ``max_bytes`` and ``backfill``."""
        self._drop = DropFolder(folder)
        self._profile = profile
        self._receiver = receiver
        self._clock = clock
        facility = profile.facility
        channel = next((c for c in facility.channels if c.name == CHANNEL), Channel(name=CHANNEL, max_bytes=MOST))
        self._binding = Binding(facility, channel)
        self._channels = Channels([facility])

    async def watch(self, seconds: float) -> None:
        """Looks every ``seconds`` until cancelled. A folder that is away is waited for."""
        while True:
            try:
                await self.look()
            except OSError as fault:
                log.warning("folder_away facility=%s fault=%s", self._profile.id, type(fault).__name__)
            await asyncio.sleep(seconds)

    async def look(self) -> int:
        """Takes what is complete; gives the number of files. Waits while the database is away. Raises OSError."""
        await asyncio.to_thread(self._drop.prepare)
        taken = 0
        for path in await asyncio.to_thread(self._drop.complete):
            raw = await asyncio.to_thread(self._drop.read, path, self._binding.channel.max_bytes)
            faults = [self._too_large()] if raw is None else await self._take(raw)
            await asyncio.to_thread(self._drop.finish, path, "\n".join(map(_said, faults)))
            taken += 1
            log.info("file_taken facility=%s faults=%d", self._profile.id, len(faults))
        return taken

    def _too_large(self) -> Issue:
        words = f"The file has more than {self._binding.channel.max_bytes} bytes, the limit of this folder; it was not read."
        return Issue("too-large", "error", "", words)

    async def _take(self, raw: bytes) -> list[Issue]:
        """Makes every message of a file durable; gives why some cannot be read."""
        kind = recognise(raw, self._profile)
        faults: list[Issue] = []
        for message in await asyncio.to_thread(lambda: list(split(io.BytesIO(raw), kind, self._profile)) or [raw]):
            envelope, fault = await asyncio.to_thread(self._peek, message, kind)
            telemetry.RECEIVED.labels(self._profile.id, CHANNEL, kind).inc()
            try:
                await self._receiver.store(self._arrival(message, kind, envelope, fault))
            except Refused:
                fault = Issue(
                    "store-refused", "error", "", "The message could not be stored: report it to the operators."
                )
            if fault is not None:
                faults.append(fault)
            else:
                self._receiver.hear(self._profile.id, CHANNEL)
        return faults

    def _peek(self, raw: bytes, kind: str) -> tuple[Envelope | None, Issue | None]:
        try:
            found = peek(raw, self._profile, kind)
        except Unreadable as unreadable:
            return None, unreadable.issue
        if kind == "hl7v2" and self._profile.facility.senders:
            bound = self._channels.bind((self._binding,), found.sender)
            if isinstance(bound, Issue):
                return found, bound
        return found, None

    def _arrival(self, raw: bytes, kind: str, envelope: Envelope | None, fault: Issue | None) -> Arrival:
        digest = hashlib.sha256(raw).digest()
        patients = envelope.patient_keys if envelope is not None and fault is None else ()
        control_id = envelope.control_id if envelope is not None else ""
        pointers = envelope.pointers if envelope is not None else ()
        shard, keys = inbox.ordering_keys(self._profile.id, control_id or digest.hex(), patients, pointers)
        status = "quality-control" if envelope is not None and envelope.quality_control else "ready"
        return Arrival(
            shard=shard,
            facility=self._profile.id,
            channel=CHANNEL,
            format=kind,
            trigger=envelope.trigger if envelope is not None else "",
            control_id=control_id,
            sent_at=envelope.sent_at if envelope is not None else None,
            received_at=self._clock(),
            sha256=digest,
            size=len(raw),
            charset=envelope.charset if envelope is not None else "",
            lane=BACKFILL if self._binding.channel.backfill else LIVE,
            keys=keys,
            status="held" if fault is not None else status,
            issues=(fault,) if fault is not None else envelope.issues if envelope is not None else (),
            raw=inbox.compress(raw),
            part=bool(pointers),
        )


def _said(issue: Issue) -> str:
    """A line of the sidecar: key, place and words, never the value."""
    return " ".join(part for part in (f"{issue.key}:", issue.where, issue.text) if part)
