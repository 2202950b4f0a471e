"""One year of a county for the audit bench, of any size: messages stored for real, then told again in SQL about other people.

Every order code of every facility of the example county is sent once, as order and as result, through inbox and pipeline. What the
store made of them is copied by set: new ids, people, visits and times, everything else as it is; ServiceRequests and Encounters,
which an audit opens, get bodies of their own. Seeded. People come back as patients do: follow-up visits, referrals from a township to
the county hospital that repeat its tests within a week, and stays with the same tests every day.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import psycopg

from adapters.convert import peek
from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import dumps, loads
from fhir_server.bench import load
from fhir_server.bench.templates import Filled
from fhir_server.demo.county import CLINIC, COUNTY, DIALECTS, NORTH, SOUTH, Report, Writer, draw
from fhir_server.demo.people import population
from fhir_server.demo.run import example_panels
from fhir_server.ingest.claim import claim
from fhir_server.ingest.pipeline import Pipeline
from fhir_server.store.body import Codec
from mappings.ids import _PAIRS, SHARDS
from mappings.profile import Profile, load_profiles

SEED: Final = 20251231
BEGIN: Final = datetime(2025, 1, 1, tzinfo=UTC)
YEAR: Final = timedelta(days=365)
OFTEN: Final = {
    "CBC": 30, "URINE": 14, "CHEM": 14, "LIVER": 9, "RENAL": 8, "LIPID": 5, "ELECTROLYTE": 6, "COAG4": 4, "GLU": 5, "FGLU": 4,
    "THYROID": 3, "HBA1C": 2, "CRP": 4, "INFECT4": 2, "CARDENZ": 2,
}  # fmt: skip
"""How often an orderable is ordered, of a hundred; every other one once. Estimated, not counted anywhere."""
_LATER: Final = (timedelta(0), timedelta(hours=1), timedelta(hours=3))
_TYPES: Final = {
    kind: RESOURCE_TYPES[kind] for kind in ("ServiceRequest", "DiagnosticReport", "Specimen", "Observation")
}

_STAGING: Final = """
CREATE UNLOGGED TABLE bench_told (n bigint, shard smallint, prefix text, patient text, sample int, at timestamptz, serial text,
  ordered boolean);
CREATE UNLOGGED TABLE bench_own (shard smallint, rtype smallint, id text, patient text, at timestamptz, facility text, dict smallint,
  body bytea);
CREATE UNLOGGED TABLE bench_people (shard smallint, patient text, facility text, person text);
"""
# What the store made of each sample, beside the time it was ordered at.
_SAMPLES: Final = """
CREATE UNLOGGED TABLE bench_sample AS
SELECT s.sample, s.ordered, row_number() OVER (PARTITION BY s.sample ORDER BY r.rtype, r.id) AS place, r.*,
  min(r.id) FILTER (WHERE r.rtype = %(report)s) OVER (PARTITION BY s.sample) AS own_report
FROM unnest(%(samples)s::int[], %(inboxes)s::bigint[], %(times)s::timestamptz[]) AS s(sample, inbox, ordered)
JOIN resource r ON r.inbox = s.inbox AND r.rtype = ANY(%(types)s)"""
_COLUMNS: Final = (
    "updated, start_at, end_at, issued_at, effective_at, reported_at, inbox, version, top, mapping, shard, rtype, dict, id, patient,"
    ' parent, recency, content, "order", number, value_text, body, tokens'
)
_ID: Final = "t.prefix || substr(md5(t.serial || {}), 1, 22)"
_TELL: Final = f"""
INSERT INTO resource ({_COLUMNS})
SELECT t.at + interval '3 hours 2 seconds', t.at + (o.start_at - o.ordered), t.at + (o.end_at - o.ordered),
  t.at + (o.issued_at - o.ordered), t.at + (o.effective_at - o.ordered), t.at + (o.reported_at - o.ordered), o.inbox, 1, 1, o.mapping,
  t.shard, o.rtype, o.dict, CASE WHEN o.id = o.own_report THEN {_ID.format("'report'")} ELSE {_ID.format("o.place")} END, t.patient,
  CASE WHEN o.parent IS NOT NULL THEN {_ID.format("'report'")} END, o.recency, o.content,
  CASE WHEN o."order" IS NOT NULL AND t.ordered THEN {_ID.format("'order'")} END, o.number, o.value_text, o.body, o.tokens
