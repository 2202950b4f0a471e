"""The audit log: durable, chained, and without patient data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import psycopg
import pytest

from fhir_server.access import Principal
from fhir_server.audit_event import AuditLog, Break, names_of, outcome_of, verify
from fhir_server.errors import Category, Fault

NOW = datetime(2026, 3, 1, 8, 0, 0, 123456, tzinfo=UTC)
DOCTOR = Principal("dr-li", "clinician", "county", frozenset({"user/*.rs"}))


def run(url: str, work: Callable[[AuditLog, asyncpg.Connection], Awaitable[None]]) -> None:
    async def inside() -> None:
        log = AuditLog(url)
        connection = await asyncpg.connect(url)
        try:
            await work(log, connection)
        finally:
            await log.close()
            await connection.close()

    asyncio.run(inside())


async def rows(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """The entries that are no anchors, in the order they were chained."""
    found = await connection.fetch("SELECT * FROM audit_entry ORDER BY chain, number")
    return [json.loads(r["entry"]) | {"at": r["at"]} for r in found if '"anchor"' not in r["entry"]]


async def read_one(log: AuditLog, number: int = 1, at: datetime = NOW) -> None:
    await log.record(DOCTOR, "R", "read", ["Observation"], [f"p{number}"], at=at, resource=f"Observation/o{number}")


def test_an_entry_is_in_the_database_when_record_returns(database_url: str) -> None:
    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        await log.record(
            DOCTOR,
            "E",
            "search-type",
            ["Observation"],
            ["p2", "p1", "p1"],
            query="subject=Patient/p1&code=http://loinc.org|2160-0&name:contains=%E7%8E%8B",
            at=NOW,
            address="10.0.0.7",
        )
        assert await rows(connection) == [
            {
                "action": "E",
                "address": "10.0.0.7",
                "at": NOW,
                "facility": "county",
                "interaction": "search-type",
                "outcome": "0",
                "patients": ["p1", "p2"],
                "query": "subject&code&name:contains",
                "resource": "",
                "role": "clinician",
                "subject": "dr-li",
                "types": ["Observation"],
            }
        ]
        assert await verify(connection) == []

    run(database_url, work)


def test_a_refused_access_without_a_principal_is_recorded(database_url: str) -> None:
    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        await log.record(None, "R", "authenticate", (), outcome="4", at=NOW)
        assert [(r["subject"], r["outcome"]) for r in await rows(connection)] == [("", "4")]

    run(database_url, work)


def test_entries_of_many_clients_at_once_are_all_kept_in_one_chain(database_url: str) -> None:
    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        await asyncio.gather(*(read_one(log, n) for n in range(1000)))
        assert sorted(r["resource"] for r in await rows(connection)) == sorted(f"Observation/o{n}" for n in range(1000))
        assert await connection.fetchval("SELECT count(DISTINCT chain) FROM audit_entry") == 1
        assert await verify(connection) == []

    run(database_url, work)


def test_a_client_that_goes_away_leaves_its_entry_and_hurts_nobody(database_url: str) -> None:
    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        await read_one(log, 0)
        leaving = [asyncio.create_task(read_one(log, n)) for n in range(1, 20)]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await read_one(log, 20)
        assert len(await rows(connection)) == 21
        assert await verify(connection) == []

    run(database_url, work)


def test_odd_text_from_a_client_does_not_stop_the_log(database_url: str) -> None:
    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        odd = Principal("\ud800\x00'\"", "clinician", "", frozenset())
        await log.record(odd, "R", "read\x00", ["\udfff"], ["x\x00"], at=NOW, query="\x00=1&a=\ud800&=b&&c")
        await read_one(log)
        assert len(await rows(connection)) == 2
        assert await verify(connection) == []

    run(database_url, work)


def test_several_processes_write_side_by_side(database_url: str) -> None:
    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        other = AuditLog(database_url)
        await asyncio.gather(*(read_one(log if n % 2 else other, n) for n in range(100)))
        await other.close()
        assert await connection.fetchval("SELECT count(DISTINCT chain) FROM audit_entry") == 2
        assert await verify(connection) == []

    run(database_url, work)


def test_nothing_is_recorded_after_close(database_url: str) -> None:
    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        waiting = asyncio.create_task(read_one(log))
        await asyncio.sleep(0)
        await log.close()
        await waiting
        with pytest.raises(Fault) as caught:
            await read_one(log, 2)
        assert caught.value.category is Category.UNAVAILABLE
        assert len(await rows(connection)) == 1

    run(database_url, work)


def test_without_a_database_record_fails_with_503() -> None:
    async def inside() -> None:
        log = AuditLog("postgresql://nobody:x@127.0.0.1:1/none")
        results = await asyncio.gather(*(read_one(log, n) for n in range(5)), return_exceptions=True)
        assert [r.category.status for r in results if isinstance(r, Fault)] == [503] * 5
        await log.close()

    asyncio.run(inside())


def test_the_log_recovers_with_a_new_chain_when_the_database_comes_back(database_url: str) -> None:
    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        await read_one(log, 1)
        await connection.execute("ALTER TABLE audit_entry RENAME TO gone")
        with pytest.raises(Fault):
            await read_one(log, 2)
        await connection.execute("ALTER TABLE gone RENAME TO audit_entry")
        await read_one(log, 3)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
        results = [r for n in (4, 5) for r in await asyncio.gather(read_one(log, n), return_exceptions=True)]
        assert results[-1] is None
        assert await connection.fetchval("SELECT count(DISTINCT chain) FROM audit_entry") in (2, 3)
        assert await verify(connection) == []

    run(database_url, work)


def broken(url: str, *statements: str) -> list[tuple[int, str]]:
    """Writes 5 entries and an anchor (number 1) in a first chain, anchors it from a second, changes it, and verifies."""
    found: list[Break] = []

    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        for n in range(5):
            await read_one(log, n)
        later = AuditLog(url)
        await read_one(later, 9, NOW + timedelta(hours=1))
        await later.close()
        first = await connection.fetchval("SELECT min(chain) FROM audit_entry")
        for statement in statements:
            await connection.execute(statement.replace("FIRST", f"chain = '{first}'"))
        found.extend(await verify(connection))
        assert {b.chain for b in found} <= {first}

    run(url, work)
    return [(b.number, b.reason) for b in found]


def test_an_untouched_log_is_whole(database_url: str) -> None:
    assert broken(database_url) == []


@pytest.mark.parametrize(
    "change",
    [
        "entry = replace(entry, 'dr-li', 'dr-wu')",
        "at = at + interval '1 second'",
        "hash = sha256('x')",
    ],
)
def test_a_changed_entry_is_found(database_url: str, change: str) -> None:
    assert (4, "changed") in broken(database_url, f"UPDATE audit_entry SET {change} WHERE FIRST AND number = 4")


def test_a_removed_entry_is_found(database_url: str) -> None:
    assert broken(database_url, "DELETE FROM audit_entry WHERE FIRST AND number = 3") == [(3, "missing")]


def test_a_removed_beginning_is_found(database_url: str) -> None:
    assert broken(database_url, "DELETE FROM audit_entry WHERE FIRST AND number = 1") == [(1, "missing")]


def test_a_cut_off_end_is_found_by_the_anchor_of_another_chain(database_url: str) -> None:
    assert broken(database_url, "DELETE FROM audit_entry WHERE FIRST AND number >= 5") == [(6, "cut")]


def test_a_removed_chain_is_found(database_url: str) -> None:
    assert broken(database_url, "DELETE FROM audit_entry WHERE FIRST") == [(6, "cut")]


def test_a_long_running_chain_anchors_again(database_url: str) -> None:
    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        await read_one(log, 1)
        other = AuditLog(database_url)
        await read_one(other, 2)
        await other.close()
        await read_one(log, 3, NOW + timedelta(minutes=9))
        assert await connection.fetchval("SELECT count(*) FROM audit_entry WHERE entry LIKE '{\"anchor\"%'") == 2
        await read_one(log, 4, NOW + timedelta(minutes=10))
        anchors = await connection.fetch(
            "SELECT entry FROM audit_entry WHERE entry LIKE '{\"anchor\"%' ORDER BY number DESC"
        )
        assert len(anchors) == 3
        assert json.loads(anchors[0]["entry"])["anchor"][0][1] == 2
        assert await verify(connection) == []

    run(database_url, work)


def test_verify_reads_in_pages(database_url: str) -> None:
    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        await asyncio.gather(*(read_one(log, n) for n in range(12_000)))
        assert await verify(connection) == []
        await connection.execute("UPDATE audit_entry SET entry = '{}' WHERE number = 10001")
        assert [(b.number, b.reason) for b in await verify(connection)] == [(10001, "changed")]

    run(database_url, work)


def test_another_client_of_the_database_sees_the_entry(database_url: str) -> None:
    async def work(log: AuditLog, connection: asyncpg.Connection) -> None:
        await read_one(log)
        with psycopg.connect(database_url) as other:
            found = other.execute("SELECT count(*) FROM audit_entry WHERE entry LIKE '%Observation/o1%'").fetchone()
        assert found == (1,)

    run(database_url, work)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ""),
        ("_id=1", "_id"),
        ("patient.name=王&_sort=-date", "patient.name&_sort"),
        ("王小明", "?"),
        ("%E7%8E%8B=1", "?"),
        ("_has:Observation:subject:code=x", "_has:Observation:subject:code"),
        ("a=1&a=2", "a&a"),
        ("x" * 81 + "=1", "?"),
    ],
)
def test_a_query_keeps_its_names_alone(query: str, names: str) -> None:
    assert names_of(query) == names
    assert names_of(names) == names


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "0"), (304, "0"), (403, "4"), (404, "4"), (500, "8"), (503, "8")]
)
def test_a_status_has_an_outcome(status: int, outcome: str) -> None:
    assert outcome_of(status) == outcome
