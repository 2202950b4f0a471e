"""CDS Hooks 2.0 (https://cds-hooks.hl7.org/2.0/): discovery, requests, cards and trust as the specification says them."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from conformance import systems
from fhir_server.recognition import rules as rules_module
from fhir_server.services import Services
from fhir_server.smart_clients import Client
from tests.api.clinic import NOW, RENAL, SIGN, call, draft, play
from tests.recognition.county import County

KEY = ECKey.generate_key("P-384", {"kid": "his-1"})
HIS = Client("https://his.example", "HIS", "county-hospital", frozenset({"system/*.rs"}), KeySet([KEY]))
ROOT = "https://county.example"


@pytest.fixture
def county(database_url: str) -> County:
    return County(database_url, rules_module.load())


@pytest.fixture
def serve(database_url: str, tmp_path: Path) -> Callable[..., None]:
    return lambda scenario, **more: play(scenario, database_url, tmp_path, **more)


@pytest.fixture
def tested(county: County) -> str:
    """A patient of the county hospital with a whole renal panel of yesterday and a part of a liver panel, from the township."""
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    county.report("north-township", there, "r1", [*RENAL, "L0006"], NOW - timedelta(days=1))
    return here


def test_discovery_keeps_the_rules_of_its_section(serve: Any) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        found = (await client.get("/cds-services")).json()
        assert set(found) == {"services"}
        assert len({s["id"] for s in found["services"]}) == len(found["services"])
        for service in found["services"]:
            assert set(service) <= {"hook", "title", "description", "id", "prefetch", "usageRequirements", "extension"}
            assert service["hook"] in ("order-sign", "order-select", "patient-view")
            assert service["description"]
            assert all(isinstance(v, str) and v for v in service["prefetch"].values())
            # Prefetch tokens are fields of the hook's context.
            tokens = re.findall(r"{{context\.(\w+)}}", "".join(service["prefetch"].values()))
            assert set(tokens) <= {"patientId", "encounterId", "userId"}

    serve(scenario)


def check_card(card: dict[str, Any]) -> None:
    """The invariants of section "Card Attributes"."""
    known = {
        "uuid",
        "summary",
        "detail",
        "indicator",
        "source",
        "suggestions",
        "selectionBehavior",
        "overrideReasons",
        "links",
    }
    assert set(card) <= known
    assert 0 < len(card["summary"]) < 140
    assert card["indicator"] in ("info", "warning", "critical")
    assert set(card["source"]) <= {"label", "url", "icon", "topic"}
    assert card["source"]["label"]
    if "topic" in card["source"]:
        assert {"system", "code"} <= set(card["source"]["topic"])
    uuid.UUID(card["uuid"])
    if card.get("suggestions"):
        assert card["selectionBehavior"] in ("at-most-one", "any")
    for suggestion in card.get("suggestions", []):
        assert set(suggestion) <= {"label", "uuid", "isRecommended", "actions"}
        assert suggestion["label"]
        for action in suggestion.get("actions", []):
            assert action["type"] in ("create", "update", "delete")
            assert action["description"]
            assert ("resourceId" in action) is (action["type"] == "delete")
    for reason in card.get("overrideReasons", []):
        assert all(reason[key] for key in ("code", "system", "display"))
    for link in card.get("links", []):
        assert link["label"]
        assert link["url"].startswith("https://")
        assert link["type"] == "absolute"
        assert "appContext" not in link


@pytest.mark.parametrize("language", ["zh-CN", "en"])
def test_every_card_keeps_the_rules_of_its_section(serve: Any, tested: str, language: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        client.headers["Accept-Language"] = language
        orders = [draft("RENAL", "d1", systems.ORDERABLES), draft("LIVER", "d2", systems.ORDERABLES)]
        cards = (await client.post(SIGN, json=call(tested, *orders))).json()["cards"]
        visit = call(tested, hook="patient-view")
        cards += (await client.post("/cds-services/recognition-patient-view", json=visit)).json()["cards"]
        assert [c["indicator"] for c in cards] == ["warning", "info", "info"]
        for card in cards:
            check_card(card)
        assert len({c["uuid"] for c in cards}) == 3
        (suggestion,) = cards[0]["suggestions"]
        assert [(a["type"], a["resourceId"]) for a in suggestion["actions"]] == [("delete", "ServiceRequest/d1")]
        assert {r["code"] for r in cards[0]["overrideReasons"]} >= set("123456")

    serve(scenario)


def test_an_order_is_understood_by_facility_code_catalogue_code_and_loinc(serve: Any, tested: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        urea = services.rules.items["L0016"]
        for order in (
            draft("SGN"),
            draft("RENAL", system=systems.ORDERABLES),
            draft(urea.code, system=systems.ITEMS),
            draft(urea.loinc, system=systems.LOINC),
        ):
            assert len((await client.post(SIGN, json=call(tested, order))).json()["cards"]) == 1, order

    serve(scenario)


def test_the_examples_of_the_specification_are_understood(serve: Any, tested: str) -> None:
    """A body as in the sections "HTTP Request" and "order-sign": drugs and diets are the matter of other services."""
    body = {
        "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
        "fhirServer": "http://hooks.smarthealthit.org:9080",
        "hook": "order-sign",
        "fhirAuthorization": {
            "access_token": "some-opaque-fhir-access-token", "token_type": "Bearer", "expires_in": 300,
            "scope": "user/Patient.read user/Observation.read", "subject": "cds-service4",
        },
        "context": {
            "userId": "Practitioner/example", "patientId": "1288992", "encounterId": "89284",
            "draftOrders": {"resourceType": "Bundle", "entry": [
                {"resource": {"resourceType": "NutritionOrder", "id": "pureeddiet-simple"}},
                {"resource": {"resourceType": "MedicationRequest", "id": "smart-MedicationRequest-103"}},
            ]},
        },
        "prefetch": {"encounter": None},
    }  # fmt: skip

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        answer = await client.post(SIGN, json=body)
        assert (answer.status_code, answer.json()) == (200, {"cards": []})

    serve(scenario)


def test_a_client_in_a_browser_may_ask_from_the_origins_of_the_settings_only(serve: Any) -> None:
    """Section "Cross-Origin Resource Sharing"; the preflight request is that of the Fetch standard, section 3.2.2."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        allowed = await client.options(SIGN, headers=asked | {"Origin": "https://his.example.org"})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://his.example.org"
        assert "POST" in allowed.headers["access-control-allow-methods"]
        other = await client.options(SIGN, headers=asked | {"Origin": "https://elsewhere.example.org"})
        assert "access-control-allow-origin" not in other.headers
        found = await client.get("/cds-services", headers={"Origin": "https://his.example.org"})
        assert found.headers["access-control-allow-origin"] == "https://his.example.org"

    serve(scenario, cors_origins="https://his.example.org http://127.0.0.1:3000")


