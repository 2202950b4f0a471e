"""The duplicate audit of one year on a database of a given size: seconds, pairs looked at, findings."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from fhir_server.bench.year import BEGIN, YEAR
from fhir_server.duplicates import detect, findings, lake, parquet
from fhir_server.recognition import rules as rules_module
from mappings import catalogue
from mappings.profile import load_profiles


def measure(
    url: str, profiles: Path | None, rules: Path | None, processes: int, *, keep: bool = True
) -> dict[str, Any]:
    """Audits the year of ``bench.year`` with as many processes; keeping the findings is timed apart."""
    began = time.perf_counter()
    report = detect.audit_at(url, profiles, rules, BEGIN, BEGIN + YEAR, processes=processes)
    seconds = time.perf_counter() - began
    figures: dict[str, Any] = {
        "seconds": round(seconds, 1),
        "pairs": report.pairs,
        "findings": len(report.findings),
        "orders": sum(row.orders for row in report.rows),
        "partial": sum(row.partial for row in report.rows),
        "kinds": dict(sorted(Counter(f.kind for f in report.findings).items())),
        "processes": processes,
    }
    if keep:
        with psycopg.connect(url) as conn:
            findings.keep(conn, report, datetime.now(UTC))
        figures["keep_seconds"] = round(time.perf_counter() - began - seconds, 1)
    return figures


def on_parquet(url: str, profiles: Path | None, rules: Path | None, folder: Path) -> dict[str, Any]:
    """Writes the year as Parquet and audits it on DuckDB; seconds of both."""
    known, chosen = load_profiles(profiles, catalogue=catalogue.of(rules)), rules_module.load(rules)
    began = time.perf_counter()
    with psycopg.connect(url) as conn:
        rows = parquet.export(
            conn, chosen, known, parquet.Wanted(BEGIN, BEGIN + YEAR, sensitive=True, words=True), folder
        )
    written = time.perf_counter()
    report = lake.audit(lake.Duck(), folder, chosen, known, BEGIN, BEGIN + YEAR)
    return {
        "export_seconds": round(written - began, 1),
        "megabytes": round(sum(f.stat().st_size for f in folder.rglob("*.parquet")) / 1e6, 1),
        "rows": rows,
        "duckdb_seconds": round(time.perf_counter() - written, 1),
        "pairs": report.pairs,
        "findings": len(report.findings),
    }
