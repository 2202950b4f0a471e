"""What is asked for in the read and search benches: real ids, patients, codes and days of a loaded database, drawn at random."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import quote

import orjson
import psycopg

from conformance.capability import RESOURCE_TYPES
from fhir_server.store.body import Codec
from mappings.ids import home_shard

_DRAWN = 2000
_AROUND = timedelta(days=30)


def drawn(conn: psycopg.Connection[Any], most: int = _DRAWN) -> list[tuple[str, str, Any, str]]:
    """Observations from all over the table: (id, patient, effective, LOINC)."""
    size = conn.execute("SELECT greatest(reltuples, 1) FROM pg_class WHERE oid = 'resource'::regclass").fetchone()
    assert size is not None
    share = min(100.0, 100.0 * most * 15 / float(size[0]))
    # Whole pages are drawn, many more than needed, and few rows of each taken; the seed makes the draw the same for the same table.
    return conn.execute(
        "SELECT r.id, r.patient, r.start_at, k.loinc FROM resource r TABLESAMPLE SYSTEM (%s) REPEATABLE (1)"
        " JOIN resource_kind k ON k.id = r.tokens[1] WHERE k.loinc IS NOT NULL AND r.start_at IS NOT NULL ORDER BY md5(r.id) LIMIT %s",
        (share, most),
    ).fetchall()


def reads(conn: psycopg.Connection[Any]) -> list[str]:
    """Reads of single Observations."""
    return [f"Observation/{logical}" for logical, *_ in drawn(conn)]


def searches(conn: psycopg.Connection[Any]) -> dict[str, list[str]]:
    """Name of a kind of search -> paths."""
    some = drawn(conn)
    coded = [quote(f"http://loinc.org|{code}") for code in sorted({loinc for *_, loinc in some})]
    return {
        "patient_code_date": [_by_code_and_date(*row) for row in some],
        "patient_history": [f"Observation?patient={patient}&_sort=-date&_count=100" for _, patient, *_ in some],
        "include": [
            f"DiagnosticReport?patient={patient}&_sort=-date&_count=3&_include=DiagnosticReport:result"
            for _, patient, *_ in some
        ],
        "page_1000": [f"Observation?code={code}&_count=1000" for code in coded],
        "lastn": [f"Observation/$lastn?patient={patient}" for _, patient, *_ in some],
        "has": [f"Patient?_has:Observation:patient:code={code}" for code in coded],
        "chain_to_patient": [f"Observation?patient.identifier={said}" for said in _identifiers(conn, some)],
        "chain_to_result": [
            f"DiagnosticReport?patient={patient}&result.code={quote(f'http://loinc.org|{code}')}"
            for _, patient, _, code in some
        ],
    }


def _identifiers(conn: psycopg.Connection[Any], some: list[tuple[str, str, Any, str]]) -> list[str]:
    """``system|value`` of the first identifier of each Patient."""
    codec = Codec.load(conn)
    patients = sorted({patient for _, patient, *_ in some})
    found = conn.execute(
        'SELECT r.dict, r.body, r.id, r.patient, r."order" FROM unnest(%s::smallint[], %s::text[]) AS k(shard, id)'
        " JOIN resource r ON r.shard = k.shard AND r.rtype = %s AND r.id = k.id ORDER BY md5(r.id)",
        ([home_shard("Patient", p) for p in patients], patients, RESOURCE_TYPES["Patient"]),
    ).fetchall()
    first = [orjson.loads(codec.decompress(row[0], bytes(row[1]), row[2:]))["identifier"][0] for row in found]
    return [quote(f"{i['system']}|{i['value']}") for i in first]


def _by_code_and_date(logical: str, patient: str, at: Any, loinc: str) -> str:
    low, high = at - _AROUND, at + _AROUND
    code = quote(f"http://loinc.org|{loinc}")
    return f"Observation?patient={patient}&code={code}&date=ge{low:%Y-%m-%d}&date=le{high:%Y-%m-%d}"
