"""Bearer tokens and scopes."""

from __future__ import annotations

import base64
import hmac
import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from fhir_server.access import ROLES, Principal, authenticate, default_scopes, issue_token
from fhir_server.errors import Category, Fault
from fhir_server.keys import AccessError, Keys, listed, retire, rotate

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.load(tmp_path)


def token(keys: Keys, *scopes: str, role: str = "clinician", ttl: timedelta = HOUR, now: datetime = NOW) -> str:
    return issue_token(keys, "dr-li", role, "county", scopes, ttl=ttl, now=now)


def refused(keys: Keys, header: str | None, now: datetime = NOW) -> Fault:
    with pytest.raises(Fault) as caught:
        authenticate(keys, header, now)
    assert caught.value.category is Category.UNAUTHENTICATED
    assert caught.value.headers["WWW-Authenticate"].startswith("Bearer realm=")
    return caught.value


def forged(keys: Keys, **changes: Any) -> str:
    """A token signed with the right key and other claims."""
    claims = {
        "iss": keys.issuer,
        "aud": keys.audience,
        "sub": "dr-li",
        "iat": int(NOW.timestamp()),
        "nbf": int(NOW.timestamp()),
        "exp": int((NOW + HOUR).timestamp()),
        "role": "clinician",
        "facility": "county",
        "scope": "user/*.rs",
    } | changes
    claims = {k: v for k, v in claims.items() if v is not None}
    return "Bearer " + jwt.encode({"alg": "ES256", "kid": keys.keys[-1].kid}, claims, keys.keys[-1])


def part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_a_token_names_its_holder(keys: Keys) -> None:
    asker = authenticate(keys, "Bearer " + token(keys, "user/Observation.rs"), NOW)
    assert asker == Principal("dr-li", "clinician", "county", frozenset({"user/Observation.rs"}))
    assert authenticate(keys, "bearer " + token(keys), NOW).role == "clinician"


def test_an_issued_token_is_accepted_again_and_again_until_it_expires(keys: Keys) -> None:
    header = "Bearer " + token(keys)
    for seconds in (0, 1, 3599):
        assert authenticate(keys, header, NOW + timedelta(seconds=seconds)).subject == "dr-li"
    assert "expired" in refused(keys, header, NOW + HOUR).text


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic dTpw", "Token abc"])
def test_no_bearer_token_is_401_without_an_error_code(keys: Keys, header: str | None) -> None:
    assert "error=" not in refused(keys, header).headers["WWW-Authenticate"]


@pytest.mark.parametrize("text", ["x", "a.b.c", "....", "é", "\udcff", "a" * 100_000])
def test_noise_is_401(keys: Keys, text: str) -> None:
    assert 'error="invalid_token"' in refused(keys, "Bearer " + text).headers["WWW-Authenticate"]


def test_a_token_is_not_valid_before_its_time(keys: Keys) -> None:
    refused(keys, "Bearer " + token(keys, now=NOW + HOUR))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "somebody"},
        {"iss": None},
        {"aud": "elsewhere"},
        {"aud": None},
        {"exp": None},
        {"exp": "never"},
        {"nbf": None},
        {"sub": None},
        {"sub": 5},
        {"role": "king"},
        {"role": None},
        {"scope": ["user/*.rs"]},
        {"facility": 7},
    ],
    ids=str,
)
def test_a_token_with_wrong_claims_is_401(keys: Keys, changes: dict[str, Any]) -> None:
    assert authenticate(keys, forged(keys), NOW)
    refused(keys, forged(keys, **changes))


def test_alg_none_is_401(keys: Keys) -> None:
    payload = token(keys).split(".")[1]
    for header in ({"alg": "none"}, {"alg": "none", "kid": keys.keys[0].kid}):
        refused(keys, f"Bearer {part(header)}.{payload}.")


def test_the_public_key_is_no_shared_secret(keys: Keys) -> None:
    head = part({"alg": "HS256", "kid": keys.keys[0].kid})
    payload = token(keys).split(".")[1]
    digest = hmac.digest(keys.keys[0].as_pem(private=False), f"{head}.{payload}".encode(), "sha256")
    refused(keys, f"Bearer {head}.{payload}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}")


