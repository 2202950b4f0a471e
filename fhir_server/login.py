"""Log-in for apps: authorization code with PKCE and refresh tokens (SMART App Launch 2.2, RFC 6749, RFC 7636, RFC 9700).

Codes and refresh tokens are random, kept as SHA-256 digests in the table ``login_grant``, and good once: one that comes a second
time ends everything that came from the same log-in, its access tokens too. No web framework and no clock here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg.rows import class_row

from fhir_server.access import Principal, covered, default_scopes, issue_token
from fhir_server.accounts import Account
from fhir_server.authorization import Refused
from fhir_server.keys import Keys
from fhir_server.smart_clients import App

CODE_LIFE: Final = timedelta(minutes=1)
TOKEN_LIFE: Final = timedelta(minutes=15)
REFRESH_LIFE: Final = timedelta(days=30)
"""Of ``offline_access``; that of ``online_access`` is 12 hours."""
ONLINE_LIFE: Final = timedelta(hours=12)

_VERIFIER: Final = re.compile(r"[A-Za-z0-9\-._~]{43,128}")
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9\-_]{43}")
_REFRESHED: Final = frozenset({"offline_access", "online_access"})
"""Given to an app that is registered with them."""
_PLAIN: Final = _REFRESHED | {"launch/patient", "openid", "fhirUser", "profile"}
_LONGEST_NONCE: Final = 200
_PATIENT: Final = re.compile(r"[A-Za-z0-9\-.]{1,64}")


@dataclass(frozen=True, slots=True)
class Wish:
    """A checked authorization request: the app, where the answer goes, state, scopes wanted, PKCE challenge, nonce of the id token
    (may be empty)."""

    app: App
    redirect_uri: str
    state: str
    scopes: frozenset[str]
    challenge: str
    nonce: str = ""

    @property
    def needs_patient(self) -> bool:
        """True when a patient has to be chosen."""
        return any(s.startswith("patient/") or s == "launch/patient" for s in self.scopes)


@dataclass(frozen=True, slots=True)
class _Kept:
    family: str
    subject: str
    client: str
    redirect_uri: str
    scope: str
    challenge: str
    patient: str
    until: datetime
    used: bool
    role: str
    facility: str
    active: bool
    nonce: str
    name: str
    fhir_user: str


class Unanswerable(ValueError):
    """A request whose answer must not be sent anywhere: the app or its address is not known (RFC 6749 section 4.1.2.1)."""


def wish(apps: Mapping[str, App], query: Mapping[str, str], audience: str) -> Wish:
    """Reads an authorization request. ``audience``: address of the FHIR API, which ``aud`` must name. Raises Unanswerable, and
    Refused for an error that goes back to the app."""
    app = apps.get(query.get("client_id", ""))
    redirect = query.get("redirect_uri", "")
    if app is None or redirect not in app.redirect_uris:
        raise Unanswerable("client_id or redirect_uri is not registered")
    if query.get("response_type") != "code":
        raise Refused("unsupported_response_type", "response_type must be code.")
    if query.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(query.get("code_challenge", "")):
        raise Refused("invalid_request", "code_challenge with code_challenge_method S256 is needed.")
    if query.get("aud", "").rstrip("/") != audience:
        raise Refused("invalid_request", f"aud must be {audience}.")
    scopes = frozenset(query.get("scope", "").split())
    if not query.get("state") or not scopes:
        raise Refused("invalid_request", "state and scope are needed.")
    if len(query.get("nonce", "")) > _LONGEST_NONCE:
        raise Refused("invalid_request", f"nonce has {_LONGEST_NONCE} characters at most.")
    return Wish(app, redirect, query["state"], scopes, query["code_challenge"], query.get("nonce", ""))


def grantable(asked: Wish, account: Account) -> frozenset[str]:
    """What of the scopes wanted both the app and the person may hold."""
    held = frozenset(account.scopes.split()) or default_scopes(account.role)
    plain = asked.scopes & (_PLAIN - _REFRESHED | asked.app.scopes & _REFRESHED)
    if not account.fhir_user:
        plain -= {"fhirUser"}
    return plain | covered(covered(asked.scopes - _PLAIN, asked.app.scopes), held)


def give_code(
    conn: psycopg.Connection[Any], asked: Wish, account: Account, scopes: frozenset[str], patient: str, now: datetime
) -> str:
    """A code for what the person agreed to. Raises Refused when nothing is left or no patient was chosen."""
    if not scopes - _PLAIN:
        raise Refused("invalid_scope", "None of these scopes may be given.")
    if asked.needs_patient and not _PATIENT.fullmatch(patient):
        raise Refused("access_denied", "No patient was chosen.")
    patient = patient if asked.needs_patient else ""
    row = ("code", secrets.token_hex(16), account.subject, asked.app.id, asked.redirect_uri)
    return _put(conn, row, " ".join(sorted(scopes)), asked.challenge, patient, now + CODE_LIFE, asked.nonce)


def redeem(
    conn: psycopg.Connection[Any],
    keys: Keys,
    apps: Mapping[str, App],
    form: Mapping[str, str],
    now: datetime,
    *,
    issuer: str,
    base: str,
) -> tuple[Principal, dict[str, Any]]:
    """``authorization_code`` or ``refresh_token`` -> who it is for, and the token answer. ``issuer`` of the id token; ``base``: address
    of the FHIR API. Raises Refused."""
    kind = "code" if form.get("grant_type") == "authorization_code" else "refresh"
    token = form.get("code" if kind == "code" else "refresh_token", "")
    app = apps.get(form.get("client_id", ""))
    if app is None:
        raise Refused("invalid_client", "client_id is not registered.", 401)
    with conn.cursor(row_factory=class_row(_Kept)) as cursor:
        row = cursor.execute(
            "SELECT g.family, g.subject, g.client, g.redirect_uri, g.scope, g.challenge, g.patient, g.until, g.used,"
            " a.role, a.facility, a.active, g.nonce, a.name, a.fhir_user FROM login_grant g JOIN account a USING (subject)"
            " WHERE g.digest = %s AND g.kind = %s FOR UPDATE OF g",
            [_digest(token), kind],
        ).fetchone()
    gone = Refused("invalid_grant", "It is not valid, was used before, or has expired. Log in again.")
    if row is None or row.client != app.id:
        raise gone
    if row.used:
        ended = conn.execute("DELETE FROM login_grant WHERE family = %s RETURNING digest", [row.family]).fetchall()
        conn.commit()
        # RFC 6749 section 4.1.2: the access tokens that came of it end, too.
        until = int((now + TOKEN_LIFE).timestamp())
        for (digest,) in ended:
            keys.revoke({"jti": _token_id(digest), "exp": until}, now)
        raise gone
    verifier = form.get("code_verifier", "")
    if kind == "code" and (
        row.redirect_uri != form.get("redirect_uri")
        or not _VERIFIER.fullmatch(verifier)
        or not hmac.compare_digest(_challenge(verifier), row.challenge)
    ):
        raise gone
    if row.until < now or not row.active:
        raise gone
    given = scopes = frozenset(row.scope.split())
    if wanted := frozenset(form.get("scope", "").split()) if kind == "refresh" else frozenset():
        # RFC 6749 section 6: never more than was given. A token without any scope would get those of the role.
        scopes = (given & wanted & _PLAIN) | covered(wanted - _PLAIN, given - _PLAIN)
    if not scopes - _PLAIN:
        raise Refused("invalid_scope", "None of these scopes was given.")
    conn.execute("UPDATE login_grant SET used = true WHERE digest = %s", [_digest(token)])
    life = TOKEN_LIFE
    access = issue_token(
        keys, row.subject, row.role, row.facility, scopes - _PLAIN, ttl=life, now=now, patient=row.patient,
        jti=_token_id(_digest(token)),
    )  # fmt: skip
    answer: dict[str, Any] = {
        "access_token": access,
        "token_type": "bearer",
        "expires_in": int(life.total_seconds()),
        "scope": " ".join(sorted(scopes)),
    }
    if kind == "code" and "openid" in scopes:
        answer["id_token"] = keys.signed_id(_identity(row, scopes, issuer, base, now))
    if row.patient:
        answer["patient"] = row.patient
    if given & _REFRESHED:
        ends = row.until if kind == "refresh" else now + (REFRESH_LIFE if "offline_access" in given else ONLINE_LIFE)
        kept = ("refresh", row.family, row.subject, row.client, row.redirect_uri)
        answer["refresh_token"] = _put(conn, kept, row.scope, "", row.patient, ends)
    return Principal(row.subject, row.role, row.facility, scopes, row.patient), answer


def _identity(row: _Kept, scopes: frozenset[str], issuer: str, base: str, now: datetime) -> dict[str, Any]:
    """Claims of the id token (OpenID Connect Core 1.0 section 2; fhirUser: SMART App Launch 2.2, "Scopes for requesting identity
    data")."""
    at = int(now.timestamp())
    claims: dict[str, Any] = {
        "iss": issuer,
        "sub": row.subject,
        "aud": row.client,
        "iat": at,
        "exp": at + int(TOKEN_LIFE.total_seconds()),
    }
    if row.nonce:
        claims["nonce"] = row.nonce
    if "fhirUser" in scopes and row.fhir_user:
        claims["fhirUser"] = f"{base}/{row.fhir_user}"
    if "profile" in scopes and row.name:
        claims["name"] = row.name
    return claims


def _put(
    conn: psycopg.Connection[Any],
    row: tuple[str, ...],
    scope: str,
    challenge: str,
    patient: str,
    until: datetime,
    nonce: str = "",
) -> str:
    token = secrets.token_urlsafe(32)
    conn.execute("DELETE FROM login_grant WHERE until < now() - interval '1 day'")
    conn.execute(
        "INSERT INTO login_grant (digest, kind, family, subject, client, redirect_uri, scope, challenge, patient, until, used, nonce)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, false, %s)",
        [_digest(token), *row, scope, challenge, patient, until, nonce],
    )
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _token_id(digest: bytes) -> str:
    """``jti`` of the access token that a code or refresh token was good for."""
    return hashlib.sha256(b"access token\0" + bytes(digest)).hexdigest()[:32]


def _challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
