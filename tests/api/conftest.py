"""The FHIR API on a real socket over a real database: ``api`` for a test of its own data, ``Api`` to make others."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from fhir_server.access import default_scopes, issue_token
from fhir_server.api import authorization, login, opened, responses, rest
from fhir_server.api.direct import Direct
from fhir_server.audit_event import AuditLog
from fhir_server.authorization import Clients
from fhir_server.keys import Keys
from fhir_server.oidc_keys import Issuers
from fhir_server.search import params
from fhir_server.services import Services
from fhir_server.settings import Settings
from fhir_server.smart_clients import App
from fhir_server.store.body import Codec
from fhir_server.store.database import open_pool, open_writer
from tests.databases import Databases


@dataclass
class Api:
    """A running server. ``http`` is a client with a token that may do everything; ``base`` the address of the FHIR API."""

    http: httpx.Client
    base: str
    database_url: str
    keys: Keys

    def token(self, role: str = "integrator", scopes: str = "") -> str:
        """A token of the role, with its default scopes or the given ones (blank separated)."""
        granted = frozenset(scopes.split()) or default_scopes(role)
        return issue_token(self.keys, "tester", role, "county", granted, ttl=timedelta(hours=1), now=datetime.now(UTC))

    def create(self, **resource: Any) -> str:
        """Creates a resource; its logical id."""
        answer = self.http.post(f"/{resource['resourceType']}", json=resource)
        assert answer.status_code == 201, answer.text
        return cast(str, answer.json()["id"])

    def put(self, **resource: Any) -> httpx.Response:
        """Updates a resource under its id."""
        answer = self.http.put(f"/{resource['resourceType']}/{resource['id']}", json=resource)
        assert answer.status_code in (200, 201), answer.text
        return answer

    def search(self, query: str, **headers: str) -> dict[str, Any]:
        """The Bundle of a search that succeeds."""
        answer = self.http.get(f"/{query}", headers=headers)
        assert answer.status_code == 200, answer.text
        return cast(dict[str, Any], answer.json())

    def ids(self, query: str) -> list[str]:
        """Logical ids of the matches of a search, in order, all pages."""
        found: list[str] = []
        url = f"/{query}"
        while url:
            bundle = self.http.get(url).raise_for_status().json()
            found += [e["resource"]["id"] for e in bundle.get("entry", []) if e["search"]["mode"] == "match"]
            url = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), "")
        return found


@contextmanager
def serving(
    database_url: str,
    folder: Path,
    settings: dict[str, Any] | None = None,
    apps: dict[str, App] | None = None,
    issuers: Issuers | None = None,
) -> Iterator[Api]:
    """Runs the API in a thread on a free port."""
    chosen = Settings(data_dir=folder, **(settings or {}))
    keys = Keys.load(folder)
    codec_writer = open_writer(database_url, 4)
    with codec_writer.connection() as conn:
        codec = Codec.load(conn)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = await open_pool(database_url, 4, statement_timeout=chosen.statement_timeout_ms / 1000)
        audit = AuditLog(database_url)
        app.state.services = Services(
            settings=chosen,
            pool=pool,
            writer=codec_writer,
            codec=codec,
            audit=audit,
            keys=keys,
            profiles={},
            rules=cast(Any, None),
            ledger=cast(Any, None),
            clock=lambda: datetime.now(UTC),
            issuers=issuers,
        )
        yield
        await audit.close()
        await pool.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    responses.install(app)
    app.add_middleware(Direct)
    app.state.clients, app.state.apps = Clients({}), apps or {}
    app.include_router(authorization.router)
    app.include_router(login.router)
    app.include_router(opened.router)
    app.include_router(rest.router, prefix="/fhir")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        app.state.base_url = base = f"http://127.0.0.1:{port}/fhir"
        params.install(chosen.zone, base)
        with httpx.Client(base_url=base, timeout=30) as http:
            api = Api(http, base, database_url, keys)
            http.headers["Authorization"] = f"Bearer {api.token()}"
            yield api
    finally:
        server.should_exit = True
        thread.join(20)
        codec_writer.close()


@pytest.fixture
def api(database_url: str, tmp_path: Path) -> Iterator[Api]:
    """The API over an empty database."""
    with serving(database_url, tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def module_database_url(databases: Databases) -> Iterator[str]:
    """URL of a migrated database that the tests of one module share; dropped after them."""
    url = databases.take()
    try:
        yield url
    finally:
        databases.drop(url)


@pytest.fixture(scope="module")
def module_api(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The API over a database that the tests of one module share."""
    with serving(module_database_url, tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def serve(database_url: str, tmp_path: Path) -> Callable[..., Any]:
    """Runs the API over an empty database with given settings: ``with serve(max_request=4096) as api``."""
    return lambda **settings: serving(database_url, tmp_path, settings)
