"""Decisions on reminders, through CDS Hooks feedback and through the plain door (docs/recognition.md)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from conformance import systems
from fhir_server.evidence import verify
from fhir_server.recognition import reasons
from fhir_server.recognition import rules as rules_module
from fhir_server.services import Services
from mappings import catalogue
from mappings.ids import logical_id, shard_of
from tests.api.clinic import NOW, RENAL, SIGN, call, draft, ledger_rows, play
from tests.recognition.county import County

Play = Callable[..., None]
TOLD = {"by": "D001", "at": NOW.isoformat()}
DECISIONS = "/recognition/decisions"


@pytest.fixture
def county(database_url: str) -> County:
    return County(database_url, rules_module.load())


@pytest.fixture
def serve(database_url: str, tmp_path: Path) -> Play:
    return lambda scenario, **more: play(scenario, database_url, tmp_path, **more)


@pytest.fixture
def tested(county: County) -> str:
    """A patient of the county hospital who had a renal panel at the north township yesterday; the county's Patient id."""
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    assert there == at_north()
    county.report("north-township", there, "r1", RENAL, NOW - timedelta(days=1))
    return here


def at_north() -> str:
    """Logical id of the same person's Patient at the north township."""
    key = f"{systems.facility_system('north-township', 'patient')}|2"
    return logical_id(shard_of("north-township", key), "north-township", "Patient", key)


async def remind(client: httpx.AsyncClient, patient: str, code: str = "SGN") -> str:
    """Asks for one order; id of the reminder."""
    body = {"patient": patient, "user": "D001", "department": "NK", "orders": [{"id": "d1", "code": code}]}
    (found,) = (await client.post("/recognition/check", json=body)).json()["answers"]
    card: str = found["id"]
    return card


def adopt(card: str, **more: Any) -> dict[str, Any]:
    return {"reminder": card, "action": "adopt", "user": "D001", **more}


def decline(card: str, reason: Any = "1", **more: Any) -> dict[str, Any]:
    return {"reminder": card, "action": "decline", "user": "D001", "reason": reason, "told": TOLD, **more}


def kinds(url: str) -> list[str]:
    return [r["kind"] for r in ledger_rows(url)]


def test_adopting_writes_a_decision_with_price_and_versions_and_a_citation_naming_all_five(
    serve: Play, tested: str, county: County
) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await remind(client, tested)
        answer = await client.post(DECISIONS, json=adopt(card))
        assert answer.status_code == 201
        found = answer.json()
        decision = found["decision"]
        assert answer.headers["location"].endswith(f"/recognition/decisions/{decision['id']}")
        assert decision["price_fen"] == 3000  # mappings/codes/county-hospital/orders.csv
        assert decision["price"] == {"day": "2025-11-21", "source": "facility"}
        assert decision["rules"] == decision["answer_rules"] == services.rules.version
        assert decision["catalogue"] == catalogue.shipped().digest[:16]
        assert (decision["department"], decision["user"], decision["patient"]) == ("NK", "D001", tested)
        assert [a["item"] for a in decision["adopted"]] == RENAL
        text = found["citation"]["text"]["zh"]
        # organisation, report number, version, time, mark (no mark is needed inside the consortium)
        for part in (
            "北岭镇卫生院",
            "报告r1",
            "第1版",
            "2025-11-20 09:00",
            "互认标识:无标识(医共体内互认)",
            "尿素 6.30 mmol/L",
        ):
            assert part in text
        (report,) = found["citation"]["cited"]
        assert (report["number"], report["version"], report["facility"]) == ("r1", 1, "north-township")
        again = (await client.get(f"{DECISIONS}/{decision['id']}")).json()
        assert again == found

    serve(scenario)
    assert kinds(county.url) == ["reminder", "decision", "citation"]
    assert asyncio.run(verify(county.url)) == []


