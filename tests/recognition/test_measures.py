"""The measures over a ledger whose figures were counted by hand."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from fhir_server.recognition import measures
from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.measures import Measures
from tests.recognition.county import County

AT = datetime(2025, 11, 21, 1, 0, tzinfo=UTC)
START, END = AT - timedelta(days=1), AT + timedelta(days=1)
KNOWN = AT + timedelta(days=30)
RENAL = ["L0016", "L0018", "L0020"]
_WHO = {"facility": "county-hospital", "department": "NK", "doctor": "D001", "orderable": "RENAL"}


@pytest.fixture
def county(database_url: str) -> County:
    return County(database_url, rules_module.load())


def _ledger(url: str, number: int, kind: str, card: str, at: datetime, **more: Any) -> None:
    row = _WHO | more
    values = (number, at, kind, row["facility"], row["orderable"], json.dumps({"card": card}), card)
    with psycopg.connect(url) as conn:
        conn.execute(
            "INSERT INTO ledger (chain, number, at, kind, facility, orderable, entry, hash, card, doctor, department)"
            " VALUES ('c', %s, %s, %s, %s, %s, %s, '', %s, %s, %s)",
            (*values, row["doctor"], row["department"]),
        )


def _decision(url: str, card: str, sequence: int, action: str, at: datetime, **more: Any) -> None:
    row = _WHO | {"price": 3000, "refusal": False} | more
    revokes = f"{card}-{sequence - 1}" if action == "revoke" else None
    who = (row["facility"], row["department"], row["doctor"], row["orderable"], row["refusal"], row["price"])
    with psycopg.connect(url) as conn:
        conn.execute(
            "INSERT INTO decision (card, sequence, id, at, action, revokes, facility, department, doctor, orderable, refusal,"
            " price_fen, content, entry) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, '', '{}')",
            (card, sequence, f"{card}-{sequence}", at, action, revokes, *who),
        )


def _measure(url: str, *by: measures.By, known: datetime = KNOWN, **filters: Any) -> Measures:
    only: Any = filters
    with psycopg.connect(url) as conn:
        return measures.measure(conn, rules_module.load(), START, END, known, by or ("facility",), only)


@pytest.fixture
def told(county: County) -> str:
    """Four reminders of the county hospital: adopted, refused, put aside, undecided; two views; three reports of the north township."""
    url = county.url
    for n in range(1, 5):
        _ledger(url, n, "reminder", f"c{n}", AT)
    _ledger(url, 5, "reminder", "c1", AT + timedelta(minutes=1))  # the same question again: one reminder
    _ledger(url, 6, "view", "c1", AT)
    _ledger(url, 7, "view", "c2", AT, department=None)
    _ledger(url, 8, "visit", "v1", AT)
    _ledger(url, 9, "reminder", "c9", START - timedelta(seconds=1))
    _decision(url, "c1", 1, "adopt", AT)
    _decision(url, "c2", 1, "decline", AT, refusal=True)
    _decision(url, "c3", 1, "decline", AT)
    there = county.patient("north-township", "2", "p-1", AT - timedelta(days=60))
    for n in range(3):
        county.report("north-township", there, f"r{n}", RENAL, AT - timedelta(hours=n + 1))
    return url


def test_the_three_rates_name_their_denominator_and_version(told: str) -> None:
    total = _measure(told).total
    assert (total.reminders, total.views, total.reports) == (4, 2, 3)
    assert (total.adopted, total.refused, total.not_counted, total.savings) == (1, 1, 1, 3000)
    rates = [(r.name, r.version, r.denominator_name, r.numerator, r.denominator, r.value) for r in total.rates()]
    assert rates == [
        ("adopted-of-reminders", "1.0", "reminders", 1, 4, Decimal("0.2500")),
        ("adopted-of-views", "1.0", "views", 1, 2, Decimal("0.5000")),
        ("adopted-of-reports-and-recognitions", "1.0", "reports + recognitions", 1, 4, Decimal("0.2500")),
    ]


def test_a_zero_denominator_is_null_and_never_zero(county: County) -> None:
    found = _measure(county.url)
    assert [r.value for r in found.total.rates()] == [None, None, None]
    assert found.rows == ()


def test_a_revoked_decision_does_not_count_once_that_is_known(told: str) -> None:
    _decision(told, "c1", 2, "revoke", AT + timedelta(days=3))
    assert _measure(told, known=AT + timedelta(days=2)).total.adopted == 1
    later = _measure(told, known=AT + timedelta(days=4)).total
    assert (later.adopted, later.savings, later.reminders) == (0, 0, 4)


def test_an_unknown_price_makes_the_savings_unknown(told: str) -> None:
    _decision(told, "c4", 1, "adopt", AT, price=None)
    total = _measure(told).total
    assert (total.adopted, total.unpriced, total.savings_fen, total.savings) == (2, 1, 3000, None)


@pytest.mark.parametrize("by", ["facility", "department", "doctor", "item"])
def test_groups_add_up_to_the_total(told: str, by: measures.By) -> None:
    _ledger(told, 20, "reminder", "c20", AT, facility="south-township", department="WK", doctor="D9", orderable="CBC")
    found = _measure(told, by)
    assert sum(c.reminders for c in found.rows) == found.total.reminders == 5
    assert sum(c.adopted for c in found.rows) == found.total.adopted == 1
    if by in ("department", "doctor"):
        assert found.total.reports is None
        assert found.total.rates()[2].value is None


def test_filters_leave_out_what_they_do_not_name(told: str) -> None:
    _ledger(told, 20, "reminder", "c20", AT, facility="south-township", doctor="D9")
    assert _measure(told, facility="south-township").total.reminders == 1
    assert _measure(told, doctor="D001").total.reminders == 4
    assert _measure(told, item="CBC").total.reminders == 0


def test_csv_has_a_line_a_group_and_the_total_last(told: str) -> None:
    rows = list(csv.DictReader(io.StringIO(measures.as_csv(_measure(told)))))
    assert [r["facility"] for r in rows] == ["county-hospital", "north-township", "total"]
    assert rows[-1]["adopted-of-reminders v1.0"] == "0.2500"
    assert rows[1]["adopted-of-reminders v1.0"] == ""
    assert json.loads(measures.as_json(_measure(told)))["total"]["undecided"] == 1
