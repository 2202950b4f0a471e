"""Read, search by type, the last results of a patient and the order-time call, which is what clients ask all day, without the
framework's routing: half of the time of such a request went into finding its function. Everything else, and every address that is not
plainly one of these, goes the usual way."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from conformance.capability import RESOURCE_TYPES
from fhir_server.api import cds_hooks, operations, responses, rest, searches
from fhir_server.api.security import principal
from fhir_server.errors import Fault

_ADDRESS: Final = re.compile(r"/fhir/([A-Z][A-Za-z]+)(?:/([A-Za-z0-9\-.]{1,64}))?")
_LASTN: Final = "/fhir/Observation/$lastn"
_HOOK: Final = re.compile(r"/cds-services/([a-z-]{1,64})")
_EXPECTED: Final[tuple[type[Exception], ...]] = (
    Fault,
    *responses.TOO_SLOW,
    *responses.NOT_TEXT,
    OSError,
    *responses.DATABASE_AWAY,
)
_Endpoint = Callable[..., Awaitable[Response]]


class Direct:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        found = _endpoint(scope) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        endpoint, parameters = scope["endpoint"], scope["path_params"] = found
        request = Request(scope, receive)
        try:
            asker = await (cds_hooks.principal_of(request) if endpoint is cds_hooks.call else principal(request))
            answer = await endpoint(request=request, asker=asker, **parameters)
        except _EXPECTED as error:
            answer = await responses.on_fault(request, error)
        await answer(scope, receive, send)


def _endpoint(scope: Scope) -> tuple[_Endpoint, dict[str, Any]] | None:
    """The function of an address and its parameters, as the routes of the application have them."""
    if scope["method"] == "POST":
        hook = _HOOK.fullmatch(scope["path"])
        return (cds_hooks.call, {"service_id": hook[1]}) if hook is not None else None
    if scope["method"] not in searches.READ:
        return None
    if scope["path"] == _LASTN:
        return operations.observation_lastn, {}
    found = _ADDRESS.fullmatch(scope["path"])
    if found is None or found[1] not in RESOURCE_TYPES:
        return None
    if found[2] is None:
        return searches.search_type, {"kind": found[1]}
    return rest.read, {"kind": found[1], "logical": found[2]}