FROM (SELECT * FROM bench_told WHERE n >= %(first)s AND n < %(last)s ORDER BY at) t
JOIN bench_sample o ON o.sample = t.sample AND o.rtype <> %(order)s"""  # noqa: S608 - texts of our own
_OWN: Final = f"""
INSERT INTO resource ({_COLUMNS})
SELECT w.at, w.at, w.at + interval '1 second', CASE WHEN w.rtype = %(order)s THEN w.at END, NULL, NULL, NULL, 1, 1, NULL, w.shard,
  w.rtype, w.dict, w.id, w.patient, NULL, ''::bytea, ''::bytea, NULL, NULL, NULL, w.body,
  ARRAY[]::bigint[]
FROM bench_own w"""  # noqa: S608 - texts of our own
_PEOPLE: Final = (
    "INSERT INTO source_patient (shard, patient, facility, person) SELECT shard, patient, facility, person FROM bench_people",
    "INSERT INTO identity_link (shard, patient, recorded, person, grade, basis) SELECT shard, patient, '2024-12-01Z', person,"
    " 'certain', 'resident-id' FROM bench_people",
)
# One order in twenty was reminded of, and nobody answered.
_LEDGER: Final = """
INSERT INTO ledger (chain, number, at, kind, person, facility, orderable, outcome, entry, hash)
SELECT 'bench', t.n, t.at, 'reminder', p.person, p.facility, s.orderable, 'recognized',
  '{"card": "' || t.serial || '", "placers": []}', ''
FROM bench_told t JOIN bench_people p ON p.shard = t.shard AND p.patient = t.patient
JOIN unnest(%s::int[], %s::text[]) AS s(sample, orderable) ON s.sample = t.sample WHERE t.n %% 20 = 0 AND t.ordered"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One order code of a facility, sent for real: number, facility, orderable, ServiceRequest and Encounter as stored, with holes."""

    number: int
    facility: str
    orderable: str
    results: int
    order: Filled
    visit: Filled
    emergency: Filled


@dataclass(frozen=True, slots=True)
class Told:
    """One order of the year."""

    patient: tuple[int, str]
    facility: str
    sample: Sample
    at: datetime
    visit: str


def load_year(url: str, profiles_dir: Path | None, observations: int) -> dict[str, Any]:
    """Fills an empty migrated database with one year (2025) of at least ``observations``; figures of what was done."""
    began = time.perf_counter()
    profiles = load_profiles(profiles_dir)
    with psycopg.connect(url, autocommit=True) as conn:
        samples, sent = _store_samples(conn, url, profiles)
        load.drop_indexes(conn)
        conn.execute(_STAGING)
        conn.execute(
            _SAMPLES,
            {
                "samples": [n for n, _, _ in sent],
                "inboxes": [i for _, i, _ in sent],
                "times": [at for _, _, at in sent],
                "types": list(_TYPES.values()),
                "report": _TYPES["DiagnosticReport"],
            },
        )
        orders = _stage(conn, url, Codec.load(conn), samples, observations)
        for statement in _PEOPLE:
            conn.execute(statement)
        conn.execute(_LEDGER, ([s.number for s in samples], [s.orderable for s in samples]))
        _tell(url, orders)
        conn.execute(_OWN, {"order": _TYPES["ServiceRequest"]})
        filled = time.perf_counter()
        conn.execute("DROP TABLE bench_told, bench_own, bench_people, bench_sample")
        load.build_indexes(conn)
        conn.execute("VACUUM (ANALYZE)")
        now = load.stored(conn)
    return {
        "observations": now,
        "orders": orders,
        "load_seconds": round(filled - began, 1),
        "index_seconds": round(time.perf_counter() - filled, 1),
    }


