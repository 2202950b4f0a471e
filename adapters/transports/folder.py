"""A drop folder: files somebody copies there, taken when they are complete, then moved to ``done`` or ``failed``.

A file is complete when its size and time did not change between two looks. One that somebody goes on writing after it was moved away
comes back and is taken once more, so that a slow copy is never half a file. Only plain files right in the folder are taken: no links,
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
_REMEMBERED = 1000
"""Files moved away of which it is watched whether somebody still writes them."""


class DropFolder:
    """One folder. Look at it now and then: what did not change between two looks is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[int, int]] = {}
        self._read: dict[str, tuple[int, int, int]] = {}
        self._moved: dict[Path, tuple[str, tuple[int, int, int]]] = {}

    def prepare(self) -> None:
        """Makes ``done`` and ``failed``. Raises OSError when the folder cannot be written."""
        for name in (DONE, FAILED):
            (self.folder / name).mkdir(exist_ok=True)

    def complete(self) -> list[Path]:
        """Files that are as they were at the last look, oldest first. Raises OSError when the folder is gone."""
        self._bring_back()
        now: dict[str, tuple[int, int]] = {}
        for entry in self._files():
            found = entry.stat(follow_symlinks=False)
            now[entry.name] = (found.st_mtime_ns, found.st_size)
        ready = sorted((state, name) for name, state in now.items() if self._seen.get(name) == state)
        self._seen = now
        return [self.folder / name for _, name in ready]

    def _bring_back(self) -> None:
        """Files that changed since they were moved away go back under their name, unless that is taken or somebody cleared them."""
        for place, (name, state) in list(self._moved.items()):
            back = self.folder / name
            try:
                if _state(place.stat(follow_symlinks=False)) == state:
                    continue
                if not os.path.lexists(back):
                    place.rename(back)
                    (place.parent / _sidecar(place.name)).unlink(missing_ok=True)
                    del self._moved[place]
            except FileNotFoundError:
                del self._moved[place]

    def _files(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                plain = entry.is_file(follow_symlinks=False) and not entry.name.startswith(".")
                if plain and not entry.name.lower().endswith(_UNFINISHED):
                    yield entry

    def read(self, path: Path, most: int) -> bytes | None:
        """The bytes of a file, None when it has more than ``most``. Raises OSError, also when the file became a link meanwhile."""
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
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
        while os.path.lexists(place) or (fault and os.path.lexists(target / _sidecar(place.name))):
            number += 1
            place = target / _fitting(path.stem, f".{number}{path.suffix}")
        if fault:
            # "x": a link of that name is not followed.
            with (target / _sidecar(place.name)).open("x", encoding="utf-8", errors="replace") as said:
                said.write(fault + "\n")
        path.rename(place)
        if read is not None:
            self._moved[place] = (path.name, read)
            while len(self._moved) > _REMEMBERED:
                del self._moved[next(iter(self._moved))]
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
