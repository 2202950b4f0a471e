"""``tongjian bench poll``: a laboratory's table polled into the inbox by watermark, each row read, compared and durable."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import sqlalchemy as sa

from adapters.transports.dbpoll import PolledDatabase
from fhir_server.bench.server import BenchFailed, database
from fhir_server.ingest.polling import Poller
from fhir_server.settings import Settings
from mappings.profile import load_profiles

_PROFILE = """
id: polled
organization: {name: 被轮询医院}
tables:
  - name: lab
    columns: {PID-3: patient, PID-5: name, PID-7: born, OBR-3: report, OBR-4: panel, OBR-7: taken, OBR-22: reported, OBX-3: item,
              OBX-5: value, OBX-6: unit, OBX-7: range, OBX-11: status}
    constants: {OBR-25: F}
polls:
  - {name: lis, database: vendor, source: bench_lab, table: lab, report: [report], watermark: {column: written, overlap: 1800}}
"""
_TABLE = """
CREATE TABLE bench_lab (patient text, name text, born date, report text, panel text, taken timestamp, reported timestamp, item text,
                        value numeric(10,2), unit text, range text, status text, written timestamp)
"""
_FILL = """
INSERT INTO bench_lab
SELECT 'P' || n / 20 %% 5000, '病人' || n / 20 %% 5000, '1962-05-17', 'R' || n / 20, 'BIO', t - interval '2 hours', t, 'I' || n %% 20,
       (n * 7919 %% 10000) / 100.0, 'mmol/L', '3.9-6.1', 'F', t
FROM (SELECT n, timestamp '2026-01-01' + n / 20 * interval '7 seconds' AS t FROM generate_series(0, %s - 1) n) x
"""


def run(settings: Settings, *, rows: int) -> dict[str, Any]:
    """One run -> figures by name. Raises BenchFailed."""
    with TemporaryDirectory(prefix="tongjian-bench-") as temporary, database(settings) as url:
        (Path(temporary) / "polled.yaml").write_text(_PROFILE, encoding="utf-8")
        profile = load_profiles(Path(temporary))["polled"]
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(_TABLE)
            conn.execute(_FILL, (rows,))
            conn.execute("CREATE INDEX ON bench_lab (written)")
            conn.execute("CREATE INDEX ON bench_lab (report)")
            conn.execute("ANALYZE bench_lab")
        poll = profile.facility.polls[0]
        address = sa.make_url(url.replace("postgresql://", "postgresql+psycopg://"))

        async def look() -> tuple[int, float, float]:
            source = PolledDatabase(address, poll, profile.facility)
            poller = Poller(source, poll, profile, url, lambda: datetime.now(UTC))
            try:
                began, busy = time.perf_counter(), time.process_time()
                stored = await poller.look()
                return stored, time.perf_counter() - began, time.process_time() - busy
            finally:
                await poller.close()

        stored, seconds, cpu = asyncio.run(look())
        again, idle, _ = asyncio.run(look())
        if stored != -(-rows // 20) or again:
            raise BenchFailed(f"{rows} rows were {stored} messages, and {again} more at the second look.")
        return {
            "rows_per_min": round(rows / seconds * 60),
            "messages_per_s": round(stored / seconds, 1),
            "cpu_us_per_row": round(cpu / rows * 1e6, 1),
            "look_without_news_ms": round(idle * 1000, 1),
            "rows": rows,
            "messages": stored,
        }
