"""SMART backend services against a running server: a registered system signs an assertion and gets a token."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from fhir_server.access import covered
from fhir_server.keys import AccessError
from fhir_server.smart_clients import load_clients

from .conftest import Serve, Served

ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
EC = ECKey.generate_key("P-384", {"kid": "ec-1"})
RSA = RSAKey.generate_key(2048, {"kid": "rsa-1"})
SCOPES = '["system/Patient.rs", "system/Observation.cruds"]'


def registered(folder: Path, *, scopes: str = SCOPES, keys: dict[str, Any] | None = None) -> Path:
    """A file with the one client ``his``."""
    public = keys or KeySet([EC, RSA]).as_dict(private=False)
    (folder / "his.jwks.json").write_text(json.dumps(public), "utf-8")
    file = folder / "clients.toml"
    file.write_text(f'[[client]]\nid = "his"\nfacility = "alpha"\nscopes = {scopes}\njwks = "his.jwks.json"\n', "utf-8")
    return file


def assertion(served: Served, key: ECKey | RSAKey = EC, **changes: Any) -> str:
    now = int(time.time())
    claims = {
        "iss": "his",
        "sub": "his",
        "aud": f"{served.base}/auth/token",
        "exp": now + 240,
        "jti": str(uuid.uuid4()),
    }
    claims = {name: value for name, value in (claims | changes).items() if value is not None}
    alg = "ES384" if isinstance(key, ECKey) else "RS384"
    return jwt.encode({"alg": alg, "kid": key.kid, "typ": "JWT"}, claims, key, algorithms=["ES384", "RS384"])


def ask(http: httpx.Client, signed: str, scope: str = "system/Observation.rs", **changes: str) -> httpx.Response:
    form = {
        "grant_type": "client_credentials",
        "scope": scope,
        "client_assertion_type": ASSERTION,
        "client_assertion": signed,
    }
    return http.post("/auth/token", data={k: v for k, v in (form | changes).items() if v})


def test_a_registered_system_gets_a_token_uses_it_and_ends_it(serve: Serve, tmp_path: Path) -> None:
    with serve(clients_file=registered(tmp_path)) as served, served.client(token=False) as http:
        told = http.get("/fhir/.well-known/smart-configuration").json()
        assert told["token_endpoint"] == f"{served.base}/auth/token"
        assert {"client-confidential-asymmetric", "permission-v2"} <= set(told["capabilities"])
        security = http.get("/fhir/metadata").json()["rest"][0]["security"]
        assert security["service"][0]["coding"][0]["code"] == "SMART-on-FHIR"

        for key in (EC, RSA):
            answer = ask(http, assertion(served, key), "system/Observation.rs system/Condition.rs")
            assert answer.status_code == 200, answer.text
            assert answer.headers["cache-control"] == "no-store"
            given = answer.json()
            # Condition is not registered: left out of what is granted (RFC 6749 section 5.1).
            assert (given["token_type"], given["expires_in"], given["scope"]) == (
                "bearer",
                300,
                "system/Observation.rs",
            )

        mine = {"Authorization": f"Bearer {given['access_token']}"}
        assert http.get("/fhir/Observation", headers=mine).status_code == 200
        assert http.get("/fhir/Condition", headers=mine).status_code == 403
        assert http.get("/fhir/Observation/x/_history", headers=mine).status_code == 404

        seen = http.post("/auth/introspect", data={"token": given["access_token"]}, headers=mine).json()
        assert (seen["active"], seen["client_id"], seen["facility"]) == (True, "his", "alpha")
        assert http.post("/auth/introspect", data={"token": "nonsense"}, headers=mine).json() == {"active": False}
        assert http.post("/auth/introspect", data={"token": given["access_token"]}).status_code == 401

        other = {"Authorization": f"Bearer {served.token('clinician')}"}
        assert http.post("/auth/revoke", data={"token": given["access_token"]}, headers=other).status_code == 403
        assert http.post("/auth/revoke", data={"token": "nonsense"}, headers=mine).status_code == 200
        assert http.post("/auth/revoke", data={"token": given["access_token"]}, headers=mine).status_code == 200
        assert http.get("/fhir/Observation", headers=mine).status_code == 401
        ended = given["access_token"]
    with serve(clients_file=registered(tmp_path)) as served, served.client(token=False) as http:
        again = http.get("/fhir/Observation", headers={"Authorization": f"Bearer {ended}"})
        assert again.status_code == 401
        assert "revoked" in again.text


def test_what_proves_nothing_gets_no_token_and_is_recorded(serve: Serve, tmp_path: Path, database_url: str) -> None:
    stranger = ECKey.generate_key("P-384", {"kid": "ec-1"})
    now = int(time.time())
    with serve(clients_file=registered(tmp_path)) as served, served.client(token=False) as http:
        bad = {
            "signed with another key": assertion(served, stranger),
            "another issuer": assertion(served, iss="her"),
            "another subject": assertion(served, sub="her"),
            "meant for another server": assertion(served, aud="https://elsewhere/auth/token"),
            "ended": assertion(served, exp=now - 60),
            "too long": assertion(served, exp=now + 3600),
            "without an end": assertion(served, exp=None),
            "without jti": assertion(served, jti=None),
            "no JWT": "abc",
        }
        for what, signed in bad.items():
            answer = ask(http, signed)
            assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), what
        once = assertion(served)
        assert ask(http, once).status_code == 200
        assert ask(http, once).json()["error"] == "invalid_client"
        assert ask(http, assertion(served), "system/Condition.rs").json()["error"] == "invalid_scope"
        assert ask(http, assertion(served), "").json()["error"] == "invalid_request"
        assert ask(http, assertion(served), grant_type="password").json()["error"] == "unsupported_grant_type"
        assert ask(http, "", client_assertion_type="").json()["error"] == "invalid_request"
        assert http.post("/auth/token", content=b"{}").json()["error"] == "invalid_request"
    with psycopg.connect(database_url) as conn:
        rows = conn.execute("SELECT entry::jsonb FROM audit_entry WHERE entry LIKE '%\"token\"%'").fetchall()
    outcomes = [(entry["subject"], entry["outcome"]) for (entry,) in rows]
    assert outcomes.count(("his", "0")) == 1
    assert outcomes.count(("", "4")) == len(bad) + 6


@pytest.mark.parametrize(
    ("scopes", "keys", "why"),
    [
        ('["user/Patient.rs"]', None, "may not hold scope user/Patient.rs"),
        ("[]", None, "scopes is missing"),
        (SCOPES, KeySet([EC]).as_dict(private=True), "holds a private key"),
        (SCOPES, KeySet([ECKey.generate_key("P-256", {"kid": "a"})]).as_dict(private=False), "P-384"),
        (SCOPES, {"keys": []}, "not a JSON Web Key Set"),
        (SCOPES, {}, "not a JSON Web Key Set"),
    ],
)
def test_a_file_of_clients_that_cannot_be_used_is_named(
    tmp_path: Path, scopes: str, keys: dict[str, Any] | None, why: str
) -> None:
    file = registered(tmp_path, scopes=scopes, keys=keys)
    if keys is not None:
        (tmp_path / "his.jwks.json").write_text(json.dumps(keys), "utf-8")
    with pytest.raises(AccessError, match=why) as raised:
        load_clients(file)
    assert "clients.toml: client 1" in str(raised.value)


def test_the_server_does_not_start_with_a_file_of_clients_it_cannot_read(tmp_path: Path, database_url: str) -> None:
    command = [*[sys.executable, "-m", "fhir_server.cli", "serve"], "--data", str(tmp_path)]
    environment = {
        "TONGJIAN_CLIENTS_FILE": str(tmp_path / "no.toml"),
        "TONGJIAN_DATABASE_URL": database_url,
        "PATH": "",
    }
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "no.toml" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("registered_scopes", "wanted", "granted"),
    [
        ("system/*.rs", "system/Observation.cruds", "system/Observation.rs"),
        ("system/*.rs system/Observation.c", "system/Observation.cr", "system/Observation.cr"),
        ("system/Observation.rs", "system/*.rs", ""),
        ("system/Observation.rs", "user/Observation.rs", ""),
        ("system/Observation.rs?category=laboratory", "system/Observation.rs", ""),
        ("system/*.rs", "system/Observation.rs?category=laboratory", "system/Observation.rs?category=laboratory"),
        ("system/*.rs", "system/Observation.rs?sensitivity=hiv", ""),
        (
            "system/Observation.rs?category=laboratory",
            "system/Observation.rs?category=laboratory",
            "system/Observation.rs?category=laboratory",
        ),
    ],
)
def test_no_more_is_granted_than_is_registered(registered_scopes: str, wanted: str, granted: str) -> None:
    found = covered(frozenset(wanted.split()), frozenset(registered_scopes.split()))
    assert found == frozenset(granted.split())
