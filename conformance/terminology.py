"""Codes that carry their own check digit."""

from __future__ import annotations

import re

_LOINC = re.compile(r"([1-9][0-9]{0,6})-([0-9])")


def loinc_valid(code: str) -> bool:
    """True when the text is a LOINC term code with the right check digit (mod 10, LOINC Users' Guide, appendix "Calculating mod 10
    check digits"). It says nothing about whether LOINC has such a term."""
    m = _LOINC.fullmatch(code)
    return m is not None and check_digit(m[1]) == int(m[2])


def check_digit(digits: str) -> int:
    """Mod 10 check digit (ISO/IEC 7812-1 annex B) of a text of ASCII digits: every second digit from the right doubled."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value // 10 + value % 10
    return -total % 10
