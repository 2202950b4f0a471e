"""``tongjian bench cstore``: a CT study sent by C-STORE, its headers committed before each answer; dcmtk's storescp beside it.

Both receivers get the same files from dcmtk's storescu, with TCP_NODELAY=1. storescp commits nothing: it shows
the speed of this machine and its sender.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from fhir_server.bench.server import BenchFailed, database, peak_megabytes
from fhir_server.settings import Settings

SEED: Final = 20260304
AE: Final = "TONGJIAN"
_PROFILE = """id: bench
organization: {name: 试验医院}
pacs:
  - {name: archive, dicomweb: 'http://127.0.0.1:9/dicom-web'}
image_sources:
  - {name: copy, ae: COPY, pixels: drop, pacs: archive}
  - {name: keep, ae: KEEP, pixels: folder, folder: kept}
"""
_START_WITHIN = 60.0


def run(settings: Settings, *, slices: int, pixels: int, associations: int) -> dict[str, Any]:
    """slices: objects of ``pixels`` bytes; associations: at once, each with its part. Raises BenchFailed without dcmtk."""
    if shutil.which("storescu") is None or shutil.which("storescp") is None:
        raise BenchFailed("storescu and storescp are needed: install Debian's dcmtk.")
    with tempfile.TemporaryDirectory(prefix="tongjian-cstore-") as temporary:
        folder = Path(temporary)
        study = folder / "study"
        size = write_study(study, slices, pixels)
        parts = [sorted(study.iterdir())[n::associations] for n in range(associations)]
        with _storescp(folder / "beside") as port:
            beside = slices / _send(parts, port, "COPY")
        (folder / "profiles").mkdir()
        (folder / "profiles" / "bench.yaml").write_text(_PROFILE, "utf-8")
        with database(settings) as url, _receiver(settings, url, folder / "profiles") as (port, pid):
            figures: dict[str, Any] = {
                "objects": slices,
                "associations": associations,
                "megabytes": round(size / 1e6, 1),
            }
            with psycopg.connect(url, autocommit=True) as conn:
                for name, ae in (("objects_per_s", "COPY"), ("kept_objects_per_s", "KEEP")):
                    conn.execute("TRUNCATE image_object, image_study")
                    figures[name] = round(slices / _send(parts, port, ae), 1)
                    found = conn.execute("SELECT count(*) FROM image_object").fetchone()
                    if found != (slices,):
                        raise BenchFailed(f"{slices} objects were answered with success and {found} are stored.")
            figures["storescp_objects_per_s"] = round(beside, 1)
            figures["receiver_peak_mb"] = round(peak_megabytes(pid), 1)
    return figures


def write_study(folder: Path, slices: int, pixels: int) -> int:
    """Writes the files of one study; gives their bytes. The same seed writes the same pixels."""
    folder.mkdir()
    chosen = random.Random(SEED)  # noqa: S311 - test data
    study, series = generate_uid(), generate_uid()
    noise = chosen.randbytes(pixels + slices)
    written = 0
    for number in range(slices):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = study, series
        slice_.PatientID, slice_.PatientName, slice_.PatientSex = "B000001", "SHI^YAN", "O"
        slice_.StudyDate, slice_.StudyTime, slice_.AccessionNumber = "20260304", "101500", "CT0001"
        slice_.Modality, slice_.BodyPartExamined, slice_.SeriesDescription = "CT", "CHEST", "Chest 1.0 B70f"
        slice_.InstanceNumber, slice_.SliceThickness, slice_.KVP = number + 1, "1.0", "120"
        slice_.ImagePositionPatient = ["-180", "-180", str(-number)]
        slice_.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = 512, pixels // 1024, 1
        slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelData = noise[number : number + pixels]
        path = folder / f"{number:06}.dcm"
        slice_.save_as(path, enforce_file_format=True)
        written += path.stat().st_size
    return written


def _send(parts: list[list[Path]], port: int, ae: str) -> float:
    """Sends each part over an association of its own; gives the seconds."""
    head = ["storescu", "-aet", ae, "-aec", AE, "127.0.0.1", str(port)]
    began = time.monotonic()
    running = [
        subprocess.Popen([*head, *map(str, part)], env=_environment(), stdout=subprocess.DEVNULL)  # noqa: S603
        for part in parts
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise BenchFailed("storescu failed; its messages stand above.")
    return time.monotonic() - began


def _environment(**more: str) -> dict[str, str]:
    return dict(os.environ, TCP_NODELAY="1", **more)


@contextmanager
def _storescp(folder: Path) -> Iterator[int]:
    folder.mkdir()
    port = _free_port()
    command = ["storescp", "-aet", AE, "-od", str(folder), "-pdu", "131072", "--fork", str(port)]
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _receiver(settings: Settings, url: str, profiles: Path) -> Iterator[tuple[int, int]]:
    """`tongjian images` as shipped; gives its port and process id."""
    port = _free_port()
    environment = _environment(
        TONGJIAN_DATABASE_URL=url,
        TONGJIAN_PROFILES_DIR=str(profiles),
        TONGJIAN_DATA_DIR=str(settings.data_dir),
        TONGJIAN_DICOM_PORT=str(port),
        TONGJIAN_DICOM_AE_TITLE=AE,
        TONGJIAN_LOG_LEVEL="WARNING",
    )
    environment.pop("DATABASE_URL", None)
    process = subprocess.Popen([sys.executable, "-m", "fhir_server.cli", "images"], env=environment)
    try:
        _wait_for(port, process)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as line:
        return int(line.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until a C-ECHO is answered."""
    until = time.monotonic() + _START_WITHIN
    echo = ["echoscu", "-aet", "COPY", "-aec", AE, "127.0.0.1", str(port)]
    while time.monotonic() < until and process.poll() is None:
        if subprocess.run(echo, capture_output=True, check=False).returncode == 0:  # noqa: S603
            return
        time.sleep(0.1)
    raise BenchFailed("The receiver did not start.")
