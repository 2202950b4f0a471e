"""No name and no number of a patient reaches a log over the doors beside MLLP and FHIR: SOAP, messages over HTTP, relays, files,
images, polled databases, log-in and tokens, subscriptions, search parameters, order-time questions."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from pynetdicom import AE

from tests.ct_slices import ct_slice, part10
from tests.edge.conftest import Serve, Served, eventually
from tests.edge.test_log_privacy import LATIN, NAME, NUMBER, PATIENT, SECRETS, bundle, patient, secret_oru, spellings

PROFILE = """
id: alpha
organization: {name: 甲县人民医院}
senders: [{facility: ALPHA}]
identifiers: {patient: [PI, ""], resident_id: [NI]}
pacs: [{name: archive, dicomweb: 'http://127.0.0.1:9/dicom-web'}]
image_sources: [{name: ct, ae: CT, pixels: forward, pacs: archive, addresses: [127.0.0.1/32]}]
tables:
  - name: lab
    columns: {PID-3: 病人号, PID-5: 姓名, OBR-3: 报告单号, OBX-3: 项目代码, OBX-5: 结果, OBR-22: 报告时间}
    constants: {OBR-25: F, OBX-11: F}
polls:
  - {name: lis, database: east, source: lab_view, table: lab, report: [报告单号], seconds: 1, watermark: {column: 更新}}
  - {name: gone, database: east, source: no_such_view, table: lab, report: [报告单号], seconds: 1, watermark: {column: 更新}}
