"""Events of a subscription as its client may read them now: access is looked at when something is sent, not when he subscribed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import asyncpg

from conformance.capability import TYPE_NAMES
from conformance.fhirjson import loads
from fhir_server.access import Principal, covered
from fhir_server.publish.matching import principal_of
from fhir_server.publish.notification import Event
from fhir_server.scope.asker import scope_of
from fhir_server.scope.rows import ScopedConnection
from fhir_server.search.statement import Context
from fhir_server.settings import Settings
from fhir_server.smart_clients import Client
from fhir_server.store import reader
from fhir_server.store.body import Codec

_EVENTS: Final = """
SELECT number, at, rtype, focus, version, gone FROM subscription_event
WHERE subscription = $1 AND number >= $2 AND number <= $3 ORDER BY number LIMIT $4"""
_ACCOUNT: Final = "SELECT role, facility, scopes, active FROM account WHERE subject = $1"
_BESIDE: Final = ("result", "subject")
"""Elements of a focus whose resources come along."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Events, and the Patients whose data is in them (for the audit log)."""

    events: list[Event]
    patients: list[str]
    types: list[str]


async def standing(db: Any, subscription: Mapping[str, Any], clients: Mapping[str, Client]) -> Principal | None:
    """Who is told, with what he may still do: None when his account was closed or changed, or his client is registered no more."""
    asker = principal_of(subscription)
    if subscription["known"] == "account":
        row = await db.fetchrow(_ACCOUNT, asker.subject)
        if row is None or not row["active"] or (row["role"], row["facility"]) != (asker.role, asker.facility):
            return None
        held = frozenset(row["scopes"].split())
        return replace(asker, scopes=covered(asker.scopes, held)) if held else asker
    if subscription["known"] == "client":
        client = clients.get(asker.subject)
        if client is None or client.facility != asker.facility:
            return None
        return replace(asker, scopes=covered(asker.scopes, client.scopes))
    return asker


async def events(
    db: asyncpg.Pool | asyncpg.Connection,
    subscription: str,
    numbers: tuple[int, int],
    most: int,
    settings: Settings,
    codec: Codec,
    asker: Principal,
    context: Context,
    *,
    full: bool,
) -> Seen:
    """Events of a range of numbers, inclusive, as the asker may read them now; one he may not read any more is told by its number and
    time alone. ``full``: with the resources."""
    rows = await db.fetch(_EVENTS, subscription, *numbers, most)
    seen = ScopedConnection(db, scope_of(settings, asker, context, "r").wrap)
    keys = [(TYPE_NAMES[r["rtype"]], r["focus"]) for r in rows]
    stored = await reader.read_many(seen, codec, [k for k in keys if asker.may("read", k[0])])
    found = [_event(row, key, stored.get(key), full=full) for row, key in zip(rows, keys, strict=True)]
    patients = {s.patient for s in stored.values() if s.patient}
    types = {kind for kind, _ in stored}
    if full:
        beside = {(e.number, b) for e in found if e.resource for b in _beside(e.resource) if asker.may("read", b[0])}
        others = await reader.read_many(seen, codec, [b for _, b in sorted(beside)])
        bodies = {key: loads(one.body) for key, one in others.items() if not one.deleted}
        found = [
            replace(e, more=tuple(bodies[b] for n, b in sorted(beside) if n == e.number and b in bodies)) for e in found
        ]
        patients |= {one.patient for one in others.values() if one.patient}
        types |= {kind for kind, _ in bodies}
    return Seen(found, sorted(patients), sorted(types))


def _event(row: asyncpg.Record, key: tuple[str, str], stored: reader.Stored | None, *, full: bool) -> Event:
    number, at = row["number"], row["at"]
    if stored is None:
        return Event(number, at)
    resource = loads(stored.body) if full and not stored.deleted else None
    return Event(number, at, f"{key[0]}/{key[1]}", row["version"], stored.deleted, resource)


def _beside(resource: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """What the report refers to as its results and patient."""
    named = [r for name in _BESIDE for r in _listed(resource.get(name))]
    parts = [str(r.get("reference", "")).split("/") for r in named]
    return [(p[0], p[1]) for p in parts if len(p) == 2]


def _listed(value: Any) -> list[Mapping[str, Any]]:
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


def context_of(settings: Settings, base: str, at: datetime) -> Context:
    """What search values of scopes mean now."""
    return Context(settings.zone, base, at)
