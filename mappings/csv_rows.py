"""Reviewed CSV tables: rows with their line numbers, faults as values that name file, line and column."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in a configuration file: file name, 1-based line (0 when the whole file is meant), key or column, one sentence."""

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}"


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its 1-based line in the file and its cells, trimmed."""

    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


def read_rows(path: Path, required: Sequence[str], optional: Collection[str], problems: list[Problem]) -> list[Row]:
    """Rows of a UTF-8 CSV with a header line; lines that begin with ``# `` are comments, empty lines are skipped.

    An unreadable file, a missing or unknown column and a row that is too long go to ``problems``; what can be read is returned.
    """
    name = path.name
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as fault:
        problems.append(Problem(str(path), 0, "", f"cannot be read: {fault.strerror}"))
        return []
    except UnicodeDecodeError:
        problems.append(Problem(name, 0, "", "is not UTF-8"))
        return []
    numbered = [
        (i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and not (line + " ").startswith("# ")
    ]
    reader = csv.reader([line for _, line in numbered])
    rows: list[Row] = []
    header: list[str] = []
    for cells in reader:
        line = numbered[reader.line_num - 1][0]
        if not header:
            header = [c.strip() for c in cells]
            for column in required:
                if column not in header:
                    problems.append(Problem(name, line, column, "column is missing"))
            for column in header:
                if column not in required and column not in optional:
                    problems.append(Problem(name, line, column, "unknown column"))
            if len(set(header)) != len(header):
                problems.append(Problem(name, line, "", "a column stands twice"))
            continue
        if len(cells) > len(header):
            problems.append(Problem(name, line, "", f"{len(cells)} cells under {len(header)} columns"))
            continue
        rows.append(Row(line, {column: cell.strip() for column, cell in zip(header, cells, strict=False)}))
    if not header:
        problems.append(Problem(name, 0, "", "has no header line"))
    return rows
