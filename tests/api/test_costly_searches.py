"""Chains to results find the same rows whoever wrote them; a search that looks at too much is stopped and told what to add."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from fhir_server.store import repository
from fhir_server.store.body import Codec
from tests.api.conftest import Api
from tests.store import county

CODE = {"coding": [{"system": "http://loinc.org", "code": "718-7"}]}


def test_a_chain_to_results_finds_reports_of_messages_and_of_the_api_also_across_patients(api: Api) -> None:
    with psycopg.connect(api.database_url) as conn:
        codec = Codec.load(conn)
        repository.apply(conn, codec, [(county.origin(), county.report("1", "R1", {"K": "4.1", "NA": "140"}, at=0))])
        repository.apply(conn, codec, [(county.origin(), county.report("2", "R2", {"K": "5.1"}, at=1))])
    for name in ("p1", "p2"):
        api.put(resourceType="Patient", id=name)
    value = {"value": 9, "unit": "g/L", "system": "http://unitsofmeasure.org", "code": "g/L"}
    observation = {"resourceType": "Observation", "status": "final", "code": CODE, "valueQuantity": value}
    api.put(**observation, id="o1", subject={"reference": "Patient/p1"})
    api.put(**observation, id="nobody")
    report = {"resourceType": "DiagnosticReport", "status": "final", "code": {"text": "x"}}
    api.put(**report, id="same", subject={"reference": "Patient/p1"}, result=[{"reference": "Observation/o1"}])
    api.put(**report, id="other", subject={"reference": "Patient/p2"}, result=[{"reference": "Observation/o1"}])
    api.put(**report, id="alone", result=[{"reference": "Observation/nobody"}])
    api.put(**report, id="none", subject={"reference": "Patient/p1"})
    both = {county.report_id("1", "R1"), county.report_id("2", "R2")}
    for sort in ("", "&_sort=-date", "&_sort=_lastUpdated", "&_count=1", "&_total=accurate"):
        assert set(api.ids(f"DiagnosticReport?result.code=K{sort}")) == both, sort
        assert set(api.ids(f"DiagnosticReport?result.code=NA{sort}")) == {county.report_id("1", "R1")}, sort
        assert set(api.ids(f"DiagnosticReport?result.code=718-7{sort}")) == {"same", "other", "alone"}, sort
        assert api.ids(f"DiagnosticReport?result.code=nothing{sort}") == []
    assert api.search("DiagnosticReport?result.code=K,718-7&_summary=count")["total"] == 5
    assert set(api.ids("DiagnosticReport?result.value-quantity=gt8")) == {"same", "other", "alone"} | both - both | {
        county.report_id("1", "R1")
    }
    assert set(api.ids("DiagnosticReport?patient=p1&result.has-member.code=718-7")) == set()
    assert set(api.ids("DiagnosticReport?patient=p1&result.code=718-7")) == {"same"}
    assert set(api.ids("Observation?code=718-7&value-quantity=gt8")) == {"o1", "nobody"}
    assert api.ids("Observation?code=718-7&value-quantity=gt9.5") == []
    assert api.ids("Observation?code-value-quantity=718-7$9&_sort=-date") == api.ids(
        "Observation?code-value-quantity=718-7$9"
    )


@pytest.mark.parametrize(
    "query", ["value-quantity=gt1", "_total=accurate", "code-value-quantity=718-7$gt1", "specimen.type=x"]
)
def test_a_search_that_looks_at_too_much_is_stopped_with_advice(serve: Any, query: str) -> None:
    with serve(statement_timeout_ms=300) as api, psycopg.connect(api.database_url) as blocker:
        blocker.execute("LOCK TABLE resource IN ACCESS EXCLUSIVE MODE")
        answer = api.http.get(f"/Observation?{query}")
        assert (answer.status_code, answer.json()["issue"][0]["code"]) == (422, "too-costly")
        assert "a patient" in answer.text
        assert api.http.get(f"/Observation?patient=p&{query}").status_code == 503
        blocker.rollback()
        assert api.http.get(f"/Observation?{query}").status_code == 200
