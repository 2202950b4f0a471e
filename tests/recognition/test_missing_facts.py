"""Removing any fact never turns another outcome into recognized: under every shipped policy, with marks, levels, bare numbers.

Left out are facts that count only where stated under the policy (docs/recognition.md); for them every criterion is made required.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.criteria import Candidate
from fhir_server.recognition.decide import Outcome, decide
from fhir_server.recognition.marks import Mark, Period, Register, Round
from fhir_server.recognition.order import Order
from fhir_server.recognition.policy import Mode
from fhir_server.recognition.rules import Rules, Standing

NOW = datetime.fromisoformat("2025-11-21T09:00:00+00:00")
SHIPPED = rules_module.load()
POLICIES = {p.id: p for p in SHIPPED.policies} | dict(rules_module.examples())
ITEMS = ["L0016", "L0127", "L0229", "L0219", "L0182", "L0131", "R0045", "R0030"]
REGISTER = Register(
    [Mark("marked", "*", "national"), Mark("city", "*", "4201"), Mark("failed", "*", "national")],
    [
        Round("marked", "*", True, Period("2025-01-01")),
        Round("city", "*", True, Period("2025-01-01"), scope="4201"),
        Round("failed", "*", False, Period("2025-01-01")),
    ],
)
FACILITIES = {
    "asking": Standing("三级甲等", "420106", False),
    "marked": Standing("三级甲等", "360702", False),
    "city": Standing("二级甲等", "420502", True),
    "failed": Standing("", "", None),
}
_IF_STATED = {"specimen", "quality", "site", "laterality", "contrast", "method", "name", "health_check"}
_AGAINST = {"until", "order"}
_FACTS = [name for name in Candidate._fields if name not in ("id", "version", *_AGAINST)]


def _rules(policy: str, *, strict: bool, members: dict[str, str]) -> Rules:
    chosen = POLICIES[policy].model_copy(update={"consortia": (), "regions": ()})
    if strict:
        overrides = tuple(o for o in chosen.overrides if o.when.same_consortium)
        chosen = chosen.model_copy(
            update={"criteria": dict.fromkeys(chosen.criteria, Mode.REQUIRED), "overrides": overrides}
        )
    return replace(SHIPPED, policies=(chosen,), register=REGISTER, facilities=FACILITIES, members=members)


@st.composite
def results(draw: st.DrawFn, item: str) -> Candidate:
    wanted = SHIPPED.items[item]
    picked: dict[str, Any] = {
        "person": draw(st.sampled_from(["p", "p", "q"])),
        "grade": draw(st.sampled_from(["certain", "certain", "probable"])),
        "facility": draw(st.sampled_from(["marked", "city", "failed", "asking"])),
        "performer": draw(st.sampled_from(["marked", "marked", "city", "failed", None])),
        "unit": draw(st.sampled_from([wanted.unit or None, wanted.unit or None, "%", "mg/L", None])),
        "unit_text": draw(st.sampled_from([wanted.unit or None, "%", None])),
        "number": Decimal(1) if wanted.unit and wanted.unit != "{titer}" else None,
        "value_text": draw(st.sampled_from([None, "1:160", "阴性"])),
        "specimen": draw(st.sampled_from([None, *wanted.specimens, "urine"])),
        "quality": draw(st.sampled_from([None, "合格", "溶血"])),
        "flag": draw(st.sampled_from([None, "N", "H"])),
        "name": draw(st.sampled_from([None, wanted.name_zh, "左膝关节", "胸部CT增强"])),
        "status": draw(st.sampled_from(["final", "final", "preliminary"])),
        "effective": draw(st.sampled_from([NOW - timedelta(hours=9), NOW - timedelta(days=40)])),
        "issued": draw(st.sampled_from([NOW - timedelta(hours=8), NOW - timedelta(days=40)])),
        "recorded": NOW - timedelta(hours=7),
        "images_complete": draw(st.sampled_from([True, True, False, None])),
        "images_reachable": draw(st.sampled_from([True, True, False])),
        "image_quality": draw(st.sampled_from(["合格", "合格", "伪影"])),
        "health_check": draw(st.sampled_from([None, False, True])),
    }
    return Candidate("o", 1, patient="x", item=item, loinc=wanted.loinc, code="K", **picked)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_removing_a_fact_never_makes_it_recognized(policy: str, data: st.DataObject) -> None:
    item = data.draw(st.sampled_from(ITEMS))
    row = data.draw(results(item))
    fact = data.draw(st.sampled_from(_FACTS))
    strict = fact in _IF_STATED or data.draw(st.booleans())
    members = data.draw(st.sampled_from([{}, {"asking": "c", "marked": "c"}, {"asking": "c", "city": "d"}]))
    rules = _rules(policy, strict=strict, members=members)
    wanted = rules.items[item]
    panel = replace(SHIPPED.orderables["RENAL"], required=(wanted.code,), optional=())
    order = Order(panel, "asking", None, "p", emergency=False, surgery=data.draw(st.sampled_from([False, None])))
    before = decide(order, [row], rules, NOW)
    after = decide(order, [row._replace(**{fact: None})], rules, NOW)
    assert before.outcome is Outcome.RECOGNIZED or after.outcome is not Outcome.RECOGNIZED, fact
