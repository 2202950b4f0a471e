"""CDS Hooks over the application: what a HIS sees (https://cds-hooks.hl7.org/2.0/)."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from conformance import systems
from fhir_server.api.cards import language_of
from fhir_server.recognition import reasons
from fhir_server.recognition import rules as rules_module
from fhir_server.services import Services
from tests.api.clinic import BASE, NOW, RENAL, SIGN, call, draft, ledger_rows, play
from tests.recognition.county import County


@pytest.fixture
def county(database_url: str) -> County:
    return County(database_url, rules_module.load())


@pytest.fixture
def serve(database_url: str, tmp_path: Path) -> Callable[..., None]:
    """Plays a scenario against the application; the client has a clinician's token of the county hospital."""
    return lambda scenario, **more: play(scenario, database_url, tmp_path, **more)


@pytest.fixture
def tested(county: Any) -> str:
    """A patient of the county hospital who had a renal panel at the north township yesterday; the county's Patient id."""
    here: str = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    county.rep = county.report("north-township", there, "r1", RENAL, NOW - timedelta(days=1))
    return here


def test_discovery_needs_no_token_and_describes_each_service(serve: Any) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        del client.headers["Authorization"]
        answer = await client.get("/cds-services")
        assert answer.status_code == 200
        found = answer.json()["services"]
        assert [(s["id"], s["hook"]) for s in found] == [
            ("recognition-order-sign", "order-sign"),
            ("recognition-order-select", "order-select"),
            ("recognition-patient-view", "patient-view"),
        ]
        assert all(s["title"] and s["description"] for s in found)

    serve(scenario)


def test_a_panel_tested_next_door_gives_a_card_with_reason_link_and_suggestion(
    serve: Any, tested: str, county: Any
) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        answer = await client.post(SIGN, json=call(tested, draft()))
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        (card,) = answer.json()["cards"]
        assert card["summary"] == "北岭镇卫生院 11月20日 肾功能(3项)在有效期内,可互认"
        assert len(card["summary"]) < 140
        assert card["indicator"] == "warning"
        assert card["selectionBehavior"] == "at-most-one"
        assert card["source"]["label"]
        (suggestion,) = card["suggestions"]
        assert suggestion["actions"] == [
            {"type": "delete", "description": "取消医嘱:肾功能", "resourceId": "ServiceRequest/draft-1"}
        ]
        assert card["links"] == [
            {
                "label": "北岭镇卫生院 报告 2025-11-20",
                "url": f"{BASE}/DiagnosticReport/{county.rep}",
                "type": "absolute",
            }
        ]
        lawful, local = card["overrideReasons"][:6], card["overrideReasons"][6:]
        assert [r["code"] for r in lawful] == ["1", "2", "3", "4", "5", "6"]
        assert all(r["display"] and r["system"] == systems.REPEAT_REASONS for r in lawful)
        assert [(r["system"], r["code"]) for r in local] == [(reasons.LOCAL, "98"), (reasons.LOCAL, "99")]
        assert uuid.UUID(card["uuid"])
        assert uuid.UUID(suggestion["uuid"])

    serve(scenario)
    (row,) = ledger_rows(county.url)
    assert (row["kind"], row["facility"], row["person"], row["orderable"], row["outcome"]) == (
        "reminder", "county-hospital", "p-1", "RENAL", "recognized",
    )  # fmt: skip
    assert "window" in row["decision"]["members"][0]["criteria"]["met"]
    assert row["price_fen"] == 3000  # mappings/codes/county-hospital/orders.csv
    with psycopg.connect(county.url) as conn:
        (entry,) = [json.loads(r[0]) for r in conn.execute("SELECT entry FROM audit_entry") if "anchor" not in r[0]]
    assert entry["interaction"] == "recognition-order-sign"
    assert len(entry["patients"]) == 2


