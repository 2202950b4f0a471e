"""fhir_server.ingest.worker, pipeline and replay: from socket to stored resources, with workers that live, die and wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from conformance.capability import RESOURCE_TYPES
from fhir_server.ingest import inbox, pipeline
from fhir_server.ingest.claim import MAX_ATTEMPTS
from fhir_server.ingest.replay import Selection, replay
from fhir_server.ingest.worker import Worker
from mappings.profile import Profile, load_profiles

Rows = list[tuple[Any, ...]]


@pytest.fixture
def sql(database_url: str) -> Iterator[Callable[..., Rows]]:
    """Runs one statement; gives its rows."""
    with psycopg.connect(database_url, autocommit=True) as conn:

        def run(statement: str, *values: object) -> Rows:
            cursor = conn.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

        yield run


@contextlib.contextmanager
def working(url: str, profiles: Mapping[str, Profile], count: int = 1, **options: Any) -> Iterator[None]:
    """Workers in threads, stopped at the end."""
    stop = threading.Event()
    threads = [threading.Thread(target=Worker(url, profiles, stop, **options).run) for _ in range(count)]
    for t in threads:
        t.start()
    try:
        yield
    finally:
        stop.set()
        for t in threads:
            t.join(20)
    assert not any(t.is_alive() for t in threads)


def until(sql: Callable[..., Rows], statement: str, expected: Rows, seconds: float = 30) -> None:
    """Waits until a query gives what is expected."""
    end = time.monotonic() + seconds
    while (found := sql(statement)) != expected:
        assert time.monotonic() < end, found
        time.sleep(0.05)


def settled(sql: Callable[..., Rows], seconds: float = 60) -> None:
    until(sql, "SELECT count(*) FROM inbox WHERE status IN ('ready', 'claimed')", [(0,)], seconds)


def send(serve: Any, messages: Sequence[bytes], facility: str = "alpha", codes: str = "AA") -> None:
    async def story() -> None:
        async with serve() as server, server.sender(facility) as sender:
            for raw in messages:
                assert (await sender.send(raw)).code == codes

    asyncio.run(story())


def test_a_result_becomes_resources_with_their_origin(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    send(serve, [oru("M1", values=("5.6", "6.30"))])
    with working(database_url, profiles):
        settled(sql)
    assert sql("SELECT status, reason, attempts, claimed_by, lease_until, converted_at IS NOT NULL FROM inbox") == [
        ("done", None, 0, None, None, True)
    ]
    (number, mapping), *_ = sql("SELECT id, mapping FROM inbox")
    assert sql("SELECT DISTINCT inbox, mapping FROM resource") == [(number, mapping)]
    assert sql("SELECT label FROM mapping_version WHERE id = %s", mapping) == [("alpha",)]
    assert sql("SELECT code, number, status, facility, backfill FROM result ORDER BY code") == [
        ("T1", 5.6, "final", "alpha", False),
        ("T2", 6.3, "final", "alpha", False),
    ] or sql("SELECT code, number::text FROM result ORDER BY code") == [("T1", "5.6"), ("T2", "6.30")]
    assert sql("SELECT topic, facility FROM outbox") == [("result-new", "alpha")]
    assert sql("SELECT facility, kind, code, count FROM unmapped ORDER BY kind, code") == [
        ("alpha", "code", "T1", 1),
        ("alpha", "code", "T2", 1),
        ("alpha", "order", "BIO", 1),
    ]
    assert sql(
        "SELECT s.person = s.patient, l.basis FROM source_patient s JOIN identity_link l USING (shard, patient)"
    ) == [(True, "alone")]


def test_the_same_patient_at_two_facilities_is_one_person(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    number = "130929196205170018"
    from mappings.resident_id import check_character

    number = number[:17] + check_character(number[:17])
    send(serve, [oru("M1", number=number)])
    send(serve, [oru("M2", "777", facility="GAMMA", number=number)], "gamma")
    send(serve, [oru("M3", "778", facility="GAMMA", number=number, name="王建华")], "gamma")
    with working(database_url, profiles, 2, batch=1):
        settled(sql)
    assert sql("SELECT count(*), count(DISTINCT person) FROM source_patient") == [(3, 2)]
    assert sql("SELECT DISTINCT reason FROM identity_review") == [("name-differs",)]


def test_a_content_fault_holds_the_message_alone_and_replay_takes_it_up_when_mended(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any, tmp_path: Path
) -> None:
    # gamma declares no character set and sends Latin-1: nobody can say what the bytes mean.
    bad = oru("BAD", facility="GAMMA", name="X").replace(b"|X|", b"|M\xffller|")
    send(serve, [oru("G1", facility="GAMMA"), bad, oru("G2", facility="GAMMA")], "gamma")
    with working(database_url, profiles):
        settled(sql)
        assert sql("SELECT control_id, status, reason, issues->0->>'where' FROM inbox WHERE status <> 'done'") == [
            ("BAD", "held", "charset-unknown", "MSH[1]-18")
        ]
    for name, profile in profiles.items():
        if name != "generic":
            text = profile.facility.model_dump_json()
            (tmp_path / f"{name}.yaml").write_text(
                text.replace('"charset":""', '"charset":"iso8859-1"'), encoding="utf-8"
            )
    mended = load_profiles(tmp_path)
    with psycopg.connect(database_url) as conn:
        assert replay(conn, Selection(facility="alpha")) == 0
        assert replay(conn, Selection(reason="bad-date")) == 0
        assert replay(conn, Selection(facility="gamma", reason="charset-unknown")) == 1
    with working(database_url, mended):
        settled(sql)
    assert sql("SELECT DISTINCT status FROM inbox") == [("done",)]


def test_one_bad_message_of_a_batch_is_held_and_the_others_are_stored(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    genuine_apply, genuine_convert = pipeline.repository.apply, pipeline.convert

    def apply(conn: Any, codec: Any, batches: Any) -> Any:
        for _, entries in batches:
            if any("R-STORE" in str(e.business) for e in entries):
                conn.execute("SELECT 1 / 0")
        return genuine_apply(conn, codec, batches)

    def convert(raw: bytes, profile: Profile, format: str, received_at: str) -> Any:
        if b"R-BUG" in raw:
            raise KeyError("王建国")
        return genuine_convert(raw, profile, format, received_at)

    monkeypatch.setattr(pipeline.repository, "apply", apply)
    monkeypatch.setattr(pipeline, "convert", convert)
    messages = [oru(f"M{n}", f"p{n}") for n in range(8)]
    messages[3] = oru("M3", "p3", report="R-STORE")
    messages[5] = oru("M5", "p5", report="R-BUG")
    send(serve, messages)
    with working(database_url, profiles):
        settled(sql)
    assert sql("SELECT control_id, reason FROM inbox WHERE status = 'held' ORDER BY 1") == [
        ("M3", "store-refused"),
        ("M5", "conversion-failed"),
    ]
    assert sql("SELECT count(*) FROM inbox WHERE status = 'done'") == [(6,)]
    texts = [
        t for (t,) in sql("SELECT i->>'text' FROM inbox, jsonb_array_elements(issues) i WHERE i->>'severity' = 'fatal'")
    ]
    assert any("DivisionByZero 22012" in t for t in texts)
    assert not any("王建国" in t for t in texts)
    monkeypatch.undo()
    with psycopg.connect(database_url) as conn:
        assert replay(conn, Selection()) == 2
    with working(database_url, profiles):
        settled(sql)
    assert sql("SELECT DISTINCT status FROM inbox") == [("done",)]


def test_replaying_everything_changes_nothing(serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any) -> None:
    messages = [
        oru(f"M{n}", f"p{n % 3}", report=f"R{n % 4}{n % 3}", values=(f"{n}.0",), sent=f"202603010800{n:02d}")
        for n in range(20)
    ]
    send(serve, messages)
    with working(database_url, profiles, 2, batch=3):
        settled(sql)
        state = "SELECT rtype, id, version, top, content FROM resource ORDER BY 1, 2"
        before = sql(state), sql("SELECT count(*) FROM resource_history"), sql("SELECT count(*) FROM identity_link")
        with psycopg.connect(database_url) as conn:
            assert replay(conn, Selection(status="done")) == 20
        settled(sql)
    assert (
        sql(state),
        sql("SELECT count(*) FROM resource_history"),
        sql("SELECT count(*) FROM identity_link"),
    ) == before


def test_refused_bytes_cannot_be_replayed(database_url: str) -> None:
    with psycopg.connect(database_url) as conn, pytest.raises(ValueError, match="held, done"):
        replay(conn, Selection(status="failed"))


def test_a_quality_control_run_stores_nothing(serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any) -> None:
    raw = b"\r".join(line for line in oru("Q").split(b"\r") if line[:3] != b"PID")
    send(serve, [raw, oru("M1")])
    with working(database_url, profiles):
        settled(sql)
    assert sql("SELECT control_id, status FROM inbox ORDER BY id") == [("Q", "quality-control"), ("M1", "done")]
    assert sql("SELECT count(*) FROM result") == [(1,)]


def test_the_backfill_lane_tells_nobody_and_is_marked(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    send(serve, [oru("M1")], "127.0.3.9")
    with working(database_url, profiles):
        settled(sql)
    assert sql("SELECT backfill, recorded > now() - interval '1 minute' FROM result") == [(True, True)]
    assert sql("SELECT count(*) FROM outbox") == [(0,)]


def test_a_message_is_converted_at_once_when_it_arrives(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    async def story() -> float:
        async with serve() as server, server.sender() as sender:
            await sender.send(oru("M0"))
            await asyncio.to_thread(settled, sql)
            start = time.monotonic()
            assert (await sender.send(oru("M1", accept="AL", application_ack="AL"))).code == "CA"
            answer = await sender.receive(10)
            assert (answer.code, answer.control_id) == ("AA", "M1")
            return time.monotonic() - start

    with working(database_url, profiles):
        assert asyncio.run(story()) < 0.9  # the poll of an idle worker is a second


WORK = """
import sys
from pathlib import Path
from fhir_server.ingest import worker
from mappings.profile import load_profiles
worker.run(sys.argv[1], load_profiles(Path(sys.argv[2])), batch=5, lease=1.0)
"""


@pytest.fixture
def worker_process(
    database_url: str, profiles: Any, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts worker processes of their own; those that live at the end are killed."""
    for name, profile in profiles.items():
        if name != "generic":
            (tmp_path / f"{name}.yaml").write_text(profile.facility.model_dump_json(), encoding="utf-8")
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str = WORK) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program, database_url, str(tmp_path)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_sigterm_finishes_the_batch_and_prints_nothing(
    serve: Any, oru: Any, sql: Any, worker_process: Callable[..., subprocess.Popen[bytes]]
) -> None:
    send(serve, [oru(f"M{n}", f"p{n}", values=("1",) * 20) for n in range(60)])
    process = worker_process()
    until(sql, "SELECT count(*) > 0 FROM inbox WHERE status = 'done'", [(True,)])
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == b""
    assert sql("SELECT count(*) FROM inbox WHERE status = 'claimed'") == [(0,)]
    assert "王建国" not in err.decode()


