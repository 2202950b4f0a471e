"""The duplicate audit: the recognition decision in retrospect, over the orders of a period.

SQL only finds over-inclusive candidates: every version of every result of the wanted items, of every Patient that ever shared a
person with the one ordered for. ``decide`` judges each order as of its time (fhir_server.duplicates.judge).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import psycopg

from conformance.capability import RESOURCE_TYPES
from fhir_server.duplicates import said
from fhir_server.duplicates.judge import Judged, Link, Verdict
from fhir_server.duplicates.orders import Placed, read_orders, read_reports, results_of
from fhir_server.duplicates.report import EVERYTHING, Finding, Report, Row, Scope
from fhir_server.duplicates.said import Spoken
from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.candidates import RESULT_FIELDS
from fhir_server.recognition.criteria import Candidate
from fhir_server.recognition.decide import as_dict
from fhir_server.recognition.rules import Rules
from fhir_server.store.body import Codec
from mappings import catalogue
from mappings.catalogue import Orderable
from mappings.ids import logical_id
from mappings.profile import Profile, load_profiles

OBSERVATION: Final = RESOURCE_TYPES["Observation"]
_SHANGHAI: Final = ZoneInfo("Asia/Shanghai")

_LINKS: Final = """
WITH persons AS (
  SELECT DISTINCT l.person FROM unnest(%s::smallint[], %s::text[]) AS o(shard, patient)
  JOIN identity_link l ON l.shard = o.shard AND l.patient = o.patient
)
SELECT l.person, l.shard, l.patient, l.recorded, l.until, l.grade FROM persons JOIN identity_link l ON l.person = persons.person"""

CANDIDATES: Final = (Path(__file__).with_name("candidates.sql")).read_text("utf-8")

# The relations candidates.sql reads, from the orders of a chunk; orders of Patients without any earlier result fall out on an index.
_CHUNK: Final = f"""
WITH asked AS (
  SELECT * FROM unnest(%(numbers)s::int[], %(orders)s::text[], %(orderables)s::text[], %(at)s::timestamptz[], %(first)s::timestamptz[])
    AS a(number, id, orderable, at, first)
), linked AS MATERIALIZED (
  SELECT l.number, l.shard, l.patient
  FROM unnest(%(who)s::int[], %(shards)s::smallint[], %(patients)s::text[]) AS l(number, shard, patient)
  JOIN asked a ON a.number = l.number
  WHERE EXISTS (SELECT FROM resource r WHERE r.shard = l.shard AND r.patient = l.patient AND r.rtype = {OBSERVATION}
      AND r.start_at >= a.first AND r.start_at <= a.at AND r."order" IS DISTINCT FROM a.id)
    OR EXISTS (SELECT FROM resource r WHERE r.shard = l.shard AND r.patient = l.patient AND r.rtype = {OBSERVATION}
      AND r.start_at IS NULL)
    OR EXISTS (SELECT FROM resource_history h WHERE h.shard = l.shard AND h.patient = l.patient AND h.kind IS NOT NULL)
), placed AS (SELECT number, orderable, at, first FROM asked),
wanted AS (SELECT * FROM unnest(%(wanted)s::text[], %(items)s::text[]) AS w(orderable, item))
"""  # noqa: S608 - a number of our own


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


def audit(
    conn: psycopg.Connection[Any],
    rules: Rules,
    profiles: Mapping[str, Profile],
    start: datetime,
    end: datetime,
    scope: Scope = EVERYTHING,
    part: tuple[int, int] = (0, 1),
) -> Report:
    """The audit of all orders placed in [start, end) (aware), under ``rules``. Reads only; the same data gives the same report."""
    with conn.transaction():
        return _audit(conn, rules, profiles, start, end, scope, part)


def audit_at(
    url: str,
    profiles: Path | None,
    rules: Path | None,
    start: datetime,
    end: datetime,
    scope: Scope = EVERYTHING,
    processes: int = 1,
) -> Report:
    """The same over the database ``url``, with profiles and rules of folders (None: the shipped ones), shared among processes."""
    tasks = [Task(url, profiles, rules, start, end, scope, (n, processes)) for n in range(processes)]
    if processes == 1:
        return audit_part(tasks[0])
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return together(list(pool.map(audit_part, tasks)))


def audit_part(task: Task) -> Report:
    """The audit of one part; the body of an auditing process."""
    with psycopg.connect(task.url) as conn:
        known = load_profiles(task.profiles, catalogue=catalogue.of(task.rules))
        return audit(conn, rules_module.load(task.rules), known, task.start, task.end, task.scope, task.part)


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
    )


def _sorted(rows: Mapping[tuple[str, str, str], Row]) -> tuple[Row, ...]:
    return tuple(row for _, row in sorted(rows.items(), key=lambda kv: (kv[0][0] != "order", *kv[0][1:])))


def _audit(
    conn: psycopg.Connection[Any],
    rules: Rules,
    profiles: Mapping[str, Profile],
    start: datetime,
    end: datetime,
    scope: Scope,
    part: tuple[int, int],
) -> Report:
    codec = Codec.load(conn)
    known = rules.among(profiles)
    spoken = said.read(conn, known, start, end)
    rows: dict[tuple[str, str, str], Row] = {}
    findings: list[Finding] = []
    unknown: Counter[str] = Counter()
    pairs = 0
    chunks = (read_orders(conn, codec, known, profiles, start, end, part), read_reports(conn, known, start, end, part))
    for chunk in chain(*chunks):
        unknown.update(f for f in chunk.not_understood if scope.facility in ("", f))
        placed = [p for p in chunk.placed if scope.holds(p.facility, p.department, p.doctor, p.orderable)]
        repeats, partial, looked_at = _judge(conn, known, placed, spoken)
        pairs += looked_at
        brought = _brought(conn, [p for p, _ in repeats.values()])
        for number, one in enumerate(placed):
            finding = None
            if number in repeats:
                finding = _finding(
                    one, repeats[number][1], brought, profiles.get(one.facility), rules.catalogue_version
                )
                findings.append(finding)
            key = (one.basis, one.facility, one.orderable.code)
            row = rows.get(key) or Row(one.facility, one.orderable.code, one.orderable.name_zh, one.basis)
            rows[key] = row.with_order(finding, partial=finding is None and number in partial)
    found = tuple(sorted(findings, key=lambda f: (f.at, f.id)))
    counted = dict(sorted(unknown.items()))
    return Report(start, end, rules.version, _sorted(rows), found, counted, scope, rules.catalogue_version, pairs)


def _judge(
    conn: psycopg.Connection[Any], rules: Rules, placed: Sequence[Placed], spoken: Spoken
) -> tuple[dict[int, tuple[Placed, Verdict]], set[int], int]:
    """Number of an order -> its verdict where it is a repeat; those of which a part had earlier results; pairs looked at."""
    if not placed:
        return {}, set(), 0
    links = _links(conn, placed)
    repeats: dict[int, tuple[Placed, Verdict]] = {}
    partial: set[int] = set()
    pairs = 0
    for number, results in _results(conn, rules, placed, links).items():
        judged = Judged(placed[number], links, results, rules)
        pairs += sum(map(len, results.values()))
        if verdict := judged.verdict(spoken):
            repeats[number] = placed[number], verdict
        elif judged.partial:
            partial.add(number)
    return repeats, partial, pairs


def _brought(conn: psycopg.Connection[Any], repeats: Sequence[Placed]) -> dict[str, list[str]]:
    by_order = [(p.shard, p.patient, p.id) for p in repeats if p.id]
    by_report = [(p.shard, p.patient, p.report) for p in repeats if p.report]
    return {key: [v for _, _, v in came] for key, came in results_of(conn, by_order, by_report).items()}


def _finding(
    placed: Placed, verdict: Verdict, brought: Mapping[str, Sequence[str]], profile: Profile | None, version: str
) -> Finding:
    decision = verdict.proof
    prior = [m.shown or m.result for m in decision.required]
    day = placed.at.astimezone(profile.zone if profile else _SHANGHAI).date().isoformat()
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
        price_fen=rules_module.price(placed.orderable, profile, day),
        decision=as_dict(decision, brief=True),
        doctor=placed.doctor,
        department=placed.department,
        reminder=verdict.reminder,
        catalogue=version,
    )


def _links(conn: psycopg.Connection[Any], placed: Sequence[Placed]) -> dict[str, list[Link]]:
    """Patient -> its links, newest first; ``*`` + Patient -> the links of everybody who ever shared a person with it."""
    wanted = sorted({(p.shard, p.patient) for p in placed})
    rows = conn.execute(_LINKS, ([s for s, _ in wanted], [p for _, p in wanted])).fetchall()
    by_person: dict[str, list[Link]] = {}
    out: dict[str, list[Link]] = {}
    for row in rows:
        link = Link(*row)
        by_person.setdefault(link.person, []).append(link)
        out.setdefault(link.patient, []).append(link)
    for links in out.values():
        links.sort(key=lambda link: link.recorded, reverse=True)
    for _, patient in wanted:
        persons = {link.person for link in out.get(patient, ())}
        out["*" + patient] = [link for person in sorted(persons) for link in by_person[person]]
    return out


def _results(
    conn: psycopg.Connection[Any], rules: Rules, placed: Sequence[Placed], links: Mapping[str, Sequence[Link]]
) -> dict[int, dict[str, list[Candidate]]]:
    """Number of an order -> Patient -> every version of the earlier results that could cover it; orders without any are left out."""
    wanted = {p.orderable.code: p.orderable for p in placed}
    who = [
        (number, shard, patient)
        for number, p in enumerate(placed)
        for shard, patient in sorted(
            {(p.shard, p.patient), *((x.shard, x.patient) for x in links.get("*" + p.patient, ()))}
        )
    ]
    pairs = [(code, item) for code, orderable in wanted.items() for item in orderable.required]
    spans = {code: longest(orderable, rules) for code, orderable in wanted.items()}
    given = {
        "numbers": list(range(len(placed))),
        "orders": [p.id for p in placed],
        "orderables": [p.orderable.code for p in placed],
        "at": [p.at for p in placed],
        "first": [p.at - spans[p.orderable.code] for p in placed],
        "who": [n for n, _, _ in who],
        "shards": [s for _, s, _ in who],
        "patients": [p for _, _, p in who],
        "wanted": [code for code, _ in pairs],
        "items": [item for _, item in pairs],
    }
    out: dict[int, dict[str, list[Candidate]]] = {}
    for number, candidate in _read(conn.execute(_CHUNK + CANDIDATES, given)):
        out.setdefault(number, {}).setdefault(candidate.patient or "", []).append(candidate)
    return out


def _read(cursor: psycopg.Cursor[Any]) -> Iterator[tuple[int, Candidate]]:
    names = [c.name for c in cursor.description or ()]
    place = {name: n for n, name in enumerate(names)}
    kept = [(field, place[field]) for field in RESULT_FIELDS]
    for row in cursor:
        yield row[0], Candidate(**{field: row[n] for field, n in kept})


def longest(orderable: Orderable, rules: Rules) -> timedelta:
    """How far back a result can lie and still be inside the window of one of the required items, with a day to spare."""
    days = [rules.items[i].window_days for i in orderable.required if i in rules.items]
    days += [p.window_days for p in rules.policies if p.window_days]
    days += [o.window_days for p in rules.policies for o in p.overrides if o.window_days]
    days += [row.window_days for i in orderable.required for row in rules.history.get(i, ())]
    return timedelta(days=max(days, default=0) + 1)
