"""``tongjian serve``: database, API, MLLP and workers in one go, started in this order and stopped in the reverse one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import asyncpg
import psycopg
import uvicorn
from fastapi import FastAPI
from uvicorn.loops.auto import auto_loop_factory

from adapters.transports import mllp
from fhir_server import audit_retention, clock, reindexing, telemetry, tracing
from fhir_server.api.connection import Limits, limited
from fhir_server.api.edge import Edge
from fhir_server.api.messages import Doors
from fhir_server.app import create_app, open_services
from fhir_server.code_mappings import LiveProfiles
from fhir_server.imaging.wanted import wanted
from fhir_server.ingest import databases
from fhir_server.ingest.channels import listeners
from fhir_server.ingest.files import FileIntake
from fhir_server.ingest.receive import Receiver
from fhir_server.ingest.worker import settle
from fhir_server.keys import AccessError
from fhir_server.publish import deliver
from fhir_server.publish.notify import Subscribing
from fhir_server.recognition import reopen
from fhir_server.relay.batch import PATH as RELAY_PATH
from fhir_server.scrape import Scrape
from fhir_server.settings import OWN_MACHINE, Settings
from fhir_server.smart_clients import load_apps, load_clients
from fhir_server.store import access_refresh, embedded
from fhir_server.store.database import database_url, migrate, open_pool
from fhir_server.store.revival import kept_alive
from mappings.profile import Profile

log = logging.getLogger(__name__)
STOP_WITHIN = 20.0
"""Seconds a graceful stop may take before a child is killed."""


_INTAKE_CONNECTIONS = 3
"""Database connections for taking messages in, apart from those of the API: no search, however slow, makes a sender wait."""


class CannotServe(Exception):
    """The server cannot start, or not go on; the text says why and what to do."""


@contextmanager
def database(settings: Settings, *, as_it_is: bool = False) -> Iterator[str]:
    """The address of the migrated database: ``database_url``, else the embedded server of ``data_dir`` for as long as it is used.

    as_it_is: only look: an older schema stays as it is, and a data folder without a database is an error. Raises CannotServe.
    """
    if settings.database_url:
        try:
            url = database_url(settings.database_url)
            if not as_it_is:
                migrate(url)
        except ValueError as fault:
            raise CannotServe(str(fault)) from fault
        except psycopg.OperationalError as fault:
            raise CannotServe(f"DATABASE_URL cannot be reached: {fault}") from fault
        yield url
        return
    if as_it_is and not embedded.exists(settings.data_dir):
        raise CannotServe(f"There is no database in {settings.data_dir}: name its folder with --data.")
    try:
        server = embedded.start(settings.data_dir)
    except embedded.EmbeddedError as fault:
        raise CannotServe(str(fault)) from fault
    try:
        if not as_it_is:
            migrate(server.url)
        with kept_alive(server):
            yield server.url
    finally:
        server.stop()


def _bind(host: str, port: int, what: str) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=2048, reuse_port=False)
    except OSError as fault:
        raise CannotServe(
            f"The {what} port {port} on {host} cannot be opened ({fault.strerror}); choose another."
        ) from fault


def server_tls(certificate: object, key: object, client_ca: object) -> ssl.SSLContext | None:
    """The context of a server; None without a certificate. Raises CannotServe."""
    if not certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(str(certificate), str(key) if key else None)
        if client_ca:
            context.load_verify_locations(str(client_ca))
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as fault:
        raise CannotServe(f"The certificate {certificate} or its key cannot be used: {fault}") from fault
    return context


class Workers:
    """The converter processes and the image process: started again, ever more slowly, when one dies."""

    def __init__(
        self,
        settings: Settings,
        url: str,
        images: list[str] | None = None,
        pass_fds: Sequence[int] = (),
        *,
        polls: bool = False,
    ) -> None:
        """images: arguments of the image process, None for none; pass_fds: what it inherits; polls: with a poller of databases."""
        self._settings = settings
        self._commands = [["work"]] * settings.workers + ([["images", *images]] if images is not None else [])
        self._commands += [["poll"]] if polls else []
        self._pass_fds = tuple(pass_fds)
        self._environment = dict(os.environ, TONGJIAN_DATABASE_URL=url, TONGJIAN_LOG_LEVEL=settings.log_level)
        self._environment.pop("DATABASE_URL", None)
        # However this process ends, its end of the pipe closes with it, and then the attached workers end.
        self._life = os.pipe()
        self._running: list[subprocess.Popen[bytes]] = []

    def _start(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "fhir_server.cli",
            *arguments,
            "--attached",
            "--data",
            str(self._settings.data_dir),
        ]
        if self._settings.profiles_dir:
            command += ["--profiles", str(self._settings.profiles_dir)]
        inherited = self._pass_fds if arguments[0] == "images" else ()
        return subprocess.Popen(  # noqa: S603 - our own program
            command, env=self._environment, stdin=self._life[0], pass_fds=inherited
        )

    async def supervise(self) -> None:
        """Runs until cancelled; then every worker finishes its batch and ends."""
        self._running = [self._start(command) for command in self._commands]
        failures = 0
        try:
            while True:
                await asyncio.sleep(min(0.5 * 2**failures, 30))
                dead = [n for n, w in enumerate(self._running) if w.poll() is not None]
                failures = failures + 1 if dead else 0
                for n in dead:
                    log.warning("worker_restarted code=%s", self._running[n].returncode)
                    self._running[n] = self._start(self._commands[n])
        finally:
            await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        for worker in self._running:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self._running:
            try:
                worker.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        for end in self._life:
            os.close(end)


class _Http(uvicorn.Server):
    """uvicorn that leaves the signals to us (the stop has an order) and tells when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answers = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answers.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _http_configuration(settings: Settings, app: FastAPI) -> uvicorn.Config:
    tls = server_tls(settings.https_certificate, settings.https_key, settings.https_client_ca)
    if tls is None and settings.host not in OWN_MACHINE:
        log.warning("http_not_encrypted host=%s", settings.host)
    limits = Limits(settings.http_max_connections, settings.http_read_seconds, settings.http_read_seconds)
    return uvicorn.Config(
        Edge(
            app,
            max_body=settings.max_request,
            body_seconds=settings.http_read_seconds,
            slow={RELAY_PATH: settings.relay_read_seconds},
        ),
        http=limited(limits),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        ssl_context_factory=(lambda *_: tls) if tls else None,
        timeout_keep_alive=settings.http_keep_alive_seconds,
        timeout_graceful_shutdown=int(STOP_WITHIN),
    )


