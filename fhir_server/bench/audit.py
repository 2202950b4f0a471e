"""The duplicate audit of one year on a database of a given size: seconds, pairs looked at, findings."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from fhir_server.bench.year import BEGIN, YEAR
from fhir_server.duplicates import detect, findings


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
