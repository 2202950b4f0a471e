"""A drop folder: what is written while a file is being stored, and names as long as a file system takes."""

from __future__ import annotations

import os
from pathlib import Path

from adapters.transports.folder import DropFolder


def complete(drop: DropFolder) -> list[str]:
    drop.complete()
    return [p.name for p in drop.complete()]


def test_a_file_written_again_while_it_is_stored_stays_and_is_taken_once_more(tmp_path: Path) -> None:
    file = tmp_path / "daily.csv"
    file.write_text("first")
    drop = DropFolder(tmp_path)
    drop.prepare()
    assert complete(drop) == ["daily.csv"]
    assert drop.read(file, 100) == b"first"
    file.write_text("the second day")
    assert drop.finish(file) == file
    assert drop.complete() == []
    assert complete(drop) == ["daily.csv"]
    assert drop.read(file, 100) == b"the second day"
    assert drop.finish(file) == tmp_path / "done" / "daily.csv"


def test_names_as_long_as_a_file_system_takes_fail_each_with_their_reason(tmp_path: Path) -> None:
    """255 bytes are the longest name of ext4 and xfs."""
    drop = DropFolder(tmp_path)
    drop.prepare()
    file = tmp_path / ("检" * 83 + ".xml")
    for reason in ("one", "two"):
        file.write_text("x")
        assert drop.finish(file, reason).parent == tmp_path / "failed"
    failed = sorted((tmp_path / "failed").iterdir())
    assert len(failed) == 4
    assert max(len(os.fsencode(p.name)) for p in failed) <= 255
    said = [p.read_text("utf-8").strip() for p in failed if p.name.endswith(".error.txt")]
    assert sorted(said) == ["one", "two"]


def test_a_name_in_another_character_set_is_no_trouble(tmp_path: Path) -> None:
    drop = DropFolder(tmp_path)
    drop.prepare()
    name = os.fsencode(tmp_path) + b"/\xd6\xd0.xml"
    with open(name, "wb") as file:  # noqa: PTH123 - the name is bytes
        file.write(b"x")
    assert drop.finish(Path(os.fsdecode(name)), "because").exists()
