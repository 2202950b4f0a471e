"""The ledger: durable before it answers, chained, spooled when the database is away, and never doubled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fhir_server.recognition.ledger import Ledger, Link, Row, first_break
from fhir_server.store.database import open_pool

NOW = datetime(2025, 11, 21, 9, 0, tzinfo=UTC)


def _row(number: int = 1, **changes: Any) -> Row:
    return replace(
        Row("reminder", NOW, "county", {"card": f"c{number}", "说明": "可互认"}, "p-1", "CBC", "recognized"), **changes
    )


def _stored(url: str) -> list[Link]:
    with psycopg.connect(url) as conn:
        rows = conn.execute(
            "SELECT chain, number, at, kind, person, facility, orderable, outcome, entry, hash FROM ledger ORDER BY chain, number"
        ).fetchall()
    return [Link(*r) for r in rows]


def _spooled(folder: Path) -> list[int]:
    return [p.read_bytes().count(b"\n") for p in folder.glob("*.jsonl")]


def _run(url: str, spool: Path, scenario: Callable[[Ledger], Awaitable[None]]) -> None:
    async def play() -> None:
        pool = await open_pool(url, 2)
        ledger = Ledger(pool, spool)
        try:
            await scenario(ledger)
        finally:
            await ledger.close()
            await pool.close()

    asyncio.run(play())


def test_a_row_is_in_the_table_when_record_returns(database_url: str, tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await ledger.record(_row())
        (link,) = _stored(database_url)
        assert (link.kind, link.person, link.orderable, link.outcome) == ("reminder", "p-1", "CBC", "recognized")
        assert link.entry == '{"card":"c1","说明":"可互认"}'

    _run(database_url, tmp_path, scenario)


def test_many_rows_at_once_make_one_whole_chain(database_url: str, tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await asyncio.gather(*(ledger.record(_row(n), _row(n, kind="no-answer", person=None)) for n in range(300)))

    _run(database_url, tmp_path, scenario)
    links = _stored(database_url)
    assert len(links) == 600
    assert len({link.chain for link in links}) == 1
    assert first_break(links) is None


@pytest.mark.parametrize(
    "change",
    [
        {"entry": "{}"},
        {"facility": "north"},
        {"outcome": None},
        {"at": datetime(2025, 1, 1, tzinfo=UTC)},
        {"hash": b"x" * 32},
    ],
)
def test_a_changed_row_shows(database_url: str, tmp_path: Path, change: dict[str, Any]) -> None:
    async def scenario(ledger: Ledger) -> None:
        await ledger.record(*(_row(n) for n in range(5)))

    _run(database_url, tmp_path, scenario)
    links = _stored(database_url)
    assert first_break([*links[:2], replace(links[2], **change), *links[3:]]) == 2


def test_a_missing_row_shows(database_url: str, tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await ledger.record(*(_row(n) for n in range(5)))

    _run(database_url, tmp_path, scenario)
    links = _stored(database_url)
    assert first_break([*links[:2], *links[3:]]) == 2


def test_rows_go_to_the_spool_while_the_database_refuses_and_follow_later(database_url: str, tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await ledger.record(_row(1))
        with psycopg.connect(database_url, autocommit=True) as conn:
            conn.execute("ALTER TABLE ledger RENAME TO ledger_away")
            await ledger.record(_row(2))
            await ledger.record(_row(3))
            assert _spooled(tmp_path) == [2]
            conn.execute("ALTER TABLE ledger_away RENAME TO ledger")
        await ledger.record(_row(4))

    _run(database_url, tmp_path, scenario)
    links = _stored(database_url)
    assert [link.entry[9:11] for link in links] == ["c1", "c2", "c3", "c4"]
    assert first_break(links) is None
    assert list(tmp_path.glob("*.jsonl")) == []


def test_a_database_that_does_not_answer_costs_a_moment_and_no_row_twice(database_url: str, tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await ledger.record(_row(1))
        with psycopg.connect(database_url) as lock:
            lock.execute("LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE")
            began = asyncio.get_running_loop().time()
            await ledger.record(_row(2))
            assert asyncio.get_running_loop().time() - began < 2
        await ledger.record(_row(3))

    _run(database_url, tmp_path, scenario)
    links = _stored(database_url)
    assert len(links) == 3
    assert first_break(links) is None


def test_the_spool_of_a_process_that_died_is_taken_over(database_url: str, tmp_path: Path) -> None:
    async def away(ledger: Ledger) -> None:
        with psycopg.connect(database_url, autocommit=True) as conn:
            conn.execute("ALTER TABLE ledger RENAME TO ledger_away")
        await ledger.record(_row(1), _row(2))

    _run(database_url, tmp_path, away)
    (left,) = tmp_path.glob("*.jsonl")
    with left.open("ab") as file:
        file.write(b'{"chain": "half a line')
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE ledger_away RENAME TO ledger")

    async def back(ledger: Ledger) -> None:
        await ledger.record(_row(3))

    _run(database_url, tmp_path, back)
    chains: dict[str, list[Link]] = {}
    for link in _stored(database_url):
        chains.setdefault(link.chain, []).append(link)
    assert sorted(len(links) for links in chains.values()) == [1, 2]
    assert all(first_break(links) is None for links in chains.values())
    assert list(tmp_path.glob("*.jsonl")) == []


def test_without_database_and_spool_it_says_so(database_url: str, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the spool folder should be")

    async def scenario(ledger: Ledger) -> None:
        with psycopg.connect(database_url, autocommit=True) as conn:
            conn.execute("ALTER TABLE ledger RENAME TO ledger_away")
            with pytest.raises(OSError, match="file"):
                await ledger.record(_row(1))
            conn.execute("ALTER TABLE ledger_away RENAME TO ledger")
        await ledger.record(_row(2))

    _run(database_url, blocked, scenario)
    assert [link.entry[9:11] for link in _stored(database_url)] == ["c2"]


def test_a_closed_ledger_takes_nothing(database_url: str, tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await ledger.record(_row())
        await ledger.close()
        with pytest.raises(OSError, match="closed"):
            await ledger.record(_row())

    _run(database_url, tmp_path, scenario)
