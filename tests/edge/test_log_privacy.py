"""No name and no number of a patient reaches a log: every way to fail, on a server that runs with its own PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest

from fhir_server.store import embedded
from tests.edge.conftest import Serve, Served, eventually, exchange

# Invented. The number has a valid check digit (GB 11643), the region code is none of GB/T 2260.
NAME = "欧阳隐名"
LATIN = "OuyangYinming"
NUMBER = "990121195203075114"
PATIENT = "MRN7730915"
PHONE = "13900077341"
SECRETS = (NAME, LATIN, NUMBER, PATIENT, PHONE)


def spellings(secret: str) -> set[str]:
    """The ways a careless log would show it."""
    return {
        secret,
        quote(secret),
        json.dumps(secret)[1:-1],
        repr(secret.encode())[2:-1],
        repr(secret.encode("gb18030"))[2:-1],
        secret.encode().decode("latin-1"),
        secret.encode().hex(),
    }


def secret_oru(control_id: str, **changed: str) -> bytes:
    """A message full of them; ``changed``: text to replace -> by what."""
    text = (
        f"MSH|^~\\&|LIS|ALPHA|TJ|TJ|20260301080000||ORU^R01^ORU_R01|{control_id}|P|2.5.1||||||UNICODE UTF-8\r"
        f"PID|1||{PATIENT}^^^ALPHA^PI~{NUMBER}^^^^NI||{NAME}^{LATIN}||19520307|M|||某路1号||{PHONE}\r"
        f"OBR|1||R{control_id}|BIO^生化|||20260301080000|||||||||||||||20260301080000|||F\r"
        f"OBX|1|NM|T1^项目||5.6|mmol/L|3.9-6.1|N|||F|||20260301080000\r"
    )
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new)
    return text.encode("utf-8", "surrogatepass")


def messages() -> Iterator[bytes]:
    """Bad messages of each kind."""
    yield secret_oru("OK")
    yield secret_oru("OK", **{"|5.6|": f"|{NAME} {NUMBER}|"})  # the same control id, other bytes
    yield NAME.encode() + b" is no message " + NUMBER.encode()
    yield secret_oru("FOREIGN", ALPHA=NAME)
    yield secret_oru("NOBODY", **{"|ALPHA|": "||"})
    yield secret_oru("CHARSET", **{"UNICODE UTF-8": NAME})
    yield secret_oru("CHARSET2", **{"UNICODE UTF-8": "ISO IR99"})
    yield secret_oru("TRIGGER", **{"ORU^R01^ORU_R01": f"{LATIN}^{NUMBER}"})
    yield secret_oru(NUMBER)
    yield secret_oru("NOKEY", **{f"{PATIENT}^^^ALPHA^PI~{NUMBER}^^^^NI": ""})
    yield secret_oru(
        "DATES",
        **{"19520307": NUMBER, "|20260301080000|||||||||||||||20260301080000|": f"|{NAME}|||||||||||||||{NUMBER}|"},
    )
    yield secret_oru("STATUS", **{"|||F|||20260301080000": f"|||{LATIN}|||{NUMBER}"})
    yield secret_oru("TYPE", **{"|NM|": f"|{LATIN}|", "5.6": f"{NAME}{NUMBER}"})
    yield secret_oru("UNIT", **{"mmol/L": NAME, "3.9-6.1": NUMBER, "T1^项目": f"{NUMBER}^{NAME}"})
    yield secret_oru("NUL", **{NAME: f"{NAME}\x00{LATIN}"})
    yield secret_oru("SURROGATE", **{NAME: f"{NAME}\ud800"})
    yield secret_oru("BYTES").replace("某路".encode(), b"\xff\xfe\xfa")
    yield secret_oru("TWO") + secret_oru("TWO2")
    yield secret_oru("LONG", **{"5.6": NAME * 30_000})
    yield secret_oru("DEEP", **{"5.6": f"{NAME}&" * 2000})
    yield b"MSH|^~\\&|LIS|ALPHA\rPID|1||" + NUMBER.encode() + b"\r"
    yield b"BHS|^~\\&|" + NAME.encode() + b"\r" + secret_oru("BATCH")


def patient(**more: Any) -> dict[str, Any]:
    """A resource full of them."""
    name = [{"family": NAME, "given": [LATIN]}]
    return {"resourceType": "Patient", "name": name, "identifier": [{"value": NUMBER}]} | more


def bundle(kind: str, *entries: dict[str, Any]) -> dict[str, Any]:
    """Of entries."""
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def api_errors(http: httpx.Client) -> None:
    """Requests that fail, and some that do not, each with names and numbers in every place a client can put them."""
    fhir = {"Content-Type": "application/fhir+json"}
    searches = [
        f"name={NAME}&identifier=urn:x|{NUMBER}",
        f"nonsense={NAME}",
        f"birthdate={NUMBER}{NAME}",
        f"_count={NAME}",
        f"_sort={NAME}",
        f"_include={NAME}:{NUMBER}",
        f"name:{LATIN}={NAME}",
        f"identifier={NUMBER}%00{NAME}",
        f"_lastUpdated=gt{NUMBER}",
        f"family={'%2C'.join([NAME] * 1200)}",
    ]
    for query in searches:
        for headers in ({}, {"Prefer": "handling=strict"}):
            http.get(f"/fhir/Patient?{query}", headers=headers)
            http.get(f"/fhir/Observation?{query}&subject:Patient.name={NAME}", headers=headers)
        http.post(
            "/fhir/Patient/_search",
            content=query.encode(),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
    for path in (NUMBER, f"{NUMBER}/_history/{LATIN}", f"{NAME}/_history?_since={NAME}", f"{NUMBER}/${LATIN}"):
        for method in ("GET", "DELETE", "PUT", "PATCH", "POST"):
            http.request(method, f"/fhir/Patient/{path}", json=patient(), headers=fhir)
    http.get(f"/fhir/{NAME}/{NUMBER}?{NAME}={NUMBER}")
    http.get(f"/{NAME}")
    bodies = [
        f'{{"resourceType": "Patient", "name": [{{"family": "{NAME}"'.encode(),
        NAME.encode("gb18030"),
        json.dumps(patient(birthDate=NUMBER, gender=NAME, deceasedBoolean=LATIN)).encode(),
        json.dumps({"resourceType": NAME, NUMBER: LATIN}).encode(),
        json.dumps([NAME]).encode(),
        json.dumps(patient(extension=[{"url": NAME}], contact=[{"name": {"text": NUMBER}}])).encode(),
        b'{"resourceType": "Patient", "x": ' * 200 + NAME.encode(),
        json.dumps(
            bundle("transaction", {"resource": patient(gender=NAME), "request": {"method": NAME, "url": NUMBER}})
        ).encode(),
        json.dumps(
            bundle("batch", {"resource": patient(), "request": {"method": "PUT", "url": f"Patient/{NUMBER}?{NAME}"}})
        ).encode(),
    ]
    for body in bodies:
        for path in ("/fhir/Patient", f"/fhir/Patient/{NUMBER}", "/fhir", "/fhir/Observation"):
            http.request("PUT" if path.endswith(NUMBER) else "POST", path, content=body, headers=fhir)
        for service in ("recognition-order-sign", "recognition-order-sign/feedback", NUMBER):
            http.post(f"/cds-services/{service}", content=body)
    http.post("/fhir/Patient", json=patient(), headers=fhir | {"If-None-Exist": f"nonsense={NUMBER}"})
    http.put(f"/fhir/Patient/{NUMBER}", json=patient(id=NUMBER), headers=fhir | {"If-Match": LATIN})
    http.get("/fhir/Patient", headers={"Authorization": f"Bearer {LATIN}.{NUMBER}.{PHONE}"})
    http.get(
        "/fhir/Patient",
        headers={"Authorization": f"Basic {LATIN}", "Accept": f"text/{LATIN}", "X-Forwarded-For": LATIN},
    )
    hook(http)


def hook(http: httpx.Client) -> httpx.Response:
    """A CDS Hooks call about a patient named by number."""
    draft = {"resourceType": "ServiceRequest", "status": "draft", "code": {"text": NAME}, "subject": {"display": NAME}}
    context = {
        "userId": LATIN,
        "patientId": f"urn:x|{NUMBER}",
        "draftOrders": bundle("collection", {"resource": draft}),
    }
    body = {"hook": "order-sign", "hookInstance": "6f0c8c7e-0000-4000-8000-000000000001", "context": context}
    return http.post("/cds-services/recognition-order-sign", json=body, headers={"Accept-Language": LATIN})


def send_all(served: Served) -> None:
    """Each bad message on a connection of its own, then frames that are none."""
    for message in messages():
        with (
            socket.create_connection(("127.0.0.1", served.mllp_port), timeout=30) as line,
            contextlib.suppress(OSError),
        ):
            exchange(line, message)
    for raw in (
        b"\x0b" + secret_oru("CUT")[:150],
        NUMBER.encode() + b"\x1c\r",
        b"\x0b" + secret_oru("A")[:99] + b"\x0b" + secret_oru("B"),
    ):
        with socket.create_connection(("127.0.0.1", served.mllp_port), timeout=30) as line:
            line.sendall(raw)
            line.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                line.recv(4096)
    with socket.create_connection(("127.0.0.1", served.http_port), timeout=30) as line:
        line.sendall(f"GET /fhir/Patient?name={NAME} HTTP/1.1\r\n{NAME}\r\n\r\n".encode())
        line.recv(4096)


@contextlib.contextmanager
def refusing(conn: psycopg.Connection[Any], table: str, condition: str) -> Iterator[None]:
    """A constraint that every new row of a table breaks."""
    conn.execute(f"ALTER TABLE {table} ADD CONSTRAINT refuse CHECK ({condition}) NOT VALID")
    try:
        yield
    finally:
        conn.execute(f"ALTER TABLE {table} DROP CONSTRAINT refuse")


@contextlib.contextmanager
def missing(conn: psycopg.Connection[Any], table: str) -> Iterator[None]:
    """A table is not there."""
    conn.execute(f"ALTER TABLE {table} RENAME TO away")
    try:
        yield
    finally:
        conn.execute(f"ALTER TABLE away RENAME TO {table}")


def settle(conn: psycopg.Connection[Any]) -> None:
    """Waits until the workers have looked at everything."""
    waiting = "SELECT count(*) FROM inbox WHERE status IN ('ready', 'claimed')"
    assert eventually(lambda: conn.execute(waiting).fetchone() == (0,), 60)


def send(served: Served, message: bytes) -> bytes:
    """One message on a connection of its own."""
    with socket.create_connection(("127.0.0.1", served.mllp_port), timeout=30) as line:
        return exchange(line, message)


def create(http: httpx.Client) -> int:
    """Status of an ordinary create."""
    return http.post("/fhir/Patient", json=patient(), headers={"Content-Type": "application/fhir+json"}).status_code


def constraints(served: Served, conn: psycopg.Connection[Any], http: httpx.Client) -> None:
    """The database refuses rows: a converter's, a client's, and the inbox's."""
    with refusing(conn, "source_patient", "name IS NULL"):
        send(served, secret_oru("REFUSED", **{PATIENT: f"{PATIENT}9"}))
        settle(conn)
        assert conn.execute("SELECT reason FROM inbox WHERE control_id = 'REFUSED'").fetchall() == [("store-refused",)]
    with refusing(conn, "resource", "deleted"):
        assert create(http) >= 500
    with refusing(conn, "inbox", "size < 9"):
        assert b"MSA|AE" in send(served, secret_oru("TOOBIG"))


