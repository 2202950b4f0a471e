"""Log-in of people through the real server: authorization code with PKCE, lock-out, one-time passwords, refresh tokens."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pyotp
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from fhir_server import accounts
from fhir_server.accounts import Account
from fhir_server.smart_clients import App
from tests.api.conftest import Api, serving

BACK = "https://app.example/back"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
PASSWORD = "correct horse battery"
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
APPS = {"app": App("app", "示例应用", frozenset({BACK}), frozenset({"user/*.rs", "offline_access"}))}


@pytest.fixture(scope="module")
def server(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(module_database_url, Path(tmp_path_factory.mktemp("keys")), apps=APPS) as api:
        yield api


def add(server: Api, subject: str, totp: str = "", role: str = "clinician", fhir_user: str = "") -> None:
    with psycopg.connect(server.database_url) as conn:
        account = Account(subject, "李医生", "county", role, "", "", totp, 0, 0, None, True, fhir_user)
        accounts.add(conn, account, PASSWORD, datetime.now(UTC))


def asked(server: Api, **changes: str) -> dict[str, str]:
    return {
        "response_type": "code", "client_id": "app", "redirect_uri": BACK, "state": "s1", "aud": server.base,
        "scope": "user/Observation.rs?category=laboratory user/Patient.cruds offline_access",
        "code_challenge": CHALLENGE, "code_challenge_method": "S256", **changes,
    }  # fmt: skip


def root(server: Api) -> str:
    return server.base.removesuffix("/fhir") + "/auth"


def agree(server: Api, user: str, password: str = PASSWORD, code: str = "", **changes: str) -> httpx.Response:
    """Fills in the page that is shown."""
    page = httpx.get(f"{root(server)}/authorize", params=asked(server, **changes))
    assert page.status_code == 200, page.text
    hidden = {n: unescape(v) for n, v in re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', page.text)}
    form = {**hidden, "user": user, "password": password, "code": code, "decision": "allow"}
    return httpx.post(
        f"{root(server)}/authorize", data={**form, **({"patient": "p1"} if "patient/" in hidden["scope"] else {})}
    )


def told(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 303, answer.text
    return {k: v[0] for k, v in parse_qs(urlsplit(answer.headers["Location"]).query).items()}


def redeem(server: Api, **form: str) -> httpx.Response:
    return httpx.post(f"{root(server)}/token", data={"client_id": "app", **form})


def redeem_code(server: Api, code: str, **changes: str) -> httpx.Response:
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK, "code_verifier": VERIFIER}
    return redeem(server, **{**form, **changes})


def test_a_person_logs_in_agrees_and_the_app_reads_what_was_agreed_to(server: Api) -> None:
    add(server, "dr-a")
    page = httpx.get(f"{root(server)}/authorize", params=asked(server))
    assert "示例应用" in page.text and "登录" in page.text
    assert "script" not in page.text.replace("text/javascript", "") and "http" not in re.sub(
        r'(value|href)="[^"]*"', "", page.text
    )
    answer = told(agree(server, "dr-a"))
    assert answer["state"] == "s1"
    assert redeem_code(server, answer["code"], code_verifier="w" * 43).json()["error"] == "invalid_grant"
    token = redeem_code(server, answer["code"]).json()
    # Letters the app may not hold are left out, the query stays.
    assert set(token["scope"].split()) == {
        "user/Observation.rs?category=laboratory",
        "user/Patient.rs",
        "offline_access",
    }
    header = {"Authorization": f"Bearer {token['access_token']}"}
    assert httpx.get(f"{server.base}/Patient", headers=header).status_code == 200
    assert httpx.get(f"{server.base}/Condition", headers=header).status_code == 403
    # A code that comes again ends all that came from it.
    assert redeem_code(server, answer["code"]).status_code == 400
    again = redeem(server, grant_type="refresh_token", refresh_token=token["refresh_token"])
    assert again.json()["error"] == "invalid_grant"


def test_the_page_speaks_the_language_of_the_browser_and_can_be_switched(server: Api) -> None:
    add(server, "dr-two")
    address = f"{root(server)}/authorize"
    for accepted, here, there, tag in (
        ("zh-CN,en;q=0.5", "登录并同意", "Log in", "en"),
        ("en-GB", "Log in", "登录", "zh-CN"),
    ):
        page = httpx.get(address, params=asked(server), headers={"Accept-Language": accepted})
        assert here in page.text and there not in page.text
        link = unescape(re.findall(r'<a href="([^"]+)"', page.text)[0])
        other = httpx.get(f"{root(server)}/{link}", headers={"Accept-Language": accepted})
        assert there in other.text and here not in other.text and other.headers["Content-Language"] == tag
        # What was chosen stays, and so does the name, when the password was wrong.
        hidden = {n: unescape(v) for n, v in re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', other.text)}
        form = {**hidden, "user": "dr-two", "password": "wrong", "decision": "allow"}
        again = httpx.post(address, data=form, headers={"Accept-Language": accepted})
        assert (again.status_code, there in again.text, here in again.text) == (401, True, False)
        assert 'value="dr-two"' in again.text and 'role="alert"' in again.text


def test_refresh_tokens_are_good_once_and_a_stolen_one_ends_the_family(server: Api) -> None:
    add(server, "dr-b")
    token = redeem_code(server, told(agree(server, "dr-b"))["code"]).json()
    second = redeem(server, grant_type="refresh_token", refresh_token=token["refresh_token"])
    assert second.status_code == 200, second.text
    assert redeem(server, grant_type="refresh_token", refresh_token=token["refresh_token"]).status_code == 400
    third = redeem(server, grant_type="refresh_token", refresh_token=second.json()["refresh_token"])
    assert third.status_code == 400
    for ended in (token, second.json()):  # RFC 6749 section 4.1.2
        bearer = {"Authorization": f"Bearer {ended['access_token']}"}
        assert httpx.get(f"{server.base}/Organization", headers=bearer).status_code == 401


def test_a_refresh_gives_less_when_asked_and_never_more(server: Api) -> None:
    add(server, "dr-r")
    token = redeem_code(server, told(agree(server, "dr-r"))["code"]).json()

    def refresh(scope: str) -> httpx.Response:
        return redeem(server, grant_type="refresh_token", refresh_token=token["refresh_token"], scope=scope)

    # What covers nothing of what was given is refused, and the refresh token is not spent.
    for wider in ("user/*.cruds", "user/Encounter.rs", "offline_access", "user/Observation.rs?sensitivity=hiv"):
        assert refresh(wider).json()["error"] == "invalid_scope", wider
    less = refresh("user/Patient.r").json()
    assert less["scope"] == "user/Patient.r"
    header = {"Authorization": f"Bearer {less['access_token']}"}
    assert httpx.get(f"{server.base}/Patient/x", headers=header).status_code == 404
    for door in ("Patient", "Observation", "Encounter"):
        assert httpx.get(f"{server.base}/{door}", headers=header).status_code == 403, door
    # The next one may be as wide as what was agreed to.
    token = less
    assert set(refresh("").json()["scope"].split()) >= {"user/Patient.rs", "offline_access"}


def test_five_wrong_passwords_lock_the_account_and_the_answer_does_not_tell(server: Api) -> None:
    add(server, "dr-c")
    unknown = agree(server, "nobody")
    for _ in range(5):
        wrong = agree(server, "dr-c", "wrong")
        assert wrong.status_code == 401
    assert unknown.status_code == 401 and "password" in unknown.text
    assert agree(server, "dr-c").status_code == 401
    with psycopg.connect(server.database_url) as conn:
        accounts.set_active(conn, "dr-c", True)
    assert "code" in told(agree(server, "dr-c"))


def test_a_one_time_password_is_needed_and_good_once(server: Api) -> None:
    add(server, "dr-d", SECRET)
    assert agree(server, "dr-d").status_code == 401
    code = pyotp.TOTP(SECRET).now()
    assert "code" in told(agree(server, "dr-d", code=code))
    assert agree(server, "dr-d", code=code).status_code == 401


def test_a_patient_scope_gives_a_token_for_the_chosen_patient(server: Api) -> None:
    add(server, "dr-e")
    answer = told(agree(server, "dr-e", scope="launch/patient patient/Observation.rs"))
    token = redeem_code(server, answer["code"]).json()
    assert (token["patient"], token["scope"]) == ("p1", "launch/patient patient/Observation.rs")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"client_id": "other"}, 400),
        ({"redirect_uri": "https://evil.example/"}, 400),
        ({"redirect_uri": BACK + "/more"}, 400),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": ""}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"aud": "https://elsewhere.example/fhir"}, "invalid_request"),
        ({"state": ""}, "invalid_request"),
    ],
)
def test_a_wrong_request_is_refused(server: Api, changes: dict[str, str], expected: int | str) -> None:
    answer = httpx.get(f"{root(server)}/authorize", params=asked(server, **changes))
    if isinstance(expected, int):
        assert answer.status_code == expected and "Location" not in answer.headers
    else:
        assert told(answer)["error"] == expected


def test_scopes_nobody_may_give_and_denial_go_back_as_errors(server: Api) -> None:
    add(server, "dr-f")
    assert told(agree(server, "dr-f", scope="system/*.cruds"))["error"] == "invalid_scope"
    assert told(agree(server, "dr-f", scope="user/Observation.rs?sensitivity=hiv"))["error"] == "invalid_scope"
    form = {**asked(server), "decision": "deny"}
    assert told(httpx.post(f"{root(server)}/authorize", data=form))["error"] == "access_denied"


def test_a_locked_account_keeps_no_refresh_token(server: Api) -> None:
    add(server, "dr-g")
    token = redeem_code(server, told(agree(server, "dr-g"))["code"]).json()
    with psycopg.connect(server.database_url) as conn:
        accounts.set_active(conn, "dr-g", False)
    assert redeem(server, grant_type="refresh_token", refresh_token=token["refresh_token"]).status_code == 400
    assert agree(server, "dr-g").status_code == 401


def test_an_id_token_tells_the_app_who_logged_in(server: Api) -> None:
    add(server, "dr-h", fhir_user="Practitioner/h-1")
    issuer = httpx.get(f"{server.base}/.well-known/smart-configuration").json()["issuer"]
    found = httpx.get(f"{issuer}/.well-known/openid-configuration").json()
    assert found["issuer"] == issuer
    published = KeySet.import_key_set(httpx.get(found["jwks_uri"]).json())
    scope = "openid fhirUser profile user/Patient.rs"
    token = redeem_code(server, told(agree(server, "dr-h", scope=scope, nonce="n-0S6"))["code"]).json()
    assert set(token["scope"].split()) == set(scope.split())
    signed = jwt.decode(token["id_token"], published, algorithms=found["id_token_signing_alg_values_supported"])
    assert signed.claims["iss"] == issuer and signed.claims["aud"] == "app" and signed.claims["nonce"] == "n-0S6"
    assert (signed.claims["sub"], signed.claims["name"]) == ("dr-h", "李医生")
    assert signed.claims["fhirUser"] == f"{server.base}/Practitioner/h-1"
    # It tells who somebody is; it opens nothing.
    assert (
        httpx.get(f"{server.base}/Patient", headers={"Authorization": f"Bearer {token['id_token']}"}).status_code == 401
    )


def test_without_openid_there_is_no_id_token_and_nobody_is_said_to_be_a_resource_he_is_not(server: Api) -> None:
    add(server, "dr-i")
    plain = redeem_code(server, told(agree(server, "dr-i", scope="user/Patient.rs"))["code"]).json()
    assert "id_token" not in plain
    scope = told(agree(server, "dr-i", scope="openid fhirUser online_access user/Patient.rs"))["code"]
    assert set(redeem_code(server, scope).json()["scope"].split()) == {"openid", "user/Patient.rs"}
