"""OBX-7 reference ranges -> Observation.referenceRange (HL7 V2-to-FHIR guide, segment map OBX, row OBX-7).

The text is always kept as sent. ``low`` and ``high`` are added only when the text can be read in one way.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

from mappings import ucum
from mappings.numbers import COMPARATOR, COMPARATORS, level, number, quantity
from mappings.units import Unit, UnitTable, shipped
from mappings.units import level as level_unit

_NUM = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_BOUND = re.compile(rf"({COMPARATOR})\s*\^?\s*({_NUM})", re.ASCII)
_BETWEEN = re.compile(rf"({_NUM})\s*(~~?|-{{1,3}}|_|&|至|到|to|\.\.|\^-\^)\s*({_NUM})", re.ASCII)
_LONGEST = 64
"""Longer text is prose."""
_BRACKETS = (("[", "]"), ("(", ")"), ("{", "}"), ("【", "】"))
_ZERO_FILLED = re.compile(r"[+-]?0\d")


def reference_range(text: str, unit: Unit | None, units: UnitTable | None = None) -> list[dict[str, Any]]:
    """Range text as sent (sub-components joined by ``&``, components by ``^``) -> 0 or 1 FHIR referenceRange.

    unit   unit of the value, also of the bounds; None when none was sent
    units  the facility's unit table (default: the shipped one), to see whether a unit behind the range is the same one
    """
    text = text.strip()
    if not text or text == '""':
        return []
    low, high = _bounds(text, unit, units or shipped())
    out: dict[str, Any] = {}
    if low is not None:
        out["low"] = quantity(low, unit)
    if high is not None:
        out["high"] = quantity(high, unit)
    out["text"] = text
    return [out]


def _bounds(text: str, unit: Unit | None, units: UnitTable) -> tuple[Decimal | None, Decimal | None]:
    if len(text) > _LONGEST:
        return None, None
    bare = level(text)
    low, high = read_bounds(bare)
    if (low, high) == (None, None) and unit is not None and (found := _BOUND.match(bare) or _BETWEEN.match(bare)):
        written = bare[found.end() :].strip(" ()[]")
        known = units.lookup(written).ucum
        if level_unit(written) == level_unit(unit.text) or (known and unit.ucum and ucum.same_unit(known, unit.ucum)):
            return read_bounds(found[0])
    return low, high


@lru_cache(maxsize=4096)
def read_bounds(bare: str) -> tuple[Decimal | None, Decimal | None]:
    """Levelled range text without unit -> (low, high); both None when it is prose or can be read in two ways."""
    for opening, closing in _BRACKETS:
        if bare.startswith(opening) and bare.endswith(closing):
            bare = bare[1:-1].strip()
    if found := _BOUND.fullmatch(bare):
        value = number(found[2])
        return (value, None) if ">" in COMPARATORS[found[1]] else (None, value)
    found = _BETWEEN.fullmatch(bare)
    # 002~029 has lost its decimal points: which numbers were meant is not known.
    if not found or _ZERO_FILLED.match(found[1]) or _ZERO_FILLED.match(found[3]):
        return None, None
    readings = set()
    for first, second in _readings(found[1], found[2], found[3]):
        low, high = number(first), number(second)
        if low is not None and high is not None and low <= high:
            readings.add((low, high))
    return next(iter(readings)) if len(readings) == 1 else (None, None)


def _readings(first: str, mark: str, second: str) -> list[tuple[str, str]]:
    """``3.5--5.3`` is a doubled dash or a negative bound: both readings, the order of the numbers decides."""
    if mark.startswith("-") and second[0] in "+-":
        return [(first, second), (first, second[1:])]
    if mark in ("--", "---"):
        return [(first, second), (first, "-" + second)]
    return [(first, second)]
