"""JSON Patch (http://hl7.org/fhir/R4/http.html#patch, RFC 6902)."""

from __future__ import annotations

import base64
import json
import time
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

JSON_PATCH = {"Content-Type": "application/json-patch+json"}


def patch(api: Any, url: str, *operations: dict[str, Any], **headers: str) -> Any:
    return api.http.patch(url, content=json.dumps(operations), headers={**JSON_PATCH, **headers})


def op(op: str, path: str, **more: Any) -> dict[str, Any]:
    return {"op": op, "path": path, **more}


def test_a_patch_changes_what_it_names_and_keeps_every_digit(api: Any) -> None:
    text = '{"resourceType":"Observation","id":"o","status":"preliminary","code":{"text":"K"},"valueQuantity":{"value":6.30}}'
    api.http.put("/Observation/o", content=text, headers={"Content-Type": "application/fhir+json"})
    raw = '[{"op":"replace","path":"/status","value":"final"},{"op":"add","path":"/referenceRange","value":[{"low":{"value":4.10}}]}]'
    answer = api.http.patch("/Observation/o", content=raw, headers=JSON_PATCH)
    assert answer.status_code == 200, answer.text
    assert answer.headers["ETag"] == 'W/"2"'
    read = api.http.get("/Observation/o").text
    assert '"status":"final"' in read
    assert '"valueQuantity":{"value":6.30}' in read
    assert '"value":4.10}' in read
    assert api.ids("Observation?status=final") == ["o"]


def test_a_patch_that_changes_nothing_makes_no_version(api: Any) -> None:
    api.put(resourceType="Patient", id="p", gender="male")
    assert patch(api, "/Patient/p", op("replace", "/gender", value="male")).headers["ETag"] == 'W/"1"'
    assert patch(api, "/Patient/p").headers["ETag"] == 'W/"1"'


def test_if_match_guards_a_patch(api: Any) -> None:
    api.put(resourceType="Patient", id="p", gender="male")
    female = op("replace", "/gender", value="female")
    assert patch(api, "/Patient/p", female, **{"If-Match": 'W/"4"'}).status_code == 412
    assert patch(api, "/Patient/p", female, **{"If-Match": 'W/"1"'}).status_code == 200
    assert patch(api, "/Patient/p", female, **{"If-Match": 'W/"1"'}).status_code == 412


def test_prefer_says_what_a_patch_returns(api: Any) -> None:
    api.put(resourceType="Patient", id="p", gender="male")
    for wanted, kind in (("representation", "Patient"), ("OperationOutcome", "OperationOutcome")):
        answer = patch(api, "/Patient/p", op("add", "/active", value=True), Prefer=f"return={wanted}")
        assert answer.json()["resourceType"] == kind
    assert patch(api, "/Patient/p", op("remove", "/active"), Prefer="return=minimal").content == b""


@pytest.mark.parametrize(
    ("operations", "status"),
    [
        ([op("test", "/gender", value="female")], 422),
        ([op("test", "/active", value=1)], 422),
        ([op("test", "/multipleBirthInteger", value=True)], 422),
        ([op("remove", "/birthDate")], 422),
        ([op("replace", "/name/0/family", value="x")], 422),
        ([op("add", "/name/3", value={"text": "x"})], 422),
        ([op("add", "/gender/x", value="x")], 422),
        ([op("move", "/a/b", **{"from": "/nowhere"})], 422),
        ([op("copy", "/name", **{"from": "/gender"})], 422),
        ([op("replace", "/gender", value="other-one")], 422),
        ([op("replace", "/id", value="q")], 422),
        ([op("replace", "/resourceType", value="Person")], 422),
        ([op("replace", "", value={"resourceType": "Patient"})], 422),
        ([op("replace", "", value=[])], 422),
        ([op("remove", "")], 422),
        ([op("add", "/note", value="no such element")], 422),
        ([op("append", "/name", value=1)], 400),
        ([op("add", "name", value=1)], 400),
        ([op("add", "/name")], 400),
        ([{"op": "add", "path": 7, "value": 1}], 400),
        (["x"], 400),
        ({"op": "add"}, 400),
    ],
)
def test_a_patch_that_does_not_fit_changes_nothing(module_api: Any, operations: Any, status: int) -> None:
    module_api.put(resourceType="Patient", id="p", gender="male", active=True, multipleBirthInteger=1)
    before = module_api.http.get("/Patient/p").text
    answer = module_api.http.patch("/Patient/p", content=json.dumps(operations), headers=JSON_PATCH)
    assert answer.status_code == status, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert module_api.http.get("/Patient/p").text == before


def test_who_may_not_read_learns_nothing_from_what_he_patches(api: Any) -> None:
    api.put(resourceType="Patient", id="p", gender="female")
    only = {"Authorization": f"Bearer {api.token('system', 'system/Patient.u')}", "Prefer": "return=representation"}
    answer = patch(api, "/Patient/p", **only)
    assert (answer.status_code, answer.content) == (200, b"")
    binary = {
        "resourceType": "Binary",
        "contentType": JSON_PATCH["Content-Type"],
        "data": base64.b64encode(b"[]").decode(),
    }
    step = {"request": {"method": "PATCH", "url": "Patient/p"}, "resource": binary}
    for kind in ("batch", "transaction"):
        sent = api.http.post("/", json={"resourceType": "Bundle", "type": kind, "entry": [step]}, headers=only)
        assert "female" not in sent.text


