"""Quantities and numbers (http://hl7.org/fhir/R4/search.html#quantity, #number): what is stored of them, and what a value asks for.

A stored value is a span [low, high], once for each form of its unit that a client may name: without unit; as ``|mg`` for the code and
for the text; in UCUM by its base units, so that 1 g/L answers 100 mg/dL. ``<5`` lasts from LEAST up to just below 5.
A search value is one or two boxes: bounds of ``low`` and of ``high``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, NamedTuple

from conformance import systems
from mappings import ucum

LARGEST_EXPONENT: Final = 100
"""Values beyond 10^100 are no measurement; they are not indexed."""
LEAST: Final = Decimal("-1E+200")
GREATEST: Final = Decimal("1E+200")
_DIGITS: Final = Context(prec=40, rounding=ROUND_HALF_EVEN)
# What lies just beside a number: far below any precision a laboratory states, far above the rounding of 40 digits.
_BESIDE: Final = Decimal("1E-20")
_OPEN: Final = Decimal("1E-15")

Stored = tuple[str, Decimal, Decimal]
"""Unit form, low, high."""


class Base(NamedTuple):
    """A UCUM unit in base units: ``text`` names them, a number is multiplied by ``factor``."""

    text: str
    factor: Decimal


@lru_cache(maxsize=4096)
def base_of(code: str) -> Base | None:
    """UCUM code -> its base units; None when it is not UCUM or its units do not convert by a factor."""
    meaning = ucum.read(code)
    if meaning is None:
        return None
    parts = [f"{base}{exponent}" for base, exponent in meaning.dimension]
    return Base("ucum:" + ".".join([*parts, *(f"{{{m}}}" for m in meaning.marks)]), _decimal(meaning.scale))


def _decimal(value: Fraction) -> Decimal:
    return _DIGITS.divide(Decimal(value.numerator), Decimal(value.denominator))


def stored(value: Any) -> Iterator[Stored]:
    """A Quantity, Range, Money or plain number of a resource as stored. Nothing for one without a usable number."""
    if isinstance(value, Mapping):
        if "low" in value or "high" in value:
            yield from _range(value.get("low") or {}, value.get("high") or {})
        elif (number := _number(value.get("value"))) is not None:
            low, high = span(number, value.get("comparator"))
            if "currency" in value:
                yield from _forms("urn:iso:std:iso:4217", value["currency"], None, low, high)
            else:
                yield from _forms(value.get("system"), value.get("code"), value.get("unit"), low, high)
    elif (number := _number(value)) is not None:
        yield "", number, number


def _range(low: Mapping[str, Any], high: Mapping[str, Any]) -> Iterator[Stored]:
    least, most = _number(low.get("value")), _number(high.get("value"))
    if least is None and most is None:
        return
    unit = low or high
    yield from _forms(
        unit.get("system"),
        unit.get("code"),
        unit.get("unit"),
        LEAST if least is None else least,
        GREATEST if most is None else most,
    )


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal | float):
        return None
    number = Decimal(str(value))
    return number if number.is_finite() and abs(number.adjusted()) <= LARGEST_EXPONENT else None


def span(number: Decimal, comparator: str | None) -> tuple[Decimal, Decimal]:
    """[low, high] of a value with its comparator; an end that is not included lies one part in 10^15 further in."""
    if comparator in ("<", "<="):
        return LEAST, number if comparator == "<=" else number - _near(number, _OPEN)
    if comparator in (">", ">="):
        return number if comparator == ">=" else number + _near(number, _OPEN), GREATEST
    return number, number


def _near(number: Decimal, part: Decimal) -> Decimal:
    return _DIGITS.multiply(abs(number), part) or part


def _forms(system: str | None, code: str | None, unit: str | None, low: Decimal, high: Decimal) -> Iterator[Stored]:
    yield "", low, high
    for text in dict.fromkeys(t for t in (code, unit) if t):
        yield f"|{text}", low, high
    if code and system == systems.UCUM and (base := base_of(code)) is not None:
        yield base.text, _scaled(low, base.factor), _scaled(high, base.factor)
    elif code:
        yield f"{system or ''}|{code}", low, high


def _scaled(number: Decimal, factor: Decimal) -> Decimal:
    return number if number in (LEAST, GREATEST) else _DIGITS.multiply(number, factor)


def in_flat_row(value: Mapping[str, Any]) -> bool:
    """True when the flat result row of an Observation about a patient says all of its quantity: a number, in UCUM or without code."""
    number = value.get("value")
    if isinstance(number, bool) or not isinstance(number, int | Decimal):
        return False
    plain = "code" not in value and "system" not in value
    return abs(Decimal(number).adjusted()) <= LARGEST_EXPONENT and (plain or value.get("system") == systems.UCUM)


class Box(NamedTuple):
    """Bounds, all inclusive, of stored spans that match; ``unit`` is the form of the unit, empty for any."""

    unit: str
    low_from: Decimal
    low_to: Decimal
    high_from: Decimal
    high_to: Decimal


_VALUE: Final = re.compile(
    r"(eq|ne|gt|lt|ge|le|sa|eb|ap)?([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?)", re.ASCII
)


def boxes(text: str, unit: tuple[str | None, str] | None) -> list[Box]:
    """A search value such as ``ge5.4`` as boxes. unit: (system, code), system None for any, or None when no unit is asked for.

    ``eq`` and ``ne`` look at as many digits as are written: 5.4 is [5.35, 5.45) (R4 search.html#number). Raises ValueError.
    """
    m = _VALUE.fullmatch(text)
    if not m:
        raise ValueError("not a number")
    try:
        number = Decimal(m[2])
    except InvalidOperation:
        raise ValueError("not a number") from None
    if abs(number.adjusted()) > LARGEST_EXPONENT:
        raise ValueError("too large or too small")
    form, factor = _unit(unit)
    return [
        Box(form, *(_scaled(bound, factor) for bound in bounds))
        for bounds in _bounds(m[1] or "eq", number, _half(number))
    ]


def _unit(unit: tuple[str | None, str] | None) -> tuple[str, Decimal]:
    if unit is None:
        return "", Decimal(1)
    system, code = unit
    if system is None:
        return f"|{code}", Decimal(1)
    base = base_of(code) if system == systems.UCUM else None
    return (base.text, base.factor) if base else (f"{system}|{code}", Decimal(1))


def _half(number: Decimal) -> Decimal:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    # 1e2 means [95, 105) in R4: one digit more than is written.
    return Decimal(5).scaleb((exponent if exponent <= 0 else exponent - 1) - 1)


def _bounds(prefix: str, number: Decimal, half: Decimal) -> Iterable[tuple[Decimal, Decimal, Decimal, Decimal]]:
    beside = _near(number, _BESIDE)
    below, above = number - half, number + half - _near(number, _BESIDE)
    any_low, any_high = (LEAST, GREATEST), (LEAST, GREATEST)
    if prefix == "eq":
        return [(below, GREATEST, LEAST, above)]
    if prefix == "ne":
        return [(LEAST, below - beside, *any_high), (*any_low, number + half, GREATEST)]
    if prefix == "gt":
        return [(*any_low, number + beside, GREATEST)]
    if prefix == "ge":
        return [(*any_low, number - beside, GREATEST)]
    if prefix == "lt":
        return [(LEAST, number - beside, *any_high)]
    if prefix == "le":
        return [(LEAST, number + beside, *any_high)]
    if prefix == "sa":
        return [(number + beside, GREATEST, *any_high)]
    if prefix == "eb":
        return [(*any_low, LEAST, number - beside)]
    tenth = abs(number) / 10
    return [(LEAST, number + tenth, number - tenth, GREATEST)]
