"""fhir_server.ingest.files: a file that cannot be read keeps no other waiting."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.transports.folder import DropFolder
from fhir_server.ingest.files import FileIntake


class Kept:
    """What would be stored, and a study that never comes."""

    def __init__(self) -> None:
        self.stored: list[str] = []

    async def store(self, arrival: Any) -> None:
        self.stored.append(arrival.control_id)

    def hear(self, facility: str, channel: str) -> None:
        """Nothing listens."""

    async def pack(self, *, last: bool = False) -> None:
        """No images."""


def test_a_file_that_cannot_be_read_is_left_and_the_others_are_taken(
    profiles: Any, tmp_path: Path, oru: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.hl7").write_bytes(oru("M1"))
    (tmp_path / "z.hl7").write_bytes(oru("M2"))
    read = DropFolder.read

    def refusing(drop: DropFolder, path: Path, most: int) -> bytes | None:
        if path.name == "a.hl7":
            raise PermissionError
        return read(drop, path, most)

    monkeypatch.setattr(DropFolder, "read", refusing)
    kept = Kept()
    made = FileIntake(
        tmp_path, profiles["alpha"], cast("Any", kept), lambda: datetime.now(UTC), profiles, lambda _: cast("Any", kept)
    )

    async def twice() -> list[int]:
        return [await made.look(), await made.look()]

    assert asyncio.run(twice()) == [0, 1]
    assert kept.stored == ["M2"]
    assert (tmp_path / "a.hl7").exists()
    assert (tmp_path / "done" / "z.hl7").exists()
