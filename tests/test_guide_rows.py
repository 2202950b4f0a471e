"""Invariant 4: a field that has a row in the V2-to-FHIR guide is mapped, or ADR 0004 says why not."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from mappings.grammar import segment_map, segment_map_names

HERE = Path(__file__).parent
ADR = HERE.parent / "docs" / "adr" / "0004-guide-rows-left-unread.md"


def _guide_rows() -> set[str]:
    with (HERE / "data" / "guide-rows.csv").open(encoding="utf-8", newline="") as lines:
        return {row["row"] for row in csv.DictReader(lines)}


def _mapped_rows() -> set[str]:
    maps = [segment_map(name) for name in segment_map_names()]
    return {rule.row for m in maps for rule in m.rules} | {
        f"{m.segment}-{field}" for m in maps for field in m.structural
    }


def _excused_rows() -> set[str]:
    part = ADR.read_text("utf-8").partition("## Rows left unread")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| ([A-Z0-9]{3}-\d+) \|", part, re.MULTILINE))


def test_every_row_of_the_guide_is_mapped_or_excused_in_the_adr() -> None:
    # PID-18 is read outside the YAML map, as a number of the visit (mappings.assemble_patient).
    left = _guide_rows() - _mapped_rows() - _excused_rows() - {"PID-18"}
    assert left == set()


def test_the_adr_excuses_no_row_that_is_mapped_or_has_no_row_in_the_guide() -> None:
    assert _excused_rows() & _mapped_rows() == set()
    assert _excused_rows() - _guide_rows() == set()