def test_killed_workers_lose_nothing_double_nothing_and_keep_the_order(
    serve: Any, oru: Any, sql: Any, worker_process: Callable[..., subprocess.Popen[bytes]]
) -> None:
    messages = []
    for n in range(120):
        patient = n % 6
        messages.append(
            oru(
                f"M{n:03d}",
                f"p{patient}",
                report=f"R{patient}",
                values=(f"{n}.5", "1"),
                sent=f"2026030108{n // 60:02d}{n % 60:02d}",
            )
        )
    send(serve, messages)
    workers = [worker_process() for _ in range(2)]
    kills = 0
    deadline = time.monotonic() + 240
    while sql("SELECT count(*) FROM inbox WHERE status IN ('ready', 'claimed')") != [(0,)]:
        assert time.monotonic() < deadline, sql("SELECT status, count(*), max(attempts) FROM inbox GROUP BY 1")
        time.sleep(0.25)
        workers = [w if w.poll() is None else worker_process() for w in workers]
        if kills < 6 and sql("SELECT count(*) > 0 FROM inbox WHERE status = 'claimed'") == [(True,)]:
            victim = kills % 2
            os.kill(workers[victim].pid, signal.SIGKILL)
            workers[victim].wait()
            workers[victim] = worker_process()
            kills += 1
    assert kills
    assert sql("SELECT status, count(*) FROM inbox GROUP BY 1") == [("done", 120)]
    # Every correction is one version of its Observation, and none arrived late.
    versions = "SELECT version, top, count(*) FROM resource WHERE rtype = %s GROUP BY 1, 2 ORDER BY 1"
    assert sql(versions, RESOURCE_TYPES["Observation"]) == [(20, 20, 12)]
    assert sql("SELECT count(*) FROM resource_history WHERE stale") == [(0,)]
    values = sql("SELECT patient, number FROM result WHERE code = 'T1' ORDER BY patient, version")
    for patient in {p for p, _ in values}:
        mine = [v for p, v in values if p == patient]
        assert mine == sorted(mine)


