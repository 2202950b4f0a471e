"""Published keys of OpenID Connect providers, fetched, kept and renewed; and bearer tokens checked with them.

Addresses come from the settings alone, never from a token: no ``jku``, no ``x5u``, no redirect is followed, and the ``jwks_uri`` that a
provider's discovery document names has to stand on the same machine as that document.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from fhir_server import oidc
from fhir_server.access import Principal
from fhir_server.errors import Category, Fault
from fhir_server.keys import AccessError

log = logging.getLogger(__name__)

FRESH: Final = 3600.0
"""Seconds after which the keys are asked for again."""
KEPT: Final = 24 * 3600.0
"""Seconds for which keys hold while the provider cannot be reached."""
AGAIN: Final = 10.0
"""Seconds between two requests: an unknown key in a forged token makes no more of them."""
_TIMEOUT: Final = 5.0
_MOST: Final = 262_144
_CACHED: Final = 4096


class Unreachable(Exception):
    """A provider did not give its keys; the text says why, without anything of a token."""


class Issuer:
    """One provider with its keys."""

    def __init__(
        self, provider: oidc.Provider, *, again: float = AGAIN, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._provider = provider
        self._again = again
        self._now = now
        self._keys: list[oidc.PublicKey] = []
        self._published = ""
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._turn = asyncio.Lock()
        self._verified: OrderedDict[bytes, tuple[dict[str, Any], Principal]] = OrderedDict()

    async def principal(self, token: str, now: datetime) -> Principal:
        """Who an access token of this issuer is for. Raises Fault: UNAUTHENTICATED, or UNAVAILABLE without keys to check it with."""
        await self._renew(self._read_at is None or self._now() - self._read_at > FRESH)
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = self._verified.get(digest)
        if known is not None:
            oidc.check(self._provider, known[0], now)
            return known[1]
        kid, algorithm = _named(token)
        if oidc.choose(self._provider, self._keys, kid, algorithm) is None and algorithm in self._provider.algorithms:
            await self._renew(True)  # the provider may have a new key
        if not self._keys:
            raise Fault(Category.UNAVAILABLE, "The identity provider cannot be asked for its keys. Try again later.")
        claims = oidc.claims_of(self._provider, token, self._keys)
        oidc.check(self._provider, claims, now)
        found = oidc.principal(self._provider, claims)
        self._verified[digest] = claims, found
        if len(self._verified) > _CACHED:
            self._verified.popitem(last=False)
        return found

    async def _renew(self, wanted: bool) -> None:
        if not wanted:
            return
        async with self._turn:
            at = self._now()
            if self._tried_at is not None and at - self._tried_at < self._again:
                return
            self._tried_at = at
            try:
                published = await fetched(self._provider)
                keys = _read(self._provider, published)
            except Unreachable as fault:
                log.warning("oidc_keys_not_read provider=%s reason=%s", self._provider.id, fault)
                if self._read_at is not None and at - self._read_at > KEPT:
                    self._keys = []
                    self._verified.clear()
                return
            self._read_at = at
            if published != self._published:
                self._keys, self._published = keys, published
                self._verified.clear()  # a key that is gone checks nothing more


class Issuers:
    """All providers, by issuer."""

    def __init__(self, issuers: Iterable[tuple[str, Issuer]]) -> None:
        self._issuers = dict(issuers)

    @classmethod
    def of(cls, providers: Iterable[oidc.Provider]) -> Issuers:
        """Issuers of the settings."""
        return cls((p.issuer, Issuer(p)) for p in providers)

    def __bool__(self) -> bool:
        return bool(self._issuers)

    async def principal(self, header: str | None, now: datetime) -> Principal | None:
        """The principal of an ``Authorization`` header whose token names one of the issuers; None for any other. Raises Fault."""
        scheme, _, token = (header or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return None
        issuer = self._issuers.get(_issuer_of(token))
        return None if issuer is None else await issuer.principal(token, now)


def _named(token: str) -> tuple[object, object]:
    try:
        headers = jws.extract_compact(token.encode()).headers()
    except (JoseError, ValueError):
        return None, None
    return headers.get("kid"), headers.get("alg")


def _issuer_of(token: str) -> str:
    """``iss`` as the token says, before anything is checked: it only tells which keys to check it with."""
    try:
        found = json.loads(jws.extract_compact(token.encode()).payload)
    except (JoseError, ValueError):
        return ""
    issuer = found.get("iss") if isinstance(found, dict) else ""
    return issuer if isinstance(issuer, str) else ""


async def fetched(provider: oidc.Provider) -> str:
    """The JWK Set of a provider as text. Raises Unreachable."""
    try:
        trusted: ssl.SSLContext | bool = (
            ssl.create_default_context(cafile=str(provider.authority)) if provider.authority else True
        )
        async with httpx.AsyncClient(
            timeout=_TIMEOUT, follow_redirects=False, trust_env=False, verify=trusted
        ) as client:
            address = provider.jwks_uri or await _discovered(client, provider)
            return await _get(client, address)
    except (httpx.HTTPError, OSError, ValueError) as fault:
        raise Unreachable(type(fault).__name__) from None


async def _discovered(client: httpx.AsyncClient, provider: oidc.Provider) -> str:
    told = json.loads(await _get(client, provider.discovery))
    if not isinstance(told, dict) or told.get("issuer") != provider.issuer:
        raise Unreachable("the discovery document names another issuer")
    address = told.get("jwks_uri")
    if not isinstance(address, str):
        raise Unreachable("the discovery document names no jwks_uri")
    try:
        oidc.require_safe(address, "jwks_uri")
    except AccessError:
        raise Unreachable("the jwks_uri is not an https address") from None
    if urlsplit(address)[:2] != urlsplit(provider.discovery)[:2]:
        raise Unreachable("the jwks_uri stands on another machine; name it in oidc_file to allow that")
    return address


async def _get(client: httpx.AsyncClient, address: str) -> str:
    async with client.stream("GET", address, headers={"Accept": "application/json"}) as answer:
        if answer.status_code != 200:
            raise Unreachable(f"HTTP {answer.status_code}")
        read = b""
        async for part in answer.aiter_bytes():
            read += part
            if len(read) > _MOST:
                raise Unreachable("the answer is too large")
    return read.decode("utf-8")


def _read(provider: oidc.Provider, published: str) -> list[oidc.PublicKey]:
    """The keys of a JWK Set that may check tokens; what is not understood is left out (RFC 7517 section 5)."""
    try:
        entries = json.loads(published)["keys"]
    except (ValueError, KeyError, TypeError):
        raise Unreachable("the answer is not a JSON Web Key Set") from None
    out: list[oidc.PublicKey] = []
    for entry in entries if isinstance(entries, list) else ():
        try:
            found = KeySet.import_key_set({"keys": [entry]}).keys[0]
        except (JoseError, ValueError, KeyError, TypeError):
            continue
        if isinstance(found, (RSAKey, ECKey, OKPKey)) and oidc.usable(found, provider):
            out.append(found)
    if not out:
        raise Unreachable("there is no key of the algorithms allowed")
    return out
