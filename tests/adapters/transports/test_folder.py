"""A drop folder: what is written while a file is being stored, and names as long as a file system takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("fault", "place"), [("", "done"), ("because", "failed")])
def test_a_copy_that_pauses_longer_than_the_look_comes_back_and_is_taken_whole(
    tmp_path: Path, fault: str, place: str
) -> None:
    drop = DropFolder(tmp_path)
    drop.prepare()
    with (tmp_path / "slow.csv").open("wb", buffering=0) as copy:
        copy.write(b"first half, ")
        assert complete(drop) == ["slow.csv"]
        assert drop.read(tmp_path / "slow.csv", 100) == b"first half, "
        assert drop.finish(tmp_path / "slow.csv", fault) == tmp_path / place / "slow.csv"
        assert complete(drop) == []
        copy.write(b"second half")
    assert complete(drop) == ["slow.csv"]
    assert drop.read(tmp_path / "slow.csv", 100) == b"first half, second half"
    assert drop.finish(tmp_path / "slow.csv") == tmp_path / "done" / "slow.csv"
    assert list((tmp_path / "failed").iterdir()) == []


def test_what_is_moved_away_stays_while_its_name_is_taken_and_is_forgotten_when_cleared(tmp_path: Path) -> None:
    drop = DropFolder(tmp_path)
    drop.prepare()
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("x")
        drop.read(tmp_path / name, 100)
        drop.finish(tmp_path / name)
    (tmp_path / "done" / "a.csv").write_text("longer")
    (tmp_path / "done" / "b.csv").unlink()
    (tmp_path / "a.csv").write_text("another day")
    assert complete(drop) == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "another day"
    assert (tmp_path / "done" / "a.csv").read_text() == "longer"


def test_the_words_beside_a_failed_file_overwrite_no_other_file_and_follow_no_link(tmp_path: Path) -> None:
    drop = DropFolder(tmp_path)
    drop.prepare()
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "failed" / "l.csv.error.txt").symlink_to(tmp_path / "outside")
    for name in ("a.csv.error.txt", "a.csv", "l.csv"):
        (tmp_path / name).write_text(f"the file {name}")
        place = drop.finish(tmp_path / name, "because")
        assert place.read_text() == f"the file {name}"
    assert (tmp_path / "failed" / "a.csv.error.txt").read_text() == "the file a.csv.error.txt"
    assert (tmp_path / "outside").read_text() == "mine"
