"""Measures for readers: trend by month, the cases behind a figure, FHIR Measure and MeasureReport, Excel.

http://hl7.org/fhir/R4/measure.html and measurereport.html: each rate is a Measure with a version and a MeasureReport of type summary.
A rate without a denominator has no measureScore. Cases name cards, decisions and reports, never a patient.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final, Literal, get_args

import psycopg
from psycopg.rows import dict_row

from conformance import fhirjson, systems
from fhir_server.duplicates.spreadsheet import Sheet, workbook
from fhir_server.recognition import measures
from fhir_server.recognition.measures import RATES, VERSION, By, Counts, Measures, Rate
from fhir_server.recognition.rules import Rules
from mappings.ids import directory_id

Figure = Literal["reminders", "views", "reports", "adopted", "refused", "not_counted"]
FIGURES: Final = get_args(Figure)
_POPULATION: Final = "http://terminology.hl7.org/CodeSystem/measure-population"
_SCORING: Final = "http://terminology.hl7.org/CodeSystem/measure-scoring"
_OF: Final = {
    RATES[0]: ("采用率(按提醒)", "reminders"),
    RATES[1]: ("采用率(按调阅)", "views"),
    RATES[2]: ("互认率(报告+互认)", "reports + recognitions"),
}


def months(start: datetime, end: datetime, zone: tzinfo) -> Iterable[tuple[str, datetime, datetime]]:
    """Calendar months of [start, end) in a zone: ``2026-03``, first and last moment, cut to the period."""
    at = start
    while at < end:
        local = at.astimezone(zone)
        following = (local.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=32)).replace(
            day=1
        )
        yield f"{local:%Y-%m}", at, min(following, end)
        at = following


def trend(
    conn: psycopg.Connection[Any], rules: Rules, found: Measures, zone: tzinfo, without: Collection[str] = ()
) -> list[tuple[str, Counts]]:
    """Month -> the totals of its part of the period, with the filters of ``found``. ``without``: items that are left out."""
    return [
        (month, measures.measure(conn, rules, a, b, found.known, (), found.filters, without).total)
        for month, a, b in months(found.start, found.end, zone)
    ]


# --- cases -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which cases: those that ``figure`` of ``found`` counts; ``without``: items that are left out."""

    figure: Figure
    found: Measures
    without: Sequence[str] = ()
    limit: int = 100
    offset: int = 0


_CASES: Final = {
    "reminders": """
SELECT card, at, facility, department, doctor, orderable AS item FROM (
  SELECT DISTINCT ON (card) * FROM ledger WHERE kind = 'reminder' AND card IS NOT NULL AND at < %(end)s
  ORDER BY card, at, chain, number) AS first WHERE at >= %(start)s""",
    "views": """
SELECT v.card, v.at, v.facility, r.department, coalesce(r.doctor, v.doctor) AS doctor, v.orderable AS item FROM ledger v
LEFT JOIN LATERAL (SELECT department, doctor FROM ledger r WHERE r.card = v.card AND r.kind IN ('reminder', 'visit')
  ORDER BY r.at, r.chain, r.number LIMIT 1) r ON true
WHERE v.kind = 'view' AND v.at >= %(start)s AND v.at < %(end)s""",
    "reports": """
SELECT report, max(coalesce(issued, effective)) AS at, facility, NULL AS department, NULL AS doctor, NULL AS item FROM result
WHERE report IS NOT NULL AND until IS NULL AND status IN ('final', 'amended', 'corrected')
  AND coalesce(issued, effective) >= %(start)s AND coalesce(issued, effective) < %(end)s
  AND (%(item)s::text IS NULL OR item = ANY(%(members)s::text[])) GROUP BY facility, report""",
}
_DECIDED: Final = """
SELECT d.card, d.id AS decision, d.at, d.facility, d.department, d.doctor, d.orderable AS item, d.reason, d.price_fen FROM decision d
WHERE d.at >= %(start)s AND d.at < %(end)s AND d.action = %(action)s AND d.refusal = %(refusal)s
  AND NOT EXISTS (SELECT FROM decision r WHERE r.card = d.card AND r.revokes = d.id AND r.at <= %(known)s)"""
_SAID: Final = {"adopted": ("adopt", False), "refused": ("decline", True), "not_counted": ("decline", False)}


def cases(conn: psycopg.Connection[Any], rules: Rules, wanted: Wanted) -> list[dict[str, Any]]:
    """The cases a figure counts, by time: JSON values that lead on (``/recognition/reminders/<card>``, a decision, a report)."""
    found, only = wanted.found, wanted.found.filters
    action, refusal = _SAID.get(wanted.figure, ("", False))
    item = only.get("item")
    panel = rules.orderables.get(item or "")
    parameters = {
        "start": found.start, "end": found.end, "known": found.known, "action": action, "refusal": refusal, "item": item,
        "members": list(panel.required) if panel else [item] if item else [], "without": list(wanted.without),
        "limit": wanted.limit, "offset": wanted.offset,
        **{name: only.get(name) for name in ("facility", "department", "doctor")},
    }  # fmt: skip
    each = "facility", "department", "doctor"
    narrowed = " AND ".join(f"(%({n})s::text IS NULL OR c.{n} = %({n})s)" for n in each)
    if wanted.figure != "reports":
        narrowed += " AND (%(item)s::text IS NULL OR c.item = %(item)s)"
    text = (
        f"SELECT c.* FROM ({_CASES.get(wanted.figure, _DECIDED)}) c WHERE {narrowed}"  # noqa: S608 - texts of this module
        " AND NOT coalesce(c.item = ANY(%(without)s::text[]), false) ORDER BY c.at, 1 LIMIT %(limit)s OFFSET %(offset)s"
    )
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(text, parameters).fetchall()
    return [{k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()} for row in rows]