def _store_samples(
    conn: psycopg.Connection[Any], url: str, profiles: Mapping[str, Profile]
) -> tuple[list[Sample], list[tuple[int, int, datetime]]]:
    """Each order code of each facility once, through inbox and pipeline; with the inbox id and the time of its order."""
    rng = random.Random(SEED)  # noqa: S311 - invented results
    people = iter(population(200, rng, BEGIN.date()))
    made: list[load.Sample] = []
    known: list[tuple[str, str, int]] = []
    known_panels = example_panels(profiles)
    for dialect in DIALECTS:
        writer, profile = Writer(dialect), profiles[dialect.facility]
        at = BEGIN.astimezone(profile.zone).replace(hour=9)
        for panel in known_panels[dialect.facility]:
            person = next(people)
            filler = f"{dialect.sender}YEAR{len(known):04d}"
            ordered, drawn, issued = (at + d for d in _LATER)
            report = Report(dialect, person, panel, filler, ordered, drawn, issued, draw(panel, rng))
            for raw in (writer.visit(person, at), writer.order(report), writer.result(report)):
                made.append(
                    load.Sample(
                        dialect.facility, dialect.address, raw, filler, peek(raw, profile).control_id, (at, at, at)
                    )
                )
            known.append((dialect.facility, panel.orderable, len(panel.tests)))
    accepted = asyncio.run(load.accept(url, profiles, made))
    pipeline = Pipeline(profiles, Codec.load(conn), lambda: datetime.now(UTC))
    for turn in count():
        claimed = claim(conn, f"bench/{turn}", 60.0, 40)
        if not claimed:
            break
        pipeline.work(conn, f"bench/{turn}", claimed)
    codec = Codec.load(conn)
    samples, sent = [], []
    for number, (facility, orderable, results) in enumerate(known):
        mine = accepted[3 * number : 3 * number + 3]
        order, patient = _body(conn, codec, mine, "ServiceRequest")
        visit, _ = _body(conn, codec, mine, "Encounter")
        encounter = visit["id"]
        text = dumps(visit)
        urgent = text.replace(b'"AMB"', b'"EMER"')
        holes = (patient, encounter)
        samples.append(
            Sample(
                number, facility, orderable, results,
                Filled.cut(dumps(order), (*holes, order["id"])), Filled.cut(text, holes), Filled.cut(urgent, holes),
            )
        )  # fmt: skip
        sent += [(number, inbox, made[3 * number].times[0]) for inbox in mine]
    return samples, sent


def _body(conn: psycopg.Connection[Any], codec: Codec, inboxes: Sequence[int], kind: str) -> tuple[dict[str, Any], str]:
    row = conn.execute(
        'SELECT dict, body, id, patient, "order" FROM resource WHERE inbox = ANY(%s) AND rtype = %s',
        (list(inboxes), RESOURCE_TYPES[kind]),
    ).fetchone()
    assert row is not None, f"the sample has no {kind}"
    resource: dict[str, Any] = loads(codec.decompress(row[0], row[1], row[2:]))
    return resource, row[3]


# --- the year ----------------------------------------------------------------------------------------------------------------


def _stage(conn: psycopg.Connection[Any], url: str, codec: Codec, samples: Sequence[Sample], observations: int) -> int:
    """People, visits and orders into the staging tables; the number of orders."""
    rng = random.Random(SEED)  # noqa: S311 - invented people
    by_facility: dict[str, tuple[list[Sample], list[int]]] = {}
    for s in samples:
        chosen, weights = by_facility.setdefault(s.facility, ([], []))
        chosen.append(s)
        weights.append(OFTEN.get(s.orderable, 1))
    left, orders, written = observations, 0, 0
    people: list[tuple[int, str, str, str]] = []
    with psycopg.connect(url) as other, other.cursor() as own, conn.cursor() as told:
        with (
            own.copy("COPY bench_own FROM STDIN (FORMAT BINARY)") as put_own,
            told.copy("COPY bench_told FROM STDIN (FORMAT BINARY)") as put_told,
        ):
            put_own.set_types(["int2", "int2", "text", "text", "timestamptz", "text", "int2", "bytea"])
            put_told.set_types(["int8", "int2", "text", "text", "int4", "timestamptz", "text", "bool"])
            visits: set[str] = set()
            for number in count():
                if left <= 0:
                    break
                mine = _Person(number, rng)
                people.extend(
                    (shard, patient, facility, mine.id) for facility, (shard, patient) in mine.patients.items()
                )
                for t in mine.orders(by_facility, rng):
                    serial = hashlib.md5(b"%d" % orders).hexdigest()  # noqa: S324 - a number with letters
                    shard, patient = t.patient
                    prefix = _PAIRS[shard]
                    ordered = t.facility != CLINIC.facility
                    put_told.write_row((orders, shard, prefix, patient, t.sample.number, t.at, serial, ordered))
                    values = (patient.encode(), t.visit.encode())
                    if t.visit not in visits:
                        visits.add(t.visit)
                        text = (t.sample.emergency if written % 20 == 0 else t.sample.visit).fill(values)
                        kept = codec.compress(text, (t.visit, patient, None))
                        put_own.write_row(
                            (shard, RESOURCE_TYPES["Encounter"], t.visit, patient, t.at, t.facility, *kept)
                        )
                        written += 1
                    if ordered:
                        logical = prefix + hashlib.md5(f"{serial}order".encode()).hexdigest()[:22]  # noqa: S324
                        kept = codec.compress(
                            t.sample.order.fill((*values, logical.encode())), (logical, patient, None)
                        )
                        put_own.write_row((shard, _TYPES["ServiceRequest"], logical, patient, t.at, t.facility, *kept))
                    orders += 1
                    left -= t.sample.results
        with told.copy("COPY bench_people FROM STDIN") as put:
            for row in people:
                put.write_row(row)
    return orders


