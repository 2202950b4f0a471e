"""The RESTful interactions over HTTP (http://hl7.org/fhir/R4/http.html)."""

from __future__ import annotations

from typing import Any


def patient(**more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "name": [{"family": "张", "given": ["三"]}], "gender": "male", **more}


def test_a_created_resource_is_read_back(api: Any) -> None:
    answer = api.http.post("/Patient", json=patient())
    assert answer.status_code == 201
    logical = answer.json()["id"]
    assert answer.headers["Location"] == f"{api.base}/Patient/{logical}/_history/1"
    assert answer.headers["ETag"] == 'W/"1"'
    read = api.http.get(f"/Patient/{logical}")
    assert read.status_code == 200
    assert read.headers["Content-Type"].startswith("application/fhir+json")
    assert read.json()["name"] == patient()["name"]
    assert read.json()["meta"]["versionId"] == "1"
    print(api.search("Patient?name=张三"))
    print(api.search("Patient?identifier=x"))
    print(api.http.get("/metadata").json()["rest"][0]["resource"][0])
