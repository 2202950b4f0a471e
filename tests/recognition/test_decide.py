"""The decision: outcomes, choice among results, partial panels, and the two properties that must always hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import fhirjson
from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.criteria import Candidate
from fhir_server.recognition.decide import Outcome, as_dict, decide
from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Mode, Rules
from mappings.catalogue import Orderable

Make = Callable[..., Any]


@pytest.fixture
def panel(rules: Rules, result: Make) -> list[Candidate]:
    return [result(i) for i in rules.orderables["RENAL"].required]


def test_a_panel_whose_required_items_are_all_fresh_is_recognized(
    rules: Rules, order: Make, panel: list[Candidate], now: datetime
) -> None:
    decision = decide(order(), panel, rules, now)
    assert decision.outcome is Outcome.RECOGNIZED
    assert [m.item for m in decision.fresh] == list(rules.orderables["RENAL"].required)
    assert decision.missing == ()
    assert decision.rules_version == rules.version


def test_an_optional_item_may_be_missing(rules: Rules, order: Make, panel: list[Candidate], now: datetime) -> None:
    assert rules.orderables["RENAL"].optional
    assert decide(order(), panel, rules, now).outcome is Outcome.RECOGNIZED


def test_a_panel_with_a_missing_item_is_for_reference_and_names_it(
    rules: Rules, order: Make, panel: list[Candidate], now: datetime
) -> None:
    decision = decide(order(), panel[1:], rules, now)
    assert decision.outcome is Outcome.REFERENCE_ONLY
    assert [m.item for m in decision.missing] == [panel[0].item]
    assert [m.item for m in decision.fresh] == [c.item for c in panel[1:]]


def test_no_result_at_all_is_not_recognizable(rules: Rules, order: Make, now: datetime) -> None:
    assert decide(order(), [], rules, now).outcome is Outcome.NOT_RECOGNIZABLE


def test_only_an_optional_item_is_not_enough_to_be_shown(
    rules: Rules, order: Make, result: Make, now: datetime
) -> None:
    optional = rules.orderables["RENAL"].optional[0]
    assert decide(order(), [result(optional)], rules, now).outcome is Outcome.NOT_RECOGNIZABLE


def test_what_the_catalogue_does_not_know_is_not_covered(rules: Rules, now: datetime) -> None:
    assert decide(Order(None, "county", code="ZZ", name="某特检"), [], rules, now).outcome is Outcome.NOT_COVERED
    unknown_item = Orderable("X", "lab", "x", "x", ("L9999",))
    assert decide(Order(unknown_item, "county"), [], rules, now).outcome is Outcome.NOT_COVERED


def test_the_newest_collection_wins_and_then_the_newest_report(
    rules: Rules, order: Make, result: Make, now: datetime
) -> None:
    older = result("L0026", id="a", effective=now - timedelta(days=9), issued=now - timedelta(hours=1))
    newer = result("L0026", id="b", effective=now - timedelta(days=2), issued=now - timedelta(days=2))
    again = result("L0026", id="c", effective=now - timedelta(days=2), issued=now - timedelta(days=1))
    hba1c = order("HBA1C")
    for rows in ([older, newer, again], [again, newer, older]):
        (member,) = [m for m in decide(hba1c, rows, rules, now).members if m.item == "L0026"]
        assert member.result is not None
        assert member.result.id == "c"


def test_an_older_sound_result_is_taken_when_the_newest_is_only_preliminary(
    rules: Rules, order: Make, result: Make, now: datetime
) -> None:
    sound = result("L0026", id="a", effective=now - timedelta(days=9))
    draft = result("L0026", id="b", status="preliminary")
    decision = decide(order("HBA1C"), [draft, sound], rules, now)
    assert decision.outcome is Outcome.RECOGNIZED
    assert decision.fresh[0].result == sound


def test_the_results_of_the_order_itself_do_not_count(
    rules: Rules, order: Make, panel: list[Candidate], now: datetime
) -> None:
    own = [c._replace(order="sr-1") for c in panel]
    assert decide(order(id="sr-1"), own, rules, now).outcome is Outcome.NOT_RECOGNIZABLE
    assert decide(order(id="sr-2"), own, rules, now).outcome is Outcome.RECOGNIZED


def test_a_result_of_another_facility_outside_the_consortium_is_for_reference(
    rules: Rules, order: Make, panel: list[Candidate], now: datetime
) -> None:
    foreign = [c._replace(facility="town") for c in panel]
    assert decide(order(), foreign, rules, now).outcome is Outcome.REFERENCE_ONLY


def test_an_emergency_has_no_duty_to_recognize(
    rules: Rules, order: Make, panel: list[Candidate], now: datetime
) -> None:
    assert decide(order(emergency=True), panel, rules, now).outcome is Outcome.REFERENCE_ONLY
    assert decide(order(emergency=False), panel, rules, now).outcome is Outcome.RECOGNIZED
    assert decide(order(emergency=None), panel, rules, now).outcome is Outcome.RECOGNIZED


def test_own_results_can_be_switched_off(rules: Rules, order: Make, panel: list[Candidate], now: datetime) -> None:
    policy = rules.policies[0].model_copy(
        update={"own_facility_results": False, "criteria": rules.policies[0].criteria | {"own-facility": Mode.REQUIRED}}
    )
    changed = replace(rules, policies=(policy,))
    own = [c._replace(facility="county") for c in panel]
    assert decide(order(), own, rules, now).outcome is Outcome.RECOGNIZED
    assert decide(order(), own, changed, now).outcome is Outcome.REFERENCE_ONLY
    assert decide(order(), panel, changed, now).outcome is Outcome.RECOGNIZED


def test_a_result_of_somebody_who_is_not_surely_the_same_person_is_never_shown(
    rules: Rules, order: Make, panel: list[Candidate], now: datetime
) -> None:
    for change in ({"grade": "probable"}, {"person": "p-2"}, {"person": None}, {"grade": None}):
        decision = decide(order(), [c._replace(**change) for c in panel], rules, now)
        assert decision.outcome is Outcome.NOT_RECOGNIZABLE
        assert all(m.shown is None for m in decision.members)
        told = as_dict(decision)
        assert "o-" not in str(told)
        assert all(list(m["criteria"]) == ["identity"] for m in told["members"] if m["required"])


def test_the_json_form_is_plain_json_with_every_criterion(
    rules: Rules, order: Make, panel: list[Candidate], now: datetime
) -> None:
    found = fhirjson.loads(fhirjson.dumps(as_dict(decide(order(), panel, rules, now))))
    assert found["outcome"] == "recognized"
    assert found["at"] == "2025-11-21T09:00:00Z"
    first = found["members"][0]
    assert first["criteria"]["window"]["answer"] == "met"
    assert first["criteria"]["window"]["mode"] == "required"
    assert first["result"]["report"] == "DiagnosticReport/rep-1"
    assert first["result"]["observation"].endswith("/_history/1")


# --- properties ----------------------------------------------------------------------------------------------------------

RULES = replace(rules_module.load(), members={"county": "c1", "north": "c1"})
STRICT = replace(
    RULES,
    policies=(
        RULES.policies[0].model_copy(update={"criteria": dict.fromkeys(RULES.policies[0].criteria, Mode.REQUIRED)}),
    ),
)
NOW = datetime.fromisoformat("2025-11-21T09:00:00+00:00")
ITEMS = RULES.orderables["RENAL"].required
# What is recorded against a result is no missing datum when it is absent: that it was replaced, and which order it answers.
_AGAINST = {"until", "order"}
# Counts only where stated, under the shipped policy (docs/recognition.md).
_IF_STATED = {"specimen", "quality"}
_FACTS = [name for name in Candidate._fields if name not in ("id", "version", *_AGAINST)]


_GOOD = {
    "patient": "pat-north",
    "person": "p-1",
    "grade": "certain",
    "report": "rep-1",
    "facility": "north",
    "performer": "north",
    "number": Decimal("5.1"),
    "specimen": "serum",
    "quality": "GOOD",
    "status": "final",
    "effective": NOW - timedelta(days=1),
    "issued": NOW - timedelta(hours=20),
    "recorded": NOW - timedelta(hours=20),
}
_OTHER: dict[str, list[Any]] = {
    "patient": ["pat-county"],
    "person": ["p-2"],
    "grade": ["probable", "certainly-not"],
    "facility": ["county", "town"],
    "item": [None, "L0001"],
    "specimen": ["urine"],
    "quality": ["溶血"],
    "unit": ["mg/dL", "g/L"],
    "order": ["sr-1"],
    "status": ["corrected", "preliminary", "entered-in-error", "unknown"],
    "effective": [NOW + timedelta(hours=1), NOW - timedelta(days=400), NOW - timedelta(days=2)],
    "issued": [NOW - timedelta(days=400)],
    "recorded": [NOW + timedelta(seconds=1)],
    "until": [NOW, NOW + timedelta(hours=1)],
}


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    """Results that would be recognized, one or two for each item, with a few facts changed or missing."""
    out = []
    for copy in range(draw(st.integers(1, 2))):
        for item in ITEMS:
            known = RULES.items[item]
            good = Candidate(
                f"{item}-{copy}", 1, item=item, loinc=known.loinc, unit=known.unit, unit_text=known.unit, **_GOOD
            )
            for fact in (
                draw(st.lists(st.sampled_from(sorted(_OTHER)), max_size=2)) if draw(st.integers(0, 3)) == 0 else ()
            ):
                good = good._replace(**{fact: draw(st.sampled_from([None, *_OTHER[fact]]))})
            out.append(good)
    return out


_ORDERS = st.builds(
    Order,
    st.just(RULES.orderables["RENAL"]),
    st.sampled_from(["county", "county", "county", "loner", ""]),
    st.sampled_from(["pat-county", None]),
    st.sampled_from(["p-1", "p-1", "p-1", None]),
    st.sampled_from(["", "sr-1"]),
    st.sampled_from([False, False, None, True]),
)


@given(candidates(), _ORDERS, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_the_order_of_the_candidates_does_not_change_the_answer(rows: list[Candidate], order: Order, rng: Any) -> None:
    shuffled = rows[:]
    rng.shuffle(shuffled)
    assert decide(order, rows, RULES, NOW) == decide(order, shuffled, RULES, NOW)


@given(candidates(), _ORDERS, st.data())
@settings(max_examples=500, deadline=None)
def test_removing_any_fact_never_turns_another_outcome_into_recognized(
    rows: list[Candidate], order: Order, data: st.DataObject
) -> None:
    if not rows:
        return
    at = data.draw(st.integers(0, len(rows) - 1))
    fact = data.draw(st.sampled_from([*_FACTS, "the whole result"]))
    fewer = (
        rows[:at] + rows[at + 1 :]
        if fact == "the whole result"
        else [*rows[:at], rows[at]._replace(**{fact: None}), *rows[at + 1 :]]
    )
    for rules in (STRICT,) if fact in _IF_STATED else (STRICT, RULES):
        before, after = decide(order, rows, rules, NOW), decide(order, fewer, rules, NOW)
        assert before.outcome is Outcome.RECOGNIZED or after.outcome is not Outcome.RECOGNIZED


_NEEDED = [
    "person",
    "grade",
    "facility",
    "item",
    "specimen",
    "quality",
    "number",
    "unit",
    "status",
    "effective",
    "recorded",
]


@pytest.mark.parametrize("fact", _FACTS)
def test_under_a_strict_policy_a_missing_fact_costs_the_recognition_and_a_mere_description_does_not(fact: str) -> None:
    order = Order(RULES.orderables["RENAL"], "county", "pat-county", "p-1", emergency=False)
    known = [RULES.items[i] for i in ITEMS]
    rows = [Candidate(i.code, 1, item=i.code, loinc=i.loinc, unit=i.unit, unit_text=i.unit, **_GOOD) for i in known]
    assert decide(order, rows, STRICT, NOW).outcome is Outcome.RECOGNIZED
    fewer = decide(order, [c._replace(**{fact: None}) for c in rows], STRICT, NOW)
    assert (fewer.outcome is not Outcome.RECOGNIZED) == (fact in _NEEDED)


def test_under_a_strict_policy_an_unknown_visit_is_not_enough() -> None:
    order = Order(RULES.orderables["RENAL"], "county", "pat-county", "p-1", emergency=None)
    known = [RULES.items[i] for i in ITEMS]
    rows = [Candidate(i.code, 1, item=i.code, loinc=i.loinc, unit=i.unit, unit_text=i.unit, **_GOOD) for i in known]
    assert decide(order, rows, STRICT, NOW).outcome is Outcome.REFERENCE_ONLY
    assert decide(order, rows, RULES, NOW).outcome is Outcome.RECOGNIZED
