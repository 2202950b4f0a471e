"""The file of OpenID Connect providers, and how claims become a principal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fhir_server.access import Principal
from fhir_server.errors import Fault
from fhir_server.keys import AccessError
from fhir_server.oidc import Provider, load_providers, principal

ENTRY: dict[str, Any] = {
    "id": "idp", "issuer": "https://idp.example/realms/county", "audience": "tongjian", "roles": {"doctor": "clinician"},
}  # fmt: skip


def loaded(folder: Path, **changes: Any) -> Provider:
    file = folder / "providers.yaml"
    entry = {k: v for k, v in {**ENTRY, **changes}.items() if v is not None}
    file.write_text(yaml.safe_dump({"providers": [entry]}), "utf-8")
    (found,) = load_providers(file)
    return found


def test_the_discovery_address_follows_from_the_issuer(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert found.discovery == "https://idp.example/realms/county/.well-known/openid-configuration"
    assert found.scopes == {"clinician": frozenset({"user/*.cruds"})}
    assert load_providers(None) == []


def test_nobody_of_another_house_gets_a_sensitive_grant_that_is_not_named(tmp_path: Path) -> None:
    found = loaded(tmp_path, roles={"it": "integrator"})
    assert found.scopes == {"integrator": frozenset({"user/*.cruds"})}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"issuer": "http://idp.example"}, "issuer is not an https address"),
        ({"issuer": "https://user:secret@idp.example"}, "issuer is not an https address"),
        ({"jwks_uri": "file:///keys"}, "jwks_uri is not an https address"),
        ({"audience": None}, "audience is missing"),
        ({"algorithms": ["HS256"]}, "HS256 is not one of"),
        ({"algorithms": ["none"]}, "none is not one of"),
        ({"algorithms": []}, "nothing is not one of"),
        ({"roles": None}, "roles is missing"),
        ({"roles": {"doctor": "king"}}, "king is not one of"),
        ({"scopes": {"clinician": ["system/*.rs"]}}, "may not hold scope"),
        ({"claims": {"name": "x"}}, "name is not one of"),
        ({"colour": "red"}, "colour is not one of"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(AccessError, match=why):
        loaded(tmp_path, **changes)


def test_two_providers_are_told_apart_and_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "providers.yaml"
    file.write_text(yaml.safe_dump({"providers": [ENTRY, ENTRY]}), "utf-8")
    with pytest.raises(AccessError, match="same id"):
        load_providers(file)
    file.write_text("providers: [", "utf-8")
    with pytest.raises(AccessError, match="cannot be read"):
        load_providers(file)


@pytest.mark.parametrize(
    ("claims", "changes", "expected"),
    [
        (
            {"sub": "7", "role": "doctor", "facility": "north"},
            {},
            Principal("idp:7", "clinician", "north", frozenset({"user/*.cruds"})),
        ),
        (
            {"sub": "7", "https://idp.example/role": ["x", "doctor"], "facility": ["north", "south"]},
            {"claims": {"role": "https://idp.example/role"}},
            Principal("idp:7", "clinician", "north", frozenset({"user/*.cruds"})),
        ),
        (
            {"sub": "7", "role": "doctor", "facility": "north", "scope": "openid user/Observation.rs system/*.rs"},
            {"claims": {"scope": "scope"}},
            Principal("idp:7", "clinician", "north", frozenset({"user/Observation.rs"})),
        ),
        (
            {"sub": "7", "role": "doctor", "facility": "north", "scope": "openid"},
            {"claims": {"scope": "scope"}},
            Principal("idp:7", "clinician", "north", frozenset()),
        ),
        (
            {"sub": "7", "role": "doctor", "facility": "north", "scope": "user/Observation.rs?sensitivity=hiv"},
            {"claims": {"scope": "scope"}},
            Principal("idp:7", "clinician", "north", frozenset()),
        ),
        (
            {"sub": "7", "role": "doctor", "facility": "north", "scope": "patient/Observation.rs", "patient": "p1"},
            {"claims": {"scope": "scope", "patient": "patient"}},
            Principal("idp:7", "clinician", "north", frozenset({"patient/Observation.rs"}), "p1"),
        ),
    ],
)
def test_claims_become_a_principal(
    tmp_path: Path, claims: dict[str, Any], changes: dict[str, Any], expected: Principal
) -> None:
    assert principal(loaded(tmp_path, **changes), claims) == expected


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "7", "role": "doctor"},
        {"sub": "7", "role": "doctor", "facility": ""},
        {"sub": "7", "role": 5, "facility": "north"},
        {"sub": "7", "role": {"doctor": True}, "facility": "north"},
        {"role": "doctor", "facility": "north"},
    ],
)
def test_claims_that_name_nobody_are_refused(tmp_path: Path, claims: dict[str, Any]) -> None:
    with pytest.raises(Fault):
        principal(loaded(tmp_path), claims)
