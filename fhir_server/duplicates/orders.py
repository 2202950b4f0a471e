"""The orders of a period, from ServiceRequests and, for feeds that send none, from reports.

Order time: ServiceRequest.authoredOn (ORC-9), else its occurrence (OBR-6, ORC-7/OBR-27); where a feed gives none, the earliest
collection time of its results, and those orders are counted apart (basis ``collection``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
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
from fhir_server.search import dates
from fhir_server.store.body import Codec
from mappings.catalogue import Orderable
from mappings.ids import shard_of_id
from mappings.profile import Profile

CHUNK: Final = 500
_NOT_ORDERED: Final = frozenset({"draft", "revoked", "entered-in-error"})
_ONLY_PROPOSED: Final = frozenset({"proposal", "plan", "option"})
_EVENT: Final = "http://hl7.org/fhir/StructureDefinition/businessEvent"
_SHANGHAI: Final = ZoneInfo("Asia/Shanghai")
_SOURCE: Final = re.compile(r"urn:tongjian:([^#]+)#")

# Of an order without any time of its own: when the first of what it brought was collected.
_ORDERS: Final = f"""
SELECT r.shard, r.id, r.patient, r."order", r.dict, r.body, r.issued_at, r.start_at, b.collected, p.facility
FROM resource r
LEFT JOIN LATERAL (
  SELECT min(coalesce(o.start_at, o.effective_at)) AS collected FROM resource o
  WHERE r.issued_at IS NULL AND r.start_at IS NULL AND o.shard = r.shard AND o.patient = r.patient
    AND o.rtype = {RESOURCE_TYPES["Observation"]} AND o."order" = r.id AND NOT o.deleted) b ON true
LEFT JOIN source_patient p ON p.shard = r.shard AND p.patient = r.patient
WHERE r.rtype = {RESOURCE_TYPES["ServiceRequest"]} AND NOT r.deleted AND r.patient IS NOT NULL
  AND mod(r.shard, %(parts)s) = %(part)s
  AND coalesce(r.issued_at, r.start_at, b.collected) >= %(start)s
  AND coalesce(r.issued_at, coalesce(r.start_at, b.collected) - %(slack)s) < %(end)s
ORDER BY r.shard, r.patient, r.id"""  # noqa: S608 - numbers of our own

# Reports of which one Observation at least names no order. Their Observations are found through the report's own time first.
_REPORTS: Final = f"""
SELECT d.shard, d.id AS report, d.patient, min(r.facility) AS facility, min(r.effective) AS collected,
  array_agg(DISTINCT r.item) AS items
FROM resource d
JOIN LATERAL (
  SELECT k.facility, k.item, coalesce(o.start_at, o.effective_at) AS effective
  FROM resource o JOIN resource_kind k ON k.id = o.tokens[1]
  WHERE o.shard = d.shard AND o.parent = d.id AND o.rtype = {RESOURCE_TYPES["Observation"]} AND o.patient = d.patient
    AND o."order" IS NULL AND k.status = ANY(%(status)s)) r ON true
WHERE d.rtype = {RESOURCE_TYPES["DiagnosticReport"]} AND NOT d.deleted AND d.patient IS NOT NULL
  AND mod(d.shard, %(parts)s) = %(part)s
  AND coalesce(d.start_at, d.issued_at, %(start)s) >= %(start)s - %(slack)s
  AND coalesce(d.start_at, d.issued_at, %(start)s) < %(end)s + %(slack)s
  AND (SELECT o."order" IS NULL FROM resource o WHERE o.shard = d.shard AND o.parent = d.id
       AND o.rtype = {RESOURCE_TYPES["Observation"]} ORDER BY o."order" NULLS FIRST LIMIT 1)
