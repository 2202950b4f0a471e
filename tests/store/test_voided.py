"""A report that is cancelled takes its results with it (HL7 v2.5.1 table 0123: X is "no results available; order canceled")."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest

from fhir_server.store.body import Codec
from mappings.profile import Profile, load_profiles
from tests.store.test_cultures import results, store

Conn = psycopg.Connection[Any]


def message(at: str, status: str, *values: str) -> str:
    lines = [
        f"MSH|^~\\&|LIS|A|||20260303{at}||ORU^R01|V{at}|P|2.5.1",
        "PID|1||M0001^^^HIS^MR||林冲||19700101|M",
        f"OBR|1|P1|LAB1|BIO^生化^L|||20260303080000|||||||||||||||20260303{at}|||{status}",
    ]
    lines += [f"OBX|{n}|NM|K^钾^L||{v}|mmol/L|3.5-5.3|N|||{status}" for n, v in enumerate(values, 1)]
    return "\r".join(lines) + "\r"


FINAL, VOID, AGAIN = message("090000", "F", "4.0"), message("100000", "X"), message("110000", "C", "4.5")


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profiles()["generic"]


def flat(conn: Conn) -> list[Any]:
    return conn.execute("SELECT status, number FROM result WHERE until IS NULL").fetchall()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["the report first", "the cancellation first"])
def test_a_cancelled_report_withdraws_what_was_reported_before(
    conn: Conn, codec: Codec, profile: Profile, order: tuple[int, ...]
) -> None:
    store(conn, codec, profile, *((FINAL, VOID)[i] for i in order))
    ((_, potassium),) = results(conn, codec).values()
    assert potassium["status"] == "entered-in-error"
    assert [status for status, _ in flat(conn)] == ["entered-in-error"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_report_that_comes_again_is_in_force_whatever_came_first(
    conn: Conn, codec: Codec, profile: Profile, order: tuple[int, ...]
) -> None:
    store(conn, codec, profile, *((FINAL, VOID, AGAIN)[i] for i in order))
    ((_, potassium),) = results(conn, codec).values()
    assert (potassium["status"], str(potassium["valueQuantity"]["value"])) == ("corrected", "4.5")


def test_a_report_in_force_again_brings_its_result_back_and_says_so(conn: Conn, codec: Codec, profile: Profile) -> None:
    bare = message("120000", "F")
    store(conn, codec, profile, FINAL, VOID, bare)
    ((version, potassium),) = results(conn, codec).values()
    assert (version, potassium["status"]) == (3, "final")


TWO = FINAL + "OBX|2|NM|NA^钠^L||140|mmol/L|137-147|N|||F\r"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_result_that_is_not_said_again_after_the_cancellation_stays_withdrawn(
    conn: Conn, codec: Codec, profile: Profile, order: tuple[int, ...]
) -> None:
    store(conn, codec, profile, *((TWO, VOID, AGAIN)[i] for i in order))
    found = {name: resource["status"] for name, (_, resource) in results(conn, codec).items()}
    assert found == {"钾": "corrected", "钠": "entered-in-error"}
    store(conn, codec, profile, message("120000", "C", "4.5").replace("|K^钾^L||4.5", "|NA^钠^L||139"))
    found = {name: resource["status"] for name, (_, resource) in results(conn, codec).items()}
    assert found == {"钾": "corrected", "钠": "corrected"}


def test_a_part_of_a_report_sent_again_leaves_the_others_in_force(conn: Conn, codec: Codec, profile: Profile) -> None:
    store(conn, codec, profile, TWO, AGAIN)
    found = {name: resource["status"] for name, (_, resource) in results(conn, codec).items()}
    assert found == {"钾": "corrected", "钠": "final"}


def test_a_final_result_below_a_cancelled_report_is_withdrawn_with_it(
    conn: Conn, codec: Codec, profile: Profile
) -> None:
    store(conn, codec, profile, message("100000", "X", "4.0").replace("|N|||X", "|N|||F"))
    ((_, potassium),) = results(conn, codec).values()
    assert potassium["status"] == "entered-in-error"
