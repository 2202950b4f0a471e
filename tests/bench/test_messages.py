"""fhir_server.bench.messages: what the benches send is what the four facilities would send."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest

from adapters.convert import convert
from fhir_server.bench.messages import OBX, Message, messages, panels
from mappings.profile import load_profiles

NOW = datetime(2026, 3, 1, 8, tzinfo=UTC)
PROFILES = load_profiles()


@pytest.fixture(scope="module")
def told() -> list[Message]:
    return list(messages(PROFILES, 60, NOW, seed=1))


def test_all_four_facilities_send_from_their_own_addresses(told: list[Message]) -> None:
    assert {m.facility for m in told} == {"county-hospital", "north-township", "south-township", "east-clinic"}
    assert len({(m.facility, m.address) for m in told}) == 4


def test_every_message_converts_to_twenty_results_with_item_and_loinc(told: list[Message]) -> None:
    for m in told:
        conversion = convert(m.raw, PROFILES[m.facility])
        assert conversion.held is None
        kinds = Counter(e.resource["resourceType"] for e in conversion.entries)
        assert kinds["Observation"] == OBX
        assert kinds["DiagnosticReport"] == kinds["Specimen"] == kinds["ServiceRequest"] == 1
        for entry in conversion.entries:
            if entry.resource["resourceType"] == "Observation":
                assert len(entry.resource["code"]["coding"]) == 3, "local code, item, LOINC"


def test_names_are_chinese_and_one_facility_writes_gb18030(told: list[Message]) -> None:
    north = next(m for m in told if m.facility == "north-township")
    with pytest.raises(UnicodeDecodeError):
        north.raw.decode("utf-8")
    assert any("\u4e00" <= c <= "\u9fff" for c in north.raw.decode("gb18030"))


def test_people_come_back_and_no_report_comes_twice(told: list[Message]) -> None:
    entries = [e for m in told for e in convert(m.raw, PROFILES[m.facility]).entries]
    patients = [e.resource["id"] for e in entries if e.resource["resourceType"] == "Patient"]
    reports = [e.resource["id"] for e in entries if e.resource["resourceType"] == "DiagnosticReport"]
    assert len(set(patients)) < len(patients)
    assert len(set(reports)) == len(reports) == len(told)


def test_the_same_seed_gives_the_same_bytes(told: list[Message]) -> None:
    assert list(messages(PROFILES, 60, NOW, seed=1)) == told
    assert list(messages(PROFILES, 60, NOW, seed=2)) != told


@pytest.mark.parametrize("obx", [1, 10, 1000])
def test_panels_have_as_many_tests_as_asked_for(obx: int) -> None:
    for found in panels(PROFILES, obx).values():
        assert found
        assert {len(p.tests) for p in found} == {obx}
