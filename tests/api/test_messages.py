"""Raw messages over HTTP (docs/connect-http.md): what the door takes, answers and tells, on the real database."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from joserfc.jwk import KeySet

from conformance import fhirjson
from conformance.capability import RESOURCE_TYPES
from fhir_server.access import issue_token
from fhir_server.ingest.worker import Worker
from fhir_server.services import Services
from fhir_server.smart_clients import Client
from fhir_server.store import reader
from mappings.profile import Profile, load_profiles
from tests.api.clinic import play

GOLDEN = Path(__file__).parents[1] / "mappings" / "golden"
CDA = (GOLDEN / "cda-c0007-blood-count.xml").read_bytes()
ECG = (GOLDEN / "ecg-muse-confirmed.xml").read_bytes()
TABLE = "病人号,姓名,报告单号,项目代码,项目名称,结果,报告时间\nP1,王小明,R1,WBC,白细胞,6.30,2026-03-02 09:00\n".encode()
ALPHA = """
id: alpha
organization: {name: 甲县人民医院}
senders: [{facility: ALPHA}]
identifiers: {patient: [PI, ""], resident_id: [NI]}
tables:
  - name: lab
    columns: {PID-3: 病人号, PID-5: 姓名, OBR-3: 报告单号, OBX-3: 项目代码, OBX-3.2: 项目名称, OBX-5: 结果, OBR-22: 报告时间}
    constants: {OBR-25: F, OBX-11: F}
