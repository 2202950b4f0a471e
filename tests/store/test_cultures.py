"""An organism and the susceptibilities of another message belong together, whatever comes first (HL7 v2.5.1, OBR-26 and OBR-29)."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest

from adapters.convert import convert, recognise
from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.store import repository
from fhir_server.store.body import Codec
from mappings.model import Entry
from mappings.profile import Profile, load_profiles
from tests.store import county

Conn = psycopg.Connection[Any]
_HEAD = "MSH|^~\\&|LIS|A|||{at}||ORU^R01|{id}|P|2.5.1\rPID|1||M0001^^^HIS^MR||林冲||19700101|M\r"
CULTURE = _HEAD.format(at="20260303090000", id="C1") + (
    "OBR|1|BC1|LAB1|BLCX^血培养^L|||20260301080000|||||||||||||||20260303090000||MB|P\r"
    "OBX|1|CWE|ORG^细菌鉴定^L|1|112283007^大肠埃希菌^SCT||||||F\r"
    "OBX|2|CWE|ORG^细菌鉴定^L|2|3092008^金黄色葡萄球菌^SCT||||||F\r"
    "OBX|3|NM|TTP^报阳时间^L||13|h|||||F\r"
)
SUSCEPTIBLE = _HEAD.format(at="20260304090000", id="C2") + (
    "OBR|1|BC1|LAB2|SUSC^药敏^L|||20260301080000|||||||||||||||20260304090000||MB|F|ORG&细菌鉴定&L^1^大肠埃希菌|||BC1^LAB1\r"
    "OBX|1|SN|AMP^氨苄西林^L||>=^32|ug/mL||R|||F\r"
    "OBX|2|SN|MEM^美罗培南^L||<=^0.25|ug/mL||S|||F\r"
)
FINAL = CULTURE.replace("|C1|", "|C3|").replace("|MB|P", "|MB|F").replace("20260303090000", "20260305090000")
MESSAGES = (CULTURE, SUSCEPTIBLE, FINAL)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profiles()["generic"]


def entries(raw: str, profile: Profile) -> list[Entry]:
    found = convert(raw.encode(), profile, recognise(raw.encode()), "2026-03-06T00:00:00Z")
    assert found.held is None
    return found.entries


def store(conn: Conn, codec: Codec, profile: Profile, *messages: str) -> None:
    for n, raw in enumerate(messages, 1):
        repository.apply(conn, codec, [(county.origin(n, minute=n), entries(raw, profile))])
        conn.commit()


def results(conn: Conn, codec: Codec) -> dict[str, tuple[int, dict[str, Any]]]:
    """Version and resource of each result, by the text of its code or answer."""
    rows = conn.execute(
        'SELECT version, dict, body, id, patient, "order" FROM resource WHERE rtype = %s',
        (RESOURCE_TYPES["Observation"],),
    ).fetchall()
    found = [(r[0], loads(codec.decompress(r[1], bytes(r[2]), r[3:]))) for r in rows]
    return {o.get("valueCodeableConcept", o["code"])["text"]: (v, o) for v, o in found}


def members(found: dict[str, tuple[int, dict[str, Any]]], name: str) -> set[str]:
    return {r["reference"] for r in found[name][1].get("hasMember", ())}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_organism_has_its_susceptibilities_as_members_in_whatever_order_the_messages_come(
    conn: Conn, codec: Codec, profile: Profile, order: tuple[int, ...]
) -> None:
    store(conn, codec, profile, *(MESSAGES[i] for i in order))
    found = results(conn, codec)
    wanted = {f"Observation/{found[name][1]['id']}" for name in ("氨苄西林", "美罗培南")}
    assert members(found, "大肠埃希菌") == wanted
    assert members(found, "金黄色葡萄球菌") == members(found, "报阳时间") == set()
    assert found["氨苄西林"][1]["derivedFrom"][0]["display"] == "大肠埃希菌"


def test_a_correction_of_the_organism_alone_keeps_its_members(conn: Conn, codec: Codec, profile: Profile) -> None:
    both = CULTURE + SUSCEPTIBLE.partition("\rPID")[2].partition("\r")[2]
    store(conn, codec, profile, both, FINAL)
    assert len(members(results(conn, codec), "大肠埃希菌")) == 2


def test_the_susceptibilities_join_in_one_transaction_and_once(conn: Conn, codec: Codec, profile: Profile) -> None:
    repository.apply(
        conn,
        codec,
        [(county.origin(n, minute=n), entries(raw, profile)) for n, raw in enumerate((SUSCEPTIBLE, CULTURE), 1)],
    )
    store(conn, codec, profile, SUSCEPTIBLE)
    found = results(conn, codec)
    assert {len(members(found, "大肠埃希菌")), found["大肠埃希菌"][0], found["氨苄西林"][0]} == {2, 1}


def test_another_patient_another_order_and_an_unclear_parent_join_nothing(
    conn: Conn, codec: Codec, profile: Profile
) -> None:
    other = CULTURE.replace("M0001", "M0002").replace("C1", "C4")
    elsewhere = SUSCEPTIBLE.replace("^LAB1\r", "^LAB9\r").replace("BC1^", "BC9^").replace("|C2|", "|C5|")
    unclear = SUSCEPTIBLE.replace("L^1^大肠埃希菌", "L").replace("LAB2", "LAB6").replace("|C2|", "|C6|")
    store(conn, codec, profile, CULTURE, other, elsewhere, unclear)
    stored = conn.execute(
        'SELECT dict, body, id, patient, "order" FROM resource WHERE rtype = %s', (RESOURCE_TYPES["Observation"],)
    ).fetchall()
    assert not any("hasMember" in loads(codec.decompress(r[0], bytes(r[1]), r[2:])) for r in stored)