def test_a_mark_of_the_register_stands_in_the_citation(
    serve: Play, county: County, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fhir_server.recognition.marks import Mark, Register

    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    laboratory = {"identifier": {"system": systems.FACILITY, "value": "county-hospital"}}
    changes = {"performer": [laboratory | {"type": "Organization"}]}
    county.report("county-hospital", here, "r1", RENAL, NOW - timedelta(days=1), changes=changes)
    register = Register(marks=[Mark("county-hospital", "*", "national")])
    monkeypatch.setattr("fhir_server.recognition.rules.marks_csv.load", lambda *_: register)

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        found = (await client.post(DECISIONS, json=adopt(await remind(client, here)))).json()
        assert "互认标识:全国HR" in found["citation"]["text"]["zh"]
        assert "mark: 全国HR" in found["citation"]["text"]["en"]

    serve(scenario)


def test_the_same_request_twice_is_one_decision(serve: Play, tested: str, county: County) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await remind(client, tested)
        for body in (decline(card, key="his-1"), decline(card, key="his-1")):
            answer = await client.post(DECISIONS, json=body)
            assert answer.status_code in (200, 201)
        assert answer.status_code == 200
        bodies = [decline(card, key="his-1") for _ in range(12)]
        found = await asyncio.gather(*(client.post(DECISIONS, json=b) for b in bodies))
        assert {f.json()["decision"]["id"] for f in found} == {answer.json()["decision"]["id"]}

    serve(scenario)
    assert kinds(county.url) == ["reminder", "decision"]


def test_many_at_once_leave_one_decision_in_force(serve: Play, tested: str, county: County) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await remind(client, tested)
        bodies = [decline(card, str(n % 5 + 1), key=f"k{n}") for n in range(12)]
        found = await asyncio.gather(*(client.post(DECISIONS, json=b) for b in bodies))
        assert sorted(f.status_code for f in found) == [201, *[409] * 11]

    serve(scenario)
    assert kinds(county.url) == ["reminder", "decision"]
    assert asyncio.run(verify(county.url)) == []


def test_without_a_key_what_is_said_is_the_key(serve: Play, tested: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await remind(client, tested)
        first = await client.post(DECISIONS, json=decline(card))
        assert (await client.post(DECISIONS, json=decline(card))).json() == first.json()
        assert (await client.post(DECISIONS, json=decline(card, "2"))).status_code == 409

    serve(scenario)


def test_a_key_used_for_something_else_is_refused(serve: Play, tested: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await remind(client, tested)
        assert (await client.post(DECISIONS, json=decline(card, key="k"))).status_code == 201
        answer = await client.post(DECISIONS, json=decline(card, "2", key="k"))
        assert (answer.status_code, "key" in answer.text) == (409, True)

    serve(scenario)


def test_a_decision_is_taken_back_only_by_a_further_one_and_both_stay(serve: Play, tested: str, county: County) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await remind(client, tested)
        first = (await client.post(DECISIONS, json=decline(card))).json()["decision"]
        revoke = {"reminder": card, "action": "revoke", "user": "D001", "revokes": first["id"], "text": "选错"}
        second = (await client.post(DECISIONS, json=revoke)).json()["decision"]
        assert (second["revokes"], second["sequence"]) == (first["id"], 2)
        assert (await client.post(DECISIONS, json={**revoke, "key": "again"})).status_code == 409
        third = await client.post(DECISIONS, json=adopt(card))
        assert third.status_code == 201
        found = (await client.get(DECISIONS, params={"reminder": card})).json()
        assert [d["action"] for d in found["decisions"]] == ["decline", "revoke", "adopt"]
        assert found["state"] == "adopted"
        assert found["decisions"][0] == first

    serve(scenario)
    assert kinds(county.url) == ["reminder", "decision", "decision", "decision", "citation"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"reason": "7"}, "reason"),
        ({"reason": None}, "reason"),
        ({"reason": {"system": "urn:other", "code": "1"}}, "reason"),
        ({"reason": "6"}, "text"),
        ({"reason": "6", "text": "  "}, "text"),
        ({"reason": "6", "text": "字" * 201}, "text"),
        ({"text": 5}, "text"),
        ({"told": None}, "told"),
        ({"told": {"by": "D001"}}, "told.at"),
        ({"told": {"at": NOW.isoformat()}}, "told.by"),
        ({"told": {"by": "D001", "at": (NOW + timedelta(hours=1)).isoformat()}}, "told.at"),
        ({"told": "yes"}, "told"),
        ({"action": "ignore"}, "action"),
        ({"action": "adopt"}, "reason"),
        ({"user": ""}, "user"),
        ({"user": "\ud800"}, "user"),
        ({"acted_at": "2025-11-21T09:00:00"}, "acted_at"),
        ({"key": "x" * 201}, "key"),
    ],
)
def test_a_wrong_decision_is_refused_naming_the_field_and_nothing_is_kept(
    serve: Play, tested: str, county: County, change: dict[str, Any], where: str
) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await remind(client, tested)
        answer = await client.post(DECISIONS, content=json.dumps(decline(card) | change))
        assert answer.status_code == 400
        assert where in answer.text

    serve(scenario)
    assert kinds(county.url) == ["reminder"]


