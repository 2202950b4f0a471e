"""A county year with planted truth: the audit, which does not know it, finds every case with its kind and cause, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.bench.planted import Year, plant
from fhir_server.duplicates import detect
from fhir_server.recognition import rules as rules_module
from fhir_server.store.body import Codec
from mappings.profile import load_profiles

BEGIN, END = datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
DAYS = [datetime(2025, month, 17, 1, 30, tzinfo=UTC) for month in (3, 9)]
SEED = 20250317


def _placers(conn: psycopg.Connection[Any]) -> dict[str, str]:
    """ServiceRequest/<id> -> its placer number."""
    codec = Codec.load(conn)
    rows = conn.execute(
        'SELECT id, dict, body, patient, "order" FROM resource WHERE rtype = %s AND NOT deleted',
        (RESOURCE_TYPES["ServiceRequest"],),
    )
    return {
        f"ServiceRequest/{logical}": loads(codec.decompress(number, body, (logical, *names)))["identifier"][0]["value"]
        for logical, number, body, *names in rows
    }


def test_every_planted_case_is_found_with_its_kind_and_none_is_invented(database_url: str) -> None:
    profiles = load_profiles()
    year = Year(profiles, DAYS, SEED)
    plant(database_url, profiles, year)
    with psycopg.connect(database_url) as conn:
        report = detect.audit(conn, rules_module.load(), profiles, BEGIN, END)
        placers = _placers(conn)
    truth = {p.placer: p for p in year.planted}
    told = {placers[f.order]: (f.kind, f.cause) for f in report.findings}
    assert {(truth[p].case if p in truth else p, *told.get(p, ("", ""))) for p in told.keys() | truth.keys()} == {
        (p.case, p.kind, p.cause) for p in year.planted
    }, f"seed {SEED}"
    assert set(told) == {p.placer for p in year.planted if p.kind}
    assert {f.kind for f in report.findings} == {"avoidable", "justified", "undetermined", "system"}
