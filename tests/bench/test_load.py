"""fhir_server.bench.load and templates: a loaded database holds what the store would have written."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from conformance import validator
from conformance.capability import RESOURCE_TYPES, TYPE_NAMES
from conformance.fhirjson import loads
from fhir_server.bench import load, queries
from fhir_server.search import params
from fhir_server.store import results
from fhir_server.store.body import Codec
from fhir_server.store.statement import digest, tail_of
from fhir_server.store.tables import metadata

SAMPLED = 3
MOST = 700


@pytest.fixture
def loaded(database_url: str) -> Any:
    figures = load.load(database_url, None, MOST, processes=1, sampled=SAMPLED)
    assert figures["observations"] >= MOST
    with psycopg.connect(database_url) as conn:
        yield conn


def resources(conn: psycopg.Connection[Any]) -> dict[str, dict[str, Any]]:
    codec = Codec.load(conn)
    found = {}
    query = 'SELECT rtype, id, patient, "order", dict, body FROM resource'
    for rtype, logical, patient, order, dictionary, body in conn.execute(query):
        resource = loads(codec.decompress(dictionary, bytes(body), (logical, patient, order)))
        assert (resource["resourceType"], resource["id"]) == (TYPE_NAMES[rtype], logical)
        found[f"{resource['resourceType']}/{logical}"] = resource
    return found


def test_every_body_is_valid_and_every_reference_leads_somewhere(loaded: psycopg.Connection[Any]) -> None:
    stored = resources(loaded)
    for name, resource in stored.items():
        assert validator.check(resource) == [], name
        for reference in references(resource):
            assert reference in stored, f"{name} refers to {reference}"


def references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [r for v in value for r in references(v)]
    if isinstance(value, dict):
        own = [value["reference"]] if isinstance(value.get("reference"), str) else []
        return own + [r for v in value.values() for r in references(v)]
    return []


def test_columns_and_hashes_are_those_the_body_gives(loaded: psycopg.Connection[Any]) -> None:
    stored = resources(loaded)
    rows = loaded.execute(
        "SELECT r.id, r.patient, r.start_at, r.end_at, r.issued_at, r.content, r.tokens[2:], k.tokens, k.present"
        " FROM resource r JOIN resource_kind k ON k.id = r.tokens[1] WHERE r.rtype = %s",
        (RESOURCE_TYPES["Observation"],),
    ).fetchall()
    assert len(rows) >= MOST
    for logical, patient, start, end, issued, content, tokens, common, present in rows:
        resource = stored[f"Observation/{logical}"]
        indexed = params.extract(resource)
        assert (patient, start, end, issued) == (indexed.patient, indexed.start, indexed.end, indexed.issued)
        assert bytes(content) == digest(resource, tail_of(resource))
        assert sorted(tokens) == sorted(indexed.tokens)
        assert sorted(common) == sorted(indexed.common)
        assert present == indexed.present


def test_flat_results_are_those_the_resources_give(loaded: psycopg.Connection[Any]) -> None:
    stored = resources(loaded)
    columns = "id, report, facility, effective, issued, number, value_text, code, item, loinc, unit, status, specimen"
    for row in loaded.execute(f'SELECT {columns}, "order" FROM result'):
        told = dict(zip([*columns.split(", "), "order"], row, strict=True))
        resource = stored[f"Observation/{told['id']}"]
        report = stored[f"DiagnosticReport/{told['report']}"]
        specimen = stored[resource["specimen"]["reference"]]
        flat = results.flatten(resource, facility=told["facility"], report=report, specimen=specimen)
        for name in ("effective", "issued", "number", "value_text", "code", "item", "loinc", "unit", "status", "order"):
            assert told[name] == getattr(flat, name)
        assert f"Observation/{told['id']}" in {r["reference"] for r in report["result"]}


def test_all_declared_indexes_are_there_again(loaded: psycopg.Connection[Any]) -> None:
    there = {row[0] for row in loaded.execute("SELECT indexname FROM pg_indexes WHERE schemaname = 'public'")}
    wanted = {str(i.name) for t in metadata.tables.values() for i in t.indexes}
    assert wanted <= there
    assert {"resource_pkey", "search_value_pkey"} <= there


def test_a_second_load_only_adds_what_is_missing(database_url: str, loaded: psycopg.Connection[Any]) -> None:
    before = load.stored(loaded)
    loaded.rollback()
    assert load.load(database_url, None, MOST, processes=1, sampled=SAMPLED)["loaded"] == 0
    again = load.load(database_url, None, before + 300, processes=1, sampled=SAMPLED)
    assert again["observations"] >= before + 300
    loaded.rollback()
    assert loaded.execute("SELECT count(*), count(DISTINCT id) FROM result").fetchone() == (again["observations"],) * 2


def test_queries_ask_for_what_is_there(loaded: psycopg.Connection[Any]) -> None:
    stored = resources(loaded)
    assert set(queries.reads(loaded)) <= set(stored)
    asked = queries.searches(loaded)
    assert set(asked) == {"patient_code_date", "patient_history", "include", "page_1000"}
    assert all(asked.values())
