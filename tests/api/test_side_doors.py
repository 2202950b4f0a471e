"""Ways round the access rules that somebody found: each stays shut."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest

from conformance.systems import FACILITY, RESIDENT_ID
from fhir_server.access import default_scopes, issue_token
from fhir_server.store import access_refresh
from fhir_server.store.body import Codec
from tests.api.conftest import Api
from tests.identity.test_registry import resident_id

AIDS = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": "B20"}]}
BREAK_GLASS = {"resourceType": "Parameters", "parameter": [{"name": "reason", "valueString": "昏迷入院,查既往结果"}]}


def client(api: Api, role: str, scopes: str = "", facility: str = "county", patient: str = "") -> httpx.Client:
    granted = frozenset(scopes.split()) or default_scopes(role)
    now = datetime.now(UTC)
    token = issue_token(api.keys, "dr-li", role, facility, granted, ttl=timedelta(hours=1), now=now, patient=patient)
    return httpx.Client(base_url=api.base, timeout=30, headers={"Authorization": f"Bearer {token}"})


def treated(api: Api) -> str:
    """A patient whom the county treats."""
    patient = api.create(resourceType="Patient", name=[{"text": "张三"}])
    api.create(
        resourceType="Encounter", status="in-progress", subject={"reference": f"Patient/{patient}"},
        **{"class": {"code": "IMP"}}, period={"start": f"{datetime.now(UTC):%Y-%m-%d}"},
    )  # fmt: skip
    return patient


def test_past_versions_do_not_tell_of_a_report_that_is_sensitive_now(api: Api) -> None:
    patient = treated(api)
    about: dict[str, Any] = {"subject": {"reference": f"Patient/{patient}"}, "status": "final"}
    hidden = api.create(resourceType="Observation", code=AIDS, **about)
    report = api.create(resourceType="DiagnosticReport", code={"text": "检验报告"}, **about)
    with client(api, "clinician") as http:
        assert http.get(f"/DiagnosticReport/{report}").status_code == 200
        result = [{"reference": f"Observation/{hidden}"}]
        api.put(resourceType="DiagnosticReport", id=report, code={"text": "检验报告"}, result=result, **about)
        for door in (
            f"/DiagnosticReport/{report}",
            f"/DiagnosticReport/{report}/_history/1",
            f"/DiagnosticReport/{report}/_history",
        ):
            assert http.get(door).status_code == 404, door
        for door in ("/DiagnosticReport/_history", "/_history", f"/Patient/{patient}/$everything"):
            assert report not in http.get(door).text, door
    with client(api, "clinician", "user/*.rs user/Observation.rs?sensitivity=hiv") as http:
        assert http.get(f"/DiagnosticReport/{report}/_history/1").status_code == 200


@pytest.mark.parametrize("report_first", [True, False])
def test_a_result_under_the_heading_of_a_sensitive_report_says_nothing(api: Api, *, report_first: bool) -> None:
    patient = treated(api)
    about: dict[str, Any] = {"subject": {"reference": f"Patient/{patient}"}, "status": "final"}
    plain = {"resourceType": "Observation", "id": "r1", "code": {"text": "结果"}, "valueString": "阳性", **about}
    headed = {"resourceType": "DiagnosticReport", "id": "h1", "code": AIDS, "result": [{"reference": "Observation/r1"}]}
    other = {"resourceType": "Observation", "id": "r2", "code": {"text": "血钾"}, **about}
    written = [plain | {"valueString": "待查"}, plain, headed | about, other]
    for resource in [written[2], *written[:2], other] if report_first else written:
        api.put(**resource)
    with client(api, "clinician") as http:
        assert http.get("/Observation/r2").status_code == 200
        for door in ("/Observation/r1", "/Observation/r1/_history", "/Observation/r1/_history/1"):
            assert http.get(door).status_code == 404, door
        assert http.get(f"/Observation?subject=Patient/{patient}&_total=accurate").json()["total"] == 1
    with client(api, "clinician", "user/*.rs user/Observation.rs?sensitivity=hiv") as http:
        assert http.get("/Observation/r1").json()["valueString"] == "阳性"


@pytest.mark.parametrize("scopes", ["patient/*.rs", "user/Patient.rs?gender=male"])
def test_a_token_for_one_patient_or_some_breaks_no_glass(api: Api, scopes: str) -> None:
    mine, other = (api.create(resourceType="Patient", identifier=[{"system": "urn:x", "value": v}]) for v in "ab")
    named = {"name": "patient", "valueIdentifier": {"system": "urn:x", "value": "b"}}
    by_number = {"resourceType": "Parameters", "parameter": [*BREAK_GLASS["parameter"], named]}
    with client(api, "clinician", scopes, "south", patient=mine if "patient/" in scopes else "") as http:
        assert http.post(f"/Patient/{other}/$break-glass", json=BREAK_GLASS).status_code == 403
        assert http.post("/Patient/$break-glass", json=by_number).status_code == 403
    with client(api, "clinician", "user/Patient.rs", "south") as http:
        assert http.get(f"/Patient/{other}").status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        "Patient?family=张",
        "Patient?address-city=x",
        "Patient?_sort=birthdate",
        "Observation?subject:Patient.name=张三",
        "Observation?patient.phone=1",
        "Specimen?accession=S-1",
        "ServiceRequest?requisition=R-1",
        "Task?group-identifier=G-1",
        "DocumentReference?description=张三",
        "Composition?title=张三",
        "List?title=张三",
        "Patient?_has:Specimen:patient:accession=S-1",
        "Composition?_sort=title",
        "Observation?value-string=张三",
        "Observation?code:text=张三",
        "Patient?_has:Observation:patient:value-string=张三",
        "Specimen?container-id=S-1",
        "Condition?onset-info=张三",
    ],
)
def test_an_auditor_cannot_ask_for_what_is_left_out_of_what_he_sees(api: Api, query: str) -> None:
    with client(api, "auditor") as http:
        assert http.get(f"/{query}").status_code == 403
        assert http.post(f"/{query.partition('?')[0]}/_search", content=query.partition("?")[2],
                         headers={"Content-Type": "application/x-www-form-urlencoded"}).status_code == 403  # fmt: skip
        batch = {"resourceType": "Bundle", "type": "batch", "entry": [{"request": {"method": "GET", "url": query}}]}
        assert http.post("/", json=batch).json()["entry"][0]["response"]["status"].startswith("403")


def test_an_auditor_may_ask_for_what_he_sees(api: Api) -> None:
    with client(api, "auditor") as http:
        for query in (
            "Patient?gender=male",
            "ValueSet?title=x",
            "Observation?patient=x&code=718-7",
            "Patient?_lastUpdated=gt2020",
        ):
            assert http.get(f"/{query}").status_code == 200, query


@pytest.mark.parametrize(
    "about", ["Device", "Media", "Flag", "Task", "List", "Binary", "Bundle", "Basic", "Group", "Provenance"]
)
def test_what_is_about_another_houses_patient_is_hidden_whatever_its_type(api: Api, about: str) -> None:
    patient = {"reference": f"Patient/{api.create(resourceType='Patient')}"}
    told: dict[str, dict[str, Any]] = {
        "Device": {"patient": patient},
        "Media": {"subject": patient, "status": "completed", "content": {"url": "http://example.org/x"}},
        "Flag": {"subject": patient, "status": "active", "code": {"text": "x"}},
        "Task": {"for": patient, "status": "requested", "intent": "order"},
        "List": {"subject": patient, "status": "current", "mode": "working"},
        "Binary": {"contentType": "text/plain", "securityContext": patient, "data": "eA=="},
        "Bundle": {"type": "collection", "entry": [{"fullUrl": "urn:uuid:b4f94e3c-7ca5-4b8b-b1f5-7c0fbdbd1f0e",
                                                    "resource": {"resourceType": "Basic", "code": {"text": "x"}, "subject": patient}}]},
        "Basic": {"subject": patient, "code": {"text": "x"}},
        "Group": {"type": "person", "actual": True, "member": [{"entity": patient}]},
        "Provenance": {"target": [patient], "recorded": "2026-01-02T03:04:05Z", "agent": [{"who": {"display": "x"}}]},
    }  # fmt: skip
    made = api.create(resourceType=about, **told[about])
    with client(api, "clinician", facility="south") as http:
        assert http.get(f"/{about}/{made}").status_code == 404
        assert http.get(f"/{about}?_id={made}&_summary=count").json()["total"] == 0
        assert http.get(f"/{about}/{made}/_history").status_code == 404
        batch = {
            "resourceType": "Bundle",
            "type": "batch",
            "entry": [{"request": {"method": "GET", "url": f"{about}/{made}"}}],
        }
        assert http.post("/", json=batch).json()["entry"][0]["response"]["status"].startswith("404")
        assert http.get(f"/{about}/{made}", headers={"If-None-Match": 'W/"1"'}).status_code == 404
        assert http.get(f"/{about}/{made}?_elements=id").status_code == 404
        # As a condition it is what nobody has.
        assert http.delete(f"/{about}?_id={made}").status_code == 204
    assert api.http.get(f"/{about}/{made}").status_code == 200


PLACE = "urn:uuid:3c3151bd-1cbf-4d64-b04d-cd9187a4c6e0"


def about(patient: str) -> dict[str, str]:
    return {"reference": patient if ":" in patient else f"Patient/{patient}"}


def visit(patient: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Encounter", "status": "in-progress", "class": {"code": "AMB"}, "subject": about(patient), **more
    }  # fmt: skip


def test_what_a_clinician_writes_himself_opens_nothing_that_other_facilities_hold(api: Api) -> None:
    victim = {
        "resourceType": "Patient", "name": [{"text": "王建国"}], "gender": "male", "birthDate": "1962-05-17",
        "identifier": [{"system": RESIDENT_ID, "value": resident_id("19620517")}],
    }  # fmt: skip
    entry = [
        {"fullUrl": PLACE, "resource": victim, "request": {"method": "POST", "url": "Patient"}},
        {"resource": visit(PLACE), "request": {"method": "POST", "url": "Encounter"}},
    ]
    with client(api, "system", facility="north") as north:
        hidden = north.post("/Patient", json=victim).json()["id"]
        result = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": about(hidden)}
        secret = north.post("/Observation", json=result).json()["id"]

    def sees(http: httpx.Client) -> bool:
        return http.get(f"/Observation/{secret}").status_code == 200 or secret in http.get("/Observation").text

    with client(api, "clinician", facility="south") as http, client(api, "system", facility="south") as his:
        answer = http.post("/", json={"resourceType": "Bundle", "type": "transaction", "entry": entry})
        assert answer.status_code == 200, answer.text
        mine = answer.json()["entry"][0]["response"]["location"].split("/")[1]
        assert http.get(f"/Patient/{mine}").status_code == 200  # what his facility registered
        order = {"resourceType": "ServiceRequest", "status": "active", "intent": "order", "subject": about(mine)}
        task = {"resourceType": "Task", "status": "requested", "intent": "order", "for": about(mine)}
        mark = {"system": FACILITY, "value": "user:dr-li"}
        for more in (order, task, visit(mine, serviceProvider={"identifier": mark})):
            assert http.post(f"/{more['resourceType']}", json=more).status_code == 201
        assert not sees(http)
        # Nor does a patient whom the facility treats become somebody else.
        other = his.post("/Patient", json={"resourceType": "Patient", "name": [{"text": "钱乌有"}]}).json()["id"]
        assert his.post("/Encounter", json=visit(other)).status_code == 201
        assert http.put(f"/Patient/{other}", json={**victim, "id": other}).status_code == 403
        assert http.delete(f"/Patient/{other}").status_code == 204
        assert http.put(f"/Patient/{other}", json={**victim, "id": other}).status_code == 403
        assert not sees(http)
        # Break-glass opens the record for eight hours, and is no way to a treatment.
        opened = http.post(f"/Patient/{mine}/$break-glass", json=BREAK_GLASS)
        assert opened.status_code == 200 and sees(http)
        assert http.post("/ServiceRequest", json={**order, "subject": about(hidden)}).status_code == 201
        with psycopg.connect(api.database_url) as conn:
            conn.execute("DELETE FROM treatment WHERE facility LIKE 'user:%'")
        assert not sees(http)
        with psycopg.connect(api.database_url) as conn:
            access_refresh.begin(conn, again=True)
            while not access_refresh.step(conn, Codec.load(conn), datetime.now(UTC)).done:
                pass
        assert not sees(http)
        # What the system of the hospital tells counts.
        assert his.post("/Encounter", json=visit(mine)).status_code == 201
        assert sees(http)
