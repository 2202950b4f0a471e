"""The authorization server for systems: token, introspection, revocation, keys, and the SMART discovery document.

https://hl7.org/fhir/smart-app-launch/STU2.2/conformance.html; what is checked stands in fhir_server.authorization.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response

from fhir_server.access import Principal
from fhir_server.api.content import raw_body
from fhir_server.api.security import Asker, address_of, permit_role, services_of
from fhir_server.authorization import ALGORITHMS, Clients, Refused, grant, introspection
from fhir_server.errors import Category, Fault

router = APIRouter()

PREFIX: Final = "/auth"
_MOST: Final = 65_536
_UNSTORED: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}


def root_of(base: str) -> str:
    """Address of the server, from that of its FHIR API."""
    return base.removesuffix("/fhir")


def configuration(base: str) -> dict[str, Any]:
    """``.well-known/smart-configuration`` of a server whose FHIR API is at ``base``: what is served, no more."""
    auth = root_of(base) + PREFIX
    return {
        "token_endpoint": f"{auth}/token",
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": list(ALGORITHMS),
        "grant_types_supported": ["client_credentials"],
        "scopes_supported": ["system/*.cruds", "system/*.rs"],
        "introspection_endpoint": f"{auth}/introspect",
        "revocation_endpoint": f"{auth}/revoke",
        "jwks_uri": f"{auth}/jwks",
        # Required by the specification even where no code is given out.
        "code_challenge_methods_supported": ["S256"],
        "capabilities": ["client-confidential-asymmetric", "permission-v2"],
    }


@router.get("/fhir/.well-known/smart-configuration")
async def discovery(request: Request) -> Response:
    """SMART discovery. Needs no token."""
    return _json(configuration(request.app.state.base_url))


@router.get(f"{PREFIX}/jwks")
async def keys(request: Request) -> Response:
    """Public keys that tokens are signed with (RFC 7517). Needs no token."""
    return _json(services_of(request).keys.public())


@router.post(f"{PREFIX}/token")
async def token(request: Request) -> Response:
    """client_credentials with a signed assertion -> a token for five minutes; an OAuth error otherwise. Each answer is recorded."""
    services = services_of(request)
    audience = configuration(request.app.state.base_url)["token_endpoint"]
    try:
        client, answer = grant(_clients(request), services.keys, await _form(request), audience, services.clock())
    except Refused as refused:
        await _record(request, None, "token", refused=True)
        return _refusal(refused)
    await _record(request, Principal(client.id, "system", client.facility, frozenset(answer["scope"].split())), "token")
    return _json(answer, headers=_UNSTORED)


@router.post(f"{PREFIX}/introspect")
async def introspect(request: Request, asker: Asker) -> Response:
    """RFC 7662: what a token is worth. For holders of a token of a system, integrator or administrator."""
    await permit_role(request, asker, "introspect", "system", "integrator", "administrator")
    services = services_of(request)
    try:
        told = (await _form(request))["token"]
    except (Refused, KeyError):
        return _refusal(Refused("invalid_request", "Send token=<token> as application/x-www-form-urlencoded."))
    return _json(introspection(services.keys, told, services.clock()), headers=_UNSTORED)


@router.post(f"{PREFIX}/revoke")
async def revoke(request: Request, asker: Asker) -> Response:
    """RFC 7009: ends a token at once. A holder ends tokens of its own, an administrator any; an unknown one is answered 200."""
    services = services_of(request)
    try:
        told = (await _form(request))["token"]
    except (Refused, KeyError):
        return _refusal(Refused("invalid_request", "Send token=<token> as application/x-www-form-urlencoded."))
    try:
        claims = services.keys.claims(told)
    except Fault:
        return _json({}, headers=_UNSTORED)
    if claims.get("sub") != asker.subject:
        await permit_role(request, asker, "revoke", "administrator")
    try:
        services.keys.revoke(claims, services.clock())
    except OSError:
        raise Fault(
            Category.UNAVAILABLE, "The revocation cannot be kept now; the token still holds. Try again later."
        ) from None
    await _record(request, asker, "revoke")
    return _json({}, headers=_UNSTORED)


def _clients(request: Request) -> Clients:
    found: Clients = request.app.state.clients
    return found


async def _form(request: Request) -> Mapping[str, str]:
    """Fields of the form; one that stands twice is refused (RFC 6749 section 3.2)."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise Refused("invalid_request", "Send the fields as application/x-www-form-urlencoded.")
    try:
        pairs = parse_qsl((await raw_body(request, _MOST)).decode("ascii"), max_num_fields=32)
    except ValueError:
        raise Refused("invalid_request", "The form cannot be read.") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Refused("invalid_request", "A field stands twice.")
    return fields


async def _record(request: Request, asker: Principal | None, operation: str, *, refused: bool = False) -> None:
    services = services_of(request)
    await services.audit.record(
        asker, "E", operation, (), outcome="4" if refused else "0", at=services.clock(), address=address_of(request)
    )


def _refusal(refused: Refused) -> Response:
    headers = dict(_UNSTORED)
    if refused.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="tongjian"'
    return _json({"error": refused.error, "error_description": refused.text}, status=refused.status, headers=headers)


def _json(content: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(content).encode(), status, headers, "application/json")
