"""A failed or lapsed EQA round that becomes known re-opens the answers that rested on it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fhir_server.recognition.decide import as_dict, decide
from fhir_server.recognition.ledger import Ledger, Row
from fhir_server.recognition.marks import Mark, Period, Register, Round
from fhir_server.recognition.order import single
from fhir_server.recognition.reopen import reopen
from fhir_server.recognition.rules import Rules, Standing
from fhir_server.store.database import open_pool

NOW = datetime(2025, 11, 21, 9, 0, tzinfo=UTC)
LATER = NOW + timedelta(days=3)
UREA = "L0016"


@pytest.fixture
def marked(rules: Rules) -> Rules:
    """A laboratory elsewhere with a national mark and a passed round; nobody is in a consortium."""
    register = Register(
        (Mark("wuhan", UREA, "national", Period("2025-01-01", "2025-12-31")),),
        (Round("wuhan", UREA, True, Period("2025-06-01", "2025-12-31")),),
    )
    return replace(rules, register=register, facilities={"county": Standing(region="330182")}, members={})


def _failed(rules: Rules, assessed: str) -> Rules:
    known = Round("wuhan", UREA, False, Period(assessed, "", NOW + timedelta(days=1)))
    return replace(rules, register=replace(rules.register, rounds=(*rules.register.rounds, known)))


def _reopened(url: str, folder: Path, row: Row, *rules: Rules) -> tuple[list[int], list[Any]]:
    async def scenario() -> tuple[list[int], list[Any]]:
        pool = await open_pool(url, 2)
        ledger = Ledger(pool, folder)
        await ledger.record(row)
        counts = [await reopen(pool, ledger, r, LATER) for r in rules]
        rows = await pool.fetch("SELECT card, entry FROM ledger WHERE kind = 'reopened'")
        await ledger.close()
        await pool.close()
        return counts, rows

    return asyncio.run(scenario())


@pytest.fixture
def given(marked: Rules, order: Any, result: Any) -> Row:
    candidate = result(UREA, facility="wuhan", performer="wuhan")
    asked = replace(order(), orderable=single(marked.items[UREA]), facility="county")
    decision = decide(asked, [candidate], marked, NOW)
    assert decision.outcome == "recognized"
    return Row("reminder", NOW, "county", {"card": "c-1", "decision": as_dict(decision, brief=True)}, "p-1", UREA)


def test_a_failed_round_recorded_later_reopens_once(
    database_url: str, tmp_path: Path, marked: Rules, given: Row
) -> None:
    after = _failed(marked, "2025-11-01")
    counts, rows = _reopened(database_url, tmp_path, given, marked, after, after)
    assert counts == [0, 1, 0]
    assert [r["card"] for r in rows] == ["c-1"]
    assert '"reason":"eqa-failed"' in rows[0]["entry"]


@pytest.mark.parametrize(
    ("rounds", "reopened"),
    [
        # The result is of 2025-11-20: a round of that very day counts, one of the day after does not.
        ([Round("wuhan", UREA, False, Period("2025-11-20", "", NOW + timedelta(days=1)))], 1),
        ([Round("wuhan", UREA, False, Period("2025-11-21", "", NOW + timedelta(days=1)))], 0),
        # Rows that do not say since when they are known.
        ([Round("wuhan", UREA, False, Period("2025-11-20"))], 1),
        ([Round("wuhan", UREA, False, Period("2025-11-21"))], 0),
        # The end of a round written anew: its last day still counts.
        ([Round("wuhan", UREA, True, Period("2025-06-02", "2025-11-19"))], 1),
        ([Round("wuhan", UREA, True, Period("2025-06-02", "2025-11-20"))], 0),
        # Failed, and passed again before the result.
        (
            [
                Round("wuhan", UREA, False, Period("2025-11-01")),
                Round("wuhan", UREA, True, Period("2025-11-20", "2026-11-19")),
            ],
            0,
        ),
    ],
)
def test_a_round_reopens_answers_about_results_from_its_day_whether_or_not_it_says_when_it_was_recorded(
    database_url: str, tmp_path: Path, marked: Rules, given: Row, rounds: list[Round], reopened: int
) -> None:
    known = (*marked.register.rounds, *rounds)
    after = replace(marked, register=replace(marked.register, rounds=known))
    assert _reopened(database_url, tmp_path, given, after)[0] == [reopened]


@pytest.mark.parametrize(("end", "reopened"), [("2025-11-19", 1), ("2025-11-20", 0)])
def test_a_mark_whose_end_is_written_anew_reopens_answers_about_later_results(
    database_url: str, tmp_path: Path, marked: Rules, given: Row, end: str, reopened: int
) -> None:
    mark = replace(marked.register.marks[0], period=Period("2025-01-01", end))
    after = replace(marked, register=replace(marked.register, marks=(mark,)))
    assert _reopened(database_url, tmp_path, given, after)[0] == [reopened]
