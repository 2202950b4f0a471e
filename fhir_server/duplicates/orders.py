"""The orders of a period, from ServiceRequests and, for feeds that send none, from reports.

Order time: ServiceRequest.authoredOn (ORC-9), else its occurrence (OBR-6, ORC-7/OBR-27); where a feed gives none, the earliest
collection time of its results, and those orders are counted apart (basis ``collection``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import orjson
import psycopg
from psycopg.rows import dict_row

from conformance import systems
from conformance.capability import RESOURCE_TYPES
from fhir_server.duplicates.report import Basis
from fhir_server.recognition import order as orders
from fhir_server.recognition.check import identifiers
from fhir_server.recognition.circumstances import UNKNOWN, Circumstances, of_request
from fhir_server.recognition.rules import Rules
from fhir_server.search import dates
from fhir_server.store.body import Codec
from fhir_server.store.results import not_care
from mappings.catalogue import Orderable
from mappings.ids import shard_of_id
from mappings.profile import Profile

CHUNK: Final = 4000
_NOT_ORDERED: Final = frozenset({"draft", "revoked", "entered-in-error"})
_CHANGED: Final = b'"code":"XO"'
"""ServiceRequest of a message with ORC-1 XO (table 0119: change order)."""
_ONLY_PROPOSED: Final = frozenset({"proposal", "plan", "option"})
_EVENT: Final = "http://hl7.org/fhir/StructureDefinition/businessEvent"
_SHANGHAI: Final = ZoneInfo("Asia/Shanghai")
_SOURCE: Final = re.compile(r"urn:tongjian:([^#]+)#")

# Of an order without any time of its own: when the first of what it brought was collected; else its message tells (``_event``).
_ORDERS: Final = f"""
SELECT r.shard, r.id, r.patient, r."order", r.dict, r.body, r.issued_at, r.start_at, b.collected, r.updated
FROM resource r
LEFT JOIN LATERAL (
  SELECT min(coalesce(o.start_at, o.effective_at)) AS collected FROM resource o
  WHERE r.issued_at IS NULL AND r.start_at IS NULL AND o.shard = r.shard AND o.patient = r.patient
    AND o.rtype = {RESOURCE_TYPES["Observation"]} AND o."order" = r.id AND NOT o.deleted) b ON true
WHERE r.rtype = {RESOURCE_TYPES["ServiceRequest"]} AND NOT r.deleted AND r.patient IS NOT NULL
  AND mod(r.shard, %(parts)s) = %(part)s
  AND coalesce(r.issued_at, r.start_at, b.collected, r.updated) >= %(start)s
  AND coalesce(r.issued_at, coalesce(r.start_at, b.collected, r.updated) - %(slack)s) < %(end)s
ORDER BY r.shard, r.patient, r.id"""  # noqa: S608 - numbers of our own

# Reports of which one Observation at least names no order (index resource_unordered).
_REPORTS: Final = f"""
SELECT u.shard, u.report, u.patient, u.facility, u.collected, u.items FROM (
  SELECT o.shard, o.parent AS report, o.patient, min(k.facility) AS facility, min(coalesce(o.start_at, o.effective_at)) AS collected,
    array_agg(DISTINCT k.item) AS items
  FROM resource o JOIN resource_kind k ON k.id = o.tokens[1] AND k.status = ANY(%(status)s)
  WHERE o.rtype = {RESOURCE_TYPES["Observation"]} AND o."order" IS NULL AND o.parent IS NOT NULL AND o.patient IS NOT NULL
    AND mod(o.shard, %(parts)s) = %(part)s
  GROUP BY o.shard, o.parent, o.patient
  HAVING min(coalesce(o.start_at, o.effective_at)) >= %(start)s AND min(coalesce(o.start_at, o.effective_at)) < %(end)s) u
JOIN resource d ON d.shard = u.shard AND d.rtype = {RESOURCE_TYPES["DiagnosticReport"]} AND d.id = u.report AND NOT d.deleted
ORDER BY u.shard, u.patient, u.report"""  # noqa: S608 - numbers of our own
SLACK: Final = timedelta(days=7)
"""How far the times of one order, of its specimen and of its report may lie apart and still be looked at together."""

# By the index resource_patient: what an order brought is in its Patient's compartment.
_BROUGHT: Final = f"""
SELECT w.key, coalesce(r.start_at, r.effective_at), k.item, r.id || '/_history/' || r.version
FROM (SELECT u.shard, u.patient, u.key, u.ordered FROM unnest(%(shards)s::smallint[], %(patients)s::text[], %(keys)s::text[],
  %(ordered)s::boolean[]) AS u(shard, patient, key, ordered)) w
