"""A database of any size at SQL speed: a sample is converted and stored for real, then told again about other people (templates).

The rows are the ones the store writes, made by its own functions and sent by COPY, in time order and with the patients of a day
mixed, so that one patient's results lie all over the table as they do in life: a few people come often, many once. Indexes are built
afterwards. What is left out: the bytes of the messages (rows name the inbox id of their sample), outbox rows and history.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
from sqlalchemy import create_mock_engine
from sqlalchemy.schema import CreateIndex

from adapters.convert import convert, peek
from fhir_server.bench import packed
from fhir_server.bench.messages import OBX, panels
from fhir_server.bench.templates import LATER, Subject, Template
from fhir_server.bench.visits import DOCTORS, Visits
from fhir_server.demo.county import DIALECTS, Report, Writer, draw
from fhir_server.demo.people import population
from fhir_server.identity import registry
from fhir_server.ingest import inbox
from fhir_server.ingest.claim import claim
from fhir_server.ingest.pipeline import Pipeline
from fhir_server.store import kinds, repository, rows, tables, versions
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from fhir_server.store.fold import fold
from fhir_server.store.statement import Statement
from mappings.profile import Profile, load_profiles

SEED = 20260302
SPAN = timedelta(days=730)
RESULTS_A_PATIENT = 25
SAMPLES = 60
"""Messages of each facility that are stored for real."""
_BATCH = 400
_AT_ONCE = 2000
_BARE = ("resource", "search_value")
"""Tables that lose their indexes for the time of a load."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A message stored for real: where it came from, its bytes, what it names (Template), its inbox id and mapping version."""

    facility: str
    address: str
    raw: bytes
    number: str
    control: str
    times: tuple[datetime, datetime, datetime]
    inbox: int = 0
    mapping: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """What one process adds: messages numbered from ``start``, people from ``first``, ending at ``now``."""

    url: str
    profiles: Path | None
    samples: tuple[Sample, ...]
    start: int
    messages: int
    first: int
    people: int
    now: datetime


def stored(conn: psycopg.Connection[Any]) -> int:
    """Number of Observations in the database."""
    row = conn.execute("SELECT count(*) FROM resource WHERE rtype = %s", (versions.OBSERVATION,)).fetchone()
    return int(row[0]) if row else 0


