"""Searches over several types and in compartments (http://hl7.org/fhir/R4/search.html#compartment, http.html#search)."""

from __future__ import annotations

from typing import Any

import pytest

BODY = {
    "Observation": {"status": "final", "code": {"text": "K"}},
    "DiagnosticReport": {"status": "final", "code": {"text": "K"}},
}
P, Q, DR = ({"reference": r} for r in ("Patient/p", "Patient/q", "Practitioner/dr"))
LOCAL = [{"system": "urn:x", "value": "1"}]
TAG = {"tag": [{"system": "urn:t", "code": "a"}]}
RESOURCES: list[dict[str, Any]] = [
    {"resourceType": "Practitioner", "id": "dr", "identifier": LOCAL},
    {"resourceType": "Patient", "id": "p", "meta": TAG, "identifier": LOCAL},
    {"resourceType": "Patient", "id": "q", "link": [{"other": P, "type": "seealso"}]},
    {"resourceType": "Observation", "id": "o1", "meta": TAG, "subject": P, "performer": [DR], "identifier": LOCAL},
    {"resourceType": "Observation", "id": "o2", "subject": Q, "performer": [P]},
    {"resourceType": "Observation", "id": "o3", "subject": Q, "encounter": {"reference": "Encounter/e"}},
    {"resourceType": "DiagnosticReport", "id": "r1", "subject": P, "result": [{"reference": "Observation/o1"}]},
    {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "AMB"}, "subject": Q},
    {"resourceType": "Basic", "id": "b", "code": {"text": "x"}, "author": P},
]


@pytest.fixture(scope="module")
def ward(module_api: Any) -> Any:
    for resource in RESOURCES:
        module_api.put(**{**BODY.get(resource["resourceType"], {}), **resource})
    return module_api


CASES = {
    "Patient/p/Observation": "o1 o2",
    "Patient/q/Observation": "o2 o3",
    "Patient/none/Observation": "",
    "Patient/p/DiagnosticReport": "r1",
    "Patient/p/Patient": "p q",
    "Patient/p/Basic": "b",
    "Patient/p/Observation?performer=Practitioner/dr": "o1",
    "Patient/p/Observation?subject:Patient._id=q": "o2",
    "Patient/p/Observation?_tag=urn:t|a&_sort=-_lastUpdated": "o1",
    "Patient/p/Observation?_id=o3": "",
    "Patient/p/*": "p q o1 o2 r1 b",
    "Patient/p/*?_type=Observation,Basic": "o1 o2 b",
    "Patient/p/*?_type=Observation&_sort=date": "o1 o2",
    "Encounter/e/Observation": "o3",
    "Encounter/e/Encounter": "e",
    "Practitioner/dr/Observation": "o1",
    "Practitioner/dr/*": "dr o1",
    "?_tag=urn:t|a": "p o1",
    "?_type=Patient,Observation": "p q o1 o2 o3",
    "?_type=Patient,Observation&_type=Observation,Basic": "o1 o2 o3",
    "?_id=p,o1,none": "p o1",
    "?_type=Patient,Practitioner,Observation&identifier=urn:x|1": "p dr o1",
    "?_type=Observation,DiagnosticReport&subject=Patient/p": "o1 r1",
    "?_type=Observation,Encounter&_sort=_id&subject=Patient/q": "e o2 o3",
    "?_type=Observation,Encounter&_sort=-_id&subject=Patient/q": "o3 o2 e",
}


@pytest.mark.parametrize(("query", "expected"), CASES.items(), ids=list(CASES))
def test_a_search_finds_what_is_in_its_types_and_compartment(ward: Any, query: str, expected: str) -> None:
    whole = ward.search(f"{query}{'&' if '?' in query else '?'}_total=accurate")
    found = [e["resource"]["id"] for e in whole.get("entry", [])]
    if "_sort=" in query:
        assert found == expected.split() or "Updated" in query or "date" in query
    assert sorted(found) == sorted(expected.split())
    assert whole["total"] == len(found)
    for size in (1, 2):
        walked = ward.ids(f"{query}{'&' if '?' in query else '?'}_count={size}")
        assert walked == found or ("_sort" not in query and sorted(walked) == sorted(found))
    place, _, parameters = query.partition("?")
    posted = ward.http.post(
        f"/{place}/_search" if place else "/_search",
        content=parameters,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert [e["resource"]["id"] for e in posted.json().get("entry", [])] == found
    assert posted.json()["link"][0]["url"].startswith(f"{ward.base}/{place}".rstrip("/"))


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("Patient/p/Organization", 404),
        ("Patient/p/Nothing", 404),
        ("Location/l/Patient", 404),
        ("Location/l/*", 404),
        ("Nothing/l/*", 404),
        ("Patient/p/*?_type=Organization", 400),
        ("Patient/p/Observation?code:odd=x", 400),
        ("?_type=Nothing", 400),
        ("?_type=", 400),
        ("?_type=DiagnosticReport,Observation&_sort=date", 400),
        ("?_type=Patient&_sort=_id&_cursor=x", 400),
    ],
)
def test_what_cannot_be_searched_is_told(ward: Any, query: str, status: int) -> None:
    answer = ward.http.get(f"/{query}")
    assert answer.status_code == status, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"


def test_a_parameter_that_not_all_types_have_is_reported_or_refused(ward: Any) -> None:
    query = "?_type=Patient,Observation&birthdate=2001"
    found = ward.search(query)["entry"]
    assert [e["search"]["mode"] for e in found] == ["match"] * 5 + ["outcome"]
    assert ward.http.get(f"/{query}", headers={"Prefer": "handling=strict"}).status_code == 400


def test_what_comes_along_may_start_from_one_of_the_types(ward: Any) -> None:
    query = (
        "?_type=DiagnosticReport,Encounter&_include=DiagnosticReport:result&_include=Encounter:subject&_summary=false"
    )
    found = {(e["resource"]["id"], e["search"]["mode"]) for e in ward.search(query)["entry"]}
    assert found == {("r1", "match"), ("e", "match"), ("o1", "include"), ("q", "include")}


def test_a_token_searches_the_types_it_may(ward: Any) -> None:
    headers = {"Authorization": f"Bearer {ward.token('integrator', 'system/Observation.rs')}"}
    found = ward.http.get("/", headers=headers).json()
    assert sorted(e["resource"]["id"] for e in found["entry"]) == ["o1", "o2", "o3"]
    assert ward.http.get("/Patient/p/*", headers=headers).json()["entry"][0]["resource"]["id"] in ("o1", "o2")
    for place in ("?_type=Patient,Observation", "Patient/p/Basic", "Patient/p/*?_type=Basic"):
        assert ward.http.get(f"/{place}", headers=headers).status_code == 403, place


def test_a_batch_searches_a_compartment(ward: Any) -> None:
    urls = (
        "Patient/q/Observation?_sort=_id",
        "Patient/p/Observation?_id=o3",
        "Patient/p/Location",
        "Patient/p/Nothing",
    )
    entries = [{"request": {"method": "GET", "url": url}} for url in urls]
    answer = ward.http.post("/", json={"resourceType": "Bundle", "type": "batch", "entry": entries}).json()["entry"]
    assert [e["response"]["status"][:3] for e in answer] == ["200", "200", "404", "400"]
    assert [e["resource"]["id"] for e in answer[0]["resource"]["entry"]] == ["o2", "o3"]
    assert answer[0]["resource"]["link"][0]["url"] == f"{ward.base}/Patient/q/Observation?_sort=_id"
    assert "entry" not in answer[1]["resource"]
