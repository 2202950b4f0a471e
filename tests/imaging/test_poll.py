"""fhir_server.imaging.poll: what an archive lists later counts, also fewer images; one that tells no number is asked again."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from pydicom.dataset import Dataset

from adapters.convert import convert
from adapters.dicom.package import header_bytes, pack
from fhir_server.imaging import poll
from fhir_server.imaging.ask import Study
from fhir_server.imaging.found import package
from fhir_server.imaging.poll import Poller
from fhir_server.ingest import inbox
from fhir_server.store.database import open_pool
from mappings.model import Recency
from mappings.profile import load_profiles
from tests.ct_slices import STUDY, ct_slice, part10

AT = datetime(2026, 3, 4, 2, 0, tzinfo=UTC)
PROFILE = """
id: h
organization: {name: 试验医院}
identifiers: {patient: ["", PI]}
pacs: [{name: archive, dicomweb: 'http://127.0.0.1:9/dicom-web'}]
"""


class Listing:
    """An archive that has some slices of one study, and may tell how many."""

    def __init__(self, *slices: int, told: bool) -> None:
        self.slices = slices
        self.told = told

    async def studies(self, day: date) -> list[Study]:
        return [Study(STUDY, len(self.slices) if self.told else -1, "")] if day == AT.date() else []

    async def instances(self, uid: str) -> list[Dataset]:
        return [ct_slice(n) for n in self.slices]


def test_a_study_of_an_archive_that_tells_no_number_is_fetched_again(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "h.yaml").write_text(PROFILE, encoding="utf-8")
    profile = load_profiles(tmp_path)["h"]

    async def work() -> list[int]:
        pool: asyncpg.Pool = await open_pool(database_url, 2)
        listing = Listing(1, 2, told=False)
        poller = Poller(pool, profile, profile.facility.pacs[0], listing, quiet=0, clock=lambda: AT)
        try:
            fresh = [await poller.round(), await poller.round()]
            monkeypatch.setattr(poll, "_AGAIN", 0.0)
            fresh.append(await poller.round())
            listing.slices = (1, 2, 3)
            fresh.append(await poller.round())
            sizes = [inbox.decompress(r["raw"]) for r in await pool.fetch("SELECT raw FROM inbox ORDER BY id")]
            assert len(sizes) == 2
            return fresh
        finally:
            await pool.close()

    assert asyncio.run(work()) == [1, 0, 0, 1]


def recency(raw: bytes, folder: Path, at: datetime) -> tuple[Recency, int]:
    """How new a package is as a statement about its study, and the number of its instances."""
    (folder / "h.yaml").write_text(PROFILE, encoding="utf-8")
    found = convert(raw, load_profiles(folder)["h"], "dicom", at.isoformat())
    assert found.held is None
    (study,) = (e for e in found.entries if e.resource["resourceType"] == "ImagingStudy")
    return study.recency, study.resource["numberOfInstances"]


def order(one: Recency) -> tuple[int, str, str]:
    return one.tier, one.reported_at, one.sent_at


def test_images_that_an_archive_no_longer_lists_are_no_longer_of_the_study(tmp_path: Path) -> None:
    """Whereas a modality that sends some images again takes none back: C-STORE has no word for it."""
    later = AT + timedelta(hours=1)
    full, full_count = recency(package(ct_slice(n) for n in (1, 2, 3)), tmp_path, AT)
    fewer, fewer_count = recency(package(ct_slice(n) for n in (1, 2)), tmp_path, later)
    assert (full_count, fewer_count) == (3, 2)
    assert order(full) < order(fewer)
    sent, _ = recency(pack(header_bytes(part10(ct_slice(n))) for n in (1, 2, 3)), tmp_path, AT)
    again, _ = recency(pack(header_bytes(part10(ct_slice(n))) for n in (1, 2)), tmp_path, later)
    assert order(again) < order(sent) < order(full)
