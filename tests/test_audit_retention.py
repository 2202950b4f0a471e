"""How long the audit log is kept, and that removing what is old hides nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from fhir_server import audit_retention
from fhir_server.access import Principal
from fhir_server.audit_event import AuditLog, Break, verify
from fhir_server.audit_retention import Removed, prune

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
DOCTOR = Principal("dr-li", "clinician", "county", frozenset({"user/*.rs"}))
DAY = timedelta(days=1)


def run(url: str, work: Callable[[asyncpg.Connection], Awaitable[None]]) -> None:
    async def inside() -> None:
        connection = await asyncpg.connect(url)
        try:
            await work(connection)
        finally:
            await connection.close()

    asyncio.run(inside())


async def written(url: str, *ages: int) -> None:
    """One process that wrote entries of these ages (days)."""
    log = AuditLog(url)
    for age in ages:
        await log.record(DOCTOR, "R", "read", ["Observation"], ["p1"], at=NOW - age * DAY)
    await log.close()


async def ages(connection: asyncpg.Connection) -> list[int]:
    rows = await connection.fetch("SELECT at, entry FROM audit_entry WHERE entry LIKE '%dr-li%' ORDER BY at")
    return [(NOW - r["at"]).days for r in rows]


def test_what_is_older_is_removed_and_the_log_stays_whole(database_url: str) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        await written(database_url, 1200, 1100, 1000, 10)
        await written(database_url, 1150, 1140)
        await written(database_url, 5)
        assert await prune(connection, 1096, NOW, dry=True) == Removed(8, 2)  # with the anchors each chain begins with
        assert await ages(connection) == [1200, 1150, 1140, 1100, 1000, 10, 5]
        assert await prune(connection, 1096, NOW) == Removed(8, 2)
        assert await ages(connection) == [1000, 10, 5]
        assert await verify(connection) == []
        assert await prune(connection, 1096, NOW) == Removed(0, 0)
        # A year later, and when the first statement of a removal is itself removed.
        for later in (300, 365, 1500, 1501):
            await prune(connection, 1096, NOW + later * DAY)
            assert await verify(connection) == []
        assert await ages(connection) == []

    run(database_url, work)


def test_a_process_that_goes_on_writing_is_not_disturbed(database_url: str) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        log = AuditLog(database_url)
        for age in (1200, 1100, 3):
            await log.record(DOCTOR, "R", "read", ["Observation"], ["p1"], at=NOW - age * DAY)
        await prune(connection, 1096, NOW)
        await log.record(DOCTOR, "R", "read", ["Observation"], ["p1"], at=NOW)
        await log.close()
        assert await ages(connection) == [3, 0]
        assert await verify(connection) == []

    run(database_url, work)


def test_nothing_younger_than_six_months_is_removed(database_url: str) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        with pytest.raises(ValueError, match="183"):
            await prune(connection, 182, NOW)

    run(database_url, work)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("DELETE FROM audit_entry WHERE number = 5 AND chain = '{first}'", "missing"),
        ("DELETE FROM audit_entry WHERE number = 6 AND chain = '{first}'", "missing"),
        (
            "UPDATE audit_entry SET entry = replace(entry, 'dr-li', 'dr-wu') WHERE number = 6 AND chain = '{first}'",
            "changed",
        ),
        ("DELETE FROM audit_entry WHERE chain = '{first}'", "cut"),
        ("DELETE FROM audit_entry WHERE entry LIKE '%\"removed\"%'", "missing"),
    ],
)
def test_after_a_removal_what_was_changed_or_deleted_is_still_found(
    database_url: str, damage: str, reason: str
) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        await written(database_url, 1200, 1100, 1000, 10, 9)
        await written(database_url, 5, 4)
        await prune(connection, 1096, NOW)
        first = await connection.fetchval("SELECT min(chain) FROM audit_entry")
        await connection.execute(damage.format(first=first))
        assert {b.reason for b in await verify(connection)} == ({reason} if reason else set())

    run(database_url, work)


def test_a_removal_that_somebody_made_up_does_not_pass(database_url: str) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        await written(database_url, 30, 20)
        await written(database_url, 10)  # its anchor knows the head of the first chain
        last = await connection.fetchrow(
            "SELECT chain, number, hash FROM audit_entry ORDER BY chain, number DESC LIMIT 1"
        )
        assert last is not None
        # Entries of a month ago go, and an entry says they were older than three years.
        old = (NOW - 1096 * DAY).isoformat()
        forged = {"removed": [[last["chain"], last["number"], last["hash"].hex(), old]]}
        await connection.execute("DELETE FROM audit_entry WHERE chain = $1", last["chain"])
        await connection.execute(
            "INSERT INTO audit_entry VALUES ('20991231T000000-0', 1, $1, $2, 'x')",
            NOW,
            json.dumps(forged, separators=(",", ":")),
        )
        found = await verify(connection)
        assert Break("20991231T000000-0", 1, "changed") in found
        assert Break(last["chain"], last["number"], "removed too early") in found

    run(database_url, work)


def test_a_removal_of_what_was_younger_than_six_months_does_not_pass(database_url: str) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        await written(database_url, 400, 390)
        writer = audit_retention._Writer("20260301T080000-x", NOW - 30 * DAY, NOW)
        rows = await connection.fetch("SELECT number, at, entry, hash FROM audit_entry ORDER BY number")
        await writer.remove(connection, await connection.fetchval("SELECT min(chain) FROM audit_entry"), rows)
        assert {b.reason for b in await verify(connection)} == {"removed too early"}

    run(database_url, work)
