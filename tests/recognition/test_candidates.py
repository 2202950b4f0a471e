"""Candidates: all Patients of the person, as linked and as visible at one time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from conformance import systems
from fhir_server.recognition import candidates
from fhir_server.recognition.candidates import Found, Who
from fhir_server.store.body import Codec
from fhir_server.store.database import open_pool

NOW = datetime(2025, 11, 21, 9, 0, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=60)
UREA = "L0016"


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
