"""Earlier results beside the orders they could cover: the candidate query (candidates.sql) on PostgreSQL, and what it returns.

On PostgreSQL the relations of the query are index look-ups for the orders of a chunk, and a result row names its kind: what thousands
of rows have in common is read once (table ``resource_kind``). Elsewhere the rows are whole (fhir_server.duplicates.lake).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
import psycopg

from conformance.capability import RESOURCE_TYPES
from fhir_server.duplicates.orders import Placed
from fhir_server.recognition.rules import Rules
from mappings.catalogue import Orderable

CANDIDATES: Final = (Path(__file__).with_name("candidates.sql")).read_text("utf-8")
_OBSERVATION: Final = RESOURCE_TYPES["Observation"]


class Facts(NamedTuple):
    """What a result has in common with thousands of others; None: not stated."""

    facility: str | None
    performer: str | None
    item: str | None
    loinc: str | None
    code: str | None
    name: str | None
    specimen: str | None
    comparator: str | None
    unit: str | None
    unit_text: str | None
    flag: str | None
    status: str | None
    mark: str | None
    quality: str | None
    site: str | None
    laterality: str | None
    contrast: str | None
    method: str | None
    health_check: bool | None


class Earlier(NamedTuple):
    """One version of one stored result: what is its own, and its facts."""

    id: str
    version: int
    shard: int
    patient: str
    report: str | None
    order: str | None
    effective: datetime | None
    issued: datetime | None
    recorded: datetime
    until: datetime | None
    number: Decimal | None
    value_text: str | None
    facts: Facts


_ASKED: Final = "coalesce(k.item, 'loinc:' || k.loinc) AS asked"
_CURRENT: Final = """r.id, r.version, r.shard, r.patient, r.parent AS report, r."order", {effective} AS effective,
    coalesce(r.issued_at, r.reported_at) AS issued, r.updated AS recorded, NULL::timestamptz AS until, r.number, r.value_text,
    r.tokens[1] AS kind"""
_PAST: Final = """h.id, h.version, h.shard, h.patient, h.parent AS report, h."order", h.effective, h.issued, h.updated AS recorded,
    h.until, h.number, h.value_text, h.kind"""
_DATED: Final = _CURRENT.format(effective="r.start_at")
_UNDATED: Final = _CURRENT.format(effective="r.effective_at")

_OWN: Final = tuple(f for f in Earlier._fields if f != "facts")
_COLUMNS: Final = ", ".join(f'r."{name}"' for name in (*_OWN, "kind"))

# The relations of candidates.sql. Each Patient's results are looked up once, on the index resource_patient, in the spans of time its
# orders ask about. OFFSET 0: else a planner that thinks little of the number of orders reads the whole table.
_RELATIONS: Final = f"""
WITH placed AS MATERIALIZED (
  SELECT * FROM json_to_recordset(%(placed)s::json) AS a(number int, shard smallint, patient text, orderable text, at timestamptz,
    first timestamptz)
), linked AS MATERIALIZED (
  SELECT p.number, l.shard, l.patient FROM placed p
  JOIN (SELECT DISTINCT mine.shard AS of_shard, mine.patient AS of_patient, x.shard, x.patient
        FROM (SELECT DISTINCT shard, patient FROM placed) o
        JOIN identity_link mine ON mine.shard = o.shard AND mine.patient = o.patient
        JOIN identity_link x ON x.person = mine.person) l ON l.of_shard = p.shard AND l.of_patient = p.patient
  WHERE l.patient <> p.patient OR l.shard <> p.shard
  UNION ALL SELECT number, shard, patient FROM placed
), wanted AS MATERIALIZED (SELECT * FROM json_to_recordset(%(wanted)s::json) AS w(orderable text, asked text)),
kinds AS MATERIALIZED (
  SELECT k.id, {_ASKED} FROM resource_kind k WHERE coalesce(k.item, 'loinc:' || k.loinc) IN (SELECT asked FROM wanted)
), spans AS MATERIALIZED (
  SELECT shard, patient, lower(span) AS low, upper(span) AS high FROM (
    SELECT l.shard, l.patient, unnest(range_agg(tstzrange(p.first, p.at, '[]'))) AS span
    FROM linked l JOIN placed p ON p.number = l.number GROUP BY l.shard, l.patient) s
), who AS MATERIALIZED (SELECT DISTINCT shard, patient FROM linked
), dated AS MATERIALIZED (
  SELECT r.made, k.asked, {_COLUMNS} FROM spans CROSS JOIN LATERAL (
    SELECT r.start_at AS made, {_DATED} FROM resource r
    WHERE r.shard = spans.shard AND r.patient = spans.patient AND r.rtype = {_OBSERVATION}
      AND r.start_at >= spans.low AND r.start_at <= spans.high
    OFFSET 0) r JOIN kinds k ON k.id = r.kind
  UNION ALL
  SELECT coalesce(r.effective, r.issued) AS made, k.asked, {_COLUMNS} FROM who CROSS JOIN LATERAL (
    SELECT {_UNDATED} FROM resource r
    WHERE r.shard = who.shard AND r.patient = who.patient AND r.rtype = {_OBSERVATION} AND r.start_at IS NULL
    OFFSET 0) r JOIN kinds k ON k.id = r.kind
  UNION ALL
  SELECT coalesce(r.effective, r.issued) AS made, k.asked, {_COLUMNS} FROM who CROSS JOIN LATERAL (
    SELECT {_PAST} FROM resource_history h
    WHERE h.shard = who.shard AND h.patient = who.patient AND h.rtype = {_OBSERVATION} AND h.kind IS NOT NULL
    OFFSET 0) r JOIN kinds k ON k.id = r.kind
), undated AS (SELECT * FROM dated WHERE made IS NULL)
"""  # noqa: S608 - a number of our own
_KINDS: Final = f"SELECT id, {', '.join(f for f in Facts._fields if f != 'health_check')}, health_check = 'yes' FROM resource_kind WHERE id = ANY(%s)"  # noqa: S608, E501 - columns of our own
# Whatever was known of some results, whoever's item they were taken for.
_VERSIONS: Final = f"""
WITH w AS MATERIALIZED (SELECT * FROM unnest(%(shards)s::smallint[], %(ids)s::text[]) AS w(shard, id))
SELECT 0, r.made, r.asked, {_COLUMNS} FROM (
  SELECT NULL::timestamptz AS made, NULL AS asked, {_UNDATED} FROM w JOIN resource r ON r.shard = w.shard AND r.rtype = {_OBSERVATION}
    AND r.id = w.id
  UNION ALL
  SELECT NULL::timestamptz AS made, NULL AS asked, {_PAST} FROM w JOIN resource_history h ON h.shard = w.shard
    AND h.rtype = {_OBSERVATION} AND h.id = w.id WHERE h.kind IS NOT NULL) r"""  # noqa: S608 - a number of our own


@dataclass(slots=True)
class Stored:
    """Earlier results as one PostgreSQL database has them. Facts of kinds are read once."""

    conn: psycopg.Connection[Any]
    rules: Rules
    facts: dict[int, Facts] = field(default_factory=dict)

    def beside(self, placed: Sequence[Placed]) -> dict[int, list[Earlier]]:
        """Number of an order in ``placed`` -> every version of the earlier results that could cover it; orders without any are left
        out."""
        if not placed:
            return {}
        query = _RELATIONS + CANDIDATES
        return self._read(self.conn.execute(query, given(placed, self.rules), binary=True))

    def versions(self, wanted: Iterable[tuple[int, str]]) -> list[Earlier]:
        """Every version of some results, by shard and logical id."""
        keys = sorted(set(wanted))
        if not keys:
            return []
        given = {"shards": [s for s, _ in keys], "ids": [i for _, i in keys]}
        return [e for found in self._read(self.conn.execute(_VERSIONS, given, binary=True)).values() for e in found]

    def _read(self, cursor: psycopg.Cursor[Any]) -> dict[int, list[Earlier]]:
        # placed_number, made, asked, what is a row's own, kind
        rows = cursor.fetchall()
        missing = {row[-1] for row in rows} - self.facts.keys()
        if missing:
            for kind, *facts in self.conn.execute(_KINDS, (list(missing),), binary=True):
                self.facts[kind] = Facts(*facts)
        out: dict[int, list[Earlier]] = {}
        for row in rows:
            out.setdefault(row[0], []).append(Earlier._make((*row[3:-1], self.facts[row[-1]])))
        return out


def given(placed: Sequence[Placed], rules: Rules) -> dict[str, str]:
    """The relations ``placed`` and ``wanted`` as JSON: lists of the database driver cost ten times as much."""
    orderables = {p.orderable.code: p.orderable for p in placed}
    spans = {code: longest(orderable, rules) for code, orderable in orderables.items()}
    rows = [
        {
            "number": number,
            "shard": p.shard,
            "patient": p.patient,
            "orderable": p.orderable.code,
            "at": p.at,
            "first": p.at - spans[p.orderable.code],
        }
        for number, p in enumerate(placed)
    ]
    wanted = [{"orderable": orderable, "asked": item} for orderable, item in asked(orderables, rules)]
    return {"placed": orjson.dumps(rows).decode(), "wanted": orjson.dumps(wanted).decode()}


def asked(orderables: Mapping[str, Orderable], rules: Rules) -> list[tuple[str, str]]:
    """Orderable code and what is asked for it: each item it requires, and that item's LOINC code."""
    out: dict[tuple[str, str], None] = {}
    for code, orderable in orderables.items():
        for item in orderable.required:
            out[code, item] = None
            rows = rules.history.get(item) or ((rules.items[item],) if item in rules.items else ())
            out.update({(code, f"loinc:{row.loinc}"): None for row in rows if row.loinc})
    return list(out)


def longest(orderable: Orderable, rules: Rules) -> timedelta:
    """How far back a result can lie and still be inside the window of one of the required items, with a day to spare."""
    days = [rules.items[i].window_days for i in orderable.required if i in rules.items]
    days += [p.window_days for p in rules.policies if p.window_days]
    days += [o.window_days for p in rules.policies for o in p.overrides if o.window_days]
    days += [row.window_days for i in orderable.required for row in rules.history.get(i, ())]
    return timedelta(days=max(days, default=0) + 1)
