"""fhir_server.ingest.inbox.accept: what a group of arrivals becomes, also when copies of one message disagree."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import asyncpg
import pytest

from conformance.issue import Issue
from fhir_server.ingest import inbox
from fhir_server.ingest.group_commit import AWAY
from fhir_server.ingest.inbox import Accepted, Arrival

TOO_LARGE = Issue("too-large", "fatal", "", "The message is too large.")


def arrival(control_id: str = "1") -> Arrival:
    shard, keys = inbox.ordering_keys("alpha", control_id, ["P"])
    return Arrival(
        shard=shard,
        facility="alpha",
        channel="default",
        format="hl7v2",
        trigger="ORU^R01",
        control_id=control_id,
        sent_at=None,
        received_at=datetime(2026, 3, 1, 8, tzinfo=UTC),
        sha256=control_id.encode().rjust(32),
        size=1,
        charset="utf-8",
        lane=inbox.LIVE,
        keys=keys,
        status="ready",
        issues=(),
        raw=inbox.compress(b"x"),
    )


def refused(one: Arrival) -> Arrival:
    return replace(one, channel="narrow", status="failed", issues=(TOO_LARGE,))


def accept(url: str, *groups: Sequence[Arrival]) -> tuple[list[list[Accepted]], list[tuple[str, str]]]:
    """The answers to each group, and (status, channel) of the rows."""

    async def run() -> tuple[list[list[Accepted]], list[tuple[str, str]]]:
        conn = await asyncpg.connect(url)
        try:
            answers = [await inbox.accept(conn, group) for group in groups]
            return answers, [tuple(r) for r in await conn.fetch("SELECT status, channel FROM inbox ORDER BY id")]
        finally:
            await conn.close()

    return asyncio.run(run())


@pytest.mark.parametrize("first_is_refused", [True, False])
@pytest.mark.parametrize("in_one_group", [True, False])
def test_a_message_one_channel_refuses_and_another_takes_is_taken(
    database_url: str, first_is_refused: bool, in_one_group: bool
) -> None:
    good, bad = arrival(), refused(arrival())
    copies = [bad, good] if first_is_refused else [good, bad]
    answers, rows = accept(database_url, *([copies] if in_one_group else [[c] for c in copies]))
    assert rows == [("ready", "default")]
    assert len([a for group in answers for a in group]) == 2


def test_a_row_that_vanishes_while_its_copy_arrives_is_no_answer_and_no_crash(database_url: str) -> None:
    async def run() -> None:
        conn = await asyncpg.connect(database_url)
        try:
            await inbox.accept(conn, [refused(arrival())])
            # A second server has replaced the failure between the two statements of this one: nothing is inserted, nothing found.
            await conn.execute(
                "CREATE FUNCTION vanish() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM inbox; RETURN NULL; END $$;"
                "CREATE TRIGGER vanish AFTER INSERT ON inbox EXECUTE FUNCTION vanish()"
            )
            with pytest.raises(AWAY):
                await inbox.accept(conn, [arrival()])
        finally:
            await conn.close()

    asyncio.run(run())
