"""The audit over Parquet finds what the audit of the database finds, finding for finding; and the files tell nobody who is who."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import psycopg
import pytest

from fhir_server.bench.planted import Year, plant
from fhir_server.duplicates import detect, lake, parquet
from fhir_server.recognition import rules as rules_module
from mappings.profile import load_profiles

BEGIN, END = datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
DAYS = [datetime(2025, 3, 17, 1, 30, tzinfo=UTC)]
SEED = 20250318


def test_duckdb_over_parquet_finds_what_postgresql_finds(database_url: str, tmp_path: Path) -> None:
    profiles, rules = load_profiles(), rules_module.load()
    year = Year(profiles, DAYS, SEED)
    plant(database_url, profiles, year)
    with psycopg.connect(database_url) as conn:
        told = detect.audit(conn, rules, profiles, BEGIN, END)
        rows = parquet.export(conn, rules, profiles, parquet.Wanted(BEGIN, END, sensitive=True), tmp_path / "out")
        with pytest.raises(FileExistsError):
            parquet.export(conn, rules, profiles, parquet.Wanted(BEGIN, END), tmp_path / "out")
    found = lake.audit(lake.Duck(), tmp_path / "out", rules, profiles, BEGIN, END)
    assert rows["orders"] == sum(row.orders for row in told.rows)
    assert {f.kind for f in told.findings} == {"avoidable", "justified", "undetermined", "system"}
    assert found == told, f"seed {SEED}"
    with pytest.raises(lake.NotAnExport):
        lake.audit(lake.Duck(), tmp_path / "out", rules, profiles, BEGIN - timedelta(days=1), END)


def test_an_export_names_no_person_and_leaves_sensitive_items_out(database_url: str, tmp_path: Path) -> None:
    profiles, rules = load_profiles(), rules_module.load()
    year = Year(profiles, DAYS, SEED)
    plant(database_url, profiles, year)
    with psycopg.connect(database_url) as conn:
        parquet.export(conn, rules, profiles, parquet.Wanted(BEGIN, END), tmp_path)
    with duckdb.connect() as duck:
        text = " ".join(
            str(duck.sql(f"SELECT * FROM read_parquet('{tmp_path}/{name}/*.parquet')").fetchall())
            for name in lake.TABLES
        )
        items = {i for (i,) in duck.sql(f"SELECT DISTINCT item FROM read_parquet('{tmp_path}/results/*')").fetchall()}
    assert all(p.placer not in text for p in year.planted)
    names = {person.name for person in year.drawn}
    assert names
    assert [name for name in names if name in text] == []
    assert [i for i in items if i and rules.items[i].sensitivity] == []
