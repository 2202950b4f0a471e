"""requirements.lock as data: what is pinned, with which hashes, and why it is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_VIA = re.compile(r"^    #\s+(?:via\s+)?([A-Za-z0-9._-]+(?: \([^)]*\))?)$")


@dataclass(frozen=True, slots=True)
class Pinned:
    """One package. name: normalised (PEP 503); hashes: SHA-256 of its distributions; via: the packages that ask for it."""

    name: str
    version: str
    hashes: tuple[str, ...]
    via: tuple[str, ...]


def normalised(name: str) -> str:
    """A package name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(text: str) -> list[Pinned]:
    """The packages of a lock file, in its order."""
    found = []
    for block in re.split(r"(?m)^(?=[A-Za-z0-9])", text):
        pinned = _PINNED.match(block)
        if pinned:
            via = [m[1].partition(" ")[0] for line in block.splitlines() if (m := _VIA.match(line)) and m[1] != "via"]
            found.append(
                Pinned(normalised(pinned[1]), pinned[2], tuple(_HASH.findall(block)), tuple(normalised(v) for v in via))
            )
    return found
