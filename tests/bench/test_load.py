"""fhir_server.bench.load and templates: a loaded database holds what the store would have written."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from conformance import validator
from conformance.capability import RESOURCE_TYPES, TYPE_NAMES
from conformance.fhirjson import loads
from fhir_server.bench import load, queries
from fhir_server.identity import matcher
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
        "SELECT r.rtype, r.id, r.patient, r.start_at, r.end_at, r.issued_at, r.content, r.tokens[2:], k.tokens, k.present,"
        " ARRAY(SELECT v.param || ':' || coalesce(v.string, '') FROM search_value v WHERE (v.shard, v.rtype, v.id) ="
        " (r.shard, r.rtype, r.id)) FROM resource r JOIN resource_kind k ON k.id = r.tokens[1]",
    ).fetchall()
    assert sum(rtype == RESOURCE_TYPES["Observation"] for rtype, *_ in rows) >= MOST
    for rtype, logical, patient, start, end, issued, content, tokens, common, present, values in rows:
        resource = stored[f"{TYPE_NAMES[rtype]}/{logical}"]
        indexed = params.extract(resource)
        if patient != logical:  # a Patient is in its own compartment
            assert patient == indexed.patient
        assert (start, end, issued) == (indexed.start, indexed.end, indexed.issued)
        assert sorted(values) == sorted(f"{v.param}:{v.string or ''}" for v in indexed.values)
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


def test_every_patient_is_registered_with_what_the_resource_says(loaded: psycopg.Connection[Any]) -> None:
    patients = {name: r for name, r in resources(loaded).items() if r["resourceType"] == "Patient"}
    rows = loaded.execute(
        "SELECT s.patient, s.resident_id, s.name, s.sex, s.birth FROM source_patient s JOIN identity_link USING (shard, patient)"
    ).fetchall()
    assert {f"Patient/{row[0]}" for row in rows} == set(patients)
    for logical, resident_id, name, sex, birth in rows:
        facts = matcher.facts(patients[f"Patient/{logical}"])
        assert (resident_id, name, sex, birth) == (facts.resident_id, facts.name, facts.sex, facts.birth)
    numbers = [
        i["value"] for r in patients.values() for i in r["identifier"] if i["system"].startswith("http://tongjian.org")
    ]
    assert len(set(numbers)) > MOST / load.RESULTS_A_PATIENT


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
    assert set(asked) == {
        *("patient_code_date", "patient_history", "include", "page_1000"),
        *("lastn", "has", "chain_to_patient", "chain_to_result"),
    }
    assert all(asked.values())
