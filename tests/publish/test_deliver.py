"""fhir_server.publish: results reach the facility that ordered them, whatever the receiving side does."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from uvicorn import Config, Server

from adapters.convert import convert
from conformance.fhirjson import loads
from fhir_server.publish import queue
from fhir_server.store.database import open_pool
from tests.edge.certificates import Authority
from tests.publish.his import QUICK, County, His, order, profiles_to, result

STATES = "SELECT status, attempts FROM delivery ORDER BY id"


def to(his: His, more: str = QUICK) -> str:
    return f"{{host: 127.0.0.1, port: {his.port}, {more}}}"


def run(story: Any) -> None:
    async def within() -> None:
        async with asyncio.timeout(60):
            await story

    asyncio.run(within())


# --- who is told -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        result("1", ordered_by="乙镇卫生院"),
        result("1", ordered_by="^^^^^^^^^TOWN"),
        result("1", placer="P1^TOWN"),
    ],
    ids=["ORC-21 name", "ORC-21 number", "name space of the placer number"],
)
def test_a_report_goes_back_to_the_facility_it_names_as_orderer(raw: bytes, database_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with His() as town, His() as village:
            county = County(database_url, profiles_to(tmp_path, [to(town)], [to(village)]))
            county.store("lab", raw)
            async with county.delivering():
                await county.until(STATES, [("delivered", 1)])
            assert town.values() == ["5.6"]
            assert village.received == []
            assert county.sql("SELECT count(*) FROM outbox WHERE published IS NULL") == [(0,)]

    run(story())


def test_an_order_of_the_township_itself_is_found_by_person_and_placer_number(
    database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with His() as town:
            county = County(database_url, profiles_to(tmp_path, [to(town)]))
            county.store("town", order("o1", placer="P77"))
            county.store("lab", result("r1", placer="P77"))
            # the same number of another person, and another number of the same person, are nobody's business
            county.store("lab", result("r2", placer="P77", number="F2", person=2))
            county.store("lab", result("r3", placer="P78", number="F3"))
            async with county.delivering():
                await county.until(STATES, [("delivered", 1)])
                await county.until("SELECT count(*) FROM outbox WHERE published IS NULL", [(0,)])
            (message,) = town.received
            lines = {line[:3]: line.split("|") for line in message.decode().split("\r") if line}
            # the township's own numbers of patient, visit and order; its word for the laboratory; its flag for normal
            assert lines["PID"][3].startswith("T1^^^TOWN^PI~")
            assert lines["PV1"][19] == "V1^^^^VN"
            assert (lines["ORC"][2], lines["OBR"][2]) == ("P77", "P77")
            assert (lines["OBX"][15].split("^")[0], lines["OBX"][8]) == ("LABX", "M")
            assert (lines["MSH"][3], lines["MSH"][5]) == ("LAB", "TOWN")

    run(story())


def test_a_result_nobody_else_ordered_and_backfill_reach_nobody(database_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with His() as town:
            county = County(database_url, profiles_to(tmp_path, [to(town)]))
            county.store("lab", result("1"))
            county.store("town", result("2", facility="TOWN", ordered_by="乙镇卫生院"))
            county.store("lab", result("3", number="F3", placer="P3", ordered_by="乙镇卫生院"), backfill=True)
            async with county.delivering():
                await county.until("SELECT count(*) FROM outbox WHERE published IS NULL", [(0,)])
            assert county.sql("SELECT count(*) FROM delivery") == [(0,)]

    run(story())


def test_corrections_and_withdrawals_follow_the_report_to_everybody_who_got_or_used_it(
    database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with His() as town, His() as village:
            county = County(database_url, profiles_to(tmp_path, [to(town)], [to(village)]))
            changes = county.store("lab", result("1", ordered_by="乙镇卫生院"))
            report = next(c.id for c in changes if c.resource_type == "DiagnosticReport")
            async with county.delivering():
                await county.until(STATES, [("delivered", 1)])
                # the village adopted the result, the correction no longer says who ordered
                county.sql(
                    "INSERT INTO ledger (chain, number, at, kind, facility, entry, hash, reports)"
                    " VALUES ('c', 1, now(), 'decision', 'village', '{}', '', %s)",
                    [report],
                )
                county.store("lab", result("2", value="6.5", status="C", sent="20260301090000"))
                await county.until(STATES, [("delivered", 1)] * 3)
                assert (town.values(), village.values()) == (["5.6", "6.5"], ["6.5"])
                # the same report number comes again for somebody else: it was the wrong patient
                county.store("lab", result("3", value="6.5", status="C", sent="20260301100000", person=9))
                await county.until(
                    "SELECT count(*) FROM delivery WHERE status = 'delivered' AND topic = 'result-voided'", [(2,)]
                )
            last = town.received[2].decode()
            assert "王建国1" in last
            assert [line.split("|")[11] for line in last.split("\r") if line.startswith("OBX")] == ["W"]
            assert len(village.received) == 2

    run(story())


USE = "INSERT INTO ledger (chain, number, at, kind, facility, entry, hash, reports) VALUES ('c', %s, now(), %s, %s, '{}', '', %s)"


def test_who_used_a_report_and_cannot_be_told_is_a_dead_letter_until_its_profile_says_how(
    database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with His() as village:
            county = County(database_url, profiles_to(tmp_path, []))
            changes = county.store("lab", result("1"))
            report = next(c.id for c in changes if c.resource_type == "DiagnosticReport")
            # a reminder alone is no use; the laboratory's own doctor knows; of a removed facility nothing is known
            for number, (kind, facility) in enumerate(
                [("view", "village"), ("reminder", "town"), ("decision", "lab"), ("citation", "removed")], 1
            ):
                county.sql(USE, number, kind, facility, [report])
            county.store("lab", result("2", status="X", sent="20260301090000"))
            dead = "SELECT facility, destination, status, split_part(reason, ':', 1) FROM delivery ORDER BY facility"
            async with county.delivering():
                await county.until(
                    dead, [("removed", "", "dead", "no-destination"), ("village", "", "dead", "no-destination")]
                )
            county.profiles = profiles_to(tmp_path, [], [to(village)])
            with psycopg.connect(database_url) as conn:
                (removed,) = queue.select(conn, queue.Selection(facility="removed"), 10)
                assert queue.close(conn, [removed.id], "told by telephone") == 1
                assert queue.replay(conn, queue.Selection(status="dead"), datetime.now(UTC)) == (1, 0)
            async with county.delivering():
                await county.until(
                    "SELECT facility, status FROM delivery ORDER BY facility",
                    [("removed", "closed"), ("village", "delivered")],
                )
            (message,) = village.received
            lines = {line[:3]: line.split("|") for line in message.decode().split("\r") if line}
            assert (lines["OBR"][25], lines["OBX"][11]) == ("X", "X")

    run(story())


def test_a_result_without_a_report_is_told_to_its_users_as_well(database_url: str, tmp_path: Path) -> None:
    from fhir_server.recognition.ledger import reports_of

    used = {
        "decisions": [
            {"members": [{"result": {"observation": "Observation/aa1/_history/1", "report": None}}, {"result": None}]}
        ]
    }
    assert reports_of(used) == ["aa1"]
    assert reports_of({"reports": ["DiagnosticReport/r1", "Observation/aa2"]}) == ["r1", "aa2"]


# --- what the receiver does --------------------------------------------------------------------------------------------------


def test_a_receiver_that_is_down_gets_everything_when_it_is_up_in_order(database_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        his = His()
        async with his:
            pass
        county = County(database_url, profiles_to(tmp_path, [to(his)]))
        for n in range(1, 6):
            county.store(
                "lab", result(f"c{n}", value=f"{n}.0", status="C", sent=f"2026030108000{n}", ordered_by="乙镇卫生院")
            )
        async with county.delivering():
            await county.until("SELECT count(*) > 0 FROM delivery WHERE reason LIKE 'away: cannot connect%'", [(True,)])
            await asyncio.sleep(0.5)
            await his.listen()
            await county.until(STATES, [("delivered", 1)] * 5)
        await his.close()
        assert his.values() == ["1.0", "2.0", "3.0", "4.0", "5.0"]

    run(story())


def test_an_error_answer_is_tried_again_with_the_same_bytes_and_holds_back_that_patient_alone(
    database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with His("AE", "AA") as his:
            county = County(database_url, profiles_to(tmp_path, [to(his)]))
            county.store("lab", result("1", value="1.0", ordered_by="乙镇卫生院"))
            county.store("lab", result("2", value="2.0", status="C", sent="20260301090000", ordered_by="乙镇卫生院"))
            county.store("lab", result("3", value="3.0", number="F3", person=2, ordered_by="乙镇卫生院"))
            async with county.delivering():
                await county.until(STATES, [("delivered", 2), ("delivered", 1), ("delivered", 1)])
            assert his.values() == ["1.0", "3.0", "1.0", "2.0"]
            assert his.received[0] == his.received[2]

    run(story())


def test_a_refusal_is_a_dead_letter_that_holds_back_nothing_and_can_be_replayed(
    database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with His("AR", "AA") as his:
            county = County(database_url, profiles_to(tmp_path, [to(his)]))
            county.store("lab", result("1", value="1.0", ordered_by="乙镇卫生院"))
            county.store("lab", result("2", value="2.0", status="C", sent="20260301090000", ordered_by="乙镇卫生院"))
            async with county.delivering():
                await county.until(STATES, [("dead", 1), ("delivered", 1)])
                with psycopg.connect(database_url) as conn:
                    (listed,) = queue.select(conn, queue.Selection(facility="town", status="dead"), 10)
                    assert (listed.reason, listed.control_id) == ("AR", his.numbers()[0])
                    assert queue.replay(conn, queue.Selection(status="dead"), datetime.now(UTC)) == (0, 1)
                    # a newer version of the report is there: the old one goes only when it is named
                    assert queue.replay(conn, queue.Selection(status="dead", ids=(listed.id,)), datetime.now(UTC)) == (
                        1,
                        0,
                    )
                await county.until(STATES, [("delivered", 1)] * 2)
            assert his.values() == ["1.0", "2.0", "1.0"]
            assert his.received[0] == his.received[2]

    run(story())


def test_endless_error_answers_end_as_a_dead_letter(database_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with His("AE") as his:
            county = County(database_url, profiles_to(tmp_path, [to(his)]))
            county.store("lab", result("1", ordered_by="乙镇卫生院"))
            async with county.delivering():
                await county.until(STATES, [("dead", 3)])
            assert len(set(his.received)) == 1 and len(his.received) == 3

    run(story())


@pytest.mark.parametrize(
    ("misdeed", "reason"),
    [
        ("hang", "silent: no acknowledgement within 0.3 s"),
        ("other", "silent: the acknowledgement does not name this control id (MSA-2)"),
        ("nameless", "silent: the acknowledgement does not name this control id (MSA-2)"),
        ("noise", "silent: the answer is not an acknowledgement"),
    ],
)
def test_an_answer_that_is_none_is_never_taken_for_one(
    misdeed: str, reason: str, database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with His(misdeed) as his:
            county = County(database_url, profiles_to(tmp_path, [to(his, QUICK.replace("timeout: 1", "timeout: 0.3"))]))
            county.store("lab", result("1", ordered_by="乙镇卫生院"))
            async with county.delivering():
                await county.until(STATES, [("dead", 3)])
            assert county.sql("SELECT starts_with(reason, %s) FROM delivery", reason) == [(True,)]
            assert len(his.received) == 3

    run(story())


@pytest.mark.parametrize("code", ["CA", "CE", "CR"])
def test_accept_acknowledgements_count_like_those_of_the_application(
    code: str, database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with His(code) as his:
            county = County(database_url, profiles_to(tmp_path, [to(his)]))
            county.store("lab", result("1", ordered_by="乙镇卫生院"))
            expected = {"CA": ("delivered", 1, "CA"), "CE": ("dead", 3, "CE"), "CR": ("dead", 1, "CR")}[code]
            async with county.delivering():
                await county.until("SELECT status, attempts, reason FROM delivery", [expected])

    run(story())


@pytest.mark.parametrize("misdeed", ["cut", "hang"])
def test_an_answer_that_never_came_repeats_the_same_bytes_and_nothing_else(
    misdeed: str, database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with His(misdeed, "AA") as his:
            county = County(database_url, profiles_to(tmp_path, [to(his)]))
            for n in range(4):
                county.store(
                    "lab", result(f"c{n}", value=f"{n}.5", number=f"F{n}", person=n + 1, ordered_by="乙镇卫生院")
                )
            async with county.delivering():
                await county.until("SELECT count(*) FROM delivery WHERE status = 'delivered'", [(4,)])
            assert len(his.received) == 5
            assert len(set(his.received)) == len(set(his.numbers())) == 4

    run(story())


def test_one_destination_that_hangs_does_not_delay_another(database_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with His("hang") as slow, His() as quick:
            slow_place = to(slow, "timeout: 30")
            county = County(database_url, profiles_to(tmp_path, [slow_place], [to(quick)]))
            for n in range(20):
                name = "乙镇卫生院" if n % 2 else "^^^^^^^^^VILLAGE"
                county.store("lab", result(f"c{n}", number=f"F{n}", person=n + 1, ordered_by=name))
            async with county.delivering():
                await county.until(
                    "SELECT count(*) FROM delivery WHERE status = 'delivered' AND facility = 'village'", [(10,)]
                )
                assert len(slow.received) <= 1
                slow.answers = ["AA"]
                await slow.close()
            assert len(set(quick.received)) == 10

    run(story())


def test_tls_with_a_certificate_of_our_own_and_only_to_whom_the_authority_vouches_for(
    database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        authority, other = Authority(tmp_path), Authority(tmp_path, "other")
        mine, theirs = authority.issue("tongjian"), authority.issue("his", server=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(theirs.certificate, theirs.key)
        context.load_verify_locations(authority.file)
        context.verify_mode = ssl.CERT_REQUIRED
        async with His(tls=context) as his:
            own = f"tls: true, certificate: {mine.certificate.name}, key: {mine.key.name}, {QUICK}"
            right, wrong = f"ca: {authority.file.name}, {own}", f"ca: {other.file.name}, {own}"
            county = County(database_url, profiles_to(tmp_path, [to(his, right)], [to(his, wrong)]))
            county.store("lab", result("1", ordered_by="乙镇卫生院"))
            county.store("lab", result("2", number="F2", person=2, ordered_by="^^^^^^^^^VILLAGE"))
            async with county.delivering():
                await county.until("SELECT facility FROM delivery WHERE status = 'delivered'", [("town",)])
                await county.until(
                    "SELECT starts_with(reason, 'away: cannot connect') FROM delivery WHERE facility = 'village'",
                    [(True,)],
                )
            assert len(his.received) == 1

    run(story())


# --- HTTP --------------------------------------------------------------------------------------------------------------------


class Web:
    """An HTTP server that answers with the statuses it was given, the last for all further requests."""

    def __init__(self, *statuses: int, body: bytes = b"") -> None:
        self.statuses = list(statuses)
        self.body = body
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.port = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            event = await receive()
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        self.requests.append(({k.decode(): v.decode() for k, v in scope["headers"]}, body))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        headers = [(b"location", f"http://127.0.0.1:{self.port}/other".encode())] if status in (302, 307) else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        number = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        await send({"type": "http.response.body", "body": self.body.replace(b"{}", number)})

    @contextlib.asynccontextmanager
    async def serving(self) -> Any:
        server = Server(Config(self, port=0, log_level="critical", lifespan="off"))
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.01)
        self.port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.should_exit = True
            await task


def test_http_posts_the_message_or_the_bundle_until_it_is_taken(database_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with Web(503, 500, 202).serving() as web:
            place = f"{{url: 'http://127.0.0.1:{web.port}/in', {QUICK}}}"
            bundle = f"{{name: fhir, content: fhir, url: 'http://127.0.0.1:{web.port}/in', {QUICK}}}"
            county = County(database_url, profiles_to(tmp_path, [place, bundle]))
            county.store("lab", result("1", ordered_by="乙镇卫生院"))
            async with county.delivering():
                await county.until("SELECT count(*) FROM delivery WHERE status = 'delivered'", [(2,)])
            kinds = {h["content-type"]: (h, body) for h, body in web.requests}
            headers, message = kinds["application/hl7-v2; charset=utf-8"]
            assert convert(message, county.profiles["town"]).held is None
            assert headers["x-request-id"] == message.split(b"|")[9].decode()
            _, body = kinds["application/fhir+json; charset=utf-8"]
            found = loads(body)
            assert found["type"] == "collection"
            assert found["entry"][0]["resource"]["resourceType"] == "DiagnosticReport"
            assert {"Patient", "Observation", "ServiceRequest"} <= {
                e["resource"]["resourceType"] for e in found["entry"]
            }

    run(story())


def test_an_old_his_is_told_of_new_corrected_and_voided_results_as_plain_json(
    database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with Web(200).serving() as web:
            place = f"{{content: json, url: 'http://127.0.0.1:{web.port}/in', {QUICK}}}"
            county = County(database_url, profiles_to(tmp_path, [place]))
            async with county.delivering():
                for number, (value, status, person) in enumerate(
                    (("5.60", "F", 1), ("6.50", "C", 1), ("6.50", "C", 9)), 1
                ):
                    sent = f"202603010{number}0000"
                    county.store(
                        "lab",
                        result(
                            str(number), value=value, status=status, sent=sent, person=person, ordered_by="乙镇卫生院"
                        ),
                    )
                    await county.until(
                        "SELECT count(*) FROM delivery WHERE status = 'delivered'", [((1, 2, 4)[number - 1],)]
                    )
            told = [
                loads(body) for headers, body in web.requests if headers["content-type"].startswith("application/json")
            ]
        assert [headers["x-request-id"] for headers, _ in web.requests] == [one["id"] for one in told]
        kinds = [one["kind"] for one in told]
        assert (kinds[:2], sorted(kinds[2:])) == (["new", "corrected"], ["corrected", "voided"])
        first, second = told[0]["reports"][0], told[1]["reports"][0]
        assert (first["results"][0]["value"], second["results"][0]["value"]) == ("5.60", "6.50")
        assert (first["status"], second["status"], second["usable"]) == ("final", "corrected", True)
        void = next(one for one in told if one["kind"] == "voided")
        assert [(r["number"], r["usable"]) for r in void["reports"]] == [(first["number"], False)]
        assert [r["usable"] for r in void["reports"][0]["results"]] == [False]
        assert void["patient"]["name"] == told[0]["patient"]["name"]
        assert (void["from"], void["to"]) == ({"facility": "lab", "name": "甲县人民医院"}, "town")

    run(story())


def test_bytes_of_old_deliveries_go_and_a_replay_makes_them_again(database_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with His() as town:
            county = County(database_url, profiles_to(tmp_path, [to(town)]))
            county.store("lab", result("1", ordered_by="乙镇卫生院"))
            async with county.delivering():
                await county.until(STATES, [("delivered", 1)])
            kept = "SELECT status, message IS NULL FROM delivery"
            pool = await open_pool(database_url, 1)
            try:
                assert await queue.forget(pool, datetime.now(UTC) - timedelta(days=1)) == 0
                assert county.sql(kept) == [("delivered", False)]
                assert await queue.forget(pool, datetime.now(UTC) + timedelta(seconds=1)) == 1
            finally:
                pool.terminate()
            assert county.sql(kept) == [("delivered", True)]
            with psycopg.connect(database_url) as conn:
                assert queue.replay(conn, queue.Selection(status="delivered"), datetime.now(UTC)) == (1, 0)
            async with county.delivering():
                await county.until(STATES, [("delivered", 1)])
            assert town.received[0].split(b"|")[9] == town.received[1].split(b"|")[9]
            assert town.values() == ["5.6", "5.6"]

    run(story())


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, b"", "HTTP 400"),
        (307, b"", "HTTP 307"),
        (200, b"MSH|^~\\&|H|T|||20260301||ACK|1|P|2.5.1\rMSA|AR|{}\r", "AR"),
    ],
)
def test_http_refusals_and_redirects_are_dead_letters(
    status: int, body: bytes, reason: str, database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with Web(status, body=body).serving() as web:
            place = f"{{url: 'http://127.0.0.1:{web.port}/in', {QUICK}}}"
            county = County(database_url, profiles_to(tmp_path, [place]))
            county.store("lab", result("1", ordered_by="乙镇卫生院"))
            async with county.delivering():
                await county.until("SELECT status, reason FROM delivery", [("dead", reason)])
            assert len(web.requests) == 1

    run(story())


# --- exactly once into the queue ---------------------------------------------------------------------------------------------


def test_of_two_servers_one_delivers_and_the_other_takes_over(database_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with His() as his:
            county = County(database_url, profiles_to(tmp_path, [to(his)]))
            async with county.delivering():
                county.store("lab", result("1", ordered_by="乙镇卫生院"))
                await county.until(STATES, [("delivered", 1)])
                async with county.delivering():
                    county.store("lab", result("2", number="F2", ordered_by="乙镇卫生院"))
                    await county.until(STATES, [("delivered", 1)] * 2)
            assert len(his.received) == len(set(his.received)) == 2
            locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            await county.until(locks, [(0,)])

    run(story())


def test_an_outbox_row_that_is_met_twice_is_queued_once(database_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with His() as his:
            county = County(database_url, profiles_to(tmp_path, [to(his)]))
            county.store("lab", result("1", ordered_by="乙镇卫生院"))
            async with county.delivering():
                await county.until(STATES, [("delivered", 1)])
                # as after a restored backup, or a crash of a database that lied about its disk
                county.sql("UPDATE outbox SET published = NULL")
                await county.until("SELECT count(*) FROM outbox WHERE published IS NULL", [(0,)])
            assert county.sql(STATES) == [("delivered", 1)]
            assert len(his.received) == 1

    run(story())


def test_a_message_that_cannot_be_made_is_a_dead_letter_and_the_queue_goes_on(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapters.hl7v2 import writer

    real = writer.oru

    def oru(bundle: Any, letter: Any, *rest: Any) -> bytes:
        if any("王建国7" in str(e["resource"]) for e in bundle["entry"]):
            raise KeyError("王建国7")
        return real(bundle, letter, *rest)

    async def story() -> None:
        async with His() as his:
            county = County(database_url, profiles_to(tmp_path, [to(his)]))
            monkeypatch.setattr(writer, "oru", oru)
            county.store("lab", result("1", person=7, ordered_by="乙镇卫生院"))
            county.store("lab", result("2", person=2, number="F2", ordered_by="乙镇卫生院"))
            async with county.delivering():
                await county.until(STATES, [("dead", 0), ("delivered", 1)])
                (reason,) = county.sql("SELECT reason FROM delivery WHERE status = 'dead'")[0]
                assert reason.startswith("not-made: KeyError at oru") and "王建国" not in reason
                # mended: replay makes the message anew
                monkeypatch.setattr(writer, "oru", real)
                with psycopg.connect(database_url) as conn:
                    assert queue.replay(conn, queue.Selection(status="dead"), datetime.now(UTC)) == (1, 0)
                await county.until("SELECT count(*) FROM delivery WHERE status = 'delivered'", [(2,)])
            assert len(his.received) == 2

    run(story())


def test_the_pause_doubles_has_jitter_and_a_limit(tmp_path: Path) -> None:
    from fhir_server.publish.deliver import pause_before
    from mappings.facility import Retry

    retry = Retry(first_seconds=1, longest_seconds=60)
    for attempts, whole in ((1, 1), (2, 2), (5, 16), (7, 60), (500, 60)):
        found = {pause_before(retry, attempts) for _ in range(200)}
        assert whole / 2 <= min(found) < max(found) <= whole
    assert timedelta(seconds=pause_before(retry, 3)) < timedelta(seconds=4)