def signed(audience: str, **changes: Any) -> dict[str, str]:
    now = int(time.time())
    claims = {"iss": HIS.id, "aud": audience, "iat": now, "exp": now + 200, "jti": str(uuid.uuid4())} | changes
    token = jwt.encode({"alg": "ES384", "kid": "his-1", "typ": "JWT"}, claims, KEY, algorithms=["ES384"])
    return {"Authorization": f"Bearer {token}"}


def test_a_registered_client_signs_its_own_call(serve: Any, tested: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        body, mine = call(tested, draft()), signed(ROOT + SIGN)
        answer = await client.post(SIGN, json=body, headers=mine)
        assert (answer.status_code, len(answer.json()["cards"])) == (200, 1)
        for wrong in (
            mine,  # used before
            signed(ROOT + "/cds-services/recognition-order-select"),
            signed(ROOT + SIGN, exp=int(time.time()) - 600),
            signed(ROOT + SIGN, jti=None),
            signed(ROOT + SIGN, iss="https://nobody.example"),
        ):
            refused = await client.post(SIGN, json=body, headers=wrong)
            assert refused.status_code == 401, refused.text
            assert refused.headers["www-authenticate"].startswith("Bearer")

    serve(scenario, clients={HIS.id: HIS})


def test_a_signed_call_is_good_once_for_all_processes(serve: Any, tested: str) -> None:
    mine = signed(ROOT + SIGN)

    def calling(expected: int) -> Any:
        async def scenario(client: httpx.AsyncClient, services: Services) -> None:
            assert (await client.post(SIGN, json=call(tested, draft()), headers=mine)).status_code == expected

        return scenario

    serve(calling(200), clients={HIS.id: HIS})
    serve(calling(401), clients={HIS.id: HIS})  # a server that was started afresh
