"""Classes of sensitive data (HIV, mental health, genetics) and how a resource shows that it belongs to one: table sensitive.csv.

A resource belongs to a class when one of its codes, security labels or words does, wherever it stands, or when its catalogue item does;
words also in texts that are attached to it, not in other attachments.
Rather too much than too little: what is classed needs a grant to be seen, and is not lost.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from mappings import catalogue
from mappings.csv_rows import Problem, read_rows

CLASSES: Final = ("hiv", "mental-health", "genetics", "other")
"""Names of the classes; the place of each is its bit. ``other``: classes a consortium's own catalogue names."""
ALL: Final = (1 << len(CLASSES)) - 1

_FILE: Final = Path(__file__).with_name("sensitive.csv")
_ICD: Final = "icd-10"
# GB/T 14396 is 2.16.156.10011.2.3.3.11 in the documents of WS/T 500.
_IS_ICD: Final = re.compile(r"icd-?10|14396|2\.16\.156\.10011\.2\.3\.3\.11\b", re.IGNORECASE)
_SHORT: Final = 512
"""Bytes of a member worth remembering."""
_REMEMBERED: Final = 16_384
_OF_LATE: Final = 512
_MUTE: Final = re.compile(
    rb'"id":"[A-Za-z0-9.-]{1,64}"'
    rb'|"[A-Za-z]+":"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(?:Z|[+-][0-9:]{5})"'
    rb'|"[A-Za-z]+":\[?(?:,?\{"reference":"[A-Za-z]+/[0-9a-v]{24}"\})+\]?'
)
"""A member that is an id, a time, or references by derived ids: it has neither code nor word, and hardly two are alike."""
_MEANINGLESS: Final = frozenset({"id", "reference", "fullUrl", "data", "hash", "versionId"})
"""Texts that hold letters by chance."""
_READ_AS: Final = 2
"""Raised when the same table classes other resources than before."""
_WIDE: Final = {c: c + 0xFEE0 for c in range(0x21, 0x7F)}
"""Letters of the width of a Chinese character, as many systems write them."""


class SensitiveError(ValueError):
    """The table cannot be used; the text names line and column."""


def bit_of(name: str) -> int:
    """The bit of a class; that of ``other`` for a class this table does not have, 0 for an empty name."""
    return 1 << CLASSES.index(name if name in CLASSES else "other") if name else 0


