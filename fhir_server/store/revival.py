"""Keeps the embedded PostgreSQL running: whatever ends it, it is started again at the same address, and the log says so."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fhir_server.store.embedded import Embedded, EmbeddedError

log = logging.getLogger(__name__)

_LOOK_EVERY = 0.25
_LONGEST_PAUSE = 10.0


@contextmanager
def kept_alive(server: Embedded) -> Iterator[None]:
    """While inside, a server that died is revived; one that cannot start (a full disk) is tried again until it can."""
    done = threading.Event()
    thread = threading.Thread(target=_keep, args=(server, done), name="embedded database", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _keep(server: Embedded, done: threading.Event) -> None:
    pause = _LOOK_EVERY
    while not done.wait(pause):
        try:
            if server.revive():
                log.warning("embedded_database_revived pid=%d", server.pid)
            pause = _LOOK_EVERY
        except (EmbeddedError, OSError) as fault:
            pause = min(max(pause, 0.5) * 2, _LONGEST_PAUSE)
            log.error("embedded_database_down reason=%s again_in=%.0f", str(fault), pause)