async def serve(settings: Settings, profiles: Mapping[str, Profile], url: str) -> None:
    """Serves until SIGTERM or SIGINT. Prints the addresses once everything answers."""
    try:
        clients, apps = load_clients(settings.clients_file), load_apps(settings.clients_file)
    except AccessError as fault:
        raise CannotServe(str(fault)) from None
    http_socket = _bind(settings.host, settings.port, "HTTP")
    port = http_socket.getsockname()[1]
    mllp_socket = _bind(settings.mllp_host, settings.mllp_port, "MLLP")
    tls = server_tls(settings.mllp_certificate, settings.mllp_key, settings.mllp_client_ca)
    dicom_socket = None
    if settings.dicom_port is not None:
        dicom_socket = _bind(settings.dicom_host, settings.dicom_port, "DICOM")
        # Its certificate is looked at now, not by a process that would be started again and again.
        server_tls(settings.dicom_certificate, settings.dicom_key, settings.dicom_client_ca)
    own_ports = [_bind(settings.mllp_host, p, "MLLP") for p in listeners(profiles)]
    if settings.sandbox_clock:
        log.warning("sandbox_clock at=%s", clock.of(settings)().isoformat())
    polled = _polls(settings, profiles)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    live = LiveProfiles(profiles)
    try:
        services = await open_services(settings, live, url)
    except AccessError as fault:
        raise CannotServe(str(fault)) from None
    known = services.rules.among(profiles)
    reopening = asyncio.create_task(reopen.reopen(services.pool, services.ledger, known, services.clock()))
    intake = await open_pool(url, _INTAKE_CONNECTIONS, application_name="tongjian-intake")
    receiver = Receiver(intake, profiles, max_bytes=settings.mllp_max_message, clock=services.clock)
    await receiver.open()
    server = await mllp.serve(
        [mllp.Listener(s, tls) for s in (mllp_socket, *own_ports)],
        receiver.receive,
        report=receiver.report,
        max_bytes=receiver.max_bytes,
        max_connections=settings.mllp_max_connections,
        idle_seconds=settings.mllp_idle_seconds,
        frame_seconds=settings.mllp_frame_seconds,
        closed=lambda reason: telemetry.CONNECTIONS_CLOSED.labels("mllp", reason).inc(),
    )
    app = create_app(services, settings.fhir_base(port), clients, apps)
    http = _Http(_http_configuration(settings, app))
    app.state.scrape = Scrape(
        services, {"http": lambda: len(http.server_state.connections), "mllp": lambda: server.connections}
    )
    app.state.intake_fault = lambda: receiver.fault
    app.state.doors = Doors(receiver)
    images = None
    if wanted(settings, profiles):
        images = ["--socket", str(dicom_socket.fileno())] if dicom_socket is not None else []
    inherited = [dicom_socket.fileno()] if dicom_socket is not None else []
    workers = asyncio.create_task(Workers(settings, url, images, inherited, polls=polled).supervise())
    dropping = _drop_folders(settings, profiles, receiver, intake, services.clock)
    following = asyncio.create_task(live.follow(services.pool))
    indexing = asyncio.create_task(reindexing.follow(services))
    keeping = asyncio.create_task(audit_retention.keep(url, settings.audit_keep_days, services.clock))
    subscribing = Subscribing(settings, settings.fhir_base(port), services.audit, clients, services.writer)
    delivering = await deliver.start(
        url, live, services.codec, services.clock, settings.delivery_keep_days, subscribing
    )
    serving = asyncio.create_task(http.serve(sockets=[http_socket]))
    receiving = asyncio.create_task(receiver.ended())
    waiting = asyncio.create_task(stop.wait())
    try:
        await http.answers.wait()
        settle()  # a look for garbage through all that is loaded would stop every request for that time
        print(f"FHIR   {settings.fhir_base(port)}", flush=True)  # noqa: T201 - the one line a script waits for
        print(f"MLLP   {settings.mllp_host}:{mllp_socket.getsockname()[1]}", flush=True)  # noqa: T201
        if dicom_socket is not None:
            place = f"{settings.dicom_host}:{dicom_socket.getsockname()[1]}"
            print(f"DICOM  {settings.dicom_ae_title}@{place}", flush=True)  # noqa: T201
        parts = (serving, receiving, workers, delivering.task, *dropping)
        await asyncio.wait((waiting, *parts), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            # A part that ended by itself would leave a server that looks well and does half its work.
            raise CannotServe(f"The server ends because a part of it did: {_fault_of(*parts)}.")
    finally:
        await server.stop()
        http.should_exit = True
        await asyncio.wait([serving])
        for task in (*dropping, workers, following, keeping, receiving, waiting, reopening, indexing):
            task.cancel()
        await asyncio.wait([*dropping, workers, following, keeping, reopening, indexing])
        await delivering.stop(STOP_WITHIN)
        await receiver.close()
        await services.audit.close()
        await services.ledger.close()
        for pool in (intake, services.pool, services.keyed):
            await _close(pool)
        await asyncio.to_thread(services.writer.close)


def _polls(settings: Settings, profiles: Mapping[str, Profile]) -> bool:
    """Whether databases are polled. Raises CannotServe for a file of connections that cannot be used, or lacks one."""
    if settings.databases_file is None:
        return False
    try:
        known = databases.load(settings.databases_file)
    except databases.DatabasesError as fault:
        raise CannotServe(str(fault)) from None
    wanted_ones = {(name, poll.database) for name, profile in profiles.items() for poll in profile.facility.polls}
    if missing := sorted(f"{database} ({facility})" for facility, database in wanted_ones if database not in known):
        raise CannotServe(f"{settings.databases_file} lacks the databases {', '.join(missing)} that profiles poll.")
    return bool(wanted_ones)


def _drop_folders(
    settings: Settings,
    profiles: Mapping[str, Profile],
    receiver: Receiver,
    pool: asyncpg.Pool,
    now: Callable[[], datetime],
) -> list[asyncio.Task[None]]:
    """One task for each facility folder of ``drop_dir``. Raises CannotServe when there is none."""
    if settings.drop_dir is None:
        return []
    folders = {name: settings.drop_dir / name for name in profiles}
    found = {name: folder for name, folder in folders.items() if folder.is_dir()}
    if not found:
        raise CannotServe(
            f"drop_dir {settings.drop_dir} has no folder named like a facility ({', '.join(sorted(profiles))})."
        )
    from fhir_server.imaging.dropped import DroppedImages  # noqa: PLC0415 - a DICOM library that only who has folders needs

    images = partial(DroppedImages, pool, quiet=settings.dicom_study_seconds, clock=now)
    intakes = [
        FileIntake(folder, profiles[name], receiver, now, profiles, partial(images, profiles[name]))
        for name, folder in found.items()
    ]
    return [asyncio.create_task(intake.watch(settings.drop_seconds)) for intake in intakes]


def _fault_of(*parts: asyncio.Task[None]) -> str:
    """The type of what ended a part; its text may quote patient data."""
    faults = [part.exception() for part in parts if part.done() and not part.cancelled()]
    for fault in faults:
        if fault is not None:
            log.critical("part_ended fault=%s", fault, exc_info=fault)
            return type(fault).__name__
    return "without a reason"


async def _close(pool: asyncpg.Pool) -> None:
    try:
        async with asyncio.timeout(STOP_WITHIN):
            await pool.close()
    except TimeoutError:
        # The database does not answer. What was acknowledged is in it.
        pool.terminate()


def run(settings: Settings, profiles: Mapping[str, Profile]) -> None:
    """Serve until stopped. Raises CannotServe before anything is served."""
    telemetry.configure(settings.log_level)
    tracing.start(settings.otlp_endpoint, settings.trace_ratio, "serve")
    try:
        # The loop of uvicorn's choice, uvloop where there is one: a fifth less work for each request.
        with database(settings) as url, asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            with psycopg.connect(url) as conn:
                access_refresh.settle(conn, datetime.now(UTC))
            runner.run(serve(settings, profiles, url))
    finally:
        tracing.stop()
