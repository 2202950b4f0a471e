"""From an association into the tables: an object's header bytes, and its pixels where we keep them, are durable before it is answered
well (PS3.4 section B.2.3). Called from the threads of associations; the database is asked on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import mmap
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from datetime import datetime
from pathlib import Path
from typing import Final

import asyncpg

from adapters.contract import Unreadable
from adapters.dicom.structure import check_pixels, header_bytes
from adapters.transports import dicom_scp
from adapters.transports.dicom_scp import Caller, Received, Reference
from fhir_server import telemetry
from fhir_server.imaging import objects
from fhir_server.imaging.objects import ImageObject
from fhir_server.imaging.sources import Bound, Sources
from fhir_server.ingest import inbox
from fhir_server.ingest.feeds import Feeds
from fhir_server.ingest.group_commit import AWAY, DatabaseAway, GroupCommit, Refused
from mappings.ids import shard_of

log = logging.getLogger(__name__)

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LOOK: Final = 128 * 1024
"""Bytes looked at first for the pixels; eight times as many when they do not begin there."""
_COPY: Final = 1024 * 1024
_WAITS_FOR_SENDING: Final = 60.0
_TAGS: Final = (0x0020000D, 0x0020000E, 0x00080018, 0x00080016)
"""Study, Series and SOP Instance UID, SOP Class UID."""


class ImageReceiver:
    """Takes what the DICOM server hands over. ``open`` before the first object, ``close`` after the last; on the event loop."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        sources: Sources,
        spool: Path,
        *,
        quiet: float,
        settle: float,
        clock: Callable[[], datetime],
        store_within: float = 10.0,
    ) -> None:
        """spool: folder of objects to be sent on; quiet, settle: seconds after the last object, after the end of an association."""
        self._pool = pool
        self._sources = sources
        self._spool = spool
        self._quiet = quiet
        self._settle = settle
        self._clock = clock
        self._store_within = store_within
        self._commit: GroupCommit[ImageObject, bool] = GroupCommit(pool, objects.accept, timeout=store_within)
        self.feeds = Feeds(pool)
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._touched: dict[int, set[tuple[int, str, str]]] = {}
        self._lock = threading.Lock()

    async def open(self) -> None:
        """Starts the writer."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(part.run()) for part in (self._commit, self.feeds)]
        await asyncio.sleep(0)

    async def ended_tasks(self) -> None:
        """Returns or raises when the writer ended, which it should not do before ``close``."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task

    async def close(self) -> None:
        """Writes what still waits, then stops."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def admit(self, caller: Caller) -> Bound | None:
        """The image source a caller is; None when it is nobody's."""
        found = self._sources.find(caller)
        if found is None:
            telemetry.IMAGES_REFUSED.labels("unknown", "unknown", "unknown-ae").inc()
            log.warning("dicom_caller_refused peer=%s", caller.address)
        return found

    def store(self, source: dicom_scp.Source, received: Received) -> int:
        """One object -> status of its answer. 0x0000 only when everything that is kept of it is durable."""
        assert isinstance(source, Bound)
        began = time.monotonic()
        try:
            row = self._row(source, received)
        except Unreadable as fault:
            return self._refused(source, fault.issue.key, dicom_scp.CANNOT_UNDERSTAND)
        except OSError as fault:
            # No space, no folder: the sender has to keep it.
            log.error("dicom_pixels_not_kept facility=%s fault=%s", source.facility, type(fault).__name__)
            return self._refused(source, "no-space", dicom_scp.OUT_OF_RESOURCES)
        if isinstance(row, int):
            return self._refused(source, "mismatch" if row == dicom_scp.MISMATCH else "not-dicom", row)
        try:
            fresh = self._on_loop(row)
        except (DatabaseAway, TimeoutError, CancelledError):
            return self._refused(source, "database-away", dicom_scp.OUT_OF_RESOURCES)
        except Refused:
            return self._refused(source, "store-refused", dicom_scp.CANNOT_UNDERSTAND)
        if not fresh and row.pixels == "waiting":
            self._spare(row)
        telemetry.IMAGES.labels(source.facility, source.source.name, "new" if fresh else "repeated").inc()
        telemetry.IMAGE_SECONDS.labels(source.facility, source.source.name).observe(time.monotonic() - began)
        self.feeds.hear(source.facility, source.source.name, row.received_at)
        with self._lock:
            self._touched.setdefault(received.association, set()).add((row.shard, row.facility, row.study))
        return dicom_scp.SUCCESS

    def refuse(self, source: dicom_scp.Source, status: int) -> None:
        """An object too large was refused."""
        assert isinstance(source, Bound)
        self._refused(source, "too-large", status)

    def _refused(self, source: Bound, reason: str, status: int) -> int:
        telemetry.IMAGES_REFUSED.labels(source.facility, source.source.name, reason).inc()
        log.warning(
            "dicom_object_refused facility=%s channel=%s reason=%s", source.facility, source.source.name, reason
        )
        return status

    def ended(self, source: dicom_scp.Source, association: int) -> None:
        """The studies of an association count as quiet soon after its end."""
        with self._lock:
            studies = self._touched.pop(association, set())
        if studies and self._loop is not None and not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._settled(sorted(studies)), self._loop)

    async def _settled(self, studies: list[tuple[int, str, str]]) -> None:
        # Without the database they count as quiet a little later.
        with contextlib.suppress(*AWAY):
            await objects.settle(self._pool, studies, self._settle)

    def _on_loop(self, row: ImageObject) -> bool:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(self._commit.accept(row), self._loop).result(3 * self._store_within)

    def _spare(self, row: ImageObject) -> None:
        """Removes the file of an object that its archive has already."""
        assert self._loop is not None and row.place is not None
        asked = asyncio.run_coroutine_threadsafe(objects.kept(self._pool, row.facility, [row.instance]), self._loop)
        with contextlib.suppress(*AWAY, CancelledError):
            if asked.result(self._store_within).get(row.instance) == ("sent", row.place):
                (self._spool / row.place).unlink(missing_ok=True)

    def _row(self, source: Bound, received: Received) -> ImageObject | int:
        """The object's row, its pixels kept; or a status when it is not what the request says. Raises Unreadable and OSError."""
        found = dict.fromkeys(_TAGS, b"")
        header = header_of(received.path, found)
        study, series, instance, kind = (found[tag].decode("ascii", "replace").strip(" \0") for tag in _TAGS)
        if instance != received.instance or kind != received.sop_class:
            return dicom_scp.MISMATCH
        if not all(_UID.fullmatch(uid) and len(uid) <= 64 for uid in (study, series, instance)):
            return dicom_scp.CANNOT_UNDERSTAND
        size = received.path.stat().st_size
        if size > len(header):
            with received.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                check_pixels(whole, len(header))
        pixels, place, content = "dropped", None, None
        if source.source.pixels == "folder":
            pixels = "kept"
            place, content = keep(received.path, Path(source.source.folder), Path(study) / series, instance)
        elif source.source.pixels == "forward":
            pixels = "waiting"
            place, content = keep(
                received.path, self._spool, Path(source.facility) / source.source.pacs / study, instance
            )
        return ImageObject(
            shard=shard_of(source.facility, study),
            facility=source.facility,
            channel=source.source.name,
            study=study,
            series=series,
            instance=instance,
            received_at=self._clock(),
            digest=hashlib.sha256(header).digest(),
            raw=inbox.compress(header),
            size=size,
            pixels=pixels,
            content=content,
            place=place,
            archive=source.source.pacs if pixels == "waiting" else None,
            quiet=self._quiet,
        )

    def committed(self, source: dicom_scp.Source, references: Sequence[Reference]) -> list[int]:
        """Kept is what lies in the folder, or what the archive has confirmed; what is on its way to it is waited for a while."""
        assert isinstance(source, Bound) and self._loop is not None
        until = time.monotonic() + _WAITS_FOR_SENDING
        names = [r.instance for r in references]
        while True:
            asked = asyncio.run_coroutine_threadsafe(objects.kept(self._pool, source.facility, names), self._loop)
            try:
                found = asked.result(self._store_within)
            except (*AWAY, CancelledError):
                return [dicom_scp.PROCESSING_FAILURE] * len(names)
            if time.monotonic() > until or all(pixels != "waiting" for pixels, _ in found.values()):
                break
            time.sleep(0.5)
        return [self._commitment(source, *found.get(name, ("", None))) for name in names]

    def _commitment(self, source: Bound, pixels: str, place: str | None) -> int:
        if pixels == "sent":
            return 0
        if pixels == "kept" and place is not None and (Path(source.source.folder) / place).is_file():
            return 0
        return dicom_scp.PROCESSING_FAILURE if pixels in ("waiting", "dead") else dicom_scp.NO_SUCH_INSTANCE

    def report_to(self, source: dicom_scp.Source) -> tuple[str, int] | None:
        """Where the profile says that outcomes of commitments are reported."""
        assert isinstance(source, Bound)
        host, _, port = source.source.report_to.rpartition(":")
        return (host, int(port)) if host else None


