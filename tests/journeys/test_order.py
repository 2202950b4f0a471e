"""Order: two workers never overtake each other on one patient, and what messages say in the end does not depend on when they came."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mappings.profile import load_profiles
from tests.journeys import evidence
from tests.journeys.feeds import Line, write_profiles
from tests.journeys.installation import Installation
from tests.journeys.story import Event, Teller, stories
from tests.seeds import seed_of

EXAMPLES = int(os.environ.get("TONGJIAN_STORIES", "30"))
MESSAGES = int(os.environ.get("TONGJIAN_ORDER_MESSAGES", "50"))
"""Of each of the two senders that two workers serve."""


@pytest.fixture
def teller(database_url: str, tmp_path: Path) -> Iterator[Teller]:
    with psycopg.connect(database_url) as conn:
        yield Teller(conn, load_profiles(write_profiles(tmp_path / "profiles")))


@settings(
    max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stories, st.randoms(use_true_random=False))
def test_any_order_of_arrival_ends_in_the_same_state(teller: Teller, story: list[Event], rng: random.Random) -> None:
    expected = teller.tell([[event] for event in story])
    for _ in range(2):
        shuffled = rng.sample(story, len(story))
        cuts = sorted(rng.sample(range(1, len(story)), rng.randint(0, len(story) - 1)))
        batches = [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(story)], strict=True)]
        assert teller.tell(batches) == expected
    assert teller.tell([story, story[::-1]]) == expected, "told twice"


@pytest.mark.timeout(300 + MESSAGES)
def test_two_workers_keep_the_order_of_one_patient(tmp_path: Path) -> None:
    seed = seed_of("order")
    tmp_path.chmod(0o711)
    installation = Installation(tmp_path / "data", write_profiles(tmp_path / "profiles"), workers=2, claim_batch=2)
    lines = [Line("alpha", n, seed + n, patients=1) for n in range(2)]
    installation.start()
    try:
        installation.await_worker()

        async def everybody() -> None:
            await asyncio.gather(*(line.send(installation.mllp_port, MESSAGES) for line in lines))

        asyncio.run(everybody())
        installation.settle(120 + MESSAGES / 5)
        evidence.check(installation.sql, lines)
        started = {r["text"] for r in installation.log() if "worker_started" in str(r["text"])}
        assert len(started) == 2
    finally:
        installation.stop()