def test_a_message_that_kills_its_worker_is_held_and_the_rest_goes_on(
    serve: Any, oru: Any, sql: Any, worker_process: Callable[..., subprocess.Popen[bytes]]
) -> None:
    deadly = WORK.replace(
        "worker.run(",
        "import os, signal\n"
        "from fhir_server.ingest import pipeline\n"
        "genuine = pipeline.convert\n"
        "def convert(raw, profile, format, received_at):\n"
        "    if b'DEADLY' in raw: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return genuine(raw, profile, format, received_at)\n"
        "pipeline.convert = convert\n"
        "worker.run(",
    )
    send(serve, [oru(f"M{n}", f"p{n}", report="DEADLY" if n == 2 else f"R{n}") for n in range(12)])
    deadline = time.monotonic() + 240
    process = worker_process(deadly)
    while sql("SELECT count(*) FROM inbox WHERE status IN ('ready', 'claimed')") != [(0,)]:
        assert time.monotonic() < deadline
        if process.poll() is not None:
            # Two deaths later it is enough.
            sql(f"UPDATE inbox SET attempts = greatest(attempts, {MAX_ATTEMPTS - 2}) WHERE attempts > 0 RETURNING id")
            process = worker_process(deadly)
        time.sleep(0.1)
    assert sql("SELECT control_id, reason FROM inbox WHERE status = 'held'") == [("M2", "conversion-crashed")]
    assert sql("SELECT count(*) FROM inbox WHERE status = 'done'") == [(11,)]


