"""fhir_server.relay: a queue on a disk that fails gives what is whole, says what is not, and goes on."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fhir_server.relay import queue
from fhir_server.relay.queue import FILE, Queue

SEED = 20261122
AT = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
PAGE = 4096


def message(number: int) -> bytes:
    return b"MSH|%d|" % number + random.Random(SEED + number).randbytes(3000)


async def filled(folder: Path, count: int, first: int = 1) -> str:
    """Puts messages in; gives the id of the queue."""
    made = Queue(folder, most_bytes=2**24, keep_free=0)
    for number in range(first, first + count):
        assert await made.put(message(number), "mllp", "hl7v2", AT) == number
    name = await made.id()
    await made.close()
    return name


async def found(folder: Path) -> tuple[list[tuple[int, bytes]], str]:
    """Numbers and bytes of what waits, and the id."""
    opened = Queue(folder, most_bytes=2**24, keep_free=0)
    try:
        waiting = await opened.next(1000, 2**30)
        return [(m.seq, m.raw) for m in waiting], await opened.id()
    finally:
        await opened.close()


def spoil(folder: Path, *pages: int) -> None:
    with (folder / FILE).open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(b"\xa5" * PAGE)


def state(folder: Path) -> dict[str, str]:
    with queue.looked_into(folder) as db:
        return queue.state(db)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_whole_in_a_damaged_queue_file_is_saved_under_its_number(tmp_path: Path, seed: int) -> None:
    name = asyncio.run(filled(tmp_path, 40))
    pages = (tmp_path / FILE).stat().st_size // PAGE
    dice = random.Random(SEED + seed)
    spoil(tmp_path, *dice.sample(range(2, pages + 1), 3))
    saved, again = asyncio.run(found(tmp_path))
    assert all(raw == message(number) for number, raw in saved)
    assert [number for number, _ in saved] == sorted({number for number, _ in saved})
    told = state(tmp_path).get("damage", "")
    with queue.looked_into(tmp_path) as db:
        given_up = [row[0] for row in queue.dead(db)]
    # Either its pages hang together and single messages are given up by number, or a new file was made and the old one kept.
    if told:
        assert f"{len(saved)} messages were saved" in told
        assert len(list(tmp_path.glob("relay-damaged-*.sqlite"))) == 1
    else:
        assert sorted([*given_up, *(number for number, _ in saved)]) == list(range(1, 41))
    assert again == name or told
    assert asyncio.run(found(tmp_path))[0] == saved


def test_no_number_is_used_again_after_a_damaged_page(tmp_path: Path) -> None:
    asyncio.run(filled(tmp_path, 40))
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'message_dead'").fetchone()
    spoil(tmp_path, root)
    asyncio.run(filled(tmp_path, 1, 41))
    assert "40 messages were saved" in state(tmp_path)["damage"]
    assert [number for number, _ in asyncio.run(found(tmp_path))[0]] == list(range(1, 42))


def test_a_file_that_is_no_queue_any_more_is_put_aside_and_the_relay_starts(tmp_path: Path) -> None:
    name = asyncio.run(filled(tmp_path, 3))
    spoil(tmp_path, 1)
    waiting, new = asyncio.run(found(tmp_path))
    assert waiting == []
    assert new != name
    assert "0 messages were saved" in state(tmp_path)["damage"]
    (aside,) = tmp_path.glob("relay-damaged-*.sqlite")
    assert aside.name in state(tmp_path)["damage"]


def test_a_message_whose_bytes_changed_on_the_disk_is_given_up_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    asyncio.run(filled(tmp_path, 5))
    with closing(sqlite3.connect(tmp_path / FILE)) as db, db:
        db.execute("UPDATE message SET raw = zeroblob(200) WHERE seq = 2")
        db.execute("UPDATE message SET raw = (SELECT raw FROM message WHERE seq = 5) WHERE seq = 4")
    assert [number for number, _ in asyncio.run(found(tmp_path))[0]] == [1, 3, 5]
    with queue.looked_into(tmp_path) as db:
        assert [(row[0], row[4].split(":")[0]) for row in queue.dead(db)] == [
            (2, "damaged on the disk of the relay"),
            (4, "damaged on the disk of the relay"),
        ]


def test_a_start_that_was_cut_while_saving_is_made_good_by_the_next(tmp_path: Path) -> None:
    asyncio.run(filled(tmp_path, 3))
    (tmp_path / FILE).rename((tmp_path / FILE).with_suffix(".new"))
    assert [number for number, _ in asyncio.run(found(tmp_path))[0]] == [1, 2, 3]
    (tmp_path / FILE).with_suffix(".new").write_bytes(b"half a file")
    assert [number for number, _ in asyncio.run(found(tmp_path))[0]] == [1, 2, 3]
