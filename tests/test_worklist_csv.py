"""The filled-in spreadsheet: what is read, and that a fault names its line and records nothing."""

from __future__ import annotations

import pytest

from fhir_server.worklist_csv import CannotImport, read
from mappings.catalogue import shipped
from mappings.profile import load_profiles

HEAD = "facility,kind,code,name,decision,target,valid_from,valid_to,note\r\n"


def of(*rows: str) -> bytes:
    return (HEAD + "\r\n".join(rows)).encode("utf-8-sig")


def test_rows_without_a_decision_are_left_alone() -> None:
    found = read(of("generic,code,A,甲,,,,,", "generic,code,B,乙,reject,,,,无此项目"), load_profiles(), shipped(), {})
    assert [(d.code, d.target, d.note) for d in found] == [("B", "", "无此项目")]


def test_a_cell_kept_from_being_a_formula_is_read_as_it_was_sent() -> None:
    found = read(of("generic,code,'=A1,'-ALT,accept,L0006,,,"), load_profiles(), shipped(), {})
    assert (found[0].code, found[0].name) == ("=A1", "-ALT")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("generic,code,A,甲,yes,L0006,,,", "line 2: decision: 'yes'"),
        ("generic,code,A,甲,accept,,,,", "line 2: target: is missing"),
        ("generic,code,A,甲,,L0006,,,", "line 2: decision: a target without"),
        ("generic,code,A,甲,accept,L9999,,,", "line 2: 'L9999' is not an item"),
        ("elsewhere,code,A,甲,accept,L0006,,,", "line 2: There is no facility profile"),
        ("generic,code,A,甲,reject,L0006,,,", "line 2: target: must be empty"),
        ("generic,code,A,甲,accept,L0006,2026-13-01,,", "line 2: '2026-13-01' is not a date"),
    ],
)
def test_a_fault_names_its_line(row: str, words: str) -> None:
    with pytest.raises(CannotImport, match=words.replace("(", r"\(")):
        read(of(row), load_profiles(), shipped(), {})


def test_two_decisions_about_one_code_are_a_fault() -> None:
    with pytest.raises(CannotImport, match="line 3: the same code"):
        read(
            of("generic,code,A,甲,accept,L0006,,,", "generic,code,A,甲,accept,L0007,,,"), load_profiles(), shipped(), {}
        )


def test_a_file_without_its_columns_is_refused() -> None:
    with pytest.raises(CannotImport, match="column"):
        read(b"code,target\r\nA,L0006\r\n", load_profiles(), shipped(), {})


SENT = {
    ("generic", "code", code): {name}
    for code, name in (("001", "丙氨酸"), ("1", "钾"), ("002", "钠"), ("123456789012", "镁"))
}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("generic,code,2,钠,accept,L0006,,,", "line 2: code: '2' was not sent, '002' was"),
        ("generic,code,1,丙氨酸,reject,,,,", "line 2: code: '1' was not sent, '001' was"),
        ("generic,code,1.23457E+11,镁,accept,L0006,,,", "line 2: code: '1.23457E+11' was not sent, '123456789012'"),
        ("generic,code,1,钾,accept,L0006,,,", ""),
        ("generic,code,001,丙氨酸,accept,L0006,,,", ""),
        ("generic,code,77,铁,accept,L0006,,,", ""),
    ],
)
def test_a_code_that_a_spreadsheet_took_for_a_number_is_a_fault(row: str, words: str) -> None:
    # The decision would be about another test: codes 1 and 001 are two.
    if words:
        with pytest.raises(CannotImport, match=words.replace("+", r"\+")):
            read(of(row), load_profiles(), shipped(), SENT)
    else:
        assert len(read(of(row), load_profiles(), shipped(), SENT)) == 1


@pytest.mark.parametrize(
    ("separator", "codec"), [(";", "utf-8-sig"), ("\t", "utf-16"), (";", "gb18030"), (",", "gb18030")]
)
def test_what_spreadsheet_programs_write_is_read(separator: str, codec: str) -> None:
    rows = [["A", '"甲, 乙"', "accept", "L0006", "2026/1/5", "2026/11/30", "注"], ["B", "丙", "reject", "", "", "", ""]]
    text = HEAD.replace(",", separator) + "".join(
        separator.join(["generic", "code", *r, "多余"]) + "\r\n" for r in rows
    )
    found = read(text.encode(codec), load_profiles(), shipped(), {})
    assert [(d.code, d.name, d.target, d.valid_from, d.valid_to, d.note) for d in found] == [
        ("A", "甲, 乙", "L0006", "2026-01-05", "2026-11-30", "注"),
        ("B", "丙", "", "", "", ""),
    ]


def test_a_cell_that_never_ends_is_no_csv() -> None:
    with pytest.raises(CannotImport, match="line 2: this is no CSV"):
        read(of('generic,code,A,"' + "甲" * 140_000), load_profiles(), shipped(), {})
