"""A dry run: the decisions of past orders under the rules in force and under new ones, and where they differ. Reads only.

Each order is judged by ``decide`` as of its own time, with the results visible and the Patients linked then (candidates.py).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg
import psycopg

from fhir_server.duplicates import studies
from fhir_server.duplicates.orders import Placed, read_orders
from fhir_server.duplicates.visits import with_visits
from fhir_server.recognition import candidates
from fhir_server.recognition.candidate import Candidate
from fhir_server.recognition.candidates import Who
from fhir_server.recognition.decide import Decision, Outcome, decide, instant
from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Rules
from fhir_server.store.body import Codec
from mappings.ids import shard_of_id
from mappings.profile import Profile

_COLUMNS: Final = ("order", "facility", "orderable", "at", "before", "after", "why")


@dataclass(frozen=True, slots=True)
class Changed:
    """One order whose outcome differs. why: the criteria that stand in the way on the side where it is the worse one."""

    order: str
    facility: str
    orderable: str
    at: datetime
    before: Outcome
    after: Outcome
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Simulation:
    """orders: how many were judged; outcomes: (before, after) -> how many; changed: those that differ, oldest first."""

    before: str
    after: str
    orders: int
    outcomes: Mapping[tuple[Outcome, Outcome], int]
    changed: tuple[Changed, ...]


async def simulate(
    url: str, old: Rules, new: Rules, profiles: Mapping[str, Profile], start: datetime, end: datetime
) -> Simulation:
    """The orders placed in [start, end) (aware) under both rules."""
    now, then = old.among(profiles), new.among(profiles)
    placed = _orders(url, now, profiles, start, end)
    counts: Counter[tuple[Outcome, Outcome]] = Counter()
    changed = []
    connection = await asyncpg.connect(url)
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            codec = Codec.load(conn)
            for one in placed:
                before, after = await _judged(connection, conn, codec, one, now, then)
                counts[before.outcome, after.outcome] += 1
                if before.outcome is not after.outcome:
                    worse = after if _RANK[after.outcome] < _RANK[before.outcome] else before
                    why = tuple(sorted({c.name for m in worse.missing for c in m.obstacles})) or ("no-result",)
                    changed.append(
                        Changed(one.id, one.facility, one.orderable.code, one.at, before.outcome, after.outcome, why)
                    )
    finally:
        await connection.close()
    return Simulation(old.version, new.version, len(placed), dict(counts), tuple(changed))


_RANK: Final = {o: n for n, o in enumerate(reversed(Outcome))}


def _orders(url: str, rules: Rules, profiles: Mapping[str, Profile], start: datetime, end: datetime) -> list[Placed]:
    with psycopg.connect(url) as conn, conn.transaction():
        codec = Codec.load(conn)
        chunks = read_orders(conn, codec, rules, profiles, start, end)
        return [placed for chunk in chunks for placed in with_visits(conn, codec, chunk.placed)]


async def _judged(
    connection: asyncpg.Connection, conn: psycopg.Connection[Any], codec: Codec, placed: Placed, old: Rules, new: Rules
) -> tuple[Decision, Decision]:
    sides = [(rules, rules.orderables.get(placed.orderable.code, placed.orderable)) for rules in (old, new)]
    items = sorted({i for _, o in sides for i in (*o.required, *o.optional)})
    found = await candidates.find(connection, Who(placed.shard, placed.patient, placed.facility), items, placed.at)
    seen = _with_images(conn, codec, found.candidates, new, placed.at)
    decisions = [
        decide(
            Order(
                *(orderable, placed.facility, placed.patient, found.person, placed.id, placed.emergency),
                surgery=placed.surgery,
            ),
            seen,
            rules,
            placed.at,
        )
        for rules, orderable in sides
    ]
    return decisions[0], decisions[1]


def _with_images(
    conn: psycopg.Connection[Any], codec: Codec, found: Sequence[Candidate], rules: Rules, at: datetime
) -> Sequence[Candidate]:
    """The candidates, examinations with what was known of their images then: an order of one needs them, as at order time."""
    reports = {
        c.report
        for c in found
        if c.report and (item := rules.items.get(c.item or "")) is not None and item.category == "imaging"
    }
    if not reports:
        return found
    known = studies.read(conn, codec, [(shard, r) for r in reports if (shard := shard_of_id(r)) is not None])
    return [c._replace(**known.facts(c.report, at)) if c.report in reports else c for c in found]


def lines(simulation: Simulation) -> list[str]:
    """A summary for a reader: rules versions, each pair of outcomes with its number, and who is touched most."""
    out = [
        f"Rules {simulation.before} -> {simulation.after}: {simulation.orders} orders, {len(simulation.changed)} change."
    ]
    for (before, after), count in sorted(simulation.outcomes.items()):
        out.append(f"  {before.value} -> {after.value}: {count}{'' if before is not after else ' (unchanged)'}")
    for title, keys in (
        ("orderable", [c.orderable for c in simulation.changed]),
        ("facility", [c.facility for c in simulation.changed]),
    ):
        out += [f"  {title} {key}: {count}" for key, count in Counter(keys).most_common(10)]
    return out


def as_csv(changed: Sequence[Changed]) -> str:
    """One line for each order that changes, with a header line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_row(c) for c in changed)
    return out.getvalue()


def _row(c: Changed) -> Iterable[Any]:
    order = f"ServiceRequest/{c.order}"
    return (order, c.facility, c.orderable, instant(c.at), c.before.value, c.after.value, " ".join(c.why))
