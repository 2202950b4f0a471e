"""fhir_server.ingest.polling: a laboratory's view in PostgreSQL, polled into the real inbox."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from adapters.transports.dbpoll import PolledDatabase, PollFault
from fhir_server.ingest import inbox
from fhir_server.ingest.polling import Poller
from fhir_server.ingest.worker import Worker
from mappings.profile import Profile, load_profiles

HEAD = """
id: delta
organization: {name: 丁镇卫生院}
identifiers: {patient: ["", PI]}
charset: gb18030
tables:
  - name: lab
    columns:
      {PID-3: 病人号, PID-5: 姓名, OBR-3: 报告号, OBR-7: 采样时间, OBR-22: 报告时间, OBX-3: 项目, OBX-5: 结果, OBX-6: 单位, NTE-3: 备注}
    constants: {OBR-4: BIO, OBR-25: F, OBX-11: F}
    optional: [备注]
polls:
"""
BY_TIME = """
  - {name: lis, database: east, source: lis.v_lab, table: lab, report: [报告号], chunk: 7, watermark: {column: 更新, overlap: 600}}
"""
BY_FLAG = """
  - name: lis
    database: east
    source: lis.lab
    table: lab
    report: [报告号]
    key: [报告号, 项目]
    chunk: 7
    flag: {column: 同步, unread: "0", read: "1"}
"""
TABLE = """
CREATE SCHEMA lis;
CREATE TABLE lis.lab (病人号 char(12), 姓名 text, 报告号 char(10), 采样时间 timestamp, 报告时间 timestamptz, 项目 varchar(8),
                      结果 numeric(8,2), 单位 text, 更新 timestamp, 同步 char(4) DEFAULT '0', 影像 bytea);
CREATE VIEW lis.v_lab AS SELECT * FROM lis.lab;
"""
INSERT = (
    "INSERT INTO lis.lab (病人号, 姓名, 报告号, 采样时间, 报告时间, 项目, 结果, 单位, 更新)"
    " VALUES (%s, '李某', %s, '2026-03-01 08:00', '2026-03-01 09:30+08', %s, %s, 'mmol/L', %s)"
)
NOW = datetime(2026, 3, 1, 4, 0, tzinfo=UTC)


def profile_of(folder: Path, polls: str) -> Profile:
    folder.mkdir(exist_ok=True)
    (folder / "delta.yaml").write_text(HEAD + polls, encoding="utf-8")
    return load_profiles(folder)["delta"]


@pytest.fixture
def vendor(postgres: str, database_url: str) -> Iterator[str]:
    """Address of the vendor's own database, with its table."""
    name = "vendor_" + database_url.rpartition("/")[2]
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = postgres.rpartition("/")[0] + "/" + name
    with psycopg.connect(url) as conn:
        conn.execute(TABLE)
    yield url
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


class Bench:
    """A poller between two databases, which may be ended and begun again."""

    def __init__(self, vendor: str, database: str, profile: Profile) -> None:
        self.profile = profile
        self.vendor = sa.make_url(vendor.replace("postgresql://", "postgresql+psycopg://"))
        self.database = database
        self.now = NOW

    def poller(self) -> Poller:
        poll = self.profile.facility.polls[0]
        source = PolledDatabase(self.vendor, poll, self.profile.facility)
        return Poller(source, poll, self.profile, self.database, self.clock)

    def clock(self) -> datetime:
        """A later time at every call."""
        self.now += timedelta(milliseconds=1)
        return self.now

    def look(self, times: int = 1) -> list[int]:
        """A poller of its own, as after a restart, once the one before has let go."""
        with psycopg.connect(self.database, autocommit=True) as conn:
            for _ in range(600):
                if conn.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,):
                    break
                time.sleep(0.02)

        async def run() -> list[int]:
            poller = self.poller()
            try:
                return [await poller.look() for _ in range(times)]
            finally:
                await poller.close()

        return asyncio.run(run())

    def rows(self) -> list[list[dict[str, str]]]:
        """Rows of the messages of the inbox, oldest first."""
        with psycopg.connect(self.database) as conn:
            found = conn.execute("SELECT raw FROM inbox ORDER BY id").fetchall()
        return [json.loads(inbox.decompress(raw))["rows"] for (raw,) in found]

    def results(self) -> list[tuple[str, str, str]]:
        """Report, item, value of every row of every message."""
        return [(r["报告号"], r["项目"], r["结果"]) for rows in self.rows() for r in rows]


