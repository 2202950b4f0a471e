"""fhir_server.ingest.claim: order per patient, fair shares, leases; pure and on PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhir_server.ingest import inbox
from fhir_server.ingest.claim import MAX_ATTEMPTS, Waiting, choose, claim, session
from fhir_server.ingest.inbox import Arrival, Claimed, Outcome
from tests.seeds import seed_of

AT = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


def waiting(
    number: int,
    keys: Sequence[int],
    *,
    channel: str = "a",
    after: Sequence[int] = (),
    size: int = 1000,
    attempts: int = 0,
) -> Waiting:
    return Waiting(0, number, (channel, "default"), tuple(keys), tuple(after), size, attempts)


def ids(chosen: Sequence[Waiting]) -> list[int]:
    return [w.id for w in chosen]


def test_takes_the_oldest_first() -> None:
    assert ids(choose([waiting(n, [n]) for n in (1, 2, 3, 4)], (), 3)) == [1, 2, 3]


def test_takes_several_messages_of_one_patient_in_order() -> None:
    queue = [waiting(1, [7]), waiting(2, [7], after=[1]), waiting(3, [7], after=[2])]
    assert ids(choose(queue, (), 10)) == [1, 2, 3]


def test_never_passes_a_message_another_worker_holds() -> None:
    queue = [waiting(2, [7]), waiting(3, [8]), waiting(4, [7, 8], after=[2, 3]), waiting(5, [8], after=[4])]
    assert ids(choose(queue, {7}, 10)) == [3]


def test_never_passes_an_earlier_message_that_is_out_of_sight() -> None:
    assert ids(choose([waiting(90, [7], after=[5]), waiting(91, [8])], (), 10)) == [91]


def test_a_flooding_channel_gets_its_share_and_no_more() -> None:
    flood = [waiting(n, [n]) for n in range(1, 161)]
    quiet = [waiting(1000 + n, [1000 + n], channel="b" if n % 2 else "c") for n in range(20)]
    taken = Counter(w.channel[0] for w in choose(flood + quiet, (), 30))
    assert taken == {"a": 10, "b": 10, "c": 10}


def test_what_quiet_channels_leave_the_flooding_one_takes() -> None:
    flood = [waiting(n, [n]) for n in range(1, 161)]
    assert Counter(w.channel[0] for w in choose([*flood, waiting(900, [900], channel="b")], (), 40)) == {
        "a": 39,
        "b": 1,
    }


def test_a_batch_is_bounded_in_bytes_but_never_empty() -> None:
    queue = [waiting(n, [n], size=600) for n in range(1, 6)]
    assert ids(choose(queue, (), 10, max_bytes=1300)) == [1, 2]
    assert ids(choose(queue, (), 10, max_bytes=10)) == [1]


def test_a_message_that_saw_a_worker_die_is_taken_alone() -> None:
    queue = [waiting(1, [1], attempts=1), waiting(2, [2]), waiting(3, [3], attempts=1), waiting(4, [3], after=[3])]
    assert ids(choose(queue, (), 10)) == [1]
    assert ids(choose(queue[1:], (), 10)) == [2]
    assert ids(choose(queue[2:], (), 10)) == [3]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sets(st.integers(1, 6), min_size=1, max_size=3)), max_size=40),
    st.sets(st.integers(1, 6)),
    st.integers(1, 12),
    st.integers(1, 10),
)
def test_any_choice_keeps_the_order_of_every_key(
    rows: list[tuple[str, set[int]]], busy: set[int], limit: int, window: int
) -> None:
    everything = []
    for n, (channel, keys) in enumerate(rows):
        after = {max((m for m in range(n) if k in rows[m][1]), default=None) for k in keys} - {None}
        everything.append(waiting(n, sorted(keys), channel=channel, after=[a for a in after if a is not None]))
    seen = [w for c in "abc" for w in [w for w in everything if w.channel[0] == c][:window]]
    chosen = ids(choose(seen, busy, limit))
    assert chosen == sorted(chosen)
    assert len(chosen) <= limit
    for n in chosen:
        assert not busy & rows[n][1]
        assert all(m in chosen for m in range(n) if rows[m][1] & rows[n][1])
    if seen and not busy and everything[0] in seen:
        assert chosen


# --- on PostgreSQL ---------------------------------------------------------------------------------------------------------


def arrival(
    number: int, patient: str, *, facility: str = "a", channel: str = "default", lane: int = inbox.LIVE, also: str = ""
) -> Arrival:
    raw = f"MSH|{number}|{patient}".encode()
    shard, keys = inbox.ordering_keys(facility, str(number), [p for p in (patient, also) if p])
    return Arrival(
        shard=shard,
        facility=facility,
        channel=channel,
        format="hl7v2",
        trigger="ORU^R01",
        control_id=str(number),
        sent_at=None,
        received_at=AT,
        sha256=number.to_bytes(32, "big"),
        size=len(raw),
        charset="utf-8",
        lane=lane,
        keys=keys,
        status="ready",
        issues=(),
        raw=inbox.compress(raw),
    )


def put(url: str, arrivals: Sequence[Arrival]) -> None:
    async def run() -> None:
        conn = await asyncpg.connect(url)
        try:
            for start in range(0, len(arrivals), 500):
                await inbox.accept(conn, arrivals[start : start + 500])
        finally:
            await conn.close()

    asyncio.run(run())


@pytest.fixture
def conn(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def done(conn: psycopg.Connection[Any], token: str, messages: Sequence[Claimed]) -> None:
    with conn.transaction():
        inbox.lock(conn, token, messages)
        inbox.finish(conn, [Outcome(m, "done", None, (), (), None) for m in messages], AT)


def numbers(messages: Sequence[Claimed]) -> list[int]:
    return [int(m.control_id) for m in messages]


def test_gives_a_claimed_message_to_nobody_else(conn: psycopg.Connection[Any], database_url: str) -> None:
    put(database_url, [arrival(n, f"p{n % 3}") for n in range(9)])
    first = claim(conn, "x/1", 30, 4)
    assert numbers(first) == [0, 1, 2, 3]
    assert first[0].raw == b"MSH|0|p0"
    assert claim(conn, "y/1", 30, 9) == []
    done(conn, "x/1", first)
    assert numbers(claim(conn, "y/2", 30, 9)) == [4, 5, 6, 7, 8]


def test_a_merge_waits_for_both_patients_and_both_wait_for_it(conn: psycopg.Connection[Any], database_url: str) -> None:
    put(
        database_url,
        [arrival(1, "old"), arrival(2, "kept", also="old"), arrival(3, "old"), arrival(4, "kept"), arrival(5, "z")],
    )
    first = claim(conn, "x/1", 30, 1)
    assert numbers(first) == [1]
    assert numbers(claim(conn, "y/1", 30, 9)) == [5]
    done(conn, "x/1", first)
    merge = claim(conn, "x/2", 30, 1)
    assert numbers(merge) == [2]
    assert claim(conn, "y/2", 30, 9) == []
    done(conn, "x/2", merge)
    assert numbers(claim(conn, "y/3", 30, 9)) == [3, 4]


def test_order_holds_between_two_channels_of_one_facility_behind_a_backlog(
    conn: psycopg.Connection[Any], database_url: str
) -> None:
    flood = [arrival(n, f"p{n}", channel="lis") for n in range(1000)]
    put(database_url, [*flood, arrival(2000, "p900", channel="his"), arrival(2001, "q", channel="his")])
    # The newer message of p900 may not pass the one that is far behind in the other channel's backlog.
    assert 2001 in numbers(claim(conn, "x/1", 30, 40))
    for turn in range(2, 100):
        got = claim(conn, f"x/{turn}", 30, 40, turn)
        if 2000 in numbers(got):
            order = numbers(got)
            assert 900 not in order or order.index(900) < order.index(2000)
            assert conn.execute("SELECT status FROM inbox WHERE control_id = '900'").fetchone() in (
                ("done",),
                ("claimed",),
            )
            break
        done(conn, f"x/{turn}", got)
    else:
        pytest.fail("the message behind the backlog never came")


def test_the_backfill_lane_waits_for_the_live_one_but_not_for_ever(
    conn: psycopg.Connection[Any], database_url: str
) -> None:
    put(database_url, [arrival(n, f"o{n}", lane=inbox.BACKFILL) for n in range(40)])
    put(database_url, [arrival(1000 + n, f"p{n}") for n in range(80)])
    lanes = []
    for turn in range(1, 12):
        got = claim(conn, f"x/{turn}", 30, 8, turn)
        lanes.append(got[0].lane)
        assert len({m.lane for m in got}) == 1
        assert len(got) == (2 if got[0].lane else 8)
        done(conn, f"x/{turn}", got)
    assert lanes == [0] * 9 + [1, 0]


def test_an_expired_lease_gives_the_messages_back_and_the_late_worker_loses_its_work(
    conn: psycopg.Connection[Any], database_url: str
) -> None:
    put(database_url, [arrival(1, "p")])
    late = claim(conn, "x/1", -1, 9)
    again = claim(conn, "y/1", 30, 9)
    assert numbers(again) == [1]
    assert again[0].attempts == 2
    with pytest.raises(inbox.LeaseLost):
        done(conn, "x/1", late)
    done(conn, "y/1", again)
    with pytest.raises(inbox.LeaseLost):
        done(conn, "y/1", again)


def test_a_worker_that_is_applying_keeps_its_messages_after_the_lease(
    conn: psycopg.Connection[Any], database_url: str
) -> None:
    put(database_url, [arrival(1, "p"), arrival(2, "p")])
    mine = claim(conn, "x/1", -1, 1)
    with psycopg.connect(database_url, autocommit=True) as other:
        with conn.transaction():
            inbox.lock(conn, "x/1", mine)
            # Neither the message nor the next one of its patient can be had meanwhile.
            assert claim(other, "y/1", 30, 9) == []
            inbox.finish(conn, [Outcome(m, "done", None, (), (), None) for m in mine], AT)
        assert numbers(claim(other, "y/2", 30, 9)) == [2]


def test_a_heartbeat_prolongs_and_a_release_is_no_attempt(conn: psycopg.Connection[Any], database_url: str) -> None:
    put(database_url, [arrival(1, "p")])
    taken = claim(conn, "x/1", -1, 9)
    inbox.heartbeat(conn, "x/1", 30)
    assert claim(conn, "y/1", 30, 9) == []
    assert inbox.release(conn, "x/1", taken) == 1
    assert claim(conn, "y/2", 30, 9)[0].attempts == 1


def test_outages_that_a_worker_lives_through_do_not_hold_its_messages(
    conn: psycopg.Connection[Any], database_url: str
) -> None:
    # Each time the database comes back another worker is there first, finds the session gone, takes messages and loses them too.
    put(database_url, [arrival(1, "p"), arrival(2, "q")])
    for turn in range(2 * MAX_ATTEMPTS):
        lost = claim(conn, f"x/{turn}", -1, 9)
        assert len(lost) == 2
        lost_too = claim(conn, f"y/{turn}", -1, 9)
        assert inbox.release(conn, f"x/{turn}", lost) == len(lost)
        assert inbox.release(conn, f"y/{turn}", lost_too) == len(lost_too)
    rows = conn.execute("SELECT status, claimed_by, lease_until FROM inbox").fetchall()
    assert rows == [("ready", None, None)] * 2


def test_a_late_release_leaves_others_what_they_have_taken(conn: psycopg.Connection[Any], database_url: str) -> None:
    put(database_url, [arrival(1, "p")])
    lost = claim(conn, "x/1", -1, 9)
    theirs = claim(conn, "y/1", 30, 9)
    assert inbox.release(conn, "x/1", lost) == 1
    assert claim(conn, "z/1", 30, 9) == []
    assert conn.execute("SELECT status, claimed_by, attempts FROM inbox").fetchall() == [("claimed", "y/1", 1)]
    done(conn, "y/1", theirs)
    assert inbox.release(conn, "x/1", lost) == 0


def test_a_message_whose_workers_always_die_is_held(conn: psycopg.Connection[Any], database_url: str) -> None:
    put(database_url, [arrival(1, "p"), arrival(2, "p")])
    for turn in range(MAX_ATTEMPTS):
        assert numbers(claim(conn, f"x/{turn}", -1, 1)) == [1]
    assert numbers(claim(conn, "y/1", 30, 9)) == [2]
    row = conn.execute("SELECT status, reason, issues->0->>'key' FROM inbox WHERE control_id = '1'").fetchone()
    assert row == ("held", "conversion-crashed", "conversion-crashed")


@pytest.mark.parametrize("workers", [2, 4])
def test_many_workers_keep_the_order_of_every_patient(database_url: str, workers: int) -> None:
    seed = seed_of("claim")
    rng = random.Random(seed)
    arrivals = []
    for n in range(400):
        also = f"p{rng.randrange(12)}" if rng.random() < 0.1 else ""
        arrivals.append(arrival(n, f"p{rng.randrange(12)}", channel=rng.choice(["lis", "his"]), also=also))
    put(database_url, arrivals)
    applied: list[tuple[int, tuple[int, ...]]] = []
    holding: Counter[int] = Counter()
    guard = threading.Lock()
    faults: list[str] = []
    keys = {n: a.keys for n, a in enumerate(arrivals)}

    def work(name: int) -> None:
        own = random.Random(seed + name)
        with psycopg.connect(database_url, autocommit=True) as conn:
            for turn in range(10_000):
                got = claim(conn, f"{name}/{turn}", 30, own.randrange(1, 20), turn)
                if not got:
                    if conn.execute("SELECT FROM inbox WHERE status <> 'done' LIMIT 1").fetchone() is None:
                        return
                    continue
                mine = {k for n in numbers(got) for k in keys[n]}
                with guard:
                    faults.extend(f"two workers hold key {k}" for k in mine if holding[k])
                    holding.update(mine)
                with conn.transaction():
                    inbox.lock(conn, f"{name}/{turn}", got)
                    inbox.finish(conn, [Outcome(m, "done", None, (), (), None) for m in got], AT)
                    with guard:
                        applied.extend((n, keys[n]) for n in numbers(got))
                        holding.subtract(mine)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not faults
    assert sorted(n for n, _ in applied) == list(range(400))
    last: dict[int, int] = {}
    for n, own_keys in applied:
        for key in own_keys:
            assert last.get(key, -1) < n
            last[key] = n


def test_what_a_dead_session_held_is_free_at_once_whatever_the_lease_says(
    conn: psycopg.Connection[Any], database_url: str
) -> None:
    put(database_url, [arrival(1, "p"), arrival(2, "q")])
    with psycopg.connect(database_url, autocommit=True) as dead:
        assert numbers(claim(dead, f"x/1@{session(dead)}", 3600, 1)) == [1]
        with psycopg.connect(database_url, autocommit=True) as alive:
            assert numbers(claim(alive, f"y/1@{session(alive)}", 3600, 1)) == [2]
            assert claim(conn, f"z/1@{session(conn)}", 3600, 9) == []
            pid = dead.info.backend_pid
            dead.close()
            while conn.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone():
                time.sleep(0.01)
            again = claim(conn, f"z/2@{session(conn)}", 3600, 9)
            assert [(m.control_id, m.attempts) for m in again] == [("1", 2)]


def test_a_process_number_given_to_another_session_is_not_taken_for_the_dead_one(
    conn: psycopg.Connection[Any], database_url: str
) -> None:
    put(database_url, [arrival(1, "p")])
    own, began = session(conn).split(".")
    assert numbers(claim(conn, f"x/1@{own}.{int(began) - 1}", 3600, 9)) == [1]
    assert numbers(claim(conn, f"y/1@{own}.{began}", 3600, 9)) == [1]


def test_a_clock_that_was_set_back_leaves_no_message_behind(conn: psycopg.Connection[Any], database_url: str) -> None:
    put(database_url, [arrival(1, "p"), arrival(2, "p")])
    with psycopg.connect(database_url, autocommit=True) as dead:
        assert numbers(claim(dead, f"x/1@{session(dead)}", 30, 1)) == [1]
        pid = dead.info.backend_pid
    while conn.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone():
        time.sleep(0.01)
    # What the table looks like to a clock that was set back by a day: the lease ends tomorrow.
    conn.execute("UPDATE inbox SET lease_until = lease_until + interval '1 day' WHERE status = 'claimed'")
    assert numbers(claim(conn, f"y/1@{session(conn)}", 30, 9)) == [1]
