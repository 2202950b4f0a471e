"""Subscriptions over real sockets: topics of the backport guide, queries of R4, who is told what, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.validator import check_fully
from tests.publish.his import result
from tests.publish.subscriber import GUIDE, TOPIC, World, eventually, world

LATER = "20260301100000"


@pytest.fixture
def here(database_url: str, tmp_path: Path) -> Iterator[World]:
    with world(database_url, tmp_path) as made:
        yield made


def report_of(here: World, raw: bytes) -> str:
    """Stores a result of the laboratory; ``DiagnosticReport/<id>``."""
    return next(c.reference for c in here.county.store("lab", raw) if c.resource_type == "DiagnosticReport")


def focus(got: Any) -> list[str]:
    return [e["focus"]["reference"].rpartition("/fhir/")[2] for e in got.events]


# --- the life of a subscription -----------------------------------------------------------------------------------------------------


def test_a_handshake_makes_it_active_and_events_come_numbered_in_order(here: World) -> None:
    first = here.subscribe(header=["Authorization: Bearer s3cret"])
    assert here.resource(first)["status"] == "requested"
    # A secret is sent to the endpoint and shown to nobody.
    assert here.resource(first)["channel"]["header"] == ["Authorization: (not shown)"]
    with here.sending():
        here.active(first)
        (shake,) = here.hook.of_type("handshake")
        assert shake.headers["Authorization"] == "Bearer s3cret"
        assert shake.headers["Content-Type"] == "application/fhir+json"
        assert (shake.status["status"], shake.status["events-since-subscription-start"]) == ("requested", "0")
        reports = [report_of(here, result(str(n), number=f"F{n}", placer=f"P{n}", person=n)) for n in (1, 2, 3)]
        eventually(lambda: len(here.hook.of_type("event-notification")) == 3, lambda: here.state(first))
    told = here.hook.of_type("event-notification")
    assert [focus(g) for g in told] == [[r] for r in reports]
    assert [g.events[0]["event-number"] for g in told] == ["1", "2", "3"]
    assert [g.status["events-since-subscription-start"] for g in told][-1] == "3"
    assert told[0].status["topic"] == TOPIC + "result-new"
    for got in here.hook.got:
        assert [i for i in check_fully(got.bundle) if i.severity == "error"] == []
        assert got.bundle["type"] == "history"
        assert got.bundle["entry"][0]["request"]["url"].endswith(f"Subscription/{first}/$status")
        # id-only: nothing but the status
        assert len(got.bundle["entry"]) == 1
    assert here.state(first)["events-since-subscription-start"] == "3"


@pytest.mark.parametrize("content", ["empty", "full-resource"])
def test_the_payload_is_as_large_as_was_asked_for(here: World, content: str) -> None:
    one = here.subscribe(content=content)
    with here.sending():
        here.active(one)
        report = report_of(here, result("1"))
        eventually(lambda: here.hook.of_type("event-notification"))
    (got,) = here.hook.of_type("event-notification")
    entries = got.bundle["entry"]
    if content == "empty":
        assert len(entries) == 1
        assert "topic" not in got.status
        assert set(got.events[0]) == {"event-number", "timestamp"}
        return
    kinds = [e["resource"]["resourceType"] for e in entries]
    assert kinds[:2] == ["Parameters", "DiagnosticReport"]
    assert sorted(kinds[2:]) == ["Observation", "Patient"]
    assert entries[1]["request"] == {"method": "PUT", "url": report}
    value = next(e["resource"]["valueQuantity"] for e in entries if e["resource"]["resourceType"] == "Observation")
    assert value["value"] == 5.6
    assert [i for i in check_fully(got.bundle) if i.severity == "error"] == []


def test_corrections_and_withdrawals_are_a_topic_of_their_own(here: World) -> None:
    new, changed = here.subscribe("result-new"), here.subscribe("result-corrected-or-voided", content="full-resource")
    with here.sending():
        here.active(new, changed)
        report = report_of(here, result("1"))
        here.county.store("lab", result("2", status="C", value="6.0", sent=LATER))
        here.county.store("lab", result("3", status="X", sent="20260301110000"))
        eventually(lambda: here.state(changed)["events-since-subscription-start"] == "2")
        eventually(lambda: len(here.hook.of_type("event-notification")) == 3)
    told = here.hook.of_type("event-notification")
    by = {one: [g for g in told if g.status["subscription"]["reference"].endswith(one)] for one in (new, changed)}
    assert [focus(g) for g in by[new]] == [[report]]
    assert [focus(g) for g in by[changed]] == [[report], [report]]


def test_an_endpoint_that_fails_is_tried_again_and_nothing_is_lost(here: World) -> None:
    one = here.subscribe()
    with here.sending():
        here.active(one)
        here.hook.code = 503
        reports = [report_of(here, result(str(n), number=f"F{n}", placer=f"P{n}", person=n)) for n in (1, 2)]
        # two attempts in a row, as the setting says, and it is in error; client and administrator see why
        eventually(lambda: here.resource(one)["status"] == "error", lambda: here.state(one))
        assert here.resource(one)["error"] == "The endpoint answered with HTTP 503."
        assert here.state(one)["error"]["text"] == "The endpoint answered with HTTP 503."
        assert here.state(one)["events-since-subscription-start"] == "2"
        reports.append(report_of(here, result("3", number="F3", placer="P3", person=3)))
        eventually(lambda: here.state(one)["events-since-subscription-start"] == "3")
        before = len(here.hook.got)
        here.hook.code = 200
        patch = [{"op": "replace", "path": "/status", "value": "requested"}]
        headers = {"Content-Type": "application/json-patch+json"}
        answer = here.api.http.patch(f"/Subscription/{one}", content=json.dumps(patch), headers=headers)
        assert answer.status_code == 200, answer.text
        eventually(lambda: len(here.hook.got) == before + 4)
    after = here.hook.got[before:]
    assert [g.status["type"] for g in after] == ["handshake", *["event-notification"] * 3]
    assert [f for g in after[1:] for f in focus(g)] == reports
    assert "error" not in here.resource(one)


def test_a_refused_handshake_is_an_error_and_heartbeats_come_when_asked_for(here: World) -> None:
    here.hook.code = 404
    one = here.subscribe()
    beating = here.subscribe(extension=[{"url": GUIDE + "backport-heartbeat-period", "valueUnsignedInt": 1}])
    with here.sending():
        eventually(lambda: here.resource(one)["status"] == here.resource(beating)["status"] == "error")
        here.hook.code = 200
        assert here.resource(beating)["error"] == "The endpoint answered with HTTP 404."
        again = {**here.resource(beating), "status": "requested"}
        assert here.api.http.put(f"/Subscription/{beating}", json=again).status_code == 200
        eventually(lambda: len(here.hook.of_type("heartbeat")) >= 2)
    assert here.hook.of_type("heartbeat")[0].status["events-since-subscription-start"] == "0"


def test_several_events_go_together_when_allowed(here: World) -> None:
    one = here.subscribe(extension=[{"url": GUIDE + "backport-max-count", "valuePositiveInt": 20}])
    with here.sending():
        here.active(one)
    reports = [report_of(here, result(str(n), number=f"F{n}", placer=f"P{n}", person=n)) for n in (1, 2, 3)]
    with here.sending():
        eventually(lambda: here.hook.of_type("event-notification"))
    (got,) = here.hook.of_type("event-notification")
    assert focus(got) == reports


def test_past_events_are_given_again(here: World) -> None:
    one = here.subscribe()
    with here.sending():
        here.active(one)
        reports = [report_of(here, result(str(n), number=f"F{n}", placer=f"P{n}", person=n)) for n in (1, 2, 3)]
        eventually(lambda: len(here.hook.of_type("event-notification")) == 3)
    asked = {"eventsSinceNumber": "2", "eventsUntilNumber": "3", "content": "full-resource"}
    answer = here.api.http.get(f"/Subscription/{one}/$events", params=asked)
    bundle = answer.json()
    parameters = [p for p in bundle["entry"][0]["resource"]["parameter"] if p["name"] == "notification-event"]
    assert [p["part"][0]["valueString"] for p in parameters] == ["2", "3"]
    kinds = [e["resource"]["resourceType"] for e in bundle["entry"]]
    assert kinds.count("DiagnosticReport") == 2
    assert {e["request"]["url"] for e in bundle["entry"][1:]} >= set(reports[1:])
    assert here.api.http.get(f"/Subscription/{one}/$events?content=all").status_code == 400
    assert here.api.http.get("/Subscription/none/$events").status_code == 404
    found = here.api.http.get("/Subscription/$status", params={"status": "active"}).json()
    shown = [e["resource"]["parameter"][0]["valueReference"]["reference"] for e in found["entry"]]
    assert [s.rpartition("/")[2] for s in shown] == [one]


def test_one_that_is_off_deleted_or_over_is_sent_nothing(here: World) -> None:
    off, gone, short = here.subscribe(), here.subscribe(), here.subscribe()
    with here.sending():
        here.active(off, gone, short)
        assert (
            here.api.http.put(f"/Subscription/{off}", json={**here.resource(off), "status": "off"}).status_code == 200
        )
        assert here.api.http.delete(f"/Subscription/{gone}").status_code == 204
        over = here.draft() | {"id": short, "end": "2020-01-01T00:00:00Z"}
        assert here.api.http.put(f"/Subscription/{short}", json=over).status_code == 200
        last = here.subscribe()
        here.active(last)
        report_of(here, result("1"))
        eventually(lambda: here.hook.of_type("event-notification"))
    (got,) = here.hook.of_type("event-notification")
    assert got.status["subscription"]["reference"].endswith(last)


# --- filters ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "matched"),
    [
        (("DiagnosticReport?code=BIO",), {1, 2}),
        (("DiagnosticReport?code=CBC",), set()),
        (("Observation?code=GLU&value-quantity=gt6",), {2}),
        (("Observation?code=GLU", "Observation?value-quantity=lt6"), {1}),
        (("patient=Patient/{1}",), {1}),
        (("DiagnosticReport?patient={2}",), {2}),
        (("Patient?name=王建国2",), {2}),
        (("facility=lab",), {1, 2}),
        (("facility=town",), set()),
        (("DiagnosticReport?patient:Patient.name=王建国1",), {1}),
    ],
    ids=str,
)
def test_filters_narrow_a_topic(here: World, filters: tuple[str, ...], matched: set[int]) -> None:
    for person in (1, 2):  # the patients are known before
        here.county.store("lab", result(f"a{person}", number=f"A{person}", placer=f"A{person}", person=person))
    found = here.county.sql("SELECT id FROM resource WHERE rtype = 1 ORDER BY seq")
    ids = {n: row[0] for n, row in enumerate(found, 1)}
    with here.sending():
        eventually(lambda: here.county.sql("SELECT count(*) FROM outbox WHERE published IS NULL") == [(0,)])
        named = [f.replace("{1}", ids[1]).replace("{2}", ids[2]) for f in filters]
        one, every = here.subscribe("result-new", *named), here.subscribe()
        here.active(one, every)
        values = {1: "5.1", 2: "6.2"}
        reports = {
            n: report_of(here, result(f"b{n}", person=n, number=f"B{n}", placer=f"B{n}", value=v))
            for n, v in values.items()
        }
        eventually(lambda: here.state(every)["events-since-subscription-start"] == "2")
    rows = here.county.sql("SELECT focus FROM subscription_event WHERE subscription = %s ORDER BY number", one)
    assert [f"DiagnosticReport/{r[0]}" for r in rows] == [reports[n] for n in sorted(matched)]


def test_a_query_of_r4_is_told_of_every_change_that_matches_it(here: World) -> None:
    with_body = here.subscribe("Observation?code=GLU&value-quantity=gt6", payload="application/fhir+json")
    without = here.subscribe("Encounter?status=in-progress")
    with here.sending():
        here.active(with_body, without)
        assert here.hook.got == []
        here.county.store("lab", result("1"))
        here.county.store("lab", result("2", number="F2", placer="P2", person=2, value="6.5"))
        kept = {"class": {"code": "AMB"}, "status": "in-progress"}
        here.api.create(resourceType="Encounter", **kept)
        here.api.create(resourceType="Encounter", **kept | {"status": "planned"})
        eventually(lambda: len(here.hook.got) == 2)
        here.county.until_published()
    assert len(here.hook.got) == 2
    put = next(g for g in here.hook.got if g.method == "PUT")
    assert put.path.startswith("/hook/Observation/")
    assert put.bundle["valueQuantity"]["value"] == 6.5
    post = next(g for g in here.hook.got if g.method == "POST")
    assert (post.path, post.body) == ("/hook", b"")


# --- what cannot be done here -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"criteria": "http://example.org/SubscriptionTopic/other"}, "no such topic"),
        ({"criteria": "Observation?nonsense=1"}, "nonsense"),
        ({"criteria": "Observation?date=yesterday"}, "cannot be understood"),
        ({"criteria": "Observation?code=1&_sort=date"}, "parameters only"),
        ({"criteria": "Spaceship?a=b"}, "Spaceship"),
        ({"channel.type": "websocket"}, "rest-hook"),
        ({"channel.type": "email"}, "rest-hook"),
        ({"channel.payload": "application/fhir+xml"}, "application/fhir+json"),
        ({"channel._payload": None}, "backport-payload-content"),
        ({"channel.endpoint": None}, "https address"),
        ({"channel.header": ["Host: other"]}, "header"),
        ({"channel.header": ["X: a\r\nY: b"]}, "header"),
        (
            {"_criteria": {"extension": [{"url": GUIDE + "backport-filter-criteria", "valueString": "Encounter?x=1"}]}},
            "Encounter",
        ),
        (
            {"_criteria": {"extension": [{"url": GUIDE + "backport-filter-criteria", "valueString": "colour=red"}]}},
            "colour",
        ),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_with_the_reason(here: World, change: dict[str, Any], word: str) -> None:
    draft = here.draft()
    for path, value in change.items():
        *above, name = path.split(".")
        place = draft["channel"] if above else draft
        place.pop(name, None)
        if value is not None:
            place[name] = value
    if "?" in draft["criteria"]:
        del draft["channel"]["_payload"]
    answer = here.api.http.post("/Subscription", json=draft)
    assert answer.status_code == 422, answer.text
    assert word in answer.json()["issue"][0]["details"]["text"]


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://127.0.0.1:{port}/hook",
        "http://127.0.0.1:9/hook",
        "http://localhost:{port}/hook",
        "http://127.0.0.1:{port}@evil.example/hook",
        "http://user@127.0.0.1:{port}/hook",
        "http://127.0.0.1:{port}.evil.example/hook",
        "http://169.254.169.254/latest/meta-data",
        "http://2130706433:{port}/hook",
        "http://[::1]:{port}/hook",
        "ftp://127.0.0.1/hook",
        "file:///etc/passwd",
        "//127.0.0.1/hook",
        "hook",
        "http://127.0.0.1:{port}/hook\\..\\x",
    ],
)
def test_no_other_address_is_ever_called(here: World, endpoint: str) -> None:
    draft = here.draft(endpoint=endpoint.replace("{port}", str(here.hook.port)))
    answer = here.api.http.post("/Subscription", json=draft)
    assert answer.status_code == 422, answer.text


def test_a_redirect_is_not_followed(here: World) -> None:
    here.hook.code, here.hook.location = 307, f"http://127.0.0.1:{here.hook.port}/elsewhere"
    one = here.subscribe()
    with here.sending():
        eventually(lambda: here.resource(one)["status"] == "error")
    assert [g.path for g in here.hook.got] == ["/hook"]
    assert "307" in here.resource(one)["error"]