@pytest.fixture
def by_time(vendor: str, database_url: str, tmp_path: Path) -> Bench:
    return Bench(vendor, database_url, profile_of(tmp_path / "profiles", BY_TIME))


@pytest.fixture
def by_flag(vendor: str, database_url: str, tmp_path: Path) -> Bench:
    return Bench(vendor, database_url, profile_of(tmp_path / "profiles", BY_FLAG))


def insert(conn: Any, report: str, item: str, value: str, at: str) -> None:
    conn.execute(INSERT, (f"P{report}", report, item, value, f"2026-03-01 {at}"))


def test_reports_come_whole_with_their_digits_without_padding_and_without_null(by_time: Bench, vendor: str) -> None:
    with psycopg.connect(vendor) as conn:
        insert(conn, "R1", "K", "6.30", "09:00")
        insert(conn, "R1", "NA", "140", "11:00")
        conn.execute("UPDATE lis.lab SET 单位 = NULL WHERE 项目 = 'NA'")
    assert by_time.look(2) == [1, 0]
    ((first, second),) = by_time.rows()
    expected = {
        "病人号": "PR1", "姓名": "李某", "报告号": "R1", "采样时间": "2026-03-01T08:00:00", "项目": "K",
        "结果": "6.30", "单位": "mmol/L",
    }  # fmt: skip
    assert datetime.fromisoformat(first.pop("报告时间")) == datetime(2026, 3, 1, 1, 30, tzinfo=UTC)
    assert first == expected
    assert "单位" not in second
    assert second["结果"] == "140.00"


def test_what_was_polled_is_converted_in_the_zone_of_the_facility(by_time: Bench, vendor: str) -> None:
    with psycopg.connect(vendor) as conn:
        insert(conn, "R1", "K", "6.30", "09:00")
    by_time.look()
    stop = threading.Event()
    worker = threading.Thread(target=Worker(by_time.database, {"delta": by_time.profile}, stop).run)
    worker.start()
    try:
        with psycopg.connect(by_time.database, autocommit=True) as conn:
            for _ in range(600):
                found = conn.execute("SELECT status, reason, sent_at FROM inbox").fetchone() or ("ready",)
                if found[0] not in ("ready", "claimed"):
                    break
                threading.Event().wait(0.1)
            result = conn.execute("SELECT code, number::text, status, effective FROM result").fetchone()
    finally:
        stop.set()
        worker.join(30)
    assert found[:2] == ("done", None)
    assert NOW < found[2] < NOW + timedelta(seconds=1)
    assert result == ("K", "6.30", "final", datetime(2026, 3, 1, 0, 0, tzinfo=UTC))


def test_late_commits_inside_the_overlap_are_found_and_nothing_comes_twice(by_time: Bench, vendor: str) -> None:
    with psycopg.connect(vendor) as late, psycopg.connect(vendor) as conn:
        insert(late, "R1", "K", "1", "10:00")  # written first, committed last
        for number in range(20):
            insert(conn, f"S{number}", "K", "2", f"10:0{number % 10}")
        conn.commit()
        assert by_time.look(2) == [20, 0]
        late.commit()
    assert by_time.look(2) == [1, 0]
    assert len(by_time.results()) == 21


def test_a_change_inside_the_overlap_is_one_more_message_also_back_to_the_old_value(
    by_time: Bench, vendor: str
) -> None:
    with psycopg.connect(vendor, autocommit=True) as conn:
        insert(conn, "R1", "K", "1", "10:00")
        insert(conn, "R1", "NA", "140", "10:00")
        assert by_time.look() == [1]
        for value in ("2", "1"):
            # Without a new watermark: within the overlap it is seen all the same.
            conn.execute("UPDATE lis.lab SET 结果 = %s WHERE 项目 = 'K'", (value,))
            assert by_time.look(2) == [1, 0]
    assert [r for r in by_time.results() if r[1] == "K"] == [("R1", "K", v) for v in ("1.00", "2.00", "1.00")]


def test_more_rows_of_one_watermark_than_a_chunk_holds_are_all_read(by_time: Bench, vendor: str) -> None:
    with psycopg.connect(vendor) as conn:
        for number in range(60):
            insert(conn, f"R{number}", "K", "1", "10:00")
        insert(conn, "R99", "K", "1", "10:01")
    assert by_time.look(2) == [61, 0]


