"""A subscriber is told what its client could read itself, no more; and the audit log says so before it is told."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fhir_server.publish.endpoints import Endpoints, NotAllowed
from fhir_server.settings import Settings
from fhir_server.smart_clients import Client
from tests.publish.his import order, result
from tests.publish.subscriber import World, eventually, world

DOCUMENT = Path(__file__).parents[2] / "docs" / "subscriptions.md"


@pytest.fixture
def here(database_url: str, tmp_path: Path) -> Iterator[World]:
    with world(database_url, tmp_path) as made:
        yield made


def as_(here: World, token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def told_to(here: World, one: str) -> list[Any]:
    return [g for g in here.hook.of_type("event-notification") if g.status["subscription"]["reference"].endswith(one)]


def test_a_clinician_is_told_of_patients_his_facility_treats_and_a_number_tells_nothing_of_others(here: World) -> None:
    # the township has an order of person 1 alone
    here.county.store("town", order("o1", person=1))
    doctor = here.token("clinician", "user/*.cruds", facility="town", subject="doctor")
    mine, every = here.subscribe(token=doctor, content="full-resource"), here.subscribe()
    with here.sending():
        here.active(every)
        for person in (2, 1, 2):
            number = f"{person}-{len(here.hook.got)}"
            here.county.store("lab", result(number, person=person, number=f"F{number}", placer=f"X{number}"))
            here.county.until_published()
        eventually(lambda: here.state(every)["events-since-subscription-start"] == "3")
        eventually(lambda: told_to(here, mine) and len(told_to(here, every)) == 3)
    (got,) = told_to(here, mine)
    assert got.events[0]["event-number"] == "1"
    names = [
        e["resource"]["name"][0]["text"] for e in got.bundle["entry"] if e["resource"]["resourceType"] == "Patient"
    ]
    assert names == ["王建国1"]
    # His own Subscription he sees, that of the integrator he does not.
    assert here.api.http.get(f"/Subscription/{mine}", headers=as_(here, doctor)).status_code == 200
    assert here.api.http.get(f"/Subscription/{every}", headers=as_(here, doctor)).status_code == 404
    assert here.api.http.get(f"/Subscription/{every}/$events", headers=as_(here, doctor)).status_code == 404
    found = here.api.http.get("/Subscription", headers=as_(here, doctor)).json()
    assert [e["resource"]["id"] for e in found["entry"]] == [mine]
    # what was sent about the patient stands in the audit log, with who was told
    rows = here.county.sql('SELECT entry FROM audit_entry WHERE entry LIKE \'%"interaction":"notification"%\'')
    entries = [json.loads(r[0]) for r in rows]
    (entry,) = [e for e in entries if e["subject"] == "doctor"]
    assert (entry["facility"], entry["address"], len(entry["patients"])) == ("town", "127.0.0.1", 1)
    assert entry["resource"] == f"Subscription/{mine}"


def test_sensitive_results_reach_only_who_holds_the_grant(here: World) -> None:
    plain = here.subscribe(token=here.token("system", "system/*.cruds", subject="a"))
    granted = here.subscribe(
        token=here.token("system", "system/*.cruds", "system/Observation.rs?sensitivity=hiv", subject="b")
    )
    with here.sending():
        here.active(plain, granted)
        changes = here.county.store("lab", result("1"))
        here.county.until_published()
        for c in changes:
            here.county.sql("UPDATE resource SET sensitivity = 1 WHERE id = %s", c.id)
        eventually(lambda: told_to(here, plain) and told_to(here, granted))
        here.county.store("lab", result("2", number="F2", placer="P2", person=2))
        here.county.until_published()
    shown = here.api.http.get(
        f"/Subscription/{plain}/$events", headers=as_(here, here.token("system", "system/*.rs", subject="a"))
    ).json()
    events = [p for p in shown["entry"][0]["resource"]["parameter"] if p["name"] == "notification-event"]
    # what became sensitive since is told by number and time alone
    assert [[part["name"] for part in e["part"]] for e in events] == [
        ["event-number", "timestamp"],
        ["event-number", "timestamp", "focus"],
    ]


def test_types_the_token_does_not_read_are_not_told_of(here: World) -> None:
    orders = here.token("system", "system/Subscription.cruds", "system/ServiceRequest.rs", subject="c")
    answer = here.api.http.post("/Subscription", json=here.draft(), headers=as_(here, orders))
    assert answer.status_code == 403
    observations = here.token("system", "system/Subscription.cruds", "system/Observation.rs", subject="d")
    refused = here.draft("result-new", "Patient?name=x")
    assert here.api.http.post("/Subscription", json=refused, headers=as_(here, observations)).status_code == 403
    auditor = here.token("auditor", "user/*.rs", subject="e")
    assert here.api.http.post("/Subscription", json=here.draft(), headers=as_(here, auditor)).status_code == 403


def test_a_client_that_is_registered_no_more_is_told_nothing(here: World) -> None:
    scopes = frozenset({"system/*.cruds"})
    here.clients["app"] = Client("app", "app", "town", scopes, keys=None)
    one = here.subscribe(token=here.token("system", *scopes, subject="app"))
    with here.sending():
        here.active(one)
        here.clients["app"] = replace(here.clients["app"], facility="village")
        here.county.store("lab", result("1"))
        eventually(lambda: here.resource(one)["status"] == "off", lambda: here.state(one))
    assert "no longer registered" in here.resource(one)["error"]
    assert here.hook.of_type("event-notification") == []


def test_a_header_that_is_not_shown_stays_for_the_same_client_and_endpoint_alone(here: World) -> None:
    one = here.subscribe(header=["X-Key: s3cret"])
    read = here.resource(one)
    assert "s3cret" not in json.dumps([read, here.api.http.get(f"/Subscription/{one}/_history").json()])
    assert here.api.http.put(f"/Subscription/{one}", json=read | {"reason": "other"}).status_code == 200
    moved = read | {"channel": read["channel"] | {"endpoint": here.hook.url + "/other"}}
    assert here.api.http.put(f"/Subscription/{one}", json=moved).status_code == 422
    for role, status in (("system", 405), ("administrator", 422)):
        other = here.token(role, "system/*.cruds", subject="thief")
        assert here.api.http.put(f"/Subscription/{one}", json=read, headers=as_(here, other)).status_code == status
    with here.sending():
        here.active(one)
    assert here.hook.got[0].headers["X-Key"] == "s3cret"


# --- addresses ----------------------------------------------------------------------------------------------------------------------

LISTED = "https://his.example.org/fhir https://*.apps.example.org http://10.20.4.7:8080"


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://his.example.org/fhir", True),
        ("https://his.example.org/fhir/hook?a=b", True),
        ("https://HIS.example.org:443/fhir/hook", True),
        ("https://his.example.org/fhirx", False),
        ("https://his.example.org/", False),
        ("https://his.example.org/fhir/../admin", False),
        ("https://his.example.org/fhir/%2e%2e/admin", False),
        ("http://his.example.org/fhir", False),
        ("https://his.example.org:8443/fhir", False),
        ("https://his.example.org.evil.com/fhir", False),
        ("https://his.example.org@evil.com/fhir", False),
        ("https://one.apps.example.org/x", True),
        ("https://apps.example.org/x", False),
        ("https://evilapps.example.org/x", False),
        ("http://10.20.4.7:8080/x", True),
        ("http://10.20.4.7/x", False),
        ("https://his.example.org:99999/fhir", False),
    ],
)
def test_only_listed_addresses_are_called(url: str, allowed: bool) -> None:
    endpoints = Endpoints.of(Settings(subscription_endpoints=LISTED))
    if allowed:
        endpoints.require(url)
    else:
        with pytest.raises(NotAllowed):
            endpoints.require(url)


def test_a_name_that_leads_to_a_private_address_needs_its_network() -> None:
    def address(listed: str, networks: str, url: str) -> str:
        endpoints = Endpoints.of(Settings(subscription_endpoints=listed, subscription_networks=networks))
        return asyncio.run(endpoints.address(endpoints.require(url)))

    with pytest.raises(NotAllowed):
        address("http://localhost:9/", "", "http://localhost:9/x")
    assert address("http://localhost:9/", "127.0.0.0/8 ::1/128", "http://localhost:9/x") in ("127.0.0.1", "::1")
    assert address("http://127.0.0.1:9/", "", "http://127.0.0.1:9/x") == "127.0.0.1"


# --- the document -------------------------------------------------------------------------------------------------------------------


def test_the_example_of_the_document_works(database_url: str, tmp_path: Path) -> None:
    text = DOCUMENT.read_text("utf-8")
    drafts = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    settings = dict(re.findall(r'^(subscription_\w+) = "(.*)"$', text, re.MULTILINE))
    with world(database_url, tmp_path, settings) as here:
        (draft,) = drafts
        answer = here.api.http.post("/Subscription", json=draft)
        assert answer.status_code == 201, answer.text
        one = answer.json()["id"]
        for command in re.findall(r'"?http://127\.0\.0\.1:8080/fhir(/Subscription/<id>/[^"\s]+)', text):
            path = command.replace("<id>", one).replace("\\", "")
            assert here.api.http.get(path).status_code == 200, path
        patch = re.search(r"--data '(\[.*\])'", text)
        assert patch is not None
        headers = {"Content-Type": "application/json-patch+json"}
        assert here.api.http.patch(f"/Subscription/{one}", content=patch[1], headers=headers).status_code == 200
        statement = here.api.http.get("/metadata").json()
        resource = next(r for r in statement["rest"][0]["resource"] if r["type"] == "Subscription")
        for topic in (e["valueCanonical"] for e in resource["extension"]):
            assert f"`{topic.rpartition('/')[2]}`" in text
