"""_sort by every kind of parameter and by several keys (http://hl7.org/fhir/R4/search.html#sort)."""

from __future__ import annotations

from typing import Any

import pytest

UCUM = "http://unitsofmeasure.org"


def result(logical: str, status: str, code: str, number: float | None, unit: str = "g", **more: Any) -> dict[str, Any]:
    out = {"resourceType": "Observation", "id": logical, "status": status, "code": {"coding": [{"code": code}]}, **more}
    if number is not None:
        out["valueQuantity"] = {"value": number, "unit": unit, "system": UCUM, "code": unit}
    return out


RESOURCES: list[dict[str, Any]] = [
    result("a", "final", "m", 2, encounter={"reference": "Encounter/2"}),
    result("b", "final", "k", 1500, "mg", encounter={"reference": "Encounter/1"}),
    result("c", "amended", "k", 10),
    result("d", "amended", "z", None, effectiveDateTime="2024-01-01"),
    {"resourceType": "ValueSet", "id": "v2", "url": "http://ex.org/b", "status": "active"},
    {"resourceType": "ValueSet", "id": "v1", "url": "http://ex.org/a", "status": "draft", "title": "x"},
    {"resourceType": "Patient", "id": "p1", "gender": "male", "deceasedBoolean": True, "identifier": [{"value": "9"}]},
    {
        "resourceType": "Patient",
        "id": "p2",
        "gender": "female",
        "active": True,
        "identifier": [{"value": "1"}, {"value": "95"}],
    },
    {"resourceType": "Patient", "id": "p3", "gender": "male", "telecom": [{"system": "phone", "value": "1"}]},
]


@pytest.fixture(scope="module")
def ward(module_api: Any) -> Any:
    for resource in RESOURCES:
        module_api.put(**resource)
    return module_api


CASES = {
    "Observation?_sort=code,_id": "b c a d",
    "Observation?_sort=-code,_id": "d a b c",
    "Observation?_sort=status,-code": "d c a b",
    "Observation?_sort=status,value-quantity": "c d b a",
    "Observation?_sort=value-quantity": "b a c d",
    "Observation?_sort=-value-quantity": "c a b d",
    "Observation?_sort=encounter,_id": "b a c d",
    "Observation?_sort=-encounter,-_id": "a b d c",
    "Observation?_sort=date,code,-_id": "d c b a",
    "Observation?_sort=code,-_lastUpdated,_id&status=final": "b a",
    "ValueSet?_sort=url": "v1 v2",
    "ValueSet?_sort=-url": "v2 v1",
    "ValueSet?_sort=title,status": "v1 v2",
    "Patient?_sort=gender,_id": "p2 p1 p3",
    "Patient?_sort=identifier": "p2 p1 p3",
    "Patient?_sort=-identifier": "p2 p1 p3",
    "Patient?_sort=-deceased,_id": "p1 p2 p3",
    "Patient?_sort=active,-gender,_id": "p2 p1 p3",
    "Patient?_sort=telecom,_id": "p3 p1 p2",
}


@pytest.mark.parametrize(("query", "expected"), CASES.items(), ids=list(CASES))
def test_matches_come_in_the_order_asked_for(ward: Any, query: str, expected: str) -> None:
    assert ward.ids(query) == expected.split()
    for size in (1, 2):
        assert ward.ids(f"{query}&_count={size}") == expected.split()


def test_an_order_that_cannot_be_made_is_refused(ward: Any) -> None:
    answer = ward.http.get("/Observation?_sort=code-value-quantity")
    assert answer.status_code == 400
    page = ward.http.get("/Observation?_sort=value-quantity&_count=1").json()["link"][1]["url"]
    assert ward.http.get(page.replace("_sort=value-quantity", "_sort=code")).status_code == 400