def test_a_watermark_in_the_future_hides_nothing_that_comes_after_it(by_time: Bench, vendor: str) -> None:
    with psycopg.connect(vendor, autocommit=True) as conn:
        conn.execute(INSERT, ("P", "R1", "K", "1", "2099-01-01 00:00"))
        assert by_time.look(2) == [1, 0]
        insert(conn, "R2", "K", "1", "11:59")  # now, by the facility's clock
        assert by_time.look(2) == [1, 0]


def test_rows_without_a_watermark_are_counted_where_people_look(by_time: Bench, vendor: str) -> None:
    with psycopg.connect(vendor) as conn:
        conn.execute(INSERT, ("P", "R1", "K", "1", None))
    assert by_time.look() == [0]
    with psycopg.connect(by_time.database) as conn:
        assert conn.execute("SELECT unmarked FROM poll").fetchone() == (1,)


def test_nothing_is_written_to_a_database_polled_by_watermark(by_time: Bench) -> None:
    poll = by_time.profile.facility.polls[0]
    source = PolledDatabase(by_time.vendor, poll, by_time.profile.facility)
    with pytest.raises(sa.exc.SQLAlchemyError, match="read-only"), source._engine.connect() as conn:
        conn.execute(sa.text("DELETE FROM lis.lab"))
    source.close()


def test_rows_fetched_by_flag_are_marked_and_flagged_again_when_they_change(by_flag: Bench, vendor: str) -> None:
    with psycopg.connect(vendor, autocommit=True) as conn:
        for number in range(10):
            insert(conn, f"R{number}", "K", "1", "10:00")
            insert(conn, f"R{number}", "NA", "140", "10:00")
        assert by_flag.look(2) == [10, 0]
        assert conn.execute("SELECT DISTINCT trim(同步) FROM lis.lab").fetchall() == [("1",)]
        conn.execute("UPDATE lis.lab SET 结果 = 5, 同步 = '0' WHERE 报告号 = 'R3' AND 项目 = 'K'")
        conn.execute("UPDATE lis.lab SET 同步 = '0' WHERE 报告号 = 'R4'")  # the same again
        assert by_flag.look(2) == [1, 0]
        assert conn.execute("SELECT DISTINCT trim(同步) FROM lis.lab").fetchall() == [("1",)]
    assert by_flag.rows()[-1] == [
        dict(by_flag.rows()[3][0], 结果="5.00"),
        by_flag.rows()[3][1],
    ]