def test_english_is_answered_in_english(serve: Any, tested: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        answer = await client.post(SIGN, json=call(tested, draft()), headers={"Accept-Language": "zh;q=0.5, en-GB"})
        (card,) = answer.json()["cards"]
        assert "can be recognized" in card["summary"]
        assert card["overrideReasons"][3]["display"] == "Emergency or rescue"

    serve(scenario)


def test_a_patient_may_be_named_by_an_identifier_of_the_his(serve: Any, tested: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        name = f"{systems.facility_system('county-hospital', 'patient')}|1"
        assert len((await client.post(SIGN, json=call(name, draft()))).json()["cards"]) == 1

    serve(scenario)


def test_several_drafts_give_one_card_for_each_orderable(serve: Any, tested: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        drug = {"resourceType": "MedicationRequest", "id": "m1", "status": "draft"}
        urea = draft("L0016", "d3", systems.ITEMS)
        drafts = (draft(id="d1"), drug, draft(id="d2"), urea, draft("XCG", "d4"), draft("TJTC", "d5"))
        cards = (await client.post(SIGN, json=call(tested, *drafts))).json()["cards"]
        assert [[a["resourceId"] for a in c["suggestions"][0]["actions"]] for c in cards] == [
            ["ServiceRequest/d1", "ServiceRequest/d2"],
            ["ServiceRequest/d3"],
        ]

    serve(scenario)


def test_a_partial_panel_informs_without_asking_for_anything(serve: Any, county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    county.report("county-hospital", here, "r1", RENAL[:2], NOW - timedelta(days=1))

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        (card,) = (await client.post(SIGN, json=call(here, draft()))).json()["cards"]
        assert card["indicator"] == "info"
        assert "缺尿酸" in card["summary"]
        assert not {"suggestions", "overrideReasons", "selectionBehavior"} & card.keys()
        assert card["links"]

    serve(scenario)


def test_order_select_answers_for_the_selected_drafts_only(serve: Any, tested: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        body = call(
            tested,
            draft(id="d1"),
            draft("L0016", "d2", systems.ITEMS),
            hook="order-select",
            selections=["ServiceRequest/d2"],
        )
        cards = (await client.post("/cds-services/recognition-order-select", json=body)).json()["cards"]
        assert [c["suggestions"][0]["actions"][0]["resourceId"] for c in cards] == ["ServiceRequest/d2"]

    serve(scenario)


def test_the_same_question_gives_the_same_card_ids(serve: Any, tested: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        first, second = [(await client.post(SIGN, json=call(tested, draft()))).json() for _ in range(2)]
        assert first == second

    serve(scenario)


@pytest.mark.parametrize("patient", ["nobody", "urn:oid:2.16.156.10011.1.3|11010519491231002X"])
def test_an_unknown_patient_gives_no_card_and_a_ledger_row(serve: Any, county: Any, patient: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        answer = await client.post(SIGN, json=call(patient, draft()))
        assert (answer.status_code, answer.json()) == (200, {"cards": []})

    serve(scenario)
    (row,) = ledger_rows(county.url)
    assert (row["kind"], row["reason"]) == ("no-answer", "unknown-patient")
    assert "11010519491231002X" not in json.dumps(row)


def test_nothing_recognizable_gives_no_card_and_a_ledger_row(serve: Any, county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=600))
    county.report("county-hospital", here, "r1", RENAL, NOW - timedelta(days=500))

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        assert (await client.post(SIGN, json=call(here, draft(), draft("TJTC", "d2")))).json() == {"cards": []}

    serve(scenario)
    assert [(r["kind"], r["outcome"], r["reason"]) for r in ledger_rows(county.url)] == [
        ("no-answer", "not-recognizable", "not-recognizable"),
        ("no-answer", "not-covered", "not-covered"),
    ]


def test_what_was_sent_for_training_is_shown_to_nobody(serve: Any, county: Any) -> None:
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    tag = {"system": f"{systems.V2}0103", "code": "T"}  # MSH-11
    county.report("county-hospital", here, "r1", RENAL, NOW - timedelta(days=1), changes={"meta": {"tag": [tag]}})

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        assert (await client.post(SIGN, json=call(here, draft()))).json() == {"cards": []}

    serve(scenario)
    assert [r["reason"] for r in ledger_rows(county.url)] == ["not-recognizable"]


def test_an_emergency_is_not_interrupted_but_kept(serve: Any, tested: str, county: Any) -> None:
    visit = county.encounter("county-hospital", tested, "v1", "EMER", NOW - timedelta(hours=1))

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        assert (await client.post(SIGN, json=call(tested, draft(), encounterId=visit))).json() == {"cards": []}

    serve(scenario)
    (row,) = ledger_rows(county.url)
    assert (row["kind"], row["reason"], row["outcome"]) == ("no-answer", "emergency", "reference-only")


@pytest.mark.parametrize("extension", [{"emergency": True}, {"emergency": True, "surgery": False}])
def test_an_emergency_the_caller_states_is_not_interrupted_either(
    serve: Any, tested: str, county: Any, extension: dict[str, bool]
) -> None:
    body = call(tested, draft()) | {"extension": {"org.tongjian.circumstances": extension}}

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        assert (await client.post(SIGN, json=body)).json() == {"cards": []}
        # The plain door says the same of the same.
        plain = {"patient": tested, "user": "D001", "orders": [{"code": "SGN"}], "circumstances": extension}
        answer = (await client.post("/recognition/check", json=plain)).json()["answers"][0]
        assert (answer["outcome"], answer["reminds"]) == ("reference-only", False)

    serve(scenario)
    assert [r["reason"] for r in ledger_rows(county.url)] == ["emergency", "emergency"]


def test_the_visit_sent_along_counts_only_where_the_repository_does_not_have_it(
    serve: Any, tested: str, county: Any
) -> None:
    visit = county.encounter("county-hospital", tested, "v1", "AMB", NOW - timedelta(hours=1))

    def asked(id: str) -> dict[str, Any]:
        sent = {"resourceType": "Encounter", "id": id, "class": {"code": "EMER"}}
        return call(tested, draft(), encounterId=id) | {"prefetch": {"encounter": sent}}

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        assert len((await client.post(SIGN, json=asked(visit))).json()["cards"]) == 1
        assert (await client.post(SIGN, json=asked("his-visit-7"))).json() == {"cards": []}
        of_another = asked("his-visit-8")
        of_another["prefetch"]["encounter"]["subject"] = {"reference": "Patient/somebody-else"}
        assert len((await client.post(SIGN, json=of_another)).json()["cards"]) == 1

    serve(scenario)


@pytest.mark.parametrize(
    "draft_says",
    [
        {"reasonCode": [{"text": "拟行胆囊切除术,术前检查"}]},
        {"reasonCode": [{"coding": [{"system": systems.REPEAT_REASONS, "code": "3"}]}]},
    ],
)
def test_a_decisive_item_before_surgery_is_not_recognized(serve: Any, county: Any, draft_says: dict[str, Any]) -> None:
    hbsag = "L0182"  # 5196-1, decisive before surgery
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    county.report("north-township", there, "r1", [hbsag], NOW - timedelta(days=1))

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        usual = draft(hbsag, system=systems.ITEMS)
        (card,) = (await client.post(SIGN, json=call(here, usual))).json()["cards"]
        assert card["indicator"] == "warning"
        (card,) = (await client.post(SIGN, json=call(here, usual | draft_says))).json()["cards"]
        assert card["indicator"] == "info"

    serve(scenario)


def test_a_late_answer_is_empty_and_kept_in_the_ledger(serve: Any, tested: str, county: Any) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        with psycopg.connect(county.url) as lock:
            lock.execute("LOCK TABLE identity_link IN ACCESS EXCLUSIVE MODE")
            began = asyncio.get_running_loop().time()
            answer = await client.post(SIGN, json=call(tested, draft()))
            assert asyncio.get_running_loop().time() - began < 1.5
        assert (answer.status_code, answer.json()) == (200, {"cards": []})

    serve(scenario, hook_deadline_ms=200)
    (row,) = ledger_rows(county.url)
    assert (row["kind"], row["reason"], row["orderable"]) == ("no-answer", "late", None)


def test_a_broken_database_gives_no_card_and_the_row_follows_from_the_spool(
    serve: Any, tested: str, county: Any
) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        with psycopg.connect(county.url, autocommit=True) as conn:
            for table in ("result", "ledger"):
                conn.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
            answer = await client.post(SIGN, json=call(tested, draft()))
            assert (answer.status_code, answer.json()) == (200, {"cards": []})
            for table in ("result", "ledger"):
                conn.execute(f"ALTER TABLE {table}_away RENAME TO {table}")

    serve(scenario)
    (row,) = ledger_rows(county.url)
    assert row["reason"] == "database-away"


def test_without_an_audit_entry_there_is_no_answer(serve: Any, tested: str, county: Any) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        await services.audit.close()
        assert (await client.post(SIGN, json=call(tested, draft()))).json() == {"cards": []}

    serve(scenario)
    assert ledger_rows(county.url)[0]["reason"] == "audit-away"


def test_a_draft_that_holds_no_resource_does_not_take_the_answer_from_the_others(
    serve: Any, tested: str, county: Any
) -> None:
    body = call(tested, draft(id="d1"), draft("L0016", "d2", systems.ITEMS, status="revoked"))
    entries = body["context"]["draftOrders"]["entry"]
    entries += [{"fullUrl": "urn:uuid:1"}, {"resource": {"id": "x"}}, "?"]

    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        found = (await client.post(SIGN, json=body)).json()
        assert [c["suggestions"][0]["actions"][0]["resourceId"] for c in found["cards"]] == ["ServiceRequest/d1"]
        assert found["extension"]["org.tongjian.unread"] == [
            f"context.draftOrders.entry[{n}].resource is missing or not a resource." for n in (2, 3, 4)
        ]
        # None that can be read: then the caller must hear of it.
        del entries[:2]
        assert (await client.post(SIGN, json=body)).status_code == 400

    serve(scenario)
    assert [(r["kind"], r["orderable"]) for r in ledger_rows(county.url)] == [("reminder", "RENAL")]


def _without(body: dict[str, Any], *path: str) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(json.dumps(body))
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return out


def _with(body: dict[str, Any], value: Any, *path: str) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(json.dumps(body))
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return out


_GOOD = call("pat-1", draft())


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (_without(_GOOD, "hook"), "hook"),
        (_with(_GOOD, "patient-view", "hook"), "hook"),
        (_without(_GOOD, "hookInstance"), "hookInstance"),
        (_with(_GOOD, "", "hookInstance"), "hookInstance"),
        (_without(_GOOD, "context"), "context"),
        (_without(_GOOD, "context", "userId"), "context.userId"),
        (_without(_GOOD, "context", "patientId"), "context.patientId"),
        (_with(_GOOD, 7, "context", "patientId"), "context.patientId"),
        (_with(_GOOD, {"a": 1}, "context", "encounterId"), "context.encounterId"),
        (_without(_GOOD, "context", "draftOrders"), "context.draftOrders"),
        (_with(_GOOD, {"resourceType": "Patient"}, "context", "draftOrders"), "context.draftOrders"),
        (_with(_GOOD, 3, "context", "draftOrders", "entry"), "context.draftOrders.entry"),
        (_with(_GOOD, [{"resource": 1}], "context", "draftOrders", "entry"), "context.draftOrders.entry[0].resource"),
        (
            call("pat-1", draft(subject={"reference": "Patient/pat-2"})),
            "context.draftOrders.entry[0].resource.subject",
        ),
        ([], ""),
        ("{", ""),
    ],
)
def test_a_wrong_request_is_refused_naming_the_field(serve: Any, body: Any, where: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        content = body if isinstance(body, str) else json.dumps(body)
        answer = await client.post(SIGN, content=content)
        assert answer.status_code == 400
        found = answer.json()
        assert found["resourceType"] == "OperationOutcome"
        assert where in json.dumps(found)
        assert (await client.post(SIGN, json=_with(_GOOD, [], "context", "draftOrders", "entry"))).status_code == 200

    serve(scenario)


def test_a_token_and_its_scopes_are_needed(serve: Any, tested: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        assert (await client.post(SIGN, json=call(tested, draft()))).status_code == 403
        del client.headers["Authorization"]
        assert (await client.post(SIGN, json=call(tested, draft()))).status_code == 401
        assert (await client.post(f"{SIGN}/feedback", json={"feedback": []})).status_code == 401

    serve(scenario, scopes="user/Patient.rs")


def test_an_unknown_service_is_not_found(serve: Any) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        assert (await client.post("/cds-services/nothing", json=_GOOD)).status_code == 404

    serve(scenario)


def _feedback(card: str, **changes: Any) -> dict[str, Any]:
    entry = {"card": card, "outcome": "overridden", "outcomeTimestamp": "2025-11-21T01:02:03Z", **changes}
    return {"feedback": [{k: v for k, v in entry.items() if v is not None}]}


def _reason(code: str, **more: Any) -> dict[str, Any]:
    return {"reason": {"system": systems.REPEAT_REASONS, "code": code}, **more}


def test_feedback_goes_to_the_ledger(serve: Any, tested: str, county: Any) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        (card,) = (await client.post(SIGN, json=call(tested, draft()))).json()["cards"]
        said = _feedback(card["uuid"], overrideReason=_reason("6", userComment="术前复查"))
        assert (await client.post(f"{SIGN}/feedback", json=said)).status_code == 200
        took = _feedback(card["uuid"], outcome="accepted", acceptedSuggestions=[{"id": card["suggestions"][0]["uuid"]}])
        assert (await client.post(f"{SIGN}/feedback", json=took)).status_code == 200

    serve(scenario)
    reminder, declined, accepted, *_ = ledger_rows(county.url)
    assert [r["kind"] for r in (declined, accepted)] == ["feedback", "feedback"]
    assert declined["card"] == accepted["card"] == reminder["card"]
    assert (declined["outcome"], declined["reason"]["code"], declined["comment"]) == ("overridden", "6", "术前复查")
    assert (accepted["outcome"], accepted["user"]) == ("accepted", "D001")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "feedback"),
        ({"feedback": []}, "feedback"),
        (_feedback("c", overrideReason=_reason("6", userComment="\u200b")), "feedback[0].overrideReason.userComment"),
        (_feedback("", outcome="accepted"), "feedback[0].card"),
        (_feedback("c", outcome="ignored"), "feedback[0].outcome"),
        (_feedback("c", outcome="accepted"), "feedback[0].acceptedSuggestions"),
        (_feedback("c", outcomeTimestamp=None), "feedback[0].outcomeTimestamp"),
        (_feedback("c", outcomeTimestamp="yesterday"), "feedback[0].outcomeTimestamp"),
        (_feedback("c", outcomeTimestamp="2025-11-21T01:02:03"), "feedback[0].outcomeTimestamp"),
        (_feedback("c", overrideReason=_reason("7")), "feedback[0].overrideReason.reason.code"),
        (_feedback("c", overrideReason=_reason("6")), "feedback[0].overrideReason.userComment"),
        (_feedback("c", overrideReason=_reason("6", userComment=" ")), "feedback[0].overrideReason.userComment"),
        (_feedback("c", overrideReason=_reason("6", userComment="x" * 201)), "feedback[0].overrideReason.userComment"),
        (_feedback("c", overrideReason="no"), "feedback[0].overrideReason"),
    ],
)
def test_wrong_feedback_is_refused_and_nothing_is_kept(
    serve: Any, county: Any, body: dict[str, Any], where: str
) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        answer = await client.post(f"{SIGN}/feedback", json=body)
        assert answer.status_code == 400
        assert where in answer.text

    serve(scenario)
    assert ledger_rows(county.url) == []


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, "zh"),
        ("", "zh"),
        ("zh-CN", "zh"),
        ("en", "en"),
        ("fr, en;q=0.3", "en"),
        ("en;q=0.4, zh-Hans;q=0.8", "zh"),
        ("de", "zh"),
        ("en;q=x", "zh"),
        ("en;q=0", "zh"),
    ],
)
def test_the_language_follows_the_header_and_is_chinese_otherwise(header: str | None, language: str) -> None:
    assert language_of(header) == language


