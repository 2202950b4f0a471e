"""Display conversion. Source of the pairs: the mole, with IUPAC molar masses (glucose 180.16 g/mol, creatinine 113.12 g/mol)."""

from __future__ import annotations

from decimal import Decimal

from mappings import catalogue
from mappings.display_units import convert


def mass_of(name: str) -> Decimal | None:
    return next(i for i in catalogue.shipped().items.values() if i.name_zh == name).molar_mass


def test_glucose_in_mass_units() -> None:
    # 5.50 mmol/L x 180.16 g/mol = 99.1 mg/dL
    assert convert(Decimal("5.50"), "mmol/L", "mg/dL", mass_of("葡萄糖(血糖)")) == Decimal("99.1")


def test_creatinine_in_molar_units() -> None:
    # 1.00 mg/dL / 113.12 g/mol = 88.4 umol/L
    assert convert(Decimal("1.00"), "mg/dL", "umol/L", mass_of("肌酐")) == Decimal("88.4")


def test_factors_alone_need_no_molar_mass() -> None:
    assert convert(Decimal("14.2"), "g/dL", "g/L") == Decimal("142")
    assert convert(Decimal("0"), "g/dL", "g/L") == 0


def test_converts_nothing_without_a_molar_mass_or_across_kinds() -> None:
    assert convert(Decimal("5.5"), "mmol/L", "mg/dL") is None
    assert convert(Decimal("5.5"), "mmol/L", "mg", Decimal("180.16")) is None
    assert convert(Decimal("5.5"), "[IU]/L", "mg/L", Decimal("180.16")) is None
    assert convert(Decimal("5.5"), "ug/L{FEU}", "nmol/L", Decimal("100")) is None
