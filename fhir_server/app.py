"""The composition root: opens what the interactions need and puts the routers together. The only place that knows every part."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Response
from fastapi.telemetry import TelemetryConfig
from prometheus_client import CONTENT_TYPE_LATEST

from fhir_server import clock
from fhir_server.api import (
    audit,
    authorization,
    cds_hooks,
    decisions,
    imaging,
    login,
    measures,
    messages,
    openapi,
    opened,
    origins,
    recognition,
    relay,
    responses,
    rest,
    soap,
)
from fhir_server.api.direct import Direct
from fhir_server.api.security import Asker
from fhir_server.audit_event import AuditLog
from fhir_server.authorization import Clients
from fhir_server.keys import Keys
from fhir_server.oidc import load_providers
from fhir_server.oidc_keys import Issuers
from fhir_server.recognition import rules
from fhir_server.recognition.ledger import Ledger
from fhir_server.scrape import Scrape
from fhir_server.search import params
from fhir_server.services import Services
from fhir_server.settings import Settings
from fhir_server.smart_clients import App, Client
from fhir_server.store import posted_parameters
from fhir_server.store.body import Codec
from fhir_server.store.database import Borrowed, open_pool, open_writer
from mappings.profile import Profile

_AWAY: tuple[type[Exception], ...] = (OSError, TimeoutError, *responses.DATABASE_AWAY)


# The framework's own traces carry paths and queries, that is names and numbers of patients: ours (fhir_server.tracing) do not.
_NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


async def open_services(settings: Settings, profiles: Mapping[str, Profile], url: str) -> Services:
    """Connections, keys, rules and evidence writers for one migrated database. Raises AccessError for keys or providers that cannot be
    used."""
    keys, issuers = Keys.load(settings.data_dir), Issuers.of(load_providers(settings.oidc_file))
    seconds = settings.statement_timeout_ms / 1000
    pool = await open_pool(url, settings.read_connections, statement_timeout=seconds)
    keyed = await open_pool(url, settings.read_connections, statement_timeout=seconds, keyed=True)
    writer = open_writer(url, settings.write_connections)
    with writer.connection() as conn:
        codec = Codec.load(conn)
        posted_parameters.learn(conn)
    log = AuditLog(url)
    ledger = Ledger(pool, settings.data_dir / "ledger-spool")
    return Services(
        settings=settings,
        pool=pool,
        writer=writer,
        codec=codec,
        audit=log,
        keys=keys,
        profiles=profiles,
        rules=rules.load(settings.rules_dir),
        ledger=ledger,
        clock=clock.of(settings),
        keyed=keyed,
        issuers=issuers,
    )


def create_app(services: Services, base_url: str, clients: Mapping[str, Client], apps: Mapping[str, App]) -> FastAPI:
    """The HTTP application: FHIR API under /fhir, CDS Hooks under /cds-services, tokens for the ``clients`` under /auth, health
    and metrics."""
    app = FastAPI(title="Tongjian", docs_url=None, redoc_url=None, openapi_url=None, telemetry=_NO_TELEMETRY)
    app.state.services = services
    app.state.base_url = base_url
    app.state.scrape = Scrape(services, {})
    app.state.intake_fault = str
    app.state.doors = None
    params.install(services.settings.zone, base_url)
    responses.install(app)
    app.add_middleware(Direct)
    origins.install(app, services.settings.cors_origins)
    app.state.clients, app.state.apps = Clients(clients), apps
    app.include_router(authorization.router)
    app.include_router(login.router)
    # Routes are tried in order: somebody waits for the order-time answer.
    app.include_router(cds_hooks.router)
    app.include_router(opened.router)
    app.include_router(imaging.router)
    app.include_router(rest.router, prefix="/fhir")
    app.include_router(recognition.router)
    app.include_router(decisions.router)
    app.include_router(messages.router)
    app.include_router(soap.router)
    app.include_router(relay.router)
    app.include_router(audit.router)
    app.include_router(measures.router)

    description = openapi.describe(app)

    @app.get("/openapi.json")
    async def openapi_description() -> dict[str, Any]:
        return description

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "up"}

    @app.get("/health/ready")
    async def ready(response: Response) -> dict[str, str]:
        try:
            async with asyncio.timeout(2), Borrowed(services.pool) as conn:
                await conn.fetchval("SELECT 1")
        except _AWAY as fault:
            response.status_code = 503
            return {"status": "database away", "reason": type(fault).__name__}
        if reason := app.state.intake_fault():
            # It can be read and not written: no space, no connection left for it, read-only.
            response.status_code = 503
            return {"status": "messages cannot be stored", "reason": reason}
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics(asker: Asker) -> Response:
        asker.require_role("administrator", "integrator", "system")
        return Response(await app.state.scrape.text(), media_type=CONTENT_TYPE_LATEST)

    return app
