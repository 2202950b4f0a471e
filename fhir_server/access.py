"""Who may do what: signed bearer tokens and SMART v2 scopes.

Tokens are JWT (RFC 7519) signed by fhir_server.keys, carried as RFC 6750 bearer tokens; scopes are those of SMART App Launch
2.2 (http://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html). All cryptography is joserfc's. No web framework here.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, cast

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError

from fhir_server.errors import Category, Fault
from fhir_server.keys import LONGEST, AccessError, Keys, unauthenticated

_CACHED: Final = 4096

# Role -> (contexts its scopes may have, interactions it may hold). Administration and audit are separate duties (GB/T 22239-2019).
ROLES: Final[dict[str, tuple[frozenset[str], frozenset[str]]]] = {
    "clinician": (frozenset({"user", "patient"}), frozenset("cruds")),
    "integrator": (frozenset({"system", "user"}), frozenset("cruds")),
    "auditor": (frozenset({"user"}), frozenset("rs")),
    "administrator": (frozenset({"user", "system"}), frozenset("cruds")),
    "system": (frozenset({"system"}), frozenset("cruds")),
}

# RESTful interaction (http://hl7.org/fhir/R4/valueset-type-restful-interaction.html and its system-level fellow) -> SMART letter.
_LETTER: Final[dict[str, str]] = {
    "create": "c",
    "read": "r",
    "vread": "r",
    "history-instance": "r",
    "update": "u",
    "patch": "u",
    "delete": "d",
    "search-type": "s",
    "search-system": "s",
    "history-type": "s",
    "history-system": "s",
}
_SCOPE = re.compile(r"(patient|user|system)/(\*|[A-Z][A-Za-z]*)\.(c?r?u?d?s?)(\?.+)?")
_SENSITIVE: Final = re.compile(r"(?:user|system|patient)/(?:Observation|\*)\.c?ru?d?s?\?sensitivity=([a-z-]+)")
SENSITIVE: Final = ("hiv", "mental-health", "genetics", "other")
"""Classes of sensitive data, as mappings.sensitive names them."""


@lru_cache(maxsize=1024)
def _grants(scopes: frozenset[str], patient: str) -> dict[str, tuple[frozenset[str], tuple[tuple[str, str], ...]]]:
    """Resource type or ``*`` -> letters granted for all its instances, and (letter, query) of scopes narrowed by a query.
    ``patient/`` scopes count for a token with a patient; writes under a narrowed scope are not given: they cannot be enforced."""
    out: dict[str, tuple[frozenset[str], tuple[tuple[str, str], ...]]] = {}
    for scope in scopes:
        m = _SCOPE.fullmatch(scope)
        if not m or (m[1] == "patient") != bool(patient) or _SENSITIVE.fullmatch(scope):
            continue
        whole, parts = out.get(m[2], (frozenset(), ()))
        if not m[4]:
            out[m[2]] = whole | frozenset(m[3]), parts
        elif m[2] != "*":
            out[m[2]] = whole, (*parts, *((letter, m[4][1:]) for letter in m[3] if letter in "rs"))
    return out


def sensitive_grants(scopes: Iterable[str]) -> frozenset[str]:
    """Classes of sensitive data that may be seen: SMART scopes ``user/Observation.rs?sensitivity=<class>``, for every type."""
    return frozenset(found[1] for found in map(_SENSITIVE.fullmatch, scopes) if found)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: subject (user or client id), role (one of ROLES), facility id (empty: no single facility), SMART scopes, and the one
    patient (logical id) of a token with ``patient/`` scopes."""

    subject: str
    role: str
    facility: str
    scopes: frozenset[str]
    patient: str = ""

    def may(self, interaction: str, type: str) -> bool:
        """True when the scopes grant the RESTful interaction (``read``, ``search-type`` ...) on the resource type.

        ``type`` is a resource type, or ``*`` for every type (system search and history). Raises ValueError for an unknown interaction.
        """
        letter = _LETTER.get(interaction)
        if letter is None:
            raise ValueError(f"{interaction} is not an interaction that scopes name")
        grants = _grants(self.scopes, self.patient)
        if type == "*":
            return letter in grants.get("*", (frozenset(),))[0]
        return any(
            letter in whole or any(letter == given for given, _ in parts)
            for whole, parts in (grants.get("*", (frozenset(), ())), grants.get(type, (frozenset(), ())))
        )

    def narrowed(self, letter: str) -> dict[str, list[str]]:
        """Types granted with a query alone -> queries (``category=laboratory``) of which a row must meet one, for a SMART letter."""
        grants = _grants(self.scopes, self.patient)
        every = letter in grants.get("*", (frozenset(), ()))[0]
        out = {}
        for name, (whole, parts) in grants.items():
            queries = [query for given, query in parts if given == letter]
            if queries and letter not in whole and not every:
                out[name] = queries
        return out

    def require(self, interaction: str, *types: str) -> None:
        """Raises Fault FORBIDDEN naming the first resource type the scopes do not grant the interaction on."""
        for name in types:
            if not self.may(interaction, name):
                missing = f"{'system' if self.role == 'system' else 'user'}/{name}.{_LETTER[interaction]}"
                raise Fault(
                    Category.FORBIDDEN,
                    f"The token does not allow {interaction} on {name}. Ask for a token with scope {missing}.",
                    headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{missing}"'},
                )

    def require_role(self, *roles: str) -> None:
        """Raises Fault FORBIDDEN when the principal has none of the roles."""
        if self.role not in roles:
            raise Fault(Category.FORBIDDEN, f"This needs a token of role {' or '.join(roles)}.")


