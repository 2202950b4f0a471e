"""Units in documents: a limit or a value never gets a unit that stands beside another number."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapters.convert import convert
from mappings.profile import load_profiles

GOLDEN = Path(__file__).parents[2] / "mappings" / "golden"
PROFILE = load_profiles()["generic"]
LIMITS = '<low value="0.45" unit="mmol/L"/><high value="1.69" unit="mmol/L"/>'
MEASURED = '<value xsi:type="REAL" value="6.30"/>'


def results(name: str, old: str, new: str) -> list[dict[str, Any]]:
    """The Observations of a golden document in which one place is another."""
    document = (GOLDEN / name).read_text("utf-8")
    assert old in document
    found = convert(document.replace(old, new, 1).encode(), PROFILE, "cda", "2026-03-05T00:00:00Z")
    assert found.held is None, found.held
    return [e.resource for e in found.entries if e.resource["resourceType"] == "Observation"]


def test_limits_in_the_unit_of_the_value_are_numbers() -> None:
    (limits,) = results("ccda-results.xml", LIMITS, LIMITS)[0]["referenceRange"]
    assert (limits["low"]["value"], limits["high"]["value"]) == (Decimal("0.45"), Decimal("1.69"))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ('<low value="40" unit="mg/dL"/><high value="150" unit="mg/dL"/>', "40 mg/dL-150 mg/dL"),
        ('<low value="40" unit="mg/dL"/><high value="1.69" unit="mmol/L"/>', "40 mg/dL-1.69 mmol/L"),
        ('<high value="150" unit="mg/dL"/>', "<=150 mg/dL"),
    ],
)
def test_limits_in_another_unit_stay_text_with_it(limits: str, words: str) -> None:
    first = results("ccda-results.xml", LIMITS, limits)[0]
    assert first["valueQuantity"]["unit"] == "mmol/L"
    assert first["referenceRange"] == [{"text": words}]


def test_an_interval_between_two_units_is_no_range_of_one() -> None:
    old = '<low value="500" unit="mg/dL" inclusive="false"/>'
    both = '<low value="5" unit="mmol/L"/><high value="600" unit="mg/dL"/>'
    assert results("ccda-results.xml", old, both)[1]["valueString"] == "5 mmol/L-600 mg/dL"


def test_two_units_of_one_value_hold_the_report_unless_they_are_the_same() -> None:
    name = "cda-c0007-blood-count.xml"
    same = results(name, MEASURED, '<value xsi:type="PQ" value="6.30" unit="10*9/L"/>')[0]
    assert same["valueQuantity"]["code"] == "10*9/L"
    document = (GOLDEN / name).read_text("utf-8")
    other = document.replace(MEASURED, '<value xsi:type="PQ" value="6.30" unit="g/L"/>')
    held = convert(other.encode(), PROFILE, "cda").held
    assert held is not None
    assert held.key == "two-units"
