"""Numbers as written. Sources: HL7 v2.5.1 2.A.47 NM; FHIR R4 decimal (precision is kept)."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import fhirjson
from mappings.numbers import level, number


@pytest.mark.parametrize(
    ("sent", "served"),
    [
        ("6.30", "6.30"),
        ("007", "7"),
        ("-0.50", "-0.50"),
        ("+.5", "0.5"),
        ("5.", "5"),
        ("1e3", "1e3"),
        ("01.20E2", "1.20E2"),
        ("0", "0"),
    ],
)
def test_serves_the_digits_that_were_sent(sent: str, served: str) -> None:
    found = number(sent)
    assert found is not None
    assert fhirjson.dumps(found) == served.encode()


@pytest.mark.parametrize(
    "sent", ["", ".", "-", "1,2", "1 2", "--1", "NaN", "Infinity", "0x1F", "1_000", "１", "1e9999", "9" * 50]
)
def test_is_not_a_number(sent: str) -> None:
    assert number(sent) is None


@pytest.mark.parametrize(
    ("sent", "levelled"),
    [("＜０．５", "<0.5"), ("3.5—5.3", "3.5-5.3"), ("3～5", "3~5"), (" a \u3000 b ", "a b"), ("−1", "-1")],
)
def test_levels_widths_dashes_and_blanks(sent: str, levelled: str) -> None:
    assert level(sent) == levelled


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_any_decimal_comes_back_with_its_digits(value: Decimal) -> None:
    sent = f"{value:f}"
    found = number(sent)
    assert found is not None
    assert found == value
    assert fhirjson.dumps(found).decode() == sent
