"""Reviewed CSV tables keep their line numbers, whatever a spreadsheet program makes of them."""

from __future__ import annotations

from pathlib import Path

from mappings.csv_rows import Problem, read_rows


def test_line_numbers_count_comments_and_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes('\ufeff# note\r\n\r\ncode,name\r\nA,"x, y"\r\n#/min,b\r\n'.encode())
    problems: list[Problem] = []
    rows = read_rows(file, ("code", "name"), (), problems)
    assert not problems
    assert [(r.line, r["code"], r["name"]) for r in rows] == [(4, "A", "x, y"), (5, "#/min", "b")]


def test_a_problem_reads_as_file_line_key() -> None:
    assert str(Problem("a.csv", 4, "code", "is empty")) == "a.csv:4: code: is empty"
    assert str(Problem("a.csv", 0, "", "has no header line")) == "a.csv: has no header line"
