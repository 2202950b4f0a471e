"""From claimed bytes to stored resources: convert and validate (pure), then one transaction for everything a batch changes.

Resources, history, result rows, identity links, outbox rows, the mapping worklist and the status of the messages commit together. A
batch that fails is applied message by message, and only the one at fault is held, with the reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

import mappings
from adapters.contract import Unreadable
from adapters.convert import convert
from conformance import validator
from conformance.fhirjson import members
from conformance.issue import Issue
from fhir_server import telemetry
from fhir_server.code_mappings import LiveProfiles
from fhir_server.identity import registry
from fhir_server.identity.registry import MergeStatement, PatientState
from fhir_server.ingest import inbox, parts
from fhir_server.ingest.inbox import BACKFILL, Claimed, Outcome
from fhir_server.publish import outbox
from fhir_server.store import repository
from fhir_server.store.body import Codec
from fhir_server.store.change import Change, Origin
from mappings.model import Conversion, Unmapped
from mappings.profile import Profile

log = logging.getLogger(__name__)

BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a fault of our own in the conversion of one message raises. It holds that message, not the queue."""

_SCHEMA_FAULTS = ("42P01", "42703", "42501", "25006")
"""Undefined table or column, no privilege, read-only server: no message is to blame."""

Unmappeds = dict[tuple[str, str, str, str, str], tuple[int, int]]
"""(facility, kind, code, name, unit) -> (times seen, example: inbox id)"""


class CannotStore(Exception):
    """The database cannot take anything now; the batch goes back as it was."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A message after the pure part. ``outcome`` is what the inbox will say of it; only ``done`` ones have something to store."""

    message: Claimed
    conversion: Conversion
    outcome: Outcome
    whole: parts.Whole | None = None
    """What ``message`` was a part of."""


