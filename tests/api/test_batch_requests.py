"""Batch entries that are histories, operations, capabilities and searches over several types
(http://hl7.org/fhir/R4/http.html#transaction)."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

CODES = {"resourceType": "CodeSystem", "id": "cs", "url": "http://ex.org/cs", "status": "active", "content": "complete"}


@pytest.fixture(scope="module")
def ward(module_api: Any) -> Any:
    module_api.put(**CODES, concept=[{"code": "a", "display": "Alpha"}])
    for gender in ("male", "female"):
        module_api.put(resourceType="Patient", id="p", gender=gender)
    for logical, day in (("o1", "2024-05-01"), ("o2", "2024-05-02")):
        module_api.put(
            resourceType="Observation",
            id=logical,
            status="final",
            code={"coding": [{"system": "http://loinc.org", "code": "718-7"}]},
            subject={"reference": "Patient/p"},
            effectiveDateTime=day,
            valueQuantity={"value": 1.50, "unit": "g/L"},
        )
    return module_api


def send(api: Any, *entries: tuple[Any, ...], kind: str = "batch", **headers: str) -> httpx.Response:
    """Each entry is (method, url) or (method, url, resource)."""
    made = [{"request": {"method": e[0], "url": e[1]}, **({"resource": e[2]} if len(e) > 2 else {})} for e in entries]
    answer: httpx.Response = api.http.post(
        "/", json={"resourceType": "Bundle", "type": kind, "entry": made}, headers=headers
    )
    return answer


def answers(api: Any, *entries: tuple[Any, ...], **headers: str) -> list[dict[str, Any]]:
    answer = send(api, *entries, **headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["type"] == "batch-response"
    found: list[dict[str, Any]] = answer.json()["entry"]
    assert len(found) == len(entries)
    return found


def members(entry: dict[str, Any]) -> list[str]:
    return [e["resource"]["id"] for e in entry["resource"].get("entry", [])]


def test_a_batch_takes_histories_operations_and_searches_over_several_types(ward: Any) -> None:
    history, everything, newest, both, within, known, word, checked = answers(
        ward,
        ("GET", "Patient/p/_history"),
        ("GET", "Patient/p/$everything"),
        ("GET", "Observation/$lastn?patient=p"),
        ("GET", "?_type=Patient,CodeSystem&_id=p,cs"),
        ("GET", "Patient/p/*?_type=Observation"),
        ("GET", "metadata"),
        ("GET", f"{ward.base}/CodeSystem/$lookup?system=http://ex.org/cs&code=a"),
        ("POST", "Patient/$validate", {"resourceType": "Patient", "gender": "nobody"}),
    )
    told = [history, everything, newest, both, within, known, word, checked]
    assert [e["response"]["status"] for e in told] == ["200 OK"] * 8
    assert history["resource"]["type"] == "history"
    assert [e["resource"]["gender"] for e in history["resource"]["entry"]] == ["female", "male"]
    assert members(everything) == ["p", "o1", "o2"]
    assert members(newest) == ["o2"]
    assert sorted(members(both)) == ["cs", "p"]
    assert members(within) == ["o1", "o2"]
    assert known["resource"]["resourceType"] == "CapabilityStatement"
    assert {"name": "display", "valueString": "Alpha"} in word["resource"]["parameter"]
    assert checked["resource"]["issue"][0]["severity"] == "error"


def test_an_operation_that_fails_or_writes_stands_alone(ward: Any) -> None:
    tag = {"system": "http://ex.org/tags", "code": "seen"}
    sent = {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"tag": [tag]}}]}
    missing, tagged, unknown, read = answers(
        ward,
        ("GET", "Patient/nobody/$everything"),
        ("POST", "Observation/o1/$meta-add", sent),
        ("POST", "Patient/$no-such-thing", sent),
        ("GET", "Observation/o1"),
    )
    assert missing["response"]["status"] == "404 Not Found"
    assert missing["response"]["outcome"]["resourceType"] == "OperationOutcome"
    assert tagged["response"]["status"] == "200 OK"
    assert unknown["response"]["status"].startswith("404")
    assert read["resource"]["meta"]["tag"] == [tag]
    assert ward.http.get("/Observation/o1").text.count('"value":1.5') == 1


def test_each_request_needs_its_own_right(ward: Any) -> None:
    token = ward.token("integrator", "system/Patient.r")
    entries = [("GET", "Patient/p/_history"), ("GET", "Observation/$lastn?patient=p"), ("GET", "_history")]
    told = answers(ward, *entries, Authorization=f"Bearer {token}")
    assert [e["response"]["status"][:3] for e in told] == ["200", "403", "403"]
    assert "resource" not in told[1]


@pytest.mark.parametrize("url", ["Patient/p/_history", "Observation/$lastn?patient=p", "?_type=Patient", "metadata"])
def test_a_transaction_refuses_them_with_a_reason(ward: Any, url: str) -> None:
    answer = send(ward, ("GET", url), kind="transaction")
    assert answer.status_code == 400
    assert "batch" in answer.json()["issue"][0]["diagnostics"]
    assert answer.json()["issue"][0]["expression"] == ["Bundle.entry[0].request.url"]


@pytest.mark.parametrize(
    ("method", "url"),
    [("DELETE", "Patient/p/_history"), ("GET", "../metadata"), ("POST", ""), ("POST", "?_type=Patient"), ("GET", "")],
)
def test_what_is_no_request_is_the_answer_of_its_entry_alone(ward: Any, method: str, url: str) -> None:
    refused, read = answers(ward, (method, url), ("GET", "Patient/p"))
    assert refused["response"]["status"] == "400 Bad Request"
    assert read["resource"]["id"] == "p"
