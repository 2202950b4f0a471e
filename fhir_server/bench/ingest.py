"""``tongjian bench ingest``: messages over MLLP until all are stored and searchable, and what they take on disk.

Three runs on one fresh database: warm-up (connections, code tables, caches), throughput (closed loop), and acknowledgement times at a
steady rate (open loop) while the converters work on the same two cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import psycopg

from conformance.capability import RESOURCE_TYPES
from fhir_server.bench import floor, sender
from fhir_server.bench.http import Client
from fhir_server.bench.messages import messages
from fhir_server.bench.sender import Sent
from fhir_server.bench.server import BenchFailed, Running, Used, database, peak_megabytes, postmaster_of, serving, used
from fhir_server.bench.sizes import bytes_per_observation, one
from fhir_server.demo.county import COUNTY
from fhir_server.settings import Settings
from mappings.profile import Profile, load_profiles

SEED = 20260301
_DRAIN_WITHIN = 900.0
_LOOK_EVERY = 0.1
"""Seconds: looking fifty times a second took a tenth of a core from what is measured."""
_WARM_UP = 400
_READS = 2000
_AUDIT_SIZE = "SELECT pg_total_relation_size('audit_entry')"


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database holds: rows and bytes."""

    observations: int
    resources: int
    messages: int


def run(
    settings: Settings, *, count: int, rate: float, seconds: float, connections: int, batch_megabytes: int = 0
) -> dict[str, Any]:
    """One run -> figures by name (those of the issue first). Raises BenchFailed.

    rate, seconds    of the open loop
    batch_megabytes  size of a batch file (FHS, BHS) sent at the end by ``tongjian send hl7``; 0: none
    """
    profiles = load_profiles(settings.profiles_dir)
    with TemporaryDirectory(prefix="tongjian-bench-") as temporary, database(settings) as url:
        files = _write(Path(temporary), settings, profiles, count, round(rate * seconds))
        with serving(settings, url) as running, psycopg.connect(url, autocommit=True) as conn:
            postmaster = postmaster_of(conn)
            _send(running, files["warm-up"], connections)
            _drained(conn)
            before, used_before = _stored(conn), used(running, postmaster)
            began = time.perf_counter()
            sent = _send(running, files["load"], connections)
            _drained(conn)
            _searchable(conn, running)
            elapsed = time.perf_counter() - began
            spent = used(running, postmaster).since(used_before)
            after = _stored(conn)
            if after.messages - before.messages != count or sent.refused:
                raise BenchFailed(
                    f"{count} messages were sent, {after.messages - before.messages} stored, {sent.refused} refused."
                )
            figures: dict[str, Any] = {
                "messages_per_s": round(count / elapsed, 1),
                "resources_per_s": round((after.resources - before.resources) / elapsed, 1),
                "messages": count,
                "resources": after.resources - before.resources,
                "observations": after.observations - before.observations,
                "received_per_s": round(count / sent.seconds, 1),
                **_cpu(spent, count),
            }
            steady = _send(running, files["steady"], connections * 2, rate)
            figures["ack_p50_ms"] = round(steady.percentile(0.5), 2)
            figures["ack_p99_ms"] = round(steady.percentile(0.99), 2)
            figures["ack_max_ms"] = round(steady.percentile(1.0), 2)
            figures["ack_rate_per_s"] = round(steady.messages / steady.seconds, 1)
            _drained(conn)
            figures.update(bytes_per_observation(conn))
            figures["inbox_bytes_per_message"] = _inbox(conn, _stored(conn).messages)
            figures["audit_bytes_per_read"] = _audit(conn, running)
            if batch_megabytes:
                figures.update(_batch(running, conn, Path(temporary), profiles, settings, batch_megabytes))
            figures["server_peak_mb"] = round(peak_megabytes(running.pid), 1)
            figures["worker_peak_mb"] = round(max(map(peak_megabytes, running.workers()), default=0.0), 1)
        figures.update(floor.copy_again(url))
        return figures


def _write(folder: Path, settings: Settings, profiles: Mapping[str, Any], count: int, steady: int) -> dict[str, Path]:
    """The messages of the three runs, written before any clock starts."""
    now = datetime.now(settings.zone)
    files = {}
    start = 0
    for seed, (name, number) in enumerate(
        (("warm-up", min(_WARM_UP, count)), ("load", count), ("steady", steady)), SEED
    ):
        files[name] = folder / name
        sender.write(files[name], messages(profiles, number, now, seed=seed, start=start))
        start += number
    return files


