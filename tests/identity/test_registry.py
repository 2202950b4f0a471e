"""fhir_server.identity.registry: links follow facts and merges, in any order, with their history."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from conformance.systems import RESIDENT_ID
from fhir_server.identity.registry import MergeStatement, PatientState, members, members_sync, resolve
from fhir_server.store import database
from mappings.ids import logical_id, shard_of
from mappings.resident_id import check_character
from tests.seeds import seed_of

AT = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


def resident_id(birth: str, sequence: int = 1, area: str = "130929") -> str:
    first = f"{area}{birth.replace('-', '')}{sequence:03d}"
    return first + check_character(first)


def patient(
    facility: str,
    number: str,
    *,
    name: str = "王建国",
    sex: str | None = "male",
    birth: str | None = "1962-05-17",
    id_: str = "",
) -> PatientState:
    shard = shard_of(facility, f"|{number}")
    resource: dict[str, Any] = {"resourceType": "Patient", "name": [{"text": name}]}
    if id_:
        resource["identifier"] = [{"system": RESIDENT_ID, "value": id_}]
    if sex:
        resource["gender"] = sex
    if birth:
        resource["birthDate"] = birth
    return PatientState(shard, logical_id(shard, facility, "Patient", number), facility, resource)


def merge(
    facility: str, surviving: PatientState, retired: PatientState, minutes: int, *, linked: bool = True
) -> MergeStatement:
    trigger = "A40" if linked else "A37"
    return MergeStatement(surviving.id, retired.id, facility, trigger, AT + timedelta(minutes=minutes), linked)


@pytest.fixture
def conn(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url) as connection:
        yield connection


def persons(conn: psycopg.Connection[Any]) -> dict[str, str]:
    return dict(conn.execute("SELECT patient, person FROM source_patient").fetchall())


def reviews(conn: psycopg.Connection[Any]) -> set[tuple[str, str, str]]:
    return set(conn.execute("SELECT patient, other, reason FROM identity_review WHERE closed IS NULL").fetchall())


ID = resident_id("1962-05-17")


def test_links_two_facilities_patients_of_one_person(conn: psycopg.Connection[Any]) -> None:
    a, b = patient("county", "1", id_=ID), patient("town", "9", id_=ID)
    links = resolve(conn, [a], [], AT)
    assert [(k.patient, k.person, k.basis) for k in links] == [(a.id, a.id, "alone")]
    resolve(conn, [b], [], AT + timedelta(hours=1))
    both = sorted([(a.shard, a.id), (b.shard, b.id)], key=lambda m: m[1])
    assert members_sync(conn, a.shard, a.id) == both
    assert members_sync(conn, b.shard, b.id) == both
    assert set(persons(conn).values()) == {min(a.id, b.id)}
    assert members_sync(conn, a.shard, a.id, AT + timedelta(minutes=30)) == [(a.shard, a.id)]
    assert members_sync(conn, a.shard, a.id, AT + timedelta(minutes=90)) == both
    assert reviews(conn) == set()


def test_the_same_patients_again_change_nothing(conn: psycopg.Connection[Any]) -> None:
    both = [patient("county", "1", id_=ID), patient("town", "9", id_=ID)]
    resolve(conn, both, [], AT)
    before = conn.execute("SELECT * FROM identity_link ORDER BY 1, 2, 3").fetchall()
    assert resolve(conn, both, [], AT + timedelta(days=1)) == []
    assert conn.execute("SELECT * FROM identity_link ORDER BY 1, 2, 3").fetchall() == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "王建华"}, "name-differs"),
        ({"birth": "1962-05-18"}, "birth-differs"),
        ({"sex": "female"}, "sex-differs"),
        ({"sex": None}, "missing-sex"),
        ({"birth": None}, "missing-birth"),
        ({"birth": "1962"}, "missing-birth"),
        ({"name": ""}, "missing-name"),
        ({"id_": ""}, "no-resident-id"),
        ({"id_": ID[:-1] + ("0" if ID[-1] != "0" else "1")}, "no-resident-id"),
    ],
)
def test_anything_less_stays_separate_and_is_listed(
    conn: psycopg.Connection[Any], change: dict[str, Any], reason: str
) -> None:
    a = patient("county", "1", id_=ID)
    b = patient("town", "9", **{"id_": ID, **change})
    resolve(conn, [a, b], [], AT)
    assert persons(conn) == {a.id: a.id, b.id: b.id}
    assert reviews(conn) == {(*sorted((a.id, b.id)), reason)}


def test_two_people_of_one_name_and_birth_date_with_different_numbers_are_not_listed(
    conn: psycopg.Connection[Any],
) -> None:
    resolve(conn, [patient("county", "1", id_=ID), patient("town", "9", id_=resident_id("1962-05-17", 3))], [], AT)
    assert reviews(conn) == set()
    assert len(set(persons(conn).values())) == 2


def test_a_child_under_its_mothers_number_is_never_linked(conn: psycopg.Connection[Any]) -> None:
    number = resident_id("1990-01-02", 2)
    mother = patient("county", "1", name="李梅", sex="female", birth="1990-01-02", id_=number)
    # Registered twice with the mother's number: everything agrees between the two except what the number itself says.
    child = patient("county", "2", name="赵小宝", sex="female", birth="2024-06-01", id_=number)
    again = patient("town", "3", name="赵小宝", sex="female", birth="2024-06-01", id_=number)
    newborn = patient("town", "4", name="李梅之女", sex="female", birth="1990-01-02", id_=number)
    resolve(conn, [mother, child, again, newborn], [], AT)
    assert len(set(persons(conn).values())) == 4
    reasons = {r for _, _, r in reviews(conn)}
    assert {"id-birth-differs", "newborn", "name-differs"} <= reasons


def test_a_placeholder_number_of_thousands_makes_neither_one_person_nor_a_million_pairs(
    conn: psycopg.Connection[Any],
) -> None:
    example = "11010519491231002X"  # the example of GB 11643-1999: well-formed, and everybody's
    crowd = [
        patient("county", str(n), name=f"王{chr(0x4E00 + n)}", sex="female", birth="1949-12-31", id_=example)
        for n in range(300)
    ]
    for start in range(0, 300, 50):
        resolve(conn, crowd[start : start + 50], [], AT)
    assert len(set(persons(conn).values())) == 300
    assert len(reviews(conn)) <= 300 * 20


def test_a_patient_whose_facts_change_leaves_the_person_and_comes_back(conn: psycopg.Connection[Any]) -> None:
    a, b = patient("county", "1", id_=ID), patient("town", "9", id_=ID)
    resolve(conn, [a, b], [], AT)
    for loser in (a, b):
        other = patient(loser.facility, "1" if loser is a else "9", name="张三", id_=ID)
        links = resolve(conn, [other], [], AT + timedelta(hours=1))
        assert persons(conn) == {a.id: a.id, b.id: b.id}
        assert [k.basis for k in links] == ["alone"]
        assert reviews(conn) == {(*sorted((a.id, b.id)), "name-differs")}
        resolve(conn, [loser], [], AT + timedelta(hours=2))
        assert set(persons(conn).values()) == {min(a.id, b.id)}
        assert reviews(conn) == set()
    open_rows = conn.execute("SELECT patient, count(*) FROM identity_link WHERE until IS NULL GROUP BY 1").fetchall()
    assert dict(open_rows) == {a.id: 1, b.id: 1}


def test_a_deleted_patient_leaves_its_person(conn: psycopg.Connection[Any]) -> None:
    a, b = patient("county", "1", id_=ID), patient("town", "9", id_=ID)
    resolve(conn, [a, b], [], AT)
    resolve(conn, [PatientState(b.shard, b.id, b.facility, None)], [], AT + timedelta(hours=1))
    assert persons(conn) == {a.id: a.id, b.id: b.id}


def test_a_merge_links_and_its_withdrawal_unlinks(conn: psycopg.Connection[Any]) -> None:
    kept, old = patient("county", "1", id_=ID), patient("county", "2", name="王建", birth=None)
    elsewhere = patient("town", "9", id_=ID)
    resolve(conn, [kept, old, elsewhere], [], AT)
    resolve(conn, [], [merge("county", kept, old, 1)], AT + timedelta(minutes=1))
    everybody = sorted([kept.id, old.id, elsewhere.id])
    assert [p for _, p in members_sync(conn, old.shard, old.id)] == everybody
    resolve(conn, [], [merge("county", kept, old, 2, linked=False)], AT + timedelta(minutes=2))
    assert [p for _, p in members_sync(conn, old.shard, old.id)] == [old.id]
    assert [p for _, p in members_sync(conn, kept.shard, kept.id)] == sorted([kept.id, elsewhere.id])
    assert [p for _, p in members_sync(conn, old.shard, old.id, AT + timedelta(seconds=90))] == everybody
    # The merge sent again (a replay) is older than its withdrawal.
    assert resolve(conn, [], [merge("county", kept, old, 1)], AT + timedelta(minutes=3)) == []
    assert [p for _, p in members_sync(conn, old.shard, old.id)] == [old.id]


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one by one"])
@pytest.mark.parametrize("unlink_first", [True, False])
@pytest.mark.parametrize("swapped", [True, False], ids=["PIDs the other way round", "same PIDs"])
@pytest.mark.parametrize("minutes", [1, 2], ids=["same second", "later"])
def test_an_unlinking_finds_its_link_whichever_patient_it_names_first_and_whenever_it_arrives(
    conn: psycopg.Connection[Any], minutes: int, *, swapped: bool, unlink_first: bool, together: bool
) -> None:
    one, two = patient("county", "1"), patient("county", "2", name="王建", birth=None)
    resolve(conn, [one, two], [], AT)
    pair = (two, one) if swapped else (one, two)
    said = [merge("county", one, two, 1), merge("county", *pair, minutes, linked=False)]
    said = said[::-1] if unlink_first else said
    for batch in [said] if together else [[s] for s in said]:
        resolve(conn, [], batch, AT)
    assert persons(conn) == {one.id: one.id, two.id: two.id}


def test_a_patient_may_be_linked_to_several_and_unlinked_from_one(conn: psycopg.Connection[Any]) -> None:
    one, two, three = (patient("county", str(n), name=f"王{n}", birth=None) for n in (1, 2, 3))
    resolve(conn, [one, two, three], [], AT)
    linked = [
        MergeStatement(first.id, two.id, "county", "A24", AT + timedelta(minutes=n))
        for n, first in ((1, one), (2, three))
    ]
    resolve(conn, [], linked, AT)
    assert len(set(persons(conn).values())) == 1
    resolve(conn, [], [merge("county", two, one, 3, linked=False)], AT)
    assert persons(conn)[one.id] == one.id
    assert persons(conn)[two.id] == persons(conn)[three.id] == min(two.id, three.id)


def test_a_merge_that_was_replaced_does_not_come_back_when_its_successor_is_taken_back(
    conn: psycopg.Connection[Any],
) -> None:
    old, first, second = (patient("county", str(n), name=f"王{n}", birth=None) for n in (1, 2, 3))
    resolve(conn, [old, first, second], [merge("county", first, old, 1), merge("county", second, old, 2)], AT)
    assert persons(conn)[old.id] == persons(conn)[second.id] != persons(conn)[first.id]
    resolve(conn, [], [merge("county", second, old, 3, linked=False)], AT)
    assert set(persons(conn).values()) == {old.id, first.id, second.id}


def test_a_merge_of_patients_nobody_has_sent_yet_waits_for_them(conn: psycopg.Connection[Any]) -> None:
    kept, old = patient("county", "1"), patient("county", "2", name="王建", birth=None)
    resolve(conn, [], [merge("county", kept, old, 1)], AT)
    resolve(conn, [old], [], AT + timedelta(hours=1))
    resolve(conn, [kept], [], AT + timedelta(hours=2))
    assert set(persons(conn).values()) == {min(kept.id, old.id)}


def test_any_order_of_arrival_ends_in_the_same_persons(conn: psycopg.Connection[Any]) -> None:
    seed = seed_of("registry")
    rng = random.Random(seed)
    ids = [resident_id("1962-05-17", n) for n in (1, 3)]
    people = [
        patient(f, str(n), id_=rng.choice([*ids, ""]), name=rng.choice(["王建国", "王建 国"]))
        for f in ("county", "town")
        for n in range(4)
    ]
    statements = [
        merge(f, x, y, minute, linked=rng.random() < 0.7)
        for minute, (f, x, y) in enumerate(
            ("county" if x.facility == "county" else "town", x, y)
            for x, y in itertools.permutations(people, 2)
            if x.facility == y.facility and rng.random() < 0.3
        )
    ]
    events: list[PatientState | MergeStatement] = [*people, *statements]
    ends = []
    for _ in range(6):
        rng.shuffle(events)
        at = AT
        for event in events:
            at += timedelta(minutes=1)
            resolve(conn, *(([event], []) if isinstance(event, PatientState) else ([], [event])), at)
        ends.append(persons(conn))
        overlaps = conn.execute(
            "SELECT count(*) FROM identity_link a JOIN identity_link b USING (shard, patient) WHERE a.recorded < b.recorded"
            " AND (a.until IS NULL OR a.until > b.recorded)"
        ).fetchone()
        assert overlaps == (0,)
        current = conn.execute("SELECT patient, person FROM identity_link WHERE until IS NULL").fetchall()
        assert dict(current) == ends[-1]
        conn.execute("TRUNCATE source_patient, identity_link, identity_merge, identity_review")
    assert all(end == ends[0] for end in ends)


def test_two_transactions_meeting_one_person_see_each_other(database_url: str) -> None:
    states = [patient(f"f{n}", "1", id_=ID) for n in range(8)]
    start = threading.Barrier(8)

    def work(state: PatientState) -> None:
        with psycopg.connect(database_url) as connection:
            start.wait()
            resolve(connection, [state], [], AT)

    threads = [threading.Thread(target=work, args=(s,)) for s in states]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    with psycopg.connect(database_url) as connection:
        assert set(persons(connection).values()) == {min(s.id for s in states)}


def test_a_clock_that_stepped_back_keeps_the_history_in_order(conn: psycopg.Connection[Any]) -> None:
    a, b = patient("county", "1", id_=ID), patient("town", "9", id_=ID)
    resolve(conn, [a], [], AT)
    resolve(conn, [b], [], AT - timedelta(minutes=5))
    resolve(conn, [patient("town", "9", name="张三", id_=ID)], [], AT - timedelta(minutes=10))
    assert conn.execute("SELECT count(*) FROM identity_link WHERE until <= recorded").fetchone() == (0,)


def test_readers_get_the_members_without_blocking_anybody(database_url: str) -> None:
    a, b = patient("county", "1", id_=ID), patient("town", "9", id_=ID)
    with psycopg.connect(database_url) as connection:
        resolve(connection, [a, b], [], AT)

    async def read() -> list[list[tuple[int, str]]]:
        pool = await database.open_pool(database_url, 1)
        try:
            return [await members(pool, a.shard, a.id), await members(pool, 7, "unknown")]
        finally:
            await pool.close()

    found, unknown = asyncio.run(read())
    assert found == sorted([(a.shard, a.id), (b.shard, b.id)], key=lambda m: m[1])
    assert unknown == [(7, "unknown")]


def test_patients_with_ids_given_by_clients_are_linked_too(conn: psycopg.Connection[Any]) -> None:
    a = patient("county", "1", id_=ID)
    b = PatientState(17, "client-given", "town", a.resource)
    resolve(conn, [a], [], AT)
    resolve(conn, [b], [], AT)
    assert set(persons(conn).values()) == {min(a.id, b.id)}
