"""What was found sound before is found sound again without a look at the schema, and nothing else is."""

from __future__ import annotations

import copy
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from conformance import validator
from conformance.fhirjson import loads, members
from tests.conformance.test_validator import EXAMPLES, OBSERVATION, PATIENT, REPORT

SEED = 20261122


def both(resource: dict[str, Any]) -> None:
    """The two ways say the same, also the second time."""
    told = validator.check(resource)
    for _ in range(2):
        assert validator.check(resource, members(resource)) == told


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_official_examples_and_broken_copies_of_them_are_judged_alike(path: Path) -> None:
    resource = loads(path.read_bytes())
    both(resource)
    chance = random.Random(f"{SEED}{path.stem}")
    for _ in range(25):
        wrong = copy.deepcopy(resource)
        place: Any = wrong
        while True:
            key = chance.choice(sorted(place)) if isinstance(place, dict) else chance.randrange(len(place))
            below = place[key]
            if isinstance(below, dict | list) and below and chance.random() < 0.7:
                place = below
                continue
            if key != "resourceType":
                place[key] = chance.choice(
                    ["", "x", 5, Decimal("1.5"), None, [], {}, {"reference": "Patient/p1"}, True]
                )
                if chance.random() < 0.3 and isinstance(place, dict):
                    del place[key]
            break
        both(wrong)


def test_an_element_out_of_place_is_found_after_its_neighbours_became_known() -> None:
    both(OBSERVATION)
    for change in (
        {"valueString": "5"},  # a second value[x]
        {"status": "done"},
        {"code": {}},
        {"subject": {"reference": "Organization/p1"}},
        {"id": "not an id"},
        {"valueQuantity": {"value": Decimal("1.5"), "code": "mmol/L"}},  # qty-3: a code without system
        {"referenceRange": [{"low": {"value": 9}, "high": {"value": 4}}]},  # rng-2
        {"effectivePeriod": {"start": "2026-03-02", "end": "2026-03-01"}},
        {"unknown": "x"},
    ):
        wrong = OBSERVATION | change
        assert validator.check(wrong), change
        both(wrong)
    for name in ("status", "code"):
        both({k: v for k, v in OBSERVATION.items() if k != name})


def test_ids_and_numbers_of_results_need_not_be_known() -> None:
    first = OBSERVATION | {"subject": {"reference": "Patient/00" + "a" * 22}}
    assert validator.check(first, members(first)) == []
    known = validator._known_sound("Observation")
    assert known is not None
    quantity = OBSERVATION["valueQuantity"] | {"value": Decimal("77.125")}
    other = first | {"id": "zz", "subject": {"reference": "Patient/vv" + "3" * 22}, "valueQuantity": quantity}
    asked: list[dict[str, Any]] = []
    is_sound, known._is_sound = known._is_sound, lambda resource: asked.append(resource) is None
    try:
        assert known.covers(other, members(other))
    finally:
        known._is_sound = is_sound
    assert asked == []


def test_a_time_of_day_that_does_not_exist_is_found_beside_those_that_do() -> None:
    for time in (
        "08:30:00+08:00",
        "23:59:59.123Z",
        "24:00:00Z",
        "08:60:00Z",
        "08:30:61Z",
        "08:30Z",
        "08:30:00",
        "08:30:00+19:00",
    ):
        both(OBSERVATION | {"effectiveDateTime": f"2026-03-01T{time}", "issued": f"2026-03-01T{time}"})
    for day in ("2026-02-29", "2026-13-01", "2026-2-0101"):
        both(OBSERVATION | {"effectiveDateTime": f"{day}T08:30:00Z"})
    for source in ("urn:x#1", "urn:x y", "", '"', "urn:x\\y", "血"):
        both(OBSERVATION | {"meta": {"source": source}})


def test_elements_that_hang_together_are_looked_at_together() -> None:
    inside = {"resourceType": "Patient", "id": "p"}
    sound = REPORT | {"contained": [inside], "subject": {"reference": "#p"}}
    both(sound)
    both(sound | {"subject": {"reference": "#q"}})
    component = [{"code": OBSERVATION["code"], "valueString": "x"}]
    assert validator.check(OBSERVATION | {"component": component})  # obs-7
    both(OBSERVATION | {"component": component})
    both(OBSERVATION | {"component": [{"code": {"text": "other"}, "valueString": "x"}]})


def test_text_that_looks_like_a_reference_is_text() -> None:
    name = json.dumps({"reference": "Patient/00" + "a" * 22})
    both(PATIENT | {"name": [{"text": name}]})
    both(PATIENT | {"name": [{"text": ""}]})
