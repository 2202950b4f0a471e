"""fhir_server.store.writes: create, update, delete as the API asks for them."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from conformance import systems
from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.errors import Category, Fault
from fhir_server.store import repository
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from mappings import ids
from mappings.model import Tier
from tests.store import county

Conn = psycopg.Connection[Any]


def api(minute: int = 0) -> Origin:
    return Origin("county", None, None, county.NOON.replace(minute=minute))


def observation(subject: str, text: str = "x", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": text},
        "subject": {"reference": f"Patient/{subject}"},
        **more,
    }


def test_create_gives_an_id_that_names_the_shard_of_the_patient(conn: Conn, codec: Codec) -> None:
    who = repository.put(conn, codec, {"resourceType": "Patient", "id": "ignored"}, origin=api(), create=True)
    change = repository.put(conn, codec, observation(who.id), origin=api(), create=True)
    assert (change.kind, change.version) == ("created", 1)
    assert ids.shard_of_id(change.id) == ids.shard_of_id(who.id) == change.shard
    assert change.patient == who.id
    assert conn.execute("SELECT count(*) FROM client_id").fetchone() == (0,)
    assert loads(change.body)["meta"] == {"versionId": "1", "lastUpdated": "2026-03-01T12:00:00.000Z"}


def test_an_unknown_id_given_by_a_client_is_created_in_the_shard_of_its_patient(conn: Conn, codec: Codec) -> None:
    given = {**observation("pat-1"), "id": "obs-1"}
    first = repository.put(conn, codec, given, origin=api())
    who = repository.put(conn, codec, {"resourceType": "Patient", "id": "pat-1"}, origin=api())
    assert first.kind == who.kind == "created"
    assert first.shard == who.shard, "also when the Patient comes second"
    again = repository.put(conn, codec, {**given, "status": "amended"}, origin=api(1))
    assert (again.kind, again.version, again.shard) == ("updated", 2, first.shard)


def test_an_equal_write_makes_no_version(conn: Conn, codec: Codec) -> None:
    given = {**observation("p"), "id": "o", "meta": {"tag": [{"code": "a"}]}}
    repository.put(conn, codec, given, origin=api())
    same = repository.put(conn, codec, {**given, "meta": {"versionId": "9", "tag": [{"code": "a"}]}}, origin=api(1))
    assert (same.kind, same.version) == ("unchanged", 1)
    assert loads(same.body)["meta"]["lastUpdated"] == "2026-03-01T12:00:00.000Z"
    tagged = repository.put(conn, codec, {**given, "meta": {"tag": [{"code": "b"}]}}, origin=api(2))
    assert (tagged.kind, tagged.version) == ("updated", 2)


def test_a_version_conflict_is_a_precondition_fault(conn: Conn, codec: Codec) -> None:
    given = {**observation("p"), "id": "o"}
    with pytest.raises(Fault) as missing:
        repository.put(conn, codec, given, origin=api(), expected_version=1)
    assert missing.value.category is Category.PRECONDITION
    repository.put(conn, codec, given, origin=api())
    repository.put(conn, codec, {**given, "status": "amended"}, origin=api(), expected_version=1)
    with pytest.raises(Fault) as stale:
        repository.put(conn, codec, {**given, "status": "corrected"}, origin=api(), expected_version=1)
    assert stale.value.category is Category.PRECONDITION
    with pytest.raises(Fault):
        repository.delete(conn, codec, "Observation", "o", origin=api(), expected_version=1)


def test_a_deleted_resource_can_be_created_again_and_keeps_its_versions(conn: Conn, codec: Codec) -> None:
    given = {**observation("p"), "id": "o"}
    repository.put(conn, codec, given, origin=api())
    gone = repository.delete(conn, codec, "Observation", "o", origin=api(1))
    assert gone is not None
    assert (gone.kind, gone.version, gone.patient) == ("deleted", 2, "p")
    assert repository.delete(conn, codec, "Observation", "o", origin=api(2)) is None
    assert repository.delete(conn, codec, "Observation", "never", origin=api(2)) is None
    assert conn.execute("SELECT count(*) FROM result WHERE until IS NULL").fetchone() == (0,)
    assert conn.execute("SELECT deleted, tokens FROM resource").fetchall() == [(True, [])]
    back = repository.put(conn, codec, given, origin=api(3))
    assert (back.kind, back.version) == ("created", 3)
    versions = conn.execute("SELECT version, deleted FROM resource_history ORDER BY version").fetchall()
    assert versions == [(1, False), (2, True)]


def test_a_write_of_the_api_wins_over_earlier_messages_and_yields_to_later_ones(conn: Conn, codec: Codec) -> None:
    message = county.report("1", "R1", {"GLU": "6.3"}, at=0)
    repository.apply(conn, codec, [(county.origin(), message)])
    logical = county.observation_id("1", "R1", "GLU")
    resource = next(e.resource for e in message if e.resource["id"] == logical)
    repository.put(conn, codec, {**resource, "status": "entered-in-error"}, origin=api(5))
    assert repository.apply(conn, codec, [(county.origin(2, minute=6), message)]) == []
    earlier = county.report("1", "R1", {"GLU": "6.2"}, at=1)
    assert {c.kind for c in repository.apply(conn, codec, [(county.origin(3), earlier)]) if c.id == logical} == {
        "stale"
    }
    later = county.report("1", "R1", {"GLU": "6.4"}, at=59)
    for entry in later:
        entry.recency = county.Recency(int(Tier.FINAL), "2026-03-02T10:00:00.000000Z", "2026-03-02T10:00:00.000000Z")
    changes = repository.apply(conn, codec, [(county.origin(4, minute=9), later)])
    assert {c.kind for c in changes if c.id == logical} == {"updated"}


def test_a_deleted_result_is_not_brought_back_by_a_replay(conn: Conn, codec: Codec) -> None:
    message = county.report("1", "R1", {"GLU": "6.3"}, at=0)
    repository.apply(conn, codec, [(county.origin(), message)])
    logical = county.observation_id("1", "R1", "GLU")
    repository.delete(conn, codec, "Observation", logical, origin=api(5))
    assert repository.apply(conn, codec, [(county.origin(2, minute=6), message)]) == []
    assert conn.execute("SELECT deleted FROM resource WHERE id = %s", (logical,)).fetchone() == (True,)


def test_a_resource_of_the_api_may_move_to_another_patient(conn: Conn, codec: Codec) -> None:
    repository.put(conn, codec, {**observation("p-1"), "id": "o"}, origin=api())
    moved = repository.put(conn, codec, {**observation("p-2"), "id": "o"}, origin=api(1))
    assert (moved.kind, moved.left, moved.patient, moved.version) == ("updated", "p-1", "p-2", 2)
    rtype = RESOURCE_TYPES["Observation"]
    shards = conn.execute(
        "SELECT shard FROM resource WHERE rtype = %(t)s UNION SELECT shard FROM resource_history UNION"
        " SELECT shard FROM result UNION SELECT shard FROM client_id WHERE rtype = %(t)s",
        {"t": rtype},
    ).fetchall()
    assert shards == [(moved.shard,)]
    open_rows = conn.execute("SELECT patient FROM result WHERE until IS NULL").fetchall()
    assert open_rows == [("p-2",)]


def test_a_resource_of_a_feed_does_not_move_to_another_patient(conn: Conn, codec: Codec) -> None:
    message = county.report("1", "R1", {"GLU": "6.3"}, at=0)
    repository.apply(conn, codec, [(county.origin(), message)])
    with pytest.raises(Fault) as refused:
        repository.put(
            conn, codec, {**observation("other"), "id": county.observation_id("1", "R1", "GLU")}, origin=api(1)
        )
    assert refused.value.category is Category.UNPROCESSABLE


@pytest.mark.parametrize("given", ["", "a/b", "ü", "x" * 65, "a b"])
def test_refuses_an_id_the_standard_does_not_allow(conn: Conn, codec: Codec, given: str) -> None:
    with pytest.raises(Fault) as refused:
        repository.put(conn, codec, {"resourceType": "Patient", "id": given}, origin=api())
    assert refused.value.category is Category.INVALID


@pytest.mark.parametrize("reference", ["a b", "x" * 3000, "a/b"])
def test_refuses_a_reference_to_a_patient_that_cannot_exist(conn: Conn, codec: Codec, reference: str) -> None:
    with pytest.raises(Fault) as refused:
        repository.put(conn, codec, observation(reference), origin=api(), create=True)
    assert refused.value.category is Category.UNPROCESSABLE


def test_a_code_of_any_length_is_stored(conn: Conn, codec: Codec) -> None:
    long = "x" * 20000
    code = {"coding": [{"system": systems.ITEMS, "code": long}, {"system": systems.LOINC, "code": long}], "text": long}
    change = repository.put(conn, codec, {**observation("p"), "code": code}, origin=api(), create=True)
    assert change.resource is not None
    assert change.resource["code"] == code
    assert conn.execute("SELECT item, loinc, length(name) FROM result").fetchone() == (None, None, 20000)


def test_refuses_a_string_with_the_null_character(conn: Conn, codec: Codec) -> None:
    with pytest.raises(Fault) as refused:
        repository.put(conn, codec, {"resourceType": "Patient", "id": "p", "name": [{"text": "a\0b"}]}, origin=api())
    assert refused.value.category is Category.INVALID


def test_two_clients_creating_one_id_at_once_make_two_versions_of_one_resource(
    database_url: str, conn: Conn, codec: Codec
) -> None:
    kinds: list[str] = []

    def write(text: str) -> None:
        with psycopg.connect(database_url) as own:
            kinds.append(repository.put(own, codec, {**observation("p", text), "id": "o"}, origin=api()).kind)

    threads = [threading.Thread(target=write, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kinds) == ["created", "updated", "updated", "updated"]
    assert conn.execute("SELECT version FROM resource WHERE id = 'o'").fetchall() == [(4,)]
