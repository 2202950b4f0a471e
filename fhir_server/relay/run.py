"""``tongjian relay``: the doors, the queue and the forwarder in one process, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
import socket
import sqlite3
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from adapters.transports import mllp
from fhir_server import clock
from fhir_server.relay.doors import FolderDoor, MllpDoor
from fhir_server.relay.forward import Forwarder, Way
from fhir_server.relay.queue import Busy, Queue
from fhir_server.settings import OWN_MACHINE, Settings


class CannotRelay(Exception):
    """The relay cannot start, or not go on; the text says why and what to do."""


def folder_of(settings: Settings) -> Path:
    """Where the queue is."""
    return settings.data_dir / "relay"


def way_of(settings: Settings) -> Way:
    """How the server is reached. Raises CannotRelay."""
    parts = urlsplit(settings.relay_server)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise CannotRelay(
            "relay_server is the server's address without a path, such as https://tongjian.county.example:8443."
        )
    if parts.scheme == "http" and parts.hostname not in OWN_MACHINE:
        raise CannotRelay("relay_server has to be an https address: messages and the secret would travel in the clear.")
    if settings.relay_secret_file is None or not settings.relay_secret_file.is_file():
        raise CannotRelay("relay_secret_file is not a file: it holds the token, or the secret of relay_client.")
    tls = None
    if parts.scheme == "https":
        try:
            tls = ssl.create_default_context(cafile=settings.relay_ca)
        except (OSError, ssl.SSLError):
            raise CannotRelay(f"relay_ca {settings.relay_ca} is not a PEM file of certificates.") from None
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
    return Way(
        settings.relay_server.rstrip("/"),
        settings.relay_secret_file,
        settings.relay_client,
        tls,
        settings.relay_name or socket.gethostname()[:80],
        settings.relay_batch_bytes,
        settings.relay_answer_seconds,
        settings.relay_longest_pause_seconds,
    )


async def relay(settings: Settings) -> None:
    """Relays until stopped. Prints the address once it listens. Raises CannotRelay."""
    way = way_of(settings)
    try:
        queue = Queue(
            folder_of(settings), most_bytes=settings.relay_max_bytes, keep_free=settings.relay_keep_free_bytes
        )
    except Busy as fault:
        raise CannotRelay(str(fault)) from None
    except (OSError, sqlite3.Error) as fault:
        raise CannotRelay(f"The queue in {folder_of(settings)} cannot be opened ({type(fault).__name__}).") from None
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = None
    tasks: list[asyncio.Task[None]] = []
    try:
        listening = _bind(settings)
        door = MllpDoor(queue, clock.now)
        server = await mllp.serve(
            [mllp.Listener(listening, _tls(settings))],
            door.receive,
            max_bytes=settings.mllp_max_message,
            max_connections=settings.mllp_max_connections,
            idle_seconds=settings.mllp_idle_seconds,
            frame_seconds=settings.mllp_frame_seconds,
        )
        tasks.append(asyncio.create_task(Forwarder(queue, way, clock.now).run()))
        if settings.relay_drop_dir is not None:
            folder = FolderDoor(settings.relay_drop_dir, queue, settings.mllp_max_message, clock.now)
            tasks.append(asyncio.create_task(folder.watch(settings.drop_seconds)))
        print(f"MLLP   {settings.mllp_host}:{listening.getsockname()[1]}", flush=True)  # noqa: T201 - the line a script waits for
        waiting = [asyncio.create_task(stop.wait()), asyncio.create_task(queue.damaged.wait())]
        await asyncio.wait([*waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for wait in waiting:
            wait.cancel()
        if queue.damaged.is_set():
            raise CannotRelay("The queue file is damaged: start the relay again, it saves what can be read of it.")
        for task in tasks:
            if task.done() and (ended := task.exception()) is not None:
                raise CannotRelay(f"The relay ends because a part of it did: {type(ended).__name__}.") from ended
    finally:
        if server is not None:
            await server.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await queue.close()


def _bind(settings: Settings) -> socket.socket:
    try:
        return socket.create_server((settings.mllp_host, settings.mllp_port))
    except OSError as fault:
        raise CannotRelay(
            f"The MLLP port {settings.mllp_port} cannot be opened ({fault.strerror}); choose another."
        ) from None


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.mllp_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.mllp_certificate, settings.mllp_key)
        if settings.mllp_client_ca:
            context.load_verify_locations(settings.mllp_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError):
        raise CannotRelay(f"The certificate {settings.mllp_certificate} or its key cannot be used.") from None
    return context
