"""Everything the CapabilityStatement claims is called as it stands there, and what it does not claim is refused: each interaction,
conditional flag, search parameter, include and operation of every type, and those of the whole system."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import zstandard

from conformance.capability import RESOURCE_TYPES
from conformance.operations.served import definitions

FILE = Path(__file__).parents[1] / "data" / "fhir-r4" / "examples.ndjson.zst"
PATCH = {"Content-Type": "application/json-patch+json"}
VALUES = {
    "date": "2024-01-01",
    "token": "x",
    "reference": "Patient/x",
    "string": "x",
    "uri": "http://x",
    "quantity": "5.4||mg",
    "number": "5",
    "composite": "x$2024",
}
SYSTEM = "http://example.org/colours"
COLOURS = {
    "resourceType": "CodeSystem",
    "id": "colours",
    "url": SYSTEM,
    "status": "active",
    "content": "complete",
    "concept": [{"code": "red", "display": "Red"}],
}
SET = {
    "resourceType": "ValueSet",
    "id": "colours",
    "url": f"{SYSTEM}/set",
    "status": "active",
    "compose": {"include": [{"system": SYSTEM}]},
}
MAP = {
    "resourceType": "ConceptMap",
    "id": "colours",
    "url": f"{SYSTEM}/map",
    "status": "active",
    "group": [
        {
            "source": SYSTEM,
            "target": "http://example.org/numbers",
            "element": [{"code": "red", "target": [{"code": "1", "equivalence": "equivalent"}]}],
        }
    ],
}
META = {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"tag": [{"code": "claimed"}]}}]}
ASKED = {
    ("lookup", "type"): f"?system={SYSTEM}&code=red",
    ("validate-code", "type"): f"?url={{url}}&system={SYSTEM}&code=red",
    ("validate-code", "instance"): f"?system={SYSTEM}&code=red",
    ("translate", "type"): f"?url={SYSTEM}/map&system={SYSTEM}&code=red",
    ("translate", "instance"): f"?system={SYSTEM}&code=red",
    ("expand", "type"): f"?url={SYSTEM}/set",
    ("lastn", "type"): "?patient=Patient/colours",
}
"""Operation and level -> the query it is asked with, where it needs one."""


@pytest.fixture(scope="module")
def examples() -> dict[str, dict[str, Any]]:
    """The first official example of each type."""
    text = zstandard.ZstdDecompressor().decompress(FILE.read_bytes(), max_output_size=2**26).decode()
    found: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        resource = json.loads(line)
        found.setdefault(resource["resourceType"], resource)
    return found


@pytest.fixture(scope="module")
def claimed(module_api: Any) -> Any:
    """CapabilityStatement.rest of a server that has the resources the operations are asked about."""
    for resource in (COLOURS, SET, MAP, {"resourceType": "Patient", "id": "colours"}):
        module_api.put(**resource)
    return module_api.http.get("/metadata").json()["rest"][0]


def of_type(claimed: Any, kind: str) -> Any:
    (found,) = (r for r in claimed["resource"] if r["type"] == kind)
    return found


def test_every_served_type_is_claimed(claimed: Any) -> None:
    assert [r["type"] for r in claimed["resource"]] == list(RESOURCE_TYPES)


@pytest.mark.parametrize("kind", RESOURCE_TYPES)
def test_every_interaction_and_condition_of_a_type_that_is_claimed_is_served(
    module_api: Any, claimed: Any, examples: Any, kind: str
) -> None:
    http, told = module_api.http, of_type(claimed, kind)
    resource, place, one = examples[kind] | {"id": "claim"}, f"/{kind}/claim", f"/{kind}?_id=claim"
    same = [{"op": "test", "path": "/resourceType", "value": kind}]
    label = [{"op": "add", "path": "/meta", "value": {"tag": [{"code": "patched"}]}}]
    # What each is called with, in this order, and what it answers then.
    calls: dict[str, list[tuple[str, str, dict[str, Any], int]]] = {
        "update": [("PUT", place, {"json": resource}, 201), ("PUT", place, {"json": resource}, 200)],
        "patch": [
            ("PATCH", place, {"content": json.dumps(label), "headers": PATCH}, 200),
            ("PATCH", one, {"content": json.dumps(same), "headers": PATCH}, 200),
        ],
        "read": [("GET", place, {}, 200), ("HEAD", place, {}, 200)],
        "vread": [("GET", f"{place}/_history/{n}", {}, 200) for n in (1, 2)],
        "history-instance": [("GET", f"{place}/_history", {}, 200)],
        "history-type": [("GET", f"/{kind}/_history?_count=1", {}, 200)],
        "search-type": [("GET", one, {}, 200), ("POST", f"/{kind}/_search", {"data": {"_id": "claim"}}, 200)],
        "create": [
            ("POST", f"/{kind}", {"json": {k: v for k, v in resource.items() if k != "id"}}, 201),
            ("POST", f"/{kind}", {"json": resource, "headers": {"If-None-Exist": "_id=claim"}}, 200),
        ],
        "delete": [
            ("DELETE", one, {}, 204),
            ("GET", place, {}, 410),
            ("PUT", place, {"json": resource}, 201),
            ("DELETE", place, {}, 204),
            ("GET", place, {}, 410),
        ],
    }
    names = {i["code"] for i in told["interaction"]}
    assert names == set(calls)
    for name, some in calls.items():
        if name == "delete":
            version = http.get(place).headers
            for header, value in (("If-None-Match", version["ETag"]), ("If-Modified-Since", version["Last-Modified"])):
                assert http.get(place, headers={header: value}).status_code == 304
            assert http.put(one, json=resource).status_code == 200
        for method, url, given, expected in some:
            answer = http.request(method, url, **given)
            assert answer.status_code == expected, (name, method, url, answer.text)
    assert (told["versioning"], told["readHistory"], told["updateCreate"]) == ("versioned", True, True)
    assert (told["conditionalCreate"], told["conditionalUpdate"]) == (True, True)
    assert (told["conditionalRead"], told["conditionalDelete"]) == ("full-support", "single")


@pytest.mark.parametrize("kind", RESOURCE_TYPES)
def test_every_search_parameter_and_include_that_is_claimed_is_served(module_api: Any, claimed: Any, kind: str) -> None:
    told = of_type(claimed, kind)
    asked = [(p["name"], VALUES[p["type"]]) for p in told["searchParam"]]
    included = [("_include", value) for value in told.get("searchInclude", ())]
    included += [("_revinclude", value) for value in told.get("searchRevInclude", ())]
    # All at once, and none may be left aside; then each by itself.
    strict = {"Prefer": "handling=strict"}
    answer = module_api.http.get(f"/{kind}", params=asked + included, headers=strict)
    assert answer.status_code == 200, answer.text
    urls = [f"{kind}?{name}={quote(value)}&_count=1" for name, value in asked]
    urls.append(f"{kind}?_id=claim&{urlencode(included)}")
    bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "transaction"}
    bundle |= {"entry": [{"request": {"method": "GET", "url": url}} for url in urls]}
    entries = module_api.http.post("/", json=bundle).json()["entry"]
    for url, entry in zip(urls, entries, strict=True):
        assert entry["response"]["status"] == "200 OK", (url, entry)


@pytest.mark.parametrize("kind", ["", *RESOURCE_TYPES])
def test_every_operation_that_is_claimed_answers(module_api: Any, claimed: Any, examples: Any, kind: str) -> None:
    http, told = module_api.http, of_type(claimed, kind) if kind else claimed
    known = {d["url"]: d for d in definitions()}
    here = kind and ("colours" if kind in ("CodeSystem", "ValueSet", "ConceptMap", "Patient") else "asked")
    if here == "asked":
        module_api.put(**examples[kind] | {"id": here})
    for operation in told.get("operation", ()):
        definition, name = known[operation["definition"]], operation["name"]
        assert name == definition["code"]
        levels = [("system", "")] if not kind else [("type", f"/{kind}"), ("instance", f"/{kind}/{here}")]
        for level, place in levels:
            if not definition[level]:
                continue
            url = f"{place}/${name}" + ASKED.get((name, level), "").format(
                url=SET["url"] if kind == "ValueSet" else SYSTEM
            )
            if name in ("validate", "match"):
                sent = {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": examples[kind]}]}
                answer = http.post(url, json=sent)
            elif name.startswith("meta-"):
                answer = http.post(url, json=META)
            elif name == "export":
                answer = http.get(url, headers={"Prefer": "respond-async", "Accept": "application/fhir+json"})
                assert http.delete(answer.headers["Content-Location"]).status_code == 202
            else:
                answer = http.get(url)
            assert answer.status_code == (202 if name == "export" else 200), (url, answer.text)


def test_every_interaction_of_the_system_that_is_claimed_is_served(module_api: Any, claimed: Any) -> None:
    http = module_api.http
    ask = {"request": {"method": "GET", "url": "Patient/colours"}}
    bundles = {name: {"resourceType": "Bundle", "type": name, "entry": [ask]} for name in ("transaction", "batch")}
    answers = {name: http.post("/", json=bundle) for name, bundle in bundles.items()}
    answers["history-system"] = http.get("/_history?_count=1")
    answers["search-system"] = http.get("/?_type=Patient,CodeSystem&_id=colours")
    assert {i["code"] for i in claimed["interaction"]} == set(answers)
    for name, answer in answers.items():
        assert answer.status_code == 200, (name, answer.text)
        assert answer.json()["entry"]
    for name in bundles:
        assert answers[name].json()["entry"][0]["response"]["status"] == "200 OK"


def test_the_formats_of_the_statement_are_taken(module_api: Any, claimed: Any) -> None:
    statement = module_api.http.get("/metadata").json()
    for form in statement["format"]:
        assert module_api.http.get("/Patient/colours", params={"_format": form}).status_code == 200
    (patch,) = statement["patchFormat"]
    same = [{"op": "test", "path": "/id", "value": "colours"}]
    answer = module_api.http.patch("/Patient/colours", content=json.dumps(same), headers={"Content-Type": patch})
    assert answer.status_code == 200
    binary = {
        "resourceType": "Binary",
        "contentType": patch,
        "data": base64.b64encode(json.dumps(same).encode()).decode(),
    }
    entry = {"resource": binary, "request": {"method": "PATCH", "url": "Patient/colours"}}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    assert module_api.http.post("/", json=bundle).status_code == 200


@pytest.mark.parametrize("kind", ["Patient", "Observation", "AuditEvent", "Subscription"])
def test_what_a_type_does_not_claim_is_refused(module_api: Any, kind: str) -> None:
    http, sent = module_api.http, {"resourceType": kind, "id": "x"}
    for method, url in (
        ("POST", f"/{kind}/x"),
        ("PUT", f"/{kind}/_search"),
        ("DELETE", f"/{kind}/_history"),
        ("DELETE", f"/{kind}/x/_history"),
        ("PUT", f"/{kind}/x/_history/1"),
    ):
        answer = http.request(method, url, json=sent)
        assert answer.status_code == 405, (method, url, answer.text)
        assert answer.headers["Allow"]
        assert answer.json()["resourceType"] == "OperationOutcome"
    for method, url in (("DELETE", f"/{kind}/$validate"), ("PUT", f"/{kind}/$claimed"), ("POST", f"/{kind}/$claimed")):
        answer = http.request(method, url, json=sent)
        assert answer.status_code == 404, (method, url, answer.text)


def test_nobody_writes_an_event_of_the_audit_log(module_api: Any, claimed: Any) -> None:
    http = module_api.http
    own = {"Authorization": f"Bearer {module_api.token('administrator')}"}
    event = http.get("/AuditEvent?_count=1", headers=own).raise_for_status().json()["entry"][0]["resource"]
    place = f"/AuditEvent/{event['id']}"
    patch = json.dumps([{"op": "replace", "path": "/action", "value": "D"}])
    for token in (own, {}, {"Authorization": f"Bearer {module_api.token('system')}"}):
        for given in ({"json": event}, {"content": patch, "headers": PATCH}, {}):
            method = "PUT" if "json" in given else "PATCH" if given else "DELETE"
            answer = http.request(method, place, **{**given, "headers": {**given.get("headers", {}), **token}})
            assert answer.status_code == 405, (method, answer.text)
            entry = {"request": {"method": method, "url": place[1:]}}
            if method != "PATCH":
                entry |= {"resource": event} if method == "PUT" else {}
                bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
                assert http.post("/", json=bundle, headers=token).status_code == 405
    assert http.get(place, headers=own).json() == event
    assert http.get(f"{place}/_history", headers=own).status_code == 404
