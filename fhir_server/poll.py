"""``tongjian poll``: the polled databases of all profiles into the inbox, from a process of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator, Mapping

import sqlalchemy as sa

from adapters.transports.dbpoll import PolledDatabase, PollFault
from fhir_server import clock
from fhir_server.ingest.polling import Poller
from fhir_server.settings import Settings
from mappings.facility import Poll
from mappings.profile import Profile

log = logging.getLogger(__name__)


class NothingToPoll(Exception):
    """No profile polls a database, or the file of connections lacks one; the text says which."""


def chosen_polls(
    profiles: Mapping[str, Profile], known: Mapping[str, sa.URL], facility: str = ""
) -> Iterator[tuple[Profile, Poll, sa.URL]]:
    """The polls of all profiles, or of one. Raises NothingToPoll."""
    found = [(p, poll) for p in profiles.values() for poll in p.facility.polls if facility in ("", p.id)]
    if not found:
        raise NothingToPoll("No profile has polls" + (f" for facility {facility}." if facility else "."))
    for profile, poll in found:
        if poll.database not in known:
            raise NothingToPoll(f"The databases file has no [{poll.database}], which {profile.id} polls.")
        yield profile, poll, known[poll.database]


def examine(profile: Profile, poll: Poll, address: sa.URL) -> list[str]:
    """What a person wants to know before a poll is switched on, line by line. Raises PollFault."""
    source = PolledDatabase(address, poll, profile.facility)
    try:
        others = source.look()
        lines = [f"{profile.id} {poll.name}: {poll.source} has every column of the contract {poll.table}."]
        if others:
            lines.append(f"  Columns nobody reads: {', '.join(others)}.")
        if poll.watermark is not None:
            chunk = source.changed(None, {})
            lines.append(f"  The first {chunk.rows} rows are {len(chunk.names)} reports.")
            if unmarked := source.unmarked():
                lines.append(f"  {unmarked} rows have no {poll.watermark.column}: they are never read.")
    finally:
        source.close()
    return lines


async def look_once(polls: Iterator[tuple[Profile, Poll, sa.URL]], url: str, settings: Settings) -> int:
    """One look of each; gives the number of messages. Raises PollFault."""
    stored = 0
    for profile, poll, address in polls:
        source = PolledDatabase(address, poll, profile.facility)
        poller = Poller(source, poll, profile, url, clock.of(settings))
        try:
            stored += await poller.look()
        finally:
            await poller.close()
    return stored


async def poll_databases(
    polls: Iterator[tuple[Profile, Poll, sa.URL]], url: str, settings: Settings, *, attached: bool
) -> None:
    """Polls until SIGTERM or SIGINT; ``attached``: also until standard input closes. Raises PollFault for a driver that is missing."""
    pollers = [Poller(PolledDatabase(a, p, f.facility), p, f, url, clock.of(settings)) for f, p, a in polls]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if attached:
        loop.add_reader(0, _end_with_parent, loop, stop)
    tasks = [asyncio.create_task(poller.run()) for poller in pollers]
    log.info("polling polls=%d", len(tasks))
    waiting = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in (waiting, *tasks):
        task.cancel()
    await asyncio.gather(waiting, *tasks, return_exceptions=True)
    for task in done:
        if not task.cancelled() and (fault := task.exception()) is not None:
            raise fault


def _end_with_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if not os.read(0, 4096):
        loop.remove_reader(0)
        stop.set()


__all__ = ["NothingToPoll", "PollFault", "chosen_polls", "examine", "look_once", "poll_databases"]
