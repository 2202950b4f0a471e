"""The duplicate audit: the recognition decision in retrospect, over the orders of a period.

SQL only finds over-inclusive candidates (fhir_server.duplicates.earlier): every version of every result of the wanted items, of every
Patient that ever shared a person with the one ordered for. ``decide`` judges each order as of its time (fhir_server.duplicates.judge).
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import psycopg

from fhir_server.duplicates import said, studies
from fhir_server.duplicates.cases import Counted, counted, not_understood
from fhir_server.duplicates.earlier import Earlier, Stored
from fhir_server.duplicates.judge import Judged, Link, Verdict
from fhir_server.duplicates.orders import Chunk, Placed, read_orders, read_reports, results_of
from fhir_server.duplicates.remembered import Remembered
from fhir_server.duplicates.report import EVERYTHING, Finding, Report, Row, Scope
from fhir_server.duplicates.said import Spoken
from fhir_server.duplicates.studies import Studies
from fhir_server.duplicates.visits import with_visits
from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.decide import Decision, Judge, as_dict
from fhir_server.recognition.rules import Rules
from fhir_server.store.body import Codec
from mappings import catalogue
from mappings.ids import logical_id, shard_of_id
from mappings.profile import Profile, load_profiles

_SHANGHAI: Final = ZoneInfo("Asia/Shanghai")

_LINKS: Final = """
WITH persons AS (
  SELECT DISTINCT l.person FROM unnest(%s::smallint[], %s::text[]) AS o(shard, patient)
  JOIN identity_link l ON l.shard = o.shard AND l.patient = o.patient
)
SELECT l.person, l.shard, l.patient, l.recorded, l.until, l.grade FROM persons JOIN identity_link l ON l.person = persons.person"""


@dataclass(frozen=True, slots=True)
class Task:
    """What one process audits: every of-th shard from the n-th."""

    url: str
    profiles: Path | None
    rules: Path | None
    start: datetime
    end: datetime
    scope: Scope
    part: tuple[int, int]
    cases: bool = False


def audit(
    conn: psycopg.Connection[Any],
    rules: Rules,
    profiles: Mapping[str, Profile],
    start: datetime,
    end: datetime,
    scope: Scope = EVERYTHING,
    part: tuple[int, int] = (0, 1),
    *,
    cases: bool = False,
) -> Report:
    """The audit of all orders placed in [start, end) (aware), under ``rules``. Reads only; the same data gives the same report.

    ``cases``: the report lists every order it counts (fhir_server.duplicates.cases).
    """
    with conn.transaction(), _no_cycles():
        codec = Codec.load(conn)
        known = rules.among(profiles)
        chunks = chain(
            read_orders(conn, codec, known, profiles, start, end, part), read_reports(conn, known, start, end, part)
        )
        source = Database(conn, codec, Stored(conn, known))
        spoken = said.read(conn, known, start, end)
        return judged(source, chunks, known, profiles, spoken, (start, end), scope, cases=cases)


@contextmanager
def _no_cycles() -> Iterator[None]:
    """Orders are values without cycles: looking through thousands of bodies for some, again and again, cost a third of an audit."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def audit_at(
    url: str,
    profiles: Path | None,
    rules: Path | None,
    start: datetime,
    end: datetime,
    scope: Scope = EVERYTHING,
    processes: int = 1,
    *,
    cases: bool = False,
) -> Report:
    """The same over the database ``url``, with profiles and rules of folders (None: the shipped ones), shared among processes."""
    tasks = [Task(url, profiles, rules, start, end, scope, (n, processes), cases) for n in range(processes)]
    if processes == 1:
        return audit_part(tasks[0])
    with _no_cycles(), ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return together(list(pool.map(audit_part, tasks)))


def audit_part(task: Task) -> Report:
    """The audit of one part; the body of an auditing process."""
    with psycopg.connect(task.url) as conn:
        known = load_profiles(task.profiles, catalogue=catalogue.of(task.rules))
        rules = rules_module.load(task.rules)
        return audit(conn, rules, known, task.start, task.end, task.scope, task.part, cases=task.cases)


def together(parts: Sequence[Report]) -> Report:
    """Reports of parts of the shards as one."""
    rows: dict[tuple[str, str, str], Row] = {}
    unknown: Counter[str] = Counter()
    for row in (row for part in parts for row in part.rows):
        key = (row.basis, row.facility, row.orderable)
        rows[key] = rows[key].plus(row) if key in rows else row
    for part in parts:
        unknown.update(part.not_understood)
    findings = (f for part in parts for f in part.findings)
    return replace(
        parts[0],
        rows=_sorted(rows),
        findings=tuple(sorted(findings, key=lambda f: (f.at, f.id))),
        not_understood=dict(sorted(unknown.items())),
        pairs=sum(part.pairs for part in parts),
        cases=tuple(case for part in parts for case in part.cases),
    )