GROUP BY d.shard, d.id, d.patient HAVING min(r.effective) >= %(start)s AND min(r.effective) < %(end)s
ORDER BY d.shard, d.patient, d.id"""  # noqa: S608 - numbers of our own
SLACK: Final = timedelta(days=7)
"""How far the times of one order, of its specimen and of its report may lie apart and still be looked at together."""

_BROUGHT: Final = """
SELECT r."order", r.report, r.effective, r.item, r.id || '/_history/' || r.version
FROM (SELECT DISTINCT * FROM unnest(%(shards)s::smallint[], %(patients)s::text[]) AS u(shard, patient)) w
JOIN result r ON r.shard = w.shard AND r.patient = w.patient
WHERE r.until IS NULL AND (r."order" = ANY(%(orders)s) OR r."order" IS NULL AND r.report = ANY(%(reports)s))
ORDER BY r.id"""

_ENCOUNTERS: Final = """
SELECT r.dict, r.body, r.id, r.patient, r."order" FROM unnest(%s::smallint[], %s::text[]) AS w(shard, id)
JOIN resource r ON r.shard = w.shard AND r.rtype = %s AND r.id = w.id AND NOT r.deleted"""
_STAFF: Final = """
SELECT r.dict, r.body, r.id, r.patient, r."order" FROM unnest(%(shards)s::smallint[], %(ids)s::text[]) AS w(shard, id)
LEFT JOIN client_id c ON w.shard IS NULL AND c.rtype = %(rtype)s AND c.id = w.id
JOIN resource r ON r.shard = coalesce(w.shard, c.shard) AND r.rtype = %(rtype)s AND r.id = w.id AND NOT r.deleted"""


@dataclass(frozen=True, slots=True)
class Placed:
    """One orderable that was ordered.

    id        logical id of the ServiceRequest, empty when a report stands for it; report: that report's logical id
    reasons   lawful reason codes given in the order itself
    placers   ``system|value`` of the order's identifiers
    doctor, department  who ordered (staff number, else name as sent), and for which department; empty when nobody says so
    """

    shard: int
    id: str
    report: str
    patient: str
    facility: str
    orderable: Orderable
    at: datetime
    basis: Basis
    emergency: bool | None = None
    reasons: tuple[str, ...] = ()
    placers: tuple[str, ...] = ()
    doctor: str = ""
    department: str = ""


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
    part: tuple[int, int] = (0, 1),
) -> Iterator[Chunk]:
    """Every orderable ordered in [start, end) by a ServiceRequest, in chunks. ``part``: (n, of): every of-th shard from the n-th."""
    staff: dict[str, str] = {}
    with conn.cursor(name="audit_orders", row_factory=dict_row) as cursor:
        cursor.itersize = CHUNK
        cursor.execute(_ORDERS, _period(start, end, part))
        while rows := cursor.fetchmany(CHUNK):
            bodies = [
                fhirjson.loads(codec.decompress(row["dict"], row["body"], [row["id"], row["patient"], row["order"]]))
                for row in rows
            ]
            kept = [(r, b) for r, b in zip(rows, bodies, strict=True) if _placed(b)]
            visits = _encounters(conn, codec, kept)
            _learn(conn, codec, (_requester(b) for _, b in kept), staff)
            yield _chunk(conn, rules, profiles, kept, (visits, staff), start, end)


def _period(start: datetime, end: datetime, part: tuple[int, int]) -> dict[str, Any]:
    return {
        "start": start, "end": end, "slack": SLACK, "part": part[0], "parts": part[1], "status": ["final", "amended", "corrected"],
    }  # fmt: skip


def _placed(body: Mapping[str, Any]) -> bool:
    return not (
        body.get("status") in _NOT_ORDERED or body.get("intent") in _ONLY_PROPOSED or body.get("doNotPerform") is True
    )


def _chunk(
    conn: psycopg.Connection[Any],
    rules: Rules,
    profiles: Mapping[str, Profile],
    kept: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    known: tuple[Mapping[str, dict[str, Any]], Mapping[str, str]],
    start: datetime,
    end: datetime,
) -> Chunk:
    visits, staff = known
    placed: list[Placed] = []
    unknown: list[str] = []
    read = []
    for row, body in kept:
        facility = _facility(body) or row["facility"] or ""
        at = row["issued_at"] or row["start_at"] or row["collected"]
        wanted = orders.read(body, rules, profiles.get(facility), _day(profiles.get(facility), at)).orderable
        event = None if row["issued_at"] else _event(body)
        read.append((row, body, facility, at, wanted, event if event != at else None))
    open_ = [
        (row["shard"], row["patient"], row["id"]) for row, _, _, _, wanted, event in read if wanted is None or event
    ]
    brought = results_of(conn, open_, ())
    for row, body, facility, own, orderable, event in read:
        at, came = own, brought.get(row["id"], ())
        collected = min((effective for effective, _, _ in came if effective), default=row["collected"])
        # ORC-9 of a result message is the time of the order only if nothing had been collected yet.
        if event and collected and event <= collected:
            at = event
        if not start <= at < end:
            continue
        # A code nobody knows is not guessed; what the order brought says what it was.
        found = (orderable,) if orderable else orders.orderables_of([item for _, item, _ in came], rules)
        if not found:
            unknown.append(facility)
        visit = visits.get(_reference(body, "encounter", "Encounter"), {})
        timed = row["issued_at"] or row["start_at"] or at != own
        placed.extend(
            Placed(
                row["shard"],
                row["id"],
                "",
                row["patient"],
                facility,
                one,
                at,
                "order" if timed else "collection",
                is_emergency(visit) if visit else None,
                tuple(_reasons(body)),
                tuple(identifiers(body)),
                staff.get(_requester(body), "") or _display(body),
                _department(visit),
            )
            for one in found
        )
    return Chunk(tuple(placed), tuple(unknown))


def results_of(
    conn: psycopg.Connection[Any], wanted: Iterable[tuple[int, str, str]], reports: Iterable[tuple[int, str, str]]
) -> dict[str, list[tuple[datetime | None, str | None, str]]]:
    """(shard, Patient, ServiceRequest) or (shard, Patient, DiagnosticReport) -> by order or report id: effective time, item and
    ``<id>/_history/<version>`` of each current Observation it brought."""
    by_order, by_report = list(wanted), list(reports)
    if not (by_order or by_report):
        return {}
    who = [*by_order, *by_report]
    rows = conn.execute(
        _BROUGHT,
        {
            "shards": [s for s, _, _ in who],
            "patients": [p for _, p, _ in who],
            "orders": [o for _, _, o in by_order],
            "reports": [r for _, _, r in by_report],
        },
    )
    out: dict[str, list[tuple[datetime | None, str | None, str]]] = {}
    for order, report, effective, item, version in rows:
        out.setdefault(order or report, []).append((effective, item, version))
    return out


def _day(profile: Profile | None, at: datetime) -> str:
    zone = profile.zone if profile else _SHANGHAI
    return at.astimezone(zone).date().isoformat()


def read_reports(
    conn: psycopg.Connection[Any], rules: Rules, start: datetime, end: datetime, part: tuple[int, int] = (0, 1)
) -> Iterator[Chunk]:
    """Reports collected in [start, end) that name no order, as the orderables they contain; their collection time is the order's."""
    with conn.cursor(name="audit_reports", row_factory=dict_row) as cursor:
        cursor.itersize = CHUNK
        cursor.execute(_REPORTS, _period(start, end, part))
        while rows := cursor.fetchmany(CHUNK):
            placed: list[Placed] = []
            unknown: list[str] = []
            for row in rows:
                wanted = orders.orderables_of(row["items"], rules)
                if not wanted:
                    unknown.append(row["facility"])
                who = (row["shard"], "", row["report"], row["patient"], row["facility"])
                placed.extend(Placed(*who, orderable, row["collected"], "collection") for orderable in wanted)
            yield Chunk(tuple(placed), tuple(unknown))


