"""``tongjian bench search``: the searches of the day, through the API as shipped (token, access filter, audit).

The figures on top are those of patient + code + date. ``page_1000`` asks for pages of 1,000 Observations.
"""

from __future__ import annotations

from typing import Any

import psycopg

from fhir_server.bench import queries
from fhir_server.bench.clients import CLIENTS, ask
from fhir_server.bench.server import Running, peak_megabytes

_WARM_UP = 2.0
_PAGE = 1000


def measure(running: Running, *, seconds: float) -> dict[str, Any]:
    """Figures of each kind of search, with 8 clients."""
    with psycopg.connect(running.url, autocommit=True) as conn:
        paths = queries.searches(conn)
    figures: dict[str, Any] = {}
    for name, asked in paths.items():
        ask(running, asked, seconds=_WARM_UP)
        seen = ask(running, asked, seconds=seconds)
        figures[name] = {**seen.figures(), "bytes_per_answer": round(seen.size / len(seen.ms))}
        if name == "page_1000":
            figures[name]["resources_per_s"] = round(_PAGE * len(seen.ms) / seen.seconds)
    first = figures.pop("patient_code_date")
    return {**first, **figures, "clients": CLIENTS, "server_peak_mb": round(peak_megabytes(running.pid), 1)}
