"""The audit log over the FHIR API: who reads it, how it is searched, and that what was refused stands in it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from conformance import validator
from fhir_server.access import default_scopes, issue_token
from tests.api.conftest import Api


def client(api: Api, role: str, subject: str, facility: str = "", scopes: str = "") -> httpx.Client:
    granted = frozenset(scopes.split()) or default_scopes(role)
    now = datetime.now(UTC)
    token = issue_token(api.keys, subject, role, facility, granted, ttl=timedelta(hours=1), now=now)
    return httpx.Client(base_url=api.base, timeout=30, headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
def auditor(api: Api) -> Iterator[httpx.Client]:
    with client(api, "auditor", "ma") as http:
        yield http


def found(http: httpx.Client, query: str) -> list[dict[str, Any]]:
    """All events of a search, all pages."""
    out: list[dict[str, Any]] = []
    url = f"/AuditEvent?{query}"
    while url:
        answer = http.get(url)
        assert answer.status_code == 200, answer.text
        bundle = answer.json()
        out += [e["resource"] for e in bundle.get("entry", [])]
        url = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), "")
    return out


def interactions(events: list[dict[str, Any]]) -> list[str]:
    return [e["subtype"][-1]["code"] for e in events]


def test_the_log_is_searched_by_date_agent_patient_and_outcome(api: Api, auditor: httpx.Client) -> None:
    one = api.create(resourceType="Patient", birthDate="1950-03-02")
    other = api.create(resourceType="Patient", birthDate="1951-03-02")
    with client(api, "integrator", "wang") as http:
        assert http.get(f"/Patient/{one}").status_code == 200
        assert http.get("/Patient?birthdate=gt1900").json()["entry"]
        assert http.get("/Patient/nobody").status_code == 404
    mine = found(auditor, "agent:identifier=wang")
    assert interactions(mine) == ["read", "search-type", "search-type", "read"]  # newest first; one for each patient
    assert [e["outcome"] for e in mine] == ["4", "0", "0", "0"]
    assert all(validator.check_fully(e) == [] for e in mine)
    assert [interactions(found(auditor, f"altid=wang&patient={p}")) for p in (one, other)] == [
        ["search-type", "read"],
        ["search-type"],
    ]
    assert interactions(found(auditor, f"altid=wang&entity=Patient/{other}")) == ["search-type"]
    assert interactions(found(auditor, f"altid=wang&entity=Patient/{one}&subtype=read")) == ["read"]
    assert interactions(found(auditor, "altid=wang&outcome=4")) == ["read"]
    assert interactions(found(auditor, "altid=wang&action=R&_sort=date&outcome=0")) == [
        "read",
        "search-type",
        "search-type",
    ]
    assert found(auditor, "altid=wang&agent-role=auditor") == found(auditor, "date=lt2001") == []
    today = datetime.now(UTC) - timedelta(hours=1)
    assert len(found(auditor, f"altid=wang&date=ge{today:%Y-%m-%dT%H:%M}Z&address=127.0.0.1&type=rest")) == 4
    # By its own id, and in pages of one.
    (event,) = found(auditor, f"_id={mine[1]['id']}")
    assert event == auditor.get(f"/AuditEvent/{mine[1]['id']}").json() == mine[1]
    assert found(auditor, "altid=wang&_count=1") == mine
    assert auditor.get("/AuditEvent?altid=wang&_total=accurate&_count=1").json()["total"] == 4
    counted = auditor.get(f"/AuditEvent?altid=wang&patient={one}&_summary=count")
    assert counted.json().get("total") == 2, counted.text
    assert auditor.get("/AuditEvent?entity-name=x").status_code == 400
    assert auditor.get("/AuditEvent?date=yesterday").status_code == 400
    # Who reads the log stands in it too.
    assert "search-type" in interactions(found(auditor, "altid=ma"))


def test_the_log_is_for_auditors_and_administrators_and_of_their_facility(api: Api, auditor: httpx.Client) -> None:
    patient = api.create(resourceType="Patient")
    with client(api, "integrator", "wang", "north") as http:
        http.get(f"/Patient/{patient}")
    (event,) = found(auditor, "altid=wang")
    for role in ("clinician", "integrator", "system"):
        with client(api, role, "li", "north") as http:
            assert found(http, "altid=wang") == []
            assert http.get(f"/AuditEvent/{event['id']}").status_code == 404
    with client(api, "administrator", "root") as http:
        assert found(http, "altid=wang") == [event]
    with client(api, "auditor", "ma", "north") as http:
        assert found(http, "altid=wang") == [event]
    with client(api, "auditor", "ma", "south") as http:
        assert found(http, "altid=wang") == []
        assert http.get(f"/AuditEvent/{event['id']}").status_code == 404
    with client(api, "auditor", "ma", scopes="user/Patient.rs") as http:
        assert http.get("/AuditEvent").status_code == 403
    with client(api, "auditor", "ma", scopes="user/AuditEvent.rs?date=lt2001") as http:
        assert found(http, "") == []


def test_events_that_others_sent_come_after_those_of_the_log(api: Api, auditor: httpx.Client) -> None:
    sent = api.create(
        resourceType="AuditEvent", type={"code": "rest"}, recorded="2026-01-02T03:04:05Z", outcome="8",
        agent=[{"requestor": True, "altId": "wang"}], source={"observer": {"display": "PACS"}},
    )  # fmt: skip
    assert [e["id"] for e in found(auditor, "altid=wang")] == [sent]
    assert auditor.get(f"/AuditEvent/{sent}").status_code == 200
    assert auditor.get("/AuditEvent?altid=wang&_total=accurate").json()["total"] == 1
    assert api.ids("AuditEvent") == [sent]  # for others there is nothing else


def test_a_refused_write_and_a_refused_search_stand_in_the_log(api: Api, auditor: httpx.Client) -> None:
    patient = api.create(resourceType="Patient")
    about = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
    with client(api, "clinician", "li", "south") as http:
        theirs = {**about, "subject": {"reference": f"Patient/{patient}"}}
        assert http.post("/Observation", json=theirs).status_code == 403
        assert http.put(f"/Patient/{patient}", json={"resourceType": "Patient", "id": patient}).status_code == 405
        assert http.put("/Observation/x", json={"resourceType": "Observation", "id": "x"}).status_code == 422
        entry = [{"resource": theirs, "request": {"method": "POST", "url": "Observation"}}]
        for kind in ("transaction", "batch"):
            http.post("/", json={"resourceType": "Bundle", "type": kind, "entry": entry})
    told = [(e["subtype"][-1]["code"], e["outcome"]) for e in found(auditor, "altid=li&_sort=date")]
    assert told == [
        ("create", "4"), ("update", "4"), ("update", "4"), ("transaction", "4"), ("batch", "0"), ("batch", "4"),
    ]  # fmt: skip
    assert auditor.get("/Patient?name=x").status_code == 403
    assert auditor.get("/Patient?_has:Observation:patient:identifier=1").status_code == 403
    assert [e["outcome"] for e in found(auditor, "altid=ma&outcome=4")] == ["4", "4"]
