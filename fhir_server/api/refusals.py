"""What was refused after somebody proved who he is: recorded before it is answered, as an access that was allowed is.

Every write that failed is recorded, and whatever the asker may not see or do. A refusal for want of a scope or a role is recorded where
it is found out (fhir_server.api.security).
"""

from __future__ import annotations

import logging
import re
from typing import Final

from fastapi import Request

from conformance.capability import RESOURCE_TYPES
from fhir_server.access import Principal
from fhir_server.api.content import query_of
from fhir_server.api.edge import interaction_of
from fhir_server.api.security import ACTIONS, ASKER, RECORDED, address_of, services_of
from fhir_server.audit_event import outcome_of
from fhir_server.errors import Category, Fault

log = logging.getLogger(__name__)

_NAMES: Final = {
    "update-conditionally": "update",
    "patch-conditionally": "patch",
    "delete-conditionally": "delete",
    "transact": "transaction",
    "search-post": "search-type",
    "search-system-post": "search-system",
    "search-compartment": "search-type",
    "search-compartment-post": "search-type",
}
"""Endpoint -> interaction, where they differ."""
_WRITES: Final = frozenset({"create", "update", "patch", "delete", "transaction"})
_ID: Final = re.compile(r"[A-Za-z0-9\-.]{1,64}")


async def record(request: Request, fault: Fault) -> None:
    """Returns when the refusal is in the log, or need not be, or cannot be: nothing is given away by it."""
    asker: Principal | None = request.scope.get(ASKER)
    if asker is None or request.scope.get(RECORDED):
        return
    endpoint = interaction_of(request.scope)
    name = _NAMES.get(endpoint, endpoint)
    if fault.category is not Category.FORBIDDEN and name not in _WRITES:
        return
    services = services_of(request)
    kind, logical = (str(request.path_params.get(part, "")) for part in ("kind", "logical"))
    types = [kind] if kind in RESOURCE_TYPES else []
    try:
        await services.audit.record(
            asker,
            ACTIONS.get(name, "E"),
            name,
            types,
            query=query_of(request),
            outcome=outcome_of(fault.category.status),
            at=services.clock(),
            resource=f"{kind}/{logical}" if types and _ID.fullmatch(logical) else "",
            address=address_of(request),
        )
    except Fault:
        log.warning("a refused access could not be recorded", extra={"interaction": name})
