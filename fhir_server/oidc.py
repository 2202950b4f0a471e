"""Tokens of an OpenID Connect provider that the county has already: what is accepted, and who they are for.

One YAML file (setting ``oidc_file``) names each issuer, its audience and algorithms, and how its claims become user, facility, role and
scopes (docs/access.md). Pure: keys come from fhir_server.oidc_keys, the clock is an argument, all cryptography is joserfc's.
https://openid.net/specs/openid-connect-discovery-1_0.html, RFC 9068, RFC 8725.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import ECKey, GuestProtocol, OKPKey, RSAKey

from fhir_server.access import ROLES, Principal, check_scopes, covered, default_scopes, is_smart, sensitive_grants
from fhir_server.keys import AccessError, unauthenticated

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Asymmetric ones alone: with a shared secret everybody who checks a token could make one."""
PublicKey = RSAKey | ECKey | OKPKey
_RSA_BITS: Final = 2048
_SKEW: Final = 30
_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_KNOWN: Final = {
    "id", "issuer", "audience", "algorithms", "discovery", "jwks_uri", "certificate_authority", "claims", "roles", "facilities",
    "scopes", "consortium_roles",
}  # fmt: skip
_CLAIMS: Final = {"subject": "sub", "facility": "facility", "role": "role", "scope": "", "patient": ""}
_NO_ACCESS: Final = {"ID", "Refresh", "Logout"}


@dataclass(frozen=True, slots=True)
class Provider:
    """One issuer.

    id          begins the subject of its users (``county:dr-li``), so that nobody of another door is taken for one of them
    discovery   address of its openid-configuration; jwks_uri: address of its keys, asked instead when given
    claims      what -> name of a claim, or a path of names with dots
    roles       value of the role claim -> role; the first that a token has counts
    facilities  value of the facility claim -> facility id; empty: the value is the id
    scopes      role -> the widest scopes its holders may have
    consortium  roles that may come without a facility
    """

    id: str
    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    discovery: str
    jwks_uri: str
    authority: Path | None
    claims: Mapping[str, str]
    roles: Mapping[str, str]
    facilities: Mapping[str, str]
    scopes: Mapping[str, frozenset[str]]
    consortium: frozenset[str]


def load_providers(path: Path | None) -> list[Provider]:
    """The providers of the file; none without a file. Raises AccessError naming file, provider and what to change."""
    if path is None:
        return []
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as fault:
        raise AccessError(f"{path}: the file of providers cannot be read: {fault}") from None
    listed = found.get("providers") if isinstance(found, dict) and set(found) == {"providers"} else None
    if not isinstance(listed, list) or not listed:
        raise AccessError(f"{path}: a list called providers is needed, and nothing beside it")
    out = []
    for number, entry in enumerate(listed, start=1):
        place = f"{path}: provider {number}"
        if not isinstance(entry, dict):
            raise AccessError(f"{place}: is not a mapping")
        out.append(_provider(entry, path.parent, place))
    for name in ("id", "issuer"):
        if len({getattr(p, name) for p in out}) < len(out):
            raise AccessError(f"{path}: two providers have the same {name}")
    return out


