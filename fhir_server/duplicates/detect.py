"""The duplicate audit: the recognition decision in retrospect, over the orders of a period.

SQL only finds over-inclusive candidates: every version of every result of the wanted items, of every Patient that ever shared a
person with the one ordered for. ``decide`` judges each order as of its time (fhir_server.duplicates.judge).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import psycopg

from conformance import systems
from fhir_server.duplicates.judge import REMINDED_WITHIN, Judged, Link, Refusal
from fhir_server.duplicates.orders import Chunk, Placed, read_orders, read_reports
from fhir_server.duplicates.report import Finding, Kind, Report, Row
from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.candidates import RESULT_COLUMNS
from fhir_server.recognition.criteria import Candidate
from fhir_server.recognition.decide import as_dict
from fhir_server.recognition.rules import Rules
from fhir_server.store.body import Codec
from mappings.ids import logical_id
from mappings.profile import Profile

_DAY: Final = timedelta(hours=24)

_LINKS: Final = """
WITH persons AS (
  SELECT DISTINCT l.person FROM unnest(%s::smallint[], %s::text[]) AS o(shard, patient)
  JOIN identity_link l ON l.shard = o.shard AND l.patient = o.patient
)
SELECT l.person, l.shard, l.patient, l.recorded, l.until, l.grade FROM persons JOIN identity_link l ON l.person = persons.person"""

# Unmapped rows count when a later version of the same result is of a wanted item, or its LOINC code is that of one.
_RESULTS: Final = f"""
SELECT r.shard, {RESULT_COLUMNS} FROM unnest(%(shards)s::smallint[], %(patients)s::text[]) AS p(shard, patient)
JOIN result r ON r.shard = p.shard AND r.patient = p.patient
WHERE (r.item = ANY(%(items)s) OR r.item IS NULL AND (r.loinc = ANY(%(loincs)s) OR EXISTS (
    SELECT FROM result later WHERE later.shard = r.shard AND later.id = r.id AND later.item = ANY(%(items)s))))
  AND coalesce(r.effective, r.issued, %(last)s) BETWEEN %(first)s AND %(last)s"""  # noqa: S608 - columns of our own dataclass

_LEDGER: Final = """
SELECT kind, at, facility, person, orderable, entry FROM ledger
WHERE at >= %s AND (kind = 'feedback' OR kind = 'reminder' AND at < %s) ORDER BY chain, number"""


def audit(
    conn: psycopg.Connection[Any], rules: Rules, profiles: Mapping[str, Profile], start: datetime, end: datetime
) -> Report:
    """The audit of all orders placed in [start, end) (aware), under ``rules``. Reads only; the same data gives the same report."""
    with conn.transaction():
        return _audit(conn, rules, profiles, start, end)


def _audit(
    conn: psycopg.Connection[Any], rules: Rules, profiles: Mapping[str, Profile], start: datetime, end: datetime
) -> Report:
    codec = Codec.load(conn)
    known = rules.among(profiles)
    refusals = _refusals(conn, known, start, end)
    rows: dict[tuple[str, str, str], Row] = {}
    findings: list[Finding] = []
    unknown: dict[str, int] = {}
    for chunk in _chunks(conn, codec, known, profiles, start, end):
        for facility in chunk.not_understood:
            unknown[facility] = unknown.get(facility, 0) + 1
        for placed, finding, partial in _judge(conn, known, profiles, chunk.placed, refusals):
            key = (placed.basis, placed.facility, placed.orderable.code)
            row = rows.get(key) or Row(placed.facility, placed.orderable.code, placed.orderable.name_zh, placed.basis)
            rows[key] = row.with_order(finding, partial=partial)
            if finding:
                findings.append(finding)
    ordered = sorted(rows.items(), key=lambda kv: (kv[0][0] != "order", *kv[0][1:]))
    found = tuple(sorted(findings, key=lambda f: (f.at, f.id)))
    return Report(start, end, rules.version, tuple(row for _, row in ordered), found, unknown)


def _chunks(
    conn: psycopg.Connection[Any],
    codec: Codec,
    rules: Rules,
    profiles: Mapping[str, Profile],
    start: datetime,
    end: datetime,
) -> Iterator[Chunk]:
    yield from read_orders(conn, codec, rules, profiles, start, end)
    yield from read_reports(conn, rules, start, end)


def _judge(
    conn: psycopg.Connection[Any],
    rules: Rules,
    profiles: Mapping[str, Profile],
    placed: Sequence[Placed],
    refusals: Sequence[Refusal],
) -> Iterator[tuple[Placed, Finding | None, bool]]:
    """Each order with its finding if it is a repeat, and whether only a part of it had earlier results."""
    if not placed:
        return
    links = _links(conn, placed)
    results = _results(conn, rules, placed, links)
    for one in placed:
        judged = Judged.of(one, links, results, rules)
        kind, cause = judged.kind(rules, refusals)
        finding = _finding(one, judged, kind, cause, profiles.get(one.facility)) if kind else None
        yield one, finding, finding is None and judged.partial


def _finding(placed: Placed, judged: Judged, kind: Kind, cause: str, profile: Profile | None) -> Finding:
    decision = judged.proof
    prior = [m.shown for m in decision.required if m.shown]
    zone = ZoneInfo(profile.facility.time_zone) if profile else ZoneInfo("Asia/Shanghai")
    day = placed.at.astimezone(zone).date().isoformat()
    order = f"ServiceRequest/{placed.id}" if placed.id else f"DiagnosticReport/{placed.report}"
    return Finding(
        id=logical_id(placed.shard, placed.facility, "finding", order, placed.orderable.code),
        kind=kind,
        cause=cause,
        facility=placed.facility,
        orderable=placed.orderable.code,
        order=order,
        at=placed.at,
        basis=placed.basis,
        prior=tuple(f"Observation/{c.id}/_history/{c.version}" for c in prior),
        repeated=tuple(f"Observation/{r}" for r in placed.results),
        price_fen=rules_module.price(placed.orderable, profile, day),
        decision=as_dict(judged.then),
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
) -> dict[str, list[Candidate]]:
    wanted = {(p.shard, p.patient) for p in placed}
    wanted |= {(link.shard, link.patient) for p in placed for link in links.get("*" + p.patient, ())}
    items = {i for p in placed for i in p.orderable.required}
    known = [rules.items[i] for i in items if i in rules.items]
    window = _DAY * max((i.window_days for i in known), default=0)
    pairs = sorted(wanted)
    rows = conn.execute(
        _RESULTS,
        {
            "shards": [s for s, _ in pairs],
            "patients": [p for _, p in pairs],
            "items": sorted(items),
            "loincs": sorted({i.loinc for i in known if i.loinc}),
            "first": min(p.at for p in placed) - window - _DAY,
            "last": max(p.at for p in placed),
        },
    ).fetchall()
    out: dict[str, list[Candidate]] = {}
    for row in rows:
        logical, version, patient, *rest = row[1:]
        out.setdefault(patient, []).append(Candidate(logical, version, patient, None, None, *rest))
    return out


def _refusals(conn: psycopg.Connection[Any], rules: Rules, start: datetime, end: datetime) -> tuple[Refusal, ...]:
    reminders: dict[str, Refusal] = {}
    reasons: dict[str, str] = {}
    for kind, at, facility, person, orderable, text in conn.execute(
        _LEDGER, (start - REMINDED_WITHIN, end + REMINDED_WITHIN)
    ):
        entry = json.loads(text)
        if kind == "reminder":
            reminders[entry["card"]] = Refusal(at, facility, person, orderable, frozenset(entry["placers"]), "")
            continue
        reason = entry.get("reason", {})
        if (
            entry["outcome"] == "overridden"
            and reason.get("system") == systems.REPEAT_REASONS
            and reason["code"] in rules.reasons
        ):
            reasons[entry["card"]] = reason["code"]
    return tuple(replace(reminders[card], reason=reason) for card, reason in reasons.items() if card in reminders)