def test_a_crash_between_storing_and_flagging_stores_nothing_twice(
    by_flag: Bench, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(vendor) as conn:
        insert(conn, "R1", "K", "1", "10:00")

    def crash(self: PolledDatabase) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(PolledDatabase, "mark_read", crash)
        with pytest.raises(KeyboardInterrupt):
            by_flag.look()
    with psycopg.connect(vendor) as conn:
        assert conn.execute("SELECT trim(同步) FROM lis.lab").fetchone() == ("0",)
    assert by_flag.look() == [0]
    with psycopg.connect(vendor) as conn:
        assert conn.execute("SELECT trim(同步) FROM lis.lab").fetchone() == ("1",)
    assert len(by_flag.rows()) == 1


def test_a_crash_while_storing_leaves_neither_messages_nor_a_position(
    by_time: Bench, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(vendor) as conn:
        for number in range(20):
            insert(conn, f"R{number:02d}", "K", "1", f"10:{number:02d}")
    accept = inbox.accept
    calls = []

    async def crash(conn: Any, arrivals: Any) -> Any:
        found = await accept(conn, arrivals)
        calls.append(1)
        if len(calls) == 2:
            raise ConnectionResetError
        return found

    with monkeypatch.context() as broken:
        broken.setattr(inbox, "accept", crash)
        with pytest.raises(ConnectionResetError):
            by_time.look()
    assert len(by_time.rows()) == 7  # the first chunk alone
    assert by_time.look(2) == [13, 0]
    assert sorted(r for r, _, _ in by_time.results()) == [f"R{number:02d}" for number in range(20)]


def test_of_two_pollers_one_works_and_the_other_takes_over_when_it_ends(by_time: Bench, vendor: str) -> None:
    with psycopg.connect(vendor) as conn:
        insert(conn, "R1", "K", "1", "10:00")

    async def story() -> None:
        first, second = by_time.poller(), by_time.poller()
        try:
            assert await first.look() == 1
            with psycopg.connect(vendor) as conn:
                insert(conn, "R2", "K", "1", "10:01")
            assert await second.look() == 0
            await first.close()
            for _ in range(100):
                if await second.look() == 1:
                    break
                await asyncio.sleep(0.05)
        finally:
            await first.close()
            await second.close()

    asyncio.run(story())
    assert [r for r, _, _ in by_time.results()] == ["R1", "R2"]


def test_a_column_that_is_missing_is_named_in_the_status_and_reading_goes_on_when_it_is_back(
    by_time: Bench, vendor: str
) -> None:
    with psycopg.connect(vendor) as conn:
        conn.execute("DROP VIEW lis.v_lab; CREATE VIEW lis.v_lab AS SELECT 病人号, 姓名, 报告号, 更新 FROM lis.lab")
        insert(conn, "R1", "K", "1", "10:00")
    with pytest.raises(PollFault, match="采样时间, 报告时间, 项目, 结果, 单位"):
        by_time.look()
    with psycopg.connect(by_time.database) as conn:
        assert "missing-columns" in str(conn.execute("SELECT fault FROM poll").fetchone())
    with psycopg.connect(vendor) as conn:
        conn.execute("DROP VIEW lis.v_lab; CREATE VIEW lis.v_lab AS SELECT * FROM lis.lab")
    assert by_time.look() == [1]
    with psycopg.connect(by_time.database) as conn:
        assert conn.execute("SELECT fault, fault_since FROM poll").fetchone() == (None, None)


def test_a_database_that_is_away_is_named_without_address_user_or_password(by_time: Bench) -> None:
    by_time.vendor = by_time.vendor.set(host="127.0.0.1", port=1, username="leser", password="geheim-77")
    with pytest.raises(PollFault) as told:
        by_time.look()
    assert told.value.key == "away"
    with psycopg.connect(by_time.database) as conn:
        fault = str(conn.execute("SELECT fault FROM poll").fetchone())
    for text in (told.value.words, fault, repr(told.value.__cause__)):
        assert not any(secret in text for secret in ("leser", "geheim", "127.0.0.1"))


def test_a_report_key_that_gathers_everything_is_refused(
    by_time: Bench, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.transports.dbpoll._MOST_ROWS", 5)
    with psycopg.connect(vendor) as conn:
        for number in range(6):
            insert(conn, "R1", f"I{number}", "1", "10:00")
    with pytest.raises(PollFault, match="do not tell reports apart"):
        by_time.look()


def test_bytes_in_no_character_set_hold_their_report_alone(vendor: str, database_url: str, tmp_path: Path) -> None:
    profile = profile_of(tmp_path / "profiles", BY_TIME.replace("更新, ", "更新, ").replace("v_lab", "lab"))
    bench = Bench(vendor, database_url, profile)
    with psycopg.connect(vendor) as conn:
        conn.execute("ALTER TABLE lis.lab ADD 备注 bytea")
        insert(conn, "R1", "K", "1", "10:00")
        insert(conn, "R2", "K", "1", "10:00")
        conn.execute("UPDATE lis.lab SET 备注 = %s WHERE 报告号 = 'R1'", ("溶血".encode("gb18030"),))
        conn.execute("UPDATE lis.lab SET 备注 = %s WHERE 报告号 = 'R2'", (b"\xff\xff\xff",))
    assert bench.look() == [2]
    with psycopg.connect(database_url) as conn:
        found = conn.execute("SELECT status, reason FROM inbox ORDER BY status").fetchall()
    assert found == [("held", "charset-unknown"), ("ready", None)]
    assert [rows[0]["备注"] for rows in bench.rows() if rows[0]["报告号"] == "R1"] == ["溶血"]


def test_rows_without_a_report_number_come_one_by_one_and_block_nobody(
    vendor: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.transports.dbpoll._MOST_ROWS", 5)
    for number, mode in enumerate((BY_TIME, BY_FLAG)):
        bench = Bench(vendor, database_url, profile_of(tmp_path / f"profiles{number}", mode))
        with psycopg.connect(vendor) as conn:
            conn.execute("DELETE FROM lis.lab")
            for patient in range(9):
                conn.execute(INSERT, (f"P{number}{patient}", None, "K", "4.1", "2026-03-01 10:00"))
            conn.execute(INSERT, (f"P{number}8", None, "K", "4.1", "2026-03-01 10:00"))  # a JOIN gave it twice
            insert(conn, f"R{number}", "K", "5.0", "10:00")
        before = len(bench.rows())
        assert bench.look(2) == [10, 0], mode
        found = bench.rows()[before:]
        assert sorted(rows[0]["病人号"] for rows in found) == sorted(
            [*(f"P{number}{n}" for n in range(9)), f"PR{number}"]
        )
        assert all(len(rows) == 1 for rows in found)
        with psycopg.connect(vendor) as conn:
            conn.execute("UPDATE lis.lab SET 报告号 = 'Z9' WHERE 病人号 = %s", (f"P{number}0",))
            conn.execute("UPDATE lis.lab SET 同步 = '0' WHERE 病人号 = %s", (f"P{number}0",))
        assert bench.look(2) == [1, 0], mode
        with psycopg.connect(database_url) as conn:
            conn.execute("DELETE FROM poll; DELETE FROM poll_report")


@pytest.mark.parametrize(("column", "unread", "read"), [("boolean", "false", "true"), ("numeric(1)", "0", "1")])
def test_flags_are_texts_numbers_or_booleans(
    column: str, unread: str, read: str, vendor: str, database_url: str, tmp_path: Path
) -> None:
    mode = BY_FLAG.replace('"0"', f'"{unread}"').replace('"1"', f'"{read}"')
    bench = Bench(vendor, database_url, profile_of(tmp_path / "profiles", mode))
    with psycopg.connect(vendor) as conn:
        conn.execute("DROP VIEW lis.v_lab")
        conn.execute(f"ALTER TABLE lis.lab DROP 同步, ADD 同步 {column} DEFAULT '{unread}'")
        for number in range(20):
            insert(conn, f"R{number:02d}", "K", "1", "10:00")
    assert bench.look(2) == [20, 0]
    with psycopg.connect(vendor) as conn:
        assert conn.execute(f"SELECT count(*) FROM lis.lab WHERE 同步 = '{read}'").fetchone() == (20,)


def test_a_row_with_the_key_of_another_that_comes_while_it_is_stored_is_not_marked_unread(
    by_flag: Bench, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(vendor) as conn:
        insert(conn, "R1", "K", "4.1", "10:00")
    mark_read = PolledDatabase.mark_read

    def late(self: PolledDatabase) -> None:
        with psycopg.connect(vendor) as conn:
            insert(conn, "R1", "K", "9.9", "10:05")
        mark_read(self)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(PolledDatabase, "mark_read", late)
        with pytest.raises(PollFault, match="same 报告号, 项目"):
            by_flag.look()
    assert by_flag.look(2) == [1, 0]
    assert by_flag.results() == [("R1", "K", "4.10"), ("R1", "K", "4.10"), ("R1", "K", "9.90")]
    with psycopg.connect(vendor) as conn:
        assert conn.execute("SELECT DISTINCT trim(同步) FROM lis.lab").fetchall() == [("1",)]


def test_columns_are_found_however_the_database_spells_them(vendor: str, database_url: str, tmp_path: Path) -> None:
    places = {"PID-3": "PatientNo", "PID-5": "Name", "OBR-3": "REPORTNO", "OBX-3": "item", "OBX-5": "Result"}
    head = HEAD[: HEAD.index("    columns:")] + f"    columns: {json.dumps(places)}\n    optional: [Name]\npolls:\n"
    poll = BY_TIME.replace("报告号", "REPORTNO").replace("更新", "UpdatedAt")
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "delta.yaml").write_text(head + poll, encoding="utf-8")
    bench = Bench(vendor, database_url, load_profiles(folder)["delta"])
    with psycopg.connect(vendor) as conn:
        conn.execute(
            'CREATE OR REPLACE VIEW lis.v_two AS SELECT 病人号 AS "PATIENTNO", 报告号 AS reportno, 项目 AS "Item", 结果 AS result,'
            " 更新 AS updatedat FROM lis.lab; DROP VIEW lis.v_lab; ALTER VIEW lis.v_two RENAME TO v_lab"
        )
        insert(conn, "R1", "K", "4.1", "10:00")
    assert bench.look(2) == [1, 0]
    assert bench.rows() == [[{"PatientNo": "PR1", "REPORTNO": "R1", "item": "K", "Result": "4.10"}]]


def test_an_optional_column_that_a_view_gets_later_is_read_from_then_on(
    by_time: Bench, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fhir_server.ingest.polling._COUNT_EVERY", timedelta(0))
    with psycopg.connect(vendor) as conn:
        insert(conn, "R1", "K", "4.1", "10:00")

    async def story() -> list[int]:
        poller = by_time.poller()
        try:
            looks = [await poller.look(), await poller.look()]
            with psycopg.connect(vendor) as conn:
                conn.execute("ALTER TABLE lis.lab ADD 备注 text DEFAULT '溶血'")
                conn.execute("DROP VIEW lis.v_lab; CREATE VIEW lis.v_lab AS SELECT * FROM lis.lab")
            return [*looks, await poller.look(), await poller.look()]
        finally:
            await poller.close()

    assert asyncio.run(story()) == [1, 0, 1, 0]
    assert by_time.rows()[-1][0]["备注"] == "溶血"


SEEDS = [20260301, 20260302]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", [BY_TIME, BY_FLAG])
def test_whatever_the_order_of_writing_committing_looking_and_crashing_the_last_message_of_a_report_is_what_the_table_says(
    seed: int, mode: str, vendor: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transactions of several writers, committed in any order; looks by pollers that crash anywhere: nothing missed, nothing twice."""
    dice = random.Random(seed)
    bench = Bench(vendor, database_url, profile_of(tmp_path / "profiles", mode))
    open_writers: list[Any] = []
    busy: dict[int, set[str]] = {}
    accept, mark_read = inbox.accept, PolledDatabase.mark_read
    crashing = {"accept": 0.0, "mark": 0.0}

    async def sometimes(conn: Any, arrivals: Any) -> Any:
        if dice.random() < crashing["accept"]:
            raise ConnectionResetError
        return await accept(conn, arrivals)

    def perhaps(self: PolledDatabase) -> None:
        if dice.random() < crashing["mark"]:
            raise PollFault("away", "cut")
        mark_read(self)

    monkeypatch.setattr(inbox, "accept", sometimes)
    monkeypatch.setattr(PolledDatabase, "mark_read", perhaps)
    minute = 0

    def write() -> None:
        nonlocal minute
        conn = psycopg.connect(vendor)
        held = set().union(*busy.values()) if busy else set()
        names = [n for n in (f"R{number}" for number in range(12)) if n not in held]
        for report in dice.sample(names, min(3, len(names))):
            minute += dice.random() < 0.3
            at = f"{9 + minute // 60:02d}:{minute % 60:02d}"
            there = conn.execute("SELECT 项目 FROM lis.lab WHERE 报告号 = %s ORDER BY 项目", (report,)).fetchall()
            if there and dice.random() < 0.6:
                conn.execute(
                    "UPDATE lis.lab SET 结果 = %s, 更新 = %s, 同步 = '0' WHERE 报告号 = %s AND 项目 = %s",
                    (dice.randrange(3), f"2026-03-01 {at}", report, dice.choice(there)[0]),
                )
            else:
                insert(conn, report, f"I{len(there)}", str(dice.randrange(3)), at)
            busy.setdefault(id(conn), set()).add(report)
        open_writers.append(conn)

    def end() -> None:
        conn = open_writers.pop(dice.randrange(len(open_writers)))
        if dice.random() < 0.8:
            conn.commit()
        busy.pop(id(conn), None)
        conn.close()

    def look() -> None:
        with contextlib.suppress(PollFault, ConnectionResetError):
            bench.look(dice.choice((1, 2)))

    crashing.update(accept=0.3, mark=0.3)
    for _ in range(40):
        step = dice.random()
        # A flag locks the rows it reads, so a look waits for writers that are open: there they end first.
        if step < 0.4 and len(open_writers) < (4 if mode == BY_TIME else 1):
            write()
        elif step < 0.7 and open_writers:
            end()
        elif mode == BY_TIME or not open_writers:
            look()
    while open_writers:
        end()
    crashing.update(accept=0.0, mark=0.0)
    bench.look()
    assert bench.look() == [0]
    messages = bench.rows()
    last: Mapping[str, Any] = {rows[0]["报告号"]: rows for rows in messages}
    with psycopg.connect(vendor) as conn:
        table: dict[str, dict[str, str]] = {}
        for report, item, value in conn.execute("SELECT trim(报告号), 项目, 结果::text FROM lis.lab").fetchall():
            table.setdefault(report, {})[item] = value
    assert {name: {r["项目"]: r["结果"] for r in rows} for name, rows in last.items()} == table
    for report in table:
        line = [rows for rows in messages if rows[0]["报告号"] == report]
        assert all(before != after for before, after in itertools.pairwise(line)), report
