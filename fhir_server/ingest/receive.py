"""From the socket into the inbox: what a message is answered, and that it is durable before it is answered well.

``Receiver.receive`` and ``Receiver.report`` are what adapters.transports.mllp calls. Steps: who speaks (channels), how fast
(throttle), what is it (peek), make it durable (group commit), answer (HL7 v2.5.1 section 2.9, original and enhanced mode).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import asyncpg

from adapters.contract import Envelope, Unreadable
from adapters.hl7v2 import ack, oversize
from adapters.hl7v2.peek import peek
from adapters.transports.mllp import MAX_BYTES, Peer
from adapters.transports.mllp_frames import Frame
from conformance.issue import Issue
from fhir_server import telemetry, tracing
from fhir_server.ingest import inbox
from fhir_server.ingest.application_acks import ApplicationAcks
from fhir_server.ingest.channels import NOBODY, Binding, Channels
from fhir_server.ingest.feeds import Feed, Feeds
from fhir_server.ingest.group_commit import DatabaseAway, GroupCommit, Refused, Throttle
from fhir_server.ingest.inbox import BACKFILL, LIVE, Accepted, Arrival
from mappings.profile import Profile

log = logging.getLogger(__name__)

_AT_ONCE = 8
"""Messages of one channel being stored at once, over however many connections; more wait, so that a quiet channel does not."""
_UNBOUND_PER_SECOND = 5.0
"""Messages a second taken from an address that no channel knows; all it sends is refused."""
_MENDABLE = "charset-unknown"
_REMEMBERED = 4096
_WAITS = ack.Facts(accept_ack="NE", application_ack="NE")
"""Who cannot be told waits until the database is back."""
_TOLD = ack.Facts()
"""Who is told at once that it could not be stored."""
_KEPT_UNBOUND = 64 * 1024
_IN_THREAD = 256 * 1024
_AWAY = Issue("database-away", "error", "", "The message cannot be stored now and was not: send it again later.")
_REFUSED = Issue("store-refused", "error", "", "The message could not be stored: report it to the operators.")
_FRAME_ISSUES = {
    "oversize": ("too-large", "The message is larger than the channel allows."),
    "noise": ("binary-noise", "The bytes are not inside an MLLP frame."),
    "unfinished": ("frame-unfinished", "The frame was not finished."),
}


@dataclass(frozen=True, slots=True)
class _Seen:
    """A message before it is stored. ``issue``: why it is refused, or with ``held`` why it is taken but cannot be read yet."""

    envelope: Envelope | None
    binding: Binding | None
    issue: Issue | None
    known: ack.Facts
    held: bool = False


class Receiver:
    """Takes messages from MLLP connections. ``open`` before the first one, ``close`` after the last."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        profiles: Mapping[str, Profile],
        *,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        store_within: float = 10.0,
    ) -> None:
        """max_bytes: of one message, for all channels; store_within: seconds after which the database counts as away.

        Raises ChannelError when the profiles contradict each other.
        """
        self._channels = Channels(p.facility for p in profiles.values())
        for facility, channel in ((p.facility.id, c.name) for p in profiles.values() for c in p.facility.channels):
            # A series that begins at 0: an alarm about silence needs one to look at.
            telemetry.RECEIVED.labels(facility, channel, "hl7v2")
        self._max_bytes = max_bytes
        self._clock = clock
        self._commit = GroupCommit(pool, inbox.accept, timeout=store_within)
        self._applications = ApplicationAcks(pool, clock)
        self._feeds = Feeds(pool)
        self._candidates: dict[tuple[int, str, tuple[str, ...]], tuple[Binding, ...]] = {}
        self._throttles: dict[tuple[str, str], Throttle] = {}
        self._store_within = store_within
        self._slots: dict[Feed, asyncio.Semaphore] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Starts the writer of the inbox and the teller of application acknowledgements."""
        self._tasks = [asyncio.create_task(part.run()) for part in (self._commit, self._applications, self._feeds)]
        await asyncio.sleep(0)

    @property
    def fault(self) -> str:
        """Type of what keeps messages from being stored now; empty when nothing does."""
        return self._commit.fault

    async def ended(self) -> None:
        """Returns or raises when one of them ended, which none should do before ``close``: then no message can be taken any more."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task

    async def close(self) -> None:
        """Writes what still waits, then stops."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def max_bytes(self, peer: Peer) -> int:
        """Largest message of a connection: the most that one of its channels allows."""
        limits = [b.channel.max_bytes for b in self._opened_by(peer)]
        return min(self._max_bytes, max(limits, default=_KEPT_UNBOUND))

    async def receive(self, raw: bytes, peer: Peer) -> bytes | None:
        """One message as received -> its acknowledgement, or None when the sender wants none now.

        The message is durable when the answer is AA or CA. While the database is away the answer is AE or CE; a sender that wants no
        answer is made to wait instead, because it would not send the message again.
        """
        began = time.time_ns()
        candidates = self._opened_by(peer)
        seen = self._look(raw, candidates)
        facility = seen.binding.facility.id if seen.binding else _only(candidates)
        channel = seen.binding.channel.name if seen.binding else ""
        feed = (facility or "unknown", channel or "unknown")
        telemetry.RECEIVED.labels(*feed, "hl7v2").inc()
        await self._wait_for_turn(seen.binding, peer.address)
        try:
            async with self._slot(feed, seen.known):
                if len(raw) > _IN_THREAD:
                    digest, stored = await asyncio.to_thread(_pack, raw)
                else:
                    digest, stored = _pack(raw)
                arrival = self._arrival(seen, facility, channel, len(raw), digest, stored)
                accepted = await self._make_durable(arrival, seen.known)
        except DatabaseAway:
            return self._answer(seen.known, "error", _AWAY, secrets.token_hex(10), self._clock(), feed)
        except Refused:
            return self._answer(seen.known, "error", _REFUSED, secrets.token_hex(10), self._clock(), feed)
        attributes: tracing.Attributes = {
            "facility": feed[0],
            "channel": feed[1],
            "bytes": len(raw),
            "repeated": not accepted.fresh,
        }
        tracing.received(accepted.shard, accepted.id, accepted.received_at, began, attributes)
        # The answer to the same bytes is the same, down to its control id and time.
        number, at = str(accepted.id), accepted.received_at
        if seen.issue is not None and not seen.held:
            telemetry.REFUSED.labels(*feed, seen.issue.key).inc()
            log.warning("refused inbox=%d peer=%s reason=%s", accepted.id, peer.address, seen.issue.key)
            return self._answer(seen.known, "rejected", seen.issue, number, at, feed)
        if seen.binding is not None:
            self._feeds.hear(*feed, arrival.received_at)
        answer = self._answer(seen.known, "accepted", None, number, at, feed)
        self._applications.expect(accepted, peer, seen.known, feed)
        return answer

    async def report(self, frame: Frame, peer: Peer) -> None:
        """Keeps the bytes of a faulty frame (at most what the transport kept) as ``failed``. Raises ConnectionError when they cannot
        be kept, so that nobody takes the answer to an oversize message for the last word."""
        if frame.fault not in _FRAME_ISSUES or not frame.data:
            return
        key, text = _FRAME_ISSUES[frame.fault]
        candidates = self._opened_by(peer)
        facility = _only(candidates)
        await self._wait_for_turn(None, peer.address)
        where, value = oversize.place(frame.data, cut=True) if key == "too-large" else ("", "")
        seen = _Seen(None, None, Issue(key, "fatal", where, text, value or None), ack.Facts())
        arrival = self._arrival(seen, facility, "", frame.size, *_pack(frame.data))
        try:
            accepted = await self._commit.accept(arrival)
        except (DatabaseAway, Refused):
            raise ConnectionError(key) from None
        telemetry.REFUSED.labels(facility or "unknown", "unknown", key).inc()
        log.warning("refused inbox=%d peer=%s reason=%s", accepted.id, peer.address, key)

    def _opened_by(self, peer: Peer) -> tuple[Binding, ...]:
        name = (peer.local_port, peer.address, peer.certificate_names)
        found = self._candidates.get(name)
        if found is None:
            if len(self._candidates) >= _REMEMBERED:
                self._candidates.clear()
            found = self._candidates[name] = self._channels.candidates(*name)
        return found

    def _look(self, raw: bytes, candidates: tuple[Binding, ...]) -> _Seen:
        """Peeks, and binds the message to a channel. The facility decides how to peek, MSH decides the facility: so at most twice."""
        assumed = candidates[0].facility if candidates else NOBODY
        try:
            envelope = peek(raw, assumed)
            bound = self._channels.bind(candidates, envelope.sender)
            if isinstance(bound, Binding) and bound.facility is not assumed:
                envelope = peek(raw, bound.facility)
        except Unreadable as unreadable:
            known = ack.facts(raw, assumed.charset)
            if unreadable.issue.key != _MENDABLE:
                return _Seen(None, None, unreadable.issue, known)
            # The header is clear and so is the fault: the profile lacks the character set. The message waits for it.
            application, name = (text.split(known.separators.component)[0] for text in known.sender)
            bound = self._channels.bind(candidates, (application, name))
            if isinstance(bound, Issue):
                return _Seen(None, None, bound, known)
            return _Seen(None, bound, unreadable.issue, known, held=True)
        known = _facts(raw, envelope)
        if isinstance(bound, Issue):
            return _Seen(envelope, None, bound, known)
        if len(raw) > bound.channel.max_bytes:
            text = f"The message has {len(raw)} bytes; this channel allows {bound.channel.max_bytes}."
            where, value = oversize.place(raw, cut=False)
            return _Seen(envelope, bound, Issue("too-large", "fatal", where, text, value or None), known)
        return _Seen(envelope, bound, None, known)

    async def _wait_for_turn(self, binding: Binding | None, address: str) -> None:
        """Over the rate of a channel its messages are slowed down; the connection is not read meanwhile, so the sender feels it."""
        if binding is None:
            name, rate = ("", address), _UNBOUND_PER_SECOND
        else:
            name, rate = (binding.facility.id, binding.channel.name), binding.channel.messages_per_second
        if rate <= 0:
            return
        throttle = self._throttles.get(name)
        if throttle is None:
            if len(self._throttles) >= _REMEMBERED:
                self._throttles.clear()
            throttle = self._throttles[name] = Throttle(rate, time.monotonic)
        await throttle.take()

    @asynccontextmanager
    async def _slot(self, feed: Feed, known: ack.Facts) -> AsyncIterator[None]:
        slot = self._slots.setdefault(feed, asyncio.Semaphore(_AT_ONCE))
        # Who can be told does not wait longer than the database is waited for.
        patience = self._store_within if _can_be_told(known) else None
        try:
            async with asyncio.timeout(patience):
                await slot.acquire()
        except TimeoutError:
            raise DatabaseAway from None
        try:
            yield
        finally:
            slot.release()

    def _arrival(self, seen: _Seen, facility: str, channel: str, size: int, digest: bytes, stored: bytes) -> Arrival:
        envelope, binding = seen.envelope, seen.binding
        patients = envelope.patient_keys if envelope and binding and seen.issue is None else ()
        control_id = envelope.control_id if envelope else seen.known.control_id
        pointers = envelope.pointers if envelope else ()
        shard, keys = inbox.ordering_keys(facility, control_id or digest.hex(), patients, pointers)
        status = "ready"
        if seen.issue is not None:
            status = "held" if seen.held else "failed"
        elif envelope and envelope.quality_control:
            status = "quality-control"
        issues = (seen.issue,) if seen.issue else envelope.issues if envelope else ()
        return Arrival(
            shard=shard,
            facility=facility,
            channel=channel,
            format="hl7v2",
            trigger=envelope.trigger if envelope else "",
            control_id=control_id,
            sent_at=envelope.sent_at if envelope else None,
            received_at=self._clock(),
            sha256=digest,
            size=size,
            charset=envelope.charset if envelope else "",
            lane=BACKFILL if binding and binding.channel.backfill else LIVE,
            keys=keys,
            status=status,
            issues=issues,
            raw=stored,
            part=bool(pointers),
        )

    async def store(self, arrival: Arrival, binding: Binding | None = None, *, patient: bool = True) -> Accepted:
        """Makes durable what came by another way than a connection, at the rate of its channel. Waits while the database is away, or
        with ``patient`` False raises DatabaseAway. Raises Refused."""
        if binding is not None:
            await self._wait_for_turn(binding, "")
        return await self._make_durable(arrival, _WAITS if patient else _TOLD)

    def hear(self, facility: str, channel: str) -> None:
        """A message of a channel arrived by another way than a connection."""
        self._feeds.hear(facility, channel, self._clock())

    async def _make_durable(self, arrival: Arrival, known: ack.Facts) -> Accepted:
        pause = 0.1
        while True:
            try:
                return await self._commit.accept(arrival)
            except DatabaseAway:
                if _can_be_told(known):
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    def _answer(
        self, known: ack.Facts, outcome: ack.Outcome, issue: Issue | None, control_id: str, at: datetime, feed: Feed
    ) -> bytes | None:
        code = ack.on_receipt(known.accept_ack, known.application_ack, outcome)
        if code is None:
            return None
        telemetry.ACKNOWLEDGED.labels(*feed, code).inc()
        return ack.acknowledge(known, code, issue, control_id, at)


def _can_be_told(known: ack.Facts) -> bool:
    """Whether the sender wants to know that its message could not be stored."""
    return ack.on_receipt(known.accept_ack, known.application_ack, "error") is not None


def _pack(raw: bytes) -> tuple[bytes, bytes]:
    """SHA-256 of the bytes, and their compressed form."""
    return hashlib.sha256(raw).digest(), inbox.compress(raw)


def _only(candidates: tuple[Binding, ...]) -> str:
    """The facility of a connection that can be of one only; empty otherwise."""
    found = {b.facility.id for b in candidates}
    return found.pop() if len(found) == 1 else ""


def _facts(raw: bytes, envelope: Envelope) -> ack.Facts:
    """The header alone tells what the answer needs; the character set is known from the whole."""
    start = raw.find(b"MSH")
    ends = [n for n in (raw.find(b"\r", start), raw.find(b"\n", start)) if n >= 0]
    if start < 0 or not ends or envelope.charset.startswith(("utf-16", "utf-32")):
        return ack.facts(raw)
    return replace(ack.facts(raw[start : min(ends)]), charset=envelope.charset)
