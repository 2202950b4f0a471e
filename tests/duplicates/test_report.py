"""The report: amounts, totals and what stays null."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console

from fhir_server.duplicates.report import Finding, Kind, Report, Row, as_csv, as_dict, table, totals, yuan

START, END = datetime(2025, 11, 1, tzinfo=UTC), datetime(2025, 12, 1, tzinfo=UTC)


def _finding(kind: Kind = "avoidable", price: int | None = 3000) -> Finding:
    return Finding("f", kind, "", "county", "RENAL", "ServiceRequest/1", START, "order", (), (), price, {})


def _row(**changes: int | None) -> Row:
    return replace(Row("county", "RENAL", "肾功能", "order"), **changes)


def test_only_avoidable_repeats_cost() -> None:
    row = _row()
    for kind in ("avoidable", "avoidable", "justified", "undetermined", "system"):
        row = row.with_order(_finding(kind), partial=False)
    assert (row.orders, row.repeats, row.amount_fen) == (5, 5, 6000)


def test_a_price_nobody_knows_makes_the_amount_unknown_not_zero() -> None:
    row = _row().with_order(_finding(), partial=False).with_order(_finding(price=None), partial=False)
    assert row.amount_fen is None
    assert row.with_order(_finding(), partial=False).amount_fen is None
    assert _row().with_order(_finding("justified", None), partial=False).amount_fen == 0


def test_totals_keep_orders_and_feeds_without_orders_apart() -> None:
    rows = (
        _row(orders=3, avoidable=1, amount_fen=100),
        replace(_row(orders=2), basis="collection"),
        _row(orders=1, system=1),
    )
    found = Report(START, END, "v", rows, ())
    assert [(t.basis, t.orders, t.repeats, t.amount_fen) for t in totals(found)] == [
        ("order", 4, 2, 100),
        ("collection", 2, 0, 0),
    ]
    unknown = replace(found, rows=(*rows, _row(orders=1, avoidable=1, amount_fen=None)))
    assert totals(unknown)[0].amount_fen is None


def test_fen_are_shown_as_yuan() -> None:
    assert [yuan(v) for v in (0, 5, 3000, 123456, None)] == ["0.00", "0.05", "30.00", "1234.56", "-"]


def test_an_empty_period_has_no_rows_and_says_so_plainly() -> None:
    empty = Report(START, END, "v", (), ())
    assert as_csv(empty).splitlines()[1:] == []
    assert as_dict(empty)["totals"] == []
    assert table(empty).row_count == 0


def test_the_table_names_what_it_could_not_judge() -> None:
    found = Report(START, END, "v1", (_row(orders=9), _row(orders=4, avoidable=2, amount_fen=6000)), (), {"north": 7})
    text = io.StringIO()
    Console(file=text, width=160).print(table(found))
    assert "60.00" in text.getvalue()
    assert "north 7" in text.getvalue()
    assert "v1" in text.getvalue()