def dependencies(served: Served, conn: psycopg.Connection[Any], http: httpx.Client) -> None:
    """Tables that are not there: exceptions that nobody expected."""
    for table in ("resource", "source_patient", "result", "audit_entry", "ledger", "inbox"):
        with missing(conn, table):
            status = http.get(f"/fhir/Patient?name={NAME}&identifier={NUMBER}").status_code
            assert (status >= 500) == (table in ("resource", "audit_entry"))
            create(http)
            hook(http)
            send(served, secret_oru(f"GONE{table}"))
    settle(conn)


def outages(url: str, conn: psycopg.Connection[Any], http: httpx.Client) -> None:
    """Queries that take too long, and connections cut off."""
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE resource IN ACCESS EXCLUSIVE MODE")
        assert http.get(f"/fhir/Patient?name={NAME}").status_code == 503
        hook(http)
    conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )


@pytest.mark.timeout(280)
def test_no_log_shows_a_name_or_a_number(serve: Serve, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serve(database="", log_level="DEBUG", statement_timeout_ms=1500, mllp_max_message=400_000) as served:
        server = embedded.start(data)
        try:
            with psycopg.connect(server.url, autocommit=True) as conn, served.client() as http:
                send_all(served)
                api_errors(http)
                settle(conn)
                assert conn.execute("SELECT count(*) FROM inbox WHERE status = 'held'").fetchone() != (0,)
                constraints(served, conn, http)
                dependencies(served, conn, http)
                outages(server.url, conn, http)
                send_all(served)
                api_errors(http)
                settle(conn)
            time.sleep(1)
        finally:
            server.stop()
    shown = served.log() + (data / "postgres" / "server.log").read_text(encoding="utf-8", errors="replace")
    assert "apply_failed" in shown
    assert "a request failed" in shown
    assert "violates check constraint" in shown
    spelled = {spelling for secret in SECRETS for spelling in spellings(secret)}
    assert [line for line in shown.splitlines() if any(s in line for s in spelled)] == []
    assert [line for line in served.log().splitlines() if not json.loads(line)["level"]] == []
