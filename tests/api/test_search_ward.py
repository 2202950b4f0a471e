"""Quantities, composites, chains, _has, value sets: query -> logical ids, from tests/data/search/ward.yaml. Every case also walks its
pages, one match a page, and asks for the number of all matches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fhir_server.search import chain_sql

WARD = yaml.safe_load((Path(__file__).parents[1] / "data" / "search" / "ward.yaml").read_text("utf-8"))


def spelled(query: str) -> str:
    """The query with its short names written out."""
    return query.replace("|ucum|", "|http://unitsofmeasure.org|").replace("cs|", "http://ex.org/cs|")


@pytest.fixture(scope="module")
def ward(module_api: Any) -> Any:
    for resource in WARD["resources"]:
        module_api.put(**resource)
    return module_api


@pytest.mark.parametrize(("query", "expected"), WARD["cases"].items(), ids=list(WARD["cases"]))
def test_search_finds_exactly_what_r4_says(ward: Any, query: str, expected: str) -> None:
    query = spelled(query)
    whole = ward.search(f"{query}&_total=accurate")
    found = [e["resource"]["id"] for e in whole.get("entry", [])]
    assert sorted(found) == sorted(expected.split())
    assert whole["total"] == len(found)
    if len(found) > 1:
        assert sorted(ward.ids(f"{query}&_count=1")) == sorted(found)


@pytest.mark.parametrize("query", WARD["refused"])
def test_what_cannot_be_honoured_is_refused(ward: Any, query: str) -> None:
    answer = ward.http.get(f"/{spelled(query)}")
    assert answer.status_code == 400, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"


def test_a_chain_tells_no_more_than_a_search_at_its_other_end(ward: Any) -> None:
    headers = {"Authorization": f"Bearer {ward.token('integrator', 'system/Observation.rs system/Group.rs')}"}
    for query in ("Observation?patient.name=zhou", "Group?_has:DiagnosticReport:subject:status=final"):
        assert ward.http.get(f"/{query}", headers=headers).status_code == 403, query
    seen = ward.http.get("/Observation?subject._id=a,g", headers=headers).json()
    assert [e["resource"]["id"] for e in seen["entry"]] == ["q7"]


@pytest.mark.parametrize("few", [0, 1, 300])
def test_a_chain_finds_the_same_whether_little_or_much_matches_at_its_end(
    ward: Any, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_sql, "FEW", few)
    for query, expected in WARD["cases"].items():
        if query.startswith(("DiagnosticReport?result", "Observation?specimen.type", "Provenance?target")):
            assert (query, sorted(ward.ids(f"{spelled(query)}&_count=1"))) == (query, sorted(expected.split()))
