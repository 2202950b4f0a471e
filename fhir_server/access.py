"""Who may do what: signed bearer tokens and SMART v2 scopes.

Tokens are JWT (RFC 7519) signed with ES256 or ES384 (RFC 7518), carried as RFC 6750 bearer tokens; scopes are those of SMART App Launch
2.2 (http://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html). All cryptography is joserfc's. No web framework here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import ECKey, GuestProtocol

from fhir_server.errors import Category, Fault

ISSUER: Final = "tongjian"
KEY_FILE: Final = "token-keys.json"
REVOKED_FILE: Final = "revoked-tokens.json"
_ALGORITHM: Final = {"P-256": "ES256", "P-384": "ES384"}
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


class AccessError(ValueError):
    """A token that cannot be issued, or a key file that cannot be used; the text says what to change."""


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


@dataclass(slots=True)
class Keys:
    """Signing keys: the last one signs, all are accepted, so that a key can be replaced while its tokens live on."""

    keys: list[ECKey]
    issuer: str = ISSUER
    audience: str = ISSUER
    revoked_file: Path | None = None
    _revoked: dict[str, int] = field(default_factory=dict, repr=False)
    _verified: OrderedDict[bytes, tuple[dict[str, Any], Principal]] = field(default_factory=OrderedDict, repr=False)

    @classmethod
    def load(cls, data_dir: Path, *, issuer: str = ISSUER, audience: str = ISSUER) -> Keys:
        """The keys kept in ``data_dir`` (JWK Set, RFC 7517, mode 0600); the first start makes one (P-256). Safe when several
        processes start at once: one wins and all read the same file. Raises OSError or AccessError when the file cannot be
        used."""
        path = data_dir / KEY_FILE
        if not path.exists():
            data_dir.mkdir(parents=True, exist_ok=True)
            _write(path, [_new_key("P-256")], replace=False)
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise AccessError(f"{path.name} can be read by others; set its mode to 0600")
        try:
            keys = [ECKey.import_key(k) for k in json.loads(path.read_text("utf-8"))["keys"]]
        except (JoseError, ValueError, KeyError, TypeError):
            keys = []
        if not keys:
            raise AccessError(f"{path.name} holds no usable key; delete it to have a new one made (old tokens end)")
        revoked = data_dir / REVOKED_FILE
        try:
            ended = json.loads(revoked.read_text("utf-8")) if revoked.exists() else {}
        except ValueError:
            raise AccessError(
                f"{revoked.name} cannot be read: which tokens were revoked is not known. Put it back from a backup, or delete "
                f"it together with {path.name}, which ends all tokens"
            ) from None
        return cls(keys, issuer, audience, revoked, ended)

    def claims(self, token: str) -> dict[str, Any]:
        """Claims of a token whose signature is ours, whatever its times. Raises Fault UNAUTHENTICATED for any other."""
        return _verify(self, token)

    def revoke(self, claims: Mapping[str, Any], now: datetime) -> None:
        """The token with these claims is refused from now on, also after a restart (RFC 7009). Raises OSError when that cannot be
        kept; then the token still holds."""
        at = int(now.timestamp())
        held = {jti: ends for jti, ends in self._revoked.items() if ends >= at} | {claims["jti"]: int(claims["exp"])}
        if self.revoked_file is not None:
            _write_text(self.revoked_file, json.dumps(held), replace=True)
        self._revoked = held

    @classmethod
    def rotate(cls, data_dir: Path, curve: str = "P-256", keep: int = 2) -> Keys:
        """Adds a new signing key (``P-256`` or ``P-384``) and keeps the ``keep`` newest older ones for tokens already given out."""
        old = cls.load(data_dir)
        kept = old.keys[-keep:] if keep else []
        _write(data_dir / KEY_FILE, [*kept, _new_key(curve)], replace=True)
        return cls.load(data_dir)

    def public(self) -> dict[str, Any]:
        """The public JWK Set, for others who check our tokens."""
        return {"keys": [{**k.as_dict(private=False), "alg": _algorithm(k), "use": "sig"} for k in self.keys]}


def _new_key(curve: str) -> ECKey:
    if curve not in _ALGORITHM:
        raise AccessError(f"{curve} is not one of {', '.join(_ALGORITHM)}")
    return ECKey.generate_key(curve, auto_kid=True)


def _algorithm(key: ECKey) -> str:
    return _ALGORITHM[key.curve_name]


def _write(path: Path, keys: Iterable[ECKey], *, replace: bool) -> None:
    _write_text(path, json.dumps({"keys": [k.as_dict(private=True) for k in keys]}), replace=replace)


def _write_text(path: Path, text: str, *, replace: bool) -> None:
    """Whole file or nothing; without ``replace`` an existing file stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    try:
        if replace:
            draft.replace(path)
        else:
            os.link(draft, path)
    except FileExistsError:
        pass  # another process was first; its keys are the ones
    finally:
        draft.unlink(missing_ok=True)


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
) -> str:
    """A signed token. ``now`` is an aware datetime; ``facility`` may be empty; empty ``scopes`` means ``default_scopes(role)``;
    ``patient`` is the logical id that ``patient/`` scopes are about.

    Raises AccessError for an unknown role, a scope that is not SMART v2, or a scope the role may not hold.
    """
    wanted = check_scopes(role, frozenset(scopes) or default_scopes(role))
    if not subject or ttl <= timedelta():
        raise AccessError("a token needs a subject and a life longer than 0")
    key = keys.keys[-1]
    at = int(now.timestamp())
    claims = {
        "iss": keys.issuer,
        "aud": keys.audience,
        "sub": subject,
        "iat": at,
        "nbf": at,
        "exp": at + max(1, int(ttl.total_seconds())),
        "jti": secrets.token_urlsafe(12),
        "role": role,
        "facility": facility,
        "scope": " ".join(sorted(wanted)),
    }
    if patient:
        claims["patient"] = patient
    return jwt.encode({"alg": _algorithm(key), "kid": key.kid, "typ": "JWT"}, claims, key, algorithms=[_algorithm(key)])


