"""Files that a profile names for another system (certificates, a key, a token): looked for beside the profile, at load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from mappings.facility import Destination, Pacs

FILES: Final = ("ca", "certificate", "key", "token_file")
Wrong = Callable[[tuple[str | int, ...], str], None]
"""Records a fault at a path of the profile."""


def resolved(peer: Destination | Pacs, folder: Path, here: tuple[str | int, ...], wrong: Wrong) -> dict[str, str]:
    """Key -> absolute path of each file that is named; one that is not there is told to ``wrong`` at ``here`` and its key."""
    files = {}
    for key in FILES:
        name = getattr(peer, key)
        if name:
            path = (folder / name).resolve()
            files[key] = str(path)
            if not path.is_file():
                wrong((*here, key), f"{name!r} is not a file (looked for beside the profile)")
    return files
