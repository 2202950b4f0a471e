"""What somebody submits and waits for (HTTP, SOAP): its messages durable, in order, with the place of each in the inbox.

The sender is told at once when they cannot be stored, and sends the same bytes again: what was stored is stored once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from conformance.issue import Issue
from fhir_server import telemetry
from fhir_server.ingest.channels import Binding
from fhir_server.ingest.group_commit import Refused
from fhir_server.ingest.inbox import Accepted, Arrival
from fhir_server.ingest.intake import Intake
from fhir_server.ingest.receive import Receiver

_REFUSED = Issue("store-refused", "error", "", "The message could not be stored: report it to the operators.")


@dataclass(frozen=True, slots=True)
class Taken:
    """One message: its format word, its place in the inbox (None: the database refuses it), why it cannot be read (None: it can)."""

    format: str
    accepted: Accepted | None
    fault: Issue | None


async def take(intake: Intake, receiver: Receiver, raw: bytes, kind: str, clock: Callable[[], datetime]) -> list[Taken]:
    """Makes every message of ``raw`` durable, at the rate of the channel. ``kind``: a format word, empty: recognised.

    Raises DatabaseAway: then some may be stored.
    """

    def arrivals() -> list[tuple[Arrival, Issue | None]]:
        found, messages = intake.messages(raw, kind)
        return [intake.arrival(message, found, clock()) for message in messages]

    made = await asyncio.to_thread(arrivals)
    facility, channel = intake.profile.id, intake.channel.name
    telemetry.RECEIVED.labels(facility, channel, made[0][0].format).inc(len(made))
    binding = Binding(intake.profile.facility, intake.channel)

    async def stored(arrival: Arrival) -> Accepted | None:
        try:
            return await receiver.store(arrival, binding, patient=False)
        except Refused:
            return None

    # Together, in this order: they share commits.
    places = await asyncio.gather(*(stored(arrival) for arrival, _ in made))
    out = [
        Taken(arrival.format, place, fault if place is not None else _REFUSED)
        for (arrival, fault), place in zip(made, places, strict=True)
    ]
    if any(t.fault is None for t in out):
        receiver.hear(facility, channel)
    return out
