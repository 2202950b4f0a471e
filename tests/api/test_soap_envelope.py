"""fhir_server.api.soap_envelope without a server: faults for people of two languages, payloads that are one document."""

from __future__ import annotations

import re

import asyncpg
import pytest
from lxml import etree

from fhir_server.api import responses, soap_envelope
from fhir_server.errors import Category, Fault


@pytest.mark.parametrize("category", list(Category))
@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_every_fault_says_in_chinese_and_english_what_is_wrong(version: str, category: Category) -> None:
    _, raw = soap_envelope.fault(version, Fault(category, "The payload is missing.", where="payload"))
    said = "".join(etree.fromstring(raw).itertext())
    assert "The payload is missing." in said
    assert any("\u4e00" <= c <= "\u9fff" for c in said)


V11, V12 = "http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope"
HEADER = (
    '<s:Envelope xmlns:s="{0}"><s:Header><h s:mustUnderstand="{1}" {2}/></s:Header><s:Body><b/></s:Body></s:Envelope>'
)


@pytest.mark.parametrize(
    ("raw", "code", "statuses"),
    [
        ('<s:Envelope xmlns:s="http://www.w3.org/2001/12/soap-envelope"/>', "VersionMismatch", (500, 500)),
        (HEADER.format(V11, " 1 ", ""), "MustUnderstand", (500, 500)),
        (HEADER.format(V12, "true", f's:role="{V12}/role/next"'), "MustUnderstand", (500, 500)),
        (f'<s:Envelope xmlns:s="{V12}"/>', "(Client|Sender)", (500, 400)),
    ],
)
def test_faults_have_the_code_and_the_http_status_of_the_standard(
    raw: str, code: str, statuses: tuple[int, int]
) -> None:
    with pytest.raises(Fault) as raised:
        soap_envelope.read(raw.encode())
    answers = [soap_envelope.fault(version, raised.value) for version in ("1.1", "1.2")]
    assert tuple(status for status, _ in answers) == statuses
    for path, (_, answer) in zip(("//faultcode", f"//{{{V12}}}Value"), answers, strict=True):
        assert re.fullmatch(f"env:{code}", etree.fromstring(answer).findtext(f".{path}") or "")


@pytest.mark.parametrize("whose", ['s:actor="http://elsewhere.example/"', f's:role="{V12}/role/none"'])
def test_a_header_for_another_node_need_not_be_understood_here(whose: str) -> None:
    space = V11 if "actor" in whose else V12
    assert soap_envelope.read(HEADER.format(space, "1", whose).encode()).operation == "b"


def test_an_attachment_by_reference_is_called_one() -> None:
    with pytest.raises(Fault, match="attachment"):
        soap_envelope.payload(etree.fromstring('<payload href="cid:1"/>'))


def test_text_beside_an_element_is_not_dropped_but_refused() -> None:
    with pytest.raises(Fault, match="one document"):
        soap_envelope.payload(etree.fromstring("<payload>MSH|^~<b/></payload>"))
    assert soap_envelope.payload(etree.fromstring("<payload>\n <b/>\n</payload>")) == "<b/>"


@pytest.mark.parametrize(
    "raised",
    [
        asyncpg.ObjectNotInPrerequisiteStateError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.DatabaseDroppedError,
        asyncpg.InvalidPasswordError,
        asyncpg.DiskFullError,
        asyncpg.TooManyConnectionsError,
    ],
)
def test_a_database_that_is_closed_renamed_or_full_is_away_and_the_call_is_sent_again_later(
    raised: type[asyncpg.PostgresError],
) -> None:
    """SQLSTATE 55000, 3D000, 57P04, 28P01, 53100, 53300: what a server says while it is restored."""
    assert issubclass(raised, responses.EXPECTED)
    found = responses.fault_of(raised("x"))
    assert found.category is Category.UNAVAILABLE
    assert b"Receiver" in soap_envelope.fault("1.2", found)[1]
