"""Programs hospitals have: dcmtk's storescu sends, a real Orthanc gets the pixels and is polled, by QIDO-RS and by C-FIND."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from adapters.dicom.package import unpack
from adapters.transports import dicom_scp
from fhir_server.imaging.archive import Archive
from fhir_server.imaging.ask import ByFind, asking
from fhir_server.imaging.forward import Forwarder
from fhir_server.imaging.found import package
from fhir_server.imaging.poll import Poller
from fhir_server.imaging.receive import ImageReceiver
from fhir_server.imaging.sources import Sources
from fhir_server.ingest import inbox
from fhir_server.store.database import open_pool
from mappings.profile import load_profiles
from tests.ct_slices import STUDY, ct_slice, part10
from tests.edge.conftest import Serve, eventually

AT = datetime(2026, 3, 4, 2, 0, tzinfo=UTC)
"""The day of the slices (Study Date 20260304)."""
WITHIN = 60.0


@dataclass(frozen=True)
class Orthanc:
    """A running one."""

    web: str
    port: int


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as line:
        return int(line.getsockname()[1])


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """Orthanc with its DICOMweb plugin on free ports, its storage in a temporary folder."""
    http, dicom = free_port(), free_port()
    settings = {
        "Name": "ARCHIVE",
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ARCHIVE",
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
    }
    path = tmp_path / "orthanc.json"
    path.write_text(json.dumps(settings), "utf-8")
    environment = dict(os.environ, LC_ALL="C.UTF-8")
    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(path)], stdout=log, stderr=log, env=environment)
        try:
            until = time.monotonic() + WITHIN
            while True:
                try:
                    httpx.get(f"http://127.0.0.1:{http}/dicom-web/studies", trust_env=False).raise_for_status()
                    break
                except httpx.HTTPError:
                    assert process.poll() is None, "Orthanc ended"
                    assert time.monotonic() < until
                    time.sleep(0.1)
            yield Orthanc(f"http://127.0.0.1:{http}/dicom-web", dicom)
        finally:
            process.terminate()
            process.wait()


def profile(orthanc: Orthanc) -> str:
    return f"""
id: h
organization: {{name: 试验医院}}
pacs:
  - {{name: archive, dicomweb: '{orthanc.web}', poll: qido, since: 2026-03-03}}
  - {{name: finder, host: 127.0.0.1, port: {orthanc.port}, ae: ARCHIVE, poll: find}}
image_sources:
  - {{name: send, ae: SEND, pixels: forward, pacs: archive}}
"""


def storescu(port: int, called: str, *files: Path) -> None:
    command = ["storescu", "-aet", "SEND", "-aec", called, "127.0.0.1", str(port), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN, check=False)
    assert done.returncode == 0, done.stderr


def written(folder: Path, number: int, study: str = STUDY, **corrected: str) -> Path:
    path = folder / f"{study}.{number}.dcm"
    told = ct_slice(number, study=study, pixels=131_072)
    for keyword, value in corrected.items():
        setattr(told, keyword, value)
    path.write_bytes(part10(told))
    return path


def forget(orthanc: Orthanc, study: str) -> None:
    root = orthanc.web.removesuffix("/dicom-web")
    query = {"Level": "Study", "Query": {"StudyInstanceUID": study}}
    for found in httpx.post(f"{root}/tools/find", json=query, trust_env=False).raise_for_status().json():
        httpx.delete(f"{root}/studies/{found}", trust_env=False).raise_for_status()


def test_a_modality_sends_through_us_to_orthanc_and_orthanc_is_polled(
    database_url: str, orthanc: Orthanc, tmp_path: Path
) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "h.yaml").write_text(profile(orthanc), encoding="utf-8")
    profiles = load_profiles(folder)
    web, finder = profiles["h"].facility.pacs
    late = STUDY + "9"

    async def work() -> None:
        async with AsyncExitStack() as stack:
            pool = await open_pool(database_url, 3)
            stack.push_async_callback(pool.close)
            outgoing = tmp_path / "outgoing"
            receiver = ImageReceiver(pool, Sources(profiles), outgoing, quiet=900, settle=900, clock=lambda: AT)
            await receiver.open()
            stack.push_async_callback(receiver.close)
            bound = socket.create_server(("127.0.0.1", 0))
            server = dicom_scp.serve(bound, receiver, ae_title="TONGJIAN", incoming=tmp_path / "incoming")
            stack.push_async_callback(asyncio.to_thread, server.stop)
            await asyncio.to_thread(storescu, server.port, "TONGJIAN", written(tmp_path, 1), written(tmp_path, 2))

            archive = Archive(web)
            stack.push_async_callback(archive.close)
            while await Forwarder(pool, "h", archive, outgoing).send_some():
                pass
            found = await pool.fetch("SELECT pixels, reason FROM image_object")
            assert [tuple(f) for f in found] == [("sent", None), ("sent", None)]
            assert not list(outgoing.rglob("*.dcm"))

            poller = Poller(pool, profiles["h"], web, asking(archive, "TONGJIAN"), quiet=0, clock=lambda: AT)
            assert await poller.round() == 1
            assert await poller.round() == 0
            # The study grew in the archive, and one of the day before came late.
            await asyncio.to_thread(storescu, orthanc.port, "ARCHIVE", written(tmp_path, 3), written(tmp_path, 1, late))
            assert await poller.round() == 2
            # A new process goes on where the last one was.
            again = Poller(pool, profiles["h"], web, asking(archive, "TONGJIAN"), quiet=0, clock=lambda: AT)
            assert await again.round() == 0
            raws = [inbox.decompress(r["raw"]) for r in await pool.fetch("SELECT raw FROM inbox ORDER BY id")]
            assert sorted(len(list(unpack(raw))) for raw in raws) == [1, 2, 3]
            assert {r["format"] for r in await pool.fetch("SELECT format FROM inbox")} == {"dicom"}

            asked = ByFind(finder, "TONGJIAN")
            assert {s.uid for s in await asked.studies(AT.date())} == {STUDY, late}
            told = await asked.instances(STUDY)
            assert {str(one.SOPInstanceUID) for one in told} == {str(ct_slice(n).SOPInstanceUID) for n in (1, 2, 3)}
            assert {(str(one.PatientID), str(one.Modality), str(one.AccessionNumber)) for one in told} == {
                ("B000777", "CT", "CT777")
            }
            assert len(list(unpack(package(told)))) == 3

            # The archive corrects whose a study is; the number of its images stays.
            await asyncio.to_thread(forget, orthanc, late)
            mended = written(tmp_path, 1, late, PatientID="B000778")
            await asyncio.to_thread(storescu, orthanc.port, "ARCHIVE", mended)
            assert await again.round() == 1
            assert await again.round() == 0

    asyncio.run(work())


SERVED = """
id: alpha
organization: {{name: 甲县人民医院}}
pacs:
  - {{name: archive, dicomweb: '{web}'}}
