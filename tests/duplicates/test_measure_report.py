"""Measures as FHIR and Excel, by month, with intervals, and the cases behind a figure."""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import psycopg
import pytest

from conformance import validator
from fhir_server.duplicates import measure_report
from fhir_server.recognition import measures
from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.measures import Rate
from fhir_server.services import Services
from tests.api.clinic import NOW, RENAL, play
from tests.recognition.county import County

SHANGHAI = ZoneInfo("Asia/Shanghai")
PERIOD = {"from": "2025-11-01", "to": "2026-01-01"}


@pytest.fixture
def county(database_url: str) -> County:
    """One renal panel of the north township, known to the county hospital."""
    county = County(database_url, rules_module.load())
    county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    county.report("north-township", there, "r1", RENAL, NOW - timedelta(days=1))
    return county


async def adopted(client: httpx.AsyncClient, services: Services) -> str:
    """A reminder that was adopted; its id."""
    with services.writer.connection() as conn:
        row = conn.execute("SELECT patient FROM source_patient WHERE facility = 'county-hospital'").fetchone()
    assert row is not None
    body = {"patient": row[0], "user": "D001", "department": "NK", "orders": [{"id": "d1", "code": "SGN"}]}
    (found,) = (await client.post("/recognition/check", json=body)).json()["answers"]
    said = {"reminder": found["id"], "action": "adopt", "user": "D001"}
    assert (await client.post("/recognition/decisions", json=said)).status_code == 201
    card: str = found["id"]
    return card


def test_the_figures_of_a_period_lead_to_their_cases_and_are_valid_fhir(county: County, tmp_path: Path) -> None:
    cards: list[str] = []

    async def clinic(client: httpx.AsyncClient, services: Services) -> None:
        cards.append(await adopted(client, services))

    async def auditor(client: httpx.AsyncClient, services: Services) -> None:
        asked = {**PERIOD, "by": "doctor", "trend": "true", "top": "1"}
        found = (await client.get("/audit/measures", params=asked)).json()
        (rate,) = [r for r in found["total"]["rates"] if r["name"] == "adopted-of-reminders"]
        assert (rate["version"], rate["numerator"], rate["denominator"], rate["value"]) == ("1.0", 1, 1, 1)
        assert [r["doctor"] for r in found["rows"]] == ["D001"]
        assert [(t["month"], t["adopted"]) for t in found["trend"]] == [("2025-11", 1), ("2025-12", 0)]
        assert found["trend"][1]["rates"][0]["value"] is None, "nothing happened: no rate, not zero"
        for figure, count in (("reminders", 1), ("adopted", 1), ("refused", 0), ("views", 0), ("reports", 1)):
            told = (await client.get("/audit/measures/cases", params={**PERIOD, "figure": figure})).json()["cases"]
            assert len(told) == count, figure
            if figure in ("reminders", "adopted"):
                assert told[0]["card"] == cards[0]
                assert "patient" not in told[0]
        bundle = (await client.get("/audit/measures", params={**PERIOD, "format": "fhir"})).json()
        kinds = [e["resource"]["resourceType"] for e in bundle["entry"]]
        assert kinds == ["Measure", "MeasureReport"] * 3
        for entry in bundle["entry"]:
            assert [i for i in validator.check_fully(entry["resource"]) if i.severity in ("error", "fatal")] == []
        report = bundle["entry"][1]["resource"]
        assert [p["count"] for p in report["group"][0]["population"]] == [1, 1]
        book = await client.get("/audit/measures", params={**PERIOD, "format": "xlsx", "trend": "true"})
        assert len([n for n in zipfile.ZipFile(io.BytesIO(book.content)).namelist() if "worksheets/sheet" in n]) == 3
        wrong = await client.get("/audit/measures", params={**PERIOD, "by": "colour"})
        assert wrong.status_code == 400

    play(clinic, county.url, tmp_path)
    play(auditor, county.url, tmp_path, facility="", role="auditor")


def test_nobody_but_an_auditor_sees_measures(county: County, tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        assert (await client.get("/audit/measures", params=PERIOD)).status_code == 403
        assert (await client.get("/audit/measures/cases", params={**PERIOD, "figure": "views"})).status_code == 403

    play(scenario, county.url, tmp_path)


def test_months_are_those_of_the_calendar_cut_to_the_period() -> None:
    start, end = datetime(2025, 12, 30, 16, tzinfo=UTC), datetime(2026, 2, 10, tzinfo=UTC)
    found = list(measure_report.months(start, end, SHANGHAI))
    assert [m for m, _, _ in found] == ["2025-12", "2026-01", "2026-02"]
    assert found[0][1] == start
    assert found[-1][2] == end
    assert found[0][2] == found[1][1] == datetime(2026, 1, 1, tzinfo=SHANGHAI)


def test_an_interval_is_wilson_s() -> None:
    # 10 of 100: 0.0552 to 0.1744 (Newcombe 1998, Statistics in Medicine 17:857, method 3, without continuity correction).
    assert Rate("r", "1.0", "d", 10, 100, Decimal("0.1")).interval() == [Decimal("0.0552"), Decimal("0.1744")]
    assert Rate("r", "1.0", "d", 0, 0, None).interval() is None
    assert Rate("r", "1.0", "d", 3, 2, Decimal("1.5")).interval() is None


def test_sensitive_items_are_not_counted_without_a_grant(county: County) -> None:
    with psycopg.connect(county.url) as conn:
        conn.execute(
            "INSERT INTO ledger (chain, number, at, kind, facility, orderable, entry, hash, card)"
            " VALUES ('c', 1, %s, 'reminder', 'county-hospital', 'L0194', '{}', '', 'c1')",
            (NOW,),
        )
        start, end = NOW - timedelta(days=1), NOW + timedelta(days=1)
        all_of_it = measures.measure(conn, rules_module.load(), start, end, end)
        hidden = measures.measure(conn, rules_module.load(), start, end, end, without=["L0194"])
        assert (all_of_it.total.reminders, hidden.total.reminders) == (1, 0)
        wanted = measure_report.Wanted("reminders", hidden, ["L0194"])
        assert measure_report.cases(conn, rules_module.load(), wanted) == []