@pytest.mark.parametrize("text", ["术", "字" * 200])
def test_reason_six_takes_one_to_two_hundred_characters(serve: Play, tested: str, text: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        answer = await client.post(DECISIONS, json=decline(await remind(client, tested), "6", text=text))
        assert answer.status_code == 201
        decision = answer.json()["decision"]
        assert (decision["text"], decision["refusal"], decision["told"]["by"]) == (text, True, "D001")

    serve(scenario)


@pytest.mark.parametrize("reason", ["98", {"system": reasons.LOCAL, "code": "99"}])
def test_a_local_reason_is_no_refusal_and_needs_no_word_to_the_patient(serve: Play, tested: str, reason: Any) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await remind(client, tested)
        answer = await client.post(DECISIONS, json=decline(card, reason, told=None))
        assert answer.status_code == 201
        assert answer.json()["decision"]["refusal"] is False
        assert (await client.get(f"/recognition/reminders/{card}")).json()["state"] == "not-counted"

    serve(scenario)


def test_a_result_corrected_or_withdrawn_since_the_reminder_cannot_be_adopted(
    serve: Play, county: County, tested: str
) -> None:
    there = at_north()

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await remind(client, tested)
        day = NOW - timedelta(days=1)
        county.report("north-township", there, "r1", RENAL, day, recorded=NOW, issued=NOW, status="entered-in-error")
        answer = await client.post(DECISIONS, json=adopt(card))
        assert (answer.status_code, "ask again" in answer.text) == (409, True)
        shown = (await client.post("/recognition/views", json={"reminder": card, "user": "D001"})).json()
        assert (shown["results"], len(shown["changed"])) == ([], 3)

    serve(scenario)
    assert kinds(county.url) == ["reminder", "view"]


def test_opening_the_results_is_a_view_and_citing_is_apart_from_adopting(
    serve: Play, tested: str, county: County
) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        body = {"reminder": await remind(client, tested), "user": "D001"}
        shown = (await client.post("/recognition/views", json=body)).json()
        (report,) = shown["results"]
        assert [(i["item"], i["value"]) for i in report["items"]] == [(c, f"6.30 {u}") for c, u in _units()]
        assert "conclusion" not in json.dumps(shown)
        assert (await client.post("/recognition/citations", json=body)).status_code == 201

    serve(scenario)
    assert kinds(county.url) == ["reminder", "view", "citation"]
    with psycopg.connect(county.url) as conn:
        rows = conn.execute(
            "SELECT kind, card IS NOT NULL, doctor, department, cardinality(reports) FROM ledger"
        ).fetchall()
    assert rows == [
        ("reminder", True, "D001", "NK", 1),
        ("view", True, "D001", None, 1),
        ("citation", True, "D001", None, 1),
    ]


def _units() -> list[tuple[str, str]]:
    items = rules_module.load().items
    return [(code, items[code].unit) for code in RENAL]


def test_another_facility_knows_nothing_of_the_reminder(serve: Play, tested: str) -> None:
    cards: list[str] = []

    async def ask(client: httpx.AsyncClient, services: Services) -> None:
        cards.append(await remind(client, tested))
        assert (await client.post(DECISIONS, json=adopt(cards[0]))).status_code == 201

    async def other(client: httpx.AsyncClient, services: Services) -> None:
        for answer in (
            await client.post(DECISIONS, json=adopt(cards[0])),
            await client.get(f"/recognition/reminders/{cards[0]}"),
            await client.get(DECISIONS, params={"reminder": cards[0]}),
            await client.post("/recognition/views", json={"reminder": cards[0], "user": "x"}),
        ):
            assert answer.status_code == 404
        assert (await client.get(DECISIONS, params={"patient": tested})).json() == {"decisions": []}

    serve(ask)
    serve(other, facility="south-township")


def test_decisions_are_found_by_person_through_any_of_his_patients(serve: Play, tested: str, county: County) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await remind(client, tested)
        made = (await client.post(DECISIONS, json=adopt(card))).json()["decision"]
        there = at_north()
        for who in (tested, there, f"{systems.facility_system('county-hospital', 'patient')}|1"):
            assert (await client.get(DECISIONS, params={"patient": who})).json() == {"decisions": [made]}
        assert (await client.get(DECISIONS, params={"patient": "nobody"})).status_code == 404
        assert (await client.get(DECISIONS)).status_code == 400

    serve(scenario)


def test_without_a_database_a_decision_is_refused_and_can_be_sent_again(
    serve: Play, tested: str, county: County
) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await remind(client, tested)
        with psycopg.connect(county.url, autocommit=True) as conn:
            conn.execute("ALTER TABLE decision RENAME TO decision_away")
            assert (await client.post(DECISIONS, json=adopt(card))).status_code == 503
            conn.execute("ALTER TABLE decision_away RENAME TO decision")
        assert (await client.post(DECISIONS, json=adopt(card))).status_code == 201

    serve(scenario)
    assert kinds(county.url) == ["reminder", "decision", "citation"]


# --- CDS Hooks ------------------------------------------------------------------------------------------------------------


def _told(card: str, outcome: str = "overridden", **more: Any) -> dict[str, Any]:
    return {"feedback": [{"card": card, "outcome": outcome, "outcomeTimestamp": NOW.isoformat(), **more}]}


def _why(code: str, system: str = systems.REPEAT_REASONS, **more: Any) -> dict[str, Any]:
    return {"overrideReason": {"reason": {"system": system, "code": code}, **more}}


async def _card(client: httpx.AsyncClient, patient: str) -> dict[str, Any]:
    body = call(patient, draft()) | {"extension": {"org.tongjian.department": "NK"}}
    (card,) = (await client.post(SIGN, json=body)).json()["cards"]
    found: dict[str, Any] = card
    return found


async def _say(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(f"{SIGN}/feedback", json=body)
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["extension"]["org.tongjian.decisions"]
    one: dict[str, Any] = found
    return one


def test_feedback_closes_a_reminder_only_when_the_patient_was_told(serve: Play, tested: str, county: County) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = (await _card(client, tested))["uuid"]
        silent = await _say(client, _told(card, **_why("1")))
        assert silent["state"] == "open"
        assert (await client.get(f"/recognition/reminders/{card}")).json()["state"] == "open"
        said = _told(card, **_why("1"), extension={"org.tongjian.patient-told": TOLD})
        closed = await _say(client, said)
        assert closed["state"] == "closed"
        assert await _say(client, said) == closed
        decision = (await client.get(f"{DECISIONS}/{closed['decision']}")).json()["decision"]
        assert (decision["told"], decision["department"]) == (TOLD, "NK")

    serve(scenario)
    assert kinds(county.url) == ["reminder", "feedback", "feedback", "decision", "feedback"]


def test_an_accepted_suggestion_adopts(serve: Play, tested: str, county: County) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = await _card(client, tested)
        took = _told(card["uuid"], "accepted", acceptedSuggestions=[{"id": card["suggestions"][0]["uuid"]}])
        assert (await _say(client, took))["state"] == "closed"
        assert (await client.get(f"/recognition/reminders/{card['uuid']}")).json()["state"] == "adopted"

    serve(scenario)


def test_feedback_with_a_local_reason_closes_without_refusing(serve: Play, tested: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        card = (await _card(client, tested))["uuid"]
        assert (await _say(client, _told(card, **_why("98", reasons.LOCAL))))["state"] == "closed"

    serve(scenario)


def test_feedback_about_an_unknown_card_is_kept_and_decides_nothing(serve: Play, county: County) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        assert (await _say(client, _told("c", "accepted", acceptedSuggestions=[{"id": "s"}])))["state"] == "not-decided"

    serve(scenario)
    assert kinds(county.url) == ["feedback"]


@pytest.mark.parametrize(
    ("extension", "where"),
    [
        ({"org.tongjian.patient-told": "yes"}, "patient-told"),
        ({"org.tongjian.patient-told": {"by": "D001"}}, "patient-told.at"),
        ({"org.tongjian.patient-told": {"by": "D001", "at": "2099-01-01T00:00:00Z"}}, "patient-told.at"),
        ({"org.tongjian.department": 5}, "department"),
    ],
)
def test_a_wrong_extension_is_refused_and_nothing_is_kept(
    serve: Play, tested: str, county: County, extension: dict[str, Any], where: str
) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        answer = await client.post(f"{SIGN}/feedback", json=_told("c", **_why("1"), extension=extension))
        assert answer.status_code == 400
        assert where in answer.text

    serve(scenario)
    assert kinds(county.url) == []


# --- the start of a visit ----------------------------------------------------------------------------------------------------

VIEW = "/cds-services/recognition-patient-view"


def _visit(patient: str) -> dict[str, Any]:
    context = {"userId": "Practitioner/D001", "patientId": patient}
    return {"hook": "patient-view", "hookInstance": "11111111-1111-4111-8111-111111111111", "context": context}


def test_a_visits_start_lists_what_an_order_would_find_and_opens_no_decision(
    serve: Play, tested: str, county: County
) -> None:
    there = at_north()
    county.report("north-township", there, "r2", ["L0001", "L0033"], NOW - timedelta(days=1))

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        (card,) = (await client.post(VIEW, json=_visit(tested))).json()["cards"]
        assert "肾功能" in card["summary"]
        assert len(card["summary"]) < 140
        assert not {"suggestions", "overrideReasons", "selectionBehavior"} & card.keys()
        assert len(card["links"]) == 2
        found = (await client.post("/recognition/visit", json={"patient": tested, "user": "D001"})).json()
        at_order = (await client.post("/recognition/check", json=_orders(tested))).json()["answers"]
        listed = {a["decision"]["orderable"]["code"]: a["decision"] for a in found["answers"]}
        assert set(listed) == {"RENAL", "L0001", "L0033"}
        for answer in at_order:
            assert _results(listed[answer["decision"]["orderable"]["code"]]) == _results(answer["decision"])
        for refused in (adopt(card["uuid"]), decline(found["id"])):
            assert (await client.post(DECISIONS, json=refused)).status_code == 409

    serve(scenario)
    rows = ledger_rows(county.url)
    assert [r["kind"] for r in rows] == ["visit", "visit", "reminder", "reminder", "reminder"]


def _orders(patient: str) -> dict[str, Any]:
    items = [{"code": code, "system": systems.ITEMS} for code in ("L0001", "L0033")]
    return {"patient": patient, "user": "D001", "orders": [{"code": "SGN"}, *items]}


def _results(decision: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m["item"], m["result"]["observation"]) for m in decision["members"] if m["result"]]


def test_a_visit_without_recent_results_gives_no_card(serve: Play, county: County) -> None:
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        assert (await client.post(VIEW, json=_visit(here))).json() == {"cards": []}

    serve(scenario)
    (row,) = ledger_rows(county.url)
    assert (row["kind"], row["reason"]) == ("no-answer", "nothing-recent")


def test_sensitive_results_are_not_listed_opened_or_decided_without_the_grant(serve: Play, county: County) -> None:
    items = rules_module.load().items
    hiv = next(i for i in items.values() if i.sensitivity and i.window_days)
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    county.report("county-hospital", here, "r1", [hiv.code], NOW - timedelta(hours=3))
    cards: list[str] = []

    async def granted(client: httpx.AsyncClient, services: Services) -> None:
        body = {"patient": here, "user": "D001", "orders": [{"code": hiv.code, "system": systems.ITEMS}]}
        (found,) = (await client.post("/recognition/check", json=body)).json()["answers"]
        cards.append(found["id"])
        assert found["reminds"]
        assert len((await client.post(VIEW, json=_visit(here))).json()["cards"]) == 1

    async def not_granted(client: httpx.AsyncClient, services: Services) -> None:
        assert (await client.post(VIEW, json=_visit(here))).json() == {"cards": []}
        assert (await client.post(DECISIONS, json=adopt(cards[0]))).status_code == 404
        assert (await client.get(f"/recognition/reminders/{cards[0]}")).status_code == 404
        shown = await client.post("/recognition/views", json={"reminder": cards[0], "user": "D001"})
        assert shown.status_code == 404

    serve(granted, scopes=f"user/*.rs user/Observation.rs?sensitivity={hiv.sensitivity}")
    serve(not_granted)
