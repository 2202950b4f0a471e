"""UCUM meanings, compared with an independent implementation (ucumvert on pint). Source: UCUM 2.1, sections 2, 21-24."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from ucumvert import PintUcumRegistry, get_ucum_parser

from mappings import catalogue, ucum, units
from mappings.csv_rows import Problem


def table_codes() -> list[str]:
    problems: list[Problem] = []
    codes = {code for _, code, _ in units.read_rows(units.TABLE, problems)}
    assert not problems
    return sorted(codes | {i.unit for i in catalogue.shipped().items.values() if i.unit})


def test_every_code_of_the_unit_table_and_the_catalogue_is_valid_ucum() -> None:
    parser = get_ucum_parser()
    for code in table_codes():
        parser.parse(code)
        assert ucum.read(code) is not None, code


def test_factors_agree_with_an_independent_implementation() -> None:
    registry = PintUcumRegistry()
    # Kept apart here and folded together by UCUM: annotations, arbitrary units, per field, moles of charge and of particles.
    plain = [
        c
        for c in table_codes()
        if not set(c) & set("{[") and not {"eq", "osm", "Cel"} & set(c.replace("/", ".").replace("m", "").split("."))
    ]
    quantities = {c: registry.from_ucum(c) for c in plain}
    compared = 0
    for one, other in itertools.combinations(plain, 2):
        ours = ucum.factor(one, other)
        if quantities[one].dimensionality != quantities[other].dimensionality:
            assert ours is None, (one, other)
        elif ours is not None:
            theirs = (quantities[one] / quantities[other]).to_base_units().magnitude
            assert float(ours) == pytest.approx(float(theirs), rel=1e-9), (one, other)
            compared += 1
    assert compared > 500


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10*9/L", "10*3/uL"),
        ("10*12/L", "10*6/uL"),
        ("ng/mL", "ug/L"),
        ("g/L", "mg/mL"),
        ("m[IU]/L", "u[IU]/mL"),
        ("[iU]/L", "[IU]/L"),
        ("mmol/l", "mmol/L"),
        ("U/L", "umol/min/L"),
        ("g/(24.h)", "g/d"),
        ("/uL", "10*6/L"),
        ("{cells}/uL", "/uL"),
        ("mmol/L", "umol/mL"),
    ],
)
def test_knows_one_unit_in_two_spellings(one: str, other: str) -> None:
    assert ucum.same_unit(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("g/L", "g/dL"),
        ("mmol/L", "mg/dL"),
        ("ug/L{FEU}", "ug/L{DDU}"),
        ("mg/L{FEU}", "mg/L"),
        ("U/L", "[IU]/L"),
        ("/[HPF]", "/uL"),
        ("mL/min", "mL/min/{1.73_m2}"),
        ("mmol/L", "meq/L"),
        ("g/L", "10*9/L"),
        ("L/L", "%"),
        ("U/g{Hb}", "U/g"),
        ("Cel", "K"),
        ("g/L", "nonsense"),
    ],
)
def test_keeps_different_units_apart(one: str, other: str) -> None:
    assert not ucum.same_unit(one, other)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("g/L", "g/dL", True),
        ("L/L", "%", True),
        ("10*9/L", "/nL", True),
        ("mg/L{FEU}", "ng/mL{FEU}", True),
        ("mg/L{FEU}", "ng/mL{DDU}", False),
        ("umol/L", "mg/dL", False),
        ("%", "mmol/mol", False),
        ("mg/g", "%", False),
        ("mg/g", "ug/mg", True),
        ("U/L", "[IU]/L", False),
        ("nonsense", "nonsense", True),
        ("nonsense", "g/L", False),
    ],
)
def test_tells_one_property_in_another_size_from_another_property(one: str, other: str, same: bool) -> None:
    assert ucum.same_property(one, other) is same
    assert ucum.same_property(other, one) is same


def test_gives_exact_factors_within_one_kind() -> None:
    assert ucum.factor("g/dL", "g/L") == 10
    assert ucum.factor("L/L", "%") == 100
    assert ucum.factor("mm[Hg]", "kPa") == Fraction(133322, 1000000)
    assert ucum.factor("mmol/L", "mg/dL") is None


@pytest.mark.parametrize(
    "code", ["", "mmol/", "mmol//L", "(g", "g)", "foo", "10^9/L ", "g/L" * 30, "5.5g", "µmol/L", "{open"]
)
def test_refuses_what_is_not_ucum(code: str) -> None:
    assert ucum.read(code) is None
