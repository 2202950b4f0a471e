"""From the outbox to the delivery queue and to the events of subscriptions: one transaction reads open rows, makes the messages,
queues them and closes the rows.

Exactly once: a crash leaves the rows open and nothing queued. The message is made here and kept, so every attempt sends the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import traceback
from base64 import b32encode
from collections.abc import Callable, Mapping
from datetime import datetime

import asyncpg

from adapters.hl7v2 import writer
from adapters.hl7v2.delimiters import Separators
from conformance import fhirjson
from fhir_server.publish import queue, reopened
from fhir_server.publish.audience import Known, facilities, known_of
from fhir_server.publish.gather import Gathered, gather
from fhir_server.publish.matching import Matcher
from fhir_server.publish.queue import Parcel
from fhir_server.store.body import Codec
from mappings.facility import Destination
from mappings.outbound.message import Letter
from mappings.outbound.notice import notice
from mappings.profile import Profile

log = logging.getLogger(__name__)

BATCH = 50
"""Outbox rows in one transaction."""
_MANY = 5000
"""The same while no profile has a destination and nobody subscribes: rows are only closed, so that a first destination is not sent a
history."""
NO_DESTINATION = "no-destination: a facility that used the report, and its profile says no way to tell it"
_BUGS = (
    asyncpg.DataError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a fault of our own in making one message raises: that message becomes a dead letter, the queue goes on."""

# Many laboratories send a correction as final (F), not as corrected (C): whoever adopted or cited the report before must hear of it.
# Nobody adopts a preliminary one, so what went from preliminary to final stays a new result.
_OPEN = """
WITH open AS MATERIALIZED (
    SELECT shard, id, topic, facility, patient, resource, CASE WHEN topic = 'result-new' AND resource LIKE 'DiagnosticReport/%'
        AND resource NOT LIKE '%/_history/1' THEN split_part(resource, '/', 2) END AS again
    FROM outbox WHERE published IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED),
used AS MATERIALIZED (
    SELECT unnest(reports) AS report FROM ledger
    WHERE reports && (SELECT array_agg(again) FROM open WHERE again IS NOT NULL) AND kind IN ('decision', 'citation'))
SELECT shard, id, CASE WHEN again IN (SELECT report FROM used) THEN 'result-corrected' ELSE topic END AS topic, facility, patient,
    resource
FROM open ORDER BY id
"""
_CLOSE = """
UPDATE outbox o SET published = $3 FROM unnest($1::smallint[], $2::bigint[]) AS k(shard, id)
WHERE o.shard = k.shard AND o.id = k.id
"""