"""
VILLAGE = """
id: village
organization: {name: 云溪县人民医院}
identifiers: {patient: [PI, ""]}
spoken_for_by: [alpha]
"""
BETA = "id: beta\norganization: {name: 乙镇卫生院}\nchannels: [{name: http, max_bytes: 2000}]\n"
SECRET = "0123456789abcdef0123456789abcdef"
CLIENT = Client(
    "old-his",
    "",
    "alpha",
    frozenset({"system/*.cruds"}),
    KeySet([]),
    hashlib.sha256(SECRET.encode()).hexdigest(),
)
NARROW = Client("reader", "", "alpha", frozenset({"system/*.rs"}), KeySet([]), CLIENT.secret)


def oru(number: str, facility: str = "ALPHA") -> bytes:
    return (
        f"MSH|^~\\&|LIS|{facility}|TJ|TJ|20260301080000||ORU^R01|{number}|P|2.5.1||||||UNICODE UTF-8\r"
        f"PID|1||100001^^^{facility}^PI||王^建国||19620517|M\r"
        f"OBR|1||{number}^LIS|GLU^血糖|||20260301070000|||||||||||||||20260301075900|||F\r"
        "OBX|1|NM|GLU^血糖||5.60|mmol/L|3.9-6.1|N|||F|||20260301070000\r"
    ).encode()


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Profile]:
    folder = tmp_path_factory.mktemp("profiles")
    (folder / "alpha.yaml").write_text(ALPHA, "utf-8")
    (folder / "village.yaml").write_text(VILLAGE, "utf-8")
    (folder / "beta.yaml").write_text(BETA, "utf-8")
    return load_profiles(folder)


@pytest.fixture
def sending(database_url: str, tmp_path: Path, profiles: Mapping[str, Profile]) -> Callable[..., None]:
    """Plays a scenario as a system of facility alpha that may write."""

    def run(scenario: Callable[[httpx.AsyncClient, Services], Awaitable[None]], **more: Any) -> None:
        given: dict[str, Any] = {"facility": "alpha", "scopes": "system/*.cruds", "role": "system", **more}
        play(
            scenario,
            database_url,
            tmp_path,
            profiles=profiles,
            clients={c.id: c for c in (CLIENT, NARROW)},
            clock=lambda: datetime.now(UTC),
            **given,
        )

    return run


def converted(url: str, profiles: Mapping[str, Profile]) -> None:
    """Runs a worker until nothing waits."""
    stop = threading.Event()
    worker = threading.Thread(target=Worker(url, profiles, stop).run)
    worker.start()
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            for _ in range(600):
                if conn.execute("SELECT count(*) FROM inbox WHERE status IN ('ready', 'claimed')").fetchone() == (0,):
                    return
                threading.Event().wait(0.1)
    finally:
        stop.set()
        worker.join(30)
    raise AssertionError("messages still wait")


def test_every_format_is_taken_and_its_fate_is_told(
    sending: Callable[..., None], database_url: str, profiles: Mapping[str, Profile]
) -> None:
    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        ids = {}
        for name, raw in (("hl7v2", oru("M1")), ("cda", CDA), ("muse", ECG), ("table", TABLE)):
            answer = await client.post("/messages", content=raw)
            assert answer.status_code == 202, answer.text
            (told,) = answer.json()["messages"]
            assert (told["format"], told["status"], told["repeated"]) == (name, "waiting", False)
            assert answer.headers["location"].endswith(f"/messages/{told['id']}")
            ids[name] = told["id"]
        again = (await client.post("/messages", content=CDA)).json()["messages"][0]
        assert (again["id"], again["repeated"]) == (ids["cda"], True)
        await asyncio.to_thread(converted, database_url, profiles)
        for name, number in ids.items():
            told = (await client.get(f"/messages/{number}")).json()
            assert (told["status"], told["format"], told["reason"]) == ("done", name, None)
            assert told["converted_at"] >= told["received_at"]
        found = (await client.get("/messages", params={"control_id": "M1"})).json()["messages"]
        assert [m["id"] for m in found] == [ids["hl7v2"]]

    sending(scenario)
    with psycopg.connect(database_url) as conn:
        found = conn.execute("SELECT facility, channel, format FROM inbox ORDER BY format").fetchall()
        # The document and the recording name the village, which alpha may speak for.
        village = ("cda", "muse")
        assert found == [("village" if f in village else "alpha", "http", f) for f in ("cda", "hl7v2", "muse", "table")]
        entries = conn.execute("SELECT count(*) FROM audit_entry WHERE entry LIKE '%submit-http%'").fetchone()
        values = {r[0] for r in conn.execute("SELECT number::text FROM result").fetchall()}
    assert entries == (5,)
    assert {"5.60", "6.30"} <= values


def test_a_body_of_several_messages_gives_an_answer_for_each_in_order(sending: Callable[..., None]) -> None:
    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        body = b"".join((oru("A1"), oru("A2", "OTHER"), oru("A3")))
        answer = await client.post("/messages", content=body)
        told = answer.json()["messages"]
        assert answer.status_code == 202
        assert [(m["control_id"], m["status"]) for m in told] == [("A1", "waiting"), ("A2", "held"), ("A3", "waiting")]
        assert told[1]["issues"][0]["key"] == "unknown-facility" and "issues" not in answer.json()
        short = b"BHS|^~\\&|LIS\r" + oru("A4") + b"BTS|3\r"
        answer = await client.post("/messages", content=short)
        assert [(i["key"], i["where"]) for i in answer.json()["issues"]] == [("batch-count", "BTS[1]-1")]

    sending(scenario)


def test_what_cannot_be_read_is_kept_held_and_said_without_its_content(sending: Callable[..., None]) -> None:
    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        bomb = b'<!DOCTYPE a [<!ENTITY x "x">]><ClinicalDocument>&x;</ClinicalDocument>'
        for raw, key in (
            (bomb, "xml-forbidden"),
            (b"<CardiologyXML><name>secret</name></CardiologyXML>", "unknown-format"),
            (b"nothing of this kind", "no-header"),
        ):
            answer = await client.post("/messages", content=raw)
            assert answer.status_code == 422
            (told,) = answer.json()["messages"]
            assert (told["status"], told["reason"], told["issues"][0]["key"]) == ("held", key, key)
            assert "secret" not in answer.text and "value" not in told["issues"][0]
        assert (await client.get("/messages/1")).status_code in (200, 404)

    sending(scenario)


@pytest.mark.parametrize(
    ("more", "headers", "content", "status", "words"),
    [
        ({"facility": ""}, {}, oru("M"), 403, "no facility"),
        ({"facility": "county-hospital"}, {}, oru("M"), 403, "no facility with a profile"),
        ({"scopes": "system/Observation.c"}, {}, oru("M"), 403, "system/*.c"),
        ({"role": "clinician", "scopes": "user/*.cruds"}, {}, oru("M"), 403, "role system or integrator"),
        ({"facility": "beta"}, {}, b"MSH|" + b"x" * 3000, 413, "2000 bytes"),
        ({}, {}, b"", 400, "empty"),
        ({}, {"content-type": "multipart/form-data; boundary=x"}, b"--x--", 415, "as a form"),
        ({}, {"content-encoding": "gzip"}, b"\x1f\x8b", 415, "compressed"),
        ({}, {"authorization": "Bearer nonsense"}, oru("M"), 401, "token"),
    ],
)
def test_what_the_door_refuses(
    sending: Callable[..., None],
    more: dict[str, str],
    headers: dict[str, str],
    content: bytes,
    status: int,
    words: str,
) -> None:
    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        answer = await client.post("/messages", content=content, headers=headers)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["issue"][0]["diagnostics"]

    sending(scenario, **more)


def test_a_facility_sees_its_own_messages_alone(sending: Callable[..., None]) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        number = (await client.post("/messages", content=oru("M1"))).json()["messages"][0]["id"]
        now = datetime.now(UTC)
        other = issue_token(services.keys, "x", "system", "beta", ["system/*.cruds"], ttl=timedelta(hours=1), now=now)
        headers = {"authorization": f"Bearer {other}"}
        assert (await client.get(f"/messages/{number}", headers=headers)).status_code == 404
        found = await client.get("/messages", params={"control_id": "M1"}, headers=headers)
        assert found.json() == {"messages": []}
        for bad in ("0", "x", "9" * 30, "²"):
            assert (await client.get(f"/messages/{bad}")).status_code == 404

    sending(scenario)


def test_a_system_that_can_sign_nothing_comes_with_id_and_secret_over_https(sending: Callable[..., None]) -> None:
    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        for auth, address, status in (
            ((CLIENT.id, SECRET), "https://t", 202),
            ((CLIENT.id, SECRET), "http://t", 202),  # from this machine
            ((CLIENT.id, SECRET + "x"), "https://t", 401),
            (("nobody", SECRET), "https://t", 401),
            ((NARROW.id, SECRET), "https://t", 403),
        ):
            answer = await client.post(f"{address}/messages", content=oru("M1"), auth=auth)
            assert answer.status_code == status, answer.text
            assert ("Basic" in answer.headers.get("www-authenticate", "")) == (status == 401)

    sending(scenario)


def test_id_and_secret_from_another_machine_without_tls_are_refused_with_the_reason(
    sending: Callable[..., None],
) -> None:
    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        near = client._transport
        assert isinstance(near, httpx.ASGITransport)
        far = httpx.ASGITransport(app=near.app, client=("10.1.2.3", 5))
        async with httpx.AsyncClient(transport=far, base_url="http://t") as elsewhere:
            answer = await elsewhere.post("/messages", content=oru("M1"), auth=(CLIENT.id, SECRET))
        assert answer.status_code == 403
        assert "HTTPS" in answer.text

    sending(scenario)


FIRST = (GOLDEN / "ecg-muse-unconfirmed.xml").read_bytes()


@pytest.mark.parametrize("county_first", [False, True])
def test_the_villages_recording_and_the_countys_over_reading_are_one_report_in_any_order(
    sending: Callable[..., None], database_url: str, profiles: Mapping[str, Profile], county_first: bool
) -> None:
    """The recording names the village (SiteName); the county, facility alpha, may speak for it and reads it over."""

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        now = datetime.now(UTC)
        scopes = ["system/*.cruds"]
        own = issue_token(services.keys, "x", "system", "village", scopes, ttl=timedelta(hours=1), now=now)
        village = {"authorization": f"Bearer {own}"}
        sent = [(FIRST, village), (ECG, dict(client.headers))]
        for raw, headers in reversed(sent) if county_first else sent:
            answer = await client.post("/messages", content=raw, headers={"authorization": headers["authorization"]})
            assert answer.status_code == 202, answer.text
            number = answer.json()["messages"][0]["id"]
            await asyncio.to_thread(converted, database_url, profiles)
            told = await client.get(f"/messages/{number}", headers={"authorization": headers["authorization"]})
            assert told.json()["status"] == "done"
        (row,) = await services.pool.fetch(
            "SELECT id FROM resource WHERE rtype = $1 AND NOT deleted", RESOURCE_TYPES["DiagnosticReport"]
        )
        stored = await reader.read(services.pool, services.codec, "DiagnosticReport", row["id"])
        assert stored is not None
        report = fhirjson.loads(stored.body)
        assert (report["status"], report["conclusion"]) == ("final", "窦性心律 正常心电图")

    sending(scenario)
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT DISTINCT facility FROM inbox").fetchall() == [("village",)]
