"""Searches over many resource types: matches, orders, what comes along, from tests/data/search/registry.yaml. Every case also walks
its pages, one match a page, and asks for the number of all matches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

REGISTRY = yaml.safe_load((Path(__file__).parents[1] / "data" / "search" / "registry.yaml").read_text("utf-8"))


def spelled(query: str) -> str:
    """The query with its short names written out."""
    for short, long in (
        ("|ucum|", "|http://unitsofmeasure.org|"),
        ("cs|", "http://ex.org/cs|"),
        ("v2|", "http://terminology.hl7.org/CodeSystem/v2-0203|"),
    ):
        query = query.replace(short, long)
    return query


def cases(part: str) -> Any:
    return pytest.mark.parametrize(("query", "expected"), REGISTRY[part].items(), ids=list(REGISTRY[part]))


@pytest.fixture(scope="module")
def registry(module_api: Any) -> Any:
    for resource in REGISTRY["resources"]:
        module_api.put(**resource)
    return module_api


@cases("cases")
def test_search_finds_exactly_what_r4_says(registry: Any, query: str, expected: str) -> None:
    query = spelled(query)
    whole = registry.search(f"{query}{'&' if '?' in query else '?'}_total=accurate")
    found = [e["resource"]["id"] for e in whole.get("entry", [])]
    assert sorted(found) == sorted(expected.split())
    assert whole["total"] == len(found)
    assert not any(e["resource"]["resourceType"] == "OperationOutcome" for e in whole.get("entry", []))
    if len(found) > 1:
        assert sorted(registry.ids(f"{query}{'&' if '?' in query else '?'}_count=1")) == sorted(found)


@pytest.mark.parametrize("count", [1, 50])
@cases("ordered")
def test_results_come_in_the_order_asked_for(registry: Any, query: str, expected: str, count: int) -> None:
    assert registry.ids(f"{spelled(query)}&_count={count}") == expected.split()


@cases("included")
def test_what_is_asked_for_comes_along_once(registry: Any, query: str, expected: str) -> None:
    entries = registry.search(spelled(query))["entry"]
    matches, _, along = expected.partition("|")
    for mode, wanted in (("match", matches), ("include", along)):
        assert sorted(e["resource"]["id"] for e in entries if e["search"]["mode"] == mode) == sorted(wanted.split())


@pytest.mark.parametrize("query", REGISTRY["refused"])
def test_what_cannot_be_honoured_is_refused(registry: Any, query: str) -> None:
    answer = registry.http.get(f"/{spelled(query)}")
    assert answer.status_code == 400, answer.text
    told = answer.json()
    assert told["resourceType"] == "OperationOutcome"
    assert told["issue"][0]["diagnostics"]