def _encounters(
    conn: psycopg.Connection[Any], codec: Codec, kept: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    named = {(row["shard"], visit) for row, body in kept if (visit := _reference(body, "encounter", "Encounter"))}
    if not named:
        return {}
    shards, visits = zip(*sorted(named), strict=True)
    found = conn.execute(_ENCOUNTERS, (list(shards), list(visits), RESOURCE_TYPES["Encounter"])).fetchall()
    return {names[0]: fhirjson.loads(codec.decompress(number, body, names)) for number, body, *names in found}


def _requester(body: Mapping[str, Any]) -> str:
    found = body.get("requester")
    reference = found.get("reference") if isinstance(found, dict) else None
    return reference if isinstance(reference, str) else ""


def _display(body: Mapping[str, Any]) -> str:
    found = body.get("requester")
    found = found if isinstance(found, dict) else {}
    number = (found.get("identifier") or {}).get("value")
    return number or found.get("display") or _requester(body)


def _learn(conn: psycopg.Connection[Any], codec: Codec, references: Iterable[str], staff: dict[str, str]) -> None:
    """Adds to ``staff`` the number of each Practitioner, and through a PractitionerRole of its Practitioner."""
    asked = set(references)
    for kind in ("PractitionerRole", "Practitioner"):
        head = f"{kind}/"
        wanted = {r for r in (*asked, *staff.values()) if r.startswith(head)} - staff.keys()
        if not wanted:
            continue
        ids = [r.removeprefix(head) for r in wanted]
        named = {"shards": [shard_of_id(i) for i in ids], "ids": ids, "rtype": RESOURCE_TYPES[kind]}
        for number, body, *left_out in conn.execute(_STAFF, named).fetchall():
            staff[head + left_out[0]] = _number(fhirjson.loads(codec.decompress(number, body, left_out)))
    for reference, found in list(staff.items()):
        staff[reference] = staff.get(found, found)


def _number(person: Mapping[str, Any]) -> str:
    if person["resourceType"] == "PractitionerRole" and (
        reference := (person.get("practitioner") or {}).get("reference")
    ):
        return str(reference)
    return next((str(i["value"]) for i in person.get("identifier") or () if i.get("value")), "")


def _department(visit: Mapping[str, Any]) -> str:
    """Encounter.serviceType (PV1-10) as code, else text; else the place of its latest location (PV1-3) as text."""
    kind = visit.get("serviceType") or {}
    code = next((c["code"] for c in kind.get("coding") or () if c.get("code")), "") or kind.get("text") or ""
    places = [(at.get("location") or {}).get("display") for at in visit.get("location") or ()]
    return str(code or next((p for p in reversed(places) if p), ""))


def _event(body: Mapping[str, Any]) -> datetime | None:
    """ORC-9 where it is kept as the date of the message's event."""
    for extension in body.get("extension") or ():
        if extension.get("url") == _EVENT:
            for inner in extension.get("extension") or ():
                if inner.get("url") == "date" and isinstance(inner.get("valueDateTime"), str):
                    return _instant(inner["valueDateTime"])
    return None


def _instant(text: str) -> datetime | None:
    try:
        return dates.span(text, _SHANGHAI)[0]
    except ValueError:
        return None


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
