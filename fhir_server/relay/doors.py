"""What comes in at the relay: HL7 v2 over MLLP and files of one folder. Both are answered once the message is on the relay's disk."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from adapters.contract import Unreadable
from adapters.hl7v2 import ack
from adapters.hl7v2.peek import peek
from adapters.transports.folder import DropFolder
from adapters.transports.mllp import Peer
from conformance.issue import Issue
from fhir_server.ingest.channels import NOBODY
from fhir_server.relay.queue import Full, Queue

log = logging.getLogger(__name__)

_FULL: Final = Issue(
    "relay-full", "error", "", "The relay has no room on its disk; the message was not taken: send it again later."
)
_MENDABLE: Final = "charset-unknown"
_PAUSE: Final = 5.0


class MllpDoor:
    """Answers MLLP connections (adapters.transports.mllp.Receive)."""

    def __init__(self, queue: Queue, clock: Callable[[], datetime]) -> None:
        self._queue = queue
        self._clock = clock

    async def receive(self, raw: bytes, peer: Peer) -> bytes | None:
        """AA or CA once the message is on disk; AR or CR for what is no message at all; AE or CE when there is no room. A sender that
        wants no such answer waits until there is room: it would not send the message again."""
        known = ack.facts(raw)
        at = self._clock()
        try:
            peek(raw, NOBODY)
        except Unreadable as unreadable:
            # Which character set it is written in, the profile on the server may say.
            if unreadable.issue.key != _MENDABLE:
                log.warning("relay_refused peer=%s reason=%s", peer.address, unreadable.issue.key)
                return _answer(known, "rejected", unreadable.issue, at)
        while True:
            try:
                await self._queue.put(raw, "mllp", "hl7v2", at)
            except Full:
                log.warning("relay_full peer=%s", peer.address)
                if ack.on_receipt(known.accept_ack, known.application_ack, "error") is not None:
                    return _answer(known, "error", _FULL, at)
                await asyncio.sleep(_PAUSE)
                continue
            return _answer(known, "accepted", None, at)


def _answer(known: ack.Facts, outcome: ack.Outcome, issue: Issue | None, at: datetime) -> bytes | None:
    code = ack.on_receipt(known.accept_ack, known.application_ack, outcome)
    return None if code is None else ack.acknowledge(known, code, issue, secrets.token_hex(10), at)


class FolderDoor:
    """Takes the files of a folder, each as one message; the server takes it apart."""

    def __init__(self, folder: Path, queue: Queue, most_bytes: int, clock: Callable[[], datetime]) -> None:
        self._drop = DropFolder(folder)
        self._queue = queue
        self._most = most_bytes
        self._clock = clock

    async def watch(self, seconds: float) -> None:
        """Looks every ``seconds`` until cancelled. A folder that is away, and a disk that is full, are waited for."""
        while True:
            try:
                await self.look()
            except OSError as fault:
                log.warning("relay_folder_away fault=%s", type(fault).__name__)
            except Full:
                log.warning("relay_full folder")
            await asyncio.sleep(seconds)

    async def look(self) -> int:
        """Takes what is complete; gives the number of files. A file that cannot be read or moved is left where it is, and keeps nobody
        else's waiting. Raises OSError when the folder cannot be used, and Full: then the file stays where it is."""
        await asyncio.to_thread(self._drop.prepare)
        taken = 0
        for path in await asyncio.to_thread(self._drop.complete):
            try:
                await self._take(path)
            except OSError as fault:
                # No name: it may be a patient's.
                log.warning("relay_file_left fault=%s", type(fault).__name__)
                continue
            taken += 1
        return taken

    async def _take(self, path: Path) -> None:
        raw = await asyncio.to_thread(self._drop.read, path, self._most)
        fault = "" if raw is not None else f"too-large: The file has more than {self._most} bytes; it was not read."
        if raw is not None:
            await self._queue.put(raw, "folder", "", self._clock())
        await asyncio.to_thread(self._drop.finish, path, fault)
