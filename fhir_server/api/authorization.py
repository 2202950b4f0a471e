"""The authorization server for systems: token, introspection, revocation, keys, and the SMART discovery document.

https://hl7.org/fhir/smart-app-launch/STU2.2/conformance.html; what is checked stands in fhir_server.authorization.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response

from fhir_server import login
from fhir_server.access import Principal
from fhir_server.api.content import raw_body
from fhir_server.api.security import Asker, address_of, permit_role, services_of
from fhir_server.authorization import ALGORITHMS, Clients, Refused, first_use, grant, introspection
from fhir_server.errors import Category, Fault
from fhir_server.keys import ID_ALGORITHM

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
        "issuer": auth,
        "token_endpoint": f"{auth}/token",
        "token_endpoint_auth_methods_supported": ["private_key_jwt", "none"],
        "token_endpoint_auth_signing_alg_values_supported": list(ALGORITHMS),
        "authorization_endpoint": f"{auth}/authorize",
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "client_credentials", "refresh_token"],
        "scopes_supported": [
            *("system/*.cruds", "system/*.rs", "user/*.cruds", "user/*.rs", "patient/*.rs"),
            *("openid", "fhirUser", "profile", "launch/patient", "offline_access", "online_access"),
        ],
        "introspection_endpoint": f"{auth}/introspect",
        "revocation_endpoint": f"{auth}/revoke",
        "jwks_uri": f"{auth}/jwks",
        "code_challenge_methods_supported": ["S256"],
        "capabilities": [
            "launch-standalone",
            "client-public",
            "client-confidential-asymmetric",
            "context-standalone-patient",
            "permission-offline",
            "permission-online",
            "permission-patient",
            "permission-user",
            "permission-v2",
            "sso-openid-connect",
        ],
    }


_OF_PROVIDER: Final = (
    "issuer", "authorization_endpoint", "token_endpoint", "token_endpoint_auth_methods_supported",
    "token_endpoint_auth_signing_alg_values_supported", "response_types_supported", "grant_types_supported", "scopes_supported",
    "introspection_endpoint", "revocation_endpoint", "jwks_uri", "code_challenge_methods_supported",
)  # fmt: skip


def provider_configuration(base: str) -> dict[str, Any]:
    """openid-configuration of the built-in authorization server (OpenID Connect Discovery 1.0 section 3)."""
    told = configuration(base)
    return {
        **{name: told[name] for name in _OF_PROVIDER},
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [ID_ALGORITHM],
        "claims_supported": ["iss", "sub", "aud", "iat", "exp", "nonce", "fhirUser", "name"],
    }


@router.get("/fhir/.well-known/smart-configuration")
async def discovery(request: Request) -> Response:
    """SMART discovery. Needs no token."""
    return _json(configuration(request.app.state.base_url))


@router.get(f"{PREFIX}/.well-known/openid-configuration")
async def provider(request: Request) -> Response:
    """OpenID Connect discovery. Needs no token."""
    return _json(provider_configuration(request.app.state.base_url))


@router.get(f"{PREFIX}/jwks")
async def keys(request: Request) -> Response:
    """Public keys that tokens are signed with (RFC 7517). Needs no token."""
    held = services_of(request).keys
    if request.app.state.apps:
        await asyncio.to_thread(held.require_id_key)  # published before the first id token
    return _json(held.public())


@router.post(f"{PREFIX}/token")
async def token(request: Request) -> Response:
    """client_credentials with a signed assertion -> a token for five minutes; an OAuth error otherwise. Each answer is recorded."""
    services = services_of(request)
    audience = configuration(request.app.state.base_url)["token_endpoint"]
    try:
        form = await fields_of(request)
        if form.get("grant_type") in ("authorization_code", "refresh_token"):
            return _json(await redeemed(request, form), headers=_UNSTORED)
        client, answer = grant(_clients(request), services.keys, form, audience, services.clock())
        if not await first_use(services.pool, form["client_assertion"], services.clock()):
            raise Refused(
                "invalid_client", "This client assertion was used before; sign a new one with another jti.", 401
            )
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
        told = (await fields_of(request))["token"]
    except (Refused, KeyError):
        return _refusal(Refused("invalid_request", "Send token=<token> as application/x-www-form-urlencoded."))
    return _json(introspection(services.keys, told, services.clock()), headers=_UNSTORED)


@router.post(f"{PREFIX}/revoke")
async def revoke(request: Request, asker: Asker) -> Response:
    """RFC 7009: ends a token at once. A holder ends tokens of its own, an administrator any; an unknown one is answered 200."""
    services = services_of(request)
    try:
        told = (await fields_of(request))["token"]
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


async def fields_of(request: Request) -> Mapping[str, str]:
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


async def redeemed(request: Request, form: Mapping[str, str]) -> dict[str, Any]:
    """The token answer for a code or a refresh token, after its audit entry. Raises Refused."""
    services = services_of(request)
    now = services.clock()

    def act() -> tuple[Principal, dict[str, Any]]:
        with services.writer.connection() as conn:
            base: str = request.app.state.base_url
            issuer = root_of(base) + PREFIX
            return login.redeem(conn, services.keys, request.app.state.apps, form, now, issuer=issuer, base=base)

    who, answer = await asyncio.to_thread(act)
    await services.audit.record(who, "E", "token", (), at=now, address=address_of(request))
    return answer


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
