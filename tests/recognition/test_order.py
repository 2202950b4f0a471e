"""Orders: whose codes are understood, and that nothing is guessed."""

from __future__ import annotations

from typing import Any

import pytest

from conformance import systems
from fhir_server.recognition import order as module
from fhir_server.recognition.rules import Rules
from mappings.profile import load_profiles

COUNTY = load_profiles()["county-hospital"]
DAY = "2025-11-21"


def _read(rules: Rules, *codings: dict[str, Any], profile: Any = COUNTY, **concept: Any) -> Any:
    return module.read(
        {"resourceType": "ServiceRequest", "code": {"coding": list(codings), **concept}}, rules, profile, DAY
    )


def _code(rules: Rules, *codings: dict[str, Any], **more: Any) -> str | None:
    found = _read(rules, *codings, **more).orderable
    return found.code if found else None


LOCAL = {"system": systems.local_codes("county-hospital", "orders"), "code": "SGN", "display": "肾功能"}


def test_the_asking_facilitys_own_order_codes_are_understood(rules: Rules) -> None:
    assert _code(rules, LOCAL) == "RENAL"


def test_the_order_code_of_another_facility_is_not(rules: Rules) -> None:
    assert _code(rules, {**LOCAL, "system": systems.local_codes("north-township", "orders")}) is None
    assert _code(rules, LOCAL, profile=None) is None


def test_a_local_test_code_means_that_item_alone(rules: Rules) -> None:
    found = _read(rules, {"system": systems.local_codes("county-hospital", "tests"), "code": "WBC"}).orderable
    assert found.required == ("L0097",)


def test_catalogue_orderables_items_and_loinc_are_understood_without_a_profile(rules: Rules) -> None:
    assert _code(rules, {"system": systems.ORDERABLES, "code": "CBC"}, profile=None) == "CBC"
    assert _read(rules, {"system": systems.ITEMS, "code": "L0026"}, profile=None).orderable.required == ("L0026",)
    # 4548-4 is Hemoglobin A1c/Hemoglobin.total in Blood (items.csv).
    assert _read(rules, {"system": systems.LOINC, "code": "4548-4"}, profile=None).orderable.required == ("L0026",)


def test_the_facilitys_own_table_comes_before_every_other_code(rules: Rules) -> None:
    assert _code(rules, {"system": systems.ORDERABLES, "code": "CBC"}, LOCAL) == "RENAL"


@pytest.mark.parametrize(
    "coding",
    [
        {"code": "SGN"},
        {"system": systems.ORDERABLES},
        {"system": systems.ORDERABLES, "code": "CBC "},
        {"system": systems.LOINC, "code": "99999-9"},
        {"system": 7, "code": ["SGN"]},
        {"display": "肾功能"},
    ],
)
def test_nothing_is_guessed_from_a_name_or_a_code_without_a_system(rules: Rules, coding: dict[str, Any]) -> None:
    assert _code(rules, coding, text="肾功能") is None


@pytest.mark.parametrize("code", [None, [], "CBC", {"coding": "x"}, {"coding": [None, 3]}, {"text": 5}])
def test_a_request_of_a_wrong_shape_asks_for_nothing(rules: Rules, code: Any) -> None:
    found = module.read({"resourceType": "ServiceRequest", "code": code}, rules, COUNTY, DAY)
    assert (found.orderable, found.code, found.name) == (None, "", "")


def test_code_and_name_of_an_unknown_order_are_kept_to_be_shown(rules: Rules) -> None:
    found = _read(
        rules, {"system": systems.local_codes("county-hospital", "orders"), "code": "TJTC", "display": "体检套餐"}
    )
    assert (found.orderable, found.code, found.name) == (None, "TJTC", "体检套餐")
