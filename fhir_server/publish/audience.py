"""Who is told of a report (docs/outbound.md).

A new report goes to the facilities that ordered it or drew the specimen: those its request or specimen names (pure), and those that
have an order of their own with the same placer number for the same person; the facility that reported it is not told. A correction or
withdrawal also goes to everybody who was sent the report before, and to everybody the ledger names as its user: who was shown it at a
visit's start, opened, cited or adopted it. A user without a destination is named as well: that it cannot be told may not go unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import asyncpg

from conformance import systems
from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.publish.gather import Gathered
from fhir_server.store import reader
from fhir_server.store.body import Codec
from mappings.outbound.people import facility_of, identifier_code, resolve
from mappings.profile import Profile

_LINKED: Final = """
SELECT o.shard, o.patient, o.facility FROM source_patient me JOIN source_patient o ON o.person = me.person
WHERE me.shard = $1 AND me.patient = $2 AND o.facility = ANY($3) ORDER BY o.facility, o.shard, o.patient
"""
_ORDERS: Final = "SELECT id FROM resource WHERE shard = $1 AND patient = $2 AND rtype = $3 AND NOT deleted ORDER BY seq DESC LIMIT 500"
_TOLD: Final = "SELECT DISTINCT facility FROM delivery WHERE resource = $1 AND destination <> ''"
_USED: Final = """
SELECT DISTINCT facility FROM ledger WHERE reports @> ARRAY[$1] AND kind IN ('decision', 'citation', 'visit', 'view')
"""


@dataclass(frozen=True, slots=True)
class Known:
    """What a receiving facility itself has: its Patients that are this person, its orders of the report, the visit of the order."""

    patients: tuple[dict[str, Any], ...] = ()
    orders: tuple[dict[str, Any], ...] = ()
    visit: dict[str, Any] | None = None


def named(found: Gathered, sender: Profile, profiles: Mapping[str, Profile]) -> set[str]:
    """Facilities that the report says ordered it or drew its specimen (pure): requester, its employer, collector, or the name space of
    the placer number."""
    out: set[str] = set()
    for request in _requests(found):
        out.add(facility_of(request.get("requester", {}), found.resources))
    for reference in found.main.get("specimen", ()):
        collection = (resolve(reference, found.resources) or {}).get("collection", {})
        out.add(facility_of(collection.get("collector", {}), found.resources))
    own = systems.facility_system(sender.id, "placer") + "/"
    names = {s.facility: p.id for p in profiles.values() for s in p.facility.senders}
    for identifier in _placers(found):
        space = unquote(identifier.get("system", "").removeprefix(own))
        out.add(sender.facility.performers.get(space, "") or names.get(space, ""))
    return {facility for facility in out if facility in profiles} - {sender.id}


async def facilities(
    conn: asyncpg.Connection,
    codec: Codec,
    found: Gathered,
    *,
    topic: str,
    sender: Profile,
    shard: int,
    patient: str | None,
    profiles: Mapping[str, Profile],
) -> dict[str, Known]:
    """Facilities that are told, and what each has of its own: all of them have a destination, but for users of what was corrected."""
    reachable = {p.id for p in profiles.values() if p.facility.destinations}
    used: set[str] = set()
    told: set[str] = set()
    if topic != "result-new":
        used = {r[0] for r in await conn.fetch(_USED, str(found.main["id"]))}
        told = {r[0] for r in await conn.fetch(_TOLD, found.reference)}
    # Its own doctors' use is told to the reporting facility only where it takes results from us.
    used -= {sender.id} - reachable
    known = await known_of(conn, codec, found, shard, patient, reachable | used)
    told |= named(found, sender, profiles) | {facility for facility, own in known.items() if own.orders} - {sender.id}
    return {facility: known.get(facility, Known()) for facility in sorted(told & reachable | used)}


async def known_of(
    conn: asyncpg.Connection, codec: Codec, found: Gathered, shard: int, patient: str | None, among: Iterable[str]
) -> dict[str, Known]:
    """Patients of other facilities that are the same person, with the orders that have the report's placer number."""
    if patient is None:
        return {}
    rows = await conn.fetch(_LINKED, shard, patient, sorted(among))
    people = await reader.read_many(conn, codec, [("Patient", r["patient"]) for r in rows])
    numbers = {i["value"] for i in _placers(found)}
    out: dict[str, Known] = {}
    for row in rows:
        before = out.get(row["facility"], Known())
        stored = people.get(("Patient", row["patient"]))
        mine = () if stored is None or stored.deleted else (loads(stored.body),)
        orders = await _orders(conn, codec, row["shard"], row["patient"], numbers, found) if numbers else ()
        visit = before.visit or await _visit(conn, codec, orders)
        out[row["facility"]] = Known((*before.patients, *mine), (*before.orders, *orders), visit)
    return out


async def _orders(
    conn: asyncpg.Connection, codec: Codec, shard: int, patient: str, numbers: set[str], found: Gathered
) -> tuple[dict[str, Any], ...]:
    """Orders of one Patient with one of the placer numbers, unless both sides say that something else was ordered."""
    ids = [r[0] for r in await conn.fetch(_ORDERS, shard, patient, RESOURCE_TYPES["ServiceRequest"])]
    stored = await reader.read_many(conn, codec, [("ServiceRequest", i) for i in ids])
    reported = _orderable(found.main)
    out = []
    for one in stored.values():
        order = loads(one.body)
        same = any(i.get("value") in numbers for i in order.get("identifier", ()) if identifier_code(i) == "PLAC")
        ordered = _orderable(order)
        # An order that is only mentioned in a result (status unknown) is no order this facility placed.
        placed = order.get("status") != "unknown"
        if same and placed and (ordered == reported or not ordered or not reported):
            out.append(order)
    return tuple(out)


async def _visit(conn: asyncpg.Connection, codec: Codec, orders: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    for order in orders:
        kind, _, logical = str(order.get("encounter", {}).get("reference", "")).partition("/")
        if kind == "Encounter":
            stored = await reader.read(conn, codec, kind, logical)
            if stored is not None and not stored.deleted:
                visit: dict[str, Any] = loads(stored.body)
                return visit
    return None


def _requests(found: Gathered) -> list[dict[str, Any]]:
    return [r for b in found.main.get("basedOn", ()) if (r := resolve(b, found.resources)) is not None]


def _placers(found: Gathered) -> list[dict[str, Any]]:
    holders = [found.main, *_requests(found)]
    return [i for h in holders for i in h.get("identifier", ()) if identifier_code(i) == "PLAC" and i.get("value")]


def _orderable(resource: dict[str, Any]) -> str:
    codings = resource.get("code", {}).get("coding", ())
    return next((c["code"] for c in codings if c.get("system") == systems.ORDERABLES), "")
