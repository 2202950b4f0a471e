"""The same measurement in another unit, for people to read. Never for recognition: there units must be the same as they stand.

Mass and amount of substance are converted with the molar mass of the catalogue item; everything else by UCUM factors alone.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from mappings import ucum


def convert(value: Decimal, source: str, target: str, molar_mass: Decimal | None = None) -> Decimal | None:
    """``value`` in UCUM unit ``source`` -> the number in ``target``, with as many significant digits as ``value`` has (at least 2).

    ``molar_mass`` is in g/mol. None when the units do not convert: different kinds, arbitrary units, no molar mass.
    """
    factor = ucum.factor(source, target)
    if factor is None and molar_mass:
        factor = _across(source, target, Fraction(molar_mass))
    if factor is None:
        return None
    digits = max(2, len(value.as_tuple().digits))
    return _rounded(Fraction(value) * factor, digits)


def _across(source: str, target: str, molar_mass: Fraction) -> Fraction | None:
    """Factor from a mass to an amount of substance or back; None when the units differ in anything else."""
    one, other = ucum.read(source), ucum.read(target)
    if one is None or other is None or one.marks != other.marks:
        return None
    left, right = dict(one.dimension), dict(other.dimension)
    mass_to_amount = left.pop("g", 0), right.pop("mol", 0)
    amount_to_mass = left.pop("mol", 0), right.pop("g", 0)
    if left != right:
        return None
    scale = one.scale / other.scale
    if mass_to_amount == (1, 1) and amount_to_mass == (0, 0):
        return scale / molar_mass
    if amount_to_mass == (1, 1) and mass_to_amount == (0, 0):
        return scale * molar_mass
    return None


def _rounded(number: Fraction, digits: int) -> Decimal:
    """Half-even to significant digits, without an exponent."""
    exact = Decimal(number.numerator) / Decimal(number.denominator)
    if not exact:
        return Decimal(0)
    places = digits - 1 - exact.adjusted()
    return exact.quantize(Decimal(1).scaleb(-places)) if places > 0 else exact.quantize(Decimal(1))
