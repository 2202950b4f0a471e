"""Code tables: v2 table code -> FHIR code, one CSV each under ``hl7v2/tables`` (guide: the concept maps named in "Vocabulary Mapping").

Columns: ``code`` as sent, ``target`` FHIR code, ``display``, ``system``, ``origin`` (``guide`` = row of the V2-to-FHIR guide; else the
standard it comes from, or ``own`` with the reason). A row that is not there is not guessed.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLES = Path(__file__).parent / "hl7v2" / "tables"


@dataclass(frozen=True, slots=True)
class Target:
    """One row: FHIR code, its display and its system (either may be empty)."""

    code: str
    display: str
    system: str

    def coding(self) -> dict[str, Any]:
        """A FHIR Coding (http://hl7.org/fhir/R4/datatypes.html#Coding)."""
        out = {"system": self.system, "code": self.code} if self.system else {"code": self.code}
        if self.display:
            out["display"] = self.display
        return out


class CodeTable:
    """Codes as sent -> Target. Upper and lower case are told apart first, then ignored."""

    def __init__(self, name: str, rows: dict[str, Target]) -> None:
        self.name = name
        self._rows = {code.casefold(): target for code, target in reversed(rows.items())} | rows

    def get(self, code: str) -> Target | None:
        """The row of a code, or None."""
        return self._rows.get(code) or self._rows.get(code.casefold())


@cache
def table(name: str) -> CodeTable:
    """Load a table by name. Raises FileNotFoundError for a name without a CSV and ValueError for a broken or repeated row."""
    rows: dict[str, Target] = {}
    path = TABLES / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines, strict=True), 2):
            if not row["code"] or not row["target"] or row["code"] in rows:
                raise ValueError(f"{path.name} line {number}: code empty, without target, or twice")
            rows[row["code"]] = Target(row["target"], row["display"] or "", row["system"] or "")
    return CodeTable(name, rows)


@cache
def coding_systems() -> dict[str, str]:
    """CWE.3 name in capitals -> code system URI (table 0396 and its everyday misspellings)."""
    with (TABLES.parent / "coding-systems.csv").open(encoding="utf-8", newline="") as lines:
        return {row["name"]: row["system"] for row in csv.DictReader(lines, strict=True)}
