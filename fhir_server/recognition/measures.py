"""How much is recognized: counts of a period, and rates that name their denominator and its version.

Three denominators are in use (docs/auditors.md), so a rate without its name means nothing: reminders, views, and reports +
recognitions. A denominator of zero gives null. A reminder nobody decided stays in the denominator; a rate may exceed one, because
decisions may fall into a later period than their reminders. Amounts are in fen, at the receiver's price when the decision was made.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final, Literal

import psycopg

from conformance import fhirjson
from fhir_server.recognition import order
from fhir_server.recognition.rules import Rules

By = Literal["facility", "department", "doctor", "item"]
DIMENSIONS: Final[tuple[By, ...]] = ("facility", "department", "doctor", "item")
_PLACES: Final = Decimal("0.0001")

_REMINDERS: Final = """
SELECT facility, department, doctor, orderable, count(*) FROM (
  SELECT DISTINCT ON (card) facility, department, doctor, orderable, at FROM ledger
  WHERE kind = 'reminder' AND card IS NOT NULL AND at < %(end)s ORDER BY card, at, chain, number) AS first
WHERE at >= %(start)s GROUP BY 1, 2, 3, 4"""
# A view carries no order of its own: department and orderable are those of its reminder.
_VIEWS: Final = """
SELECT v.facility, r.department, coalesce(r.doctor, v.doctor), v.orderable, count(*) FROM ledger v
LEFT JOIN LATERAL (SELECT department, doctor FROM ledger r WHERE r.card = v.card AND r.kind IN ('reminder', 'visit')
  ORDER BY r.at, r.chain, r.number LIMIT 1) r ON true
