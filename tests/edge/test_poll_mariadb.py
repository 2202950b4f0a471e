"""A polled MariaDB (Debian) as old hospital systems have it: GBK, bytes taken for Latin-1, padding, time zones."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters.transports.dbpoll import PolledDatabase
from mappings.profile import Profile, load_profiles

PROFILE = """
id: epsilon
organization: {name: 戊村卫生室}
charset: gb18030
tables:
  - name: lab
    columns: {PID-3: pid, PID-5: name, OBR-3: report, OBR-7: taken, OBX-3: item, OBX-5: value, NTE-3: note}
    constants: {OBR-4: BIO}
polls:
  - {name: lis, database: old, source: lab, table: lab, report: [report], watermark: {column: written, overlap: 60}}
  - {name: mixed, database: old, source: lab, table: lab, report: [report], latin1: true, watermark: {column: written, overlap: 60}}
  - {name: flags, database: old, source: lab, table: lab, report: [report], key: [report, item],
     flag: {column: synced, unread: 0, read: 1}}
"""


@pytest.fixture(scope="module")
def mariadb() -> Iterator[sa.URL]:
    """The address of a server in a temporary folder, with the table; it listens on a socket file alone."""
    folder = Path("/tmp") / f"tj-mariadb-{time.monotonic_ns()}"
    folder.mkdir()
    data, place = folder / "data", folder / "s"
    common = ["--no-defaults", f"--datadir={data}", "--user=root"]
    (data / "mysql").mkdir(parents=True)
    server = subprocess.Popen(
        [
            shutil.which("mariadbd") or "/usr/sbin/mariadbd",
            *common,
            f"--socket={place}",
            "--skip-networking",
            "--skip-grant-tables",
            "--default-time-zone=+00:00",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = sa.URL.create(
        "mysql+pymysql", "root", host="localhost", query={"unix_socket": str(place), "charset": "utf8mb4"}
    )
    try:
        engine = sa.create_engine(url)
        # The file is there once the server listens; a connection that fails would leave an unclosed socket in the driver.
        for _ in range(1200):
            if place.exists():
                break
            time.sleep(0.1)
        with engine.connect() as conn:
            conn.execute(sa.text("CREATE DATABASE lis CHARACTER SET gbk"))
            conn.execute(
                sa.text(
                    "CREATE TABLE lis.lab (pid CHAR(10), name VARCHAR(20), report CHAR(8), taken DATETIME, item VARCHAR(8), value"
                    " DECIMAL(8,2), note VARCHAR(40) CHARACTER SET latin1, written TIMESTAMP(3) NULL, synced TINYINT DEFAULT 0)"
                )
            )
            insert = "INSERT INTO lis.lab (pid, name, report, taken, item, value, note, written) VALUES "
            conn.exec_driver_sql("SET NAMES utf8mb4")
            conn.exec_driver_sql(
                insert + "('P1', '张三', 'R1', '2026-03-01 08:00', 'K', 6.30, NULL, '2026-03-01 01:00:00.125')"
            )
            conn.exec_driver_sql(
                insert + "('P1', '张三', 'R1', '2026-03-01 08:00', 'NA', 140, NULL, '2026-03-01 01:00:00.125')"
            )
            note = "溶血".encode("gb18030").hex()
            conn.exec_driver_sql(
                insert
                + f"('P2', '李四', 'R2', '2026-03-01 08:00', 'K', 4.10, _latin1 x'{note}', '2026-03-01 01:01:00')"
            )
            conn.commit()
        engine.dispose()
        yield url.set(database="lis")
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    folder = tmp_path_factory.mktemp("profiles")
    (folder / "epsilon.yaml").write_text(PROFILE, encoding="utf-8")
    return load_profiles(folder)["epsilon"]


def test_gbk_latin1_padding_digits_null_and_the_zone_of_the_facility(mariadb: sa.URL, profile: Profile) -> None:
    source = PolledDatabase(mariadb, profile.facility.polls[1], profile.facility)
    assert source.look() == ["synced"]
    chunk = source.changed(None, {})
    found = [report for _, report, _ in source.reports(chunk.names)]
    source.close()
    # TIMESTAMP, kept as UTC, is shown in the zone of the facility, where the session of the server would say UTC.
    assert chunk.last == datetime.fromisoformat("2026-03-01T09:01:00")
    first, second = sorted(found, key=lambda r: r.rows[0]["report"])
    taken = "2026-03-01T08:00:00"
    assert first.rows == (
        {"pid": "P1", "name": "张三", "report": "R1", "taken": taken, "item": "K", "value": "6.30"},
        {"pid": "P1", "name": "张三", "report": "R1", "taken": taken, "item": "NA", "value": "140.00"},
    )
    assert second.rows[0]["note"] == "溶血"
    assert json.loads(second.message("lab", datetime(2026, 3, 1, tzinfo=UTC)))["table"] == "lab"


def test_a_watermark_connection_cannot_write_and_a_flag_is_set_once(mariadb: sa.URL, profile: Profile) -> None:
    watched = PolledDatabase(mariadb, profile.facility.polls[0], profile.facility)
    with pytest.raises(sa.exc.SQLAlchemyError, match="READ ONLY"), watched._engine.connect() as conn:
        conn.execute(sa.text("DELETE FROM lab"))
    watched.close()
    source = PolledDatabase(mariadb, profile.facility.polls[2], profile.facility)
    source.look()
    chunk, found = source.lock_unread()
    source.release()
    assert (chunk.rows, len(found)) == (3, 2)
    source.lock_unread()
    source.mark_read()
    chunk, found = source.lock_unread()
    source.release()
    source.close()
    assert (chunk.rows, found) == (0, [])
