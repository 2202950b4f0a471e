"""The ledger read as FHIR: DetectedIssue, GuidanceResponse and Provenance, found by search, valid against R4."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from conformance import systems, validator
from fhir_server.publish import ledger_resources
from fhir_server.recognition import rules as rules_module
from fhir_server.recognition.as_fhir import Told, resources
from fhir_server.services import Services
from fhir_server.store.body import Codec
from mappings import catalogue
from tests.api.clinic import NOW, RENAL, SIGN, call, draft, ledger_rows, play
from tests.api.conftest import Api
from tests.recognition.county import County

TOLD = {"by": "D001", "at": NOW.isoformat()}
HIDDEN = ledger_resources.not_shown(catalogue.of(catalogue.DIRECTORY))


@pytest.fixture
def patient(database_url: str) -> str:
    """A patient of the county hospital who had a renal panel at the north township yesterday."""
    county = County(database_url, rules_module.load())
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    county.report("north-township", there, "r1", RENAL, NOW - timedelta(days=1))
    return here


def published(url: str) -> int:
    """Stores the resources of all rows that wait; how many rows."""
    taken = 0
    with psycopg.connect(url, autocommit=True) as conn:
        codec = Codec.load(conn)
        while found := ledger_resources.publish(conn, codec, HIDDEN, batch=3):
            taken += found
    return taken


def decided(url: str, folder: Path, patient: str, *bodies: Callable[[str], dict[str, Any]]) -> str:
    """A reminder on a renal panel, and what is said to it; the reminder's id."""
    cards: list[str] = []

    async def scenario(client: httpx.AsyncClient, _: Services) -> None:
        answer = await client.post(SIGN, json=call(patient, draft()))
        cards.append(answer.json()["cards"][0]["uuid"])
        for body in bodies:
            said = await client.post(
                "/recognition/decisions", json={"reminder": cards[0], "user": "D001", **body(cards[0])}
            )
            assert said.status_code == 201, said.text

    play(scenario, url, folder)
    return cards[0]


def test_a_reminder_is_a_detected_issue_and_an_answer_of_the_patient(
    api: Api, database_url: str, tmp_path: Path, patient: str
) -> None:
    card = decided(database_url, tmp_path, patient)
    assert published(database_url) == 1
    (issue,) = [e["resource"] for e in api.search(f"DetectedIssue?patient={patient}")["entry"]]
    assert issue["identifier"] == [{"system": systems.CARD, "value": card}]
    assert issue["code"]["coding"][0]["code"] == "recognized"
    observations = [r["reference"] for r in issue["implicated"] if r["reference"].startswith("Observation/")]
    assert len(observations) == len(RENAL)
    found = api.search(f"DetectedIssue?implicated={observations[0]}")
    assert [e["resource"]["id"] for e in found["entry"]] == [issue["id"]]
    (answer,) = [e["resource"] for e in api.search(f"GuidanceResponse?patient={patient}")["entry"]]
    assert answer["requestIdentifier"]["value"] == card
    (parameters,) = answer["contained"]
    (told,) = parameters["parameter"]
    assert {"name": "outcome", "valueCode": "recognized"} in told["part"]
    assert [p["valueCode"] for p in told["part"] if p["name"] == "fresh"] == RENAL


def test_adopting_and_revoking_are_provenance_of_the_issue(
    api: Api, database_url: str, tmp_path: Path, patient: str
) -> None:
    card = decided(
        database_url, tmp_path, patient, lambda _: {"action": "adopt"}, lambda _: {"action": "revoke", "key": "2"}
    )
    published(database_url)
    (issue,) = [e["resource"]["id"] for e in api.search(f"DetectedIssue?identifier={card}")["entry"]]
    found = [e["resource"] for e in api.search(f"Provenance?target=DetectedIssue/{issue}")["entry"]]
    by_action = {p["activity"]["coding"][0]["code"]: p for p in found}
    assert set(by_action) == {"adopt", "revoke"}
    sources = [e["what"]["reference"] for e in by_action["adopt"]["entity"]]
    assert len(sources) == len(RENAL)
    assert all("/_history/" in s for s in sources), "the very version that was adopted"
    assert by_action["revoke"]["entity"] == [
        {"role": "removal", "what": {"reference": f"Provenance/{by_action['adopt']['id']}"}}
    ]


def test_declining_keeps_the_lawful_reason_and_who_told_the_patient(
    api: Api, database_url: str, tmp_path: Path, patient: str
) -> None:
    said = {"action": "decline", "reason": "6", "text": "家属要求", "told": TOLD}
    decided(database_url, tmp_path, patient, lambda _: said)
    published(database_url)
    (one,) = [e["resource"] for e in api.search("Provenance")["entry"]]
    assert one["reason"] == [{"coding": [{"system": systems.REPEAT_REASONS, "code": "6"}], "text": "家属要求"}]
    assert one["agent"][1]["type"]["text"] == "told the patient"


def test_every_resource_of_the_ledger_is_valid_r4_and_made_once(
    api: Api, database_url: str, tmp_path: Path, patient: str
) -> None:
    decided(database_url, tmp_path, patient, lambda _: {"action": "adopt"})
    taken = published(database_url)
    assert taken == 2
    assert published(database_url) == 0
    made = 0
    for row in ledger_rows(database_url):
        told = Told(row["kind"], NOW, row["facility"], row)
        for resource in resources(told, HIDDEN):
            made += 1
            assert [i for i in validator.check_fully(resource) if i.severity in ("error", "fatal")] == [], resource
    assert made == 3
    with psycopg.connect(database_url, autocommit=True) as conn:
        # Told again, as after a restore of older state: nothing changes.
        conn.execute("INSERT INTO ledger_news SELECT chain, number FROM ledger WHERE kind <> 'citation'")
    published(database_url)
    history = api.http.get(f"/DetectedIssue?patient={patient}").json()["entry"]
    assert [e["resource"]["meta"]["versionId"] for e in history] == ["1"]


def test_a_reminder_about_a_sensitive_item_gives_nothing() -> None:
    decision = {
        "orderable": {"code": "L0194", "name": "梅毒"}, "outcome": "recognized", "policy": "consortium", "rules": "x",
        "fresh": ["L0194"], "missing": [], "members": [{"item": "L0194", "result": None}],
    }  # fmt: skip
    row = {"card": "c-1", "decision": decision, "patient": None, "service": "s"}
    assert resources(Told("reminder", NOW, "county-hospital", row), HIDDEN) == []
    assert resources(Told("decision", NOW, "county-hospital", {"card": "c-1", "sensitive": ["syphilis"]}), HIDDEN) == []


def test_a_call_that_was_not_answered_has_no_card_and_gives_nothing() -> None:
    row = {"reason": "late", "service": "recognition-order-sign", "drafts": 1}
    assert resources(Told("no-answer", NOW, "county-hospital", row), HIDDEN) == []


def test_a_row_of_another_shape_is_left_out_and_keeps_no_other_waiting(
    api: Api, database_url: str, tmp_path: Path, patient: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO ledger (chain, number, at, kind, facility, entry, hash) VALUES"
            """ ('a', 1, %s, 'reminder', 'county-hospital', '{"card": "c-0", "decision": {"orderable": {}}}', '')""",
            (NOW - timedelta(days=1),),
        )
    card = decided(database_url, tmp_path, patient)
    assert published(database_url) == 2
    (issue,) = [e["resource"] for e in api.search("DetectedIssue")["entry"]]
    assert issue["identifier"][0]["value"] == card