def default_scopes(role: str) -> frozenset[str]:
    """The widest scope a role may hold on every type (``user/*.rs`` for an auditor). Raises AccessError for an unknown role."""
    if role not in ROLES:
        raise AccessError(f"{role} is not one of {', '.join(ROLES)}")
    contexts, letters = ROLES[role]
    context = "user" if "user" in contexts else "system"
    widest = f"{context}/*.{''.join(c for c in 'cruds' if c in letters)}"
    # People at the bedside and auditors ask for sensitive classes by name; who runs the installation holds them unless narrowed.
    grants = (
        () if role in ("clinician", "auditor") else (f"{context}/Observation.rs?sensitivity={c}" for c in SENSITIVE)
    )
    return frozenset({widest, *grants})


def check_scopes(role: str, scopes: frozenset[str]) -> frozenset[str]:
    """The scopes, when each is a SMART v2 scope that the role may hold. Raises AccessError naming the first that is not."""
    if role not in ROLES:
        raise AccessError(f"{role} is not one of {', '.join(ROLES)}")
    contexts, letters = ROLES[role]
    for scope in sorted(scopes):
        m = _SCOPE.fullmatch(scope)
        if not m or not m[3]:
            raise AccessError(f"{scope} is not a SMART v2 scope such as user/Observation.rs")
        if m[1] not in contexts or not letters.issuperset(m[3]):
            raise AccessError(f"role {role} may not hold scope {scope}")
    return scopes


def granted_of(registered: frozenset[str], wanted: frozenset[str]) -> frozenset[str]:
    """What of the wanted SMART v2 scopes the registered ones cover, letter by letter: ``system/*.rs`` registered and
    ``system/Observation.cruds`` wanted gives ``system/Observation.rs``. Scopes with a query are granted only as registered."""
    out = registered & wanted
    held: dict[tuple[str, str], frozenset[str]] = {}
    for scope in registered:
        if (m := _SCOPE.fullmatch(scope)) and not m[4]:
            held[m[1], m[2]] = held.get((m[1], m[2]), frozenset()) | frozenset(m[3])
    for scope in wanted - out:
        if (m := _SCOPE.fullmatch(scope)) and not m[4]:
            letters = held.get((m[1], m[2]), frozenset()) | held.get((m[1], "*"), frozenset())
            if given := "".join(c for c in m[3] if c in letters):
                out |= {f"{m[1]}/{m[2]}.{given}"}
    return out


