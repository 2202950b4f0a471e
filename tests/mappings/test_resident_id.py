"""Resident ID numbers. Source: GB 11643-1999, whose own example is 11010519491231002X."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappings.resident_id import check_character, is_other_document, normalise, read

EXAMPLE = "11010519491231002X"


def test_reads_the_example_of_the_standard() -> None:
    found = read(EXAMPLE)
    assert found is not None
    assert (found.birth_date, found.sex, found.region) == ("1949-12-31", "female", "110105")


@pytest.mark.parametrize(
    "sent",
    ["11010519491231002x", " 110105 19491231 002X ", "１１０１０５１９４９１２３１００２Ｘ", "110105-19491231-002X"],
)
def test_normalises_before_reading(sent: str) -> None:
    assert normalise(sent) == EXAMPLE
    assert read(sent) is not None


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "110105194912310021",
        "11010519491331002X",
        "1101051949123100",
        "01010519491231002X",
        "A1010519491231002X",
        "11010519491231002XX",
    ],
)
def test_reads_no_number_with_a_wrong_form_date_or_check_character(sent: str) -> None:
    assert read(sent) is None


@pytest.mark.parametrize(
    ("sent", "other"),
    [
        ("H12345678", True),
        ("M0123456789", True),
        ("01234567", True),
        ("A123456（7）", True),
        ("USA110090030701", True),
        ("EA1234567", True),
        ("11010519491231002", False),
        ("110105491331002", False),
        ("1101051949****0021", False),
        ("110105194912310021", False),
        ("无", False),
    ],
)
def test_knows_numbers_of_passports_and_permits(sent: str, other: bool) -> None:
    assert is_other_document(sent) is other


def test_completes_the_old_form_of_15_digits() -> None:
    found = read("110105491231002")
    assert found is not None
    assert found.full == EXAMPLE
    assert found.number == "110105491231002"


@settings(deadline=None)
@given(st.dates(date(1930, 1, 1), date(2020, 12, 31)), st.integers(0, 999), st.integers(0, 16), st.integers(1, 9))
def test_finds_every_single_wrong_digit(born: date, sequence: int, place: int, shift: int) -> None:
    # ISO 7064 MOD 11-2 detects all single substitutions.
    first17 = f"990121{born:%Y%m%d}{sequence:03}"
    good = first17 + check_character(first17)
    assert read(good) is not None
    other = str((int(good[place]) + shift) % 10)
    assert read(good[:place] + other + good[place + 1 :]) is None


def test_the_check_character_needs_17_digits() -> None:
    with pytest.raises(ValueError, match="17 digits"):
        check_character("123")
