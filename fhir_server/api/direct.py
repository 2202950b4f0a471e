"""Read and search by type, which is what clients ask all day, without the framework's routing: half of the time of such a request
went into finding its function. Everything else, and every address that is not plainly one of the two, goes the usual way."""

from __future__ import annotations

import re
from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from conformance.capability import RESOURCE_TYPES
from fhir_server.api import responses, rest, searches
from fhir_server.api.security import principal
from fhir_server.errors import Fault

_ADDRESS: Final = re.compile(r"/fhir/([A-Z][A-Za-z]+)(?:/([A-Za-z0-9\-.]{1,64}))?")
_EXPECTED: Final[tuple[type[Exception], ...]] = (Fault, *responses.TOO_SLOW, OSError, *responses.DATABASE_AWAY)


class Direct:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        found = None
        if scope["type"] == "http" and scope["method"] in searches.READ:
            found = _ADDRESS.fullmatch(scope["path"])
        if found is None or found[1] not in RESOURCE_TYPES:
            await self._app(scope, receive, send)
            return
        kind, logical = found[1], found[2]
        scope["endpoint"] = searches.search_type if logical is None else rest.read
        scope["path_params"] = {"kind": kind} if logical is None else {"kind": kind, "logical": logical}
        request = Request(scope, receive)
        try:
            asker = await principal(request)
            if logical is None:
                answer = await searches.search_type(request, asker, kind)
            else:
                answer = await rest.read(request, asker, kind, logical)
        except _EXPECTED as error:
            answer = await responses.on_fault(request, error)
        await answer(scope, receive, send)