def test_a_long_conversion_keeps_its_lease(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = pipeline.convert
    calls = []

    def slow(raw: bytes, profile: Profile, format: str, received_at: str) -> Any:
        calls.append(1)
        time.sleep(2.5)
        return genuine(raw, profile, format, received_at)

    monkeypatch.setattr(pipeline, "convert", slow)
    send(serve, [oru("M1")])
    with working(database_url, profiles, 2, lease=1.0):
        settled(sql)
    assert len(calls) == 1


def test_workers_wait_for_the_database_and_go_on(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    send(serve, [oru(f"M{n}", f"p{n}") for n in range(30)])
    with working(database_url, profiles, 2, batch=3):
        for _ in range(6):
            time.sleep(0.3)
            sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'tongjian-worker' AND datname = current_database()"
            )
        settled(sql)
    assert sql("SELECT status, count(*), max(attempts) FROM inbox GROUP BY 1") == [("done", 30, 0)]


def test_no_log_line_carries_patient_data(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    send(serve, [oru("M1", "PATIENT-NUMBER", number="130929196205170018", report="REPORT")])
    with working(database_url, profiles):
        settled(sql)
    for secret in ("王建国", "PATIENT-NUMBER", "130929196205170018"):
        assert secret not in caplog.text


def test_messages_of_a_facility_without_a_profile_wait_for_it(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    send(serve, [oru("M1", facility="GAMMA")], "gamma")
    with working(database_url, {"alpha": profiles["alpha"]}):
        settled(sql)
    assert sql("SELECT status, reason FROM inbox") == [("held", "no-profile")]
    assert inbox.LIVE == 0


def test_a_mended_mapping_takes_the_place_of_the_old_one_whatever_its_content(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any, tmp_path: Path
) -> None:
    send(serve, [oru(f"M{n}", f"p{n}") for n in range(12)])
    with working(database_url, profiles):
        settled(sql)
    for name, profile in profiles.items():
        if name != "generic":
            text = profile.facility.model_dump_json()
            (tmp_path / f"{name}.yaml").write_text(text.replace('"flags":{}', '"flags":{"N":"L"}'), encoding="utf-8")
    with psycopg.connect(database_url) as conn:
        assert replay(conn, Selection(status="done")) == 12
    with working(database_url, load_profiles(tmp_path)):
        settled(sql)
    assert sql("SELECT DISTINCT mapping FROM inbox") == sql("SELECT max(id) FROM mapping_version")
    assert sql("SELECT flag, count(*) FROM result WHERE until IS NULL GROUP BY 1") == [("L", 12)]


def test_a_merge_message_joins_two_patients_of_a_facility(
    serve: Any, oru: Any, database_url: str, profiles: Any, sql: Any
) -> None:
    merge = (
        b"MSH|^~\\&|HIS|ALPHA|TJ|TJ|20260301090000||ADT^A40^ADT_A39|A40|P|2.5.1\rEVN||20260301090000\r"
        b"PID|1||NEW^^^ALPHA^PI||X\rMRG|OLD^^^ALPHA^PI\r"
    )
    send(serve, [oru("M1", "OLD", name="甲"), oru("M2", "NEW", name="乙"), merge, oru("M3", "OLD", name="甲")])
    with working(database_url, profiles, 2, batch=1):
        settled(sql)
    assert sql("SELECT status, count(*) FROM inbox GROUP BY 1") == [("done", 4)]
    assert sql("SELECT cardinality(keys) FROM inbox WHERE control_id = 'A40'") == [(2,)]
    assert sql("SELECT count(*), count(DISTINCT person) FROM source_patient") == [(2, 1)]
    assert sql("SELECT count(DISTINCT patient) FROM result") == [(2,)]
    assert sql("SELECT basis FROM identity_link WHERE until IS NULL AND basis <> 'alone'") == [("merge",)]
    assert sql("SELECT topic, count(*) FROM outbox GROUP BY 1 ORDER BY 1") == [("patient-merged", 1), ("result-new", 3)]
