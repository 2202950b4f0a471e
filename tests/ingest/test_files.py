"""fhir_server.ingest.files: a drop folder, from the file to stored resources on the real database."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from adapters.dicom.package import unpack
from adapters.transports.folder import DropFolder
from fhir_server.imaging.dropped import DroppedImages
from fhir_server.ingest import inbox
from fhir_server.ingest.files import FileIntake
from fhir_server.ingest.receive import Receiver
from fhir_server.ingest.worker import Worker
from fhir_server.store.database import open_pool
from tests.dicom_objects import image, part10

GOLDEN = Path(__file__).parents[1] / "mappings" / "golden"
CDA = (GOLDEN / "cda-c0007-blood-count.xml").read_bytes()


def taking(url: str, folder: Path, profiles: Any, story: Callable[[FileIntake], Awaitable[None]]) -> None:
    """Runs a story with the intake of facility ``alpha``."""

    async def run() -> None:
        pool = await open_pool(url, 2)
        receiver = Receiver(pool, profiles, clock=lambda: datetime.now(UTC))
        await receiver.open()
        try:
            images = partial(DroppedImages, pool, profiles["alpha"], quiet=900, clock=lambda: datetime.now(UTC))
            await story(FileIntake(folder, profiles["alpha"], receiver, lambda: datetime.now(UTC), profiles, images))
        finally:
            await receiver.close()
            await pool.close()

    asyncio.run(run())


async def twice(intake: FileIntake) -> None:
    """Two looks: what did not change between them is taken."""
    await intake.look()
    await intake.look()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_files_of_all_kinds_become_resources_and_what_cannot_be_read_is_held_with_the_reason(
    database_url: str, profiles: Any, tmp_path: Path, oru: Any
) -> None:
    (tmp_path / "report.xml").write_bytes(CDA)
    (tmp_path / "results.hl7").write_bytes(oru("M1") + oru("M2", patient="100002"))
    (tmp_path / "other.xml").write_bytes(b"<CardiologyXML><a/></CardiologyXML>")
    (tmp_path / "short.hl7").write_bytes(
        b"FHS|^~\\&|LIS\rBHS|^~\\&|LIS\r" + oru("M4", patient="100004") + b"BTS|2\rFTS|1\r"
    )
    (tmp_path / "foreign.hl7").write_bytes(oru("M3", facility="BETA"))
    (tmp_path / "bomb.xml").write_bytes(
        b'<!DOCTYPE ClinicalDocument [<!ENTITY a "a">]><ClinicalDocument>&a;</ClinicalDocument>'
    )
    taking(database_url, tmp_path, profiles, twice)
    assert names(tmp_path) == ["done", "failed"]
    assert names(tmp_path / "done") == ["report.xml", "results.hl7"]
    assert names(tmp_path / "failed") == [
        n for name in ("bomb.xml", "foreign.hl7", "other.xml", "short.hl7") for n in (name, f"{name}.error.txt")
    ]
    assert "unknown-format" in (tmp_path / "failed" / "other.xml.error.txt").read_text("utf-8")
    assert "counts 2 messages, there are 1" in (tmp_path / "failed" / "short.hl7.error.txt").read_text("utf-8")
    stop = threading.Event()
    worker = threading.Thread(target=Worker(database_url, profiles, stop).run)
    worker.start()
    try:
        with psycopg.connect(database_url, autocommit=True) as conn:
            for _ in range(600):
                if conn.execute("SELECT count(*) FROM inbox WHERE status IN ('ready', 'claimed')").fetchone() == (0,):
                    break
                threading.Event().wait(0.1)
            found = conn.execute("SELECT format, status, reason FROM inbox ORDER BY format, status, reason").fetchall()
            results = conn.execute(
                "SELECT code, number::text, status FROM result WHERE code LIKE 'WBC' OR code LIKE '血%'"
            ).fetchall()
    finally:
        stop.set()
        worker.join(30)
    assert sorted(found, key=str) == sorted(
        [
            ("cda", "done", None),
            ("cda", "held", "xml-forbidden"),
            *[("hl7v2", "done", None)] * 3,
            ("hl7v2", "held", "unknown-facility"),
            ("unknown", "held", "unknown-format"),
        ],
        key=str,
    )
    assert ("WBC", "6.30", "final") in results


def test_a_file_that_still_grows_is_left_alone(database_url: str, profiles: Any, tmp_path: Path, oru: Any) -> None:
    file = tmp_path / "growing.hl7"

    async def story(intake: FileIntake) -> None:
        file.write_bytes(oru("M1")[:40])
        await intake.look()
        file.write_bytes(oru("M1"))
        assert await intake.look() == 0
        assert file.exists()
        assert await intake.look() == 1

    taking(database_url, tmp_path, profiles, story)
    assert names(tmp_path / "done") == ["growing.hl7"]


def test_the_same_file_again_changes_nothing_and_overwrites_nothing(
    database_url: str, profiles: Any, tmp_path: Path
) -> None:
    for _ in range(2):
        (tmp_path / "report.xml").write_bytes(CDA)
        taking(database_url, tmp_path, profiles, twice)
    assert names(tmp_path / "done") == ["report.2.xml", "report.xml"]
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT count(*) FROM inbox").fetchone() == (1,)


def test_links_hidden_and_unfinished_files_are_never_taken(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    folder = tmp_path / "drop"
    folder.mkdir()
    (folder / "link.xml").symlink_to(outside)
    (folder / ".hidden").write_text("x")
    (folder / "copy.part").write_text("x")
    os.mkfifo(folder / "pipe")
    (folder / "sub").mkdir()
    drop = DropFolder(folder)
    drop.complete()
    assert drop.complete() == []
    with pytest.raises(OSError):
        drop.read(folder / "link.xml", 100)


def test_a_file_over_the_limit_fails_without_being_read(database_url: str, profiles: Any, tmp_path: Path) -> None:
    with (tmp_path / "huge.xml").open("wb") as file:
        file.truncate(70 * 1024 * 1024)
    taking(database_url, tmp_path, profiles, twice)
    assert "too-large" in (tmp_path / "failed" / "huge.xml.error.txt").read_text("utf-8")


def test_odd_names_stay_in_the_folder(tmp_path: Path) -> None:
    drop = DropFolder(tmp_path)
    drop.prepare()
    for name in ("a b\n;rm.xml", "..%2f..%2fetc.xml", "报告 1.XML"):
        path = tmp_path / name
        path.write_text("x")
        assert drop.finish(path, "because").parent == tmp_path / "failed"


def test_images_of_a_study_dropped_one_by_one_are_one_message(database_url: str, profiles: Any, tmp_path: Path) -> None:
    async def story(intake: FileIntake) -> None:
        for series, number in ((1, 1), (2, 1), (1, 2)):
            (tmp_path / f"{series}-{number}.dcm").write_bytes(part10(image(series=series, number=number)))
        (tmp_path / "other.dcm").write_bytes(part10(image("2")))
        await twice(intake)
        # The study may still grow: nothing of it is told yet.
        with psycopg.connect(database_url) as conn:
            assert conn.execute("SELECT count(*) FROM inbox").fetchone() == (0,)
        (tmp_path / "1-3.dcm").write_bytes(part10(image(number=3)))
        (tmp_path / "again.dcm").write_bytes(part10(image(number=2)))
        (tmp_path / "cut.dcm").write_bytes(part10(image(number=4))[:-100])
        await twice(intake)
        await intake.end()

    taking(database_url, tmp_path, profiles, story)
    assert len(names(tmp_path / "done")) == 6
    assert names(tmp_path / "failed") == ["cut.dcm", "cut.dcm.error.txt"]
    assert "dicom-truncated" in (tmp_path / "failed" / "cut.dcm.error.txt").read_text("utf-8")
    with psycopg.connect(database_url) as conn:
        found = conn.execute("SELECT raw FROM inbox WHERE format = 'dicom' AND status = 'ready'").fetchall()
        assert sorted(len(list(unpack(inbox.decompress(raw)))) for (raw,) in found) == [1, 4]
        held = conn.execute("SELECT format FROM inbox WHERE status = 'held'").fetchall()
    assert held == [("dicom",)]
