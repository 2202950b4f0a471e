"""Who asks: tokens at the door of the API, and the record of who was turned away."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from fhir_server.access import Principal, issue_token
from fhir_server.api.security import Asker, permit, permit_role
from fhir_server.errors import Category, Fault
from fhir_server.keys import Keys
from fhir_server.settings import Settings

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


class Recorder:
    """Stands for the audit log: keeps what is recorded, or fails as it does when the database is away."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, str, tuple[str, ...], str, str, str]] = []
        self.away = False

    async def record(
        self, principal: Principal | None, action: str, interaction: str, types: tuple[str, ...], **rest: Any
    ) -> None:
        if self.away:
            raise Fault(Category.UNAVAILABLE, "away")
        subject = principal.subject if principal else ""
        self.entries.append((subject, action, interaction, types, rest["query"], rest["outcome"], rest["address"]))


class Api:
    """A small application with one guarded interaction and one guarded operation."""

    def __init__(self, folder: Path) -> None:
        self.keys = Keys.load(folder)
        self.audit = Recorder()
        self.app = FastAPI()
        self.app.state.services = SimpleNamespace(
            keys=self.keys, issuers=None, audit=self.audit, clock=lambda: NOW, settings=Settings()
        )

        @self.app.exception_handler(Fault)
        async def answer(_: Request, fault: Exception) -> JSONResponse:
            assert isinstance(fault, Fault)
            return JSONResponse({"text": fault.text}, fault.category.status, dict(fault.headers))

        @self.app.get("/Observation")
        async def search(request: Request, asker: Asker) -> str:
            await permit(request, asker, "search-type", "Observation")
            return asker.subject

        @self.app.post("/$report")
        async def report(request: Request, asker: Asker) -> str:
            await permit_role(request, asker, "$report", "auditor", "administrator")
            return asker.role

    def send(self, method: str, path: str, **headers: str) -> httpx.Response:
        async def inside() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, client=("10.0.0.7", 5000))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(inside())

    def token(self, role: str = "clinician", *scopes: str) -> str:
        text = issue_token(self.keys, "dr-li", role, "county", scopes, ttl=timedelta(hours=1), now=NOW)
        return f"Bearer {text}"


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def test_a_valid_token_gets_in_and_nothing_is_recorded_here(api: Api) -> None:
    answer = api.send("GET", "/Observation", authorization=api.token())
    assert (answer.status_code, answer.json()) == (200, "dr-li")
    assert api.audit.entries == []


def test_without_a_token_the_answer_is_401_and_is_recorded(api: Api) -> None:
    answer = api.send("GET", "/Observation?code=1")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="tongjian"'
    assert api.audit.entries == [("", "E", "authenticate", (), "code=1", "4", "10.0.0.7")]


def test_a_missing_scope_is_403_and_is_recorded_with_the_holder(api: Api) -> None:
    answer = api.send("GET", "/Observation", authorization=api.token("clinician", "user/Patient.rs"))
    assert answer.status_code == 403
    assert 'scope="user/Observation.s"' in answer.headers["www-authenticate"]
    assert api.audit.entries == [("dr-li", "E", "search-type", ("Observation",), "", "4", "10.0.0.7")]


def test_a_missing_role_is_403_and_is_recorded(api: Api) -> None:
    assert api.send("POST", "/$report", authorization=api.token("auditor")).json() == "auditor"
    assert api.send("POST", "/$report", authorization=api.token("clinician")).status_code == 403
    assert api.audit.entries == [("dr-li", "E", "$report", (), "", "4", "10.0.0.7")]


def test_a_refusal_is_answered_as_one_even_when_it_cannot_be_recorded(api: Api) -> None:
    api.audit.away = True
    assert api.send("GET", "/Observation").status_code == 401
    assert api.send("GET", "/Observation", authorization=api.token("clinician", "user/Patient.r")).status_code == 403
