"""Who asks, as a FastAPI dependency, and what they may do; refusals are recorded before they are answered
(http://hl7.org/fhir/R4/security.html)."""

from __future__ import annotations

import logging
from typing import Annotated, Final, cast

from fastapi import Depends, Request

from fhir_server import clock
from fhir_server.access import Principal, authenticate
from fhir_server.api.content import query_of
from fhir_server.audit_event import Action
from fhir_server.errors import Fault
from fhir_server.services import Services

log = logging.getLogger(__name__)

ACTIONS: dict[str, Action] = {
    "create": "C",
    "read": "R",
    "vread": "R",
    "history-instance": "R",
    "history-type": "R",
    "history-system": "R",
    "update": "U",
    "patch": "U",
    "delete": "D",
}
"""Interaction -> AuditEvent.action; searches and operations are E (execute)."""

ASKER: Final = "tongjian.asker"
"""Key of the request's scope: who asks."""
RECORDED: Final = "tongjian.recorded"
"""Key of the request's scope: its refusal is in the log already."""


def services_of(request: Request) -> Services:
    """The running server's services."""
    return cast(Services, request.app.state.services)


def address_of(request: Request) -> str:
    """Network address of the client, empty when unknown."""
    return request.client.host if request.client else ""


async def principal(request: Request) -> Principal:
    """The principal of the bearer token. Raises Fault UNAUTHENTICATED, after an audit entry, when there is no valid one."""
    services = services_of(request)
    try:
        # A sandbox clock dates results and orders; a token lives in real time.
        at = clock.now() if services.settings.sandbox_clock else services.clock()
        header = request.headers.get("authorization")
        known = await services.issuers.principal(header, at) if services.issuers else None
        asker = known or authenticate(services.keys, header, at)
    except Fault:
        await refused(request, None, "authenticate", ())
        raise
    request.scope[ASKER] = asker
    return asker


Asker = Annotated[Principal, Depends(principal)]
"""Parameter type of a route that needs a token."""


async def permit(request: Request, asker: Principal, interaction: str, *types: str) -> None:
    """Raises Fault FORBIDDEN, after an audit entry, unless the scopes grant the interaction on every type."""
    try:
        asker.require(interaction, *types)
    except Fault:
        await refused(request, asker, interaction, types)
        raise


async def permit_role(request: Request, asker: Principal, operation: str, *roles: str) -> None:
    """Raises Fault FORBIDDEN, after an audit entry, unless the principal has one of the roles."""
    try:
        asker.require_role(*roles)
    except Fault:
        await refused(request, asker, operation, ())
        raise


async def refused(request: Request, asker: Principal | None, interaction: str, types: tuple[str, ...]) -> None:
    """Writes the audit entry of an access that is refused."""
    services = services_of(request)
    request.scope[RECORDED] = True
    try:
        await services.audit.record(
            asker,
            ACTIONS.get(interaction, "E"),
            interaction,
            types,
            query=query_of(request),
            outcome="4",
            at=services.clock(),
            address=address_of(request),
        )
    except Fault:
        # Nothing is given away by a refusal, so it is answered all the same.
        log.warning("a refused access could not be recorded", extra={"interaction": interaction})
