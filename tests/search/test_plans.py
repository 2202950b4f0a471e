"""The plans PostgreSQL makes for our searches, read from EXPLAIN over enough rows that a wrong one would hurt."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import psycopg
import pytest
from psycopg.rows import dict_row

from conformance.capability import RESOURCE_TYPES
from fhir_server.search import page
from fhir_server.search.dates import SHANGHAI
from fhir_server.search.definitions import parameters
from fhir_server.search.leaves import hash_of
from fhir_server.search.params import extract
from fhir_server.search.query import parse
from fhir_server.search.statement import Context
from fhir_server.store import kinds
from mappings.ids import logical_id

CONTEXT = Context(SHANGHAI, "http://localhost/fhir", datetime(2026, 1, 1, tzinfo=UTC))
PATIENTS, RESULTS, CODES = 200, 20_000, 400
COLUMNS = "shard, rtype, id, version, top, updated, patient, start_at, end_at, recency, content, dict, body, tokens"


def shard(number: int) -> int:
    return number * 7 % 1024


def patient(number: int) -> str:
    return logical_id(shard(number), "county", "Patient", str(number))


@pytest.fixture(scope="module")
def filled(postgres: str, template_database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE plans TEMPLATE {template_database}")
    url = f"{postgres.rpartition('/')[0]}/plans"
    with psycopg.connect(url, autocommit=True, options="-c plan_cache_mode=force_custom_plan -c jit=off") as conn:
        made = [*rows(), *people()]
        with conn.transaction(), conn.cursor(binary=True) as cursor:
            numbers = kinds.record(cursor, {kind for _, kind in made})
        with conn.cursor().copy(f"COPY resource ({COLUMNS}) FROM STDIN") as copy:
            for (*row, tokens), kind in made:
                copy.write_row((*row, [numbers[kind], *tokens]))
        conn.execute("VACUUM ANALYZE resource")
        conn.execute("VACUUM ANALYZE resource_kind")
        yield conn
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute("DROP DATABASE plans WITH (FORCE)")


def rows() -> Iterator[tuple[tuple[Any, ...], kinds.Kind]]:
    rng = random.Random(7)
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    for number in range(RESULTS):
        who = rng.randrange(PATIENTS)
        at = begin + timedelta(minutes=30 * number)
        resource = {
            "resourceType": "Observation",
            "id": logical_id(shard(who), "county", "Observation", str(number)),
            "status": "final",
            "identifier": [{"system": "http://x/filler", "value": str(number)}],
            # Some codes are common, most are rare.
            "code": {"coding": [{"system": "http://loinc.org", "code": str(int(rng.random() ** 4 * CODES))}]},
            "subject": {"reference": f"Patient/{patient(who)}"},
            "basedOn": [
                {"reference": f"ServiceRequest/{logical_id(shard(who), 'county', 'ServiceRequest', str(who))}"}
            ],
            "performer": [{"reference": "Organization/lab"}],
            "effectiveDateTime": at.isoformat(timespec="seconds"),
        }
        found = extract(resource)
        key = (shard(who), RESOURCE_TYPES["Observation"], resource["id"])
        body = rng.randbytes(200)
        row = (*key, 1, 1, at, patient(who), found.start, found.end, b"", b"0" * 16, 0, body, found.tokens)
        yield row, kinds.kind_of(key[1], found, None)


def people() -> Iterator[tuple[tuple[Any, ...], kinds.Kind]]:
    """The Patients, and a request of each."""
    at = datetime(2024, 1, 1, tzinfo=UTC)
    for number in range(PATIENTS):
        who = {
            "resourceType": "Patient",
            "id": patient(number),
            "identifier": [{"system": "http://x/mrn", "value": str(number)}],
            "gender": "male" if number % 2 else "female",
        }
        asked = {
            "resourceType": "ServiceRequest",
            "id": logical_id(shard(number), "county", "ServiceRequest", str(number)),
            "status": "active",
            "intent": "order",
            "identifier": [{"system": "http://x/placer", "value": str(number)}],
            "subject": {"reference": f"Patient/{patient(number)}"},
        }
        for resource in (who, asked):
            found = extract(resource)
            key = (shard(number), RESOURCE_TYPES[str(resource["resourceType"])], resource["id"])
            row = (*key, 1, 1, at, patient(number), None, None, b"", b"0" * 16, 0, b"", found.tokens)
            yield row, kinds.kind_of(key[1], found, None)


def run(conn: psycopg.Connection[Any], query: str, type: str = "Observation") -> tuple[list[str], list[str], int]:
    """(ids of the page, index and table scans of all statements but those of the kinds, shared buffers read)."""
    parsed = parse(type, parse_qsl(query))
    scans: list[str] = []
    buffers = 0
    steps = page.rows(parsed, CONTEXT, 51)
    sql = next(steps)
    while True:
        with psycopg.RawCursor(conn, row_factory=dict_row) as cursor:
            with psycopg.RawCursor(conn) as explained:
                plan = explained.execute(
                    b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql.text.encode(), sql.args
                ).fetchone()
            assert plan is not None
            top = plan[0][0]["Plan"]
            buffers += top["Shared Hit Blocks"] + top["Shared Read Blocks"]
            scans += [
                name
                for n in nodes(top)
                if "Scan" in n["Node Type"]
                and not (name := n.get("Index Name") or n["Node Type"]).startswith("resource_kind")
                and n.get("Relation Name") != "resource_kind"
            ]
            got = cursor.execute(sql.text.encode(), sql.args).fetchall()
        try:
            sql = steps.send(got)
        except StopIteration as end:
            return [row["id"] for row in end.value], scans, buffers


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def test_patient_code_and_date_use_the_patient_index(filled: psycopg.Connection[Any]) -> None:
    query = f"patient={patient(3)}&code=http://loinc.org|1&date=ge2024-02-01&date=lt2024-12-01"
    for asked in (query, query + "&_sort=-date", query + "&category=laboratory&status=final"):
        _, scans, buffers = run(filled, asked)
        assert set(scans) == {"resource_patient"}, asked
        assert buffers < 300


def test_identifiers_use_the_token_index(filled: psycopg.Connection[Any]) -> None:
    ids, scans, buffers = run(filled, "identifier=http://x/filler|4711")
    assert len(ids) == 1
    assert "resource_tokens" in scans
    assert "Seq Scan" not in scans
    assert buffers < 60


@pytest.mark.parametrize("size", [2, 50, 200])
def test_lists_of_values_keep_their_plan(filled: psycopg.Connection[Any], size: int) -> None:
    found, scans, _ = run(filled, "identifier=" + ",".join(f"http://x/filler|{n * 7}" for n in range(size)))
    assert len(found) == min(size, 51)
    assert scans.count("resource_tokens") >= 1
    assert "resource_pkey" not in scans
    # Codes nothing has: PostgreSQL cannot know, and must not walk the table to find out.
    none, scans, buffers = run(filled, "code=" + ",".join(f"http://nowhere|{n}" for n in range(size)))
    assert none == []
    assert "resource_by_kind" in scans
    assert "Seq Scan" not in scans
    assert buffers < 8000


def test_a_common_code_fills_its_page_without_collecting_everything(filled: psycopg.Connection[Any]) -> None:
    found, scans, buffers = run(filled, "code=http://loinc.org|0")
    assert len(found) == 51
    assert "Seq Scan" not in scans
    # A quarter of all results has this code, each on a page of its own.
    assert buffers < 1500
    _, scans, more = run(filled, "code=http://loinc.org|0&_sort=-date")
    assert "Seq Scan" not in scans
    assert more < 1500


def test_pages_in_windows_give_every_match_once_and_in_order(filled: psycopg.Connection[Any]) -> None:
    for code in ("0", "3", str(CODES - 1)):
        wanted = filled.execute(
            "SELECT r.id FROM resource r JOIN resource_kind k ON k.id = r.tokens[1] WHERE r.rtype = %s AND k.tokens @> %s"
            " ORDER BY r.shard, r.id",
            (RESOURCE_TYPES["Observation"], [code_hash(code)]),
        ).fetchall()
        for sort in ("", "&_sort=-date", "&_sort=date", "&_sort=_lastUpdated"):
            seen = walked(filled, f"code=http://loinc.org|{code}{sort}", 97)
            if not sort:
                assert seen == [row[0] for row in wanted]
            assert sorted(seen) == sorted(row[0] for row in wanted)
    times = dict(filled.execute("SELECT id, start_at FROM resource").fetchall())
    seen = walked(filled, "code=http://loinc.org|0&_sort=-date", 97)
    assert [times[i] for i in seen] == sorted((times[i] for i in seen), reverse=True)


def code_hash(code: str) -> int:
    (path, _), *_ = parameters("Observation")["code"].paths
    return hash_of(path.seed, f"http://loinc.org|{code}")


def walked(conn: psycopg.Connection[Any], query: str, size: int) -> list[str]:
    """Ids of all pages, one after the other."""
    parsed = parse("Observation", parse_qsl(query))
    out: list[str] = []
    while True:
        rows = drive(conn, page.rows(parsed, CONTEXT, size + 1))
        out += [row["id"] for row in rows[:size]]
        if len(rows) <= size:
            return out
        parsed = replace(parsed, cursor=page.encode(parsed, page.place_of(parsed, rows[size - 1])))


def drive(
    conn: psycopg.Connection[Any], steps: Generator[page.Sql, Sequence[page.Row], list[page.Row]]
) -> list[page.Row]:
    sql = next(steps)
    while True:
        with psycopg.RawCursor(conn, row_factory=dict_row) as cursor:
            got = cursor.execute(sql.text.encode(), sql.args).fetchall()
        try:
            sql = steps.send(got)
        except StopIteration as end:
            found: list[page.Row] = end.value
            return found


def test_a_rare_code_is_collected_by_index(filled: psycopg.Connection[Any]) -> None:
    found, scans, buffers = run(filled, f"code=http://loinc.org|{CODES - 1}")
    assert found
    assert "resource_by_kind" in scans
    assert buffers < 1500


def test_newest_first_over_all_patients_walks_the_date_index(filled: psycopg.Connection[Any]) -> None:
    for query in ("_sort=-date", "_sort=date", "_sort=-date&status=final", "_sort=-_lastUpdated"):
        found, scans, buffers = run(filled, query)
        assert len(found) == 51
        walks = {"resource_type_start", "resource_type_updated", "Subquery Scan"}
        assert set(scans) <= walks | ({"resource_by_kind", "Bitmap Heap Scan"} if "status" in query else set()), query
        assert buffers < 500


def test_what_was_stored_lately_is_found_by_its_time(filled: psycopg.Connection[Any]) -> None:
    found, scans, buffers = run(filled, "_lastUpdated=gt2025-02-19")
    assert found
    assert set(scans) == {"resource_type_updated"}
    assert buffers < 300


@pytest.mark.parametrize(
    ("type_", "query", "expected"),
    [
        # The other end is named: its index finds it, and the index of the patient what is about it.
        ("Observation", "patient.identifier=http://x/mrn|7", 51),
        ("Observation", "subject:Patient.identifier=http://x/mrn|7,http://x/mrn|8", 51),
        ("Observation", "based-on:ServiceRequest.identifier=http://x/placer|7", 51),
        ("Observation", "based-on:ServiceRequest.patient.identifier=http://x/mrn|7", 51),
        ("Observation", "patient.identifier=http://x/mrn|none", 0),
        ("Patient", "_has:Observation:patient:identifier=http://x/filler|4711", 1),
        ("Patient", "_has:Observation:patient:code=http://loinc.org|nothing", 0),
        ("Patient", "_has:Observation:patient:code=http://loinc.org|0", 51),
        ("DiagnosticReport", "result.code=http://loinc.org|nothing", 0),
        ("DiagnosticReport", "result.code=" + ",".join(f"http://loinc.org|none-{n}" for n in range(200)), 0),
        ("Patient", "_has:Observation:patient:based-on:ServiceRequest.identifier=http://x/placer|7", 1),
        ("ServiceRequest", "_has:Observation:based-on:code=http://loinc.org|0", 51),
        ("ServiceRequest", "identifier=http://x/placer|7&_has:Observation:based-on:code=http://loinc.org|0", 1),
        ("Patient", "_has:Observation:patient:identifier=" + ",".join(f"http://x/filler|{n}" for n in range(200)), 51),
    ],
)
def test_chains_and_has_stay_on_indexes(filled: psycopg.Connection[Any], type_: str, query: str, expected: int) -> None:
    found, scans, buffers = run(filled, query, type_)
    assert len(found) == expected
    assert "Seq Scan" not in scans
    # Where nothing says how much matches, up to 200 Patients are looked at first, 100 results each.
    assert buffers < 30_000
