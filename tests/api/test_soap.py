"""SOAP (docs/connect-soap.md): the envelope of a stranger, faults, and that the services are those of the other doors."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import httpx
import psycopg
import pytest
from lxml import etree

from adapters.payload import encoded
from fhir_server.api import soap_envelope
from fhir_server.errors import Category, Fault
from fhir_server.recognition import rules as rules_module
from fhir_server.services import Services
from mappings.profile import Profile, load_profiles
from tests.api.clinic import NOW, RENAL, ledger_rows, play
from tests.api.test_messages import ALPHA, CDA, CLIENT, SECRET, converted, oru
from tests.recognition.county import County

V11, V12 = "http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope"
WSSE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
MEDIA = {V11: "text/xml; charset=utf-8", V12: "application/soap+xml; charset=utf-8"}
VENDOR = """
web_services:
  - operation: SaveExamInfoExXml
    namespace: http://tempuri.org/
    parameters: [key, xml]
    payload: xml
    accepted: "<R><Code>1</Code><Id>{id}</Id></R>"
    refused: "<R><Code>0</Code><Msg>{text}</Msg></R>"
"""


def envelope(body: str, space: str = V11, header: str = "") -> bytes:
    inner = f"<s:Header>{header}</s:Header>" if header else ""
    return f'<s:Envelope xmlns:s="{space}">{inner}<s:Body>{body}</s:Body></s:Envelope>'.encode()


def operation(name: str, **parts: str) -> str:
    inner = "".join(f"<t:{n}>{v}</t:{n}>" for n, v in parts.items())
    return f'<t:{name} xmlns:t="urn:tongjian:soap:1">{inner}</t:{name}>'


async def post(client: httpx.AsyncClient, body: bytes, space: str = V11, path: str = "/soap", **more: Any) -> Any:
    """(HTTP status, the element in the body of the answer without namespaces)."""
    headers = {"content-type": MEDIA[space], **more.pop("headers", {})}
    answer = await client.post(path, content=body, headers=headers, **more)
    assert answer.headers["content-type"] == MEDIA[space], answer.text
    root = etree.fromstring(answer.content)
    assert root.tag == f"{{{space}}}Envelope"
    for element in root.iter():
        element.tag = etree.QName(element).localname
    return answer.status_code, root[0][0]


def fault_text(element: Any) -> str:
    return element.findtext("faultstring") or element.findtext("Reason/Text") or ""


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Profile]:
    folder = tmp_path_factory.mktemp("profiles")
    (folder / "alpha.yaml").write_text(ALPHA + VENDOR, "utf-8")
    return load_profiles(folder)


@pytest.fixture
def system(database_url: str, tmp_path: Path, profiles: Mapping[str, Profile]) -> Any:
    """Plays a scenario as a system of facility alpha."""

    def run(scenario: Any, **more: Any) -> None:
        given = {"facility": "alpha", "scopes": "system/*.cruds", "role": "system", **more}
        now = lambda: datetime.now(UTC)  # noqa: E731 - one word for the clock
        play(scenario, database_url, tmp_path, profiles=profiles, clients={CLIENT.id: CLIENT}, clock=now, **given)

    return run


def test_submitted_escaped_as_cdata_or_as_an_element_it_is_stored_converted_and_found_by_a_query(
    system: Any, database_url: str, profiles: Mapping[str, Profile]
) -> None:
    text = CDA.decode().removeprefix('<?xml version="1.0" encoding="UTF-8"?>')
    hl7 = oru("M1").decode()

    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        for space in (V11, V12):
            for payload in (f"<![CDATA[{hl7}]]>", escape(hl7.replace("\r", "\n")), escape(text), text):
                status, told = await post(client, envelope(operation("Submit", payload=payload), space), space)
                assert (status, told.tag) == (200, "SubmitResponse")
                assert told.findtext("message/status") in ("waiting", "done"), etree.tostring(told)
        await asyncio.to_thread(converted, database_url, profiles)
        number = told.findtext("message/id")
        status, found = await post(client, envelope(operation("MessageStatus", id=number)))
        assert (found.findtext("message/status"), found.findtext("message/format")) == ("done", "cda")
        _, found = await post(client, envelope(operation("MessageStatus", controlId="M1")))
        assert found.findtext("message/status") == "done"
        status, found = await post(client, envelope(operation("QueryResults", patient="100001", count="1")))
        assert status == 200, fault_text(found)
        (result,) = found.findall("result")
        told = {e.tag: e.text for e in result}
        assert (told["code"], told["value"], told["unit"], told["status"]) == ("GLU", "5.60", "mmol/L", "final")
        assert told["referenceRange"] == "3.9-6.1"
        assert told["effective"] == "2026-03-01T07:00:00+08:00"

    system(scenario)
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT DISTINCT channel FROM inbox").fetchall() == [("soap",)]
        entries = [r[0] for r in conn.execute("SELECT entry FROM audit_entry").fetchall()]
    assert any("soap-query-results" in e for e in entries)


def test_results_come_in_pages_newest_first_of_every_facility_of_the_person(database_url: str, tmp_path: Path) -> None:
    county = County(database_url, rules_module.load())
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    county.report("north-township", there, "r1", RENAL, NOW - timedelta(days=1))

    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        seen, following = [], ""
        for _ in range(len(RENAL)):
            more = {"next": escape(following)} if following else {}
            _, found = await post(client, envelope(operation("QueryResults", patient=here, count="1", **more)))
            seen += [r.findtext("id") for r in found.findall("result")]
            following = found.findtext("next") or ""
        assert len(set(seen)) == len(RENAL)
        assert not following
        status, found = await post(client, envelope(operation("QueryResults", patient="nobody")))
        assert (status, "no such patient" in fault_text(found)) == (500, True)

    play(scenario, database_url, tmp_path, access_by_treatment=False)


def test_asking_for_recognition_and_deciding_is_what_the_json_door_does(database_url: str, tmp_path: Path) -> None:
    county = County(database_url, rules_module.load())
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    county.report("north-township", there, "r1", RENAL, NOW - timedelta(days=1))

    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        order = "<t:code>SGN</t:code><t:id>d1</t:id>"
        asked = operation("CheckRecognition", patient=here, user="D001", department="NK", order=order)
        status, found = await post(client, envelope(asked, V12), V12)
        assert status == 200, fault_text(found)
        answer = found.find("answer")
        assert (answer.findtext("reminds"), answer.findtext("order"), answer.findtext("priceFen")) == (
            "true",
            "d1",
            "3000",
        )
        assert "北岭镇卫生院" in answer.findtext("summaryZh")
        card = answer.findtext("id")
        said = operation("RecordDecision", reminder=card, action="adopt", user="D001")
        for new in ("true", "false"):
            _, told = await post(client, envelope(said))
            assert (told.findtext("action"), told.findtext("new")) == ("adopt", new)
            assert "尿素 6.30 mmol/L" in told.findtext("citationZh")
        refused = operation("RecordDecision", reminder=card, action="decline", user="D001", reason="9")
        status, told = await post(client, envelope(refused))
        assert status == 500
        assert told.findtext("faultcode") == "env:Client"
        assert "reason is one of" in fault_text(told)

    play(scenario, database_url, tmp_path)
    assert [r["kind"] for r in ledger_rows(database_url)] == ["reminder", "decision", "citation"]


def test_every_reason_is_recorded_and_revoked_by_soap_as_the_json_door_reads_it(
    database_url: str, tmp_path: Path
) -> None:
    """The six reasons of 国卫医发〔2022〕6号, each taken back, in both versions of SOAP; the question is answered as by JSON."""
    county = County(database_url, rules_module.load())
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    county.report("north-township", there, "r1", RENAL, NOW - timedelta(days=1))
    told = f"<t:by>D001</t:by><t:at>{NOW.isoformat()}</t:at>"

    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        question = {"patient": here, "user": "D001", "orders": [{"code": "SGN", "id": "d1"}]}
        plain = (await client.post("/recognition/check", json=question)).json()["answers"][0]
        order = "<t:code>SGN</t:code><t:id>d1</t:id>"
        _, found = await post(client, envelope(operation("CheckRecognition", patient=here, user="D001", order=order)))
        answer = found.find("answer")
        assert json.loads(answer.findtext("detail")) == plain["decision"]
        told_alike = [answer.findtext(n) for n in ("outcome", "summaryZh", "summaryEn", "priceFen", "report")]
        summary = plain["summary"]
        assert told_alike == [
            *(plain["outcome"], summary["zh"], summary["en"], str(plain["price_fen"]), *plain["reports"])
        ]
        card = answer.findtext("id")
        for number in range(1, 7):
            space = V12 if number % 2 else V11
            said = {"reminder": card, "user": "D001", "reason": str(number), "told": told, "text": "病情变化"}
            status, one = await post(
                client, envelope(operation("RecordDecision", action="decline", **said), space), space
            )
            assert (status, one.findtext("action"), one.findtext("new")) == (200, "decline", "true"), fault_text(one)
            back = operation("RecordDecision", reminder=card, user="D001", action="revoke", revokes=one.findtext("id"))
            status, two = await post(client, envelope(back, space), space)
            assert (status, two.findtext("action")) == (200, "revoke"), fault_text(two)
        line = (await client.get("/recognition/decisions", params={"reminder": card})).json()["decisions"]
        assert [d["reason"]["code"] for d in line if d["action"] == "decline"] == list("123456")
        assert [d["action"] for d in line] == ["decline", "revoke"] * 6

    play(scenario, database_url, tmp_path)


def test_a_vendors_own_web_service_takes_one_string_and_answers_as_the_profile_words_it(system: Any) -> None:
    def saved(xml: str) -> bytes:
        return envelope(
            f'<v:SaveExamInfoExXml xmlns:v="http://tempuri.org/"><v:key>k</v:key><v:xml>{escape(xml)}</v:xml></v:SaveExamInfoExXml>'
        )

    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        status, told = await post(client, saved(CDA.decode()), path="/soap/alpha")
        assert (status, told.tag) == (200, "SaveExamInfoExXmlResponse")
        answer = etree.fromstring(told.findtext("SaveExamInfoExXmlResult"))
        assert answer.findtext("Code") == "1"
        assert answer.findtext("Id").isdecimal()
        _, told = await post(client, saved("<CardiologyXML>secret & lies</CardiologyXML>"), path="/soap/alpha")
        answer = etree.fromstring(told.findtext("SaveExamInfoExXmlResult"))
        assert answer.findtext("Code") == "0"
        assert "unknown-format" in answer.findtext("Msg")
        assert "secret" not in answer.findtext("Msg")
        described = (await client.get("/soap/alpha?wsdl")).content
        assert b'targetNamespace="http://tempuri.org/"' in described
        assert b"/soap/alpha" in described
        assert (await client.get("/soap/nobody?wsdl")).status_code == 404
        _, told = await post(client, envelope("<Other/>"), path="/soap/alpha")
        assert "SaveExamInfoExXml" in fault_text(told)

    system(scenario)


TOKEN = (
    f'<w:Security xmlns:w="{WSSE}" s:mustUnderstand="1"><w:UsernameToken><w:Username>old-his</w:Username>'
    "<w:Password{}>{}</w:Password></w:UsernameToken></w:Security>"
)


@pytest.mark.parametrize(
    ("header", "status", "words"),
    [
        (TOKEN.format("", SECRET), 200, ""),
        (TOKEN.format("", "wrong"), 401, "not right"),
        (TOKEN.format(' Type="x#PasswordDigest"', SECRET), 500, "no digest"),
        ('<a:Action xmlns:a="urn:a" s:mustUnderstand="1">x</a:Action>', 500, "Action must be understood"),
        ("", 401, "bearer token"),
    ],
)
def test_who_calls_says_so_by_username_token_or_not_at_all(system: Any, header: str, status: int, words: str) -> None:
    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        del client.headers["Authorization"]
        body = envelope(operation("Submit", payload=escape(oru("M1").decode())), header=header)
        found, told = await post(client, body)
        assert found == status, etree.tostring(told)
        assert words in fault_text(told)

    system(scenario)


BOMB = '<!DOCTYPE s:Envelope [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (BOMB.encode() + envelope("<x>&b;</x>"), "xml-forbidden"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd">' + envelope("<x/>"), "xml-forbidden"),
        (envelope('<i:include xmlns:i="http://www.w3.org/2001/XInclude" href="/etc/passwd"/>'), "xml-forbidden"),
        (envelope("<a>" * 150 + "</a>" * 150), "xml-too-deep"),
        (envelope("<x><a/>" + "<a/>" * 60_000 + "</x>"), "xml-too-deep"),
        (envelope("<x>&unknown;</x>"), "xml-not-well-formed"),
        (b"<a/>", "not a SOAP envelope"),
        (b"", "xml-not-well-formed"),
        (b"\xff\xfe\x00", "charset-unknown"),
        (envelope(""), "one element"),
        (envelope("<Drop/>"), "operation is one of Submit"),
        (envelope(operation("Submit")), "payload is missing"),
        (envelope(operation("MessageStatus")), "id or controlId"),
        (envelope(operation("CheckRecognition", patient="1", user="2")), "order is missing"),
        (envelope(operation("Submit", payload="x", other="y")), "no element other"),
        (envelope(operation("QueryResults", patient="1", count="many")), "whole number"),
        (
            envelope(
                operation("Submit", payload='<x:Include xmlns:x="http://www.w3.org/2004/08/xop/include" href="cid:1"/>')
            ),
            "attachment",
        ),
        (b"<x>" + b"y" * soap_envelope.MAX_BYTES + b"</x>", "larger than 9000000 bytes"),
    ],
)
def test_an_envelope_made_to_hurt_gets_a_fault_that_says_why_and_the_server_stays_up(
    system: Any, raw: bytes, words: str
) -> None:
    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        for space, status in ((V11, 500), (V12, 400)):
            body = raw.replace(V11.encode(), space.encode())
            got, told = await post(client, body, space)
            assert (got, told.tag) == (status, "Fault")
            assert words in fault_text(told), fault_text(told)
            assert "Traceback" not in fault_text(told)
            assert "root:" not in fault_text(told)
        assert (await client.get("/soap?wsdl")).status_code == 200

    system(scenario)


def test_attachments_are_refused_by_their_content_type(system: Any) -> None:
    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        for media in ('multipart/related; type="application/xop+xml"; boundary=x', "application/json", ""):
            answer = await client.post("/soap", content=b"--x", headers={"content-type": media})
            assert answer.status_code == 415
            assert ("attachments" in answer.text) == media.startswith("multipart")

    system(scenario)


def test_a_payload_is_kept_in_the_character_set_it_declares() -> None:
    for text, codec in (
        ('<?xml version="1.0" encoding="GBK"?><a>张</a>', "gb18030"),
        ("MSH|^~\\&|LIS|A|||1||ORU^R01|1|P|2.4||||||GB 18030-2000\rPID|||1||张", "gb18030"),
        ("MSH|^~\\&|LIS|A|||1||ORU^R01|1|P|2.4\rPID|||1||张", "utf-8"),
        ('<?xml version="1.0" encoding="UTF-8"?><a>张</a>', "utf-8"),
    ):
        assert encoded(text) == text.encode(codec)
    assert encoded('<?xml version="1.0" encoding="latin1"?><a>张</a>') == (
        '<?xml version="1.0" encoding="UTF-8"?><a>张</a>'.encode()
    )
    assert encoded('<?xml version="1.0" encoding="utf-16"?><a>张</a>').startswith(
        b'<?xml version="1.0" encoding="UTF-8"'
    )


@pytest.mark.parametrize(
    ("raw", "taken"),
    [
        (oru("M1"), True),
        ("<?xml version='1.0' encoding='GBK'?><a>张</a>".encode("gb18030"), True),
        (b"\xef\xbb\xbf<a/>" + b" " * 20, True),
        (b"plain words that are no document", False),
    ],
)
def test_bytes_in_base64_are_the_document_when_they_start_like_one(raw: bytes, taken: bool) -> None:
    for text in (base64.b64encode(raw).decode(), base64.encodebytes(raw).decode().replace("\n", "\r\n  ")):
        assert (encoded(text) == raw) == taken
    assert encoded("BASE64LOOKINGWORDS") == b"BASE64LOOKINGWORDS"


def test_answers_hold_no_character_that_xml_forbids() -> None:
    found = soap_envelope.fault("1.2", Fault(Category.INVALID, "a\x00b\ud800c"))
    assert etree.fromstring(found[1]).findtext(f".//{{{V12}}}Text") == "a\ufffdb\ufffdc"
