"""docs/rule-cases.md: its examples run, and every key of the format is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fhir_server.recognition.case_file import Case, Context, Expect, Images, Ordered, Prior, Report, load
from fhir_server.recognition.case_run import run_file

TEXT = (Path(__file__).parents[2] / "docs" / "rule-cases.md").read_text("utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_comes_out_as_it_says(example: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.yaml"
    path.write_text(example, "utf-8")
    assert [r.differs for r in run_file(path)] == [()] * len(load(path).cases)


@pytest.mark.parametrize("part", [Case, Prior, Report, Ordered, Context, Expect, Images])
def test_every_key_is_named(part: type) -> None:
    assert [key for key in part.model_fields if not re.search(rf"\b{key}\b", TEXT)] == []


def test_the_example_marks_do_what_their_cases_say() -> None:
    folder = Path(__file__).parents[2] / "docs" / "examples" / "rules"
    results = run_file(folder / "cases.yaml", folder)
    assert [(r.case.id, r.differs) for r in results if r.differs] == []
    assert len(results) == 9