CROSS JOIN LATERAL (
  SELECT * FROM resource r WHERE r.shard = w.shard AND r.patient = w.patient AND r.rtype = {RESOURCE_TYPES["Observation"]}
    AND NOT r.deleted AND CASE WHEN w.ordered THEN r."order" = w.key ELSE r."order" IS NULL AND r.parent = w.key END OFFSET 0) r
JOIN resource_kind k ON k.id = r.tokens[1]
ORDER BY r.id"""  # noqa: S608 - a number of our own

_HOMES: Final = """
SELECT p.shard, p.patient, p.facility FROM unnest(%s::smallint[], %s::text[]) AS w(shard, patient)
JOIN source_patient p ON p.shard = w.shard AND p.patient = w.patient"""
_STAFF: Final = """
SELECT r.dict, r.body, r.id, r.patient, r."order" FROM unnest(%(shards)s::smallint[], %(ids)s::text[]) AS w(shard, id)
LEFT JOIN client_id c ON w.shard IS NULL AND c.rtype = %(rtype)s AND c.id = w.id
JOIN resource r ON r.shard = coalesce(w.shard, c.shard) AND r.rtype = %(rtype)s AND r.id = w.id AND NOT r.deleted"""


class Placed(NamedTuple):
    """One orderable that was ordered.

    id        logical id of the ServiceRequest, empty when a report stands for it; report: that report's logical id
    reasons   lawful reason codes given in the order itself
    placers   ``system|value`` of the order's identifiers
    emergency, surgery  circumstances as order and visit state them (recognition.circumstances)
    doctor, department  who ordered (staff number, else name as sent), and for which department; empty when nobody says so
    visit     logical id of the Encounter while nobody has looked at it (``with_visits``)
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
    surgery: bool | None = None
    visit: str = ""


