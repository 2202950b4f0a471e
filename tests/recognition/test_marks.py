"""Marks and quality assessment as data: files, scopes, labels, and what a round known later re-opens.

Source of the rules: 国卫医发〔2022〕6号 as read at m.njpanjin.com, 2022-02-22 (scope + HR, EQA, regions of agreements).
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fhir_server.recognition import marks_csv
from fhir_server.recognition.marks import Agreement, Mark, Period, Register, Round, Shown, reopened
from mappings.catalogue import DIRECTORY
from mappings.csv_rows import Problem

MADE = datetime(2025, 11, 20, 0, 0, tzinfo=UTC)
NOW = datetime(2025, 11, 21, 9, 0, tzinfo=UTC)


def _shipped() -> Register:
    problems: list[Problem] = []
    register = marks_csv.load(DIRECTORY, {"L0016"}, problems)
    assert problems == []
    return register


@pytest.mark.parametrize(
    ("written", "scope", "label"),
    [
        ("全国HR", "national", "全国HR"),
        ("national", "national", "全国HR"),
        ("鄂HR", "420000", "鄂HR"),
        ("湖北省", "420000", "鄂HR"),
        ("42", "42", "鄂HR"),
        ("武汉HR", "420100", "武汉HR"),
        ("赤峰HR", "150400", "赤峰HR"),
        ("北京市西城区HR", "110102", "北京市西城区HR"),
        ("京津冀HR", "jjj", "京津冀HR"),
        ("淳安县HR", "330127", "淳安县HR"),
        ("浙江省杭州市淳安县", "330127", "淳安县HR"),
        ("330127", "330127", "淳安县HR"),
        ("西城区", "110102", "北京市西城区HR"),
        ("长春市朝阳区", "220104", "长春市朝阳区HR"),
        ("朝阳区", "", None),
        ("火星HR", "", None),
    ],
)
def test_a_scope_is_read_as_people_write_it_and_printed_as_on_a_report(
    written: str, scope: str, label: str | None
) -> None:
    register = _shipped()
    assert marks_csv.scope_of(written, register.regions, register.agreements) == scope
    if label:
        assert register.label(Mark("lab", "*", scope)) == label


def test_the_widest_mark_that_holds_is_the_one_shown() -> None:
    rows = [Mark("lab", "L0016", scope, Period("2025-01-01")) for scope in ("420100", "national", "42")]
    register = Register(rows, regions=_shipped().regions)
    held, mark = register.marked("lab", "L0016", MADE, "420106", NOW)
    assert held.answer is True
    assert mark is not None
    assert register.label(mark) == "全国HR"


def test_a_day_is_a_day_of_local_time() -> None:
    # 2025-11-19T16:00Z is the first moment of 20 November in China.
    register = Register([Mark("lab", "L0016", "national", Period("2025-11-20"))])
    assert register.marked("lab", "L0016", datetime(2025, 11, 19, 16, tzinfo=UTC), "42", NOW)[0].answer is True
    before = datetime(2025, 11, 19, 15, 59, 59, tzinfo=UTC)
    assert register.marked("lab", "L0016", before, "42", NOW)[0].reason == "mark-not-yet-valid"


def test_an_agreement_counts_only_while_it_is_in_force() -> None:
    agreement = Agreement("a", "甲乙", ("11", "15"), Period("2025-01-01", "2025-11-19"))
    register = Register([Mark("lab", "*", "a")], agreements={"a": agreement})
    assert register.marked("lab", "L0016", MADE, "150402", NOW)[0].reason == "out-of-scope"


def test_answers_are_reopened_by_a_failed_round_that_became_known_since() -> None:
    passed = Round("lab", "*", True, Period("2025-01-01"))
    failed = Round("lab", "L0016", False, Period("2025-11-01", "", datetime(2025, 12, 1, tzinfo=UTC)))
    register = Register([Mark("lab", "*", "national")], [passed, failed])
    answers = [Shown("d1", NOW, "lab", "L0016", MADE, "42"), Shown("d2", NOW, "lab", "L0018", MADE, "42")]
    assert reopened(register, answers, NOW) == []
    (one,) = reopened(register, answers, datetime(2025, 12, 2, tzinfo=UTC))
    assert (one.shown.decision, one.reason) == ("d1", "eqa-failed")


def test_an_answer_that_never_rested_on_a_mark_is_not_reopened() -> None:
    assert reopened(Register(), [Shown("d1", NOW, "lab", "L0016", MADE, "42")], NOW) == []


@pytest.mark.parametrize(
    ("name", "row", "named"),
    [
        ("marks-x.csv", "laboratory,item,scope\nlab,L9999,national\n", "marks-x.csv:2: item"),
        ("marks-x.csv", "laboratory,item,scope\nlab,*,moon\n", "marks-x.csv:2: scope"),
        ("marks-x.csv", "laboratory,item,scope,valid_to\nlab,*,national,soon\n", "marks-x.csv:2: valid_to"),
        ("eqa-x.csv", "laboratory,item,passed,assessed\nlab,*,maybe,2025-01-01\n", "eqa-x.csv:2: passed"),
        ("eqa-x.csv", "laboratory,item,passed,assessed\nlab,*,yes,\n", "eqa-x.csv:2: assessed"),
        ("eqa-x.csv", "laboratory,item,passed,assessed,recorded\nlab,*,yes,2025-01-01,2025-01-01\n", "recorded"),
        ("agreements-x.csv", "id,name,regions\na,甲,12|moon\n", "agreements-x.csv:2: regions"),
    ],
)
def test_a_wrong_row_is_named_with_file_and_line(tmp_path: Path, name: str, row: str, named: str) -> None:
    (tmp_path / name).write_text(row, "utf-8")
    problems: list[Problem] = []
    marks_csv.load(tmp_path, {"L0016"}, problems)
    assert any(named in str(p) for p in problems)
