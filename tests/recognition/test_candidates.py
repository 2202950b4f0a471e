"""Candidates: all Patients of the person, as linked and as visible at one time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from conformance import systems
from conformance.fhirjson import loads
from fhir_server.recognition import candidates, images
from fhir_server.recognition.candidates import Found, Seen, Who
from fhir_server.scope.rows import Relation
from fhir_server.store import writes
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from fhir_server.store.database import open_pool
from mappings.ids import shard_of_id

NOW = datetime(2025, 11, 21, 9, 0, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=60)
UREA = "L0016"
ASKER = Relation("county-hospital", "li", NOW - timedelta(days=180), NOW, True)


def _run(url: str, ask: Any) -> Any:
    async def scenario() -> Any:
        pool = await open_pool(url, 1)
        try:
            async with pool.acquire() as connection:
                return await ask(connection)
        finally:
            await pool.close()

    return asyncio.run(scenario())


def _find(county: Any, patient: str, at: datetime = NOW, items: tuple[str, ...] = (UREA,)) -> Found:
    async def ask(connection: Any) -> Found:
        who = await candidates.identify(connection, patient, "county-hospital")
        assert isinstance(who, Who)
        return await candidates.find(connection, who, items, at)

    found: Found = _run(county.url, ask)
    return found


def test_finds_results_of_every_patient_linked_to_the_person_and_of_nobody_else(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    there = county.patient("north-township", "2", "p-1", LONG_AGO)
    other = county.patient("north-township", "3", "p-2", LONG_AGO)
    for patient, number in ((here, "r1"), (there, "r2"), (other, "r3")):
        county.report("north-township", patient, number, [UREA, "L0001"], NOW - timedelta(days=2))
    found = _find(county, here)
    assert found.person == "p-1"
    assert {c.patient for c in found.candidates} == {here, there}
    assert {c.item for c in found.candidates} == {UREA}
    assert {c.grade for c in found.candidates} == {"certain"}
    assert {(c.status, c.unit) for c in found.candidates} == {("final", "mmol/L")}


def test_a_link_that_was_not_known_yet_or_no_longer_held_does_not_count(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    there = county.patient("north-township", "2", "p-9", LONG_AGO)
    county.report("north-township", there, "r2", [UREA], NOW - timedelta(days=2))
    county.patient("north-township", "2", "p-1", NOW - timedelta(hours=2))
    county.patient("north-township", "2", "p-9", NOW - timedelta(hours=1))
    assert _find(county, here, NOW - timedelta(hours=3)).candidates == ()
    assert len(_find(county, here, NOW - timedelta(minutes=90)).candidates) == 1
    assert _find(county, here, NOW).candidates == ()


def test_each_time_sees_the_version_that_was_visible_then(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    taken = NOW - timedelta(days=1)
    for recorded, status in ((NOW - timedelta(hours=5), "preliminary"), (NOW - timedelta(hours=3), "final")):
        county.report("county-hospital", here, "r1", [UREA], taken, recorded=recorded, issued=recorded, status=status)
    seen = [[c.status for c in _find(county, here, NOW - timedelta(hours=h)).candidates] for h in (6, 4, 2)]
    assert seen == [[], ["preliminary"], ["final"]]


def test_a_patient_nobody_has_looked_at_yet_is_found_through_itself(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    county.report("county-hospital", here, "r1", [UREA], NOW - timedelta(days=1))
    with psycopg.connect(county.url) as conn:
        conn.execute("DELETE FROM identity_link")
    found = _find(county, here)
    assert (found.person, len(found.candidates)) == (None, 1)


def test_a_patient_is_known_by_logical_id_or_by_an_identifier(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    identifier = f"{systems.facility_system('county-hospital', 'patient')}|1"
    for name in (here, f"Patient/{here}", identifier):
        who = _run(county.url, lambda c, name=name: candidates.identify(c, name, "county-hospital"))
        assert who.patient == here
        assert who.facility == "county-hospital"
    for name in ("nobody", here[:-1] + "0", "urn:x|1", f"{identifier}0"):
        assert _run(county.url, lambda c, name=name: candidates.identify(c, name, "")) == "unknown-patient"


def test_an_emergency_is_read_from_the_visit_of_the_same_patient(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    other = county.patient("county-hospital", "2", "p-2", LONG_AGO)
    rescue = county.encounter("county-hospital", here, "v1", "EMER", NOW)
    clinic = county.encounter("county-hospital", here, "v2", "AMB", NOW)
    with psycopg.connect(county.url) as conn:
        codec = Codec.load(conn)

    def ask(visit: str, patient: str) -> Any:
        return _run(county.url, lambda c: candidates.emergency(c, codec, visit, patient))

    assert ask(rescue, here) is True
    assert ask(clinic, here) is False
    assert ask(rescue, other) is None
    assert ask("unknown", here) is None


def test_the_patient_and_its_results_come_in_one_round_trip(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    county.report("county-hospital", here, "r1", [UREA], NOW - timedelta(days=2))

    async def ask(connection: Any) -> Any:
        at_once = [
            await candidates.find_at_once(connection, name, [UREA], NOW, ASKER)
            for name in (here, f"Patient/{here}", "a|b", "own")
        ]
        who, *_ = at_once[0]
        found = await candidates.find(connection, who, [UREA], NOW)
        return at_once, found, await candidates.seen(connection, who, ASKER)

    (one, same, identifier, given), found, seen = _run(county.url, ask)
    assert one == same == (Who(shard_of_id(here), here, "county-hospital"), found, seen)
    assert seen == Seen(treats=False, made=False, permits=True)
    assert found.person == "p-1"
    assert (identifier, given) == (None, None)


def test_a_patient_without_results_is_known_all_the_same(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)

    async def ask(connection: Any) -> Any:
        return await candidates.find_at_once(connection, here, [UREA], NOW, ASKER)

    who, found, _ = _run(county.url, ask)
    assert (who.facility, found) == ("county-hospital", Found("p-1", ()))


def test_what_a_result_states_beside_its_code_reaches_the_decision(county: Any) -> None:
    """OBX-17, OBX-20 and the visit, from the stored resources to the candidate."""
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    visit = county.encounter("county-hospital", here, "v1", "IMP", LONG_AGO)
    said = {
        "method": {"text": "平扫"},
        "bodySite": {"coding": [{"code": "24028007"}], "text": "右膝关节"},
        "encounter": {"reference": f"Encounter/{visit}"},
    }
    knee = "R0001"
    county.report("county-hospital", here, "r1", [knee], NOW - timedelta(days=1), changes=said)
    county.report(
        "county-hospital", here, "r2", [UREA], NOW - timedelta(days=1), changes={"method": {"text": "化学发光法"}}
    )
    by_item = {c.item: c for c in _find(county, here, items=(knee, UREA)).candidates}
    stated = by_item[knee]
    assert (stated.site, stated.laterality, stated.contrast, stated.health_check) == ("knee", "right", "without", False)
    assert (by_item[UREA].method, by_item[UREA].health_check) == ("immunoassay", None)


def test_the_study_behind_an_examination_says_whether_its_images_are_there(county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", LONG_AGO)
    report = county.report("county-hospital", here, "r1", ["R0001"], NOW - timedelta(days=1))
    codec = add_images(county, "county-hospital", here, report, NOW - timedelta(hours=12))

    async def ask(connection: Any) -> Any:
        found = await candidates.find(connection, Who(shard_of_id(here) or 0, here, None), ["R0001"], NOW)
        before = await images.with_images(connection, codec, found.candidates, [])
        return before, await images.with_images(connection, codec, found.candidates, ["R0001"])

    (plain,), (seen,) = _run(county.url, ask)
    assert (plain.images_complete, plain.images_reachable, plain.image_quality) == (None, None, None)
    assert (seen.images_complete, seen.images_reachable, seen.image_quality) == (True, True, "甲级")


def add_images(county: Any, facility: str, patient: str, report: str, at: datetime) -> Codec:
    """A complete study of three images within reach, stored at ``at`` and named by the report."""
    study = {
        "resourceType": "ImagingStudy", "status": "available", "subject": {"reference": f"Patient/{patient}"},
        "numberOfInstances": 3, "endpoint": [{"reference": "Endpoint/pacs"}],
        "series": [{"uid": "1.2.3", "modality": {"code": "CT"}, "numberOfInstances": 3}],
        "extension": [{"url": systems.IMAGE_QUALITY, "valueString": "甲级"}],
    }  # fmt: skip
    with psycopg.connect(county.url) as conn:
        codec = Codec.load(conn)
        origin = Origin(facility, None, None, at)
        made = writes.put(conn, codec, study, origin=origin, create=True)
        row = conn.execute('SELECT dict, body, id, patient, "order" FROM resource WHERE id = %s', (report,)).fetchone()
        assert row is not None
        stored: dict[str, Any] = loads(codec.decompress(row[0], row[1], row[2:]))
        named = {"imagingStudy": [{"reference": f"ImagingStudy/{made.id}"}]}
        writes.put(conn, codec, stored | named, origin=origin)
    return codec


@pytest.mark.parametrize(
    ("study", "complete", "reachable"),
    [
        ({"status": "available", "numberOfInstances": 3, "series": [{"numberOfInstances": 2}]}, False, None),
        ({"status": "available"}, None, None),
        ({"status": "registered", "endpoint": [{}]}, False, True),
        ({"status": "unknown", "series": [{"endpoint": [{}]}]}, None, True),
    ],
)
def test_images_that_are_not_known_to_be_there_are_not(
    study: dict[str, Any], complete: bool | None, reachable: bool | None
) -> None:
    found = images.facts([study])
    assert (found["images_complete"], found["images_reachable"], found["image_quality"]) == (complete, reachable, None)


def test_what_the_headers_of_the_images_say_is_known_only_when_every_series_says_it() -> None:
    def series(side: str | None, agent: str | None, *views: str) -> dict[str, Any]:
        said = [{"url": systems.VIEW, "valueString": v} for v in views]
        said += [{"url": systems.CONTRAST, "valueString": agent}] if agent else []
        code = {"left": "7771000", "right": "24028007"}.get(side or "")
        return {
            "extension": said,
            "bodySite": {"system": systems.SNOMED, "code": "72696002", "display": "Knee"},
            **({"laterality": {"system": systems.SNOMED, "code": code}} if code else {}),
        }

    def facts(*all_series: dict[str, Any]) -> tuple[Any, ...]:
        found = images.facts([{"resourceType": "ImagingStudy", "series": list(all_series)}])
        return found["image_site"], found["image_side"], found["image_contrast"], found["image_views"]

    assert facts(series("left", "without", "AP", "LL")) == ("knee", "left", "without", "ap lateral")
    assert facts(series("left", "iohexol", "AP"), series("right", "without", "RL")) == (
        "knee",
        "bilateral",
        "without-and-with",
        "ap lateral",
    )
    assert facts(series("left", "iohexol", "AP"), series(None, None)) == ("knee", None, None, None)
    assert facts(series("left", None, "SUNRISE"))[3] is None
