"""A report that somebody sets void through the API takes its results out of use, until it or they are said again."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.store import repository
from fhir_server.store.body import Codec
from fhir_server.store.change import Change, Origin
from mappings.profile import load_profiles
from tests.store import county
from tests.store.test_cultures import results, store
from tests.store.test_voided import FINAL

Conn = psycopg.Connection[Any]
ABOUT = {"status": "final", "subject": {"reference": "Patient/p"}}
RESULT = {"resourceType": "Observation", "id": "o", "code": {"text": "K"}, **ABOUT}
REPORT = {
    "resourceType": "DiagnosticReport",
    "id": "r",
    "code": {"text": "BIO"},
    "result": [{"reference": "Observation/o"}],
    **ABOUT,
}


def write(conn: Conn, codec: Codec, minute: int, *resources: dict[str, Any]) -> list[Change]:
    told: list[Change] = []
    origin = Origin("county", None, None, county.NOON.replace(minute=minute))
    for resource in resources:
        repository.put(conn, codec, resource, origin=origin, also=told)
    return told


def status(conn: Conn) -> list[str]:
    """Of the result, as recognition reads it."""
    return [row[0] for row in conn.execute("SELECT status FROM result WHERE until IS NULL ORDER BY id")]


@pytest.mark.parametrize("void", ["entered-in-error", "cancelled"])
def test_a_clients_void_report_withdraws_its_results_and_one_in_force_brings_them_back(
    conn: Conn, codec: Codec, void: str
) -> None:
    write(conn, codec, 0, {"resourceType": "Patient", "id": "p"}, RESULT, REPORT)
    assert status(conn) == ["final"]
    (told,) = write(
        conn, codec, 1, {**REPORT, "status": void, "result": []} if void == "cancelled" else {**REPORT, "status": void}
    )
    assert (told.id, told.voided) == ("o", True)
    assert status(conn) == ["entered-in-error"]
    (told,) = write(conn, codec, 2, {**REPORT, "status": "corrected"})
    assert (told.id, told.restored) == ("o", True)
    assert status(conn) == ["final"]
    write(conn, codec, 3, {**REPORT, "status": void})
    write(conn, codec, 4, RESULT)
    assert status(conn) == ["final"], "who writes the result again says that it holds"


def test_a_result_stays_while_another_report_in_force_names_it(conn: Conn, codec: Codec) -> None:
    write(conn, codec, 0, {"resourceType": "Patient", "id": "p"}, RESULT, REPORT, {**REPORT, "id": "s"})
    assert write(conn, codec, 1, {**REPORT, "status": "entered-in-error"}) == []
    assert status(conn) == ["final"]
    write(conn, codec, 2, {**REPORT, "id": "s", "status": "entered-in-error"})
    assert status(conn) == ["entered-in-error"]


def test_a_result_of_another_patient_is_left_alone(conn: Conn, codec: Codec) -> None:
    other = {**REPORT, "subject": {"reference": "Patient/q"}, "status": "entered-in-error"}
    write(conn, codec, 0, *({"resourceType": "Patient", "id": i} for i in "pq"), RESULT)
    assert write(conn, codec, 1, other) == []
    assert status(conn) == ["final"]


def test_a_report_of_a_feed_that_is_set_void_by_hand_withdraws_its_results(conn: Conn, codec: Codec) -> None:
    store(conn, codec, load_profiles()["generic"], FINAL)
    row = conn.execute(
        'SELECT dict, body, id, patient, "order" FROM resource WHERE rtype = %s', (RESOURCE_TYPES["DiagnosticReport"],)
    ).fetchone()
    assert row is not None
    report = loads(codec.decompress(row[0], bytes(row[1]), row[2:]))
    write(conn, codec, 30, {**report, "status": "entered-in-error"})
    ((_, potassium),) = results(conn, codec).values()
    assert potassium["status"] == "entered-in-error"
    assert status(conn) == ["entered-in-error"]
    write(conn, codec, 31, report)
    ((_, potassium),) = results(conn, codec).values()
    assert potassium["status"] == "final"