class Publisher:
    """Empties the outbox into the queue."""

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        codec: Codec,
        clock: Callable[[], datetime],
        matcher: Matcher | None = None,
    ) -> None:
        self._profiles = profiles
        self._codec = codec
        self._clock = clock
        self._matcher = matcher
        self._reachable = any(p.facility.destinations for p in profiles.values())

    async def publish(self, conn: asyncpg.Connection) -> int:
        """One batch; how many outbox rows were closed."""
        async with conn.transaction():
            matcher = self._matcher if self._matcher and await self._matcher.anybody(conn) else None
            rows = await conn.fetch(_OPEN, BATCH if self._reachable or matcher else _MANY)
            at = self._clock()
            if matcher:
                await matcher.match(conn, rows, at)
            parcels = [
                p for row in rows if row["topic"].startswith("result-") for p in await self._parcels(conn, row, at)
            ]
            parcels += [p for row in rows if reopened.is_queued(row) for p in await self._reopened(conn, row, at)]
            if parcels:
                await queue.add(conn, parcels, at)
            if rows:
                await conn.execute(_CLOSE, [r["shard"] for r in rows], [r["id"] for r in rows], at)
        return len(rows)

    async def _parcels(self, conn: asyncpg.Connection, row: asyncpg.Record, at: datetime) -> list[Parcel]:
        sender = self._profiles.get(row["facility"])
        if sender is None or (row["topic"] == "result-new" and not self._reachable):
            return []
        try:
            async with conn.transaction():
                found = await gather(conn, self._codec, row["shard"], row["resource"])
                if found is None:
                    return []
                told = await facilities(
                    conn, self._codec, found, topic=row["topic"], sender=sender, shard=row["shard"], patient=row["patient"],
                    profiles=self._profiles,
                )  # fmt: skip
        except _BUGS as bug:
            log.error("publish_failed outbox=%d", row["id"], exc_info=bug)
            return [_parcel(row, row["facility"], "", row["resource"].partition("/_history")[0], None, _place(bug))]
        out = []
        for facility, known in told.items():
            receiver = self._profiles.get(facility)
            places = receiver.facility.destinations if receiver else []
            if receiver is None or not places:
                out.append(_parcel(row, facility, "", found.reference, None, NO_DESTINATION))
            else:
                out += [self._made(row, found, sender, receiver, place, known, at) for place in places]
        return out

    async def _reopened(self, conn: asyncpg.Connection, row: asyncpg.Record, at: datetime) -> list[Parcel]:
        """The notice that an answer no longer stands, for the facility that was shown it."""
        receiver = self._profiles.get(row["facility"])
        if receiver is None:
            return []
        reference = row["resource"].split("/", 3)[3]
        try:
            async with conn.transaction():
                told = await reopened.notice(conn, self._codec, row["resource"])
                if told is None:
                    return []
                subject = told.found.main.get("subject", {}).get("reference", "")
                patient = subject.removeprefix("Patient/") or None
                known = await known_of(conn, self._codec, told.found, row["shard"], patient, {receiver.id})
        except _BUGS as bug:
            log.error("publish_failed outbox=%d", row["id"], exc_info=bug)
            return [_parcel(row, receiver.id, "", reference, None, _place(bug))]
        if not receiver.facility.destinations:
            return [_parcel(row, receiver.id, "", reference, None, NO_DESTINATION)]
        sender = next((self._profiles[p] for p in told.performers if p in self._profiles), receiver)
        return [
            self._made(row, told.found, sender, receiver, place, known.get(receiver.id, Known()), at, told)
            for place in receiver.facility.destinations
        ]

    def _made(
        self,
        row: asyncpg.Record,
        found: Gathered,
        sender: Profile,
        receiver: Profile,
        destination: Destination,
        known: Known,
        at: datetime,
        told: reopened.Notice | None = None,
    ) -> Parcel:
        number = control_id(row["shard"], row["id"], receiver.id, destination.name)
        try:
            message, reason = made(found, sender, receiver, destination, known, number, row["topic"], at, told), None
        except _BUGS as bug:
            log.error("message_not_made outbox=%d facility=%s", row["id"], receiver.id, exc_info=bug)
            message, reason = None, _place(bug)
        return _parcel(row, receiver.id, destination.name, found.reference, message, reason)


def made(
    found: Gathered,
    sender: Profile,
    receiver: Profile,
    destination: Destination,
    known: Known,
    number: str,
    topic: str,
    at: datetime,
    told: reopened.Notice | None = None,
) -> bytes:
    """The bytes for one destination: ORU^R01 in the receiver's dialect, the Bundle, or the notice of ``topic`` as plain JSON.
    ``told``: the report goes with the notice that an answer no longer stands."""
    if destination.content == "fhir":
        bundle = found.bundle()
        if told is not None:
            bundle["entry"].append(
                {"fullUrl": f"urn:tongjian:{found.reference}#reopened", "resource": reopened.issue(told)}
            )
        return fhirjson.dumps({**bundle, "identifier": {"system": "urn:tongjian:delivery", "value": number}})
    letter = Letter(
        receiver, sender, number, at, destination.application, destination.facility, writer.CHARSETS[destination.charset],
        known.patients, known.orders, known.visit,
    )  # fmt: skip
    if destination.content == "json":
        more = {} if told is None else {"reopened": told.values}
        return fhirjson.dumps(notice(found.bundle(), letter, topic) | more)
    return writer.oru(found.bundle(), letter, Separators(*destination.separators), destination.charset)


def control_id(shard: int, outbox: int, facility: str, destination: str) -> str:
    """MSH-10, 18 characters: the same for the same outbox row and destination, whenever the message is made."""
    key = f"{shard}\x1f{outbox}\x1f{facility}\x1f{destination}".encode()
    return "TJ" + b32encode(hashlib.blake2b(key, digest_size=10).digest()).decode()


def _parcel(
    row: asyncpg.Record, facility: str, destination: str, resource: str, message: bytes | None, reason: str | None
) -> Parcel:
    return Parcel(
        row["shard"], row["id"], facility, destination, row["topic"], row["patient"], resource,
        control_id(row["shard"], row["id"], facility, destination), message, reason,
    )  # fmt: skip


def _place(bug: BaseException) -> str:
    """Type and place of a fault of our own; its text may quote patient data."""
    frames = traceback.extract_tb(bug.__traceback__)
    return f"not-made: {type(bug).__name__} at {frames[-1].name}:{frames[-1].lineno}" if frames else "not-made"
