"""Access tokens of an OpenID Connect provider that runs as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from fhir_server.oidc import load_providers
from fhir_server.oidc_keys import Issuer, Issuers
from tests.api.conftest import Api, serving


@dataclass
class Provider:
    """The process: ``do`` asks it for something, ``token`` for a signed access token."""

    issuer: str
    process: subprocess.Popen[str]

    def do(self, what: str, **told: Any) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.post(f"{self.issuer}/do", json={"do": what, **told}).json()
        return answer

    def token(self, *, header: dict[str, Any] | None = None, stranger: bool = False, **changes: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": ["tongjian", "account"], "sub": "8f3a", "preferred_username": "dr-li", "iat": now, "nbf": now,
            "exp": now + 300, "realm_access": {"roles": ["offline_access", "doctor"]}, "hospital": "1001", "scope": "openid profile",
        }  # fmt: skip
        claims = {k: v for k, v in {**claims, **changes}.items() if v is not None}
        return str(self.do("sign", claims=claims, header=header or {}, stranger=stranger)["token"])

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    program = Path(__file__).with_name("oidc_provider.py")
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = Provider(process.stdout.readline().strip(), process)
    try:
        yield found
    finally:
        found.end()


@pytest.fixture
def api(provider: Provider, database_url: str, tmp_path: Path) -> Iterator[Api]:
    file = tmp_path / "providers.yaml"
    file.write_text(
        f"""
providers:
  - id: county-idp
    issuer: {provider.issuer}
    audience: tongjian
    algorithms: [RS256]
    claims: {{subject: preferred_username, facility: hospital, role: realm_access.roles}}
    roles: {{doctor: clinician, supervisor: auditor}}
    facilities: {{"1001": county}}
    scopes: {{clinician: [user/Patient.rs, user/Observation.rs]}}
    consortium_roles: [auditor]
""",
        "utf-8",
    )
    (known,) = load_providers(file)
    issuers = Issuers([(known.issuer, Issuer(known, again=0))])
    with serving(database_url, tmp_path, {"access_by_treatment": False}, issuers=issuers) as running:
        yield running


def get(api: Api, token: str, address: str = "/Observation") -> int:
    return httpx.get(f"{api.base}{address}", headers={"Authorization": f"Bearer {token}"}).status_code


def test_a_token_of_the_provider_is_mapped_to_user_facility_role_and_scopes(provider: Provider, api: Api) -> None:
    token = provider.token()
    assert [get(api, token), get(api, token)] == [200, 200]
    assert get(api, token, "/Condition") == 403  # not among the scopes of the role
    assert get(api, provider.token(realm_access={"roles": ["supervisor"]}, hospital=None)) == 200
    with psycopg.connect(api.database_url) as conn:
        rows = conn.execute("SELECT entry::jsonb FROM audit_entry WHERE entry LIKE '%county-idp%' ORDER BY number")
        said = [(e["subject"], e["facility"], e["role"], e["outcome"]) for (e,) in rows]
    user = ("county-idp:dr-li", "county", "clinician")
    assert said == [(*user, "0"), (*user, "0"), (*user, "4"), ("county-idp:dr-li", "", "auditor", "0")]
    assert api.http.get("/Observation").status_code == 200  # our own tokens go on


def test_what_the_provider_did_not_say_to_us_is_refused(provider: Provider, api: Api) -> None:
    now = int(time.time())
    bad = {
        "another audience": provider.token(aud="elsewhere"),
        "no audience": provider.token(aud=None),
        "ended": provider.token(exp=now - 120),
        "without an end": provider.token(exp=None),
        "not yet": provider.token(nbf=now + 300),
        "no subject": provider.token(sub=None),
        "no name": provider.token(preferred_username=None),
        "no role of ours": provider.token(realm_access={"roles": ["offline_access"]}),
        "no facility": provider.token(hospital=None),
        "a facility not mapped": provider.token(hospital="2002"),
        "another key under a known kid": provider.token(stranger=True),
        "a kid nobody published": provider.token(header={"kid": "k9"}),
        "an algorithm not on the list": provider.token(header={"alg": "ES256"}),
        "signed with the public key as a secret": provider.token(header={"alg": "HS256"}),
        "an id token": provider.token(at_hash="x"),
        "a refresh token": provider.token(typ="Refresh"),
        "another issuer": provider.token(iss="https://elsewhere.example"),
        "without a signature": provider.token().rpartition(".")[0] + ".",
    }
    assert {what: get(api, token) for what, token in bad.items()} == dict.fromkeys(bad, 401)
    assert get(api, provider.token(header={"kid": None})) == 200  # there is one key only
    jku = provider.token(header={"jku": f"{provider.issuer}/evil", "kid": "k7"})
    assert get(api, jku) == 401
    assert not [path for path in provider.do("log")["asked"] if "evil" in path]


def test_keys_are_cached_rotated_and_outlive_the_provider(provider: Provider, api: Api) -> None:
    old = provider.token()
    assert get(api, old) == 200
    before = len(provider.do("log")["asked"])
    for _ in range(3):
        assert get(api, provider.token()) == 200
    assert len(provider.do("log")["asked"]) == before  # nothing was asked again
    provider.do("rotate")
    new = provider.token()
    assert [get(api, new), get(api, old)] == [200, 200]
    provider.do("drop")
    assert get(api, provider.token(header={"kid": "k9"})) == 401  # has the keys looked for again
    assert [get(api, new), get(api, old)] == [200, 401]
    kept = provider.token()
    provider.end()
    assert [get(api, new), get(api, kept)] == [200, 200]


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "https://elsewhere.example"},
        {"jwks_uri": "https://169.254.169.254/latest/meta-data"},
        {"jwks_uri": "file:///etc/passwd"},
        {"redirect": "http://127.0.0.1:9/keys"},
        {"jwks_uri": None},
    ],
    ids=str,
)
def test_a_discovery_document_cannot_make_the_server_ask_elsewhere(
    provider: Provider, api: Api, changes: dict[str, Any]
) -> None:
    provider.do("discovery", changes=changes)
    assert get(api, provider.token()) == 503
    provider.do("discovery", changes={})
    assert get(api, provider.token()) == 200