def test_what_cannot_be_patched_is_told(api: Any) -> None:
    assert patch(api, "/Patient/none", op("add", "/active", value=True)).status_code == 404
    api.put(resourceType="Patient", id="p")
    api.http.delete("/Patient/p")
    assert patch(api, "/Patient/p", op("add", "/active", value=True)).status_code == 410
    answer = api.http.patch("/Patient/p", json={"resourceType": "Parameters"})
    assert answer.status_code == 415
    assert answer.headers["Accept-Patch"] == "application/json-patch+json"
    assert api.http.patch("/Patient/p", content=b"[{", headers=JSON_PATCH).status_code == 400
    assert api.http.patch("/Patient/p", content=b"[]", headers={**JSON_PATCH, "Accept": "text/xml"}).status_code == 406


def test_a_conditional_patch_changes_the_one_match(api: Any) -> None:
    male = op("add", "/gender", value="male")
    assert patch(api, "/Patient?identifier=1", male).status_code == 404
    api.put(resourceType="Patient", id="p", identifier=[{"value": "1"}])
    assert patch(api, "/Patient?identifier=1", male).json()["gender"] == "male"
    api.put(resourceType="Patient", id="q", identifier=[{"value": "1"}])
    assert patch(api, "/Patient?identifier=1", male).status_code == 412
    assert patch(api, "/Patient", male).status_code == 400


def test_a_transaction_patches(api: Any) -> None:
    api.put(resourceType="Observation", id="o", status="final", code={"text": "K"}, identifier=[{"value": "1"}])
    url = "urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a"
    document = [op("add", "/subject", value={"reference": url})]
    data = base64.b64encode(json.dumps(document).encode()).decode()
    binary = {"resourceType": "Binary", "contentType": JSON_PATCH["Content-Type"], "data": data}
    entries = [
        {"request": {"method": "GET", "url": "Observation/o"}},
        {"request": {"method": "PATCH", "url": "Observation?identifier=1"}, "resource": binary},
        {"fullUrl": url, "request": {"method": "POST", "url": "Patient"}, "resource": {"resourceType": "Patient"}},
    ]
    answer = api.http.post("/", json={"resourceType": "Bundle", "type": "transaction", "entry": entries})
    assert answer.status_code == 200, answer.text
    read, patched, made = (e["response"] for e in answer.json()["entry"])
    assert (read["status"], patched["status"], made["status"]) == ("200 OK", "200 OK", "201 Created")
    person = made["location"].partition("/_history")[0]
    assert answer.json()["entry"][0]["resource"]["subject"]["reference"] == person
    assert patched["etag"] == 'W/"2"'


def test_a_batch_reads_versions_heads_and_what_has_not_changed(api: Any) -> None:
    api.put(resourceType="Patient", id="p", gender="male", active=True)
    api.put(resourceType="Patient", id="p", gender="female", active=True)
    entries = [
        {"request": {"method": "GET", "url": "Patient/p/_history/1"}},
        {"request": {"method": "HEAD", "url": "Patient/p"}},
        {"request": {"method": "GET", "url": "Patient/p", "ifNoneMatch": 'W/"2"'}},
        {"request": {"method": "GET", "url": "Patient/p?_elements=gender"}},
        {"request": {"method": "GET", "url": "Patient/p/_history/9"}},
        {"request": {"method": "PATCH", "url": "Patient/p"}, "resource": {"resourceType": "Patient"}},
        {"request": {"method": "PATCH", "url": "Patient/p"}, "resource": 7},
    ]
    answer = api.http.post("/", json={"resourceType": "Bundle", "type": "batch", "entry": entries})
    found = answer.json()["entry"]
    told = [e["response"]["status"][:3] for e in found]
    assert told == ["200", "200", "304", "200", "404", "400", "400"]
    assert found[0]["resource"]["gender"] == "male"
    assert "resource" not in found[1]
    assert "resource" not in found[2]
    assert "active" not in found[3]["resource"]


def test_a_history_shows_what_was_current_at_a_time(api: Any) -> None:
    for gender in ("male", "female", "other"):
        api.put(resourceType="Patient", id="p", gender=gender)
        time.sleep(0.005)  # an instant here says milliseconds
    api.put(resourceType="Patient", id="q")
    first, second, third = (api.http.get(f"/Patient/p/_history/{n}").json()["meta"]["lastUpdated"] for n in (1, 2, 3))

    def shown(place: str, **parameters: str) -> list[str]:
        answer = api.http.get(f"/{place}", params=parameters)
        assert answer.status_code == 200, answer.text
        return [e["resource"]["id"] + e["resource"]["meta"]["versionId"] for e in answer.json().get("entry", [])]

    assert first < second < third
    assert shown("Patient/p/_history", _at=second) == ["p2"]
    assert shown("Patient/_history", _at=second) == ["p2"]
    assert shown("_history", _at=second) == ["p2"]
    assert shown("Patient/p/_history", _at="2001") == []
    today = (
        datetime.fromisoformat(third).astimezone(ZoneInfo("Asia/Shanghai")).date()
    )  # a date without a zone is of the server's
    assert shown("Patient/p/_history", _at=today.isoformat(), _count="2") == ["p3", "p2"]
    assert api.http.get("/Patient/p/_history?_at=soon").status_code == 400
    strict = {"Prefer": "handling=strict"}
    assert api.http.get("/Patient/p/_history?color=red").status_code == 200
    assert api.http.get("/Patient/p/_history?color=red", headers=strict).status_code == 400
