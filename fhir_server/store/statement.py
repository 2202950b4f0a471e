"""A statement: one resource as somebody stated it, prepared for the store (digest, sortable recency, JSON without meta).

Three byte strings decide everything and compare as bytes: ``content`` (equal: nothing new was said), ``recency`` (greater: newer)
and ``claim`` (greater: owns the report number). They do not depend on the order of arrival, so neither does the outcome.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from struct import Struct
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import dumps
from fhir_server.store.change import Origin
from mappings.ids import shard_of_id
from mappings.model import Entry, Recency, Tier

Key = tuple[int, int, str]
"""(shard, number of the resource type, logical id): the primary key of ``resource``."""

WITHDRAWN: Final = "entered-in-error"
"""The status of a withdrawn resource; a code of every resource type that has a report number or belongs to a report."""

_SERVER_META: Final = frozenset({"versionId", "lastUpdated"})
_HEAD: Final = frozenset({"resourceType", "id", "meta"})
_FIRST_NAMES: Final = ("resourceType", "id", "meta")
_NO_CONTENT: Final = _SERVER_META | {"source"}
_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_RECENCY: Final = Struct(">BQQB")
RECENCY_LENGTH: Final = _RECENCY.size
RECENCY_TIE: Final = 6
"""Bytes of the content digest that follow: they decide between statements of the same time."""
_CLAIM: Final = Struct(">QQBBI")
_API_RANK: Final = 255


@dataclass(slots=True)
class Statement:
    """resource: as stated, with ``id``. tail: its JSON object without resourceType, id and meta. business, claim: empty when none.
    members: as in ``Entry``; empty when they are not at hand."""

    key: Key
    resource_type: str
    patient: str | None
    parent: str | None
    business: str
    resource: dict[str, Any]
    origin: Origin
    recency: bytes
    content: bytes
    claim: bytes
    tail: bytes
    members: Sequence[bytes] = ()

    @property
    def mention(self) -> bool:
        """True when it may only create (Tier.MENTION)."""
        return self.recency[0] == Tier.MENTION


@dataclass(slots=True)
class State:
    """The current version as the table row has it (see resource_tables.resource)."""

    version: int
    top: int
    updated: datetime
    deleted: bool
    patient: str | None
    parent: str | None
    recency: bytes
    content: bytes
    withdrawn: str | None
    inbox: int | None = None
    mapping: int | None = None


def of_entry(entry: Entry, origin: Origin) -> Statement:
    """An entry of a converted message. Raises ValueError when its id was not derived or its type is not served."""
    resource = entry.resource
    kind, logical = resource["resourceType"], resource["id"]
    shard = shard_of_id(logical)
    if shard is None or kind not in RESOURCE_TYPES:
        raise ValueError(
            f"{kind}/{logical} cannot be stored: a message gives derived ids and served resource types only"
        )
    tail = _joined(resource, entry.members) if entry.members else tail_of(resource)
    content = digest(resource, tail)
    business = entry.business if entry.patient and entry.recency.tier != Tier.MENTION else ""
    return Statement(
        key=(shard, RESOURCE_TYPES[kind], logical),
        resource_type=kind,
        patient=entry.patient,
        parent=entry.parent or None,
        business=business,
        resource=resource,
        origin=origin,
        recency=_recency(entry.recency) + content[:RECENCY_TIE],
        content=content,
        claim=_claim(entry.recency, origin.mapping or 0) + content[:RECENCY_TIE] if business else b"",
        tail=tail,
        members=entry.members,
    )


def of_write(
    key: Key, resource: dict[str, Any], patient: str | None, parent: str | None, origin: Origin, before: bytes
) -> Statement:
    """A write through the API: it wins over everything said before it, and a message sent later wins over it.

    ``before`` is the recency of the current version (empty when there is none). Times are compared like with like: a resource whose
    statements carry no report time (ADT) keeps none.
    """
    tail = tail_of(resource)
    content = digest(resource, tail)
    recency = write_recency(origin.recorded, before) + content[:RECENCY_TIE]
    return Statement(key, resource["resourceType"], patient, parent, "", resource, origin, recency, content, b"", tail)


def of_state(key: Key, resource: dict[str, Any], state: State, origin: Origin) -> Statement:
    """What is current, stated again by ``origin`` (a withdrawal, or the end of one): same recency, same content."""
    kind = resource["resourceType"]
    tail = tail_of(resource)
    return Statement(
        key, kind, state.patient, state.parent, "", resource, origin, state.recency, state.content, b"", tail
    )


def write_recency(at: datetime, before: bytes) -> bytes:
    """Recency (without content digest) of an API write at ``at`` over a version of recency ``before`` (may be empty)."""
    now = (at - _FIRST) // _MICROSECOND + 1
    tier, reported, sent, _ = _RECENCY.unpack_from(before) if before else (0, 0, 0, 0)
    # Strictly greater than before even when a sender's clock runs ahead of ours.
    return _RECENCY.pack(max(tier, Tier.FINAL), max(now, reported) if reported else 0, max(now, sent + 1), _API_RANK)


def said_at(recency: bytes) -> tuple[int, int]:
    """When the statement was made, to compare statements about different resources: its report time (else the time it was sent), and
    the time it was sent."""
    _, reported, sent, _ = _RECENCY.unpack_from(recency)
    return reported or sent, sent


def said_in(issued: str, sent: datetime | None) -> tuple[int, int]:
    """``said_at`` of a report in history: what OBR-22 says (``DiagnosticReport.issued``), and when its message was sent."""
    at = (sent - _FIRST) // _MICROSECOND + 1 if sent else 0
    return (datetime.fromisoformat(issued) - _FIRST) // _MICROSECOND + 1 if issued else at, at


def tail_of(resource: dict[str, Any]) -> bytes:
    """The JSON object without resourceType, id and meta: what stays the same from version to version of equal content."""
    rest = resource.copy()
    rest.pop("meta", None)
    del rest["resourceType"]
    del rest["id"]
    return dumps(rest)


def _joined(resource: dict[str, Any], members: Sequence[bytes]) -> bytes:
    """``tail_of``, from what is written already."""
    if tuple(islice(resource, 3)) == _FIRST_NAMES:
        return b"{%b}" % b",".join(members[3:])
    return b"{%b}" % b",".join([member for name, member in zip(resource, members, strict=True) if name not in _HEAD])


def digest(resource: dict[str, Any], tail: bytes) -> bytes:
    """16 bytes that are equal when the content is: everything but meta.versionId, meta.lastUpdated and meta.source."""
    meta = resource.get("meta")
    if meta and not meta.keys() <= _NO_CONTENT:
        tail += dumps({k: v for k, v in meta.items() if k not in _NO_CONTENT})
    return hashlib.blake2b(tail, digest_size=16).digest()


def render(resource: dict[str, Any], tail: bytes, version: int, updated: str) -> tuple[dict[str, Any], bytes]:
    """The resource as served, as dict and as JSON: meta.versionId and meta.lastUpdated set by the server, all else as stated.

    http://hl7.org/fhir/R4/resource.html#Meta
    """
    meta: dict[str, Any] = {"versionId": str(version), "lastUpdated": updated}
    stated = resource.get("meta")
    if stated:
        for key, value in stated.items():
            if key not in _SERVER_META:
                meta[key] = value
    served = resource.copy()
    served["meta"] = meta
    head = f'{{"resourceType":"{resource["resourceType"]}","id":"{resource["id"]}","meta":'.encode()
    return served, head + dumps(meta) + (b"," + tail[1:] if len(tail) > 2 else b"}")


def with_status(resource: dict[str, Any], status: str) -> dict[str, Any]:
    """A copy with another status; an empty ``status`` takes the element away. The place in the JSON stays."""
    if not status:
        return {k: v for k, v in resource.items() if k != "status"}
    return {**resource, "status": status}


def instant(at: datetime) -> str:
    """An aware datetime as FHIR instant in UTC with milliseconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"


def to_millisecond(at: datetime) -> datetime:
    """``at`` without what an instant here does not say, so that _lastUpdated finds what meta.lastUpdated shows."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


@lru_cache(maxsize=4096)
def _micros(text: str) -> int:
    return (datetime.fromisoformat(text) - _FIRST) // _MICROSECOND + 1 if text else 0


@lru_cache(maxsize=1024)
def _recency(stated: Recency) -> bytes:
    return _RECENCY.pack(
        stated.tier,
        _micros(stated.reported_at),
        _micros(stated.sent_at),
        max(0, min(stated.status_rank, _API_RANK - 1)),
    )


@lru_cache(maxsize=1024)
def _claim(stated: Recency, mapping: int) -> bytes:
    # Whose number it is, the latest statement says, be it preliminary or final: time before tier. A message without OBR-22 counts
    # by MSH-7, so that any two statements compare and the order is total. A message converted anew by a mended mapping may name
    # another patient at the same time: the newer mapping wins.
    sent = _micros(stated.sent_at)
    reported = _micros(stated.reported_at) or sent
    return _CLAIM.pack(reported, sent, stated.tier, max(0, min(stated.status_rank, 255)), mapping)
