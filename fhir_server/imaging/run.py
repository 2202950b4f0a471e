"""The image process: DICOM server, packing of quiet studies, sending on of pixels, polling of archives.

`tongjian serve` starts it beside the workers, so that no study, however large, makes somebody wait for an answer.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

import asyncpg
import psycopg

from adapters.transports import dicom_scp
from fhir_server import clock, telemetry
from fhir_server.imaging import forward
from fhir_server.imaging.archive import Archive
from fhir_server.imaging.ask import asking
from fhir_server.imaging.forward import Forwarder
from fhir_server.imaging.poll import Poller
from fhir_server.imaging.receive import ImageReceiver
from fhir_server.imaging.sources import Sources
from fhir_server.imaging.studies import Packer
from fhir_server.ingest.sign_of_life import EVERY, IMAGES, SignOfLife
from fhir_server.settings import Settings
from fhir_server.store.database import KEEPALIVE, open_pool
from mappings.profile import Profile

log = logging.getLogger(__name__)

SPOOL: Final = "dicom-spool"
"""Folder below data_dir: what is arriving, and what waits to be sent on."""
_CONNECTIONS: Final = 6


class CannotReceive(Exception):
    """The process cannot start; the text says why and what to do."""


def run(
    settings: Settings,
    profiles: Mapping[str, Profile],
    url: str,
    *,
    bound: socket.socket | None,
    tls: ssl.SSLContext | None,
    attached: bool,
) -> None:
    """Works until SIGTERM or SIGINT. bound: socket of the DICOM server, None for none; attached: end also when standard input closes.

    Raises CannotReceive.
    """
    telemetry.configure(settings.log_level)
    # Their own lines quote what peers send.
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # The threads of an association hand over to each other for every object.
    sys.setswitchinterval(0.0005)
    spool = settings.data_dir / SPOOL
    spool.mkdir(parents=True, exist_ok=True)
    with (spool / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CannotReceive(f"Another image process works in {spool}.") from None
        asyncio.run(_run(settings, profiles, url, bound, tls, attached=attached))


async def _run(
    settings: Settings,
    profiles: Mapping[str, Profile],
    url: str,
    bound: socket.socket | None,
    tls: ssl.SSLContext | None,
    *,
    attached: bool,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if attached:
        threading.Thread(target=_end_with_parent, args=(loop, stop), daemon=True).start()
    over = threading.Event()
    life = threading.Thread(target=_live, args=(url, over), daemon=True)
    spool = settings.data_dir / SPOOL
    now = clock.of(settings)
    pool = await open_pool(url, _CONNECTIONS, application_name="tongjian-images")
    outgoing = spool / "outgoing"
    await forward.sweep(pool, outgoing)
    sources = Sources(profiles)
    receiver = ImageReceiver(
        pool,
        sources,
        outgoing,
        quiet=settings.dicom_study_seconds,
        settle=settings.dicom_release_seconds,
        clock=now,
    )
    await receiver.open()
    server = None
    if bound is not None:
        server = dicom_scp.serve(
            bound,
            receiver,
            ae_title=settings.dicom_ae_title,
            incoming=spool / "incoming",
            limits=_limits(settings),
            tls=tls,
        )
    parts = [Packer(pool, profiles, now).run(), receiver.ended_tasks()]
    parts += [forwarder.run() for forwarder in _forwarders(pool, profiles, outgoing)]
    parts += [poller.run() for poller in _pollers(pool, profiles, settings)]
    tasks = [asyncio.create_task(part) for part in parts]
    waiting = asyncio.create_task(_until(stop))
    life.start()
    log.info("images_started sources=%d", len(sources.all()))
    try:
        await asyncio.wait((waiting, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                await task
    finally:
        if server is not None:
            await asyncio.to_thread(server.stop)
        for task in (waiting, *tasks):
            task.cancel()
        await asyncio.gather(waiting, *tasks, return_exceptions=True)
        await receiver.close()
        await pool.close()
        over.set()
        await asyncio.to_thread(life.join)


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()


def _limits(settings: Settings) -> dicom_scp.Limits:
    return dicom_scp.Limits(
        max_associations=settings.dicom_max_associations,
        max_pdu=settings.dicom_max_pdu,
        max_object=settings.dicom_max_object,
        idle_seconds=settings.dicom_idle_seconds,
        pdu_seconds=min(30.0, settings.dicom_idle_seconds),
        object_seconds=settings.dicom_object_seconds,
        closed=lambda reason: telemetry.IMAGE_CONNECTIONS_CLOSED.labels(reason).inc(),
    )


def _forwarders(pool: asyncpg.Pool, profiles: Mapping[str, Profile], outgoing: Path) -> list[Forwarder]:
    """One for each archive that a profile has with a DICOMweb address: also for what a former profile sent there."""
    return [
        Forwarder(pool, profile.id, Archive(pacs), outgoing)
        for profile in profiles.values()
        for pacs in profile.facility.pacs
        if pacs.dicomweb
    ]


def _pollers(pool: asyncpg.Pool, profiles: Mapping[str, Profile], settings: Settings) -> list[Poller]:
    return [
        Poller(
            pool,
            profile,
            pacs,
            asking(Archive(pacs), settings.dicom_ae_title),
            quiet=settings.dicom_study_seconds,
            clock=clock.of(settings),
        )
        for profile in profiles.values()
        for pacs in profile.facility.pacs
        if pacs.poll
    ]


def _end_with_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


def _live(url: str, over: threading.Event) -> None:
    """Writes the totals of this process every few seconds, as a worker does."""
    sign = SignOfLife(f"{IMAGES}{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}", version("tongjian"))
    while not over.is_set():
        try:
            with psycopg.connect(url, autocommit=True, application_name="tongjian-images", **KEEPALIVE) as conn:
                sign.begin(conn)
                while not over.wait(EVERY):
                    sign.give(conn)
                sign.end(conn)
        except psycopg.OperationalError as fault:
            log.warning("database_away fault=%s", type(fault).__name__)
            over.wait(EVERY)
