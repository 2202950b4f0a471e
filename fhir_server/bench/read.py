"""``tongjian bench read``: single resources by id, through the API as shipped (token, access filter, audit)."""

from __future__ import annotations

from typing import Any

import psycopg

from fhir_server.bench import queries
from fhir_server.bench.clients import CLIENTS, ask
from fhir_server.bench.server import Running, peak_megabytes

_WARM_UP = 2.0


def measure(running: Running, *, seconds: float) -> dict[str, Any]:
    """Figures of reads, with 8 clients."""
    with psycopg.connect(running.url, autocommit=True) as conn:
        paths = queries.reads(conn)
    ask(running, paths, seconds=_WARM_UP)
    asked = ask(running, paths, seconds=seconds)
    return {**asked.figures(), "clients": CLIENTS, "server_peak_mb": round(peak_megabytes(running.pid), 1)}
