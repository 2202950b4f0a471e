"""The mapping language: wrong maps are named by file and place, at start and not in the first message."""

from __future__ import annotations

from pathlib import Path

import pytest

from mappings import code_table, grammar, maps
from mappings.compiled import compile_map
from mappings.registry import CALLS, DATATYPES


def test_every_shipped_map_compiles() -> None:
    assert len(maps.compile_all()) == len(grammar.segment_map_names()) >= 25


def test_every_shipped_table_loads_and_its_rows_say_where_they_come_from() -> None:
    for path in code_table.TABLES.glob("*.csv"):
        assert code_table.table(path.stem)
        rows = path.read_text("utf-8").splitlines()[1:]
        assert all(row.rsplit(",", 1)[1] for row in rows), path.name


def test_every_rule_cites_a_row_of_its_segment() -> None:
    for name in grammar.segment_map_names():
        found = grammar.segment_map(name)
        assert name.startswith(found.segment)
        assert all(rule.row.startswith(found.segment) for rule in found.rules)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("guide: PID[Patient]\nrules: [{row: PV1-3, to: x, as: 'CX[Identifier]'}]", "the map is for PID"),
        ("guide: PID[Patient]\nrules: [{row: PID-3, as: 'CX[Identifier]'}]", "names the element it fills"),
        ("guide: PID[Patient]\nrules: [{row: PID-3, to: x, as: 'CX[Identifier]', value: 1}]", "one of as, call, value"),
        ("guide: PID[Patient]\nrules: [{row: PID-3, to: x, az: 'CX[Identifier]'}]", "rules.0"),
        ("guide: PID[Patient]\nrules: [{row: PID-3, to: x, as: 'NO[Such]'}]", "unknown datatype"),
        ("guide: PID[Patient]\nrules: [{row: PID-3, call: no_such}]", "unknown datatype, function"),
        (
            "guide: PID[Patient]\nrules: [{row: PID-3, to: x, as: 'CX[Identifier]', when: ['PID-3 like x']}]",
            "unknown condition",
        ),
    ],
)
def test_a_wrong_map_is_refused_with_its_place(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "segments"
    folder.mkdir()
    (folder / "PID-Wrong.yaml").write_text(text, "utf-8")
    monkeypatch.setattr(grammar, "HL7V2", tmp_path)
    grammar.segment_map.cache_clear()
    with pytest.raises(ValueError, match=words):
        compile_map("PID-Wrong", DATATYPES, CALLS)
    grammar.segment_map.cache_clear()


def test_a_table_with_a_code_twice_is_refused_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "T.csv").write_text("code,target,display,system,origin\nA,a,,,own\nA,b,,,own\n", "utf-8")
    monkeypatch.setattr(code_table, "TABLES", tmp_path)
    code_table.table.cache_clear()
    with pytest.raises(ValueError, match=r"T\.csv line 3"):
        code_table.table("T")
    code_table.table.cache_clear()
