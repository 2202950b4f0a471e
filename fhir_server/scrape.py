"""What /metrics shows beside the counters of the server process: gauges read from the database and the pools at scrape time, and the
totals of the workers. At most one look at the database in REFRESH seconds, however many scrapers there are."""

from __future__ import annotations

import asyncio
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

import asyncpg
import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import REGISTRY, Collector

from fhir_server import telemetry
from fhir_server.ingest import backlog
from fhir_server.ingest.sign_of_life import add
from fhir_server.services import Services
from fhir_server.store.database import Borrowed

REFRESH: Final = 5.0
_WITHIN: Final = 5.0
_AWAY: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class WorkerCounts(Collector):
    """The sums of what the workers counted (telemetry.WORKER_METRICS)."""

    def __init__(self) -> None:
        self.totals: Mapping[str, float] = {}

    def collect(self) -> Iterable[Metric]:
        """One family per metric, also while it has no samples."""
        samples = [(*orjson.loads(key), value) for key, value in self.totals.items()]
        for metric in telemetry.WORKER_METRICS:
            for empty in metric.collect():
                family = Metric(empty.name, empty.documentation, empty.type)
                names = {empty.name + suffix for suffix in ("_total", "_bucket", "_count", "_sum")}
                for name, labels, value in samples:
                    if name in names:
                        family.add_sample(name, labels, value)
                yield family


class Scrape:
    """The answer of /metrics. connections: server name -> number of connections open now."""

    def __init__(self, services: Services, connections: Mapping[str, Callable[[], int]]) -> None:
        self._services = services
        self._connections = connections
        self._counts = WorkerCounts()
        self._registry = CollectorRegistry()
        self._registry.register(self._counts)
        self._turn = asyncio.Lock()
        self._looked = -REFRESH

    async def text(self) -> bytes:
        """All metrics in the Prometheus text format. While the database is away: what it said last, and tongjian_database_up 0."""
        async with self._turn:
            if time.monotonic() - self._looked >= REFRESH:
                await self._look()
                self._looked = time.monotonic()
        self._measure()
        return generate_latest(REGISTRY) + generate_latest(self._registry)

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(_WITHIN), Borrowed(self._services.pool) as conn:
                queue = await conn.fetch(backlog.QUEUE)
                held = await conn.fetch(backlog.HELD)
                feeds = await conn.fetch(backlog.FEEDS)
                workers = await conn.fetch(backlog.WORKERS)
                sent_on = await conn.fetch(backlog.DELIVERIES)
                pixels = await conn.fetch(backlog.PIXELS)
                archives = await conn.fetch(backlog.ARCHIVES)
                relays = await conn.fetch(backlog.RELAYS)
                polled = await conn.fetch(backlog.POLLS)
                subscriptions = await conn.fetch(backlog.SUBSCRIPTIONS)
                size, server, schema = await conn.fetchrow(backlog.DATABASE)
        except _AWAY:
            telemetry.DATABASE_UP.set(0)
            return
        telemetry.DATABASE_UP.set(1)
        _show(telemetry.QUEUE, [((f, c, lane), number) for f, c, lane, number, _ in queue])
        _show(telemetry.QUEUE_AGE, [((f, c, lane), age) for f, c, lane, _, age in queue])
        _show(telemetry.ON_HOLD, [((facility, reason), number) for facility, reason, number in held])
        _show(telemetry.LAST_MESSAGE, [((facility, channel), at) for facility, channel, at, _ in feeds])
        _show(telemetry.DELIVERY_MESSAGES, [((f, d, status), number) for f, d, status, number, _ in sent_on])
        _show(telemetry.DELIVERY_AGE, [((f, d), age) for f, d, status, _, age in sent_on if status == "waiting"])
        _show(telemetry.IMAGE_PIXELS, [((f, a, status), number) for f, a, status, number in pixels])
        _show(telemetry.ARCHIVE_ASKED, [((f, a), at) for f, a, at, _, _ in archives])
        _show(telemetry.RELAY_SEEN, [((r[0], r[1]), r[3]) for r in relays])
        _show(
            telemetry.RELAY_WAITING,
            [((r[0], r[1], s), n) for r in relays for s, n in (("waiting", r[6]), ("dead", r[7]))],
        )
        _show(telemetry.RELAY_OFFSET, [((r[0], r[1]), r[5] / 1000) for r in relays if r[5] is not None])
        _show(telemetry.POLL_LOOKED, [((f, p), at) for f, p, at, *_ in polled if at is not None])
        _show(telemetry.POLL_FAULTY, [((p[0], p[1]), int(backlog.faulty(p))) for p in polled])
        _show(telemetry.POLL_MESSAGES, [((p[0], p[1]), p[8]) for p in polled])
        _show(telemetry.POLL_UNMARKED, [((p[0], p[1]), p[9]) for p in polled])
        _show(telemetry.SUBSCRIPTIONS, [((status,), number) for status, number, _ in subscriptions])
        telemetry.SUBSCRIPTION_EVENTS.set(sum(waiting for _, _, waiting in subscriptions))
        telemetry.WORKERS.set(backlog.alive(workers))
        telemetry.DATABASE_BYTES.set(size)
        _show(telemetry.BUILD, [((version("tongjian"), platform.python_version(), server, schema), 1)])
        self._counts.totals = add(orjson.loads(row[4]) for row in workers)

    def _measure(self) -> None:
        pool, writer = self._services.pool, self._services.writer.get_stats()
        _show(
            telemetry.POOL,
            [
                (("read", "open"), pool.get_size()),
                (("read", "idle"), pool.get_idle_size()),
                (("read", "most"), pool.get_max_size()),
                (("write", "open"), writer.get("pool_size", 0)),
                (("write", "idle"), writer.get("pool_available", 0)),
                (("write", "most"), writer.get("pool_max", 0)),
            ],
        )
        _show(telemetry.CONNECTIONS, [((server,), count()) for server, count in self._connections.items()])
        disk = shutil.disk_usage(self._services.settings.data_dir)
        telemetry.DISK_FREE.set(disk.free)
        telemetry.DISK_TOTAL.set(disk.total)


def _show(gauge: Any, values: Sequence[tuple[tuple[str, ...], float]]) -> None:
    """The gauge has these values and no others."""
    gauge.clear()
    for labels, value in values:
        gauge.labels(*labels).set(value)
