"""Each criterion at its boundary: what is met, what is not, what is unknown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from fhir_server.recognition.criteria import JUDGES, Answer, Candidate, Case
from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Rules

Make = Callable[..., Any]


@pytest.fixture
def judge(rules: Rules, order: Make, result: Make, now: Any) -> Callable[..., Answer]:
    """Answer of one criterion for a result of an item, facts changed."""

    def ask(criterion: str, code: str = "L0026", /, asking: Order | None = None, **changes: Any) -> Answer:
        wanted: Candidate = result(code, **changes)
        case = Case(asking or order(), wanted, rules.items[code], rules.policies[0], now, rules)
        return JUDGES[criterion](case)[0]

    return ask


MET, NOT_MET, UNKNOWN, NOT_REQUIRED = Answer.MET, Answer.NOT_MET, Answer.UNKNOWN, Answer.NOT_REQUIRED


def test_the_window_includes_its_last_moment_and_not_a_second_more(judge: Make, rules: Rules, now: Any) -> None:
    # Requirement 2 of the domain report: at exactly N x 24 h inside, one second later outside.
    days = rules.items["L0026"].window_days
    edge = now - timedelta(hours=24 * days)
    assert judge("window", effective=edge) is MET
    assert judge("window", effective=edge - timedelta(seconds=1)) is NOT_MET
    assert judge("window", effective=edge - timedelta(microseconds=1)) is NOT_MET


def test_the_window_does_not_depend_on_the_zone_a_time_is_written_in(judge: Make, rules: Rules, now: Any) -> None:
    edge = now - timedelta(hours=24 * rules.items["L0026"].window_days)
    assert judge("window", effective=edge.astimezone(timezone(timedelta(hours=8)))) is MET


def test_a_window_of_zero_days_never_recognizes(judge: Make, rules: Rules, now: Any) -> None:
    assert rules.items["L0091"].window_days == 0  # arterial blood gas
    assert judge("window", "L0091", effective=now) is NOT_MET


def test_a_missing_time_is_unknown_and_a_future_one_is_outside(judge: Make, now: Any) -> None:
    assert judge("window", effective=None) is UNKNOWN
    assert judge("window", effective=now) is MET
    assert judge("window", effective=now + timedelta(seconds=1)) is NOT_MET


def test_the_policy_says_from_which_time_the_window_runs(rules: Rules, order: Make, result: Make, now: Any) -> None:
    policy = rules.policies[0].model_copy(update={"time_base": "issued"})
    old = result("L0026", effective=now - timedelta(days=400), issued=now - timedelta(days=1))
    case = Case(order(), old, rules.items["L0026"], policy, now, rules)
    assert JUDGES["window"](case)[0] is MET
    assert JUDGES["window"](replace(case, policy=rules.policies[0]))[0] is NOT_MET


@pytest.mark.parametrize("status", ["final", "amended", "corrected"])
def test_a_final_amended_or_corrected_report_is_final(judge: Make, status: str) -> None:
    assert judge("final", status=status) is MET


@pytest.mark.parametrize("status", ["registered", "preliminary", "cancelled", "entered-in-error"])
def test_a_preliminary_cancelled_or_void_report_is_not(judge: Make, status: str) -> None:
    assert judge("final", status=status) is NOT_MET


@pytest.mark.parametrize("status", ["unknown", None, "something-else"])
def test_a_status_nobody_knows_is_unknown(judge: Make, status: str | None) -> None:
    assert judge("final", status=status) is UNKNOWN


def test_a_superseded_version_is_not_final_from_the_moment_it_was_replaced(judge: Make, now: Any) -> None:
    assert judge("final", until=now) is NOT_MET
    assert judge("final", until=now + timedelta(seconds=1)) is MET


def test_a_version_is_received_from_its_recorded_time(judge: Make, now: Any) -> None:
    assert judge("received", recorded=now) is MET
    assert judge("received", recorded=now + timedelta(microseconds=1)) is NOT_MET
    assert judge("received", recorded=None) is UNKNOWN


def test_an_unmapped_code_is_not_met_and_its_item_unknown(judge: Make) -> None:
    assert judge("mapped") is MET
    assert judge("mapped", item=None) is NOT_MET
    assert judge("item", item=None) is UNKNOWN


def test_mapped_and_item_for_a_row_without_an_item(rules: Rules, order: Make, result: Make, now: Any) -> None:
    case = Case(order(), result("L0026", item=None), rules.items["L0026"], rules.policies[0], now, rules)
    assert JUDGES["mapped"](case)[0] is NOT_MET
    assert JUDGES["item"](case)[0] is UNKNOWN
    other = replace(case, result=result("L0027"))
    assert JUDGES["item"](other)[0] is NOT_MET


@pytest.mark.parametrize(
    ("loinc", "unit", "answer"),
    [
        ("14682-9", "umol/L", MET),
        ("14682-9", "nmol/mL", MET),  # another spelling of the same size
        ("14682-9", "mmol/L", MET),  # another size of the unit, the same property
        ("14682-9", "mg/dL", NOT_MET),  # mass for molar: never
        ("14682-9", None, UNKNOWN),
        ("48065-7", "mg/L{FEU}", MET),
        ("48065-7", "mg/L{DDU}", NOT_MET),  # FEU and DDU differ by a factor of about two
        ("48065-7", "mg/L", NOT_MET),
        ("26464-8", "10*3/uL", MET),  # 10*9/L
    ],
)
def test_the_unit_must_be_of_the_same_property_and_mass_is_never_amount(
    judge: Make, rules: Rules, loinc: str, unit: str | None, answer: Answer
) -> None:
    by_loinc = rules.by_loinc.get(loinc)
    item = by_loinc or next(i for i in rules.items.values() if i.unit == "10*9/L")
    assert judge("unit", item.code, unit=unit) is answer


def test_an_item_in_words_needs_no_unit(judge: Make, rules: Rules) -> None:
    words = next(i for i in rules.items.values() if i.category == "lab" and not i.unit)
    assert judge("unit", words.code, unit=None) is NOT_REQUIRED


def test_a_bare_number_without_a_unit_counts_only_where_the_policy_says_so(
    judge: Make, rules: Rules, order: Make, result: Make, now: Any
) -> None:
    # Silence is not a unit: a wrong unit that is left out must not turn into the right one.
    inr = next(i for i in rules.items.values() if i.unit == "{INR}")
    assert judge("unit", inr.code, unit=None, unit_text=None) is UNKNOWN
    agreed = rules.policies[0].model_copy(update={"bare_numbers": frozenset({"{INR}"})})
    case = Case(order(), result(inr.code, unit=None, unit_text=None), inr, agreed, now, rules)
    assert JUDGES["unit"](case)[0] is MET
    assert JUDGES["unit"](replace(case, result=case.result._replace(unit_text="%")))[0] is UNKNOWN
    assert judge("unit", inr.code, unit="1", unit_text="1") is MET
    assert judge("unit", inr.code, unit=None, unit_text="??") is UNKNOWN
    assert judge("unit", inr.code, unit="%", unit_text="%") is NOT_MET


def test_a_ph_is_a_ph_whatever_unit_is_written_beside_it(judge: Make, rules: Rules) -> None:
    ph = next(i for i in rules.items.values() if i.unit == "[pH]" and i.window_days)
    for unit in (None, "[pH]", "1", "%"):
        assert judge("unit", ph.code, unit=unit, unit_text=unit) is NOT_REQUIRED


def test_a_measured_item_needs_a_number(judge: Make) -> None:
    assert judge("value", number=Decimal("0")) is MET
    assert judge("value", number=None, value_text="见报告单") is UNKNOWN
    assert judge("value", number=None, value_text=None) is UNKNOWN


def test_a_titre_is_a_value(judge: Make, rules: Rules) -> None:
    titre = next(i for i in rules.items.values() if i.unit == "{titer}")
    assert judge("value", titre.code, number=None, value_text="1:160") is MET


def test_specimens_are_compared_only_where_both_sides_state_them(judge: Make, rules: Rules) -> None:
    serum = next(i for i in rules.items.values() if i.specimens == ("serum", "plasma"))
    assert judge("specimen", serum.code, specimen="plasma") is MET
    assert judge("specimen", serum.code, specimen="urine") is NOT_MET
    assert judge("specimen", serum.code, specimen=None) is UNKNOWN


@pytest.mark.parametrize("condition", ["溶血", "脂血", "HEM", "标本量不足"])
def test_a_stated_fault_of_the_specimen_is_not_met(judge: Make, condition: str) -> None:
    assert judge("quality", quality=condition) is NOT_MET


def test_a_specimen_of_which_nothing_is_said_is_unknown(judge: Make) -> None:
    assert judge("quality", quality=None) is UNKNOWN
    assert judge("quality", quality="合格") is MET


def test_identity_is_met_for_the_same_patient_and_for_a_certain_link(judge: Make, order: Make) -> None:
    assert judge("identity") is MET
    assert judge("identity", patient="pat-county", person=None, grade=None) is MET
    assert judge("identity", grade="probable") is UNKNOWN
    assert judge("identity", grade="certainly-not") is NOT_MET
    assert judge("identity", person="p-2") is NOT_MET
    assert judge("identity", asking=order(person=None)) is UNKNOWN


def test_the_consortium_of_the_issuing_facility_counts(judge: Make, order: Make) -> None:
    assert judge("consortium", facility="north") is MET
    assert judge("consortium", facility="town") is NOT_MET
    assert judge("consortium", facility="loner") is UNKNOWN
    assert judge("consortium", facility="north", performer="town") is MET
    assert judge("consortium", asking=order(facility="loner")) is UNKNOWN


def test_only_a_known_emergency_counts(judge: Make, order: Make) -> None:
    assert judge("context", asking=order(emergency=True)) is NOT_MET
    assert judge("context", asking=order(emergency=False)) is MET
    assert judge("context", asking=order(emergency=None)) is UNKNOWN
