"""``tongjian demo``: embedded database, server, the example county over real sockets, and a report of what happened."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from rich.console import Console
from rich.panel import Panel as Box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from adapters.transports.mllp import Sender, SendError
from fhir_server.access import default_scopes, issue_token
from fhir_server.demo import print_report
from fhir_server.demo.county import COUNTY, NORTH, UNMAPPED, Dialect, Panel, Report, Test, Writer, analytes, draw
from fhir_server.demo.order_time import HookClient, ask, ask_more, lapsed_mark
from fhir_server.demo.outside import CITY, ITEM, TownshipHis, prepare, tested
from fhir_server.demo.story import Repeat, Story, repeats, tell, today
from fhir_server.keys import Keys
from fhir_server.settings import Settings
from fhir_server.store import embedded
from fhir_server.store.database import migrate
from mappings import catalogue
from mappings.profile import Profile, load_profiles

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 20260301
REPEATS = 140
DATABASE = "demo"
DRAIN_WITHIN = 300.0


class DemoFailed(Exception):
    """The demo cannot go on; the text says why."""


def run(settings: Settings, *, leave: bool) -> None:
    """Runs the demo; returns after the report when ``leave``, else when the user presses Ctrl-C."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    if settings.database_url:
        raise DemoFailed("The demo uses its own embedded database; unset DATABASE_URL, or use `tongjian serve`.")
    profiles = load_profiles(settings.profiles_dir, catalogue=catalogue.of(settings.rules_dir))
    console.print("[bold]Tongjian demo[/]: one county hospital, two township health centres, one village clinic.\n")
    # Ended from outside, the demo still stops its server and database in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    server = embedded.start(settings.data_dir)
    try:
        url = _fresh_database(server.url)
        console.print(
            f"Embedded PostgreSQL in {settings.data_dir}, database '{DATABASE}' ({time.monotonic() - started:.1f} s)."
        )
        his = TownshipHis()
        facilities, rules = prepare(settings.data_dir / "demo", his.port, datetime.now(settings.zone).date())
        shown = settings.model_copy(update={"profiles_dir": settings.profiles_dir or facilities, "rules_dir": rules})
        with _serving(shown, url) as addresses:
            console.print(f"Server up: {addresses.fhir}, MLLP {addresses.mllp_host}:{addresses.mllp_port}.\n")
            token = issue_token(
                Keys.load(settings.data_dir),
                subject="demo",
                role="system",
                facility="county-hospital",
                scopes=tuple(sorted(default_scopes("system"))),
                ttl=timedelta(hours=12),
                now=datetime.now(UTC),
            )
            with psycopg.connect(url, autocommit=True) as conn:
                asyncio.run(_play(console, settings, profiles, addresses, conn, token, his))
            if not leave:
                _stay(console, addresses, token)
    except embedded.EmbeddedError as fault:
        raise DemoFailed(str(fault)) from fault
    finally:
        server.stop()


def _fresh_database(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(DATABASE)))
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
    fresh = url.rpartition("/")[0] + "/" + DATABASE
    migrate(fresh)
    return fresh


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the demo's server listens."""

    fhir: str
    mllp_host: str
    mllp_port: int


def _free(host: str, port: int) -> int:
    try:
        with socket.create_server((host, port)):
            return port
    except OSError:
        return 0