class Unknown(NamedTuple):
    """An order whose code nobody knows and whose results say nothing either. order: ``<type>/<logical id>``."""

    order: str
    facility: str
    at: datetime
    basis: Basis


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some orders of the period, and those that could not be understood."""

    placed: tuple[Placed, ...]
    not_understood: tuple[Unknown, ...]


def read_orders(
    conn: psycopg.Connection[Any],
    codec: Codec,
    rules: Rules,
    profiles: Mapping[str, Profile],
    start: datetime,
    end: datetime,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Chunk]:
    """Every orderable ordered in [start, end) by a ServiceRequest, in chunks, its visit not yet looked at.

    ``part``: (n, of): every of-th shard from the n-th.
    """
    reading = _Reading(conn, codec, rules, profiles)
    with conn.cursor(name="audit_orders", binary=True) as cursor:
        _wholly(conn)
        cursor.execute(_ORDERS, _period(start, end, part))
        held: list[_Row] = []
        while rows := cursor.fetchmany(CHUNK):
            # All orders of one Patient together: a changed one takes the place of another.
            held += [_Row(*row) for row in rows]
            last = held[-1].patient
            split = next(n for n, row in enumerate(held) if row.patient == last)
            yield reading.chunk(held[:split], start, end)
            held = held[split:]
        yield reading.chunk(held, start, end)


def _wholly(conn: psycopg.Connection[Any]) -> None:
    """Cursors of this transaction are planned to be read to their end; planned for its first tenth, a part walked all results."""
    conn.execute("SET LOCAL cursor_tuple_fraction = 1")


def _period(start: datetime, end: datetime, part: tuple[int, int]) -> dict[str, Any]:
    return {
        "start": start, "end": end, "slack": SLACK, "part": part[0], "parts": part[1], "status": ["final", "amended", "corrected"],
    }  # fmt: skip


class _Row(NamedTuple):
    """A row of ``_ORDERS``."""

    shard: int
    id: str
    patient: str
    order: str | None
    dict: int
    body: bytes
    issued: datetime | None
    start: datetime | None
    collected: datetime | None
    updated: datetime


def _placed(body: Mapping[str, Any]) -> bool:
    return not (
        not_care(body)
        or body.get("status") in _NOT_ORDERED
        or body.get("intent") in _ONLY_PROPOSED
        or body.get("doNotPerform") is True
    )


def _replaced(kept: Sequence[_Told]) -> set[str]:
    """Ids of orders whose number a later message gave to something else (ORC-1 XO): they stay as sent, and nobody wants them."""
    out: set[str] = set()
    for now in (told for told in kept if told.changed):
        numbers = set(now.numbers)
        for other in kept:
            same = other.row.patient == now.row.patient and other.row.updated < now.row.updated
            if same and not numbers.isdisjoint(other.numbers):
                out.add(other.row.id)
    return out


class _Told(NamedTuple):
    """What one ServiceRequest says, as far as an audit asks. Its body is dropped as soon as it is read: to keep the values of thousands
    of bodies in memory takes five times as long as to read them one by one."""

    row: _Row
    facility: str
    code: bytes
    requester: str
    doctor: str
    numbers: tuple[str, ...]
    reasons: tuple[str, ...]
    said: Circumstances
    visit: str
    event: datetime | None
    changed: bool


def _told(row: _Row, raw: bytes) -> _Told | None:
    """None: nobody ordered it."""
    body = orjson.loads(raw)
    if not _placed(body):
        return None
    given = "reasonCode" in body
    return _Told(
        row,
        _facility(body),
        orjson.dumps(body.get("code")),
        _requester(body),
        _display(body),
        tuple(identifiers(body)),
        tuple(_reasons(body)) if given else (),
        of_request(body) if given else UNKNOWN,
        reference_of(body, "encounter", "Encounter"),
        None if row.issued else _event(body),
        _CHANGED in raw,
    )


class _Reading:
    """Reads ServiceRequests; what one facility's order code means on a day, and who its doctors are, is looked up once."""

    def __init__(
        self, conn: psycopg.Connection[Any], codec: Codec, rules: Rules, profiles: Mapping[str, Profile]
    ) -> None:
        self.conn, self.codec, self.rules, self.profiles = conn, codec, rules, profiles
        self.staff: dict[str, str] = {}
        self.meant: dict[tuple[Any, ...], Orderable | None] = {}

    def chunk(self, rows: Sequence[_Row], start: datetime, end: datetime) -> Chunk:
        """The orders of some rows whose time is inside [start, end)."""
        decompress = self.codec.decompress
        read = (_told(row, decompress(row.dict, row.body, (row.id, row.patient, row.order))) for row in rows)
        kept = [told for told in read if told]
        if instead := _replaced(kept):
            kept = [told for told in kept if told.row.id not in instead]
        homes = self._homes(told.row for told in kept if not told.facility)
        _learn(self.conn, self.codec, {told.requester for told in kept}, self.staff)
        timed = []
        for told in kept:
            row, event = told.row, told.event
            facility = told.facility or homes.get((row.shard, row.patient), "")
            at = row.issued or row.start or row.collected or event
            if at is not None:
                wanted = self._wanted(told.code, facility, at)
                timed.append((told, facility, at, wanted, event if event != at else None))
        open_ = [(t.row.shard, t.row.patient, t.row.id) for t, _, _, wanted, event in timed if wanted is None or event]
        brought = results_of(self.conn, open_, ())
        placed: list[Placed] = []
        unknown: list[Unknown] = []
        for told, facility, at, orderable, event in timed:
            row, placed_at = told.row, at
            basis: Basis = "collection" if at == row.collected and not (row.issued or row.start) else "order"
            found: Sequence[Orderable] = (orderable,) if orderable else ()
            if row.id in brought or event:
                came = brought.get(row.id, ())
                collected = min((effective for effective, _, _ in came if effective), default=row.collected)
                # ORC-9 of a result message is the time of the order only if nothing had been collected yet.
                if event and collected and event <= collected:
                    placed_at, basis = event, "order"
                # A code nobody knows is not guessed; what the order brought says what it was.
                found = found or orders.orderables_of([item for _, item, _ in came], self.rules)
            if not start <= placed_at < end:
                continue
            if not found:
                unknown.append(Unknown(f"ServiceRequest/{row.id}", facility, placed_at, basis))
            placed.extend([self._one(told, facility, one, placed_at, basis) for one in found])
        return Chunk(tuple(placed), tuple(unknown))

    def _homes(self, rows: Iterable[_Row]) -> dict[tuple[int, str], str]:
        """(shard, Patient) -> its facility, of orders that do not say whose they are."""
        asked = sorted({(row.shard, row.patient) for row in rows})
        if not asked:
            return {}
        found = self.conn.execute(_HOMES, ([s for s, _ in asked], [p for _, p in asked]))
        return {(shard, patient): facility for shard, patient, facility in found}

    def _wanted(self, code: bytes, facility: str, at: datetime) -> Orderable | None:
        profile = self.profiles.get(facility)
        day = _day(profile, at)
        # A code means the same all through a period of the facility's tables.
        key = (facility, profile and (profile.orders.period(day), profile.tests.period(day)), code)
        if key not in self.meant:
            self.meant[key] = orders.read({"code": orjson.loads(code)}, self.rules, profile, day).orderable
        return self.meant[key]

    def _one(self, told: _Told, facility: str, orderable: Orderable, at: datetime, basis: Basis) -> Placed:
        return Placed(
            told.row.shard,
            told.row.id,
            "",
            told.row.patient,
            facility,
            orderable,
            at,
            basis,
            told.said.emergency,
            told.reasons,
            told.numbers,
            self.staff.get(told.requester, "") or told.doctor,
            surgery=told.said.surgery,
            visit=told.visit,
        )


