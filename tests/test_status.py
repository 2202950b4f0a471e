"""`tongjian status` says first what is wrong, in sentences; nothing when all is well."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from fhir_server import status
from fhir_server.cli import cli
from fhir_server.status import Held, Outbound, Pixels, Poll, Polled, Relay, Status, Worker

WELL = Status(
    waiting=3,
    oldest_seconds=1.0,
    lag_p50_seconds=0.1,
    lag_max_seconds=0.2,
    held=(),
    feeds=(),
    outbound=(Outbound("alpha", "his", "waiting", 2, 5.0),),
    pixels=(Pixels("alpha", "pacs", "waiting", 4),),
    archives=(Polled("alpha", "pacs", 30.0, ""),),
    polls=(Poll("alpha", "lis", 5.0, 5.0, True, "", None, 10, 10, 0),),
    relays=(Relay("alpha", "van", "r1", 60.0, 0, 7, 0, 100),),
    workers=(Worker("w", "1", 100.0, 1.0, True),),
    converted=1,
    stored=1,
    database_bytes=1,
    disk_free_bytes=50,
    disk_total_bytes=100,
    versions={},
)


def test_nothing_is_said_when_all_is_well() -> None:
    assert status.troubles(WELL) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": ()}, "No worker is alive"),
        ({"workers": (Worker("w", "1", 100.0, 99.0, False),)}, "No worker is alive"),
        ({"disk_free_bytes": 4}, "disk of the data folder is nearly full"),
        ({"access_due": True}, "classed by other rules of who may see what"),
        ({"oldest_seconds": 7200.0}, "A message has waited for 2.0 h"),
        ({"held": (Held("alpha", "no-patient", 4), Held("beta", "no-key", 1))}, "5 messages are on hold"),
        ({"outbound": (Outbound("alpha", "his", "dead", 2, 5.0),)}, "2 results were given up"),
        ({"pixels": (Pixels("alpha", "pacs", "dead", 4),)}, "4 images were given up"),
        ({"archives": (Polled("alpha", "pacs", 30.0, "refused"),)}, "archive pacs of alpha cannot be asked: refused"),
        (
            {"polls": (Poll("alpha", "lis", 5.0, 5.0, True, "password refused", 90.0, 10, 10, 0),)},
            "database lis of alpha is not read: password refused",
        ),
        (
            {"polls": (Poll("alpha", "lis", None, 600.0, False, "", None, 0, 0, 0),)},
            "database lis of alpha is not read: no poller for 10.0 min",
        ),
        ({"relays": (Relay("alpha", "van", "r1", 7200.0, 0, 7, 0, 1),)}, "relay van of alpha was last heard 2.0 h ago"),
        ({"relays": (Relay("alpha", "van", "r1", 60.0, 0, 7, 3, 1),)}, "relay van of alpha gave up 3 messages"),
    ],
)
def test_each_trouble_is_named_alone(change: dict[str, Any], words: str) -> None:
    found = replace(WELL, **change)
    (said,) = status.troubles(found)
    assert words in said
    assert json.loads(status.as_json(found))["troubles"] == [said]


def test_a_database_without_our_tables_is_told_from_one_that_is_away(postgres: str, monkeypatch: Any) -> None:
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute("CREATE DATABASE bare")
    monkeypatch.setenv("DATABASE_URL", postgres.rpartition("/")[0] + "/bare")
    bare = CliRunner().invoke(cli, ["status"])
    assert bare.exit_code == 1
    assert "tongjian migrate" in bare.stderr
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    away = CliRunner().invoke(cli, ["status"])
    assert away.exit_code == 1
    assert "Connection refused" in away.stderr