class Table:
    """The table, ready to look resources up in."""

    def __init__(self, path: Path = _FILE, items: Mapping[str, int] | None = None) -> None:
        """``items``: catalogue item code -> bits. Raises SensitiveError for a table that cannot be read."""
        problems: list[Problem] = []
        rows = read_rows(path, ("category", "kind", "system", "value", "source"), (), problems)
        self._codes: dict[tuple[str, str], int] = {}
        self._prefixes: list[tuple[str, int]] = []
        terms: dict[str, int] = {}
        stems: set[str] = set()
        for row in rows:
            bit, value = bit_of(row["category"]), row["value"]
            if row["category"] not in CLASSES or not value:
                problems.append(Problem(path.name, row.line, "category", f"is not one of {', '.join(CLASSES)}"))
            elif row["kind"] == "code":
                self._codes[row["system"], value] = bit
            elif row["kind"] == "prefix" and row["system"] == _ICD:
                self._prefixes.append((value, bit))
            elif row["kind"] in ("term", "stem"):
                terms[value.casefold()] = bit
                if row["kind"] == "stem":
                    stems.add(value.casefold())
            else:
                problems.append(Problem(path.name, row.line, "kind", "is not code, prefix (of icd-10), term or stem"))
        if problems:
            raise SensitiveError("\n".join(map(str, problems)))
        self._terms = terms
        # A term in Latin letters is a word of its own; Chinese has no words to look for the ends of.
        ends = "|".join(
            rf"(?<![a-z]){re.escape(t)}{'' if t in stems else '(?![a-z])'}" if t.isascii() else re.escape(t)
            for t in sorted(terms, key=len, reverse=True)
        )
        self._words = re.compile(ends or "(?!)")
        self._items = dict(items or {})
        said = (sorted(self._codes.items()), sorted(self._prefixes), sorted(terms.items()), sorted(self._items.items()))
        self.digest: Final = hashlib.sha256(repr((_READ_AS, sorted(stems), *said)).encode()).hexdigest()[:16]
        """Changes when a resource may be classed otherwise: of the meaning of the table, not of its text."""
        wide = [t.translate(_WIDE) for t in terms if t.isascii()]
        words = {form.encode() for t in (*terms, *wide) for form in (t, t.upper(), t.title(), t.capitalize())}
        # An ICD-10 code is a letter and digits, so a prefix that is a letter is no trace by itself.
        icd = [p.encode() + (b"[0-9]" if p.isalpha() else b"") for p, _ in self._prefixes]
        codes = b"|".join([*icd, *([_any({v.encode() + b'"' for _, v in self._codes})] if self._codes else [])])
        traces = [b'"co(?:ntentType":"text/%b)' % (b'|de":"(?:%b)' % codes if codes else b"")]
        self._traces = re.compile(b"|".join([*traces, *([_any(words)] if words else [])]))
        self._silent: set[bytes] = set()
        self._mute: set[bytes] = set()
        """Members that name no class by their form, for a short while: the results of one message share them."""

    def bits(self, resource: Mapping[str, Any], written: Sequence[bytes] = (), item: str | None = None) -> int:
        """The classes of a resource as bits, 0 for an ordinary one. ``written``: its JSON, whole or by member, which saves looking
        closer as a rule; ``item``: its catalogue item, where it has one."""
        found = self._items.get(item, 0) if item else 0
        silent, mute = self._silent, self._mute
        # Codes, units and subjects repeat from result to result, so most members were looked at before.
        if written and not any(
            map(self.speaks, [member for member in written if member not in silent and member not in mute])
        ):
            return found
        waiting: list[Any] = [resource]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                code = value.get("code")
                if isinstance(code, str):
                    found |= self._coded(value.get("system"), code)
                waiting.extend(inner for key, inner in value.items() if key not in _MEANINGLESS)
                if isinstance(value.get("data"), str) and str(value.get("contentType")).startswith("text/"):
                    waiting.append(_read(value["data"]))
            elif isinstance(value, list):
                waiting.extend(value)
            elif isinstance(value, str):
                for word in self._words.findall(unicodedata.normalize("NFKC", value).casefold()):
                    found |= self._terms[word]
        return found

    def speaks(self, written: bytes) -> bool:
        """Whether a piece of JSON may name a class; False is certain."""
        if _MUTE.fullmatch(written):
            if len(self._mute) >= _OF_LATE:
                self._mute.clear()
            self._mute.add(written)
            return False
        if self._traces.search(written):
            return True
        if len(written) < _SHORT:
            if len(self._silent) >= _REMEMBERED:
                self._silent.clear()
            self._silent.add(written)
        return False

    def _coded(self, system: object, code: str) -> int:
        known = self._codes.get((system, code), 0) if isinstance(system, str) else 0
        if isinstance(system, str) and _IS_ICD.search(system):
            for prefix, bit in self._prefixes:
                if code.startswith(prefix):
                    known |= bit
        return known


def _any(words: Iterable[bytes]) -> bytes:
    """A regular expression for any of the words that looks at each of their bytes once."""
    following: dict[bytes, set[bytes]] = {}
    for word in words:
        following.setdefault(word[:1], set()).add(word[1:])
    parts = [re.escape(c) + (b"" if b"" in rest else _any(rest)) for c, rest in sorted(following.items())]
    return parts[0] if len(parts) == 1 else b"(?:%b)" % b"|".join(parts)


def _read(data: str) -> str:
    """A text that stands in a resource as base64; empty when it is none."""
    try:
        return base64.b64decode(data).decode("utf-8", "replace")
    except ValueError:
        return ""


class _Installed:
    """The table of this process."""

    table: Table | None = None


def of(directory: Path | None) -> Table:
    """The table of a rules folder (its ``sensitive.csv``, else the shipped one), with the items that its catalogue calls sensitive;
    None: the shipped ones. Raises SensitiveError, CatalogueError."""
    if directory is None:
        return _shipped()
    known = catalogue.of(directory)
    own = directory / _FILE.name
    return Table(own if own.is_file() else _FILE, _items(known))


def install(directory: Path | None) -> None:
    """Makes ``of(directory)`` the table of this process. Called once, before anything is stored."""
    _Installed.table = of(directory)


def table() -> Table:
    """The table of this process: the installed one, else the shipped one."""
    return _Installed.table or _shipped()


@cache
def _shipped() -> Table:
    return Table(items=_items(catalogue.shipped()))


def _items(known: catalogue.Catalogue) -> dict[str, int]:
    return {code: bit_of(item.sensitivity) for code, item in known.items.items() if item.sensitivity}