image_sources:
  - {{name: send, ae: SEND, pixels: forward, pacs: archive, addresses: [127.0.0.1/32]}}
"""


def test_a_study_sent_to_the_server_is_found_by_clinicians_systems_and_its_pictures_are_shown(
    serve: Serve, orthanc: Orthanc, tmp_path: Path, database_url: str
) -> None:
    port = free_port()
    settings = {"dicom_port": port, "dicom_study_seconds": 2, "dicom_release_seconds": 0, "workers": 1}
    with serve(SERVED.format(web=orthanc.web), **settings) as served, served.client() as http:
        storescu(port, "TONGJIAN", written(tmp_path, 1), written(tmp_path, 2))

        def studies() -> list[Any]:
            found = http.get("/fhir/ImagingStudy", params={"identifier": f"urn:dicom:uid|urn:oid:{STUDY}"})
            return [entry["resource"] for entry in found.raise_for_status().json().get("entry", [])]

        assert eventually(lambda: bool(studies()), WITHIN)
        (study,) = studies()
        assert (study["numberOfSeries"], study["numberOfInstances"]) == (1, 2)
        place = f"/imaging/ImagingStudy/{study['id']}"
        (series,) = study["series"]
        instance = series["instance"][0]["uid"]
        picture = f"{place}/series/{series['uid']}/instances/{instance}/rendered"
        assert eventually(lambda: http.get(picture).status_code == 200, WITHIN)
        for path in (
            picture,
            f"{place}/series/{series['uid']}/instances/{instance}/frames/1/rendered",
            f"{place}/thumbnail",
        ):
            shown = http.get(path)
            assert shown.status_code == 200, shown.text
            assert shown.headers["content-type"] in ("image/jpeg", "image/png")
            assert shown.content[:2] in (b"\xff\xd8", b"\x89P")
        assert http.get(f"{place}/series/{series['uid']}/instances/1.2.3/rendered").status_code == 404
        assert http.get(f"/imaging/ImagingStudy/{study['id'][:-1]}x/thumbnail").status_code == 404
        with served.client(token=False) as nobody:
            assert nobody.get(picture).status_code == 401
        with served.client("auditor") as auditor:
            assert auditor.get(picture).status_code == 403
        with served.client("clinician") as stranger:
            # No treatment relationship: for him the study does not exist.
            assert stranger.get(picture).status_code == 404
    with psycopg.connect(database_url) as conn:
        looks = conn.execute(
            "SELECT count(*) FROM audit_entry WHERE entry::jsonb ->> 'interaction' = 'rendered'"
            " AND entry::jsonb ->> 'outcome' = '0' AND entry::jsonb ->> 'resource' = %s",
            (f"ImagingStudy/{study['id']}",),
        ).fetchone()
    assert looks is not None
    assert looks[0] >= 3