def _sorted(rows: Mapping[tuple[str, str, str], Row]) -> tuple[Row, ...]:
    return tuple(row for _, row in sorted(rows.items(), key=lambda kv: (kv[0][0] != "order", *kv[0][1:])))


def judged(
    source: Source,
    chunks: Iterable[Chunk],
    rules: Rules,
    profiles: Mapping[str, Profile],
    spoken: Spoken,
    period: tuple[datetime, datetime],
    scope: Scope,
    *,
    cases: bool = False,
) -> Report:
    """The audit of orders, wherever they and the results beside them are read from. rules: ``among`` the profiles."""
    bench = Bench(source, rules, spoken, Remembered(rules))
    tally = Tally()
    prices: Prices = {}
    findings: list[Finding] = []
    unknown: Counter[str] = Counter()
    listed: list[Counted] = []
    for chunk in chunks:
        strange = [u for u in chunk.not_understood if scope.facility in ("", u.facility)]
        unknown.update(u.facility for u in strange)
        listed.extend(map(not_understood, strange) if cases else ())
        placed = chunk.placed
        if scope.department or cases:
            placed = tuple(source.visited(placed))
        placed = tuple(p for p in placed if scope.holds(p.facility, p.department, p.doctor, p.orderable))
        judged = bench.judge(placed)
        brought = source.brought([p for p, _ in judged.repeats.values()])
        for number, one in enumerate(placed):
            finding = None
            if number in judged.repeats:
                repeat, verdict = judged.repeats[number]
                finding = _finding(
                    repeat, verdict, brought, profiles.get(one.facility), rules.catalogue_version, prices
                )
                findings.append(finding)
            tally.add(one, finding, partial=number in judged.partial)
            if cases:
                listed.append(counted(one, finding, judged.partial.get(number)))
    found = tuple(sorted(findings, key=lambda f: (f.at, f.id)))
    strangers = dict(sorted(unknown.items()))
    rows = _sorted(tally.rows())
    catalogue_version, all_listed = rules.catalogue_version, tuple(listed)
    return Report(*period, rules.version, rows, found, strangers, scope, catalogue_version, bench.pairs, all_listed)


class Source(Protocol):
    """Where an audit reads from: PostgreSQL (``Database``), or Parquet (fhir_server.duplicates.lake)."""

    def beside(self, placed: Sequence[Placed]) -> dict[int, list[Earlier]]:
        """Number of an order -> every version of the earlier results that could cover it (candidates.sql)."""

    def versions(self, wanted: Iterable[tuple[int, str]]) -> list[Earlier]:
        """Every version of some results, by shard and logical id."""

    def visited(self, placed: Sequence[Placed]) -> Sequence[Placed]:
        """The orders with what their visits say."""

    def links(self, placed: Sequence[Placed]) -> dict[str, list[Link]]:
        """Patient -> its links, newest first, of the Patients of orders and of all who ever shared a person with one."""

    def studies(self, reports: Iterable[tuple[int, str]]) -> Studies:
        """What is known of the imaging studies of reports, by shard and logical id."""

    def brought(self, placed: Sequence[Placed]) -> dict[str, list[str]]:
        """Order or report id -> ``<id>/_history/<version>`` of each result it brought, by id."""


@dataclass(frozen=True, slots=True)
class Database:
    """One PostgreSQL database."""

    conn: psycopg.Connection[Any]
    codec: Codec
    stored: Stored

    def beside(self, placed: Sequence[Placed]) -> dict[int, list[Earlier]]:
        """See Source."""
        return self.stored.beside(placed)

    def versions(self, wanted: Iterable[tuple[int, str]]) -> list[Earlier]:
        """See Source."""
        return self.stored.versions(wanted)

    def visited(self, placed: Sequence[Placed]) -> list[Placed]:
        """See Source."""
        return with_visits(self.conn, self.codec, placed)

    def links(self, placed: Sequence[Placed]) -> dict[str, list[Link]]:
        """See Source."""
        own = sorted({(p.shard, p.patient) for p in placed})
        if not own:
            return {}
        rows = self.conn.execute(_LINKS, ([s for s, _ in own], [p for _, p in own]), binary=True).fetchall()
        return by_patient(Link(*row) for row in rows)

    def studies(self, reports: Iterable[tuple[int, str]]) -> Studies:
        """See Source."""
        return studies.read(self.conn, self.codec, reports)

    def brought(self, placed: Sequence[Placed]) -> dict[str, list[str]]:
        """See Source."""
        by_order = [(p.shard, p.patient, p.id) for p in placed if p.id]
        by_report = [(p.shard, p.patient, p.report) for p in placed if p.report]
        found = results_of(self.conn, by_order, by_report)
        return {key: [v for _, _, v in came] for key, came in found.items()}


def by_patient(links: Iterable[Link]) -> dict[str, list[Link]]:
    """Patient -> its links, newest first."""
    out: dict[str, list[Link]] = {}
    for link in links:
        out.setdefault(link.patient, []).append(link)
    for mine in out.values():
        mine.sort(key=lambda link: link.recorded, reverse=True)
    return out