def authenticate(keys: Keys, header: str | None, now: datetime) -> Principal:
    """``Authorization`` header -> Principal. Raises Fault UNAUTHENTICATED (with a WWW-Authenticate header, RFC 6750 section 3) when
    there is no token, or it is forged, expired, not yet valid, or meant for somebody else."""
    scheme, _, token = (header or "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise _unauthenticated("This needs a bearer token: Authorization: Bearer <token>.", "")
    # A verified signature stays verified; the times are checked every time. Only the digest of a token is kept.
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
    known = keys._verified.get(digest)
    claims = _verify(keys, token) if known is None else known[0]
    if known is None or not claims["nbf"] <= now.timestamp() < claims["exp"]:
        _check_times(keys, claims, now)
    if claims.get("jti") in keys._revoked:
        raise _unauthenticated("The token was revoked. Ask for a new one.", "invalid_token")
    if known is not None:
        return known[1]
    principal = _principal(claims)
    keys._verified[digest] = (claims, principal)
    if len(keys._verified) > _CACHED:
        keys._verified.popitem(last=False)
    return principal


def _verify(keys: Keys, token: str) -> dict[str, Any]:

    def key_of(guest: GuestProtocol) -> ECKey:
        headers = guest.headers()
        for key in keys.keys:
            if headers.get("kid") == key.kid and headers.get("alg") == _algorithm(key):
                return key
        raise _unauthenticated("The token is signed with a key this server does not know.", "invalid_token")

    try:
        return jwt.decode(token, key_of, algorithms=list(_ALGORITHM.values())).claims
    except (JoseError, ValueError, UnicodeError):
        raise _unauthenticated("The token is not valid. Ask for a new one.", "invalid_token") from None


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
        raise _unauthenticated("The token has expired. Ask for a new one.", "invalid_token") from None
    except JoseError:
        raise _unauthenticated("The token is not valid here or not valid yet.", "invalid_token") from None


def _principal(claims: dict[str, Any]) -> Principal:
    role, facility, scope = claims.get("role"), claims.get("facility", ""), claims.get("scope", "")
    if role not in ROLES or not isinstance(facility, str) or not isinstance(scope, str):
        raise _unauthenticated("The token names no role this server knows.", "invalid_token")
    patient = claims.get("patient", "")
    if not isinstance(patient, str):
        raise _unauthenticated("The token names no patient this server knows.", "invalid_token")
    return Principal(cast(str, claims["sub"]), cast(str, role), facility, frozenset(scope.split()), patient)


def _unauthenticated(text: str, error: str) -> Fault:
    challenge = 'Bearer realm="tongjian"' + (f', error="{error}"' if error else "")
    return Fault(Category.UNAUTHENTICATED, text, headers={"WWW-Authenticate": challenge})
