"""The outermost layer of the HTTP application: security headers, size and time limits of a request, its metrics and its span.

Headers after https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html; a header that an answer brings is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any, Final

from fhir_server import telemetry, tracing
from fhir_server.errors import Category, Fault

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
_LAST_WORD: Final = (408, 413, 500)
"""After these the connection ends: the rest of the request is on its way, or a failure of our own makes the server close it."""


class Edge:
    """Wraps the application. max_body: bytes; body_seconds: time in which the whole body has to arrive; slow: other times of some
    paths."""

    def __init__(
        self,
        app: Application,
        *,
        max_body: int,
        body_seconds: float,
        slow: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._app = app
        self._max_body = max_body
        self._body_seconds = body_seconds
        self._slow = slow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (or the start and end of the server, which pass through)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        answer = _Answer(send, secure=scope["scheme"] == "https")
        body = _Body(receive, self._max_body, self._slow.get(scope["path"], self._body_seconds))
        try:
            if tracing.on():
                await self._traced(scope, body, answer)
            else:
                await self._app(scope, body.receive, answer.send)
        finally:
            seconds = time.perf_counter() - began
            telemetry.REQUEST_SECONDS.labels(interaction_of(scope), str(answer.status)).observe(seconds)

    async def _traced(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with tracing.span("request", headers) as span:
            try:
                await self._app(scope, body.receive, answer.send)
            finally:
                span.set_attributes(
                    {
                        "http.request.method": scope["method"],
                        "http.response.status_code": answer.status,
                        "tongjian.interaction": interaction_of(scope),
                    }
                )


def interaction_of(scope: Scope) -> str:
    """Name of the interaction that answered, such as ``search-type``; ``none`` when the address leads nowhere."""
    endpoint = scope.get("endpoint")
    return str(getattr(endpoint, "__name__", "none")).replace("_", "-")


class _Body:
    """The request body as it arrives."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive = receive
        self._most = most
        self._seconds = seconds
        self._ends: float | None = None
        self._size = 0
        self._complete = False

    async def receive(self) -> Message:
        """The next part. Raises Fault TOO_LARGE or TOO_SLOW."""
        if self._complete:
            return await self._receive()
        if self._ends is None:
            self._ends = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._ends):
                message = await self._receive()
        except TimeoutError:
            raise Fault(Category.TOO_SLOW, f"The body did not arrive within {self._seconds:g} seconds.") from None
        self._size += len(message.get("body", b""))
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        if self._size > self._most:
            raise Fault(Category.TOO_LARGE, f"The body is larger than {self._most} bytes.")
        return message


class _Answer:
    """The response as it leaves. status: 0 until it began."""

    def __init__(self, send: Send, *, secure: bool) -> None:
        self._send = send
        self._secure = secure
        self.status = 0

    async def send(self, message: Message) -> None:
        """Passes a message on, the first one with the security headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            there = {name.lower() for name, _ in headers}
            wanted = (*HEADERS, HSTS) if self._secure else HEADERS
            headers.extend(pair for pair in wanted if pair[0] not in there)
            if self.status in _LAST_WORD:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)
