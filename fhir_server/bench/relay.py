"""``tongjian bench relay``: messages over MLLP into a relay, and on to a server beside it; both as shipped, on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from adapters.transports.mllp import Sender
from fhir_server.bench.messages import messages
from fhir_server.bench.server import BenchFailed, database, serving
from fhir_server.demo.county import COUNTY
from fhir_server.settings import Settings
from mappings.profile import load_profiles

SEED = 20260301
_WITHIN = 600.0


def run(settings: Settings, *, count: int, connections: int) -> dict[str, Any]:
    """One run without converters -> figures by name. Raises BenchFailed."""
    settings = settings.model_copy(update={"workers": 0})
    profiles = load_profiles(settings.profiles_dir)
    now = datetime.now(settings.zone)
    made = messages(profiles, count * 4, now, seed=SEED)
    raw = [m.raw for m in made if m.facility == COUNTY.facility][:count]
    with (
        TemporaryDirectory(prefix="tongjian-bench-") as temporary,
        database(settings) as url,
        serving(settings, url) as running,
    ):
        folder = Path(temporary)
        (folder / "token").write_text(running.token)
        command = [sys.executable, "-m", "fhir_server.cli", "relay", "--data", str(folder), "--mllp-port", "0"]
        environment = dict(
            os.environ,
            TONGJIAN_RELAY_SERVER=running.fhir.removesuffix("/fhir"),
            TONGJIAN_RELAY_SECRET_FILE=str(folder / "token"),
            TONGJIAN_LOG_LEVEL="WARNING",
        )
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own program
        try:
            assert process.stdout is not None
            host, _, port = process.stdout.readline().split()[1].rpartition(":")
            began = time.perf_counter()
            slow = asyncio.run(_send(raw, host, int(port), connections))
            taken = time.perf_counter() - began
            _await(url, len(raw))
            elapsed = time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    return {
        "acknowledged_per_s": round(len(raw) / taken, 1),
        "forwarded_per_s": round(len(raw) / elapsed, 1),
        "ack_p99_ms": round(sorted(slow)[int(len(slow) * 0.99)] * 1000, 1),
        "messages": len(raw),
        "connections": connections,
        "bytes_per_message": round(sum(map(len, raw)) / len(raw)),
    }


async def _send(raw: Sequence[bytes], host: str, port: int, connections: int) -> list[float]:
    async def one(part: Sequence[bytes]) -> list[float]:
        times = []
        async with Sender(host, port) as sender:
            for message in part:
                began = time.perf_counter()
                answer = await sender.send(message)
                if answer.code not in ("AA", "CA"):
                    raise BenchFailed(f"The relay answered {answer.code}.")
                times.append(time.perf_counter() - began)
        return times

    parts = await asyncio.gather(*(one(raw[n::connections]) for n in range(connections)))
    return [t for part in parts for t in part]


def _await(url: str, number: int) -> None:
    until = time.monotonic() + _WITHIN
    with psycopg.connect(url, autocommit=True) as conn:
        while True:
            row = conn.execute("SELECT count(*) FROM relayed").fetchone()
            if row and row[0] == number:
                return
            if time.monotonic() > until:
                raise BenchFailed(f"Of {number} messages {row and row[0]} reached the server.")
            time.sleep(0.05)
