"""``tongjian bench recognize``: order-time answers through CDS Hooks as shipped (token, access, audit entry, ledger row).

Each call is an ``order-sign`` of the county hospital with one or two draft orders for a Patient of the loaded database. Measured are an
open loop of 50 calls a second and a closed loop of 16 clients; the figures on top are the worse of the two at p99.
"""

from __future__ import annotations

import random
from typing import Any, Final

import psycopg

from conformance import fhirjson, systems
from fhir_server.bench import queries
from fhir_server.bench.askers import INSTANCE, ask
from fhir_server.bench.server import BenchFailed, Running, peak_megabytes, postmaster_of, used
from fhir_server.store import versions
from mappings.profile import Profile

FACILITY: Final = "county-hospital"
RATE: Final = 50.0
CLIENTS: Final = 16
_OPEN_LINES: Final = 64
"""Connections of the open loop: enough for a second of unanswered calls, so that no call waits for a line of its own."""
_WARM_UP: Final = 3.0
_SERVICE: Final = "recognition-order-sign"
_RECENT: Final = """
SELECT patient FROM resource WHERE rtype = %s AND start_at > (SELECT max(start_at) FROM resource) - interval '14 days'
GROUP BY patient ORDER BY md5(patient) LIMIT 1000"""


def measure(running: Running, profile: Profile, *, seconds: float) -> dict[str, Any]:
    """Figures of both loops: p50_ms, p99_ms, requests_per_s, and how many of the calls ended with a card. ``profile``: of FACILITY.

    Raises BenchFailed when a call is refused, or when any was answered without a look (late, database away).
    """
    with psycopg.connect(running.url, autocommit=True) as conn:
        asked = bodies(conn, profile)
        address = f"{running.fhir.removesuffix('/fhir')}/cds-services/{_SERVICE}"
        ask(running, address, asked, seconds=_WARM_UP, clients=CLIENTS, rate=0)
        conn.execute("CHECKPOINT")
        rows = _rows(conn)
        postmaster = postmaster_of(conn)
        before = used(running, postmaster)
        opened = ask(running, address, asked, seconds=seconds, clients=_OPEN_LINES, rate=RATE)
        closed = ask(running, address, asked, seconds=seconds, clients=CLIENTS, rate=0)
        spent, after = used(running, postmaster).since(before), _rows(conn)
    told = {kind: after.get(kind, 0) - rows.get(kind, 0) for kind in after}
    if away := {k: n for k, n in told.items() if n and k.partition("/")[2] in ("late", "database-away", "audit-away")}:
        raise BenchFailed(f"Calls were not answered: {away}. Times of such calls would mean nothing.")
    worse = max((opened, closed), key=lambda a: a.figures()["p99_ms"]).figures()
    answers = len(opened.ms) + len(closed.ms)
    return {
        **worse,
        "requests_per_s": closed.figures()["requests_per_s"],
        "open_loop": {**opened.figures(), "rate": RATE},
        "closed_loop": {**closed.figures(), "clients": CLIENTS},
        "calls": answers,
        "reminders": told.get("reminder/", 0),
        "no_answers": sum(n for k, n in told.items() if k.startswith("no-answer")),
        "server_cpu_ms_per_call": round(spent.server * 1000 / answers, 2),
        "postgres_cpu_ms_per_call": round(spent.postgres * 1000 / answers, 2),
        "server_peak_mb": round(peak_megabytes(running.pid), 1),
    }


def bodies(conn: psycopg.Connection[Any], profile: Profile) -> list[bytes]:
    """CDS Hooks calls about Patients drawn from all over the table, each with one or two of the facility's order codes."""
    rng = random.Random(6)  # noqa: S311 - which orders a bench asks for
    anybody = [patient for _, patient, *_ in queries.drawn(conn)]
    recent = [patient for (patient,) in conn.execute(_RECENT, (versions.OBSERVATION,)).fetchall()]
    # Half of the calls are about somebody with results of the last days, as it is with people who are under treatment.
    patients = list(dict.fromkeys(p for pair in zip(anybody, recent * len(anybody), strict=False) for p in pair))
    codes = [(row.code, row.name) for row in profile.orders.rows]
    out = []
    for patient in patients:
        drafts = [
            {
                "resource": {
                    "resourceType": "ServiceRequest",
                    "id": f"draft-{n}",
                    "status": "draft",
                    "intent": "order",
                    "subject": {"reference": f"Patient/{patient}"},
                    "code": {
                        "coding": [{"system": systems.local_codes(profile.id, "orders"), "code": code, "display": name}]
                    },
                }
            }
            for n, (code, name) in enumerate(rng.sample(codes, rng.choice((1, 2))))
        ]
        bundle = {"resourceType": "Bundle", "type": "collection", "entry": drafts}
        context = {"userId": "Practitioner/bench", "patientId": patient, "draftOrders": bundle}
        body = {"hook": "order-sign", "hookInstance": INSTANCE.decode(), "context": context}
        out.append(fhirjson.dumps(body))
    return out


def _rows(conn: psycopg.Connection[Any]) -> dict[str, int]:
    """kind/reason -> number of ledger rows."""
    query = "SELECT kind || '/' || coalesce(entry::json ->> 'reason', ''), count(*) FROM ledger GROUP BY 1"
    return dict(conn.execute(query).fetchall())
