"""The orders of a period, from ServiceRequests and, for feeds that send none, from reports.

Order time: ServiceRequest.authoredOn (ORC-9, else OBR-6); where a feed gives none, the earliest collection time of its results, and
those orders are counted apart (basis ``collection``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import psycopg
from psycopg.rows import dict_row

from conformance import fhirjson, systems
from conformance.capability import RESOURCE_TYPES
from fhir_server.duplicates.report import Basis
from fhir_server.recognition import order as orders
from fhir_server.recognition.candidates import is_emergency
from fhir_server.recognition.check import identifiers
from fhir_server.recognition.rules import Rules
from fhir_server.store.body import Codec
from mappings.catalogue import Orderable
from mappings.profile import Profile

CHUNK: Final = 500
_NOT_ORDERED: Final = frozenset({"draft", "revoked", "entered-in-error"})
_ONLY_PROPOSED: Final = frozenset({"proposal", "plan", "option"})
_SOURCE: Final = re.compile(r"urn:tongjian:([^#]+)#")

# Collection time and items of what each order brought; and orders by authoredOn, else by that collection time.
_ORDERS: Final = """
WITH brought AS (
  SELECT shard, "order" AS id, min(effective) AS collected, array_agg(DISTINCT item) AS items,
    array_agg(id || '/_history/' || version) AS ids
  FROM result WHERE "order" IS NOT NULL AND until IS NULL AND effective >= %(start)s - interval '31 days' GROUP BY 1, 2
)
SELECT r.shard, r.id, r.patient, r."order", r.dict, r.body, r.issued_at, b.collected, b.items, b.ids, p.facility
FROM resource r
LEFT JOIN brought b ON b.shard = r.shard AND b.id = r.id
LEFT JOIN source_patient p ON p.shard = r.shard AND p.patient = r.patient
WHERE r.rtype = %(rtype)s AND NOT r.deleted AND r.patient IS NOT NULL
  AND coalesce(r.issued_at, b.collected) >= %(start)s AND coalesce(r.issued_at, b.collected) < %(end)s
ORDER BY coalesce(r.issued_at, b.collected), r.id"""

_REPORTS: Final = """
SELECT shard, report, patient, facility, min(effective) AS collected, array_agg(DISTINCT item) AS items,
  array_agg(id || '/_history/' || version) AS ids
FROM result
WHERE "order" IS NULL AND until IS NULL AND report IS NOT NULL AND status = ANY(%(status)s)
  AND effective >= %(start)s AND effective < %(end)s
GROUP BY shard, report, patient, facility ORDER BY 5, 2"""

_ENCOUNTERS: Final = """
SELECT r.dict, r.body, r.id, r.patient, r."order" FROM unnest(%s::smallint[], %s::text[]) AS w(shard, id)
JOIN resource r ON r.shard = w.shard AND r.rtype = %s AND r.id = w.id AND NOT r.deleted"""


@dataclass(frozen=True, slots=True)
class Placed:
    """One orderable that was ordered.

    id        logical id of the ServiceRequest, empty when a report stands for it; report: that report's logical id
    results   Observations it brought, ``<id>/_history/<version>``; reasons: lawful reason codes given in the order itself
    placers   ``system|value`` of the order's identifiers
    """

    shard: int
    id: str
    report: str
    patient: str
    facility: str
    orderable: Orderable
    at: datetime
    basis: Basis
    results: tuple[str, ...]
    emergency: bool | None = None
    reasons: tuple[str, ...] = ()
    placers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some orders of the period, and for each facility how many more could not be understood."""

    placed: tuple[Placed, ...]
    not_understood: tuple[str, ...]


def read_orders(
    conn: psycopg.Connection[Any],
    codec: Codec,
    rules: Rules,
    profiles: Mapping[str, Profile],
    start: datetime,
    end: datetime,
) -> Iterator[Chunk]:
    """Every orderable ordered in [start, end) by a ServiceRequest, in chunks, oldest first."""
    parameters = {"start": start, "end": end, "rtype": RESOURCE_TYPES["ServiceRequest"]}
    with conn.cursor(name="audit_orders", row_factory=dict_row) as cursor:
        cursor.itersize = CHUNK
        cursor.execute(_ORDERS, parameters)
        while rows := cursor.fetchmany(CHUNK):
            yield _chunk(conn, codec, rules, profiles, rows)


