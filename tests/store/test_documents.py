"""A notification about a document keeps its content (HL7 v2.5.1 section 9.5), whatever comes first."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.store.body import Codec
from mappings.profile import Profile, load_profiles
from tests.store.test_cultures import store

Conn = psycopg.Connection[Any]


def message(at: str, event: str, completion: str, *texts: str) -> str:
    lines = [
        f"MSH|^~\\&|EMR|A|||20260303{at}||MDM^{event}|D{at}|P|2.5.1",
        "PID|1||M0001^^^HIS^MR||林冲||19700101|M",
        f"TXA|1|RAD^放射报告^L|TX|20260303080000||||||||DOC1^PACS|||||{completion}",
    ]
    lines += [f"OBX|{n}|TX|RPT^报告^L||{text}||||||F" for n, text in enumerate(texts, 1)]
    return "\r".join(lines) + "\r"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profiles()["generic"]


def document(conn: Conn, codec: Codec) -> dict[str, Any]:
    row = conn.execute(
        "SELECT dict, body, id, patient FROM resource WHERE rtype = %s", (RESOURCE_TYPES["DocumentReference"],)
    ).fetchone()
    assert row is not None
    found: dict[str, Any] = loads(codec.decompress(row[0], bytes(row[1]), (*row[2:], None)))
    return found


MESSAGES = (
    message("090000", "T02", "DI", "双肺未见异常"),
    message("100000", "T03", "LA"),
    message("080000", "T01", "IN"),
)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_status_change_without_content_keeps_the_content(
    conn: Conn, codec: Codec, profile: Profile, order: tuple[int, ...]
) -> None:
    store(conn, codec, profile, *(MESSAGES[i] for i in order))
    found = document(conn, codec)
    assert found["docStatus"] == "final"
    assert found["content"][0]["attachment"]["size"] == len("双肺未见异常".encode())


def test_a_cancelled_document_can_still_be_read_and_an_edit_replaces_its_content(
    conn: Conn, codec: Codec, profile: Profile
) -> None:
    store(conn, codec, profile, MESSAGES[0], message("110000", "T11", "CA"))
    found = document(conn, codec)
    assert found["status"] == "entered-in-error"
    assert found["content"][0]["attachment"]["url"].startswith("Binary/")
    store(conn, codec, profile, message("120000", "T08", "LA", "修改后"))
    found = document(conn, codec)
    assert (found["status"], found["content"][0]["attachment"]["size"]) == ("current", len("修改后".encode()))