def results_of(
    conn: psycopg.Connection[Any], wanted: Iterable[tuple[int, str, str]], reports: Iterable[tuple[int, str, str]]
) -> dict[str, list[tuple[datetime | None, str | None, str]]]:
    """(shard, Patient, ServiceRequest) or (shard, Patient, DiagnosticReport) -> by order or report id: effective time, item and
    ``<id>/_history/<version>`` of each current Observation it brought."""
    asked = [(*w, True) for w in set(wanted)] + [(*w, False) for w in set(reports)]
    if not asked:
        return {}
    shards, patients, keys, ordered = map(list, zip(*asked, strict=True))
    given = {"shards": shards, "patients": patients, "keys": keys, "ordered": ordered}
    out: dict[str, list[tuple[datetime | None, str | None, str]]] = {}
    for key, effective, item, version in conn.execute(_BROUGHT, given):
        out.setdefault(key, []).append((effective, item, version))
    return out


def _day(profile: Profile | None, at: datetime) -> str:
    zone = profile.zone if profile else _SHANGHAI
    return at.astimezone(zone).date().isoformat()


def read_reports(
    conn: psycopg.Connection[Any], rules: Rules, start: datetime, end: datetime, part: tuple[int, int] = (0, 1)
) -> Iterator[Chunk]:
    """Reports collected in [start, end) that name no order, as the orderables they contain; their collection time is the order's."""
    with conn.cursor(name="audit_reports", row_factory=dict_row) as cursor:
        _wholly(conn)
        cursor.execute(_REPORTS, _period(start, end, part))
        while rows := cursor.fetchmany(CHUNK):
            placed: list[Placed] = []
            unknown: list[Unknown] = []
            for row in rows:
                wanted = orders.orderables_of(row["items"], rules)
                if not wanted:
                    unknown.append(
                        Unknown(f"DiagnosticReport/{row['report']}", row["facility"], row["collected"], "collection")
                    )
                who = (row["shard"], "", row["report"], row["patient"], row["facility"])
                placed.extend(Placed(*who, orderable, row["collected"], "collection") for orderable in wanted)
            yield Chunk(tuple(placed), tuple(unknown))


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
            staff[head + left_out[0]] = _number(orjson.loads(codec.decompress(number, body, left_out)))
    for reference, found in list(staff.items()):
        staff[reference] = staff.get(found, found)


def _number(person: Mapping[str, Any]) -> str:
    if person["resourceType"] == "PractitionerRole" and (
        reference := (person.get("practitioner") or {}).get("reference")
    ):
        return str(reference)
    return next((str(i["value"]) for i in person.get("identifier") or () if i.get("value")), "")


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


def reference_of(body: Mapping[str, Any], element: str, type: str) -> str:
    """Logical id of an element that refers to a resource of a type; empty when it does not."""
    found = body.get(element)
    reference = found.get("reference") if isinstance(found, dict) else None
    head, _, logical = reference.partition("/") if isinstance(reference, str) else ("", "", "")
    return logical if head == type else ""


def _reasons(body: Mapping[str, Any]) -> Iterator[str]:
    for concept in body.get("reasonCode", ()):
        for coding in concept.get("coding", ()):
            if coding.get("system") == systems.REPEAT_REASONS and coding.get("code"):
                yield coding["code"]
