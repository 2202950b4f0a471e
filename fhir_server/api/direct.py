"""Read, search by type, and the order-time call, which is what clients ask all day, without the framework's routing: half of the
time of such a request went into finding its function. Everything else, and every address that is not plainly one of these, goes the
usual way."""

from __future__ import annotations

import re
from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from conformance.capability import RESOURCE_TYPES
from fhir_server.api import cds_hooks, responses, rest, searches
from fhir_server.api.security import principal
from fhir_server.errors import Fault

_ADDRESS: Final = re.compile(r"/fhir/([A-Z][A-Za-z]+)(?:/([A-Za-z0-9\-.]{1,64}))?")
_HOOK: Final = re.compile(r"/cds-services/([a-z-]{1,64})")
_EXPECTED: Final[tuple[type[Exception], ...]] = (
    Fault,
    *responses.TOO_SLOW,
    *responses.NOT_TEXT,
    OSError,
    *responses.DATABASE_AWAY,
)


class Direct:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        found = hook = None
        if scope["type"] == "http":
            if scope["method"] in searches.READ:
                found = _ADDRESS.fullmatch(scope["path"])
            elif scope["method"] == "POST":
                hook = _HOOK.fullmatch(scope["path"])
        if hook is not None:
            scope["endpoint"], scope["path_params"] = cds_hooks.call, {"service_id": hook[1]}
        elif found is not None and found[1] in RESOURCE_TYPES:
            kind, logical = found[1], found[2]
            scope["endpoint"] = searches.search_type if logical is None else rest.read
            scope["path_params"] = {"kind": kind} if logical is None else {"kind": kind, "logical": logical}
        else:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            if hook is not None:
                answer = await cds_hooks.call(hook[1], request, await cds_hooks.principal_of(request))
            elif logical is None:
                answer = await searches.search_type(request, await principal(request), kind)
            else:
                answer = await rest.read(request, await principal(request), kind, logical)
        except _EXPECTED as error:
            answer = await responses.on_fault(request, error)
        await answer(scope, receive, send)
