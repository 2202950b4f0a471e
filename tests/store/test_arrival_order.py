"""The example county's messages in any order of arrival: corrections, cancellations, a late preliminary, a wrong patient."""

from __future__ import annotations

import random
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from adapters.convert import convert
from conformance.fhirjson import loads
from fhir_server.demo import run, story
from fhir_server.store import repository
from fhir_server.store.body import Codec
from fhir_server.store.change import Change
from mappings.model import Entry
from mappings.profile import load_profiles
from tests.store import county


def test_converted_messages_end_in_the_same_state_in_any_order(
    conn: psycopg.Connection[Any], codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = 5
    print("seed", seed)  # noqa: T201
    monkeypatch.setattr(story, "PEOPLE", 30)
    profiles = load_profiles()
    now = datetime(2026, 11, 20, 10, tzinfo=ZoneInfo("Asia/Shanghai"))
    told = story.tell(run.example_panels(profiles), now, seed)
    sent = next(o for o in told.history if o.dialect is story.SOUTH)
    messages = [convert(m, profiles[sent.dialect.facility]).entries for m in sent.messages]
    rng = random.Random(seed)
    first: tuple[Any, ...] | None = None
    for order in (messages, messages[::-1], rng.sample(messages, len(messages))):
        for table in ("resource", "resource_history", "search_value", "business_key"):
            conn.execute(f"DELETE FROM {table}")
        changes: list[Change] = []
        for start in range(0, len(order), 7):
            changes += _apply(conn, codec, order[start : start + 7], start)
        assert any(c.voided for c in changes), "the story has a report for the wrong patient"
        found = _state(conn, codec)
        first = first or found
        assert found == first
        assert _apply(conn, codec, order, 0) == [], "everything once more changes nothing"
        assert _state(conn, codec) == first


def _apply(conn: psycopg.Connection[Any], codec: Codec, messages: list[list[Entry]], inbox: int) -> list[Change]:
    batches = [(county.origin(inbox + n, facility="south-township"), entries) for n, entries in enumerate(messages)]
    return repository.apply(conn, codec, batches)


def _state(conn: psycopg.Connection[Any], codec: Codec) -> tuple[Any, ...]:
    resources = {}
    rows = conn.execute('SELECT rtype, id, patient, "order", dict, body FROM resource')
    for rtype, logical, patient, order, dictionary, body in rows:
        resource = loads(codec.decompress(dictionary, bytes(body), (logical, patient, order)))
        resource.pop("meta")
        resources[rtype, logical] = resource
    results = conn.execute(
        "SELECT shard, id, patient, report, performer, item, code, number, value_text, unit, status, effective, issued, specimen"
        " FROM result WHERE until IS NULL ORDER BY shard, id"
    ).fetchall()
    return resources, results
