"""Objects from a real association into a real database: what is durable when a modality is told that its object is stored."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from adapters.dicom.package import unpack
from adapters.transports import dicom_scp
from adapters.transports.dicom_scp import Reference, Server
from fhir_server.imaging import forward
from fhir_server.imaging.receive import ImageReceiver
from fhir_server.imaging.sources import Sources
from fhir_server.imaging.studies import Packer
from fhir_server.ingest import inbox
from fhir_server.store.database import open_pool
from mappings.profile import Profile, load_profiles
from tests.ct_slices import STUDY, ct_slice, part10

AT = datetime(2026, 3, 4, 2, 0, tzinfo=UTC)
PROFILE = """
id: h
organization: {name: 试验医院}
pacs: [{name: archive, dicomweb: 'http://127.0.0.1:9/dicom-web'}]
image_sources:
  - {name: copy, ae: COPY, pixels: drop, pacs: archive}
  - {name: keep, ae: KEEP, pixels: folder, folder: kept}
  - {name: send, ae: SEND, pixels: forward, pacs: archive}
"""


@dataclass
class Receiving:
    pool: asyncpg.Pool
    receiver: ImageReceiver
    server: Server
    profiles: dict[str, Profile]

    async def send(self, ae: str, *objects: Dataset) -> list[int]:
        return await asyncio.to_thread(self._send, ae, objects)

    def _send(self, ae: str, objects: tuple[Dataset, ...]) -> list[int]:
        entity = AE(ae)
        entity.add_requested_context(CTImageStorage)
        assoc = entity.associate("127.0.0.1", self.server.port, ae_title="TONGJIAN")
        found = [int(assoc.send_c_store(one).Status) for one in objects]
        assoc.release()
        return found


@pytest.fixture
def profiles(tmp_path: Path) -> dict[str, Profile]:
    (tmp_path / "h.yaml").write_text(PROFILE, encoding="utf-8")
    return dict(load_profiles(tmp_path))


@asynccontextmanager
async def receiving(url: str, profiles: dict[str, Profile], folder: Path) -> AsyncIterator[Receiving]:
    pool = await open_pool(url, 3)
    receiver = ImageReceiver(pool, Sources(profiles), folder / "outgoing", quiet=0, settle=0, clock=lambda: AT)
    await receiver.open()
    bound = socket.create_server(("127.0.0.1", 0))
    server = dicom_scp.serve(bound, receiver, ae_title="TONGJIAN", incoming=folder / "incoming")
    try:
        yield Receiving(pool, receiver, server, profiles)
    finally:
        await asyncio.to_thread(server.stop)
        await receiver.close()
        await pool.close()


async def rows(pool: asyncpg.Pool, columns: str) -> list[Any]:
    return [tuple(r) for r in await pool.fetch(f"SELECT {columns} FROM image_object ORDER BY instance")]


def test_header_bytes_are_stored_as_they_came_and_a_repeated_object_changes_nothing(
    database_url: str, profiles: dict[str, Profile], tmp_path: Path
) -> None:
    async def work() -> None:
        async with receiving(database_url, profiles, tmp_path) as r:
            sent = ct_slice(1, pixels=400_000)
            assert await r.send("COPY", sent, sent) == [0, 0]
            ((header, pixels, size, version),) = await rows(
                r.pool, "header, pixels, size, (SELECT version FROM image_study)"
            )
            whole = part10(sent)
            raw = inbox.decompress(header)
            # The data set is what the modality sent, byte by byte; the file's own head is written by the receiver.
            start = whole.index(b"\x08\x00\x16\x00UI")
            assert raw[raw.index(b"\x08\x00\x16\x00UI") :] == whole[start : whole.index(b"\xe0\x7f\x10\x00OW")]
            assert (pixels, version) == ("dropped", 1)
            assert size > 400_000

    asyncio.run(work())


def test_kept_pixels_lie_in_the_folder_and_are_committed_to(
    database_url: str, profiles: dict[str, Profile], tmp_path: Path
) -> None:
    async def work() -> None:
        async with receiving(database_url, profiles, tmp_path) as r:
            sent, other = ct_slice(1), ct_slice(1)
            other.PixelData = bytes(2048)
            assert await r.send("KEEP", sent, sent, other) == [0, 0, 0]
            files = sorted((tmp_path / "kept").rglob("*.dcm"))
            # Another content under the same UID takes nothing away.
            assert len(files) == 2
            assert {hashlib.sha256(f.read_bytes()[-2048:]).digest() for f in files} == {
                hashlib.sha256(bytes(o.PixelData)).digest() for o in (sent, other)
            }
            source = next(b for b in Sources(profiles).all() if b.source.ae == "KEEP")
            asked = [Reference(CTImageStorage, str(ct_slice(n).SOPInstanceUID)) for n in (1, 2)]
            assert await asyncio.to_thread(r.receiver.committed, source, asked) == [0, dicom_scp.NO_SUCH_INSTANCE]

    asyncio.run(work())


def test_a_copy_takes_nothing_from_pixels_that_are_kept_or_on_their_way(
    database_url: str, profiles: dict[str, Profile], tmp_path: Path
) -> None:
    async def work() -> None:
        async with receiving(database_url, profiles, tmp_path) as r:
            first, second = ct_slice(1), ct_slice(2)
            assert await r.send("KEEP", first) == [0]
            assert await r.send("SEND", second) == [0]
            before = await rows(r.pool, "pixels, place, archive, due, content")
            assert [row[0] for row in before] == ["kept", "waiting"]
            for one in (first, second):
                one.StudyDescription = "Chest, corrected"
            assert await r.send("COPY", first, second) == [0, 0]
            assert await rows(r.pool, "pixels, place, archive, due, content") == before
            headers = [inbox.decompress(header) for (header,) in await rows(r.pool, "header")]
            assert all(b"Chest, corrected" in header for header in headers)

    asyncio.run(work())


def test_what_is_no_dicom_object_or_another_one_is_refused(
    database_url: str, profiles: dict[str, Profile], tmp_path: Path
) -> None:
    async def work() -> None:
        async with receiving(database_url, profiles, tmp_path) as r:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert await r.send("KEEP", ct_slice(1, study="../../etc")) == [dicom_scp.CANNOT_UNDERSTAND]
            source = next(b for b in Sources(profiles).all() if b.source.ae == "KEEP")
            path = tmp_path / "x.dcm"
            path.write_bytes(part10(ct_slice(1)))
            received = dicom_scp.Received(CTImageStorage, "1.2.3", "1.2.840.10008.1.2.1", path, 1)
            assert await asyncio.to_thread(r.receiver.store, source, received) == dicom_scp.MISMATCH
            path.write_bytes(b"x" * 500)
            assert await asyncio.to_thread(r.receiver.store, source, received) == dicom_scp.CANNOT_UNDERSTAND
            assert not list((tmp_path / "kept").rglob("*.dcm"))
            assert await rows(r.pool, "instance") == []

    asyncio.run(work())


def test_without_the_database_the_modality_is_told_to_keep_its_object(
    database_url: str, profiles: dict[str, Profile], tmp_path: Path
) -> None:
    async def work() -> None:
        async with receiving(database_url, profiles, tmp_path) as r:
            await r.receiver.close()
            assert await r.send("COPY", ct_slice(1)) == [dicom_scp.OUT_OF_RESOURCES]

    asyncio.run(work())


def test_what_waits_for_its_archive_survives_the_sweep_and_what_nobody_waits_for_does_not(
    database_url: str, profiles: dict[str, Profile], tmp_path: Path
) -> None:
    async def work() -> None:
        async with receiving(database_url, profiles, tmp_path) as r:
            assert await r.send("SEND", ct_slice(1)) == [0]
            (tmp_path / "outgoing" / "left.part").write_bytes(b"x")
            assert await forward.sweep(r.pool, tmp_path / "outgoing") == 1
            assert await rows(r.pool, "pixels") == [("waiting",)]
            (file,) = (tmp_path / "outgoing").rglob("*.dcm")
            assert file.read_bytes().endswith(bytes(ct_slice(1).PixelData))

    asyncio.run(work())


def test_a_growing_study_goes_to_the_inbox_once_for_each_rest_with_everything_so_far(
    database_url: str, profiles: dict[str, Profile], tmp_path: Path
) -> None:
    async def work() -> None:
        async with receiving(database_url, profiles, tmp_path) as r:
            packer = Packer(r.pool, r.profiles, lambda: AT)
            assert await r.send("COPY", ct_slice(2), ct_slice(1)) == [0, 0]
            assert await packer.pack_one()
            assert not await packer.pack_one()
            assert await r.send("COPY", ct_slice(1)) == [0]
            assert not await packer.pack_one()
            assert await r.send("COPY", ct_slice(3)) == [0]
            assert await packer.pack_one()
            found = await r.pool.fetch("SELECT format, facility, channel, status, raw FROM inbox ORDER BY id")
            assert {tuple(f)[:4] for f in found} == {("dicom", "h", "copy", "ready")}
            numbers = [len(list(unpack(inbox.decompress(f["raw"])))) for f in found]
            assert numbers == [2, 3]
            assert STUDY.encode() in inbox.decompress(found[0]["raw"])

    asyncio.run(work())
