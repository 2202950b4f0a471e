"""``tongjian status``: what an operator wants to know first, read from the database: queue, lag, holds, feeds, workers, versions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import psycopg
from rich.console import Console
from rich.table import Table

from fhir_server.ingest import backlog
from fhir_server.ingest.sign_of_life import IMAGES, RETIRED, add
from fhir_server.store import access_refresh
from mappings.ids import SHARDS
from mappings.profile import Profile

_NEWEST = 100
_DISK_FULL = 0.05
_QUEUE_OLD = 300.0
_RELAY_SILENT = 3600.0
"""Seconds and shares of the shipped alarms (deploy/prometheus-rules.yaml)."""
_LAG = """
SELECT extract(epoch FROM converted_at - received_at)::double precision FROM (
    SELECT n.id, n.received_at, n.converted_at FROM generate_series(0, %s) AS s(shard) CROSS JOIN LATERAL (
        SELECT id, received_at, converted_at FROM inbox WHERE shard = s.shard ORDER BY id DESC LIMIT 4) n
    WHERE n.converted_at IS NOT NULL ORDER BY n.id DESC LIMIT %s) x
"""


@dataclass(frozen=True, slots=True)
class Feed:
    """One channel of one facility.

    last_message  when its last message arrived; None when none ever did. age_seconds: how long ago
    waiting       messages accepted and not yet converted (at most backlog.MOST); oldest_seconds: age of the oldest of them
    """

    facility: str
    channel: str
    last_message: datetime | None
    age_seconds: float | None
    waiting: int
    oldest_seconds: float | None


@dataclass(frozen=True, slots=True)
class Held:
    """Messages on hold for one reason (issue key)."""

    facility: str
    reason: str
    messages: int


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process; alive: it gave a sign of life within backlog.ALIVE_WITHIN seconds."""

    name: str
    version: str
    running_seconds: float
    silent_seconds: float
    alive: bool


@dataclass(frozen=True, slots=True)
class Outbound:
    """Results on their way to one destination of a facility (empty: it has none). status: waiting, or dead (given up)."""

    facility: str
    destination: str
    status: str
    messages: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Pixels:
    """DICOM objects whose pixels have not reached their archive; status: waiting, dead (given up)."""

    facility: str
    archive: str
    status: str
    objects: int