def _chunk(
    conn: psycopg.Connection[Any],
    codec: Codec,
    rules: Rules,
    profiles: Mapping[str, Profile],
    rows: Sequence[Mapping[str, Any]],
) -> Chunk:
    names = ("id", "patient", "order")
    bodies = [fhirjson.loads(codec.decompress(r["dict"], r["body"], [r[name] for name in names])) for r in rows]
    emergencies = _emergencies(conn, codec, rows, bodies)
    placed: list[Placed] = []
    unknown: list[str] = []
    for row, body in zip(rows, bodies, strict=True):
        if (
            body.get("status") in _NOT_ORDERED
            or body.get("intent") in _ONLY_PROPOSED
            or body.get("doNotPerform") is True
        ):
            continue
        facility = _facility(body) or row["facility"] or ""
        profile = profiles.get(facility)
        at = row["issued_at"] or row["collected"]
        zone = ZoneInfo(profile.facility.time_zone) if profile else ZoneInfo("Asia/Shanghai")
        found = orders.read(body, rules, profile, at.astimezone(zone).date().isoformat())
        # A code nobody knows is not guessed; what the order brought says what it was.
        wanted = (found.orderable,) if found.orderable else orders.orderables_of(row["items"] or (), rules)
        if not wanted:
            unknown.append(facility)
        basis: Basis = "order" if row["issued_at"] else "collection"
        placed.extend(
            Placed(
                row["shard"],
                row["id"],
                "",
                row["patient"],
                facility,
                orderable,
                at,
                basis,
                tuple(sorted(row["ids"] or ())),
                emergencies.get(_reference(body, "encounter", "Encounter")),
                tuple(_reasons(body)),
                tuple(identifiers(body)),
            )
            for orderable in wanted
        )
    return Chunk(tuple(placed), tuple(unknown))


def read_reports(conn: psycopg.Connection[Any], rules: Rules, start: datetime, end: datetime) -> Iterator[Chunk]:
    """Reports collected in [start, end) that name no order, as the orderables they contain; their collection time is the order's."""
    parameters = {"start": start, "end": end, "status": ["final", "amended", "corrected"]}
    with conn.cursor(name="audit_reports", row_factory=dict_row) as cursor:
        cursor.itersize = CHUNK
        cursor.execute(_REPORTS, parameters)
        while rows := cursor.fetchmany(CHUNK):
            placed: list[Placed] = []
            unknown: list[str] = []
            for row in rows:
                wanted = orders.orderables_of(row["items"], rules)
                if not wanted:
                    unknown.append(row["facility"])
                who = (row["shard"], "", row["report"], row["patient"], row["facility"])
                placed.extend(
                    Placed(*who, orderable, row["collected"], "collection", tuple(sorted(row["ids"])))
                    for orderable in wanted
                )
            yield Chunk(tuple(placed), tuple(unknown))


def _emergencies(
    conn: psycopg.Connection[Any], codec: Codec, rows: Sequence[Mapping[str, Any]], bodies: Sequence[Mapping[str, Any]]
) -> dict[str, bool | None]:
    named = {
        (row["shard"], visit)
        for row, body in zip(rows, bodies, strict=True)
        if (visit := _reference(body, "encounter", "Encounter"))
    }
    if not named:
        return {}
    shards, visits = zip(*sorted(named), strict=True)
    found = conn.execute(_ENCOUNTERS, (list(shards), list(visits), RESOURCE_TYPES["Encounter"])).fetchall()
    return {
        names[0]: is_emergency(fhirjson.loads(codec.decompress(number, body, names))) for number, body, *names in found
    }


def _facility(body: Mapping[str, Any]) -> str:
    meta = body.get("meta")
    found = _SOURCE.match(meta.get("source", "")) if isinstance(meta, dict) else None
    return found[1] if found else ""


def _reference(body: Mapping[str, Any], element: str, type: str) -> str:
    found = body.get(element)
    reference = found.get("reference") if isinstance(found, dict) else None
    head, _, logical = reference.partition("/") if isinstance(reference, str) else ("", "", "")
    return logical if head == type else ""


def _reasons(body: Mapping[str, Any]) -> Iterator[str]:
    for concept in body.get("reasonCode", ()):
        for coding in concept.get("coding", ()):
            if coding.get("system") == systems.REPEAT_REASONS and coding.get("code"):
                yield coding["code"]
