"""$export (https://hl7.org/fhir/uv/bulkdata/STU2/export.html)."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

ASYNC = {"Prefer": "respond-async", "Accept": "application/fhir+json"}


@pytest.fixture(scope="module")
def ward(module_api: Any) -> Any:
    for number in range(3):
        module_api.put(resourceType="Patient", id=f"p{number}", active=number > 0)
        module_api.put(
            **{"resourceType": "Observation", "id": f"o{number}", "status": "final" if number else "preliminary"},
            code={"text": "K\n"},
            subject={"reference": f"Patient/p{number}"},
        )
    module_api.put(resourceType="Observation", id="device", status="final", code={"text": "K"})
    module_api.put(resourceType="Organization", id="org", name="Lab")
    return module_api


def manifest(api: Any, where: str, headers: dict[str, str] = ASYNC) -> Any:
    begun = api.http.get(where, headers=headers)
    assert begun.status_code == 202, begun.text
    url = begun.headers["Content-Location"]
    for _ in range(600):
        answer = api.http.get(url)
        if answer.status_code != 202:
            assert answer.status_code == 200, answer.text
            return answer
        assert answer.headers["Retry-After"]
        time.sleep(0.1)
    raise AssertionError("the export does not end")


def exported(api: Any, where: str) -> dict[str, list[str]]:
    told = manifest(api, where).json()
    assert told["requiresAccessToken"] is True
    out = {}
    for file in told["output"]:
        answer = api.http.get(file["url"])
        assert answer.headers["Content-Type"].startswith("application/fhir+ndjson")
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert {r["resourceType"] for r in lines} == {file["type"]}
        assert len(lines) == file["count"]
        out[file["type"]] = sorted(r["id"] for r in lines)
    return out


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("/$export", {"Patient": "p0 p1 p2", "Observation": "device o0 o1 o2", "Organization": "org"}),
        ("/$export?_type=Organization&_outputFormat=ndjson", {"Organization": "org"}),
        ("/Patient/$export", {"Patient": "p0 p1 p2", "Observation": "o0 o1 o2"}),
        ("/$export?_type=Patient,Observation&_since=2101-01-01T00:00:00Z", {}),
        ("/$export?_since=2001-01-01T00:00:00Z&_type=Organization", {"Organization": "org"}),
        ("/$export?_type=Observation&_typeFilter=Observation%3Fstatus%3Dpreliminary", {"Observation": "o0"}),
        (
            "/$export?_type=Observation&_typeFilter=Observation%3F_id%3Do1,o2,Observation%3Fstatus%3Dfinal%26_id%3Do2",
            {"Observation": "o1 o2"},
        ),
        ("/Patient/$export?_type=Patient&_typeFilter=Patient%3Factive%3Dtrue", {"Patient": "p1 p2"}),
    ],
)
def test_an_export_holds_what_was_asked_for(ward: Any, where: str, expected: dict[str, str]) -> None:
    assert exported(ward, where) == {kind: ids.split() for kind, ids in expected.items()}


@pytest.mark.parametrize(
    "query",
    [
        "_outputFormat=csv",
        "_type=Nothing",
        "_since=soon",
        "_typeFilter=Patient%3Fodd%3D1",
        "_typeFilter=Nothing%3Fa%3D1",
        "_typeFilter=Patient",
        "_typeFilter=Patient%3F_sort%3D_id",
        "_color=red",
    ],
)
def test_an_export_that_cannot_be_made_is_refused(ward: Any, query: str) -> None:
    assert ward.http.get(f"/$export?{query}", headers=ASYNC).status_code == 400


def test_an_export_belongs_to_who_asked_and_can_be_ended(ward: Any) -> None:
    assert ward.http.get("/$export").status_code == 400  # without Prefer: respond-async
    told = manifest(ward, "/$export?_type=Patient")
    place = str(told.request.url)
    assert ward.http.get(told.json()["output"][0]["url"], headers={"Authorization": ""}).status_code == 401
    assert ward.http.get(f"{place}/Observation.ndjson").status_code == 404
    assert ward.http.delete(place).status_code == 202
    for url in (place, f"{place}/Patient.ndjson", f"{ward.base}/$export-status/none"):
        assert ward.http.get(url).status_code == 404
    few = {**ASYNC, "Authorization": f"Bearer {ward.token('integrator', 'system/Patient.rs')}"}
    assert [o["type"] for o in manifest(ward, "/$export", few).json()["output"]] == ["Patient"]
    assert ward.http.get("/$export?_type=Observation", headers=few).status_code == 403
