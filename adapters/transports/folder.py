"""A drop folder: files somebody copies there, taken when they are complete, then moved to ``done`` or ``failed``.

A file is complete when its size and time did not change between two looks. Only plain files right in the folder are taken: no links,
no names that begin with a dot or end like an unfinished copy. Nothing a file is called leads outside the folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

DONE, FAILED = "done", "failed"
_UNFINISHED = (".tmp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")
SIDECAR = ".error.txt"
_LONGEST_NAME = 255


class DropFolder:
    """One folder. Look at it now and then: what did not change between two looks is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[int, int]] = {}
        self._read: dict[str, tuple[int, int, int]] = {}

    def prepare(self) -> None:
        """Makes ``done`` and ``failed``. Raises OSError when the folder cannot be written."""
        for name in (DONE, FAILED):
            (self.folder / name).mkdir(exist_ok=True)

    def complete(self) -> list[Path]:
        """Files that are as they were at the last look, oldest first. Raises OSError when the folder is gone."""
        now: dict[str, tuple[int, int]] = {}
        for entry in self._files():
            found = entry.stat(follow_symlinks=False)
            now[entry.name] = (found.st_mtime_ns, found.st_size)
        ready = sorted((state, name) for name, state in now.items() if self._seen.get(name) == state)
        self._seen = now
        return [self.folder / name for _, name in ready]

    def _files(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                plain = entry.is_file(follow_symlinks=False) and not entry.name.startswith(".")
                if plain and not entry.name.lower().endswith(_UNFINISHED):
                    yield entry

    def read(self, path: Path, most: int) -> bytes | None:
        """The bytes of a file, None when it has more than ``most``. Raises OSError, also when the file became a link meanwhile."""
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise OSError("not a plain file")
            self._read[path.name] = _state(found)
            raw = file.read(most + 1)
        return raw if len(raw) <= most else None

    def finish(self, path: Path, fault: str = "") -> Path:
        """Moves a file to ``done``, or with a ``fault`` to ``failed`` beside a text file that says it. Gives the new place.

        A name that is taken there gets a number, so that nothing is overwritten. A file that was written again since it was read stays
        where it is, and is taken once more.
        """
        self._seen.pop(path.name, None)
        read = self._read.pop(path.name, None)
        if read is not None and _state(path.stat(follow_symlinks=False)) != read:
            return path
        target = self.folder / (FAILED if fault else DONE)
        place = target / path.name
        number = 1
        while place.exists() or place.is_symlink():
            number += 1
            place = target / _fitting(path.stem, f".{number}{path.suffix}")
        if fault:
            (target / _sidecar(place.name)).write_text(fault + "\n", encoding="utf-8")
        path.rename(place)
        return place


def _state(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _sidecar(name: str) -> str:
    return _fitting(name, SIDECAR)


def _fitting(name: str, ending: str) -> str:
    """A name with an ending. Longer than file systems take (255 bytes, 85 Chinese characters) it is cut and gets a digest."""
    if len(os.fsencode(name + ending)) <= _LONGEST_NAME:
        return name + ending
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    while len(os.fsencode(f"{name}-{digest}{ending}")) > _LONGEST_NAME:
        name = name[:-1]
    return f"{name}-{digest}{ending}"
