"""Whether something is there is not told to who may not see it: a hidden id, a deleted one and one that nobody has answer alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, serving
from tests.api.test_side_doors import client

PATCH = {"Content-Type": "application/json-patch+json"}
FREE = "b34gip8ghmnjs375hslssojr"
"""Looks like an id of this server, but nothing has it."""
HIV = {"coding": [{"system": "http://loinc.org", "code": "56888-1"}]}


@dataclass
class Hidden:
    """Another facility's patient and results (one with an id of the client's choice, one deleted), and one that is sensitive."""

    api: Api
    patient: str
    observations: tuple[str, ...]
    sensitive: str


@pytest.fixture(scope="module")
def hidden(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hidden]:
    with serving(module_database_url, tmp_path_factory.mktemp("keys")) as api:
        with client(api, "system", facility="township") as http:

            def create(**resource: Any) -> str:
                answer = http.post(f"/{resource['resourceType']}", json=resource)
                assert answer.status_code == 201, answer.text
                return str(answer.json()["id"])

            patient = create(resourceType="Patient")
            about = {"subject": {"reference": f"Patient/{patient}"}}
            there, gone = (create(**observation("", **about)) for _ in "ab")
            assert http.delete(f"/Observation/{gone}").status_code == 204
            assert http.put("/Observation/chosen", json=observation("chosen", **about)).status_code == 201
            sensitive = create(**observation("", code=HIV))
        yield Hidden(api, patient, (there, gone, "chosen", FREE, "free"), sensitive)


def observation(logical: str, **more: Any) -> dict[str, Any]:
    named = {"id": logical} if logical else {}
    return {"resourceType": "Observation", **named, "status": "final", "code": {"text": "x"}, **more}


def bundle(kind: str, method: str, logical: str, **more: str) -> dict[str, Any]:
    entry = {"request": {"method": method, "url": f"Observation/{logical}", **more}}
    if method == "PUT":
        entry["resource"] = observation(logical)
    return {"resourceType": "Bundle", "type": kind, "entry": [entry]}


def about(patient: str, **more: Any) -> dict[str, Any]:
    return observation("", subject={"reference": f"Patient/{patient}"}, **more)


def told(answer: httpx.Response, logical: str) -> tuple[Any, ...]:
    """What an answer says, whatever the id."""
    headers = {n: v.replace(logical, "ID") for n, v in answer.headers.items() if n not in ("date", "content-length")}
    return answer.status_code, answer.text.replace(logical, "ID"), headers


ON_AN_ID: dict[str, tuple[int, Callable[[httpx.Client, str], httpx.Response]]] = {
    "read": (404, lambda c, i: c.get(f"/Observation/{i}")),
    "head": (404, lambda c, i: c.head(f"/Observation/{i}")),
    "vread": (404, lambda c, i: c.get(f"/Observation/{i}/_history/1")),
    "history": (404, lambda c, i: c.get(f"/Observation/{i}/_history")),
    "$meta": (404, lambda c, i: c.get(f"/Observation/{i}/$meta")),
    "$validate of a delete": (404, lambda c, i: c.get(f"/Observation/{i}/$validate?mode=delete")),
    "count": (200, lambda c, i: c.get(f"/Observation?_id={i}&_summary=count")),
    "update": (405, lambda c, i: c.put(f"/Observation/{i}", json=observation(i))),
    "update of a version": (
        405,
        lambda c, i: c.put(f"/Observation/{i}", json=observation(i), headers={"If-Match": 'W/"1"'}),
    ),
    "update of any version": (
        412,
        lambda c, i: c.put(f"/Observation/{i}", json=observation(i), headers={"If-Match": "*"}),
    ),
    "update of none": (
        405,
        lambda c, i: c.put(f"/Observation/{i}", json=observation(i), headers={"If-None-Match": "*"}),
    ),
    "conditional update": (405, lambda c, i: c.put(f"/Observation?_id={i}", json=observation(i))),
    "patch": (404, lambda c, i: c.patch(f"/Observation/{i}", content="[]", headers=PATCH)),
    "patch of a version": (
        404,
        lambda c, i: c.patch(f"/Observation/{i}", content="[]", headers={**PATCH, "If-Match": 'W/"1"'}),
    ),
    "conditional patch": (404, lambda c, i: c.patch(f"/Observation?_id={i}", content="[]", headers=PATCH)),
    "delete": (204, lambda c, i: c.delete(f"/Observation/{i}")),
    "delete of a version": (412, lambda c, i: c.delete(f"/Observation/{i}", headers={"If-Match": 'W/"1"'})),
    "conditional delete": (204, lambda c, i: c.delete(f"/Observation?_id={i}")),
    "update in a batch": (200, lambda c, i: c.post("/", json=bundle("batch", "PUT", i))),
    "update in a transaction": (405, lambda c, i: c.post("/", json=bundle("transaction", "PUT", i))),
    "update of a version in a transaction": (
        405,
        lambda c, i: c.post("/", json=bundle("transaction", "PUT", i, ifMatch='W/"1"')),
    ),
    "delete in a batch": (200, lambda c, i: c.post("/", json=bundle("batch", "DELETE", i))),
    "delete in a transaction": (200, lambda c, i: c.post("/", json=bundle("transaction", "DELETE", i))),
    "delete of a version in a transaction": (
        412,
        lambda c, i: c.post("/", json=bundle("transaction", "DELETE", i, ifMatch='W/"1"')),
    ),
    "a reference to it": (
        422,
        lambda c, i: c.post("/List", json={"resourceType": "List", "status": "current", "mode": "working",
                                           "entry": [{"item": {"reference": f"Observation/{i}"}}]}),
    ),
}  # fmt: skip
ON_A_PATIENT: dict[str, tuple[int, Callable[[httpx.Client, str], httpx.Response]]] = {
    "a result about him": (403, lambda c, i: c.post("/Observation", json=about(i))),
    "update": (405, lambda c, i: c.put(f"/Patient/{i}", json={"resourceType": "Patient", "id": i})),
    "a link to him": (
        422,
        lambda c, i: c.post("/Patient", json={"resourceType": "Patient",
                                              "link": [{"type": "seealso", "other": {"reference": f"Patient/{i}"}}]}),
    ),
    "$everything": (404, lambda c, i: c.get(f"/Patient/{i}/$everything")),
    "compartment": (200, lambda c, i: c.get(f"/Patient/{i}/Observation?_total=accurate")),
    "$lastn": (200, lambda c, i: c.get(f"/Observation/$lastn?patient=Patient/{i}")),
}  # fmt: skip


@pytest.mark.parametrize("door", ON_AN_ID)
def test_a_clinician_learns_nothing_of_an_id_that_is_hidden(hidden: Hidden, door: str) -> None:
    status, ask = ON_AN_ID[door]
    with client(hidden.api, "clinician", "user/*.cruds") as http:
        answers = [told(ask(http, i), i) for i in hidden.observations]
    assert answers == [answers[0]] * len(answers)
    assert answers[0][0] == status


@pytest.mark.parametrize("door", ON_A_PATIENT)
def test_a_clinician_learns_nothing_of_patients_of_others(hidden: Hidden, door: str) -> None:
    status, ask = ON_A_PATIENT[door]
    with client(hidden.api, "clinician", "user/*.cruds") as http:
        answers = [told(ask(http, i), i) for i in (hidden.patient, FREE, "free")]
    assert answers == [answers[0]] * len(answers)
    assert answers[0][0] == status


def test_a_system_without_the_grant_cannot_try_ids_of_this_server_but_may_give_its_own(hidden: Hidden) -> None:
    with client(hidden.api, "system", "system/*.cruds") as http:
        answers = [told(ON_AN_ID["update"][1](http, i), i) for i in (hidden.sensitive, FREE)]
        assert answers[0] == answers[1]
        assert answers[0][0] == 405
        for status in (201, 200):
            given = observation("given-by-a-system", valueString=str(status))
            assert http.put("/Observation/given-by-a-system", json=given).status_code == status
    assert hidden.api.http.get(f"/Observation/{hidden.sensitive}").json()["meta"]["versionId"] == "1"


def test_a_clinician_writes_about_a_patient_he_registers_in_the_same_transaction(hidden: Hidden) -> None:
    who, what = "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0", "urn:uuid:1c3151bd-1cbf-4d64-b04d-cd9187a4c6e0"
    report = {
        "resourceType": "DiagnosticReport",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": who},
    }
    entries = [
        (what, observation("", subject={"reference": who})),
        (who, {"resourceType": "Patient"}),
        ("urn:uuid:2c3151bd-1cbf-4d64-b04d-cd9187a4c6e0", {**report, "result": [{"reference": what}]}),
    ]
    entry = [
        {"fullUrl": url, "resource": r, "request": {"method": "POST", "url": r["resourceType"]}} for url, r in entries
    ]
    with client(hidden.api, "clinician", "user/*.cruds") as http:
        answer = http.post("/", json={"resourceType": "Bundle", "type": "transaction", "entry": entry})
        assert answer.status_code == 200, answer.text
        patient = answer.json()["entry"][1]["response"]["location"].split("/")[1]
        visit = {"resourceType": "Encounter", "status": "in-progress", "class": {"code": "AMB"}}
        assert (
            http.post("/Encounter", json={**visit, "subject": {"reference": f"Patient/{patient}"}}).status_code == 201
        )
        seen = http.get(f"/DiagnosticReport?patient={patient}").json()["entry"]
        found = seen[0]["resource"]
        assert http.put(f"/DiagnosticReport/{found['id']}", json={**found, "conclusion": "y"}).status_code == 200


def test_subscriptions_of_others_are_seen_by_those_who_look_after_the_installation_alone(
    serve: Callable[..., Any],
) -> None:
    sent = {
        "resourceType": "Subscription", "status": "off", "reason": "x", "criteria": "Observation?code=1",
        "channel": {"type": "rest-hook", "endpoint": "https://hooks.example/x"},
    }  # fmt: skip
    with serve(subscription_endpoints="https://hooks.example") as api, client(api, "system") as other:
        logical = api.create(**sent)
        doors = (
            f"/Subscription/{logical}", f"/Subscription/{logical}/_history", f"/Subscription/{logical}/_history/1",
            f"/Subscription/{logical}/$status", f"/Subscription/{logical}/$events",
        )  # fmt: skip
        lists = (
            "/Subscription?url=https://hooks.example/x",
            "/Subscription",
            "/Subscription/_history",
            "/_history",
            "/Subscription/$status",
        )
        with client(api, "administrator") as steward:
            for there in (True, False):
                if not there:
                    assert api.http.delete(f"/Subscription/{logical}").status_code == 204
                for door in doors:
                    assert other.get(door).status_code == 404, door
                    assert steward.get(door).status_code in ((200,) if there else (200, 410)), door
                for door in lists:
                    assert logical not in other.get(door).text, door
                assert other.put(f"/Subscription/{logical}", json={**sent, "id": logical}).status_code == 405
                assert other.delete(f"/Subscription/{logical}").status_code == 204
            assert logical in steward.get("/Subscription/_history").text