def _provider(entry: Mapping[str, Any], folder: Path, place: str) -> Provider:
    if unknown := sorted(set(map(str, entry)) - _KNOWN):
        raise AccessError(f"{place}: {unknown[0]} is not one of {', '.join(sorted(_KNOWN))}")

    def text(name: str, otherwise: str | None = None) -> str:
        value = entry.get(name, otherwise)
        if not isinstance(value, str) or (otherwise is None and not value):
            raise AccessError(f"{place}: {name} is a text")
        return value

    def texts(name: str, otherwise: Sequence[str] = ()) -> tuple[str, ...]:
        value = entry.get(name, list(otherwise))
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise AccessError(f"{place}: {name} is a list of texts")
        return tuple(value)

    def mapping(name: str) -> dict[str, str]:
        value = entry.get(name, {})
        if not isinstance(value, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
            raise AccessError(f"{place}: {name} maps texts to texts")
        return value

    issuer, audience = text("issuer"), texts("audience")
    discovery = text("discovery", issuer.rstrip("/") + "/.well-known/openid-configuration")
    jwks = text("jwks_uri", "")
    for name, address in (("issuer", issuer), ("discovery", discovery), *((("jwks_uri", jwks),) if jwks else ())):
        require_safe(address, f"{place}: {name}")
    if not audience:
        raise AccessError(f"{place}: audience is missing: the name under which the provider knows this server")
    algorithms = texts("algorithms", ("RS256", "ES256"))
    if wrong := [a for a in algorithms if a not in ALGORITHMS] or (not algorithms and ["nothing"]):
        raise AccessError(f"{place}: algorithms: {wrong[0]} is not one of {', '.join(ALGORITHMS)}")
    claims, roles = mapping("claims"), mapping("roles")
    if unknown := sorted(set(claims) - set(_CLAIMS)):
        raise AccessError(f"{place}: claims: {unknown[0]} is not one of {', '.join(_CLAIMS)}")
    consortium = texts("consortium_roles")
    for role in (*roles.values(), *consortium):
        if role not in ROLES:
            raise AccessError(f"{place}: {role} is not one of {', '.join(ROLES)}")
    if not roles:
        raise AccessError(f"{place}: roles is missing: value of the role claim -> {', '.join(ROLES)}")
    authority = text("certificate_authority", "")
    return Provider(
        *(text("id"), issuer, audience, algorithms, discovery, jwks, folder / authority if authority else None),
        {**_CLAIMS, **claims},
        roles,
        mapping("facilities"),
        _scopes(entry.get("scopes", {}), set(roles.values()), place),
        frozenset(consortium),
    )


def _scopes(given: Any, roles: Iterable[str], place: str) -> dict[str, frozenset[str]]:
    if not isinstance(given, dict) or not all(isinstance(v, list) for v in given.values()):
        raise AccessError(f"{place}: scopes maps a role to a list of SMART scopes")
    out = {}
    for role in roles:
        try:
            wanted = frozenset(map(str, given.get(role, ())))
            # Nobody of another house gets a grant for sensitive classes that the file does not name.
            widest = frozenset(s for s in default_scopes(role) if not sensitive_grants([s]))
            out[role] = check_scopes(role, wanted) if wanted else widest
        except AccessError as fault:
            raise AccessError(f"{place}: scopes: {fault}") from None
    return out


def require_safe(address: str, where: str) -> None:
    """Raises AccessError unless the address is https, or http of this machine, without user, query and fragment."""
    parts = urlsplit(address)
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    if (
        not (parts.scheme == "https" or local)
        or not parts.hostname
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
    ):
        raise AccessError(f"{where} is not an https address (or one of this machine) without user, query and fragment")


def usable(key: PublicKey, provider: Provider) -> bool:
    """Whether a published key may check tokens of the provider: for signatures, of an algorithm on the list, and long enough."""
    return key.as_dict(private=False).get("use", "sig") == "sig" and any(
        _fits(key, algorithm) for algorithm in provider.algorithms
    )


def _fits(key: PublicKey, algorithm: str) -> bool:
    if key.alg not in (None, algorithm):
        return False
    if isinstance(key, RSAKey):
        return algorithm[:2] in ("RS", "PS") and key.raw_value.key_size >= _RSA_BITS
    if isinstance(key, ECKey):
        return _CURVES.get(algorithm) == key.curve_name
    return algorithm == "EdDSA" and key.curve_name in ("Ed25519", "Ed448")


def choose(provider: Provider, keys: Iterable[PublicKey], kid: object, algorithm: object) -> PublicKey | None:
    """The key that a token names by kid and algorithm; without a kid the only one that fits. None: there is no such key."""
    if algorithm not in provider.algorithms:
        return None
    fitting = [k for k in keys if (kid is None or k.kid == kid) and _fits(k, str(algorithm))]
    return fitting[0] if len(fitting) == 1 else None


def claims_of(provider: Provider, token: str, keys: Iterable[PublicKey]) -> dict[str, Any]:
    """The claims of a token that one of the keys signed, whatever its times. Raises Fault UNAUTHENTICATED."""
    known = list(keys)

    def key_of(guest: GuestProtocol) -> PublicKey:
        headers = guest.headers()
        found = choose(provider, known, headers.get("kid"), headers.get("alg"))
        if found is None:
            raise unauthenticated("The token is signed with a key its issuer does not publish.", "invalid_token")
        return found

    try:
        return jwt.decode(token, key_of, algorithms=list(provider.algorithms)).claims
    except (JoseError, ValueError, UnicodeError):
        raise unauthenticated("The token is not valid. Ask for a new one.", "invalid_token") from None


def check(provider: Provider, claims: Mapping[str, Any], now: datetime) -> None:
    """Issuer, audience and times of an access token (RFC 9068 section 4). Raises Fault UNAUTHENTICATED."""
    registry = jwt.JWTClaimsRegistry(
        now=int(now.timestamp()),
        leeway=_SKEW,
        iss={"essential": True, "value": provider.issuer},
        aud={"essential": True, "values": list(provider.audience)},
        sub={"essential": True},
        exp={"essential": True},
    )
    try:
        registry.validate(dict(claims))
    except ExpiredTokenError:
        raise unauthenticated("The token has expired. Ask for a new one.", "invalid_token") from None
    except JoseError:
        raise unauthenticated("The token is not valid here or not valid yet.", "invalid_token") from None
    if claims.get("typ") in _NO_ACCESS or "at_hash" in claims or "c_hash" in claims:
        raise unauthenticated("This is not an access token.", "invalid_token")


def principal(provider: Provider, claims: Mapping[str, Any]) -> Principal:
    """Who a checked token is for. Raises Fault UNAUTHENTICATED when its claims name nobody that the file maps."""
    subject = _first(_at(claims, provider.claims["subject"]))
    if not subject:
        raise unauthenticated("The token names no user.", "invalid_token")
    held = _texts(_at(claims, provider.claims["role"]))
    role = next((role for value, role in provider.roles.items() if value in held), None)
    if role is None:
        raise unauthenticated("The token names no role this server knows.", "invalid_token")
    stated = _texts(_at(claims, provider.claims["facility"]))
    facilities = [provider.facilities.get(f, "") if provider.facilities else f for f in stated]
    facility = next((f for f in facilities if f), "")
    # An empty facility stands for the whole consortium, so a claim that is missing must not give it.
    if not facility and role not in provider.consortium:
        raise unauthenticated("The token names no facility this server knows.", "invalid_token")
    patient = _first(_at(claims, provider.claims["patient"])) if provider.claims["patient"] else ""
    scopes = provider.scopes[role]
    if provider.claims["scope"]:
        wanted = {s for text in _texts(_at(claims, provider.claims["scope"])) for s in text.split()}
        scopes = covered(frozenset(s for s in wanted if is_smart(s)), scopes)
    return Principal(f"{provider.id}:{subject}", role, facility, scopes, patient)


def _at(claims: Mapping[str, Any], path: str) -> Any:
    if path in claims:
        return claims[path]  # names of claims may be addresses, with dots in them
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _texts(value: Any) -> list[str]:
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str) and v]


def _first(value: Any) -> str:
    return next(iter(_texts(value)), "")
