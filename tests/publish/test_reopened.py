"""An answer whose quality assessment turns out to have failed: the facility that was shown it is told over real sockets, by the
queue and by a Subscription."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fhir_server.publish import ledger_resources
from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.ledger import Ledger, Row
from fhir_server.recognition.marks import Mark, Period, Register, Round
from fhir_server.recognition.reopen import reopen
from fhir_server.recognition.rules import Rules
from fhir_server.store.database import open_pool
from mappings.facility import Destination
from mappings.profile import load_profiles
from tests.publish.subscriber import Hook, eventually, world
from tests.recognition.county import County

UREA = "L0016"
NOW = datetime(2025, 11, 21, 1, 0, tzinfo=UTC)
MADE = NOW - timedelta(days=1)
YEAR = Period("2025-01-01", "2025-12-31")


def answer(patient: str, report: str) -> dict[str, Any]:
    """A reminder as the ledger keeps it: one result that rested on a mark and its assessment."""
    made = MADE.isoformat()
    result = {"observation": "Observation/o/_history/1", "report": f"DiagnosticReport/{report}"}
    result |= {"performer": "north-township", "effective": made, "issued": made}
    member = {"item": UREA, "criteria": {"met": ["mark", "eqa"]}, "result": result}
    decision = {"outcome": "recognized", "policy": "default", "rules": "1", "fresh": [UREA], "missing": []}
    decision |= {"orderable": {"code": UREA, "name": "尿素"}, "members": [member]}
    return {"card": "card-1", "patient": patient, "user": "D001", "department": "NK", "decision": decision}


def known(rules: Rules, *rounds: Round) -> Rules:
    return replace(rules, register=Register((Mark("north-township", UREA, "national", YEAR),), rounds))


async def written(url: str, folder: Path, row: Row | None, rules: Rules | None) -> None:
    """A ledger row and what the start of a server with these rules adds."""
    pool = await open_pool(url, 2)
    ledger = Ledger(pool, folder / "spool")
    if row is not None:
        await ledger.record(row)
    if rules is not None:
        assert await reopen(pool, ledger, rules, NOW + timedelta(days=2)) == 1
    await ledger.close()
    await pool.close()


@pytest.mark.parametrize("content", ["json", "fhir", "hl7v2"])
def test_the_facility_that_was_shown_it_is_told_twice_over(content: str, database_url: str, tmp_path: Path) -> None:
    rules = rules_module.load()
    county = County(database_url, rules)
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    report = county.report("north-township", there, "r1", [UREA], MADE)
    row = Row("reminder", NOW, "county-hospital", answer(here, report), "p-1", UREA)
    passed = Round("north-township", UREA, True, Period("2025-06-01", "2025-12-31"))
    failed = Round("north-township", UREA, False, Period("2025-11-01", "", NOW + timedelta(days=1)))
    his = Hook()
    place = Destination(url=f"http://127.0.0.1:{his.port}/results", content=content, timeout=5)
    profiles = dict(load_profiles())
    mine = profiles["county-hospital"]
    profiles["county-hospital"] = replace(mine, facility=mine.facility.model_copy(update={"destinations": [place]}))
    try:
        with world(database_url, tmp_path, profiles=profiles) as made:
            asyncio.run(written(database_url, tmp_path, row, None))
            with psycopg.connect(database_url) as conn:
                ledger_resources.publish(conn, made.county.codec, ())
            one = made.subscribe(
                "recognition-reopened", f"DetectedIssue?patient=Patient/{here}", content="full-resource"
            )
            with made.sending():
                made.active(one)
                asyncio.run(written(database_url, tmp_path, None, known(rules, passed, failed)))
                with psycopg.connect(database_url) as conn:
                    ledger_resources.publish(conn, made.county.codec, ())
                eventually(lambda: his.got and made.hook.of_type("event-notification"), lambda: made.state(one))
    finally:
        his.close()

    (event,) = made.hook.of_type("event-notification")
    issue = event.bundle["entry"][1]["resource"]
    assert issue["resourceType"] == "DetectedIssue"
    assert issue["status"] == "amended"
    assert issue["implicated"][-1] == {"reference": f"DiagnosticReport/{report}"}
    assert "质评不合格" in issue["mitigation"][0]["action"]["text"]

    (told,) = his.got
    if content == "json":
        message = told.bundle
        assert message["kind"] == "reopened"
        assert message["reports"][0]["usable"] is True
        assert message["reopened"]["reminder"] == "card-1"
        assert message["reopened"]["items"] == [{"item": UREA, "laboratory": "north-township", "reason": "eqa-failed"}]
        # the county hospital's own number of the patient
        assert {"value": "1", "of": "county-hospital"} in message["patient"]["numbers"]
    elif content == "fhir":
        kinds = [e["resource"]["resourceType"] for e in told.bundle["entry"]]
        assert (kinds[0], kinds[-1]) == ("DiagnosticReport", "DetectedIssue")
    else:
        lines = [line.split("|") for line in told.body.decode().split("\r")]
        assert "质评不合格" in next(f for f in lines if f[0] == "NTE")[3]
        assert next(f for f in lines if f[0] == "OBR")[25] == "F"
    rows = made.county.sql("SELECT topic, status, resource FROM delivery")
    assert rows == [("answer-reopened", "delivered", f"DiagnosticReport/{report}")]


def test_a_facility_without_a_destination_leaves_a_dead_letter(database_url: str, tmp_path: Path) -> None:
    rules = rules_module.load()
    county = County(database_url, rules)
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    report = county.report("north-township", there, "r1", [UREA], MADE)
    row = Row("reminder", NOW, "county-hospital", answer("", report), "p-1", UREA)
    passed = Round("north-township", UREA, True, Period("2025-06-01", "2025-12-31"))
    lapsed = Round("north-township", UREA, False, Period("2025-11-01", "", NOW + timedelta(days=1)))
    with world(database_url, tmp_path, profiles=load_profiles()) as made:
        asyncio.run(written(database_url, tmp_path, row, known(rules, passed, lapsed)))
        with psycopg.connect(database_url) as conn:
            ledger_resources.publish(conn, made.county.codec, ())
        with made.sending():
            made.county.until_published()
        (found,) = made.county.sql("SELECT facility, status, reason FROM delivery")
    assert found[:2] == ("county-hospital", "dead")
    assert found[2].startswith("no-destination")