@contextmanager
def _serving(settings: Settings, url: str) -> Iterator[Addresses]:
    """`tongjian serve` as a process of its own, on the usual ports if they are free."""
    ports = [
        "--port",
        str(_free(settings.host, settings.port)),
        "--mllp-port",
        str(_free(settings.mllp_host, settings.mllp_port)),
    ]
    command = [sys.executable, "-m", "fhir_server.cli", "serve", *ports, "--data", str(settings.data_dir)]
    if settings.profiles_dir:
        command += ["--profiles", str(settings.profiles_dir)]
    environment = dict(os.environ, TONGJIAN_DATABASE_URL=url, TONGJIAN_LOG_LEVEL="ERROR")
    if settings.rules_dir:
        environment["TONGJIAN_RULES_DIR"] = str(settings.rules_dir)
    environment.pop("DATABASE_URL", None)
    # A session of its own: Ctrl-C reaches the demo, which then stops the server in order.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603
    try:
        yield _addresses(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _addresses(process: subprocess.Popen[str]) -> Addresses:
    said: dict[str, str] = {}
    assert process.stdout is not None
    for line in process.stdout:
        word, _, address = line.strip().partition(" ")
        said[word] = address.strip()
        if "FHIR" in said and "MLLP" in said:
            host, _, port = said["MLLP"].rpartition(":")
            return Addresses(said["FHIR"], host, int(port))
    raise DemoFailed("The server ended before it was ready; its messages stand above.")


def example_panels(profiles: Mapping[str, Profile]) -> dict[str, Sequence[Panel]]:
    """What each facility reports: its local orders whose required members it has local codes for."""
    known = analytes()
    panels: dict[str, Sequence[Panel]] = {}
    for facility, profile in profiles.items():
        by_item = {t.item: t for t in profile.tests.rows if t.loinc in known and not t.valid_to}
        found = []
        for order in profile.orders.rows:
            orderable = profile.catalogue.orderables[order.orderable]
            if any(item not in by_item for item in orderable.required):
                continue
            tests = [by_item[item] for item in (*orderable.required, *orderable.optional) if item in by_item]
            reported = [Test(t.code, t.name, t.unit, known[t.loinc]) for t in tests]
            if order.orderable == "CBC":
                reported += UNMAPPED.get(facility, ())
            specimen = profile.catalogue.items[orderable.required[0]].specimens[0]
            found.append(Panel(order.code, order.name, order.orderable, specimen, tuple(reported)))
        panels[facility] = sorted(found, key=lambda p: -len(p.tests))
    return panels


async def _send(
    addresses: Addresses, dialect: Dialect, messages: Sequence[bytes], tick: Progress, task: Any, refused: list[str]
) -> None:
    sender = Sender(addresses.mllp_host, addresses.mllp_port, local_address=dialect.address)
    try:
        for message in messages:
            answer = await sender.send(message)
            if answer.code not in ("AA", "CA"):
                refused.append(f"{dialect.facility}: {answer.code} {answer.text}")
            tick.advance(task)
    finally:
        await sender.close()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


async def _drained(conn: psycopg.Connection[Any]) -> None:
    """Waits until nothing is left to convert."""
    until = time.monotonic() + DRAIN_WITHIN
    while True:
        row = conn.execute("SELECT count(*) FROM inbox WHERE status IN ('ready', 'claimed')").fetchone()
        if row is not None and row[0] == 0:
            return
        if time.monotonic() > until:
            raise DemoFailed(
                f"{row[0] if row else '?'} messages are still waiting for a worker after {DRAIN_WITHIN:.0f} s."
            )
        await asyncio.sleep(0.1)


async def _play(
    console: Console,
    settings: Settings,
    profiles: Mapping[str, Profile],
    addresses: Addresses,
    conn: psycopg.Connection[Any],
    token: str,
    his: TownshipHis,
) -> None:
    await his.listen()
    began = datetime.now(settings.zone)
    story = tell(example_panels(profiles), began, SEED)
    total = sum(len(o.messages) for o in story.history)
    console.print(
        f"History: {len(story.people)} people, {story.reports} reports in {total} messages, one connection per facility."
    )
    refused: list[str] = []
    start = time.monotonic()
    try:
        with _progress(console) as progress:
            lines = [(o, progress.add_task(o.dialect.facility, total=len(o.messages))) for o in story.history]
            await asyncio.gather(
                *(_send(addresses, o.dialect, o.messages, progress, task, refused) for o, task in lines)
            )
        answers = await _send_bad(story, addresses)
        await _drained(conn)
        seconds = time.monotonic() - start
        console.print(f"Acknowledged and converted in {seconds:.1f} s ({total / seconds:.0f} messages/s).")
        for line in refused:
            console.print(f"  refused: {line}", markup=False)
        await _today(console, settings, profiles, story, addresses, conn, token)
        await _back_to_the_township(console, settings, story, addresses, conn, his)
    except (SendError, OSError) as fault:
        raise DemoFailed(f"Sending failed: {fault}") from fault
    finally:
        await his.close()
    print_report.bad_messages(console, answers)
    print_report.facilities(console, conn)
    print_report.resources(console, conn)
    print_report.unmapped(console, conn)
    print_report.identity(console, conn)
    print_report.duplicate_audit(console, conn, profiles, began, datetime.now(settings.zone) + timedelta(seconds=1))


async def _send_bad(story: Story, addresses: Addresses) -> list[tuple[str, str]]:
    """The five bad messages, each on the same connection as a good one would be: the connection must live on."""
    answers = []
    dialect = story.bad[0][0]
    sender = Sender(addresses.mllp_host, addresses.mllp_port, local_address=dialect.address)
    try:
        for _, what, message in story.bad:
            answer = await sender.send(message)
            answers.append((what, f"{answer.code} {answer.text}".strip()))
    finally:
        await sender.close()
    return answers


async def _today(
    console: Console,
    settings: Settings,
    profiles: Mapping[str, Profile],
    story: Story,
    addresses: Addresses,
    conn: psycopg.Connection[Any],
    token: str,
) -> None:
    """Patients go next door: registered there, then the HIS asks for two of them, then the orders and the new results."""
    rng = random.Random(SEED + 2)
    again = repeats(story, REPEATS, SEED)
    recognized, declined = [r for r in again if r.shows_well][:2]
    visits, at = _Batch(), datetime.now(settings.zone)
    for repeat in again:
        visits.add(repeat.dialect, story.writers[repeat.dialect.facility].visit(repeat.prior.person, at))
    outside = _tested_outside(story, again, at, profiles)
    for report in outside:
        visits.add(CITY, Writer(CITY).result(report))
    with _progress(console) as progress:
        await visits.send(addresses, progress, "today: registered next door")
    await _drained(conn)

    client = HookClient(addresses.fhir, token)
    try:
        await ask(
            console,
            client,
            recognized,
            story.writers[recognized.dialect.facility].record_number(recognized.prior.person),
        )
        console.print("The doctor drops that order. For another patient the answer is declined, with a lawful reason:")
        card = await ask(
            console, client, declined, story.writers[declined.dialect.facility].record_number(declined.prior.person)
        )
        reason = card["overrideReasons"][0]
        await client.decline(card, reason)
        console.print(f"Declined: {reason['display']}\n")
        writer = story.writers[declined.dialect.facility]
        await ask_more(console, client, declined, writer.record_number(declined.prior.person))
        numbers = [(f"{r.collected:%Y-%m-%d}", writer.record_number(r.person)) for r in outside]
        await lapsed_mark(console, client, numbers)
    except LookupError as fault:
        raise DemoFailed(f"The recognition check did not answer as it should: {fault}.") from fault
    finally:
        await client.close()

    # Messages tell whole seconds: these orders are to stand after the registrations, not in the same second.
    await asyncio.sleep(1)
    orders, results, at = _Batch(), _Batch(), datetime.now(settings.zone)
    for number, repeat in enumerate(again):
        if repeat is not recognized:
            writer, report = story.writers[repeat.dialect.facility], today(repeat, number, at, rng)
            orders.add(repeat.dialect, writer.order(report))
            results.add(repeat.dialect, writer.result(report))
    with _progress(console) as progress:
        await orders.send(addresses, progress, "today: ordered again")
        await _drained(conn)
        await results.send(addresses, progress, "today: tested again")
    await _drained(conn)


def _tested_outside(
    story: Story, again: Sequence[Repeat], at: datetime, profiles: Mapping[str, Profile]
) -> list[Report]:
    """Results of the city laboratory for two people who come to the county hospital and have no such result of the county: one from
    the time of its last round, one from after it."""
    orderables = profiles[COUNTY.facility].catalogue.orderables
    found = [
        r.prior.person
        for r in again
        if r.dialect is COUNTY
        and r.prior.person.resident_id
        and not any(
            ITEM in (*orderables[known.panel.orderable].required, *orderables[known.panel.orderable].optional)
            for known in story.results[r.prior.person.number]
        )
    ]
    moments = [at - timedelta(days=3), at - timedelta(days=1)]
    return [tested(person, n, moment) for n, (person, moment) in enumerate(zip(found, moments, strict=False), 1)]


async def _back_to_the_township(
    console: Console,
    settings: Settings,
    story: Story,
    addresses: Addresses,
    conn: psycopg.Connection[Any],
    his: TownshipHis,
) -> None:
    """A township orders what only the county hospital analyses for it: the report comes back into its own HIS."""
    at, rng = datetime.now(settings.zone), random.Random(SEED + 3)
    person = next(r[0].person for r in story.results.values() if r[0].dialect is NORTH and r[0].person.resident_id)
    mine, theirs = (next(p for p in story.panels[d.facility] if p.orderable == "LIPID") for d in (NORTH, COUNTY))
    number = "BLWSYBACK001"
    order = Report(NORTH, person, mine, number, at, at, at, ())
    report = Report(COUNTY, person, theirs, number, at, at, at + timedelta(seconds=1), draw(theirs, rng))
    for dialect, message in (
        (NORTH, story.writers[NORTH.facility].order(order)),
        (COUNTY, story.writers[COUNTY.facility].result(report)),
    ):
        batch = _Batch()
        batch.add(dialect, message)
        with _progress(console) as progress:
            await batch.send(addresses, progress, f"today: {dialect.facility}")
        await _drained(conn)
    try:
        async with asyncio.timeout(60):
            await his.arrived.wait()
    except TimeoutError:
        raise DemoFailed("The report of the county hospital did not come back to the township.") from None
    lines = [line.split("|") for line in his.received[-1].decode("utf-8").split("\r")]
    results = [f"{f[3].split('^')[1]} {f[5]} {f[6].split('^')[0]}" for f in lines if f[0] == "OBX"]
    order_number = next(f[2] for f in lines if f[0] == "ORC")
    console.print(
        Box(
            f"{NORTH.facility} ordered {mine.name} ({order_number}), {COUNTY.facility} reported it; the township's HIS receives ORU^R01"
            f" with its own numbers:\n\n{', '.join(results)}",
            title="back to the township's HIS",
        )
    )


class _Batch:
    """Messages of several facilities, each on its own connection."""

    def __init__(self) -> None:
        self._messages: dict[str, tuple[Dialect, list[bytes]]] = {}

    def add(self, dialect: Dialect, message: bytes) -> None:
        self._messages.setdefault(dialect.facility, (dialect, []))[1].append(message)

    async def send(self, addresses: Addresses, progress: Progress, title: str) -> None:
        refused: list[str] = []
        task = progress.add_task(title, total=sum(len(m) for _, m in self._messages.values()))
        await asyncio.gather(*(_send(addresses, d, m, progress, task, refused) for d, m in self._messages.values()))
        if refused:
            raise DemoFailed("; ".join(refused[:3]))


def _stay(console: Console, addresses: Addresses, token: str) -> None:
    console.print("\n[bold]The server stays up.[/] Ctrl-C stops it.\n")
    console.print(f"FHIR API   {addresses.fhir}\nMLLP       {addresses.mllp_host}:{addresses.mllp_port}")
    console.print("Try it (the token is valid for 12 hours):\n")
    console.print(f"TOKEN={token}", soft_wrap=True, markup=False, highlight=False)
    console.print(
        f"curl -H \"Authorization: Bearer $TOKEN\" '{addresses.fhir}/Patient?_count=5'",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    with suppress(KeyboardInterrupt):
        signal.pause()