# --- FHIR ------------------------------------------------------------------------------------------------------------------


def as_fhir(found: Measures) -> dict[str, Any]:
    """A Bundle of type collection: the Measure of each rate and its MeasureReport, stratified by what the rows are grouped by."""
    resources = [r for name in RATES for r in (measure_of(name), _report(name, found))]
    entries = [{"fullUrl": f"{systems.BASE}/{r['resourceType']}/{r['id']}", "resource": r} for r in resources]
    return {"resourceType": "Bundle", "type": "collection", "timestamp": found.known.isoformat(), "entry": entries}


def measure_of(name: str) -> dict[str, Any]:
    """The Measure of a rate: what is counted, over what, in which version."""
    title, denominator = _OF[name]
    counted = {"numerator": "recognitions in force: adopted and not revoked 采用", "denominator": denominator}
    return {
        "resourceType": "Measure",
        "id": name,
        "url": f"{systems.BASE}/Measure/{name}",
        "version": VERSION,
        "name": "".join(word.title() for word in name.split("-")),
        "title": title,
        "status": "active",
        "scoring": {"coding": [{"system": _SCORING, "code": "proportion"}]},
        "group": [
            {
                "population": [
                    {
                        "code": {"coding": [{"system": _POPULATION, "code": code}]},
                        "criteria": {"language": "text/plain", "expression": text},
                    }
                    for code, text in counted.items()
                ]
            }
        ],
    }


def _report(name: str, found: Measures) -> dict[str, Any]:
    told = _populations(_rate(found.total, name))
    strata = [
        {"value": {"text": str(getattr(row, d) or "?")}, **_populations(_rate(row, name))}
        for d in found.by[:1]
        for row in found.rows
    ]
    group = told | ({"stratifier": [{"code": [{"text": found.by[0]}], "stratum": strata}]} if strata else {})
    last = found.end - timedelta(seconds=1)
    key = (
        name,
        found.start.isoformat(),
        found.end.isoformat(),
        *found.by,
        *sorted(map("=".join, found.filters.items())),
    )
    return {
        "resourceType": "MeasureReport",
        "id": directory_id("", "MeasureReport", *key),
        "status": "complete",
        "type": "summary",
        "measure": f"{systems.BASE}/Measure/{name}|{VERSION}",
        "date": found.known.isoformat(),
        "period": {"start": found.start.isoformat(), "end": last.isoformat()},
        "group": [group],
    }


def _rate(counts: Counts, name: str) -> Rate:
    return next(rate for rate in counts.rates() if rate.name == name)


def _populations(rate: Rate) -> dict[str, Any]:
    counts = {"numerator": rate.numerator, "denominator": rate.denominator}
    out: dict[str, Any] = {
        "population": [
            {"code": {"coding": [{"system": _POPULATION, "code": code}]}, "count": count}
            for code, count in counts.items()
            if count is not None
        ]
    }
    return out if rate.value is None else out | {"measureScore": {"value": rate.value}}


# --- text and Excel --------------------------------------------------------------------------------------------------------


def as_xlsx(found: Measures, by_month: Sequence[tuple[str, Counts]] = ()) -> bytes:
    """A workbook: rows with the total last, the months, and what each rate is."""
    head = measures.columns(found)[len(found.by) :]
    body = [measures.lines(Measures(found.start, found.end, found.known, (), {}, c, ()))[0] for _, c in by_month]
    defined = [(n, VERSION, _OF[n][0], "adopted", _OF[n][1]) for n in RATES]
    sheets = [Sheet("measures", measures.columns(found), measures.lines(found))]
    if by_month:
        sheets.append(
            Sheet("trend", ("month", *head), [(m, *line) for (m, _), line in zip(by_month, body, strict=True)])
        )
    sheets.append(Sheet("definitions", ("rate", "version", "name", "numerator", "denominator"), defined))
    return workbook(sheets)


def as_dict(found: Measures, by_month: Sequence[tuple[str, Counts]] | None = None) -> dict[str, Any]:
    """``measures.as_dict``, with ``trend`` where months are given: a figure of each month."""
    out = measures.as_dict(found)
    if by_month is not None:
        out["trend"] = [{"month": month, **measures.counts_as_dict(c, ())} for month, c in by_month]
    return out


def as_json(found: Measures, by_month: Sequence[tuple[str, Counts]] | None = None) -> str:
    """``as_dict`` as JSON text."""
    return fhirjson.dumps(as_dict(found, by_month), pretty=True).decode() + "\n"


def filters_of(given: Mapping[str, str]) -> dict[By, str]:
    """What narrows the figures: facility, department, doctor, item, where not empty."""
    return {name: given[name] for name in measures.DIMENSIONS if given.get(name)}
