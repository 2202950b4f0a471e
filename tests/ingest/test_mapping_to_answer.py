"""From a code nobody has mapped to a recognition answer at order time: message, worklist, decision, replay, card."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psycopg

from adapters.convert import peek
from fhir_server.code_decisions import Decision, record
from fhir_server.ingest import inbox
from fhir_server.ingest.replay import Selection, replay, replay_decided
from fhir_server.ingest.worker import Worker
from fhir_server.services import Services
from mappings.assemble_patient import patient_id
from mappings.profile import Profile, load_profiles
from tests.api.clinic import NOW, SIGN, call, draft, play
from tests.ingest.test_worker import Rows, settled, sql

__all__ = ["sql"]

# 11010519491231002X is the example of GB 11643-1999.
_PID = "PID|1||{number}^^^{facility}^PI~11010519491231002X^^^^NI||王建国||19491231|F"
_REPORT = "\r".join(
    (
        "MSH|^~\\&|LIS|BLWSY|TJ|TJ|20251120093000||ORU^R01|{control}|P|2.5.1||||||UNICODE UTF-8",
        _PID.format(number="N2", facility="BLWSY"),
        "OBR|1||F77|SGN^肾功能|||20251120080000|||||||||||||||20251120092000|||F",
        "OBX|1|NM|Z901^Urea 新法||6.30|mmol/L|2.6-7.5||||F|||20251120080000|BLWSY",
        "OBX|2|NM|1202^肌酐||70|umol/L|41-73||||F|||20251120080000|BLWSY",
        "OBX|3|NM|1203^尿酸||300|umol/L|155-357||||F|||20251120080000|BLWSY",
        "",
    )
)
_VISIT = "\r".join(
    (
        "MSH|^~\\&|HIS|YXRMYY|TJ|TJ|20251120070000||ADT^A04|V1|P|2.5.1||||||UNICODE UTF-8",
        _PID.format(number="C1", facility="YXRMYY"),
        "",
    )
)


def _accept(url: str, profile: Profile, raw: bytes, at: datetime) -> None:
    """What the receiver does with a message (fhir_server.ingest.receive), at a given time."""
    envelope = peek(raw, profile)
    shard, keys = inbox.ordering_keys(profile.id, envelope.control_id, envelope.patient_keys)
    digest = hashlib.sha256(raw).digest()
    arrival = inbox.Arrival(
        shard, profile.id, "default", "hl7v2", envelope.trigger, envelope.control_id, envelope.sent_at, at, digest, len(raw),
        envelope.charset, inbox.LIVE, keys, "ready", (), inbox.compress(raw),
    )  # fmt: skip

    async def store() -> None:
        conn = await asyncpg.connect(url)
        try:
            await inbox.accept(conn, [arrival])
        finally:
            await conn.close()

    asyncio.run(store())


@contextlib.contextmanager
def _working(url: str, profiles: Any, at: datetime) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=Worker(url, profiles, stop, clock=lambda: at).run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def test_a_code_accepted_in_the_worklist_makes_a_stored_result_recognizable(
    database_url: str, tmp_path: Path, sql: Any
) -> None:
    profiles = load_profiles()
    arrived = NOW - timedelta(hours=3)
    _accept(database_url, profiles["county-hospital"], _VISIT.encode(), arrived)
    _accept(database_url, profiles["north-township"], _REPORT.format(control="R1").encode(), arrived)
    with _working(database_url, profiles, arrived):
        settled(sql)
    items = "SELECT code, item FROM result WHERE until IS NULL ORDER BY code"
    before: Rows = [("1202", "L0018"), ("1203", "L0020"), ("Z901", None)]
    assert sql(items) == before
    (key,) = peek(_VISIT.encode(), profiles["county-hospital"]).patient_keys
    _, patient = patient_id("county-hospital", key)

    answers: list[dict[str, Any]] = []

    async def ask(client: httpx.AsyncClient, services: Services) -> None:
        answer = await client.post(SIGN, json=call(patient, draft()))
        assert answer.status_code == 200
        answers.extend(answer.json()["cards"])

    play(ask, database_url, tmp_path)
    # Without the urea the panel is not whole: it informs, and asks for nothing.
    assert [card.get("suggestions", []) for card in answers] == [[]]

    decided = NOW - timedelta(hours=1)
    with psycopg.connect(database_url) as conn:
        assert record(conn, [Decision("north-township", "code", "Z901", "Urea 新法", "L0016")], "王检验", decided) == 1
    with psycopg.connect(database_url) as conn:
        assert replay_decided(conn, decided) == 1
    with _working(database_url, profiles, decided):
        settled(sql)
    assert sql(items) == [*before[:2], ("Z901", "L0016")]

    answers.clear()
    play(ask, database_url, tmp_path)
    (card,) = answers
    assert card["summary"] == "北岭镇卫生院 11月20日 肾功能(3项)在有效期内,可互认"
    assert card["suggestions"]


def test_results_of_a_feed_that_always_says_training_are_recognizable_once_its_profile_says_so_and_they_are_replayed(
    database_url: str, tmp_path: Path, sql: Any
) -> None:
    profiles = dict(load_profiles())
    arrived = NOW - timedelta(hours=3)
    mapped = _REPORT.replace("Z901^Urea 新法", "1201^尿素").replace("|P|2.5.1", "|T|2.5.1")
    _accept(database_url, profiles["county-hospital"], _VISIT.encode(), arrived)
    for control in ("R1", "R2"):  # the second is sent again with nothing new
        _accept(database_url, profiles["north-township"], mapped.format(control=control).encode(), arrived)
    with _working(database_url, profiles, arrived):
        settled(sql)
    status = "SELECT status, count(*) FROM result WHERE until IS NULL GROUP BY 1"
    assert sql(status) == [("test", 3)]
    one = profiles["north-township"]
    told = one.facility.model_copy(update={"processing_id": "ignored"})
    profiles["north-township"] = replace(one, facility=told, digest=f"{one.digest}-ignored")
    with psycopg.connect(database_url) as conn:
        assert replay(conn, Selection(facility="north-township", status="done")) == 2
    with _working(database_url, profiles, NOW - timedelta(hours=1)):
        settled(sql)
    assert sql(status) == [("final", 3)]
    (key,) = peek(_VISIT.encode(), profiles["county-hospital"]).patient_keys
    _, patient = patient_id("county-hospital", key)

    async def ask(client: httpx.AsyncClient, services: Services) -> None:
        (card,) = (await client.post(SIGN, json=call(patient, draft()))).json()["cards"]
        assert card["suggestions"]

    play(ask, database_url, tmp_path)