def covered(wanted: frozenset[str], held: frozenset[str]) -> frozenset[str]:
    """What of the wanted SMART v2 scopes the held ones cover: narrower letters, a query, and one patient instead of all are covered by
    a wider scope; the grant of a sensitive class only by itself."""
    out = set()
    for scope in wanted:
        plain, mark, query = scope.partition("?")
        if scope in held:
            out.add(scope)
        elif not query.startswith("sensitivity="):
            context, _, rest = plain.partition("/")
            for given in granted_of(held, frozenset({plain})) or (
                granted_of(held, frozenset({f"user/{rest}"})) if context == "patient" else ()
            ):
                out.add(f"{context}/{given.partition('/')[2]}{mark}{query}")
    return frozenset(out)


def is_smart(scope: str) -> bool:
    """True for a SMART v2 scope about resources, with at least one letter."""
    found = _SCOPE.fullmatch(scope)
    return bool(found and found[3])


def issue_token(
    keys: Keys,
    subject: str,
    role: str,
    facility: str,
    scopes: Iterable[str],
    *,
    ttl: timedelta,
    now: datetime,
    patient: str = "",
    jti: str = "",
) -> str:
    """A signed token. ``now`` is an aware datetime; ``facility`` may be empty; empty ``scopes`` means ``default_scopes(role)``;
    ``patient`` is the logical id that ``patient/`` scopes are about; ``jti`` its id (default: a random one).

    Raises AccessError for an unknown role, a scope that is not SMART v2, or a scope the role may not hold.
    """
    wanted = check_scopes(role, frozenset(scopes) or default_scopes(role))
    if not subject or not timedelta() < ttl <= LONGEST:
        raise AccessError(f"a token needs a subject and a life longer than 0, of {LONGEST.days} days at most")
    at = int(now.timestamp())
    claims = {
        "iss": keys.issuer,
        "aud": keys.audience,
        "sub": subject,
        "iat": at,
        "nbf": at,
        "exp": at + max(1, int(ttl.total_seconds())),
        "jti": jti or secrets.token_urlsafe(12),
        "role": role,
        "facility": facility,
        "scope": " ".join(sorted(wanted)),
    }
    if patient:
        claims["patient"] = patient
    return keys.signed(claims)


def authenticate(keys: Keys, header: str | None, now: datetime) -> Principal:
    """``Authorization`` header -> Principal. Raises Fault UNAUTHENTICATED (with a WWW-Authenticate header, RFC 6750 section 3) when
    there is no token, or it is forged, expired, not yet valid, or meant for somebody else."""
    scheme, _, token = (header or "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise unauthenticated("This needs a bearer token: Authorization: Bearer <token>.", "")
    # A verified signature stays verified; the times are checked every time. Only the digest of a token is kept.
    keys.look()
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
    known = keys._verified.get(digest)
    claims = keys.claims(token) if known is None else known[0]
    if known is None or not claims["nbf"] <= now.timestamp() < claims["exp"]:
        _check_times(keys, claims, now)
    if keys.is_revoked(claims):
        raise unauthenticated("The token was revoked. Ask for a new one.", "invalid_token")
    if known is not None:
        return known[1]
    principal = _principal(claims)
    keys._verified[digest] = (claims, principal)
    if len(keys._verified) > _CACHED:
        keys._verified.popitem(last=False)
    return principal


def _check_times(keys: Keys, claims: dict[str, Any], now: datetime) -> None:
    registry = jwt.JWTClaimsRegistry(
        now=int(now.timestamp()),
        iss={"essential": True, "value": keys.issuer},
        aud={"essential": True, "value": keys.audience},
        sub={"essential": True},
        exp={"essential": True},
        nbf={"essential": True},
    )
    try:
        registry.validate(claims)
    except ExpiredTokenError:
        raise unauthenticated("The token has expired. Ask for a new one.", "invalid_token") from None
    except JoseError:
        raise unauthenticated("The token is not valid here or not valid yet.", "invalid_token") from None


def _principal(claims: dict[str, Any]) -> Principal:
    role, facility, scope = claims.get("role"), claims.get("facility", ""), claims.get("scope", "")
    if role not in ROLES or not isinstance(facility, str) or not isinstance(scope, str):
        raise unauthenticated("The token names no role this server knows.", "invalid_token")
    patient = claims.get("patient", "")
    if not isinstance(patient, str):
        raise unauthenticated("The token names no patient this server knows.", "invalid_token")
    return Principal(cast(str, claims["sub"]), cast(str, role), facility, frozenset(scope.split()), patient)
