"""A worker: claims, converts, applies, until told to stop. Synchronous, one connection, constant memory; run as many as wanted.

An outage of the database is waited for. SIGTERM finishes the batch under way. What a killed worker held goes to others at
once, because its session is gone; what a worker that hangs holds, when its lease runs out.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from types import FrameType
from typing import Any

import psycopg

from fhir_server import clock as clock_module
from fhir_server import telemetry, tracing
from fhir_server.ingest import inbox
from fhir_server.ingest.claim import claim, session
from fhir_server.ingest.pipeline import CannotStore, Pipeline
from fhir_server.ingest.sign_of_life import EVERY, SignOfLife
from fhir_server.ingest.traced import TracedPipeline
from fhir_server.publish import ledger_resources
from fhir_server.store.body import Codec
from fhir_server.store.database import KEEPALIVE
from mappings.profile import Profile

log = logging.getLogger(__name__)

_POLL = 1.0
_LONGEST_PAUSE = 10.0
OPTIONS = (
    "-c synchronous_commit=on -c statement_timeout=300000 -c idle_in_transaction_session_timeout=60000 -c timezone=UTC"
)
_GARBAGE_AFTER = 50_000
"""Objects made before Python looks for rings among them."""
_GIVES_WAY = 5
"""Niceness of a worker beside the server it belongs to: who waits for an answer comes first."""
_GATHERS = 0.1
"""Seconds a worker waits after a small batch (less than a quarter of a full one), so that the next is no smaller: at 100 messages a
second that saves a quarter of the workers' time for a message and half of PostgreSQL's (docs/performance.md)."""
_FULL_LOOK = 500
"""Batches after which a worker looks for rings of garbage among all that it keeps."""


def run(
    url: str,
    profiles: Mapping[str, Profile],
    *,
    batch: int = 80,
    lease: float = 30.0,
    log_level: str = "INFO",
    otlp_endpoint: str = "",
    trace_ratio: float = 1.0,
    attached: bool = False,
    clock: Callable[[], datetime] = clock_module.now,
) -> None:
    """Works until SIGTERM or SIGINT; the entry of a worker process. Prints nothing.

    batch: messages in one transaction; lease: seconds after which a worker without a heartbeat loses them; attached: end also when
    standard input closes, so that no worker outlives a killed server; clock: the times it records; the rest as in Settings.
    """
    telemetry.configure(log_level)
    tracing.start(otlp_endpoint, trace_ratio, "work")
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if attached:
        threading.Thread(target=_end_with_parent, args=(stop,), daemon=True).start()
    settle()
    gc.disable()
    if attached:
        os.nice(_GIVES_WAY)
    Worker(url, profiles, stop, batch=batch, lease=lease, clock=clock).run()
    tracing.stop()


def settle() -> None:
    """Profiles and schemas are loaded and stay: looking through them for garbage again and again was a fifth of a worker's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_AFTER)


def sweep(turn: int) -> None:
    """After batch number ``turn``: frees rings of garbage among what is new, at times among all. What a batch makes has hardly any (the
    tracebacks of faults) and is free at once when it ends, so nothing is looked for while it grows."""
    gc.collect(2 if turn % _FULL_LOOK == 0 else 0)


def _end_with_parent(stop: threading.Event) -> None:
    # Not through sys.stdin: its lock, held by this thread, would make the end of the process a crash.
    while os.read(0, 4096):
        pass
    stop.set()


class Worker:
    """One worker. ``stop`` ends it after the batch under way; ``clock`` gives the times it records."""

    def __init__(
        self,
        url: str,
        profiles: Mapping[str, Profile],
        stop: threading.Event,
        *,
        batch: int = 80,
        lease: float = 30.0,
        clock: Callable[[], datetime] = clock_module.now,
    ) -> None:
        self._url = url
        self._profiles = profiles
        self._stop = stop
        self._batch = batch
        self._lease = lease
        self._clock = clock
        self._name = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._sign = SignOfLife(self._name, version("tongjian"))
        self._not_shown = frozenset(c for p in profiles.values() for c in ledger_resources.not_shown(p.catalogue))
        self._turn = 0
        self._session = ""
        self._token = ""
        self._held: list[inbox.Claimed] = []

    def run(self) -> None:
        """Returns when stopped."""
        pause = 0.1
        log.info("worker_started name=%s", self._name)
        while not self._stop.is_set():
            try:
                with psycopg.connect(
                    self._url,
                    autocommit=True,
                    application_name="tongjian-worker",
                    options=OPTIONS,
                    connect_timeout=10,
                    **KEEPALIVE,
                ) as conn:
                    self._give_back(conn)
                    self._session = session(conn)
                    self._sign.begin(conn)
                    make = TracedPipeline if tracing.on() else Pipeline
                    codec = Codec.load(conn)
                    pipeline = make(self._profiles, codec, self._clock)
                    conn.execute(f"LISTEN {inbox.READY_CHANNEL}")
                    pause = 0.1
                    self._serve(conn, pipeline, codec)
                    self._sign.end(conn)
            except (CannotStore, psycopg.OperationalError, psycopg.InterfaceError, psycopg.ProgrammingError) as fault:
                log.warning("database_away fault=%s again_in=%.1f", fault, pause, exc_info=fault)
                self._stop.wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        log.info("worker_stopped name=%s", self._name)

    def _serve(self, conn: psycopg.Connection[Any], pipeline: Pipeline, codec: Codec) -> None:
        due = time.monotonic() + EVERY
        while not self._stop.is_set():
            worked = self._work_once(conn, pipeline)
            if not worked:
                ledger_resources.publish(conn, codec, self._not_shown)
                for _ in conn.notifies(timeout=_POLL, stop_after=1):
                    pass
            elif worked < self._batch // 4:
                self._stop.wait(_GATHERS)
            sweep(self._turn)
            if time.monotonic() >= due:
                self._sign.give(conn)
                due = time.monotonic() + EVERY

    def _work_once(self, conn: psycopg.Connection[Any], pipeline: Pipeline) -> int:
        """One batch; the number of messages claimed for it."""
        self._turn += 1
        token = f"{self._name}/{self._turn}@{self._session}"
        messages = claim(conn, token, self._lease, self._batch, self._turn)
        if not messages:
            return 0
        self._token, self._held = token, messages
        with self._heartbeat(token):
            try:
                outcomes = pipeline.work(conn, token, messages)
            except inbox.LeaseLost:
                # Others have, or had, the batch: theirs counts.
                log.warning("lease_lost messages=%d", len(messages))
                outcomes = []
        self._held = []
        held = sum(o.status == "held" for o in outcomes)
        log.debug("batch messages=%d held=%d", len(messages), held)
        return len(messages)

    def _give_back(self, conn: psycopg.Connection[Any]) -> None:
        """After an outage: what was claimed when it began is free again at once, and not suspected of anything."""
        if self._held:
            inbox.release(conn, self._token, self._held)
            self._held = []

    @contextlib.contextmanager
    def _heartbeat(self, token: str) -> Iterator[None]:
        """Prolongs the lease from a thread with its own connection while a batch takes longer than a third of it."""
        done = threading.Event()
        thread = threading.Thread(target=self._beat, args=(token, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _beat(self, token: str, done: threading.Event) -> None:
        while not done.wait(self._lease / 3):
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=5, options=OPTIONS) as conn:
                    inbox.heartbeat(conn, token, self._lease)
                    self._sign.live(conn)
            except psycopg.OperationalError as fault:
                log.warning("heartbeat_missed", exc_info=fault)