def _batch(
    running: Running,
    conn: psycopg.Connection[Any],
    folder: Path,
    profiles: Mapping[str, Profile],
    settings: Settings,
    megabytes: int,
) -> dict[str, Any]:
    """One facility sends a whole history as one batch file (HL7 v2.5.1 section 2.10.3); how long until all of it is stored."""
    file = folder / "batch.hl7"
    now = datetime.now(settings.zone)
    count = size = 0
    with file.open("wb") as out:
        out.write(b"FHS|^~\\&|LIS|YXRMYY\rBHS|^~\\&|LIS|YXRMYY\r")
        while size < megabytes * 1_000_000:
            for m in messages(profiles, 2000, now, seed=SEED + 10 + count, start=10_000_000 + count):
                if m.facility == COUNTY.facility:
                    size += out.write(m.raw)
                    count += 1
        out.write(b"BTS|%d\rFTS|1\r" % count)
    command = [sys.executable, "-m", "fhir_server.cli", "send", "hl7", str(file), "--from", COUNTY.address]
    command += ["--host", running.mllp_host, "--port", str(running.mllp_port)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own program
    _, status, spent = os.wait4(process.pid, 0)
    if status:
        raise BenchFailed("The batch file could not be sent; the reasons stand above.")
    _drained(conn)
    return {
        "batch_megabytes": round(size / 1e6),
        "batch_messages": count,
        "batch_seconds": round(time.perf_counter() - began, 1),
        "batch_sender_peak_mb": round(spent.ru_maxrss * 1024 / 1e6, 1),
    }


def _send(running: Running, file: Path, connections: int, rate: float = 0.0) -> Sent:
    command = [sys.executable, "-m", "fhir_server.bench.sender", str(file), running.mllp_host, str(running.mllp_port)]
    command += ["--connections", str(connections), "--rate", str(rate)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603 - our own program
    if done.returncode:
        raise BenchFailed("The sender failed; its messages stand above.")
    return Sent(**orjson.loads(done.stdout))


def _drained(conn: psycopg.Connection[Any]) -> None:
    """Returns once nothing waits for a converter."""
    until = time.monotonic() + _DRAIN_WITHIN
    while True:
        row = conn.execute("SELECT status FROM inbox WHERE status IN ('ready', 'claimed') LIMIT 1").fetchone()
        if row is None:
            break
        if time.monotonic() > until:
            raise BenchFailed(f"Messages still wait for a converter after {_DRAIN_WITHIN:.0f} s.")
        time.sleep(_LOOK_EVERY)
    held = conn.execute("SELECT count(*), min(reason) FROM inbox WHERE status IN ('held', 'failed')").fetchone()
    if held is not None and held[0]:
        raise BenchFailed(f"{held[0]} messages were held or refused ({held[1]}).")


def _searchable(conn: psycopg.Connection[Any], running: Running) -> None:
    """The newest Observation is found by patient through the API, or the bench fails."""
    row = conn.execute(
        "SELECT id, patient FROM resource WHERE rtype = %s ORDER BY seq DESC LIMIT 1", (RESOURCE_TYPES["Observation"],)
    ).fetchone()
    if row is None:
        raise BenchFailed("No result was stored.")
    with Client(running.fhir, running.token) as client:
        answer = client.get(f"Observation?patient={row[1]}&_id={row[0]}")
    if row[0].encode() not in answer.body:
        raise BenchFailed("A stored result is not found by a search.")


def _stored(conn: psycopg.Connection[Any]) -> Stored:
    row = conn.execute(
        "SELECT (SELECT count(*) FROM result), (SELECT count(*) FROM resource) + (SELECT count(*) FROM resource_history),"
        " (SELECT count(*) FROM inbox WHERE status = 'done')"
    ).fetchone()
    assert row is not None
    return Stored(*row)


def _cpu(spent: Used, count: int) -> dict[str, float]:
    """Processor time of each part for one message."""
    return {
        "cpu_ms_per_message_server": round(spent.server * 1000 / count, 3),
        "cpu_ms_per_message_workers": round(spent.workers * 1000 / count, 3),
        "cpu_ms_per_message_postgres": round(spent.postgres * 1000 / count, 3),
    }


def _inbox(conn: psycopg.Connection[Any], messages: int) -> int:
    conn.execute("VACUUM (ANALYZE) inbox")
    return round(one(conn, "SELECT pg_total_relation_size('inbox')") / max(1, messages))


def _audit(conn: psycopg.Connection[Any], running: Running) -> int:
    """Growth of the audit log for one read."""
    ids = [row[0] for row in conn.execute("SELECT id FROM result LIMIT %s", (_READS,))]
    conn.execute("VACUUM audit_entry")
    before = one(conn, _AUDIT_SIZE)
    with Client(running.fhir, running.token) as client:
        for logical in ids:
            client.get(f"Observation/{logical}")
    conn.execute("VACUUM audit_entry")
    return round((one(conn, _AUDIT_SIZE) - before) / len(ids))