def header_of(path: Path, values: dict[int, bytes]) -> bytes:
    """The header bytes of a Part 10 file, read no further than needed; fills in values by tag. Raises Unreadable and OSError."""
    size = path.stat().st_size
    look = _LOOK
    with path.open("rb") as file:
        while True:
            file.seek(0)
            raw = file.read(look)
            whole = len(raw) >= size
            try:
                found = header_bytes(raw, values)
                if whole or len(found) < len(raw):
                    return found
            except Unreadable:
                # Also what a piece of a sound object looks like.
                if whole:
                    raise
            look *= 8


def keep(path: Path, folder: Path, below: Path, instance: str) -> tuple[str, bytes]:
    """Puts a file into a folder for good: written through, its name durable -> its place in the folder, SHA-256 of its bytes.

    The name holds the instance and the content: the same object again is the same file, another content under the same UID never
    overwrites the first. Raises OSError.
    """
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").digest()
    place = below / f"{instance}.{content[:4].hex()}.dcm"
    target = folder / place
    if target.is_file() and target.stat().st_size == path.stat().st_size:
        return place.as_posix(), content
    made = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    try:
        path.rename(part)
    except OSError:
        # Another file system.
        with path.open("rb") as source, part.open("wb") as copy:
            shutil.copyfileobj(source, copy, _COPY)
    _sync(part)
    part.rename(target)
    for changed in (target.parent, *(p.parent for p in made)):
        _sync(changed)
    return place.as_posix(), content


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
