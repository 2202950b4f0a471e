"""Names of regions (GB/T 2260) as people write them -> codes.

A county is named alone (``淳安县``), after its city or after its province; a district also without them where only one has the name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from mappings.csv_rows import Problem, read_rows

_CODE: Final = re.compile(r"^(\d{2}|\d{4}|\d{6})$")
_OTHER_NAMES: Final = {"全区": "150000"}
"""What people call a region beside its names: Inner Mongolia's mark reads 全区HR (Chifeng)."""


@dataclass(frozen=True, slots=True)
class Regions:
    """names: six-digit code -> (full name, short name as marks print it, may be empty)."""

    names: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    _words: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        found: dict[str, set[str]] = {}
        for code, (name, short) in self.names.items():
            for word in {name, short, *self._longer(code, name)}:
                if word:
                    found.setdefault(word, set()).add(code)
        self._words.update({word: tuple(sorted(codes)) for word, codes in found.items()})

    def _longer(self, code: str, name: str) -> set[str]:
        """The name after those of its province and city, and a district's without the city's."""
        province, city = (self.names.get(c, ("", ""))[0] for c in (code[:2] + "0000", code[:4] + "00"))
        own = name.removeprefix(province).removeprefix(city) or name
        return {own, city + own, province + own, province + city + own}

    def codes(self, text: str) -> tuple[str, ...]:
        """A code or a name -> the codes it may mean: none when it is no region, several when more than one bears the name."""
        if _CODE.match(text):
            return (text,)
        if text in _OTHER_NAMES:
            return (_OTHER_NAMES[text],)
        return self._words.get(text, ())

    def label(self, code: str) -> str:
        """Short name, else the full one, else the code."""
        name, short = self.names.get(code.ljust(6, "0"), ("", ""))
        return short or name or code


def load(path: Path, problems: list[Problem]) -> Regions:
    """``regions.csv`` -> Regions; faults go to ``problems``."""
    regions, found = _load(path, path.stat().st_mtime_ns if path.is_file() else 0)
    problems.extend(found)
    return regions


@lru_cache(maxsize=4)
def _load(path: Path, changed: int) -> tuple[Regions, tuple[Problem, ...]]:
    problems: list[Problem] = []
    rows = read_rows(path, ("code", "name", "short"), ("note",), problems)
    return Regions({row["code"]: (row["name"], row["short"]) for row in rows}), tuple(problems)