# --- the plain door ------------------------------------------------------------------------------------------------------


def test_the_plain_call_gives_the_same_answer_with_the_decision(serve: Any, tested: str, county: Any) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        body = {
            "patient": tested,
            "user": "D001",
            "orders": [{"id": "d1", "code": "SGN"}, {"code": "TJTC", "name": "体检套餐"}],
        }
        answer = await client.post("/recognition/check", json=body)
        assert answer.status_code == 200
        found = answer.json()
        assert (found["facility"], found["failure"]) == ("county-hospital", "")
        renal, unknown = found["answers"]
        assert renal["orders"] == ["d1"]
        assert renal["outcome"] == renal["decision"]["outcome"] == "recognized"
        assert renal["summary"]["zh"] == "北岭镇卫生院 11月20日 肾功能(3项)在有效期内,可互认"
        assert renal["reports"] == [f"{BASE}/DiagnosticReport/{county.rep}"]
        assert (unknown["outcome"], unknown["reminds"]) == ("not-covered", False)
        told = await client.post("/recognition/feedback", json=_feedback(renal["id"], overrideReason=_reason("1")))
        assert told.status_code == 200

    serve(scenario)
    assert [r["kind"] for r in ledger_rows(county.url)] == ["reminder", "no-answer", "feedback"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"patient": ""}, "patient"),
        ({"user": None}, "user"),
        ({"orders": []}, "orders"),
        ({"orders": [7]}, "orders[0]"),
        ({"orders": [{"name": "肾功能"}]}, "orders[0].code"),
        ({"orders": [{"code": "SGN", "system": ""}]}, "orders[0].system"),
        ({"encounter": 5}, "encounter"),
    ],
)
def test_a_wrong_plain_call_is_refused_naming_the_field(serve: Any, change: dict[str, Any], where: str) -> None:
    async def scenario(client: httpx.AsyncClient, services: Services) -> None:
        answer = await client.post(
            "/recognition/check", json={"patient": "p", "user": "u", "orders": [{"code": "SGN"}]} | change
        )
        assert answer.status_code == 400
        assert where in answer.text

    serve(scenario)
