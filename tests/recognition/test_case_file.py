"""Case files: what is left out has a default, what is wrong is named by file, case and key."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fhir_server.recognition.case_file import CaseError, instant, load
from fhir_server.recognition.case_run import run, run_file

AT = datetime(2025, 11, 21, 9, 0, tzinfo=UTC)
GOOD = """
cases:
  - id: one
    at: 2025-11-21T17:00:00+08:00
    prior: [{report: {facility: north, collected: -1d, results: [L0016]}}]
    order: {code: L0016, facility: county}
    facilities: [{id: county, consortium: c}, {id: north, consortium: c}]
    expect: {outcome: recognized}
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("-7d", "2025-11-14T09:00:00+00:00"),
        ("-7d1s", "2025-11-14T08:59:59+00:00"),
        ("- 3d 12h", "2025-11-17T21:00:00+00:00"),
        ("+30m", "2025-11-21T09:30:00+00:00"),
        ("2025-11-21 08:00:00", "2025-11-21T00:00:00+00:00"),
        ("2025-11-21T08:00:00Z", "2025-11-21T08:00:00+00:00"),
    ],
)
def test_a_time_is_a_moment_or_a_distance_from_the_order(text: str, found: str) -> None:
    assert instant(text, AT).astimezone(UTC).isoformat() == found


def _differs(tmp_path: Path, text: str) -> str:
    path = tmp_path / "cases.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(CaseError) as fault:
        run_file(path)
    assert "cases.yaml" in str(fault.value)
    return str(fault.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("outcome: recognized", "outcome: fine"), "case one: expect.outcome"),
        (("outcome: recognized", "criteria: {windows: met}"), "windows"),
        (("order: {code", "ordre: {code"), "ordre"),
        (("collected: -1d", "collected: yesterday"), "prior.0: 'yesterday'"),
        (("results: [L0016]", "results: NOPANEL"), "NOPANEL"),
        (("    order:", "    policy: nowhere\n    order:"), "'nowhere' is not a policy"),
        (("    order:", "    policy: {criteria: {window: maybe}}\n    order:"), "policy.criteria.window"),
        (("    order:", "    marks: [{laboratory: north, scope: moon}]\n    order:"), "marks.0.scope"),
        (
            ("    order:", "    eqa: [{laboratory: north, passed: perhaps, assessed: 2025-01-01}]\n    order:"),
            "eqa.0.passed",
        ),
        (("    order:", "    items: {L0016: {colour: red}}\n    order:"), "items.L0016: colour"),
        (("    order:", "    items: {L0016: {window_days: -1}}\n    order:"), "window_days"),
        (("id: north,", "id: north, tests: {X: L9999},"), "L9999"),
        (("report: {", "hl7v2: nonsense, report: {"), "one of hl7v2"),
        (("cases:", "casus:"), "cases: a list of cases is needed"),
        (("cases:", "cases: ["), "is not YAML"),
    ],
)
def test_a_fault_is_named_with_file_case_and_key(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    assert named in _differs(tmp_path, GOOD.replace(*change, 1))


AT_RUN_TIME = """defaults: {at: 2025-11-21T17:00:00+08:00, order: {code: L0016, facility: county}, expect: recognized}
world:
  facilities:
    - {id: county, consortium: c}
    - id: north
      consortium: c
      tests:
        "1201": L0016
cases:
  - id: one
    prior:
      - report: {facility: north, collected: -1d, results: {"1201": 6.3 mmol/L}}
      - facility: north
        file: nowhere.hl7
  - id: two
    prior: {fhir: {resourceType: Observation, code: abc}}
  - id: three
    order: {facility: county, fhir: {resourceType: ServiceRequest, code: {coding: [7]}}}
  - id: four
    facilities:
      - id: north
        tests: {"1201": L0016,
                "1202": L9999}
  - id: five
    items:
      L0016:
        window_days: -1
  - id: six
    marks:
      - {laboratory: north, scope: national}
      - {laboratory: north, scope: national, valid_from: 2025-13-01}
  - id: seven
    prior:
      - {facility: north, hl7v2: 'MSH|^~\\&|LIS|NORTH'}
  - id: eight
    later:
      - {at: soon, expect: recognized}
"""


@pytest.mark.parametrize(
    ("case", "key", "line"),
    [
        ("one", "prior.1.file: nowhere.hl7", 14),
        ("two", "prior.0.fhir: Observation.code: ", 16),
        ("three", "order.fhir: ServiceRequest.code.coding[0]: ", 18),
        ("four", "facilities.north.tests.1202: item: ", 23),
        ("five", "items.L0016.window_days: ", 27),
        ("six", "marks.1.valid_from: ", 31),
        ("seven", "prior.0.hl7v2: ", 34),
        ("eight", "later.0.at: ", 37),
    ],
)
def test_a_case_that_cannot_be_run_is_named_with_its_line(tmp_path: Path, case: str, key: str, line: int) -> None:
    path = tmp_path / "cases.yaml"
    path.write_text(AT_RUN_TIME, "utf-8")
    found = load(path)
    with pytest.raises(CaseError) as fault:
        run(next(c for c in found.cases if c.id == case), path, None, found.lines[case])
    (said,) = str(fault.value).splitlines()
    assert said.startswith(f"{path}: case {case}: {key}")
    assert said.endswith(f"(line {line})")


def test_what_differs_is_told_with_the_line_of_the_expectation(tmp_path: Path) -> None:
    path = tmp_path / "cases.yaml"
    step = "    later:\n      - at: +9d\n        expect:\n          outcome: recognized\n"
    path.write_text(GOOD.replace("{outcome: recognized}", "{criteria: {window: not-met}}") + step, "utf-8")
    first, second = run_file(path)[0].differs
    assert first.startswith("criteria.window of L0016: expected answer not-met, got met")
    assert first.endswith("(line 8)")
    assert second.startswith("later.0: outcome: expected recognized, got not-recognizable")
    assert second.endswith("(line 12)")


def test_a_facility_that_is_only_named_is_one_of_which_nothing_is_known(tmp_path: Path) -> None:
    path = tmp_path / "cases.yaml"
    line = "    facilities: [{id: county, consortium: c}, {id: north, consortium: c}]\n"
    path.write_text(GOOD.replace(line, "").replace("outcome: recognized", "outcome: reference-only"), "utf-8")
    assert run_file(path)[0].differs == ()


def test_the_file_may_be_a_bare_list_and_a_case_needs_no_id(tmp_path: Path) -> None:
    path = tmp_path / "cases.yaml"
    path.write_text(GOOD.replace("cases:\n", "").replace("id: one\n    at", "at"), "utf-8")
    assert [c.id for c in load(path).cases] == ["#1"]


def test_what_differs_is_told_with_what_stood_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "cases.yaml"
    path.write_text(GOOD.replace("collected: -1d", "collected: -9d"), "utf-8")
    (line,) = run_file(path)[0].differs
    assert line.startswith("outcome: expected recognized, got not-recognizable")
    assert "window not-met" in line