def load(
    url: str, profiles_dir: Path | None, observations: int, processes: int = 0, *, sampled: int = SAMPLES
) -> dict[str, Any]:
    """Brings a migrated database up to at least ``observations``; figures of what was done. Nothing is lost when it is interrupted:
    the next load goes on. processes: 0 for one on each core; sampled: messages of each facility that are stored for real."""
    began = time.perf_counter()
    profiles = load_profiles(profiles_dir)
    with psycopg.connect(url, autocommit=True) as conn:
        have = stored(conn)
        missing = max(0, observations - have)
        if missing:
            told = _store_samples(conn, url, profiles, sampled, start=have)
            drop_indexes(conn)
            _fill(url, profiles_dir, told, have, -(-missing // OBX), processes or os.cpu_count() or 1)
        filled = time.perf_counter()
        build_indexes(conn)
        for table in (*_BARE, "resource_kind", "business_key", "source_patient", "identity_link") if missing else ():
            conn.execute(f"VACUUM (ANALYZE) {table}")
        now = stored(conn)
    return {
        "observations": now,
        "loaded": now - have,
        "load_seconds": round(filled - began, 1),
        "index_seconds": round(time.perf_counter() - filled, 1),
    }


def _fill(
    url: str, profiles_dir: Path | None, samples: Sequence[Sample], have: int, messages: int, processes: int
) -> None:
    share = -(-messages // processes)
    people = max(1, share * OBX // RESULTS_A_PATIENT)
    now = datetime.now(UTC)
    parts = [
        Part(url, profiles_dir, tuple(samples), have + n * share, share, 1_000_000 + have + n * share, people, now)
        for n in range(processes)
    ]
    if processes == 1:
        add(parts[0])
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(add, parts))


# --- the sample ------------------------------------------------------------------------------------------------------------


def samples(profiles: Mapping[str, Profile], now: datetime, count: int, *, seed: int) -> list[Sample]:
    """``count`` messages of each facility, each of its own person, number and day."""
    rng = random.Random(seed)  # noqa: S311 - invented results
    people = iter(population(count * len(DIALECTS), rng, now.date()))
    known = panels(profiles)
    out = []
    for dialect in DIALECTS:
        writer = Writer(dialect)
        zone = profiles[dialect.facility].zone
        for n in range(count):
            at = (now - SPAN + timedelta(hours=n)).astimezone(zone).replace(microsecond=0)
            times = (at + LATER[0], at + LATER[1], at + LATER[2])
            panel = known[dialect.facility][n % len(known[dialect.facility])]
            number = f"{dialect.sender}SAMPLE{seed}N{n:04d}"
            ordered, drawn, issued = times
            report = Report(dialect, next(people), panel, number, ordered, drawn, issued, draw(panel, rng))
            raw = writer.result(report)
            out.append(
                Sample(
                    dialect.facility,
                    dialect.address,
                    raw,
                    number,
                    peek(raw, profiles[dialect.facility]).control_id,
                    times,
                )
            )
    return out


def _store_samples(
    conn: psycopg.Connection[Any], url: str, profiles: Mapping[str, Profile], count: int, *, start: int
) -> list[Sample]:
    """Through inbox and pipeline, as a converter does it."""
    now = datetime.now(UTC)
    made = samples(profiles, now, count, seed=SEED + start)
    accepted = asyncio.run(accept(url, profiles, made))
    asyncio.run(accept(url, profiles, _visits(profiles, now, SEED + start)))
    pipeline = Pipeline(profiles, Codec.load(conn), lambda: datetime.now(UTC))
    turn = 0
    while claimed := claim(conn, f"bench/{start}/{turn}", 60.0, 40):
        pipeline.work(conn, f"bench/{start}/{turn}", claimed)
        turn += 1
    mappings = dict(conn.execute("SELECT id, mapping FROM inbox WHERE id = ANY(%s)", (accepted,)).fetchall())
    return [replace(s, inbox=i, mapping=mappings[i]) for s, i in zip(made, accepted, strict=True)]


def _visits(profiles: Mapping[str, Profile], now: datetime, seed: int) -> list[Sample]:
    """A visit with each doctor of each facility: the people of a load refer to these doctors and places (``_register``)."""
    out = []
    people = population(DOCTORS, random.Random(seed), now.date())  # noqa: S311 - invented people
    for dialect in DIALECTS:
        profile = profiles[dialect.facility]
        at = (now - SPAN).astimezone(profile.zone).replace(microsecond=0)
        for n, person in enumerate(people):
            raw = Writer(dialect).visit(replace(person, number=seed * DOCTORS + n), at)
            out.append(Sample(dialect.facility, dialect.address, raw, "", peek(raw, profile).control_id, (at, at, at)))
    return out


async def accept(url: str, profiles: Mapping[str, Profile], made: Sequence[Sample]) -> list[int]:
    """Puts messages into the inbox; their inbox ids."""
    conn = await asyncpg.connect(url)
    try:
        arrivals = [arrival(s, profiles[s.facility]) for s in made]
        return [a.id for a in await inbox.accept(conn, arrivals)]
    finally:
        await conn.close()


def arrival(sample: Sample, profile: Profile) -> inbox.Arrival:
    """A message as the listener would hand it to the inbox, received now."""
    envelope = peek(sample.raw, profile)
    shard, keys = inbox.ordering_keys(sample.facility, sample.control, envelope.patient_keys)
    return inbox.Arrival(
        shard=shard,
        facility=sample.facility,
        channel="bench",
        format="hl7v2",
        trigger=envelope.trigger,
        control_id=sample.control,
        sent_at=envelope.sent_at,
        received_at=datetime.now(UTC),
        sha256=hashlib.sha256(sample.raw).digest(),
        size=len(sample.raw),
        charset=envelope.charset,
        lane=inbox.LIVE,
        keys=keys,
        status="ready",
        issues=(),
        raw=inbox.compress(sample.raw),
    )


# --- told again ------------------------------------------------------------------------------------------------------------


def add(part: Part) -> None:
    """Adds one part to the database; the body of a loading process."""
    profiles = load_profiles(part.profiles)
    rng = random.Random(part.start)  # noqa: S311 - invented results
    told: dict[str, list[tuple[Template, Sample]]] = {}
    for s in part.samples:
        digest = hashlib.sha256(s.raw).hexdigest()
        template = Template(convert(s.raw, profiles[s.facility]), s.number, s.control, digest, s.times)
        told.setdefault(s.facility, []).append((template, s))
    step = SPAN / (part.messages + 1)
    oldest = part.now - SPAN
    # What is alive now lives as long as the process: the collector need not look at it again and again.
    gc.freeze()
    with psycopg.connect(part.url, autocommit=True) as conn:
        codec = Codec.load(conn)
        templates = [template for known in told.values() for template, _ in known]
        with conn.transaction(), conn.cursor(binary=True) as cursor:
            numbers = kinds.record(cursor, {r.kind for t in templates for r in t.results})
        for template in templates:
            template.prepare(numbers, codec)
        subjects = list(_register(conn, codec, part, profiles, told, rng))
        for begin in range(0, part.messages, _BATCH):
            clones = []
            for n in range(begin, min(begin + _BATCH, part.messages)):
                facility, subject = subjects[int(rng.random() ** 2 * len(subjects))]
                template, sample = rng.choice(told[facility])
                at = (oldest + step * n).replace(microsecond=0)
                recorded = at + LATER[-1] + timedelta(seconds=2)
                origin = Origin(facility, sample.inbox, sample.mapping, recorded)
                clones.append(template.fill(subject, f"B{part.start + n:010d}", at, origin))
            with conn.transaction(), conn.cursor(binary=True) as cursor:
                _write(cursor, codec, [s for clone in clones for s in clone.others])
                with packed.copying(cursor) as put:
                    for clone in clones:
                        put(b"".join(clone.observations))
                rows.copy(cursor, "search_value", [value for clone in clones for value in clone.values])


def _write(cursor: rows.Cursor, codec: Codec, statements: Sequence[Statement]) -> None:
    """Rows of resources nothing is known of yet: what ``repository.apply`` writes once it has found that out."""
    batch = versions.Batch()
    owners: dict[bytes, rows.Owner] = {}
    for s in statements:
        after, made = fold(None, [s], lambda _: False, set())
        assert after is not None
        batch.after[s.key], batch.versions[s.key] = after, made
        if s.business:
            owners[repository.number_of(s)] = (*s.key, s.patient or "", s.claim)
    rows.put_owners(cursor, owners)
    versions.write(cursor, codec, batch)


def _register(
    conn: psycopg.Connection[Any],
    codec: Codec,
    part: Part,
    profiles: Mapping[str, Profile],
    told: Mapping[str, Sequence[tuple[Template, Sample]]],
    rng: random.Random,
) -> Iterator[tuple[str, Subject]]:
    """The people of a part, registered as their first visit would do it."""
    oldest = part.now - SPAN - timedelta(days=1)
    visits = Visits(profiles, oldest)
    for begin in range(0, part.people, _AT_ONCE):
        people = population(min(_AT_ONCE, part.people - begin), rng, part.now.date())
        made = []
        for n, person in enumerate(people, part.first + begin):
            dialect = DIALECTS[n % len(DIALECTS)]
            sample = told[dialect.facility][n % len(told[dialect.facility])][1]
            origin = Origin(dialect.facility, sample.inbox, sample.mapping, oldest)
            made.append(visits.of(replace(person, number=n), dialect, origin))
        with conn.transaction(), conn.cursor(binary=True) as cursor:
            _write(cursor, codec, [s for m in made for s in m.statements])
            registry.resolve(conn, [m.state for m in made], [], oldest)
        yield from ((m.facility, m.subject) for m in made)


# --- indexes ---------------------------------------------------------------------------------------------------------------


def drop_indexes(conn: psycopg.Connection[Any]) -> None:
    """Of the tables that grow with results, for the time of a load."""
    for name in _BARE:
        table = tables.metadata.tables[name]
        for index in table.indexes:
            conn.execute(f"DROP INDEX IF EXISTS {index.name}")
        conn.execute(f"ALTER TABLE {name} DROP CONSTRAINT IF EXISTS {name}_pkey")


def build_indexes(conn: psycopg.Connection[Any]) -> None:
    """Those of the tables as declared; what is there stays."""
    engine = create_mock_engine("postgresql+psycopg://", lambda *_: None)  # compiles, and never connects
    conn.execute("SET maintenance_work_mem = '1GB'; SET max_parallel_maintenance_workers = 2")
    for name in _BARE:
        table = tables.metadata.tables[name]
        row = conn.execute("SELECT 1 FROM pg_constraint WHERE conname = %s", (f"{name}_pkey",)).fetchone()
        if row is None:
            columns = ", ".join(column.name for column in table.primary_key)
            conn.execute(f"ALTER TABLE {name} ADD PRIMARY KEY ({columns})")
        for index in table.indexes:
            conn.execute(str(CreateIndex(index, if_not_exists=True).compile(engine)))
