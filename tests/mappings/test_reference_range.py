"""OBX-7. Source: V2-to-FHIR guide, segment map OBX, row OBX-7 (text always, low and high if sufficiently parseable)."""

from __future__ import annotations

from decimal import Decimal

import pytest

from conformance import fhirjson
from mappings.reference_range import reference_range
from mappings.units import shipped

MMOL = shipped().lookup("mmol/L")


def bounds(text: str) -> tuple[Decimal | None, Decimal | None]:
    (found,) = reference_range(text, MMOL)
    assert found["text"] == text.strip()
    return tuple(found[k]["value"] if k in found else None for k in ("low", "high"))


@pytest.mark.parametrize(
    "text",
    [
        "3.5-5.3",
        "3.5~5.3",
        "3.5～5.3",
        "3.5--5.3",
        "3.5—5.3",
        "3.5——5.3",
        "3.5－5.3",
        "3.5–5.3",
        "3.5 - 5.3",
        "3.5_5.3",
        "3.5&5.3",
        "3.5至5.3",
        "[ 3.5 - 5.3 ]",
        "(3.5-5.3)",
        "3.5-5.3 mmol/L",
        "3.5-5.3mmol/l",
        "3.5-5.3(mmol/L)",
        "３.５-５.３",
    ],
)
def test_reads_low_and_high_behind_any_dash(text: str) -> None:
    assert bounds(text) == (Decimal("3.5"), Decimal("5.3"))


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("<5", None, "5"),
        ("≤5", None, "5"),
        ("＜5", None, "5"),
        ("[ < 4.5]", None, "4.5"),
        (">1.5", "1.5", None),
        ("≥90", "90", None),
        (">^11.0", "11.0", None),
        ("<0.50 mmol/L", None, "0.50"),
        ("-3-3", "-3", "3"),
        ("-3~+3", "-3", "3"),
        ("-3.0--1.5", None, None),
        ("0.00--0.06", "0.00", "0.06"),
        ("0-0", "0", "0"),
        ("70_105", "70", "105"),
        ("4.50&5.90", "4.50", "5.90"),
    ],
)
def test_reads_one_sided_and_negative_bounds_only_in_the_one_way_they_can_mean(
    text: str, low: str | None, high: str | None
) -> None:
    assert bounds(text) == (Decimal(low) if low else None, Decimal(high) if high else None)


@pytest.mark.parametrize(
    "text",
    [
        "阴性",
        "-",
        "002~029",
        "5.3-3.5",
        "1:80",
        "<1:80",
        "男:3.5-5.3;女:3.0-5.0",
        "轻：31-49，中：50-69，重：>70",
        "<1 = Susceptible, >= 1 = Resistant",
        "<130 optimal",
        "3.5-5.3 g/L",
        "3.5",
        "参考：3-5",
        "见说明",
        "3.5-",
        "N/A",
        "x" * 500,
    ],
)
def test_keeps_only_the_text_where_bounds_are_not_sure(text: str) -> None:
    assert bounds(text) == (None, None)


def test_a_unit_behind_the_range_may_be_spelled_otherwise() -> None:
    (found,) = reference_range("649-1346 cells/mcL", shipped().coded("{Cells}/uL", "cells per microliter", "UCUM"))
    assert (found["low"]["value"], found["high"]["value"]) == (649, 1346)


def test_bounds_keep_their_digits_and_carry_the_unit() -> None:
    assert (
        fhirjson.dumps(reference_range("4.50-5.90", MMOL))
        == b'[{"low":{"value":4.50,"unit":"mmol/L","system":"http://unitsofmeasure.org","code":"mmol/L"},'
        b'"high":{"value":5.90,"unit":"mmol/L","system":"http://unitsofmeasure.org","code":"mmol/L"},"text":"4.50-5.90"}]'
    )


def test_bounds_without_a_unit_get_none() -> None:
    assert reference_range("1-2", None) == [{"low": {"value": 1}, "high": {"value": 2}, "text": "1-2"}]


@pytest.mark.parametrize("text", ["", "  ", '""'])
def test_nothing_sent_gives_no_range(text: str) -> None:
    assert reference_range(text, MMOL) == []
