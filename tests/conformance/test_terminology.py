"""LOINC check digits."""

from __future__ import annotations

import pytest

from conformance.terminology import loinc_valid

# Terms of loinc.org: glucose, haemoglobin, leukocytes, erythrocytes, creatinine, HbA1c, ALT, AST, lipid panel, CBC panel, SARS-CoV-2.
VALID = [
    "2345-7",
    "718-7",
    "6690-2",
    "789-8",
    "2160-0",
    "4548-4",
    "1742-6",
    "1920-8",
    "24331-1",
    "58410-2",
    "94500-6",
    "14749-6",
]


@pytest.mark.parametrize("code", VALID)
def test_accepts_real_loinc_codes(code: str) -> None:
    assert loinc_valid(code)


@pytest.mark.parametrize("code", VALID)
def test_refuses_every_other_check_digit(code: str) -> None:
    term, _, digit = code.partition("-")
    assert not any(loinc_valid(f"{term}-{d}") for d in "0123456789" if d != digit)


@pytest.mark.parametrize(
    "code", ["", "2345", "2345-", "-7", "02345-7", "2345-7 ", "２３４５-７", "LP1234-5", "2345-77", "GLU"]
)
def test_refuses_what_has_not_the_form_of_a_term_code(code: str) -> None:
    assert not loinc_valid(code)


def test_finds_two_neighbouring_digits_exchanged() -> None:
    # The mod 10 check finds every such exchange but 09 <-> 90.
    assert not loinc_valid("3245-7")
    assert not loinc_valid("2435-7")
