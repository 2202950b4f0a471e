"""The recognition doors over the application: a county in a database, a server without a socket, and what a HIS sends."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
from fastapi import FastAPI

from conformance import systems
from fhir_server.access import issue_token
from fhir_server.api import audit as audit_routes
from fhir_server.api import cds_hooks, decisions, measures, messages, origins, recognition, responses, soap
from fhir_server.audit_event import AuditLog
from fhir_server.authorization import Clients
from fhir_server.ingest.receive import Receiver
from fhir_server.keys import Keys
from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.ledger import Ledger
from fhir_server.services import Services
from fhir_server.settings import Settings
from fhir_server.smart_clients import Client
from fhir_server.store.body import Codec
from fhir_server.store.database import open_pool, open_writer
from mappings.profile import Profile, load_profiles

NOW = datetime(2025, 11, 21, 1, 0, tzinfo=UTC)
SIGN = "/cds-services/recognition-order-sign"
RENAL = ["L0016", "L0018", "L0020"]
BASE = "https://county.example/fhir"

Scenario = Callable[[httpx.AsyncClient, Services], Awaitable[None]]


def play(
    scenario: Scenario,
    url: str,
    folder: Path,
    facility: str = "county-hospital",
    scopes: str = "user/*.rs",
    role: str = "clinician",
    clock: Callable[[], datetime] = lambda: NOW,
    clients: Mapping[str, Client] | None = None,
    profiles: Mapping[str, Profile] | None = None,
    **settings: Any,
) -> None:
    """Plays a scenario against the application; the client has a clinician's token of the county hospital."""
    rules, known = rules_module.load(), profiles or load_profiles()

    async def run() -> None:
        chosen = Settings(data_dir=folder, **settings)
        pool = await open_pool(url, 4)
        writer = open_writer(url, 1)
        with writer.connection() as conn:
            codec = Codec.load(conn)
        audit, ledger, keys = AuditLog(url), Ledger(pool, folder / "spool"), Keys.load(folder)
        services = Services(chosen, pool, writer, codec, audit, keys, known, rules, ledger, clock)
        app = FastAPI(openapi_url=None)
        app.state.services, app.state.base_url, app.state.clients = services, BASE, Clients(clients or {})
        responses.install(app)
        origins.install(app, chosen.cors_origins)
        receiver = Receiver(pool, known, clock=clock)
        app.state.doors = messages.Doors(receiver)
        for part in (cds_hooks, recognition, decisions, messages, soap, audit_routes, measures):
            app.include_router(part.router)
        token = issue_token(keys, "D001", role, facility, scopes.split(), ttl=timedelta(hours=1), now=clock())
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        await receiver.open()
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                client.headers["Authorization"] = f"Bearer {token}"
                await scenario(client, services)
        finally:
            await receiver.close()
            await audit.close()
            await ledger.close()
            await pool.close()
            writer.close()

    asyncio.run(run())


def draft(code: str = "SGN", id: str = "draft-1", system: str = "", **changes: Any) -> dict[str, Any]:
    system = system or systems.local_codes("county-hospital", "orders")
    return {
        "resourceType": "ServiceRequest",
        "id": id,
        "status": "draft",
        "intent": "order",
        "code": {"coding": [{"system": system, "code": code}]},
        **changes,
    }


def call(patient: str, *drafts: dict[str, Any], hook: str = "order-sign", **context: Any) -> dict[str, Any]:
    return {
        "hook": hook,
        "hookInstance": str(uuid.uuid5(uuid.NAMESPACE_URL, patient)),
        "fhirServer": "https://his.example/fhir",
        "context": {
            "userId": "Practitioner/D001",
            "patientId": patient,
            "draftOrders": {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": d} for d in drafts]},
            **context,
        },
        "prefetch": {"patient": {"resourceType": "Patient", "id": "somebody-else"}},
    }


def ledger_rows(url: str) -> list[dict[str, Any]]:
    with psycopg.connect(url) as conn:
        rows = conn.execute(
            "SELECT kind, facility, person, orderable, outcome, entry FROM ledger ORDER BY number"
        ).fetchall()
    return [
        dict(zip(("kind", "facility", "person", "orderable", "outcome"), r, strict=False)) | json.loads(r[5])
        for r in rows
    ]