def test_a_tampered_token_is_401(keys: Keys) -> None:
    head, payload, signature = token(keys, "user/Patient.r").split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    wider = part(claims | {"scope": "user/*.cruds"})
    refused(keys, f"Bearer {head}.{wider}.{signature}")


def test_a_token_of_another_installation_is_401(keys: Keys, tmp_path: Path) -> None:
    other = Keys.load(tmp_path / "other")
    refused(keys, "Bearer " + token(other))
    other.keys[-1] = ECKey.import_key(other.keys[-1].as_dict(private=True) | {"kid": keys.keys[-1].kid})
    refused(keys, "Bearer " + token(other))


def test_the_key_file_is_private_and_stays(tmp_path: Path) -> None:
    first = Keys.load(tmp_path)
    path = tmp_path / "token-keys.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["token-keys.json"]
    assert authenticate(Keys.load(tmp_path), "Bearer " + token(first), NOW).subject == "dr-li"


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Keys.load(tmp_path)
    (tmp_path / "token-keys.json").chmod(0o644)
    with pytest.raises(AccessError, match="0600"):
        Keys.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"keys": []}', '{"keys": [{"kty": "EC"}]}', "[]"])
def test_a_broken_key_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token-keys.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(AccessError, match="no usable key"):
        Keys.load(tmp_path)


def test_many_first_starts_at_once_agree_on_one_key(tmp_path: Path) -> None:
    loaded: list[str | None] = []
    threads = [threading.Thread(target=lambda: loaded.append(Keys.load(tmp_path).keys[0].kid)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 8
    assert len(set(loaded)) == 1


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "RS384"])
def test_old_tokens_live_on_when_the_key_is_replaced_and_end_when_it_is_retired(tmp_path: Path, algorithm: str) -> None:
    running = Keys.load(tmp_path)  # the server; the commands are other processes
    old = token(running)
    first, second = running.keys[0].kid, rotate(tmp_path, NOW, algorithm)
    new = token(running)
    assert json.loads(base64.urlsafe_b64decode(new.split(".")[0] + "==")) == {
        "alg": algorithm, "kid": second, "typ": "JWT",
    }  # fmt: skip
    assert authenticate(running, "Bearer " + old, NOW)
    assert authenticate(running, "Bearer " + new, NOW)
    assert [(k["kid"], k["alg"]) for k in running.public()["keys"]] == [(first, "ES256"), (second, algorithm)]
    assert not any({"d", "p", "created", "replaced"} & set(k) for k in running.public()["keys"])
    with pytest.raises(AccessError, match="signs tokens"):
        retire(tmp_path, second)
    retire(tmp_path, str(first))
    running.look(now=True)
    refused(running, "Bearer " + old)
    assert authenticate(running, "Bearer " + new, NOW)


def test_a_replaced_key_is_dropped_when_no_token_of_it_can_live(tmp_path: Path) -> None:
    first = Keys.load(tmp_path).keys[0].kid
    second = rotate(tmp_path, NOW)
    third = rotate(tmp_path, NOW + timedelta(days=365))
    assert [k.kid for k in listed(tmp_path)] == [first, second, third]
    fourth = rotate(tmp_path, NOW + timedelta(days=367))
    assert [k.kid for k in listed(tmp_path)] == [second, third, fourth]
    with pytest.raises(AccessError):
        token(Keys.load(tmp_path), ttl=timedelta(days=367))


def test_id_tokens_have_a_key_of_their_own(tmp_path: Path) -> None:
    running = Keys.load(tmp_path)
    signed = running.signed_id({"sub": "x"})
    assert json.loads(base64.urlsafe_b64decode(signed.split(".")[0] + "=="))["alg"] == "RS256"
    assert [k["alg"] for k in running.public()["keys"]] == ["ES256", "RS256"]
    refused(running, "Bearer " + signed)  # no key for access
    fresh = rotate(tmp_path, NOW, "RS256")
    running.look(now=True)
    assert running.public()["keys"][-1]["kid"] == fresh
    assert [k.replaced is None for k in listed(tmp_path)] == [True, False, True]
    with pytest.raises(AccessError):
        rotate(tmp_path, NOW, "HS256")


