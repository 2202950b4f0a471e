"""/metrics, health and `tongjian status` of a running server, compared with what was sent."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fhir_server import telemetry
from fhir_server.ingest import sign_of_life
from fhir_server.ingest.sign_of_life import SignOfLife
from tests.edge.conftest import PROFILE, Serve, Served, eventually, exchange, oru


def send(served: Served, *messages: bytes) -> None:
    """Messages on one connection."""
    with socket.create_connection(("127.0.0.1", served.mllp_port), timeout=20) as line:
        for message in messages:
            exchange(line, message)


def samples(text: str) -> dict[str, float]:
    """Exposition text -> sample (name and labels) and value."""
    return {ln.rpartition(" ")[0]: float(ln.rpartition(" ")[2]) for ln in text.splitlines() if ln and ln[0] != "#"}


def status(served: Served, database: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`tongjian status` as an operator calls it."""
    command = [sys.executable, "-m", "fhir_server.cli", "status", "--data", str(served.data), *arguments]
    command += ["--profiles", str(served.data.parent / "profiles")]
    environment = {"PATH": "/usr/bin", "DATABASE_URL": database, "COLUMNS": "160", "LANG": "C.UTF-8"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_metrics_tell_what_was_received_converted_held_and_stored(serve: Serve, database_url: str) -> None:
    with serve() as served, served.client() as http:
        send(served, oru("C1"), oru("C2", patient="P2"), oru("C1"), oru("C3").replace(b"P1^^^ALPHA^PI", b""))
        send(served, oru("C4", facility="BETA"))
        converted = 'tongjian_messages_converted_total{channel="default",facility="alpha"}'

        def now() -> dict[str, float]:
            return samples(http.get("/metrics").text)

        assert eventually(lambda: now().get(converted) == 2, 30)
        found = now()
        feed = 'channel="default",facility="alpha"'
        assert found[f'tongjian_messages_received_total{{{feed},format="hl7v2"}}'] == 4
        assert found['tongjian_messages_acknowledged_total{channel="default",code="AA",facility="alpha"}'] == 4
        refused = 'tongjian_messages_refused_total{channel="unknown",facility="alpha",reason="unknown-facility"}'
        assert found[refused] == 1
        assert sum(v for k, v in found.items() if k.startswith(f"tongjian_messages_held_total{{{feed},")) == 1
        assert sum(v for k, v in found.items() if k.startswith("tongjian_held_messages{")) == 1
        assert found[f"tongjian_lag_seconds_count{{{feed}}}"] == 2
        with psycopg.connect(database_url) as conn:
            rows = dict(conn.execute("SELECT rtype, count(*) FROM resource WHERE rtype = 1 GROUP BY 1").fetchall())
            last = conn.execute(
                "SELECT extract(epoch FROM max(received_at))::float8 FROM inbox WHERE control_id IN ('C2', 'C3')"
            )
            newest = last.fetchone()
        assert (
            found['tongjian_resources_stored_total{channel="default",facility="alpha",type="Patient"}'] == rows[1] == 2
        )
        assert newest is not None
        assert found[f"tongjian_last_message_timestamp_seconds{{{feed}}}"] >= newest[0]
        assert found["tongjian_workers"] == 2
        assert found["tongjian_database_up"] == 1
        assert found["tongjian_database_bytes"] > 1e6
        assert found["tongjian_disk_free_bytes"] < found["tongjian_disk_total_bytes"]
        assert found['tongjian_pool_connections{pool="read",state="most"}'] == 10
        assert found['tongjian_request_seconds_count{interaction="metrics",status="200"}'] >= 1
        assert any(k.startswith('tongjian_build_info{postgresql="') for k in found)


def test_the_queue_shows_its_length_and_age_while_nobody_works(serve: Serve, database_url: str) -> None:
    with serve(workers=0) as served, served.client() as http:
        send(served, *(oru(f"C{n}", patient=f"P{n}") for n in range(5)))
        found = samples(http.get("/metrics").text)
        queue = '{channel="default",facility="alpha",lane="live"}'
        assert found[f"tongjian_queue_messages{queue}"] == 5
        assert 0 <= found[f"tongjian_queue_age_seconds{queue}"] < 60
        assert found["tongjian_workers"] == 0
        shown = json.loads(status(served, database_url, "--json").stdout)
        assert shown["waiting"] == 5
        assert shown["oldest_seconds"] > 0
        assert shown["workers"] == []


def test_metrics_need_a_token_of_an_operator(serve: Serve) -> None:
    with serve(workers=0) as served:
        with served.client(token=False) as nobody:
            assert nobody.get("/metrics").status_code == 401
            assert nobody.get("/health/live").json() == {"status": "up"}
            assert nobody.get("/health/ready").json() == {"status": "ready"}
        for role, expected in (
            ("clinician", 403),
            ("auditor", 403),
            ("integrator", 200),
            ("administrator", 200),
            ("system", 200),
        ):
            with served.client(role) as http:
                assert http.get("/metrics").status_code == expected, role


def test_decisions_are_counted_by_outcome(serve: Serve) -> None:
    with serve(workers=0) as served, served.client() as http:
        draft = {"resourceType": "ServiceRequest", "status": "draft", "intent": "order", "code": {"text": "x"}}
        bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": draft}]}
        context = {"userId": "Practitioner/1", "patientId": "nobody", "draftOrders": bundle}
        instance = "6f0c8c7e-0000-4000-8000-000000000001"
        body = {"hook": "order-sign", "hookInstance": instance, "context": context}
        assert http.post("/cds-services/recognition-order-sign", json=body).json() == {"cards": []}
        found = samples(http.get("/metrics").text)
        assert found['tongjian_decisions_total{facility="alpha",outcome="unknown-patient"}'] == 1


def test_status_names_each_feed_with_its_last_message_and_the_holds(serve: Serve, database_url: str) -> None:
    silent = PROFILE.replace("channels: [{addresses", "channels: [{name: old, addresses: [127.0.9.9/32]}, {addresses")
    with serve(silent) as served:
        send(served, oru("C1"), oru("C3").replace(b"P1^^^ALPHA^PI", b""))
        shown: dict[str, Any] = {}

        def complete() -> bool:
            shown.update(json.loads(status(served, database_url, "--json").stdout))
            feeds = {(f["facility"], f["channel"]): f["last_message"] for f in shown["feeds"]}
            started = len(shown["workers"]) == 2
            return (
                started
                and shown["converted"] == 1
                and feeds["alpha", "default"] is not None
                and feeds["alpha", "old"] is None
            )

        assert eventually(complete, 40)
        assert [(h["facility"], h["messages"]) for h in shown["held"]] == [("alpha", 1)]
        assert [w["alive"] for w in shown["workers"]] == [True, True]
        assert shown["lag_p50_seconds"] > 0
        assert shown["versions"].keys() == {"tongjian", "postgresql", "schema"}
        text = status(served, database_url).stdout
        assert re.search(r"alpha\W+old\W+never", text)
        assert shown["held"][0]["reason"] in text


def test_status_says_why_when_there_is_no_database(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fhir_server.cli", "status", "--data", str(tmp_path)]
    done = subprocess.run(command, env={"PATH": "/usr/bin"}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert list(tmp_path.iterdir()) == []


def totals(conn: psycopg.Connection[Any]) -> dict[str, float]:
    """Sum over all workers, gone ones included, of what this test counts."""
    found = sign_of_life.add(row[0] for row in conn.execute("SELECT counts FROM worker"))
    return {k: v for k, v in found.items() if '"sum-test"' in k and "converted" in k}


def test_the_sum_over_workers_neither_falls_nor_counts_twice(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = telemetry.CONVERTED.labels("sum-test", "default").inc
    with psycopg.connect(database_url, autocommit=True) as conn:
        worker = SignOfLife("w1", "1")
        worker.begin(conn)
        count(3)
        worker.give(conn)
        assert list(totals(conn).values()) == [3]
        # Taken for one that is gone, and then it comes back.
        conn.execute("UPDATE worker SET seen = seen - interval '2 hours' WHERE name = 'w1'")
        other = SignOfLife("w2", "1")
        monkeypatch.setattr(sign_of_life, "counts", dict)
        other.begin(conn)
        monkeypatch.undo()
        assert list(totals(conn).values()) == [3]
        count(4)
        worker.give(conn)
        assert list(totals(conn).values()) == [7]
        worker.end(conn)
        assert list(totals(conn).values()) == [7]
        assert conn.execute("SELECT name FROM worker ORDER BY name").fetchall() == [("retired",), ("w2",)]


def verify(data: Path, database: str) -> subprocess.CompletedProcess[str]:
    """`tongjian audit-log verify` as an operator calls it."""
    command = [sys.executable, "-m", "fhir_server.cli", "audit-log", "verify", "--data", str(data)]
    environment = {"PATH": "/usr/bin", "DATABASE_URL": database}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            "UPDATE audit_entry SET entry = replace(entry, 'search-type', 'read') WHERE number = 3",
            "audit chain .* entry 3: changed",
        ),
        ("DELETE FROM audit_entry WHERE number = 3", "audit chain .* entry 3: missing"),
        ("UPDATE ledger SET facility = 'beta' WHERE number = 1", "ledger chain .* entry 1: changed"),
        ("DELETE FROM ledger WHERE number = 1", "ledger chain .* entry 1: missing"),
    ],
)
def test_audit_log_verify_names_what_was_changed(serve: Serve, database_url: str, damage: str, words: str) -> None:
    with serve(workers=0) as served, served.client() as http:
        for _ in range(4):
            http.get("/fhir/Patient?identifier=x")
        bundle = {"resourceType": "Bundle", "type": "collection", "entry": []}
        context = {"userId": "Practitioner/1", "patientId": "nobody", "draftOrders": bundle}
        for number in range(2):
            instance = f"6f0c8c7e-0000-4000-8000-00000000000{number}"
            body = {"hook": "order-sign", "hookInstance": instance, "context": context}
            assert http.post("/cds-services/recognition-order-sign", json=body).status_code == 200
        data = served.data
    whole = verify(data, database_url)
    assert (whole.returncode, whole.stdout) == (0, "Every entry is as it was written.\n")
    with psycopg.connect(database_url) as conn:
        assert conn.execute(damage).rowcount == 1
    broken = verify(data, database_url)
    assert broken.returncode == 1
    assert re.search(words, broken.stdout)
