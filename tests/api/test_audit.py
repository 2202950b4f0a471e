"""The audit API: an auditor asks, nobody else; a facility's auditor sees that facility."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from conformance import systems
from fhir_server.recognition import rules as rules_module
from fhir_server.services import Services
from tests.api.clinic import NOW, RENAL, play
from tests.recognition.county import County

PERIOD = {"from": "2025-11-20", "to": "2025-11-22"}


@pytest.fixture
def county(database_url: str) -> County:
    """One avoidable repeat at the county hospital."""
    county = County(database_url, rules_module.load())
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    county.report("north-township", there, "r1", RENAL, NOW - timedelta(days=2))
    county.order("county-hospital", here, "P1", "SGN", NOW)
    return county


def test_an_auditor_audits_keeps_reviews_and_the_case_leads_back_to_its_results(county: County, tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        live = (await client.get("/audit/duplicates", params=PERIOD)).json()
        assert live["totals"][0]["avoidable"] == 1
        assert (await client.post("/audit/findings", json=PERIOD)).json() == {
            "new": 1,
            "changed": 0,
            "same": 0,
            "ended": 0,
        }
        (found,) = (await client.get("/audit/findings", params={**PERIOD, "kind": "avoidable"})).json()["findings"]
        asked = {**PERIOD, "figure": "avoidable"}
        behind = (await client.get("/audit/duplicates/cases", params=asked)).json()
        assert (behind["total"], [c["finding"] for c in behind["cases"]]) == (1, [found["id"]])
        assert (await client.get("/audit/duplicates/cases", params={**asked, "figure": "partial"})).json()["total"] == 0
        assert (await client.get("/audit/duplicates/cases", params={**asked, "figure": "pairs"})).status_code == 400
        assert found["prior"] == live["findings"][0]["prior"]
        drawn = await client.post("/audit/samples", json={**PERIOD, "size": 1, "seed": "a"})
        assert (drawn.status_code, drawn.json()["findings"]) == (201, [found["id"]])
        said = {"verdict": "avoidable", "text": "No reason was given."}
        assert (await client.post(f"/audit/findings/{found['id']}/verdict", json=said)).status_code == 201
        case = (await client.get(f"/audit/findings/{found['id']}")).json()
        assert (case["state"], case["verdict"]) == ("judged", "avoidable")
        assert [s["step"] for s in case["review"]] == ["sampled", "verdict"]
        assert (await client.get("/audit/reviews")).json() == {"waiting": []}

    play(scenario, county.url, tmp_path, facility="", role="auditor")


def test_a_workbook_and_csv_are_given_as_such(county: County, tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        book = await client.get("/audit/duplicates", params={**PERIOD, "format": "xlsx"})
        assert (book.status_code, book.content[:2]) == (200, b"PK")
        text = await client.get("/audit/duplicates", params={**PERIOD, "format": "csv"})
        assert "county-hospital,RENAL,肾功能,order,1,1,1" in text.text
        assert (await client.get("/audit/duplicates", params={**PERIOD, "format": "doc"})).status_code == 400
        assert (await client.get("/audit/duplicates", params={"from": "soon", "to": "2025-11-22"})).status_code == 400

    play(scenario, county.url, tmp_path, facility="", role="auditor")


def test_the_cases_of_an_item_ordered_alone_are_told_from_those_of_panels_that_hold_it(
    county: County, tmp_path: Path
) -> None:
    here = next(iter(county.counts)).removeprefix("Patient/")
    county.order("county-hospital", here, "P2", "L0016", NOW, systems.ITEMS)

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        rows = (await client.get("/audit/duplicates", params=PERIOD)).json()["rows"]
        counts = {r["orderable"]: r["orders"] for r in rows if r["basis"] == "order"}
        assert counts == {"L0016": 1, "RENAL": 1}
        asked = {**PERIOD, "figure": "orders", "basis": "order"}
        for orderable, count in counts.items():
            only = {**asked, "facility": "county-hospital", "orderable": orderable}
            behind = (await client.get("/audit/duplicates/cases", params=only)).json()
            assert (behind["total"], {c["orderable"] for c in behind["cases"]}) == (count, {orderable})
        # item: whatever requires it
        assert (await client.get("/audit/duplicates/cases", params={**asked, "item": "L0016"})).json()["total"] == 2

    play(scenario, county.url, tmp_path, facility="", role="auditor")


@pytest.mark.parametrize("role", ["clinician", "administrator", "integrator"])
def test_no_other_role_may_audit(county: County, tmp_path: Path, role: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        assert (await client.get("/audit/duplicates", params=PERIOD)).status_code == 403

    play(scenario, county.url, tmp_path, role=role, scopes="user/*.rs")


def test_an_auditor_of_a_facility_sees_its_orders_and_appeals_only_there(county: County, tmp_path: Path) -> None:
    async def keep(client: httpx.AsyncClient, services: Services) -> None:
        await client.post("/audit/findings", json=PERIOD)

    async def other(client: httpx.AsyncClient, services: Services) -> None:
        assert (await client.get("/audit/findings", params=PERIOD)).json()["findings"] == []
        asked = {**PERIOD, "facility": "county-hospital"}
        assert (await client.get("/audit/findings", params=asked)).status_code == 403

    async def own(client: httpx.AsyncClient, services: Services) -> None:
        (found,) = (await client.get("/audit/findings", params=PERIOD)).json()["findings"]
        said: dict[str, Any] = {"text": "The patient bled."}
        assert (await client.post(f"/audit/findings/{found['id']}/appeal", json=said)).status_code == 201
        said["verdict"] = "justified"
        assert (await client.post(f"/audit/findings/{found['id']}/verdict", json=said)).status_code == 403

    play(keep, county.url, tmp_path, facility="", role="auditor")
    play(other, county.url, tmp_path, facility="north-township", role="auditor")
    play(own, county.url, tmp_path, facility="county-hospital", role="auditor")


def test_repeats_of_sensitive_items_need_the_grant(county: County, tmp_path: Path) -> None:
    here = next(iter(county.counts)).removeprefix("Patient/")
    item = next(i for i in county.rules.items.values() if i.sensitivity and i.window_days >= 3 and i.loinc)
    county.report("county-hospital", here, "r9", [item.code], NOW - timedelta(days=2))
    county.order("county-hospital", here, "P9", item.loinc, NOW, systems.LOINC)

    def shown(expected: bool) -> Any:
        async def scenario(client: httpx.AsyncClient, services: Services) -> None:
            text = json.dumps((await client.get("/audit/duplicates", params=PERIOD)).json())
            assert (f'"{item.code}"' in text) is expected

        return scenario

    play(shown(False), county.url, tmp_path, facility="", role="auditor")
    scopes = f"user/*.rs user/Observation.rs?sensitivity={item.sensitivity}"
    play(shown(True), county.url, tmp_path, facility="", role="auditor", scopes=scopes)