def test_another_process_that_revokes_a_token_is_heard(tmp_path: Path) -> None:
    running, other = Keys.load(tmp_path), Keys.load(tmp_path)
    header = "Bearer " + token(running)
    authenticate(running, header, NOW)
    other.revoke(other.claims(header[7:]), NOW)
    running.look(now=True)
    assert "revoked" in refused(running, header).text


@pytest.mark.parametrize(
    ("scope", "interaction", "name", "allowed"),
    [
        ("user/Observation.rs", "read", "Observation", True),
        ("user/Observation.rs", "vread", "Observation", True),
        ("user/Observation.rs", "history-instance", "Observation", True),
        ("user/Observation.rs", "search-type", "Observation", True),
        ("user/Observation.rs", "history-type", "Observation", True),
        ("user/Observation.rs", "read", "Patient", False),
        ("user/Observation.rs", "create", "Observation", False),
        ("user/Observation.r", "search-type", "Observation", False),
        ("user/Observation.s", "read", "Observation", False),
        ("user/*.rs", "read", "Patient", True),
        ("user/*.rs", "search-system", "*", True),
        ("user/Patient.rs", "search-system", "*", False),
        ("system/*.cruds", "delete", "Patient", True),
        ("system/*.c", "update", "Patient", False),
        ("system/*.u", "patch", "Patient", True),
        ("patient/*.rs", "read", "Patient", False),
        (
            "user/Observation.rs?category=laboratory",
            "read",
            "Observation",
            True,
        ),  # which rows: tests/api/test_access_matrix
        ("user/Observation.cruds?category=laboratory", "update", "Observation", False),
        ("user/Observation.read", "read", "Observation", False),
        ("user/Observation.sr", "read", "Observation", False),
        ("openid", "read", "Patient", False),
        ("", "read", "Patient", False),
    ],
)
def test_a_scope_allows_what_it_says(scope: str, interaction: str, name: str, allowed: bool) -> None:
    asker = Principal("dr-li", "clinician", "county", frozenset({scope}))
    assert asker.may(interaction, name) is allowed
    if allowed:
        asker.require(interaction, name)
    else:
        with pytest.raises(Fault) as caught:
            asker.require(interaction, name)
        assert caught.value.category is Category.FORBIDDEN
        assert "insufficient_scope" in caught.value.headers["WWW-Authenticate"]


def test_scopes_add_up() -> None:
    asker = Principal("x", "integrator", "", frozenset({"system/Patient.r", "system/Patient.s", "system/*.c"}))
    assert asker.may("read", "Patient")
    assert asker.may("search-type", "Patient")
    assert asker.may("create", "Observation")
    assert not asker.may("read", "Observation")


def test_an_unknown_interaction_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="fly"):
        Principal("x", "system", "", frozenset()).may("fly", "Patient")


@pytest.mark.parametrize("role", sorted(ROLES))
def test_each_role_has_scopes_by_default(keys: Keys, role: str) -> None:
    asker = authenticate(keys, "Bearer " + token(keys, role=role), NOW)
    assert asker.scopes == default_scopes(role)
    assert asker.may("read", "Observation")
    assert asker.may("delete", "Observation") is (role != "auditor")


@pytest.mark.parametrize(
    ("role", "scope"),
    [
        ("auditor", "user/*.cruds"),
        ("clinician", "system/*.rs"),
        ("system", "user/*.rs"),
        ("king", "user/*.rs"),
        ("clinician", "user/*.x"),
        ("clinician", "user/*."),
        ("clinician", "openid"),
    ],
)
def test_a_token_is_not_issued_beyond_its_role(keys: Keys, role: str, scope: str) -> None:
    with pytest.raises(AccessError):
        token(keys, scope, role=role)


def test_a_token_needs_a_holder_and_a_life(keys: Keys) -> None:
    with pytest.raises(AccessError):
        issue_token(keys, "", "system", "", (), ttl=HOUR, now=NOW)
    with pytest.raises(AccessError):
        token(keys, ttl=timedelta(0))


def test_a_role_can_be_required() -> None:
    auditor = Principal("x", "auditor", "", frozenset())
    auditor.require_role("auditor", "administrator")
    with pytest.raises(Fault) as caught:
        auditor.require_role("administrator")
    assert caught.value.category is Category.FORBIDDEN