"""
SECRET = "0123456789abcdef0123456789abcdef"
TABLE = (
    f"病人号,姓名,报告单号,项目代码,结果,报告时间\n{PATIENT},{NAME},R1,WBC,{NAME},{NUMBER}\n"
    f",{NAME},{NUMBER},{NAME},6.3,2026-03-02 09:00\n"
)
VIEW = """
CREATE TABLE lab_rows (病人号 text, 姓名 text, 报告单号 text, 项目代码 text, 结果 text, 报告时间 text, 更新 timestamp);
CREATE VIEW lab_view AS SELECT * FROM lab_rows;
"""
CDA = f'<ClinicalDocument xmlns="urn:hl7-org:v3"><id root="{NUMBER}"/><title>{NAME}</title><effectiveTime value="{NUMBER}"/>'
ENVELOPE = (
    f'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Header><a xmlns="urn:{NAME}">{NUMBER}</a></s:Header>'
    f'<s:Body><SubmitMessage xmlns="urn:tongjian"><message>{NAME}</message><{LATIN}/></SubmitMessage></s:Body></s:Envelope>'
)
BODIES: tuple[tuple[str, bytes], ...] = (
    ("application/hl7-v2", secret_oru("DOOR1", **{"|5.6|": f"|{NAME}|"})),
    ("text/csv; charset=utf-8", TABLE.encode()),
    ("text/xml", CDA.encode()),
    ("application/xml", f"<!DOCTYPE a [<!ENTITY e '{NAME}'>]><a>&e;{NUMBER}</a>".encode()),
    ("text/xml", ENVELOPE.encode()),
    ("application/soap+xml", ENVELOPE.encode()[:-9]),
    ("application/json", json.dumps({"name": NAME, NUMBER: [LATIN], "patient": f"Patient/{NUMBER}"}).encode()),
    ("application/fhir+json", json.dumps(patient(gender=NAME)).encode()),
    (
        "application/x-www-form-urlencoded",
        f"username={NAME}&password={NUMBER}&token={NUMBER}&grant_type={LATIN}".encode(),
    ),
    (f"application/{LATIN}", NAME.encode("gb18030")),
)
POSTED = (
    *(
        "/messages",
        "/relay/messages",
        "/soap",
        "/soap/alpha",
        f"/soap/{NAME}",
        "/auth/token",
        "/auth/introspect",
        "/auth/revoke",
    ),
    *(
        "/auth/authorize",
        "/decisions",
        "/views",
        "/citations",
        "/recognition/check",
        "/recognition/visit",
        "/recognition/feedback",
    ),
    *(
        "/audit/findings",
        f"/audit/findings/{NUMBER}/verdict",
        "/audit/samples",
        "/fhir/Patient/$match",
        "/fhir/Patient/$validate",
    ),
    *(
        "/fhir/Patient/$break-glass",
        f"/fhir/Patient/{NUMBER}/$open-case",
        f"/fhir/Patient/{NUMBER}/$meta-add",
        "/fhir/$export",
    ),
    *(
        "/fhir/Observation/$lastn",
        "/fhir/CodeSystem/$lookup",
        "/fhir/ValueSet/$expand",
        "/fhir/Subscription",
        "/fhir/SearchParameter",
    ),
    *(
        "/fhir/Subscription/$status",
        "/cds-services/recognition-patient-view",
        f"/cds-services/{NAME}",
        "/audit/reviews",
    ),
)
READ = (
    *(
        f"/messages/{NUMBER}",
        f"/messages?control_id={NAME}&since={NUMBER}",
        f"/soap/{NAME}?wsdl={NUMBER}",
        f"/decisions/{NUMBER}",
    ),
    *(
        f"/decisions?patient={NUMBER}&since={NAME}",
        f"/reminders/{NAME}",
        f"/audit/findings?patient={NUMBER}&limit={NAME}",
    ),
    *(f"/audit/duplicates?from={NUMBER}", f"/measures?from={NAME}", f"/imaging/ImagingStudy/{NUMBER}/thumbnail"),
    *(
        f"/imaging/ImagingStudy/{NUMBER}/series/{LATIN}/instances/{NAME}/rendered?viewport={NUMBER}",
        f"/audit/opened?patient={NAME}",
    ),
    *(
        f"/auth/authorize?client_id={NAME}&redirect_uri=http://{NUMBER}&state={LATIN}",
        f"/fhir/Patient/{NUMBER}/$everything?start={NAME}",
    ),
    *(f"/fhir/Observation/$lastn?patient={NUMBER}&code={NAME}", f"/fhir/ValueSet/$expand?url={NAME}&filter={NUMBER}"),
    *(
        f"/fhir/Subscription/{NUMBER}/$events?eventsSinceNumber={NAME}",
        f"/fhir/AuditEvent?patient={NUMBER}&date={NAME}",
    ),
)


def sweep(served: Served) -> None:
    """Every door with every body, as somebody who may and as somebody who may not."""
    with (
        served.client("integrator") as may,
        served.client("clinician") as clinician,
        served.client(token=False) as nobody,
    ):
        for path in POSTED:
            for kind, body in BODIES:
                assert may.post(path, content=body, headers={"Content-Type": kind}).status_code != 0
            clinician.post(path, content=BODIES[6][1], headers={"Content-Type": "application/json"})
            nobody.post(path, content=BODIES[8][1], headers={"Content-Type": BODIES[8][0]}, auth=(NAME, NUMBER))
        for path in READ:
            for http in (may, clinician, nobody):
                http.get(path)
        forged = ".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
            for part in (
                {"alg": "ES384", "kid": NAME},
                {"iss": f"http://127.0.0.1:9/{LATIN}", "sub": NUMBER, "name": NAME},
                [NUMBER],
            )
        )
        for token in (forged, f"{NUMBER}", forged[:-9]):
            nobody.get("/fhir/Patient", headers={"Authorization": f"Bearer {token}"})
            nobody.post(
                "/auth/token", data={"grant_type": "client_credentials", "client_assertion": token, "client_id": LATIN}
            )
            nobody.post("/auth/token", data={"grant_type": "refresh_token", "refresh_token": token, "client_id": LATIN})
        nobody.post("/messages", content=BODIES[0][1], auth=("old-his", SECRET), headers={"Content-Type": BODIES[0][0]})
        nobody.post(
            "/relay/messages",
            content=NAME.encode(),
            auth=("old-his", SECRET),
            headers={"Content-Type": "application/x-tongjian"},
        )


def subscribe(served: Served) -> None:
    """A subscriber that is away, at an address and behind a header that name the patient, and who is told of that patient."""
    wanted = {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": NAME,
        "criteria": f"Patient?identifier={NUMBER}",
        "channel": {
            "type": "rest-hook",
            "endpoint": f"http://127.0.0.1:9/{LATIN}",
            "payload": "application/fhir+json",
            "header": [f"X: {PATIENT}"],
        },
    }
    parameter = {
        "resourceType": "SearchParameter",
        "url": f"http://example.org/{LATIN}",
        "name": LATIN,
        "status": "active",
        "description": NAME,
        "code": LATIN.lower(),
        "base": ["Patient"],
        "type": "string",
        "expression": f"Patient.name.where(family = '{NAME}').given",
    }
    fhir = {"Content-Type": "application/fhir+json"}
    with served.client() as http:
        http.post("/fhir/Subscription", json=wanted, headers=fhir)
        steward = fhir | {"Authorization": f"Bearer {served.token('administrator')}"}
        http.post("/fhir/SearchParameter", json=parameter, headers=steward)
        http.post("/fhir/SearchParameter", json=parameter | {"expression": f"Patient.{NAME}("}, headers=steward)
        http.post(
            "/fhir",
            json=bundle("transaction", {"resource": patient(), "request": {"method": "POST", "url": "Patient"}}),
            headers=fhir,
        )


def images(port: int) -> None:
    """Objects with the name in every attribute, of a modality that may send and of one that may not, then what is no DICOM."""
    one = ct_slice(1)
    one.PatientName, one.PatientID, one.StudyDescription, one.AccessionNumber = (
        f"{LATIN}={NAME}",
        PATIENT,
        NAME,
        NUMBER[:16],
    )
    one.SpecificCharacterSet = "ISO_IR 192"
    for title in ("CT", LATIN):
        entity = AE(title)
        entity.add_requested_context(one.SOPClassUID)
        assoc = entity.associate("127.0.0.1", port, ae_title="TONGJIAN")
        if assoc.is_established:
            assoc.send_c_store(one)
            assoc.abort()
    for raw in (
        f"GET /{NAME} HTTP/1.1\r\n\r\n".encode(),
        b"\x01\x00\x00\x00\x01\x00" + NAME.encode() * 40,
        part10(one),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line, contextlib.suppress(OSError):
            line.sendall(raw)
            line.shutdown(socket.SHUT_WR)
            line.recv(4096)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_no_log_of_any_other_door_shows_a_name_or_a_number(serve: Serve, tmp_path: Path, database_url: str) -> None:
    drop = tmp_path / "drop" / "alpha"
    drop.mkdir(parents=True)
    for name, content in (
        (f"{NAME}.csv", TABLE.encode()),
        (f"{NUMBER}.hl7", secret_oru("FILE")),
        (f"{LATIN}.xml", CDA.encode()),
        (f"{NAME}.dcm", NAME.encode()),
    ):
        (drop / name).write_bytes(content)
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    clients, databases = tmp_path / "clients.toml", tmp_path / "databases.toml"
    clients.write_text(
        f'[[client]]\nid = "old-his"\nfacility = "alpha"\nscopes = ["system/*.cruds"]\nsecret_sha256 = "{digest}"\n',
        "utf-8",
    )
    url = urlsplit(database_url)
    with psycopg.connect(database_url) as conn:
        conn.execute(VIEW)
        conn.execute(
            "INSERT INTO lab_rows VALUES (%s, %s, %s, 'WBC', %s, %s, '2026-03-01 08:00')",
            (PATIENT, NAME, NUMBER, NAME, NUMBER),
        )
    databases.write_text(f'[east]\nurl = "postgresql+psycopg://{url.netloc}{url.path}"\n', "utf-8")
    databases.chmod(0o600)
    port = free_port()
    settings = {
        "log_level": "DEBUG",
        "dicom_port": port,
        "dicom_study_seconds": 1,
        "dicom_release_seconds": 0,
        "drop_dir": drop.parent,
        "drop_seconds": 0.2,
    }
    settings |= {
        "clients_file": clients,
        "databases_file": databases,
        "subscription_endpoints": "http://127.0.0.1:9/",
        "workers": 1,
    }
    with serve(PROFILE, **settings) as served, psycopg.connect(database_url, autocommit=True) as conn:
        subscribe(served)
        sweep(served)
        images(port)

        def settled() -> bool:
            waiting = conn.execute("SELECT count(*) FROM inbox WHERE status IN ('ready', 'claimed')").fetchone()
            polled = conn.execute("SELECT count(*) FROM poll WHERE looked IS NOT NULL OR fault IS NOT NULL").fetchone()
            left = [p for p in drop.iterdir() if p.is_file()]
            stored = conn.execute("SELECT count(*) FROM image_object").fetchone()
            return (waiting, polled, left, stored) == ((0,), (2,), [], (1,))

        assert eventually(settled, 120), served.log()[-3000:]
        held = conn.execute("SELECT count(*) FROM inbox WHERE status IN ('held', 'failed')").fetchone()
        assert held is not None
        assert held[0] > 3
    spelled = {spelling for secret in SECRETS for spelling in spellings(secret)}
    assert [line for line in served.log().splitlines() if any(s in line for s in spelled)] == []