class Pipeline:
    """Converts and applies batches. One per worker process."""

    def __init__(self, profiles: Mapping[str, Profile], codec: Codec, clock: Callable[[], datetime]) -> None:
        self._profiles = LiveProfiles(profiles)
        self._codec = codec
        self._clock = clock
        self._mappings: dict[str, int] = {}
        self._maps = maps_digest()

    def work(self, conn: psycopg.Connection[Any], token: str, messages: Sequence[Claimed]) -> list[Outcome]:
        """Converts and applies one claimed batch; returns what became of each message.

        ``conn`` is in autocommit mode. Raises CannotStore when the database is at fault, LeaseLost when the batch is another worker's
        by now; in both cases nothing of what is not yet committed is kept.
        """
        try:
            if self._profiles.refresh(conn):
                self._mappings.clear()
            converted = [self.convert(conn, m) for m in messages]
            return self._apply_or_split(conn, token, converted)
        except (psycopg.OperationalError, psycopg.InterfaceError) as fault:
            raise CannotStore(type(fault).__name__) from fault
        except psycopg.Error as fault:
            if fault.sqlstate in _SCHEMA_FAULTS:
                raise CannotStore(fault.sqlstate) from fault
            raise

    def convert(self, conn: psycopg.Connection[Any], message: Claimed) -> Converted:
        """The pure part; ``conn`` only looks up the number of the mapping version, once per facility and set of accepted codes."""
        profile = self._profiles.get(message.facility)
        if profile is None:
            issue = Issue(
                "no-profile", "fatal", "", "There is no profile of this facility any more: add it and replay."
            )
            return _held(message, Conversion(issues=[issue]), None)
        mapping = self._mapping(conn, profile)
        whole = parts.whole(conn, message) if parts.is_part(message.raw) else None
        raw = whole.raw if whole is not None else message.raw
        try:
            conversion = convert(raw, profile, message.format, message.received_at.isoformat())
            faults = [] if conversion.held else _validated(conversion)
        except Unreadable as unreadable:
            return _held(message, Conversion(issues=[unreadable.issue]), mapping)
        except BUGS as bug:
            log.error("conversion_failed inbox=%d facility=%s", message.id, message.facility, exc_info=bug)
            return _held(message, Conversion(issues=[_bug(bug, "conversion-failed", "converted")]), mapping)
        conversion.issues.extend(faults)
        if whole is not None:
            conversion.issues.append(whole.issue)
        if conversion.held is not None:
            return _held(message, conversion, mapping)
        status = "quality-control" if conversion.quality_control else "done"
        unread = [u.where for u in conversion.unread]
        return Converted(message, conversion, Outcome(message, status, None, conversion.issues, unread, mapping), whole)

    def _apply_or_split(self, conn: psycopg.Connection[Any], token: str, batch: Sequence[Converted]) -> list[Outcome]:
        try:
            return self.apply(conn, token, batch)
        except (psycopg.OperationalError, psycopg.InterfaceError, inbox.LeaseLost):
            raise
        except (psycopg.Error, *BUGS) as fault:
            if isinstance(fault, psycopg.Error) and fault.sqlstate in _SCHEMA_FAULTS:
                raise
            if len(batch) > 1:
                return [outcome for one in batch for outcome in self._apply_or_split(conn, token, [one])]
            message = batch[0].message
            log.error("apply_failed inbox=%d facility=%s", message.id, message.facility, exc_info=fault)
            issue = _bug(fault, "store-refused", "stored")
            conversion = Conversion(issues=[*batch[0].conversion.issues, issue])
            return self.apply(conn, token, [_held(message, conversion, batch[0].outcome.mapping)])

    def apply(self, conn: psycopg.Connection[Any], token: str, batch: Sequence[Converted]) -> list[Outcome]:
        """One transaction: all of the batch or nothing of it."""
        outcomes = [c.outcome for c in batch]
        stored = [c for c in batch if c.outcome.status == "done"]
        with conn.transaction():
            inbox.lock(conn, token, [c.message for c in batch])
            at = self._clock()
            changes = repository.apply(conn, self._codec, [(_origin(c, at), c.conversion.entries) for c in stored])
            _note_unmapped(conn, _unmapped(stored), at)
            merges = [m for c in stored for m in _merges(c)]
            links = registry.resolve(conn, _patients(changes), merges, at)
            asked = outbox.asked_for(conn)
            told = outbox.rows(changes, () if any(c.message.lane == BACKFILL for c in stored) else links, asked)
            outbox.write(conn, told, at)
            inbox.finish(conn, outcomes, at)
            for c in batch:
                if c.whole is not None and c.outcome.status != "held":
                    parts.finish(conn, c.whole, c.outcome.mapping, at)
        if told:
            # Outside the transaction: NOTIFY inside would make the commits of all workers wait for each other.
            conn.execute(f"NOTIFY {outbox.CHANNEL}")
        _count(outcomes, changes, at)
        return outcomes

    def _mapping(self, conn: psycopg.Connection[Any], profile: Profile) -> int:
        """mapping_version.id of a profile as loaded now."""
        known = self._mappings.get(profile.id)
        if known is None:
            digest = hashlib.sha256(f"{self._maps} {profile.digest}".encode()).hexdigest()
            with conn.transaction():
                conn.execute(
                    "INSERT INTO mapping_version (digest, label, recorded) VALUES (%s, %s, %s) ON CONFLICT (digest) DO NOTHING",
                    (digest, profile.id, self._clock()),
                )
                row = conn.execute("SELECT id FROM mapping_version WHERE digest = %s", (digest,)).fetchone()
            assert row is not None
            known = self._mappings[profile.id] = int(row[0])
        return known


