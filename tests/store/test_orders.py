"""An ORC without OBR says how all tests of its order stand (HL7 v2.5.1 section 4.4.1.1)."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.store import repository
from fhir_server.store.body import Codec
from mappings.profile import Profile, load_profiles
from tests.store import county
from tests.store.test_cultures import entries

Conn = psycopg.Connection[Any]


def message(at: str, control: str, *tests: str, number: str = "PL1") -> str:
    lines = [
        f"MSH|^~\\&|HIS|A|||20260303{at}||ORM^O01|O{at}|P|2.5.1",
        "PID|1||M0001^^^HIS^MR||林冲||19700101|M",
        f"ORC|{control}|{number}||||||||20260303{at}",
    ]
    lines += [f"OBR|{n}|{number}||{test}^{test}^L" for n, test in enumerate(tests, 1)]
    return "\r".join(lines) + "\r"


def store(conn: Conn, codec: Codec, profile: Profile, *messages: str) -> None:
    for n, raw in enumerate(messages, 1):
        origin = county.origin(n, minute=n, facility=profile.id)
        repository.apply(conn, codec, [(origin, entries(raw, profile))])
        conn.commit()


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profiles()["generic"]


def statuses(conn: Conn, codec: Codec) -> dict[tuple[str, str], str]:
    rows = conn.execute(
        "SELECT dict, body, id, patient FROM resource WHERE rtype = %s", (RESOURCE_TYPES["ServiceRequest"],)
    ).fetchall()
    found = [loads(codec.decompress(r[0], bytes(r[1]), (*r[2:], None))) for r in rows]
    return {(r["identifier"][0]["value"], r["code"]["text"]): r["status"] for r in found if "code" in r}


def test_a_cancellation_without_detail_takes_back_every_test_of_its_order(
    conn: Conn, codec: Codec, profile: Profile
) -> None:
    other = message("081000", "NW", "ALT", number="PL2")
    store(conn, codec, profile, message("080000", "NW", "ALT", "AST"), other, message("090000", "CA"))
    assert statuses(conn, codec) == {("PL1", "ALT"): "revoked", ("PL1", "AST"): "revoked", ("PL2", "ALT"): "active"}


def test_a_hold_is_released_and_a_later_order_is_in_force(conn: Conn, codec: Codec, profile: Profile) -> None:
    store(conn, codec, profile, message("080000", "NW", "ALT"), message("090000", "HD"))
    assert statuses(conn, codec) == {("PL1", "ALT"): "on-hold"}
    store(conn, codec, profile, message("093000", "RL"))
    assert statuses(conn, codec) == {("PL1", "ALT"): "active"}
    store(conn, codec, profile, message("091500", "CA"))
    assert statuses(conn, codec) == {("PL1", "ALT"): "active"}
    store(conn, codec, profile, message("100000", "CA"), message("110000", "XO", "ALT"))
    assert statuses(conn, codec) == {("PL1", "ALT"): "active"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_what_was_said_of_the_whole_order_counts_whatever_came_first(
    conn: Conn, codec: Codec, profile: Profile, order: tuple[int, ...]
) -> None:
    said = message("080000", "NW", "ALT", "AST"), message("090000", "HD"), message("100000", "CA")
    store(conn, codec, profile, *(said[i] for i in order))
    assert statuses(conn, codec) == {("PL1", "ALT"): "revoked", ("PL1", "AST"): "revoked"}


def test_an_order_that_bears_another_number_of_the_placer_is_not_meant(
    conn: Conn, codec: Codec, profile: Profile
) -> None:
    mine, other = message("080000", "NW", "ALT"), message("090000", "CA", number="PL2")
    store(conn, codec, profile, *(raw.replace("||||||||2026", "|LAB1|||||||2026") for raw in (mine, other)))
    assert list(statuses(conn, codec).values()) == ["active"]


def test_a_cancelled_order_that_is_sent_again_as_it_was_stays_cancelled(
    conn: Conn, codec: Codec, profile: Profile
) -> None:
    new = message("080000", "NW", "ALT")
    store(
        conn,
        codec,
        profile,
        new,
        message("090000", "CA"),
        new.replace("|||20260303080000||ORM", "|||20260303100000||ORM"),
    )
    assert statuses(conn, codec) == {("PL1", "ALT"): "revoked"}