class _Person:
    """One person: a Patient of the facility near by, and of the county hospital as soon as there was a visit."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.number = number
        self.home = rng.choices((NORTH, SOUTH, CLINIC), (45, 45, 10))[0].facility
        facilities = {self.home, COUNTY.facility} if rng.random() < 0.7 else {self.home}
        self.id = hashlib.md5(b"person %d" % number).hexdigest()[:24]  # noqa: S324 - a number with letters
        self.patients = {f: self._patient(f) for f in sorted(facilities)}
        self._visits = 0

    def _patient(self, facility: str) -> tuple[int, str]:
        digest = hashlib.md5(f"{facility} {self.number}".encode()).hexdigest()  # noqa: S324
        shard = int(digest[:8], 16) % SHARDS
        return shard, _PAIRS[shard] + digest[8:30]

    def orders(self, by_facility: Mapping[str, tuple[list[Sample], list[int]]], rng: random.Random) -> Iterator[Told]:
        """What is ordered for the person in the year."""
        for _ in range(1 + min(7, int(rng.expovariate(0.7)))):
            at = BEGIN + YEAR * rng.random()
            facility = rng.choice(list(self.patients))
            chosen = _draw(by_facility[facility], rng)
            yield from self._visit(facility, chosen, at, rng)
            if facility != COUNTY.facility and COUNTY.facility in self.patients and rng.random() < 0.15:
                # Referred: the county hospital asks for the same again within a week.
                again = {s.orderable for s in chosen}
                same = [s for s in by_facility[COUNTY.facility][0] if s.orderable in again]
                yield from self._visit(COUNTY.facility, same, at + timedelta(hours=rng.uniform(6, 168)), rng)
            elif facility == COUNTY.facility and rng.random() < 0.05:
                for day in range(1, rng.randint(2, 7)):  # a stay
                    yield from self._visit(facility, chosen[:1], at + timedelta(days=day), rng)

    def _visit(self, facility: str, chosen: Sequence[Sample], at: datetime, rng: random.Random) -> Iterator[Told]:
        self._visits += 1
        shard, patient = self.patients[facility]
        digest = hashlib.md5(f"visit {self.number} {self._visits}".encode()).hexdigest()  # noqa: S324
        for s in chosen:
            yield Told((shard, patient), facility, s, at.replace(microsecond=0), _PAIRS[shard] + digest[:22])
            at += timedelta(minutes=rng.randint(0, 20))


def _draw(known: tuple[list[Sample], list[int]], rng: random.Random) -> list[Sample]:
    drawn = rng.choices(*known, k=rng.choice((1, 1, 2, 2, 3)))
    return list({s.number: s for s in drawn}.values())


def _tell(url: str, orders: int) -> None:
    processes = os.cpu_count() or 1
    share = -(-orders // processes)
    parts = [(url, n * share, min(orders, (n + 1) * share)) for n in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_tell_part, parts))


def _tell_part(part: tuple[str, int, int]) -> None:
    url, first, last = part
    with psycopg.connect(url, autocommit=True) as conn:
        for begin in range(first, last, 50_000):
            named = {"first": begin, "last": min(last, begin + 50_000), "order": _TYPES["ServiceRequest"]}
            conn.execute(_TELL, named)
