"""A report that was used through the doors of recognition is corrected or withdrawn: its users are told over a real socket."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from fhir_server.publish import outbox
from fhir_server.recognition import rules as rules_module
from fhir_server.services import Services
from mappings.facility import Destination, Retry
from mappings.profile import Profile, load_profiles
from tests.api.clinic import NOW, RENAL, play
from tests.publish import his
from tests.publish.his import His
from tests.recognition.county import County

HEAR = "SELECT status, count(*) FROM delivery GROUP BY 1"


def with_destination(facility: str, port: int) -> dict[str, Profile]:
    """The shipped profiles; results for one of them go to a port of this machine."""
    place = Destination(host="127.0.0.1", port=port, timeout=2, retry=Retry(first_seconds=0.05))
    known = dict(load_profiles())
    one = known[facility]
    return known | {facility: replace(one, facility=one.facility.model_copy(update={"destinations": [place]}))}


def sending_topics(url: str) -> list[str]:
    with psycopg.connect(url) as conn:
        return [row[0] for row in conn.execute("SELECT topic FROM delivery")]


@pytest.mark.parametrize(
    ("use", "status", "topic", "written"),
    [
        ("adopt", "entered-in-error", "result-voided", "W"),
        ("adopt", "corrected", "result-corrected", "C"),
        ("revoked", "entered-in-error", "result-voided", "W"),
        ("view", "entered-in-error", "result-voided", "W"),
        ("cite", "corrected", "result-corrected", "C"),
        ("decline", "entered-in-error", "result-voided", ""),
        ("reminder", "corrected", "result-corrected", ""),
        # Sent again as final, with something else in it.
        ("adopt", "final", "result-new", "F"),
        ("cite", "final", "result-new", "F"),
        ("view", "final", "result-new", ""),
        ("reminder", "final", "result-new", ""),
    ],
)
def test_who_adopted_opened_or_cited_a_report_is_told_and_nobody_else(
    use: str, status: str, topic: str, written: str, database_url: str, tmp_path: Path
) -> None:
    county = County(database_url, rules_module.load())
    here = county.patient("county-hospital", "1", "p-1", NOW - timedelta(days=60))
    there = county.patient("north-township", "2", "p-1", NOW - timedelta(days=60))
    day = NOW - timedelta(days=1)
    report = county.report("north-township", there, "r1", RENAL, day)

    async def doctor(client: httpx.AsyncClient, services: Services) -> None:
        order = {"patient": here, "user": "D001", "department": "NK", "orders": [{"id": "d1", "code": "SGN"}]}
        (found,) = (await client.post("/recognition/check", json=order)).json()["answers"]
        body: dict[str, Any] = {"reminder": found["id"], "user": "D001"}
        decided = "/recognition/decisions"
        if use in ("adopt", "revoked"):
            assert (await client.post(decided, json={**body, "action": "adopt"})).status_code == 201
        if use == "revoked":
            assert (await client.post(decided, json={**body, "action": "revoke"})).status_code == 201
        if use == "decline":
            told = {"by": "D001", "at": NOW.isoformat()}
            answer = await client.post(decided, json={**body, "action": "decline", "reason": "1", "told": told})
            assert answer.status_code == 201
        if use == "view":
            assert (await client.post("/recognition/views", json=body)).status_code < 300
        if use == "cite":
            assert (await client.post("/recognition/citations", json=body)).status_code == 201

    play(doctor, database_url, tmp_path)
    county.report("north-township", there, "r1", RENAL, day, recorded=NOW, issued=NOW, status=status)
    with psycopg.connect(database_url) as conn:
        (version,) = conn.execute("SELECT shard, version FROM resource WHERE id = %s", (report,)).fetchall()
        resource = f"DiagnosticReport/{report}/_history/{version[1]}"
        outbox.write(conn, [(version[0], topic, "north-township", there, resource)], NOW)

    async def story() -> None:
        async with His() as receiver:
            sending = his.County(database_url, with_destination("county-hospital", receiver.port))
            async with sending.delivering():
                await sending.until("SELECT count(*) FROM outbox WHERE published IS NULL", [(0,)])
                await sending.until(HEAR, [("delivered", 1)] if written else [])
            if not written:
                assert receiver.received == []
                return
            (message,) = receiver.received
            lines = [line.split("|") for line in message.decode().split("\r") if line]
            # the adopter's own number of the patient; every result of the report says what became of it
            assert next(f for f in lines if f[0] == "PID")[3].split("~")[0].split("^")[0] == "1"
            assert [f[11] for f in lines if f[0] == "OBX"] == [written] * len(RENAL)
            assert sending_topics(database_url) == ["result-voided" if written == "W" else "result-corrected"]
            assert [f[25] for f in lines if f[0] == "OBR"] == [{"W": "X"}.get(written, written)]

    asyncio.run(story())
