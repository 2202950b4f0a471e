"""Policies: the shipped examples, which one is taken, and what a policy may not say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from fhir_server.recognition import rules as module
from fhir_server.recognition.policy import CHOSEN, Policy
from fhir_server.recognition.rules import Rules, Standing

AT = datetime(2025, 11, 21, tzinfo=UTC)


def test_ships_the_rules_of_four_places_as_examples_each_with_its_source() -> None:
    found = module.examples()
    assert set(found) == {"hangzhou", "ganzhou", "wuhan", "chifeng"}
    assert all(p.source and p.regions for p in found.values())


def test_a_policy_of_the_region_is_taken_where_the_consortium_has_none_and_the_smallest_region_first(
    rules: Rules,
) -> None:
    wide = module.examples()["wuhan"].model_copy(update={"id": "hubei", "regions": ("420000",)})
    known = replace(
        rules,
        policies=(*rules.policies, wide, module.examples()["wuhan"]),
        facilities={"a": Standing(region="420106"), "b": Standing(region="420502"), "c": Standing(region="430102")},
    )
    assert [known.policy_of(f, AT).id for f in "abc"] == ["wuhan", "hubei", "general"]


def test_a_policy_holds_in_its_time_only(rules: Rules) -> None:
    gone = rules.policies[0].model_copy(update={"id": "old", "consortia": ("c1",), "valid_to": "2025-11-20"})
    known = replace(rules, policies=(*rules.policies, gone))
    assert known.policy_of("county", datetime(2025, 11, 20, tzinfo=UTC)).id == "old"
    assert known.policy_of("county", AT).id == "consortium"


def _policy(**changes: object) -> Policy:
    data = {"id": "x", "name_zh": "x", "name_en": "x", "criteria": dict.fromkeys(CHOSEN, "if-stated")}
    return Policy.model_validate(data | changes)


def test_membership_may_loosen_a_rule_and_never_tighten_it() -> None:
    loose = {"when": {"same_consortium": True}, "criteria": {"mark": "not-required"}}
    assert _policy(overrides=[loose]).overrides
    for tight in ({"criteria": {"mark": "required"}}, {"window_days": 3}, {"abnormal_results": "excluded"}):
        with pytest.raises(ValidationError, match="same_consortium"):
            _policy(overrides=[{"when": {"same_consortium": True}, **tight}])


def test_an_override_needs_a_condition_and_known_criteria() -> None:
    with pytest.raises(ValidationError, match="at least one condition"):
        _policy(overrides=[{"when": {}, "criteria": {}}])
    with pytest.raises(ValidationError, match="identity"):
        _policy(overrides=[{"when": {"category": ["lab"]}, "criteria": {"identity": "not-required"}}])


def test_a_level_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValidationError, match="大医院"):
        _policy(levels=[{"asking": {"from": "大医院"}}])
