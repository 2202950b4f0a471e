"""The catalogue as FHIR R4 terminology resources."""

from __future__ import annotations

from typing import Any

import pytest

from conformance import systems, validator
from mappings import catalogue, catalogue_fhir

RESOURCES = catalogue_fhir.resources(catalogue.shipped())
BY_ID: dict[str, dict[str, Any]] = {f"{r['resourceType']}/{r['id']}": r for r in RESOURCES}


@pytest.mark.parametrize("resource", RESOURCES, ids=BY_ID)
def test_every_resource_is_valid_r4(resource: dict[str, Any]) -> None:
    assert [i for i in validator.check_fully(resource) if i.severity in ("error", "fatal")] == []


def test_the_code_systems_carry_all_items_and_orderables_under_the_systems_messages_use() -> None:
    items, orderables = BY_ID["CodeSystem/items"], BY_ID["CodeSystem/orderables"]
    assert (items["url"], items["count"]) == (systems.ITEMS, 437)
    assert (orderables["url"], orderables["count"]) == (systems.ORDERABLES, len(catalogue.shipped().orderables))


def test_an_item_carries_its_attributes() -> None:
    (knee,) = [c for c in BY_ID["CodeSystem/items"]["concept"] if c["code"] == "R0030"]
    found = {p["code"]: next(v for k, v in p.items() if k != "code") for p in knee["property"]}
    assert (found["laterality"], found["bodySite"], found["modality"], found["windowDays"]) == (
        "right",
        "knee",
        "DX",
        14,
    )
    assert found["windowSuggested"] is True
    assert knee["designation"][0]["value"] == "右膝关节正侧位平片"


def test_items_that_are_never_recognized_are_not_in_the_value_set_of_recognizable_ones() -> None:
    codes = {c["code"] for c in BY_ID["ValueSet/recognizable-items"]["compose"]["include"][0]["concept"]}
    assert "L0016" in codes
    assert "L0091" not in codes


def test_the_map_to_loinc_holds_the_verified_codes_and_the_notice() -> None:
    found = BY_ID["ConceptMap/items-loinc"]
    targets = {e["code"]: e["target"][0]["code"] for e in found["group"][0]["element"]}
    assert targets["L0016"] == "22664-7"
    assert targets["L0017"] == "14937-7"
    assert len(targets) == 407
    assert "LOINC" in found["copyright"]
