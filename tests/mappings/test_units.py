"""Units as senders write them. Sources: UCUM 2.1; spellings of public HL7 messages; HL7 v2.5.1 chapter 7 (ISO+ units)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappings import catalogue, ucum
from mappings.csv_rows import Problem
from mappings.units import TABLE, UnitTable, read_rows, shipped


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("umol/L", "umol/L"),
        ("μmol/L", "umol/L"),
        ("µmol/L", "umol/L"),
        ("卩mol/L", "umol/L"),
        ("UMOL/L", "umol/L"),
        ("umol/l", "umol/L"),
        ("10^9/L", "10*9/L"),
        ("10*9/L", "10*9/L"),
        ("*10^9/L", "10*9/L"),
        ("x10^9/L", "10*9/L"),
        ("X10^9/L", "10*9/L"),
        ("×10^9/L", "10*9/L"),
        ("10E9/L", "10*9/L"),
        ("10e9/L", "10*9/L"),
        ("10⁹/L", "10*9/L"),
        ("10**9/L", "10*9/L"),
        ("*109/L", "10*9/L"),
        ("G/L", "10*9/L"),
        ("10\\S\\9/L", "10*9/L"),
        ("10＾9/L", "10*9/L"),
        ("x10*12/L", "10*12/L"),
        ("10¹²/L", "10*12/L"),
        ("T/L", "10*12/L"),
        ("10^3/ul", "10*3/uL"),
        ("K/uL", "10*3/uL"),
        ("g/L", "g/L"),
        ("g/l", "g/L"),
        ("gm/dl", "g/dL"),
        ("MG/DL", "mg/dL"),
        ("mmol/l", "mmol/L"),
        ("MMOLL", "mmol/L"),
        ("%", "%"),
        ("％", "%"),
        ("‰", "[ppth]"),
        ("U/L", "U/L"),
        ("IU/L", "[IU]/L"),
        ("IU/ml", "[IU]/mL"),
        ("mIU/L", "m[IU]/L"),
        ("uIU/mL", "u[IU]/mL"),
        ("μIU/ml", "u[IU]/mL"),
        ("mIU/mL", "m[IU]/mL"),
        ("KIU/L", "k[IU]/L"),
        ("ng/mL", "ng/mL"),
        ("pg/ml", "pg/mL"),
        ("s", "s"),
        ("秒", "s"),
        ("sec", "s"),
        ("fL", "fL"),
        ("fl", "fL"),
        ("FL", "fL"),
        ("pg", "pg"),
        ("个/HP", "/[HPF]"),
        ("/HPF", "/[HPF]"),
        ("/LP", "/[LPF]"),
        ("/uL", "/uL"),
        ("个/μl", "/uL"),
        ("S/CO", "{S_CO}"),
        ("COI", "{COI}"),
        ("mmHg", "mm[Hg]"),
        ("mm(hg)", "mm[Hg]"),
        ("℃", "Cel"),
        ("°C", "Cel"),
        ("次/分", "/min"),
        ("bpm", "/min"),
        ("#/min", "/min"),
        ("mm/h", "mm/h"),
        ("mm/1h", "mm/h"),
        ("mL/min/1.73m²", "mL/min/{1.73_m2}"),
        ("mL/min/1.73㎡", "mL/min/{1.73_m2}"),
        ("mg/L FEU", "mg/L{FEU}"),
        ("ug/mL DDU", "ug/mL{DDU}"),
        ("mOsm/kg", "mosm/kg"),
        ("mEq/L", "meq/L"),
        ("copies/mL", "{copies}/mL"),
        ("(mmol/L)", "mmol/L"),
        ("mmol / L", "mmol/L"),
        ("ｍｍｏｌ／Ｌ", "mmol/L"),
        ("g/24h", "g/(24.h)"),
        ("nmol/ml", "nmol/mL"),
        ("mPa·s", "mPa.s"),
        ("岁", "a"),
        ("kg/m²", "kg/m2"),
    ],
)
def test_reads_a_written_unit(written: str, code: str) -> None:
    found = shipped().lookup(written)
    assert found.ucum == code
    assert found.text == written


@pytest.mark.parametrize("written", ["", " ", "foo", "109/L", "ng/mL·h", "12", "t/L", "gauss", "阴性", "x" * 200])
def test_keeps_the_text_of_an_unknown_unit_and_gives_no_code(written: str) -> None:
    assert shipped().lookup(written).ucum is None
    assert shipped().lookup(written).text == written


def test_gram_and_giga_per_litre_stay_apart() -> None:
    assert shipped().lookup("g/L").ucum == "g/L"
    assert shipped().lookup("G/L").ucum == "10*9/L"


def test_a_label_ucum_is_not_believed_against_the_table() -> None:
    # K/uL is valid UCUM for kelvin per microlitre; laboratories mean thousands.
    found = shipped().coded("K/uL", "", "UCUM")
    assert found is not None
    assert found.ucum == "10*3/uL"


def test_a_coded_unit_keeps_its_text_and_takes_a_valid_ucum_code() -> None:
    found = shipped().coded("{Cells}/uL", "cells per microliter", "UCUM")
    assert found is not None
    assert (found.text, found.ucum) == ("cells per microliter", "{Cells}/uL")
    assert shipped().coded("{Cells}/uL", "cells per microliter", "L") != found


def test_the_unit_in_the_second_component_alone_is_found() -> None:
    found = shipped().coded("", "umol/L", "")
    assert found is not None
    assert found.ucum == "umol/L"
    assert shipped().coded("", " ", "UCUM") is None


def test_the_table_has_at_least_150_rows_each_found_again() -> None:
    problems: list[Problem] = []
    rows = read_rows(TABLE, problems)
    assert not problems
    assert len(rows) >= 150
    for source, code, _ in rows:
        assert shipped().lookup(source).ucum == code, source


def test_a_facility_row_stands_before_the_shipped_one() -> None:
    table = UnitTable([("IU/L", "U/L", False), ("个", "{count}", False)], shipped())
    assert table.lookup("IU/L").ucum == "U/L"
    assert table.lookup("iu/l").ucum == "U/L"
    assert table.lookup("个").ucum == "{count}"
    assert table.lookup("mmol/L").ucum == "mmol/L"
    assert shipped().lookup("IU/L").ucum == "[IU]/L"


def test_a_faulty_table_names_file_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text(
        "source,ucum,case\nmmol/L,mmol/L,\n,g/L,\nfoo,foo,\ng/L,g/L,maybe\nmmol/L,mol/L,\n", encoding="utf-8"
    )
    problems: list[Problem] = []
    read_rows(file, problems)
    assert [(p.file, p.line, p.key) for p in problems] == [
        ("own.csv", 3, "source"),
        ("own.csv", 4, "ucum"),
        ("own.csv", 5, "case"),
        ("own.csv", 6, "source"),
    ]


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_text_gives_valid_ucum_or_none(text: str) -> None:
    code = shipped().lookup(text).ucum
    assert code is None or ucum.read(code) is not None


def test_understands_every_unit_of_the_catalogue_as_it_stands() -> None:
    # A sender that writes UCUM without saying so means UCUM: braces and brackets are written nowhere else.
    written = {i.unit for i in catalogue.shipped().items.values() if i.unit not in ("", "1")}
    assert {unit: shipped().lookup(unit).ucum for unit in written} == {unit: unit for unit in written}
