"""A server that is killed while it notifies subscribers: no event is lost, its number stays, and the order holds."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from adapters.transports.mllp import Sender
from tests.journeys.installation import Installation
from tests.publish.his import County, profiles_to, result
from tests.publish.subscriber import GUIDE, TOPIC, Hook, eventually
from tests.seeds import seed_of

PATIENTS = 4


def draft(hook: Hook, name: str, topic: str, most: int) -> dict[str, Any]:
    """A Subscription that is told at /hook/<name>."""
    content = {"url": GUIDE + "backport-payload-content", "valueCode": "id-only"}
    return {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": "test",
        "criteria": TOPIC + topic,
        "channel": {
            "type": "rest-hook",
            "endpoint": f"{hook.url}/{name}",
            "payload": "application/fhir+json",
            "_payload": {"extension": [content]},
            "extension": [{"url": GUIDE + "backport-max-count", "valuePositiveInt": most}],
        },
    }


def events(hook: Hook, name: str, *, taken: bool = False) -> list[tuple[int, str]]:
    """(number, focus) of each event in the order it came, doubles too; ``taken``: only of what the endpoint answered with success."""
    told = [g for g in hook.of_type("event-notification") if g.path.endswith(name) and g.taken >= taken]
    found = [(int(e["event-number"]), e["focus"]["reference"]) for g in told for e in g.events]
    return [(number, focus.rpartition("/fhir/")[2]) for number, focus in found]


async def send(server: Installation, version: int) -> None:
    """The results of all patients in a version: the first is final, later ones are corrections."""
    async with Sender("127.0.0.1", server.mllp_port, local_address="127.0.5.1") as lab:
        for person in range(1, PATIENTS + 1):
            raw = result(
                f"m{person}-{version}", value=f"{person}.{version}", number=f"F{person}", placer=f"P{person}",
                person=person, status="F" if version == 1 else "C", sent=f"202603010800{version:02d}",
            )  # fmt: skip
            assert (await lab.send(raw)).code == "AA"


def test_sigkill_while_it_notifies_loses_no_event_and_keeps_numbers_and_order(
    database_url: str, tmp_path: Path
) -> None:
    rng = random.Random(seed_of("kill_notification"))
    hook = Hook()
    county = County(database_url, profiles_to(tmp_path / "profiles", []))
    server = Installation(
        tmp_path / "data", tmp_path / "profiles", database_url=database_url, mllp_host="127.0.0.1", workers=1,
        subscription_endpoints=hook.url,
    )  # fmt: skip

    def killed_over(version: int) -> None:
        """SIGKILL while the endpoint has a notification and has not answered it."""
        before = hook.waiting
        hook.answering.clear()
        asyncio.run(send(server, version))
        eventually(lambda: hook.waiting > before, server.tail, seconds=90)
        assert server.kill("server", rng)
        hook.answering.set()
        eventually(server.ready, server.tail, seconds=120)

    def all_told(logical: str, count: int) -> bool:
        """Every event of a subscription was made and taken."""
        return county.sql("SELECT events, sent FROM subscription WHERE id = %s", logical) == [(count, count)]

    try:
        server.start()
        server.keep_running()
        headers = {"Authorization": f"Bearer {server.token()}"}
        wanted = {"new": ("result-new", 1, PATIENTS), "corrected": ("result-corrected-or-voided", 3, 2 * PATIENTS)}
        ids = {}
        for name, (topic, most, _) in wanted.items():
            url = f"http://127.0.0.1:{server.port}/fhir/Subscription"
            answer = httpx.post(url, json=draft(hook, name, topic, most), headers=headers)
            assert answer.status_code == 201, answer.text
            ids[name] = answer.json()["id"]
        eventually(lambda: len(hook.of_type("handshake")) == 2, server.tail, seconds=90)
        hook.codes = [200, 503, 200, 0]
        asyncio.run(send(server, 1))
        eventually(lambda: len(events(hook, "new")) >= 2, server.tail, seconds=90)
        killed_over(2)
        asyncio.run(send(server, 3))
        for name, (_, _, count) in wanted.items():
            eventually(partial(all_told, ids[name], count), server.tail, seconds=120)
    finally:
        hook.answering.set()
        server.stop()
        hook.close()
    for name, (_, _, count) in wanted.items():
        got = events(hook, name)
        # Repeated perhaps, under its number and about the same report; none missing, also of those that were taken, and none before
        # an earlier one.
        assert len(set(got)) == len({number for number, _ in got}) == count
        for told in (got, events(hook, name, taken=True)):
            assert list(dict.fromkeys(number for number, _ in told)) == list(range(1, count + 1))
        made = county.sql(
            "SELECT number::int, 'DiagnosticReport/' || focus, version FROM subscription_event WHERE subscription = %s ORDER BY 1",
            ids[name],
        )
        assert sorted(set(got)) == [(number, focus) for number, focus, _ in made]
        for report in {focus for _, focus, _ in made}:
            versions = [version for _, focus, version in made if focus == report]
            assert versions == ([1] if name == "new" else [2, 3])
