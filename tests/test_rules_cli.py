"""``tongjian rules``: exit codes and what is printed."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from fhir_server.cli import cli

GOOD = """
- id: one
  at: 2025-11-21T17:00:00+08:00
  prior: [{report: {facility: north, collected: -1d, results: [L0016]}}]
  order: {code: L0016, facility: county}
  facilities: [{id: county, consortium: c}, {id: north, consortium: c}]
  expect: {outcome: recognized}
"""


def _run(tmp_path: Path, text: str, *more: str) -> tuple[int, str]:
    path = tmp_path / "cases.yaml"
    path.write_text(text, "utf-8")
    result = CliRunner().invoke(cli, ["rules", "test", str(path), *more])
    return result.exit_code, result.output


def test_cases_that_come_out_as_expected_end_with_0(tmp_path: Path) -> None:
    assert _run(tmp_path, GOOD) == (0, "1 cases, 0 differ.\n")


def test_a_case_that_differs_ends_with_1_and_is_named(tmp_path: Path) -> None:
    code, said = _run(tmp_path, GOOD.replace("outcome: recognized", "outcome: not-covered"))
    assert code == 1
    assert "case one: outcome: expected not-covered, got recognized" in said


def test_a_faulty_file_ends_with_2_and_names_the_key(tmp_path: Path) -> None:
    code, said = _run(tmp_path, GOOD.replace("at:", "when:"))
    assert code == 2
    assert "case one: at: Field required" in said


def test_a_case_that_is_not_there_is_no_success(tmp_path: Path) -> None:
    assert _run(tmp_path, GOOD, "--case", "two")[0] == 2


def test_a_faulty_case_is_named_with_its_line_and_the_others_are_run(tmp_path: Path) -> None:
    text = (
        "cases:\n"
        "- {id: wrong, at: 2026-03-10, order: L0018, colour: red, expect: recognized}\n"
        "- {id: nothing-there, at: 2026-03-10, order: {code: L0018, facility: a}, expect: NOT_RECOGNISABLE}\n"
    )
    code, output = _run(tmp_path, text)
    assert code == 2
    assert "case wrong: colour: " in output
    assert "(line 2)" in output
    assert "1 cases, 0 differ." in output
