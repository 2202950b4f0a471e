"""Answers: FHIR JSON, and an OperationOutcome for everything that goes wrong (http://hl7.org/fhir/R4/http.html#Status-Codes,
http://hl7.org/fhir/R4/operationoutcome.html). No stack trace and no stored data in an error."""

from __future__ import annotations

import gzip
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final

import asyncpg
import psycopg
import psycopg_pool
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from conformance import fhirjson
from conformance.issue import Issue
from fhir_server.api import refusals
from fhir_server.errors import Category, Fault
from fhir_server.store.change import Change

log = logging.getLogger(__name__)

FHIR_JSON: Final = "application/fhir+json; charset=utf-8"

_COMPRESSED_FROM: Final = 4096
# A page of results shrinks to a tenth within a millisecond; more effort would save little more.
_LEVEL: Final = 1
_GZIP: Final = re.compile(
    r"(?:^|,)\s*(?:gzip|\*)\s*(?:;\s*q=(?!0(?:\.0*)?\s*(?:,|$))[0-9.]+\s*)?(?:,|$)", re.IGNORECASE
)
"""An Accept-Encoding that takes gzip (RFC 9110 section 12.5.3)."""

DATABASE_AWAY: Final[tuple[type[Exception], ...]] = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    # No connection left, no memory, no disk.
    asyncpg.InsufficientResourcesError,
    # A database that is closed, renamed or dropped while it is restored, and a changed password: said when a connection is opened.
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.DatabaseDroppedError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InterfaceError,
    # What asyncpg says of a connection that the server ended between two statements.
    asyncpg.InternalClientError,
    psycopg.OperationalError,
    psycopg_pool.PoolTimeout,
    psycopg_pool.PoolClosed,
)
"""What the drivers raise while the database cannot be reached (beside OSError)."""

TOO_SLOW: Final[tuple[type[Exception], ...]] = (asyncpg.QueryCanceledError, psycopg.errors.QueryCanceled, TimeoutError)
"""What a statement raises that ran into its time limit."""

NOT_TEXT: Final[tuple[type[Exception], ...]] = (asyncpg.CharacterNotInRepertoireError, psycopg.DataError)
"""What the drivers raise for a text that PostgreSQL cannot hold: one with U+0000, from an address."""

EXPECTED: Final[tuple[type[Exception], ...]] = (Fault, *TOO_SLOW, OSError, *DATABASE_AWAY, psycopg.Error)
"""What a write may raise that concerns this write alone."""

_ISSUE_TYPE: Final = {
    "unknown-type": "structure",
    "unknown-element": "structure",
    "wrong-type": "structure",
    "not-json": "structure",
    "empty": "structure",
    "choice": "structure",
    "missing-element": "required",
    "bad-code": "code-invalid",
    "bad-format": "value",
    "bad-reference": "value",
    "wrong-value": "value",
    "invariant": "invariant",
}


def issue(severity: str, code: str, text: str, where: str = "") -> dict[str, Any]:
    """One OperationOutcome.issue; ``where`` is a FHIRPath, or the name of a header or parameter."""
    out: dict[str, Any] = {"severity": severity, "code": code, "details": {"text": text}, "diagnostics": text}
    if where:
        out["expression"] = [where]
    return out


def outcome(issues: Iterable[Mapping[str, Any]]) -> bytes:
    """An OperationOutcome as JSON."""
    return fhirjson.dumps({"resourceType": "OperationOutcome", "issue": list(issues)})


def stored_as(change: Change) -> dict[str, Any]:
    """What ``Prefer: return=OperationOutcome`` is told of a write."""
    return issue("information", "informational", f"{change.reference} is stored as version {change.version}.")


def outcome_of_issues(issues: Sequence[Issue]) -> list[dict[str, Any]]:
    """Validation issues as OperationOutcome.issue; ``Issue.value`` stays out, it may be patient data."""
    return [issue(i.severity, _ISSUE_TYPE.get(i.key, "invalid"), i.text, i.where) for i in issues]


