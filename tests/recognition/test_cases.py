"""The decision cases (cases/*.yaml): each rests on an article or a source, and runs through the runner of ``tongjian rules test``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from fhir_server.recognition.case_file import load
from fhir_server.recognition.case_run import Result, run
from fhir_server.recognition.criteria import JUDGES

FILES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
CASES = [(path, case) for path in FILES for case in load(path).cases]


@cache
def _result(number: int) -> Result:
    path, case = CASES[number]
    return run(case, path)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{p.stem}:{c.id}" for p, c in CASES])
def test_a_case_comes_out_as_expected(number: int) -> None:
    assert _result(number).differs == ()


def test_there_are_at_least_150_cases_and_each_names_what_it_rests_on() -> None:
    assert len(CASES) >= 150
    assert all(case.rests_on for _, case in CASES)


# Met, and not met or unknown, somewhere among the cases. ``consortium`` is never required: what it changes shows in mark and eqa.
@pytest.mark.parametrize("criterion", [c for c in JUDGES if c not in ("consortium", "mapped", "item")])
def test_every_criterion_is_shown_to_hold_and_to_fail(criterion: str) -> None:
    answers = set()
    for number, (_, case) in enumerate(CASES):
        if criterion not in str(case.expect.criteria):
            continue
        decision = _result(number).decision
        assert decision is not None
        answers |= {c.answer.value for m in decision.required for c in m.criteria if c.name == criterion}
    assert "met" in answers
    assert answers & {"not-met", "unknown"}