def maps_digest() -> str:
    """Hex digest over the mapping files themselves; with a profile's digest it names the mapping version."""
    folder = Path(mappings.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/**/*.yaml")):
        if "facilities" not in path.parts:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _validated(conversion: Conversion) -> list[Issue]:
    """Writes the resources out, once for validation, content digest, search values and body; gives their faults."""
    faults: list[Issue] = []
    for entry in conversion.entries:
        with contextlib.suppress(TypeError):  # what has no JSON form is a fault that the validator tells
            entry.members = members(entry.resource)
        faults += validator.check(entry.resource, entry.members)
    return faults


def _held(message: Claimed, conversion: Conversion, mapping: int | None) -> Converted:
    reason = conversion.held
    unread = [u.where for u in conversion.unread]
    outcome = Outcome(message, "held", reason.key if reason else None, conversion.issues, unread, mapping)
    return Converted(message, conversion, outcome)


def _bug(fault: BaseException, key: str, verb: str) -> Issue:
    """The Issue of a fault of our own: its type and place; its message may quote patient data and is left out."""
    frames = traceback.extract_tb(fault.__traceback__)
    place = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    state = f" {fault.sqlstate}" if isinstance(fault, psycopg.Error) and fault.sqlstate else ""
    text = f"The message could not be {verb} ({type(fault).__name__}{state}{place}): report it, and replay it with a mended version."
    return Issue(key, "fatal", "", text)


def _origin(converted: Converted, at: datetime) -> Origin:
    message = converted.message
    return Origin(message.facility, message.id, converted.outcome.mapping, at, backfill=message.lane == BACKFILL)


def _patients(changes: Sequence[Change]) -> list[PatientState]:
    current = {
        c.id: PatientState(c.shard, c.id, c.origin.facility, c.resource)
        for c in changes
        if c.resource_type == "Patient" and c.kind in ("created", "updated", "deleted")
    }
    return list(current.values())


def _merges(converted: Converted) -> list[MergeStatement]:
    message = converted.message
    stated_at = message.sent_at or message.received_at
    return [
        MergeStatement(
            m.surviving, m.retired, message.facility, m.trigger, stated_at, m.trigger not in registry.UNLINK_TRIGGERS
        )
        for m in converted.conversion.merges
    ]


def _unmapped(batch: Sequence[Converted]) -> Unmappeds:
    out: Unmappeds = {}
    for converted in batch:
        for u in converted.conversion.unmapped:
            key = _row_key(u)
            out[key] = (out.get(key, (0, 0))[0] + 1, converted.message.id)
    return out


def _row_key(u: Unmapped) -> tuple[str, str, str, str, str]:
    return u.facility, u.kind, inbox.plain(u.code), inbox.plain(u.name), inbox.plain(u.unit)


def _note_unmapped(conn: psycopg.Connection[Any], found: Unmappeds, at: datetime) -> None:
    if not found:
        return
    # In one order, so that two workers never wait for each other in a ring.
    rows = sorted((*key, *value) for key, value in found.items())
    conn.execute(
        "INSERT INTO unmapped AS u (first_seen, last_seen, facility, kind, code, name, unit, count, example)"
        " SELECT %(at)s, %(at)s, * FROM unnest(%(facility)s::text[], %(kind)s::text[], %(code)s::text[], %(name)s::text[],"
        " %(unit)s::text[], %(count)s::bigint[], %(example)s::bigint[]) ON CONFLICT (facility, kind, code, name, unit) DO UPDATE"
        " SET count = u.count + EXCLUDED.count, last_seen = EXCLUDED.last_seen, example = EXCLUDED.example",
        {
            "at": at,
            **{
                name: [row[n] for row in rows]
                for n, name in enumerate(("facility", "kind", "code", "name", "unit", "count", "example"))
            },
        },
    )


def _count(outcomes: Sequence[Outcome], changes: Sequence[Change], at: datetime) -> None:
    for o in outcomes:
        message = o.message
        if o.status == "held":
            telemetry.HELD.labels(message.facility, message.channel, o.reason or "").inc()
        else:
            telemetry.CONVERTED.labels(message.facility, message.channel).inc()
            # A clock that was set back makes no negative lag.
            lag = max(0.0, (at - message.received_at).total_seconds())
            telemetry.LAG.labels(message.facility, message.channel).observe(lag)
    channels = {o.message.id: o.message.channel for o in outcomes}
    stored = Counter((c.origin.facility, channels.get(c.origin.inbox or 0, ""), c.resource_type) for c in changes)
    for (facility, channel, kind), number in stored.items():
        telemetry.STORED.labels(facility, channel, kind).inc(number)
