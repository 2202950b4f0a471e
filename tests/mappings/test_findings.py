"""Words in place of a number. Sources: v3 ObservationInterpretation and data-absent-reason (terminology.hl7.org)."""

from __future__ import annotations

import pytest

from mappings.findings import absence, finding


def test_spaces_and_case_do_not_matter() -> None:
    assert finding("negative (-)") == finding("阴性 (-)") == "NEG"


@pytest.mark.parametrize("text", ["阴性对照", "阳性率50%", "非阴性", "NEGATIVES", "++++++", "5+", "ND", "None"])
def test_words_that_only_contain_a_finding_are_none(text: str) -> None:
    assert finding(text) == ""
    assert absence(text) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [("--", "unknown"), ("*.**", "error"), ("****.*", "error"), ("####", "error"), ("SEE NOTE", "as-text")],
)
def test_fillers_say_why_there_is_no_value(text: str, reason: str) -> None:
    assert absence(text) == reason


@pytest.mark.parametrize("text", ["-", "+", "1*", "*重复", "见到少量红细胞", "0"])
def test_a_result_is_not_taken_for_a_filler(text: str) -> None:
    assert absence(text) == ""
