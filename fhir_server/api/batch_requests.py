"""Entries of a batch that are a history, an operation, the capabilities or a search over several types
(http://hl7.org/fhir/R4/http.html#transaction, http://hl7.org/fhir/R4/operations.html#executing): each is a request of its own to the
same routes, so it is permitted, recorded and answered as it would be alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import Message

from conformance import fhirjson
from fhir_server.store.statement import instant

_ADDRESS = re.compile(
    r"(?P<path>metadata|_history|_search|\$[a-z-]+"
    r"|[A-Za-z]+/(?:_history|\$[a-z-]+)"
    r"|[A-Za-z]+/[A-Za-z0-9\-.]{1,64}/(?:_history|\$[a-z-]+|\*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_METHODS: Final = ("GET", "HEAD", "POST")
# What belongs to the batch itself, not to its entries.
_OF_THE_BATCH: Final = (b"content-", b"accept-encoding", b"if-", b"prefer", b"transfer-encoding", b"expect")


@dataclass(frozen=True, slots=True)
class OwnRequest:
    """One entry. url: below the base address; resource: what it sends, for POST; if_none_match: as the entry says it, or empty."""

    method: str
    url: str
    resource: Mapping[str, Any] | None
    if_none_match: str


def own_request(method: str, url: str, entry: Mapping[str, Any]) -> OwnRequest | None:
    """The entry as a request of its own; None when it is a plain interaction, or nothing that can be asked for."""
    m = _ADDRESS.fullmatch(url)
    if method not in _METHODS or m is None or not (m["path"] or (m["query"] and method != "POST")):
        return None
    resource = entry.get("resource")
    told = entry["request"].get("ifNoneMatch") or ""
    return OwnRequest(method, url, resource if method == "POST" and isinstance(resource, dict) else None, told)


async def answered(request: Request, own: OwnRequest) -> bytes:
    """Carries one entry out, as the asker of ``request``; its entry of the batch-response."""
    path, _, query = own.url.partition("?")
    body = b"" if own.resource is None else fhirjson.dumps(own.resource)
    headers = [(n, v) for n, v in request.scope["headers"] if not n.startswith(_OF_THE_BATCH)]
    headers.append((b"content-length", b"%d" % len(body)))
    if body:
        headers.append((b"content-type", b"application/fhir+json"))
    if own.if_none_match:
        headers.append((b"if-none-match", own.if_none_match.encode()))
    place = f"{request.scope['path'].rstrip('/')}/{path}"
    scope = {
        **request.scope,
        "method": own.method,
        "path": place,
        "raw_path": place.encode(),
        "query_string": query.encode(),
        "headers": headers,
        "path_params": {},
    }
    parts: list[bytes] = []
    status, told = 500, dict[str, str]()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            told.update((n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in message.get("headers", ()))
        else:
            parts.append(message.get("body", b""))

    handlers = {kind: handler for kind, handler in request.app.exception_handlers.items() if kind is not Exception}
    await ExceptionMiddleware(request.app.router, handlers)(scope, receive, send)
    return _entry(status, told, b"".join(parts))


def _entry(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    response: dict[str, Any] = {"status": f"{status} {HTTPStatus(status).phrase}"}
    if "location" in headers or "content-location" in headers:
        response["location"] = headers.get("location") or headers["content-location"]
    if "etag" in headers:
        response["etag"] = headers["etag"]
    if "last-modified" in headers:
        response["lastModified"] = instant(parsedate_to_datetime(headers["last-modified"]))
    resource = body if "json" in headers.get("content-type", "") else b""
    if status >= 400 and resource:
        return b'{"response":{"status":%b,"outcome":%b}}' % (fhirjson.dumps(response["status"]), resource)
    return b'{%b"response":%b}' % (b'"resource":%b,' % resource if resource else b"", fhirjson.dumps(response))
