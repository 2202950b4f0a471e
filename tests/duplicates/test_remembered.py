"""Criteria with a memory answer as those without, whatever came before."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from fhir_server.duplicates.remembered import Remembered
from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.criteria import Candidate, Case, judge
from fhir_server.recognition.marks import Mark, Period, Register, Round
from fhir_server.recognition.order import Order

AT = datetime(2025, 11, 21, 1, 0, tzinfo=UTC)
SEED = 20251121
FACTS: dict[str, list[Any]] = {
    "patient": ["p-1", "p-2"], "person": [None, "x", "y"], "grade": ["certain", "probable", None],
    "facility": ["north", "south", None], "performer": ["north", "marked", None], "item": ["L0016", None],
    "name": ["尿素", "左膝", None], "specimen": ["serum", "urine", None], "number": [Decimal("6.3"), Decimal("7"), None],
    "value_text": [None, "1:160"], "unit": ["mmol/L", "mg/dL", None], "flag": ["N", "H", None],
    "status": ["final", "preliminary", None],
    "effective": [AT - timedelta(days=1), AT - timedelta(days=400), AT + timedelta(hours=1), None],
    "issued": [AT - timedelta(hours=20), None], "recorded": [AT - timedelta(hours=19), AT + timedelta(hours=1), None],
    "until": [None, AT - timedelta(hours=1), AT + timedelta(hours=1)], "quality": [None, "合格", "溶血"],
    "health_check": [None, True, False],
    "images_complete": [None, True, False], "images_reachable": [None, True],
}  # fmt: skip


@pytest.mark.parametrize("policy", ["consortium", "general", *sorted(rules_module.examples())])
def test_a_judge_with_a_memory_answers_as_one_without(policy: str) -> None:
    rng = random.Random(f"{SEED}{policy}")
    shipped = rules_module.load()
    chosen = {p.id: p for p in shipped.policies} | dict(rules_module.examples())
    recorded = AT - timedelta(days=2)
    register = Register(
        [Mark("marked", "*", "national", Period("2025-01-01", "", recorded))],
        [Round("marked", "*", True, Period("2025-01-01")), Round("marked", "*", False, Period("2025-11-20", "", AT))],
    )
    rules = replace(shipped, register=register, members={"north": "c", "asking": "c"})
    remembered = Remembered(rules)
    for number in range(400):
        facts = {name: rng.choice(values) for name, values in FACTS.items()}
        item = rules.items[rng.choice(["L0016", "R0030"])]
        order = Order(
            None, rng.choice(["asking", "north"]), "p-1", "x", emergency=rng.choice([None, True, False]),
            surgery=rng.choice([None, True]),
        )  # fmt: skip
        at = rng.choice([AT, AT - timedelta(days=3)])
        case = Case(order, Candidate(f"o{number}", 1, **facts), item, chosen[policy], at, rules)
        assert remembered(case) == judge(case), f"seed {SEED}, case {number}"