WHERE v.kind = 'view' AND v.at >= %(start)s AND v.at < %(end)s GROUP BY 1, 2, 3, 4"""
_DECISIONS: Final = """
SELECT d.facility, d.department, d.doctor, d.orderable, d.action, d.refusal, d.price_fen FROM decision d
WHERE d.at >= %(start)s AND d.at < %(end)s AND d.action <> 'revoke'
  AND NOT EXISTS (SELECT FROM decision r WHERE r.card = d.card AND r.revokes = d.id AND r.at <= %(known)s)"""
_REPORTS: Final = """
SELECT facility, items, count(*) FROM (
  SELECT facility, report, array_agg(DISTINCT item ORDER BY item) AS items FROM result
  WHERE report IS NOT NULL AND until IS NULL AND status IN ('final', 'amended', 'corrected')
    AND coalesce(issued, effective) >= %(start)s AND coalesce(issued, effective) < %(end)s
  GROUP BY facility, report) AS one GROUP BY facility, items"""


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate by its name. ``value``: to four places; None when the denominator is zero or not known."""

    name: str
    version: str
    denominator_name: str
    numerator: int
    denominator: int | None
    value: Decimal | None

    def interval(self) -> list[Decimal] | None:
        """Bounds of the 95 % confidence interval of Wilson (1927), to four places; None where it is no part of a denominator."""
        if not self.denominator or self.numerator > self.denominator:
            return None
        n, p, z = self.denominator, self.numerator / self.denominator, 1.959964
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        bounds = ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
        return [Decimal(min(max(b, 0.0), 1.0)).quantize(_PLACES, ROUND_HALF_EVEN) for b in bounds]


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened in one group. reports: None where reports cannot be told apart by the group.

    adopted, refused, not_counted  decisions in force: adopted, declined for a lawful reason, put aside for a local one
    savings_fen  of what was adopted, where a price was known; unpriced: adoptions without a price
    """

    facility: str | None = None
    department: str | None = None
    doctor: str | None = None
    item: str | None = None
    reminders: int = 0
    views: int = 0
    reports: int | None = 0
    adopted: int = 0
    refused: int = 0
    not_counted: int = 0
    savings_fen: int = 0
    unpriced: int = 0

    @property
    def savings(self) -> int | None:
        """Fen saved; None when the price of an adoption is not known."""
        return self.savings_fen if not self.unpriced else None

    def rates(self) -> tuple[Rate, ...]:
        """The three rates."""
        known = None if self.reports is None else self.reports + self.adopted
        return (
            _rate("adopted-of-reminders", "reminders", self.adopted, self.reminders),
            _rate("adopted-of-views", "views", self.adopted, self.views),
            _rate("adopted-of-reports-and-recognitions", "reports + recognitions", self.adopted, known),
        )


RATES: Final = ("adopted-of-reminders", "adopted-of-views", "adopted-of-reports-and-recognitions")
VERSION: Final = "1.0"
"""Of the definitions of the rates; another definition is another version."""


def _rate(name: str, of: str, numerator: int, denominator: int | None) -> Rate:
    value = (Decimal(numerator) / denominator).quantize(_PLACES, ROUND_HALF_EVEN) if denominator else None
    return Rate(name, VERSION, of, numerator, denominator, value)


@dataclass(frozen=True, slots=True)
class Measures:
    """The figures of [start, end), as known at ``known``. by: what the rows are grouped by; total: all of them together."""

    start: datetime
    end: datetime
    known: datetime
    by: tuple[By, ...]
    filters: Mapping[By, str]
    total: Counts
    rows: tuple[Counts, ...]


def measure(
    conn: psycopg.Connection[Any],
    rules: Rules,
    start: datetime,
    end: datetime,
    known: datetime,
    by: Sequence[By] = ("facility",),
    filters: Mapping[By, str] | None = None,
    without: Collection[str] = (),
) -> Measures:
    """The figures of a period [start, end) (aware times). Revocations count until ``known``. ``filters``: only this facility,
    department, doctor or item (code of an orderable); ``without``: what was said about these items is left out."""
    wanted = dict(filters or {})
    period = {"start": start, "end": end, "known": known}
    with conn.transaction():
        events = list(_events(conn, rules, period))
    # Reports name neither department nor doctor: where those tell groups apart, their number is not known.
    blind = bool({"department", "doctor"} & {*by, *wanted})
    events = [
        e for e in events if e.item not in without and all(getattr(e, name) == value for name, value in wanted.items())
    ]
    groups: dict[tuple[str | None, ...], Counts] = {}
    total = Counts()
    for event in events:
        if blind and event.reports:
            continue
        key = tuple(getattr(event, name) for name in by)
        groups[key] = _sum(groups.get(key) or Counts(**dict(zip(by, key, strict=True))), event)
        total = _sum(total, event)
    if "item" not in by and "item" not in wanted and not blind:
        whole = _whole_reports(conn, period, wanted.get("facility"))
        total = replace(total, reports=sum(whole.values()))
        groups = {k: replace(c, reports=_own(c, whole, by)) for k, c in groups.items()}
        for facility, count in whole.items():
            if by == ("facility",) and (facility,) not in groups:
                groups[(facility,)] = Counts(facility=facility, reports=count)
    if blind:
        total, groups = replace(total, reports=None), {k: replace(c, reports=None) for k, c in groups.items()}
    rows = sorted(groups.items(), key=lambda kv: (-kv[1].adopted, tuple(part or "" for part in kv[0])))
    return Measures(start, end, known, tuple(by), wanted, total, tuple(c for _, c in rows))


def _own(counts: Counts, whole: Mapping[str, int], by: Sequence[By]) -> int:
    return whole.get(counts.facility or "", 0) if "facility" in by else sum(whole.values())


def _events(conn: psycopg.Connection[Any], rules: Rules, period: Mapping[str, Any]) -> Iterable[Counts]:
    for facility, department, doctor, item, count in conn.execute(_REMINDERS, period).fetchall():
        yield Counts(facility, department, doctor, item, reminders=count)
    for facility, department, doctor, item, count in conn.execute(_VIEWS, period).fetchall():
        yield Counts(facility, department, doctor, item, views=count)
    for facility, department, doctor, item, action, refusal, price in conn.execute(_DECISIONS, period).fetchall():
        adopted = action == "adopt"
        yield Counts(
            facility,
            department,
            doctor,
            item,
            adopted=int(adopted),
            refused=int(not adopted and refusal),
            not_counted=int(not adopted and not refusal),
            savings_fen=(price or 0) if adopted else 0,
            unpriced=int(adopted and price is None),
        )
    for facility, items, count in conn.execute(_REPORTS, period).fetchall():
        found = order.orderables_of(items, rules)
        covered = {i for o in found for i in (*o.required, *o.optional)}
        left = [i for i in items if i and i not in covered]
        for code in (*(o.code for o in found), *left):
            yield Counts(facility=facility, item=code, reports=count)


def _whole_reports(conn: psycopg.Connection[Any], period: Mapping[str, Any], facility: str | None) -> dict[str, int]:
    """Facility -> its reports of the period: each once, however many orderables it holds."""
    out: dict[str, int] = {}
    for sender, _, count in conn.execute(_REPORTS, period).fetchall():
        if facility in (None, sender):
            out[sender] = out.get(sender, 0) + count
    return out


_ADDED: Final = tuple(f.name for f in fields(Counts) if f.name not in DIMENSIONS)


def _sum(one: Counts, other: Counts) -> Counts:
    return replace(
        one,
        reminders=one.reminders + other.reminders,
        views=one.views + other.views,
        reports=(one.reports or 0) + (other.reports or 0),
        adopted=one.adopted + other.adopted,
        refused=one.refused + other.refused,
        not_counted=one.not_counted + other.not_counted,
        savings_fen=one.savings_fen + other.savings_fen,
        unpriced=one.unpriced + other.unpriced,
    )


def first(found: Measures, most: int) -> Measures:
    """The rows with the most recognitions, at most so many; the total stays that of all."""
    return replace(found, rows=found.rows[:most])


# --- as text ---------------------------------------------------------------------------------------------------------------


def as_dict(found: Measures) -> dict[str, Any]:
    """JSON values; every rate carries its name, version, numerator and denominator."""
    return {
        "start": found.start.isoformat(),
        "end": found.end.isoformat(),
        "known": found.known.isoformat(),
        "by": list(found.by),
        "filters": dict(found.filters),
        "total": counts_as_dict(found.total, ()),
        "rows": [counts_as_dict(c, found.by) for c in found.rows],
    }


def counts_as_dict(counts: Counts, by: Sequence[By]) -> dict[str, Any]:
    """One group as JSON values; ``by``: what it is the group of."""
    out: dict[str, Any] = {name: getattr(counts, name) for name in by}
    out |= {name: getattr(counts, name) for name in _ADDED if name != "savings_fen"}
    out["undecided"] = max(0, counts.reminders - counts.adopted - counts.refused - counts.not_counted)
    out["savings_fen"] = counts.savings
    out["savings_priced_fen"] = counts.savings_fen
    out["rates"] = [asdict(rate) | {"interval_95": rate.interval()} for rate in counts.rates()]
    return out


def as_json(found: Measures) -> str:
    """``as_dict`` as JSON text, indented, with a line end."""
    return fhirjson.dumps(as_dict(found), pretty=True).decode() + "\n"


def as_csv(found: Measures) -> str:
    """One line a group, the total last; null is empty (RFC 4180)."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns(found))
    writer.writerows(lines(found))
    return out.getvalue()


def columns(found: Measures) -> list[str]:
    """Header of ``lines``; the rates are named in full."""
    counted = ("reminders", "views", "reports", "adopted", "refused", "not_counted", "savings_fen", "unpriced")
    return [*found.by, *counted, *(f"{name} v{VERSION}" for name in RATES)]


def lines(found: Measures) -> list[list[Any]]:
    """A line a group, the total last."""
    out = []
    for counts, label in (*((c, None) for c in found.rows), (found.total, "total")):
        head = [getattr(counts, name) for name in found.by]
        if label and head:
            head[0] = label
        body = [
            counts.reminders, counts.views, counts.reports, counts.adopted, counts.refused, counts.not_counted, counts.savings,
            counts.unpriced,
        ]  # fmt: skip
        out.append([*head, *body, *(rate.value for rate in counts.rates())])
    return out
