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
    found = read(of("generic,code,A,甲,,,,,", "generic,code,B,乙,reject,,,,无此项目"), load_profiles(), shipped())
    assert [(d.code, d.target, d.note) for d in found] == [("B", "", "无此项目")]


def test_a_cell_kept_from_being_a_formula_is_read_as_it_was_sent() -> None:
    found = read(of("generic,code,'=A1,'-ALT,accept,L0006,,,"), load_profiles(), shipped())
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
        read(of(row), load_profiles(), shipped())


def test_two_decisions_about_one_code_are_a_fault() -> None:
    with pytest.raises(CannotImport, match="line 3: the same code"):
        read(of("generic,code,A,甲,accept,L0006,,,", "generic,code,A,甲,accept,L0007,,,"), load_profiles(), shipped())


def test_a_file_without_its_columns_is_refused() -> None:
    with pytest.raises(CannotImport, match="column"):
        read(b"code,target\r\nA,L0006\r\n", load_profiles(), shipped())