@dataclass(frozen=True, slots=True)
class Polled:
    """A picture archive that is asked for new studies; reason: why the last round failed, empty when it did not."""

    facility: str
    archive: str
    asked_seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Poll:
    """A polled database of a facility. looked_seconds: since it was last looked through (None: never); silent_seconds: since its poller
    gave a sign of life; fault: why nothing is read now (empty: it is), for fault_seconds; unmarked: rows without a watermark."""

    facility: str
    poll: str
    looked_seconds: float | None
    silent_seconds: float
    alive: bool
    fault: str
    fault_seconds: float | None
    rows: int
    messages: int
    unmarked: int


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay of a facility. silent_seconds: since it was heard; offset_ms: of its clock; waiting, dead: in its queue then."""

    facility: str
    name: str
    id: str
    silent_seconds: float
    offset_ms: int | None
    waiting: int
    dead: int
    messages: int


@dataclass(frozen=True, slots=True)
class Status:
    """All of it.

    waiting, oldest_seconds  messages accepted and not yet converted, and the age of the oldest of them (None: nothing waits)
    lag_p50_seconds          from receipt to conversion, half of the newest converted messages were faster; lag_max_seconds: the slowest
    converted, stored        messages and resource versions, totals of all workers since the installation
    """

    waiting: int
    oldest_seconds: float | None
    lag_p50_seconds: float | None
    lag_max_seconds: float | None
    held: tuple[Held, ...]
    feeds: tuple[Feed, ...]
    outbound: tuple[Outbound, ...]
    pixels: tuple[Pixels, ...]
    archives: tuple[Polled, ...]
    polls: tuple[Poll, ...]
    relays: tuple[Relay, ...]
    workers: tuple[Worker, ...]
    converted: int
    stored: int
    database_bytes: int
    disk_free_bytes: int
    disk_total_bytes: int
    versions: Mapping[str, str]
    access_due: bool = False
    """Something stored does not follow the rules of who may see what that are in force (store/access_refresh)."""


def read(conn: psycopg.Connection[Any], profiles: Mapping[str, Profile], data_dir: Path) -> Status:
    """The state now. Raises what psycopg raises."""
    queue = conn.execute(backlog.QUEUE).fetchall()
    heard = {(f, c): (datetime.fromtimestamp(at, UTC), age) for f, c, at, age in conn.execute(backlog.FEEDS)}
    workers = conn.execute(backlog.WORKERS).fetchall()
    lags = sorted(max(0.0, lag) for (lag,) in conn.execute(_LAG, (SHARDS - 1, _NEWEST)))
    size, server, schema = conn.execute(backlog.DATABASE).fetchall()[0]
    disk = shutil.disk_usage(data_dir)
    totals = add(orjson.loads(w[4]) for w in workers)
    return Status(
        waiting=sum(q[3] for q in queue),
        oldest_seconds=max((q[4] for q in queue), default=None),
        lag_p50_seconds=lags[len(lags) // 2] if lags else None,
        lag_max_seconds=lags[-1] if lags else None,
        held=tuple(Held(*h) for h in conn.execute(backlog.HELD)),
        feeds=_feeds(queue, heard, profiles),
        outbound=tuple(Outbound(*d) for d in conn.execute(backlog.DELIVERIES)),
        pixels=tuple(Pixels(*p) for p in conn.execute(backlog.PIXELS)),
        archives=tuple(Polled(f, a, age, reason) for f, a, _, age, reason in conn.execute(backlog.ARCHIVES)),
        relays=tuple(Relay(*r[:3], *r[4:]) for r in conn.execute(backlog.RELAYS).fetchall()),
        polls=tuple(
            Poll(p[0], p[1], p[3], p[4], p[4] <= backlog.POLLER_ALIVE_WITHIN, *p[5:])
            for p in conn.execute(backlog.POLLS).fetchall()
        ),
        workers=tuple(
            Worker(name, program, running, silent, silent <= backlog.ALIVE_WITHIN)
            for name, program, running, silent, _ in workers
            if name != RETIRED and not name.startswith(IMAGES)
        ),
        converted=_total(totals, "tongjian_messages_converted_total"),
        stored=_total(totals, "tongjian_resources_stored_total"),
        database_bytes=size,
        disk_free_bytes=disk.free,
        disk_total_bytes=disk.total,
        versions={"tongjian": version("tongjian"), "postgresql": server, "schema": schema},
        access_due=access_refresh.is_due(conn),
    )


def _feeds(
    queue: Sequence[tuple[str, str, str, int, float]],
    heard: Mapping[tuple[str, str], tuple[datetime, float]],
    profiles: Mapping[str, Profile],
) -> tuple[Feed, ...]:
    """Every channel that a profile has, that was heard, or that has messages waiting."""
    configured = {
        (p.facility.id, name)
        for p in profiles.values()
        for name in (*(c.name for c in p.facility.channels), *(s.name for s in p.facility.image_sources))
    }
    waiting: dict[tuple[str, str], tuple[int, float]] = {}
    for facility, channel, _, messages, age in queue:
        before = waiting.get((facility, channel), (0, 0.0))
        waiting[facility, channel] = (before[0] + messages, max(before[1], age))
    return tuple(
        Feed(*name, *heard.get(name, (None, None)), *waiting.get(name, (0, None)))
        for name in sorted(configured | set(heard) | set(waiting))
    )


def _total(totals: Mapping[str, float], name: str) -> int:
    return int(sum(value for key, value in totals.items() if orjson.loads(key)[0] == name))


def troubles(status: Status) -> tuple[str, ...]:
    """What is wrong and what to do, in sentences, the worst first; empty when all is well."""
    return tuple(_troubles(status))


def _troubles(status: Status) -> Iterator[str]:
    if not any(w.alive for w in status.workers):
        yield "No worker is alive, so nothing is converted: is the service running (systemctl status tongjian)?"
    if status.disk_free_bytes < _DISK_FULL * status.disk_total_bytes:
        yield (
            f"The disk of the data folder is nearly full ({_size(status.disk_free_bytes)} free):"
            " make space; when it is full, senders are told AE and keep their messages."
        )
    if status.access_due:
        yield (
            "What is stored was classed by other rules of who may see what than those in force:"
            " restart every server and worker with the new ones, then run tongjian refresh-access."
        )
    if status.oldest_seconds is not None and status.oldest_seconds > _QUEUE_OLD:
        yield (
            f"A message has waited for {_time(status.oldest_seconds)}: see which feed below;"
            " start more workers, or give a bulk load a channel with backfill: true."
        )
    held = sum(h.messages for h in status.held)
    if held:
        yield f"{held} messages are on hold: the reasons are below and in docs/issues.md; mend, then tongjian replay."
    dead = sum(o.messages for o in status.outbound if o.status == "dead")
    if dead:
        yield f"{dead} results were given up on their way to others: tongjian deliveries list --status dead tells why."
    lost = sum(p.objects for p in status.pixels if p.status == "dead")
    if lost:
        yield f"{lost} images were given up on their way to an archive: docs/connect-dicom.md tells what to do."
    for a in status.archives:
        if a.reason:
            yield f"The archive {a.archive} of {a.facility} cannot be asked: {a.reason}."
    for p in status.polls:
        if p.fault or not p.alive:
            yield f"The database {p.poll} of {p.facility} is not read: {_state(p)}."
    for r in status.relays:
        if r.silent_seconds > _RELAY_SILENT:
            yield f"The relay {r.name} of {r.facility} was last heard {_time(r.silent_seconds)} ago: is it on, is its line up?"
        if r.dead:
            yield f"The relay {r.name} of {r.facility} gave up {r.dead} messages: tongjian relay dead, there, tells why."


def as_json(status: Status) -> str:
    """One JSON object; times in seconds, sizes in bytes; ``troubles``: sentences."""
    return orjson.dumps(asdict(status) | {"troubles": troubles(status)}, option=orjson.OPT_INDENT_2).decode()


def show(console: Console, status: Status) -> None:
    """For people."""
    for trouble in troubles(status):
        console.print(f"! {trouble}", style="red", markup=False, highlight=False, soft_wrap=True)
    alive = sum(w.alive for w in status.workers)
    lag = (
        f", lag {_time(status.lag_p50_seconds)} (slowest {_time(status.lag_max_seconds)})"
        if status.lag_p50_seconds
        else ""
    )
    oldest = f", the oldest for {_time(status.oldest_seconds)}" if status.oldest_seconds is not None else ""
    lines = [
        f"Queue      {status.waiting} messages wait{oldest}{lag}",
        f"Converted  {status.converted} messages, {status.stored} resource versions",
        f"Workers    {alive} alive"
        + (f", {len(status.workers) - alive} silent" if alive < len(status.workers) else ""),
        f"Database   {_size(status.database_bytes)}; free in the data folder's file system: {_size(status.disk_free_bytes)}",
        "Versions   " + ", ".join(f"{name} {number}" for name, number in status.versions.items()),
    ]
    console.print("\n".join(lines), highlight=False)
    _table(
        console,
        ("facility", "channel", "last message", "age", "waiting", "oldest"),
        [
            (
                f.facility,
                f.channel,
                f.last_message.astimezone().strftime("%Y-%m-%d %H:%M:%S") if f.last_message else "never",
                _time(f.age_seconds),
                str(f.waiting),
                _time(f.oldest_seconds),
            )
            for f in status.feeds
        ],
    )
    if status.outbound:
        _table(
            console,
            ("sent on to", "destination", "status", "messages", "oldest"),
            [
                (o.facility, o.destination or "none", o.status, str(o.messages), _time(o.oldest_seconds))
                for o in status.outbound
            ],
        )
    if status.pixels:
        rows = [(p.facility, p.archive, p.status, str(p.objects)) for p in status.pixels]
        _table(console, ("images of", "archive", "status", "objects"), rows)
    if status.archives:
        polled = [(a.facility, a.archive, _time(a.asked_seconds), a.reason) for a in status.archives]
        _table(console, ("polled", "archive", "age", "fault"), polled)
    if status.relays:
        relays = [
            (
                r.facility,
                r.name,
                _time(r.silent_seconds),
                str(r.waiting),
                str(r.dead),
                str(r.messages),
                f"{r.offset_ms} ms",
            )
            for r in status.relays
        ]
        _table(console, ("relay of", "name", "age", "waiting", "dead", "messages", "clock offset"), relays)
    if status.polls:
        _table(
            console,
            ("polled", "poll", "age", "rows", "messages", "state"),
            [
                (p.facility, p.poll, _time(p.looked_seconds) or "never", str(p.rows), str(p.messages), _state(p))
                for p in status.polls
            ],
        )
    if status.held:
        _table(console, ("held", "reason", "messages"), [(h.facility, h.reason, str(h.messages)) for h in status.held])


def _state(poll: Poll) -> str:
    if not poll.alive:
        return f"no poller for {_time(poll.silent_seconds)}"
    if poll.fault:
        return f"{poll.fault} (for {_time(poll.fault_seconds)})"
    return f"{poll.unmarked} rows without watermark are not read" if poll.unmarked else "reads"


def _table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


_NUMBERS = ("age", "rows", "waiting", "oldest", "messages", "objects")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
