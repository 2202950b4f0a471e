"""docs/recognition.md says what the program does: every word it must explain stands in it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from fhir_server.api.cds_hooks import SERVICES
from fhir_server.duplicates.report import Kind
from fhir_server.recognition.criteria import JUDGES
from fhir_server.recognition.decide import Outcome
from fhir_server.recognition.ledger import Kind as LedgerKind
from fhir_server.recognition.rules import Mode, Rules

TEXT = (Path(__file__).parents[2] / "docs" / "recognition.md").read_text("utf-8")


@pytest.mark.parametrize(
    "word", [*JUDGES, *(o.value for o in Outcome), *get_args(Kind), *get_args(LedgerKind), *SERVICES]
)
def test_the_document_explains(word: str) -> None:
    assert f"`{word}`" in TEXT


def test_the_table_shows_how_the_shipped_policy_uses_each_criterion(rules: Rules) -> None:
    policy = rules.policies[0]
    said = {Mode.REQUIRED: "required", Mode.IF_STATED: "if stated", Mode.NOT_REQUIRED: "not required"}
    for name in JUDGES:
        (line,) = [row for row in TEXT.splitlines() if row.startswith(f"| `{name}` |")]
        assert said[policy.mode(name)] in line.split("|")[-2]