Prices = dict[tuple[str, str, str], int | None]
"""Facility, orderable and local day -> price in fen."""


class Tally:
    """Orders counted by basis, facility and orderable."""

    def __init__(self) -> None:
        self._orders: Counter[tuple[str, str, str]] = Counter()
        self._rows: dict[tuple[str, str, str], Row] = {}

    def add(self, placed: Placed, finding: Finding | None, *, partial: bool) -> None:
        """One more order."""
        key = (placed.basis, placed.facility, placed.orderable.code)
        self._orders[key] += 1
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = Row(placed.facility, placed.orderable.code, placed.orderable.name_zh, placed.basis)
        if finding or partial:
            self._rows[key] = row.with_order(finding, partial=finding is None and partial)

    def rows(self) -> dict[tuple[str, str, str], Row]:
        """The counts."""
        return {key: replace(row, orders=self._orders[key]) for key, row in self._rows.items()}


@dataclass(slots=True)
class Outcomes:
    """Number of an order -> the order and its verdict where it is a repeat; the decision where only a part had earlier results."""

    repeats: dict[int, tuple[Placed, Verdict]] = field(default_factory=dict)
    partial: dict[int, Decision] = field(default_factory=dict)


@dataclass(slots=True)
class Bench:
    """What judging needs: the store, the rules, what was said at order time, and a memory of answers. pairs: looked at so far."""

    source: Source
    rules: Rules
    spoken: Spoken
    remembered: Judge
    pairs: int = 0

    def judge(self, placed: Sequence[Placed]) -> Outcomes:
        """The verdicts on some orders."""
        beside = self.source.beside(placed)
        self.pairs += sum(map(len, beside.values()))
        numbers = sorted(beside)
        orders = dict(zip(numbers, self.source.visited([placed[n] for n in numbers]), strict=True))
        links = self.source.links(list(orders.values()))
        imaging = {i for i, item in self.rules.items.items() if item.category == "imaging"}
        reports = {(e.shard, e.report) for es in beside.values() for e in es if e.facts.item in imaging and e.report}
        seen = self.source.studies(reports)
        out = Outcomes()
        late: dict[int, Judged] = {}
        for number, order in orders.items():
            judged = Judged(order, links, beside[number], self.rules, seen, self.remembered)
            verdict = judged.verdict(self.spoken)
            if verdict is None:
                if judged.partial:
                    out.partial[number] = judged.then
                continue
            out.repeats[number] = order, verdict
            if verdict.cause == "not-yet-received":
                late[number] = judged
        self._look_again(late, out)
        return out

    def _look_again(self, late: Mapping[int, Judged], out: Outcomes) -> None:
        """What seems to have come late may have been there under a code that nobody had mapped yet."""
        found = {n: {m.shown.id for m in out.repeats[n][1].proof.required if m.shown} for n in late}
        shards = {e: late[n].placed.shard for n, ids in found.items() for e in ids}
        wanted = [(shard_of_id(i) if shard_of_id(i) is not None else shard, i) for i, shard in shards.items()]
        by_id: dict[str, list[Earlier]] = {}
        for e in self.source.versions((s, i) for s, i in wanted if s is not None):
            by_id.setdefault(e.id, []).append(e)
        for number, judged in late.items():
            judged.seen(e for i in found[number] for e in by_id.get(i, ()))
            if verdict := judged.verdict(self.spoken):
                out.repeats[number] = judged.placed, verdict


def _finding(
    placed: Placed,
    verdict: Verdict,
    brought: Mapping[str, Sequence[str]],
    profile: Profile | None,
    version: str,
    prices: Prices,
) -> Finding:
    decision = verdict.proof
    prior = [m.shown or m.result for m in decision.required]
    day = placed.at.astimezone(profile.zone if profile else _SHANGHAI).date().isoformat()
    bought = (placed.facility, placed.orderable.code, day)
    if bought not in prices:
        prices[bought] = rules_module.price(placed.orderable, profile, day)
    order = f"ServiceRequest/{placed.id}" if placed.id else f"DiagnosticReport/{placed.report}"
    return Finding(
        id=logical_id(placed.shard, placed.facility, "finding", order, placed.orderable.code),
        kind=verdict.kind,
        cause=verdict.cause,
        facility=placed.facility,
        orderable=placed.orderable.code,
        order=order,
        at=placed.at,
        basis=placed.basis,
        prior=tuple(f"Observation/{c.id}/_history/{c.version}" for c in prior if c),
        repeated=tuple(f"Observation/{v}" for v in brought.get(placed.id or placed.report, ())),
        price_fen=prices[bought],
        decision=as_dict(decision, brief=True),
        doctor=placed.doctor,
        department=placed.department,
        reminder=verdict.reminder,
        catalogue=version,
    )