class Invalid(Fault):
    """A resource that breaks the rules: 422 with one OperationOutcome.issue per problem."""

    def __init__(self, issues: Sequence[Issue]) -> None:
        super().__init__(Category.UNPROCESSABLE, "The resource is not valid.")
        self.issues = outcome_of_issues(issues)


def http_date(at: datetime) -> str:
    """An aware datetime as HTTP date (RFC 9110 section 5.6.7)."""
    return format_datetime(at.astimezone(UTC).replace(microsecond=0), usegmt=True)


def fhir(request: Request, body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """FHIR JSON as an HTTP answer; indented when the client asks with ``_pretty=true``, compressed when it takes gzip and the body is
    not small, without body for HEAD."""
    if body and b"pretty" in request.scope["query_string"] and request.query_params.get("_pretty") == "true":
        body = fhirjson.dumps(fhirjson.loads(body), pretty=True)
    told = dict(headers or {})
    if len(body) >= _COMPRESSED_FROM:
        told["Vary"] = "Accept-Encoding"
        if _GZIP.search(request.headers.get("accept-encoding", "")):
            told["Content-Encoding"] = "gzip"
            body = gzip.compress(body, _LEVEL, mtime=0)
    out = Response(body, status, told, FHIR_JSON if body else None)
    if request.method == "HEAD":
        # The length stays that of the GET answer (RFC 9110 section 9.3.2).
        out.body = b""
    return out


def issues_of(fault: Fault) -> list[dict[str, Any]]:
    """The issues an answer to the fault shows."""
    if isinstance(fault, Invalid):
        return fault.issues
    return [issue("error", fault.category.code, fault.text, fault.where)]


def fault_of(error: Exception) -> Fault:
    """Any exception as a Fault; what nobody expected becomes INTERNAL, without its text."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, TOO_SLOW):
        return Fault(
            Category.TIMEOUT,
            "The query took too long and was stopped. Narrow it, for example to one patient or a date.",
        )
    if isinstance(error, (OSError, *DATABASE_AWAY)):
        return Fault(Category.UNAVAILABLE, "The database cannot be reached now. Try again later.")
    if isinstance(error, NOT_TEXT):
        return Fault(Category.INVALID, "The address holds a character that no id or value has.")
    return Fault(Category.INTERNAL, "The server failed on this request. The failure has been logged.")


def _answer(request: Request, fault: Fault) -> Response:
    headers = dict(fault.headers)
    if fault.category.status == 503:
        headers.setdefault("Retry-After", "5")
    return fhir(request, outcome(issues_of(fault)), status=fault.category.status, headers=headers)


async def on_fault(request: Request, error: Exception) -> Response:
    """The answer to an error; what nobody expected is logged."""
    fault = fault_of(error)
    if fault.category is Category.INTERNAL:
        log.error("a request failed", exc_info=error)
    await refusals.record(request, fault)
    return _answer(request, fault)


async def _on_http(request: Request, error: Exception) -> Response:
    """404 and 405 of the router."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405 and request.url.path.rpartition("/")[2].startswith("$"):
        fault = Fault(Category.NOT_FOUND, "There is no such operation at this address.")
    elif error.status_code == 405:
        fault = Fault(
            Category.METHOD,
            f"{request.method} is not an interaction of this address.",
            headers={"Allow": ", ".join(_methods(request))},
        )
    elif error.status_code == 404:
        fault = Fault(Category.NOT_FOUND, "There is nothing at this address.")
    else:
        text = outcome([issue("error", "processing", str(error.detail))])
        return fhir(request, text, status=error.status_code, headers=error.headers)
    return _answer(request, fault)


def _methods(request: Request) -> list[str]:
    """All methods that some route has for this address (the router itself tells those of one route only)."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(r.matches({**request.scope, "method": method})[0] is Match.FULL for r in request.app.router.routes)
    ]


def install(app: FastAPI) -> None:
    """Makes every error of the application an OperationOutcome."""
    kinds: list[type[Exception]] = [Fault, *TOO_SLOW, *NOT_TEXT, OSError, *DATABASE_AWAY, Exception]
    for kind in kinds:
        app.add_exception_handler(kind, on_fault)
    app.add_exception_handler(HTTPException, _on_http)
