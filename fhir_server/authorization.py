"""Tokens for registered systems: SMART App Launch 2.2 backend services (client_credentials with private_key_jwt).

https://hl7.org/fhir/smart-app-launch/STU2.2/backend-services.html, .../client-confidential-asymmetric.html, RFC 6749, 7523, 7662
and 7009. All cryptography is joserfc's; no web framework and no clock here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from joserfc import jws, jwt
from joserfc.errors import JoseError

from fhir_server.access import Principal, authenticate, covered, issue_token
from fhir_server.errors import Category, Fault
from fhir_server.keys import Keys
from fhir_server.smart_clients import SHORTEST_SECRET, Client

ALGORITHMS: Final = ("ES384", "RS384")
LIFE: Final = timedelta(minutes=5)
"""Life of a token for a system; SMART asks for no more than five minutes."""

_ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_LONGEST: Final = timedelta(minutes=5)
_SKEW: Final = 30
_MOST_REMEMBERED: Final = 100_000


class Refused(Exception):
    """An OAuth error (RFC 6749 section 5.2): code, what to change, HTTP status."""

    def __init__(self, error: str, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.error = error
        self.text = text
        self.status = status


@dataclass(slots=True)
class Clients:
    """The registered clients, and the assertions already used (jti until they end), so that none is used twice."""

    known: Mapping[str, Client]
    _used: dict[tuple[str, str], int] = field(default_factory=dict)

    def authenticate(self, form: Mapping[str, str], audience: str, now: datetime) -> Client:
        """The client that signed ``client_assertion``. ``audience`` is the absolute address of the token endpoint.

        Raises Refused: ``invalid_request`` when there is no assertion, ``invalid_client`` when it proves nothing.
        """
        if form.get("client_assertion_type") != _ASSERTION or not form.get("client_assertion"):
            raise Refused(
                "invalid_request", f"Send client_assertion_type={_ASSERTION} and client_assertion, a signed JWT."
            )
        return self._verified(form["client_assertion"], audience, now, subject=True)

    def speaker(self, header: str | None, audience: str, now: datetime) -> Principal | None:
        """The client that signed the bearer token itself, as CDS Hooks 2.0 asks (section "Trusting CDS Clients"): iss = client id,
        aud = ``audience``, the absolute address of the service called, exp, jti. None when the token is not of a registered client.

        Raises Fault UNAUTHENTICATED when it names one and does not prove it.
        """
        scheme, _, signed = (header or "").partition(" ")
        if not self.known or scheme.lower() != "bearer" or _issuer_of(signed.strip()) not in self.known:
            return None
        try:
            client = self._verified(signed.strip(), audience, now, subject=False)
        except Refused as refused:
            challenge = {"WWW-Authenticate": 'Bearer realm="tongjian", error="invalid_token"'}
            raise Fault(Category.UNAUTHENTICATED, refused.text, headers=challenge) from None
        return Principal(client.id, "system", client.facility, client.scopes)

    def by_secret(self, name: str, secret: str) -> Principal | None:
        """The client of this id when it is registered with the digest of this secret; None for anything else."""
        client = self.known.get(name)
        wanted = client.secret if client else ""
        right = hmac.compare_digest(hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest(), wanted)
        # Its digest could be turned back into a short secret.
        if client is None or not right or len(secret) < SHORTEST_SECRET:
            return None
        return Principal(client.id, "system", client.facility, client.scopes)

    def _verified(self, signed: str, audience: str, now: datetime, *, subject: bool) -> Client:
        # What it says of itself is believed only once the signature made with the key it leads to holds.
        client = self.known.get(_issuer_of(signed))
        if client is None or not client.keys.keys:
            raise _unknown("No client is registered with this iss and keys.")
        try:
            token = jwt.decode(signed, client.keys, algorithms=list(ALGORITHMS))
        except (JoseError, ValueError, UnicodeError):
            raise _unknown("The client assertion is not signed with a registered key (kid; ES384 or RS384).") from None
        self._check(client, token.claims, audience, now, subject)
        return client

    def _check(self, client: Client, claims: Mapping[str, Any], audience: str, now: datetime, subject: bool) -> None:
        at = int(now.timestamp())
        registry = jwt.JWTClaimsRegistry(
            now=at,
            leeway=_SKEW,
            iss={"essential": True, "value": client.id},
            sub={"essential": subject, "value": client.id},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
            jti={"essential": True},
        )
        try:
            registry.validate(dict(claims))
        except JoseError:
            raise _unknown(
                f"The client assertion needs iss {'and sub ' if subject else ''}= client id, aud = {audience}, exp in the future"
                " and jti."
            ) from None
        ends, jti = int(claims["exp"]), claims["jti"]
        if ends > at + _LONGEST.total_seconds() + _SKEW:
            raise _unknown("exp of the client assertion is more than five minutes away.")
        if not isinstance(jti, str) or not jti or len(jti) > 256:
            raise _unknown("jti of the client assertion is a text of 1 to 256 characters.")
        if len(self._used) >= _MOST_REMEMBERED:
            self._used = {k: until for k, until in self._used.items() if until + _SKEW >= at}
        if len(self._used) >= _MOST_REMEMBERED:
            raise Refused("temporarily_unavailable", "Too many tokens are asked for. Try again in a minute.", 503)
        if self._used.get((client.id, jti), -_SKEW) + _SKEW >= at:
            raise _unknown("This client assertion was used before; sign a new one with another jti.")
        self._used[(client.id, jti)] = ends


async def first_use(db: Any, assertion: str, now: datetime) -> bool:
    """Remembers a verified client assertion in the database (asyncpg) until it ends; False when any process saw it before."""
    claims = json.loads(jws.extract_compact(assertion.encode()).payload)
    until = datetime.fromtimestamp(int(claims["exp"]) + _SKEW, now.tzinfo)
    row = await db.fetchrow(
        "WITH gone AS (DELETE FROM used_assertion WHERE until < $4) INSERT INTO used_assertion (client, jti, until)"
        " VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING jti",
        claims["iss"],
        claims["jti"],
        until,
        now - _LONGEST,
    )
    return row is not None


def _issuer_of(signed: str) -> str:
    """``iss`` of a JWT without looking at its signature; empty when it cannot be read."""
    try:
        found = jws.extract_compact(signed.encode())
        issuer = json.loads(found.payload).get("iss") if found.headers().get("kid") else ""
    except (JoseError, ValueError, AttributeError):
        return ""
    return issuer if isinstance(issuer, str) else ""


def _unknown(text: str) -> Refused:
    return Refused("invalid_client", text, 401)


def grant(
    clients: Clients, keys: Keys, form: Mapping[str, str], audience: str, now: datetime
) -> tuple[Client, dict[str, Any]]:
    """``client_credentials`` -> the client and the token answer (RFC 6749 section 5.1). Scopes the client may not hold are left
    out of what is granted. Raises Refused, ``invalid_scope`` when nothing of what was asked for is left."""
    if form.get("grant_type") != "client_credentials":
        raise Refused(
            "unsupported_grant_type" if form.get("grant_type") else "invalid_request",
            "grant_type must be client_credentials.",
        )
    client = clients.authenticate(form, audience, now)
    wanted = frozenset(form.get("scope", "").split())
    if not wanted:
        raise Refused("invalid_request", "scope is missing, for example system/Observation.rs.")
    granted = covered(wanted, client.scopes)
    if not granted:
        raise Refused("invalid_scope", "None of these scopes is registered for the client.")
    token = issue_token(keys, client.id, "system", client.facility, granted, ttl=LIFE, now=now)
    return client, {
        "access_token": token,
        "token_type": "bearer",
        "expires_in": int(LIFE.total_seconds()),
        "scope": " ".join(sorted(granted)),
    }


def introspection(keys: Keys, token: str, now: datetime) -> dict[str, Any]:
    """RFC 7662: ``active`` and, of a good token, scope, client_id, sub, role, facility, iat, exp. Never an error for a bad one."""
    try:
        authenticate(keys, f"Bearer {token}", now)
    except Fault:
        return {"active": False}
    claims = keys.claims(token)
    told = {
        name: claims[name] for name in ("iss", "aud", "sub", "iat", "nbf", "exp", "jti", "scope", "role", "facility")
    }
    return {"active": True, "token_type": "bearer", "client_id": claims["sub"], **told}
