"""`tongjian backup` and `tongjian restore`: what comes back is what was there, checked by hash, also when messages go on arriving."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psycopg
import pytest

from fhir_server.store import embedded
from fhir_server.store.backup import BackupError, back_up, restore
from tests.journeys import evidence
from tests.journeys.feeds import FACILITIES, Line, write_profiles
from tests.journeys.installation import Installation

EACH = 30
"""Messages of each facility in the first installation."""
MANY = int(os.environ.get("TONGJIAN_BACKUP_MESSAGES", "40"))
"""Messages of each facility that arrive while a backup is made."""
pytestmark = pytest.mark.timeout(300 + MANY)


def tongjian(*arguments: object, database_url: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8", "DATABASE_URL": database_url}
    command = [sys.executable, "-m", "fhir_server.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)


def done(*arguments: object, database_url: str = "") -> str:
    result = tongjian(*arguments, database_url=database_url)
    assert result.returncode == 0, result.stderr
    return result.stdout


def send(installation: Installation, lines: list[Line], *counts: int) -> None:
    """The next number of ``counts`` for each line; one for all."""

    async def everybody() -> None:
        each = counts if len(counts) == len(lines) else counts * len(lines)
        await asyncio.gather(*(line.send(installation.mllp_port, n) for line, n in zip(lines, each, strict=True)))

    asyncio.run(everybody())


def contents(url: str) -> dict[str, str]:
    """A digest of every row of each table, and the state of each sequence."""
    with psycopg.connect(url) as conn:
        tables = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
        found = {}
        for (name,) in tables:
            rows = f"SELECT md5(coalesce(string_agg(md5(t::text), '' ORDER BY md5(t::text)), '')) FROM {name} t"
            found[name] = str(conn.execute(rows).fetchone())
        for name, last in conn.execute("SELECT sequencename, last_value FROM pg_sequences").fetchall():
            found[name] = str(last)
    return found


def contents_of(folder: Path) -> dict[str, str]:
    server = embedded.start(folder)
    try:
        return contents(server.url)
    finally:
        server.stop()


class Backed:
    """An installation that was stopped, a backup of it, one made before while messages arrived, and a resource as it was served.

    lines: all that were sent; the backup ``amid`` has the first ``len(FACILITIES)`` of them whole and something of the others.
    """

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o711)
        self.profiles = write_profiles(folder / "profiles")
        self.data = folder / "data"
        self.backup = folder / "backup"
        self.amid = folder / "amid"
        self.lines = [Line(f, n, n) for n, f in enumerate(FACILITIES)]
        installation = Installation(self.data, self.profiles)
        installation.start()
        try:
            self.token = installation.token()
            send(installation, self.lines, EACH)
            installation.settle()
            ((self.observation,),) = installation.sql("SELECT id FROM resource WHERE version = 5 LIMIT 1")
            self.served = self.get(installation)
            self._back_up_amid(installation)
            installation.settle(120 + MANY)
        finally:
            installation.stop()
        self.said = done("backup", self.backup, "--data", self.data)

    def _back_up_amid(self, installation: Installation) -> None:
        more = [Line(f, len(FACILITIES) + n, 100 + n) for n, f in enumerate(FACILITIES)]
        self.lines += more
        made = threading.Event()

        async def everybody() -> None:
            await asyncio.gather(
                *(line.send(installation.mllp_port, MANY, pause=0.05, enough=made.is_set) for line in more)
            )

        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(asyncio.run, everybody())
            try:
                while not all(len(line.acknowledged) > 10 for line in more):
                    assert not sending.done()
                    time.sleep(0.05)
                done("backup", self.amid, "--data", self.data)
            finally:
                made.set()
            sending.result()

    @property
    def sent(self) -> int:
        """Messages acknowledged."""
        return sum(len(line.acknowledged) for line in self.lines)

    def get(self, installation: Installation) -> tuple[bytes, str, bytes]:
        """Body, ETag and history of one Observation, asked for with a token of the first installation."""
        base = f"http://127.0.0.1:{installation.port}/fhir/Observation/{self.observation}"
        headers = {"Authorization": f"Bearer {self.token}"}
        now, before = httpx.get(base, headers=headers), httpx.get(f"{base}/_history/1", headers=headers)
        assert (now.status_code, before.status_code) == (200, 200)
        return now.content, now.headers["ETag"], before.content


@pytest.fixture(scope="module")
def backed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backed]:
    yield Backed(tmp_path_factory.mktemp("backup"))


def test_is_open_to_its_owner_alone_and_names_every_file_with_its_hash(backed: Backed) -> None:
    assert "rows of" in backed.said
    assert backed.backup.stat().st_mode & 0o777 == 0o700
    stated = json.loads((backed.backup / "manifest.json").read_text())
    assert stated["tables"]["inbox"] == backed.sent
    files = {p.relative_to(backed.backup).as_posix() for p in backed.backup.rglob("*") if p.is_file()}
    assert set(stated["files"]) == files - {"manifest.json"}
    keys = backed.backup / "files" / "token-keys.json"
    assert keys.stat().st_mode & 0o777 == 0o600
    assert keys.read_bytes() == (backed.data / "token-keys.json").read_bytes()
    assert not (backed.backup / "files" / "postgres").exists()


def test_every_table_and_a_served_resource_come_back_in_a_new_folder(backed: Backed, tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    new = tmp_path / "new"
    assert "Restored as of" in done("restore", backed.backup, "--data", new)
    assert contents_of(new) == contents_of(backed.data)
    installation = Installation(new, backed.profiles)
    installation.start()
    try:
        assert backed.get(installation) == backed.served
        # Numbers go on where they ended: nothing new gets an id that was given before.
        send(installation, [Line("alpha", 99, 99)], 5)
        installation.settle()
        assert installation.sql("SELECT count(*), count(DISTINCT id) FROM inbox") == [
            (backed.sent + 5, backed.sent + 5)
        ]
    finally:
        installation.stop()
    assert not (tmp_path / "new.restoring").exists()


def test_comes_back_in_an_empty_database_and_never_over_another(backed: Backed, postgres: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute("CREATE DATABASE restored")
    url = postgres.rpartition("/")[0] + "/restored"
    try:
        done("restore", backed.backup, "--data", tmp_path / "keys", database_url=url)
        assert contents(url) == contents_of(backed.data)
        assert (tmp_path / "keys" / "token-keys.json").stat().st_mode & 0o777 == 0o600
        again = tongjian("restore", backed.backup, "--data", tmp_path / "other", database_url=url)
        assert again.returncode == 1
        assert "restore into an empty one" in again.stderr
    finally:
        with psycopg.connect(postgres, autocommit=True) as conn:
            conn.execute("DROP DATABASE restored WITH (FORCE)")


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: _flip(max(f.glob("database/*.dat.gz"), key=lambda p: p.stat().st_size)), "not as it was written"),
        (lambda f: _cut(f / "database" / "toc.dat"), "toc.dat is not as it was written"),
        (lambda f: (f / "files" / "token-keys.json").unlink(), "token-keys.json is missing"),
        (lambda f: (f / "manifest.json").unlink(), "is not a backup"),
        (lambda f: _cut(f / "manifest.json"), "cannot be read"),
        (lambda f: (f / "database" / "more.dat.gz").write_bytes(b""), "more.dat.gz does not belong"),
    ],
)
def test_a_damaged_backup_is_refused_and_nothing_is_made(
    backed: Backed, tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    shutil.copytree(backed.backup, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(BackupError, match=named):
        restore(tmp_path / "copy", tmp_path / "new")
    assert {p.name for p in tmp_path.iterdir()} == {"copy"}


def test_goes_into_new_folders_only(backed: Backed, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="is not empty"):
        restore(backed.backup, backed.data)
    (tmp_path / "new.restoring").mkdir()
    with pytest.raises(BackupError, match="broken off"):
        restore(backed.backup, tmp_path / "new")
    for target, named in ((backed.backup, "is not empty"), (backed.data / "inside", "inside the data folder")):
        with pytest.raises(BackupError, match=named):
            back_up("postgresql://nobody@127.0.0.1:1/none", backed.data, target, datetime.now(UTC))
    refused = tongjian("backup", tmp_path / "backup", "--data", tmp_path / "nothing-here")
    assert refused.returncode == 1
    assert "There is no database" in refused.stderr


def test_a_backup_made_while_messages_arrive_is_one_consistent_picture(backed: Backed, tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    done("restore", backed.amid, "--data", tmp_path / "new")
    restored = Installation(tmp_path / "new", backed.profiles)
    restored.start()
    try:
        restored.settle()
        counts = dict(restored.sql("SELECT split_part(control_id, '-', 1), count(*) FROM inbox GROUP BY 1"))
        evidence.check(restored.sql, [line.after(counts[f"L{line.number}"]) for line in backed.lines])
        assert sum(counts.values()) < backed.sent, "nothing arrived meanwhile"
        # Senders that repeat everything since the backup lose nothing.
        again = [Line(line.facility, line.number, line.seed) for line in backed.lines]
        send(restored, again, *(len(line.acknowledged) for line in backed.lines))
        restored.settle(120 + MANY)
        evidence.check(restored.sql, again)
    finally:
        restored.stop()
