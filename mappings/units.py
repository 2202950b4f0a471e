"""Units as senders write them -> UCUM codes, by a reviewed table (``units.csv``), never by likeness.

What is levelled before the table is asked: full width, spaces, the two micro signs, ``10^9`` / ``10*9`` / ``x10E9`` / superscripts,
``l`` for litre, the middle dot. Case is kept where it matters (``g/L`` and ``G/L``). An unknown unit keeps its text and has no code.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mappings import csv_rows, ucum
from mappings.csv_rows import Problem

TABLE = Path(__file__).with_name("units.csv")
UCUM_NAMES = frozenset({"UCUM", "http://unitsofmeasure.org", "2.16.840.1.113883.6.8"})
_CACHE_LIMIT = 4096
_LONGEST = 64

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_LEVEL = str.maketrans({"μ": "u", "µ": "u", "·": ".", "•": ".", "⋅": ".", "∙": ".", "・": "."})
_SPACE = re.compile(r"[\s\u200b-\u200f\ufeff]+")
_POWER = re.compile(r"[x×X*]?10(?:\*\*|[\^*]|[Ee]\+?|\\S\\)0?(\d{1,2})(?=$|/)")
_LITRE = re.compile(r"(?<![A-Za-z])([munpfd]?)l(?![A-Za-z])")
_WRAPPED = re.compile(r"[(\[]([^()\[\]]+)[)\]]")

_SIMPLE = re.compile(r"(?:10\*\d{1,2}|[A-Za-z%\[\]]+)?(?:/[A-Za-z%\[\]]+){0,2}")
_WORD = re.compile(r"[A-Za-z%\[\]]+")
_SURE_WORDS = frozenset(
    {prefix + atom for prefix in ("", "k", "d", "c", "m", "u", "n", "p", "f") for atom in ("g", "mol", "L")}
    | {
        "s",
        "ms",
        "min",
        "h",
        "mm",
        "cm",
        "um",
        "%",
        "U",
        "mU",
        "uU",
        "kU",
        "[IU]",
        "m[IU]",
        "u[IU]",
        "k[IU]",
        "mm[Hg]",
        "kPa",
    }
    | {"meq", "mosm", "kcal"}
)
"""UCUM words that read the same to everybody; ``K`` (kelvin), ``M``, ``G`` (gauss) and ``T`` (tesla) do not."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: ``text`` exactly as sent, ``ucum`` its code or None when the table does not know it."""

    text: str
    ucum: str | None


def level(text: str) -> str:
    """The spelling under which a unit is looked up."""
    text = _SUPERSCRIPT.sub(lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
    text = _SPACE.sub("", unicodedata.normalize("NFKC", text)).translate(_LEVEL)
    return _LITRE.sub(r"\1L", _POWER.sub(r"10*\1", text))


class UnitTable:
    """A reviewed list of source units. Facility rows stand before the shipped ones."""

    def __init__(self, rows: Iterable[tuple[str, str, bool]], base: UnitTable | None = None) -> None:
        """rows: (source text, UCUM code, case matters). Rows of ``base`` are used where these say nothing."""
        self._exact: dict[str, str] = dict(base._exact) if base else {}
        # Shipped rows that may be met in any case; a spelling that would mean two units in lower case means none.
        self._folded: dict[str, str | None] = dict(base._folded) if base else {}
        own: dict[str, str | None] = {}
        for source, code, exact in rows:
            key = level(source)
            self._exact[key] = code
            if not exact:
                lower = key.lower()
                own[lower] = code if own.get(lower, code) == code else None
        self._folded.update(own)
        self._cache: dict[str, Unit] = {}

    def lookup(self, text: str) -> Unit:
        """Unit text as sent (HL7-unescaped) -> Unit; ``ucum`` is None when unknown. An empty text gives an unknown empty unit."""
        if len(text) > _LONGEST:
            return Unit(text, None)
        found = self._cache.get(text)
        if found is None:
            found = Unit(text, self._resolve(level(text)) if text.strip() else None)
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            self._cache[text] = found
        return found

    def _resolve(self, key: str) -> str | None:
        wrapped = _WRAPPED.fullmatch(key)
        for spelling in (key, wrapped[1]) if wrapped else (key,):
            if code := self._exact.get(spelling) or self._folded.get(spelling.lower()):
                return code
            if (
                _SIMPLE.fullmatch(spelling)
                and set(_WORD.findall(spelling)) <= _SURE_WORDS
                and ucum.read(spelling) is not None
            ):
                return spelling
        return None

    def coded(self, code: str, text: str, system: str) -> Unit | None:
        """OBX-6 as CE/CWE (code, text, name of the coding system) -> Unit; None when both code and text are empty.

        The table is asked before a code that is only labelled UCUM is believed: ``K/uL^^UCUM`` means thousands, not kelvin.
        """
        sent = text or code
        if not sent.strip():
            return None
        for candidate in (code, text):
            found = self.lookup(candidate).ucum if candidate else None
            if found:
                return Unit(sent, found)
        if system in UCUM_NAMES and ucum.read(code) is not None:
            return Unit(sent, code)
        return Unit(sent, None)


def read_rows(path: Path, problems: list[Problem]) -> list[tuple[str, str, bool]]:
    """Rows of a unit CSV: columns ``source``, ``ucum``, ``case`` (empty, or ``exact`` when upper and lower case differ), ``note``.

    Faults (no UCUM code, one spelling with two meanings) are appended to ``problems`` with file and line.
    """
    out: list[tuple[str, str, bool]] = []
    seen: dict[str, str] = {}
    for row in csv_rows.read_rows(path, ("source", "ucum"), ("case", "note"), problems):
        source, code, case = row["source"], row["ucum"], row["case"]
        if not source:
            problems.append(Problem(path.name, row.line, "source", "is empty"))
        elif ucum.read(code) is None:
            problems.append(Problem(path.name, row.line, "ucum", f"{code!r} is not a UCUM code"))
        elif case not in ("", "exact"):
            problems.append(Problem(path.name, row.line, "case", "must be empty or 'exact'"))
        elif seen.setdefault(level(source), code) != code:
            problems.append(Problem(path.name, row.line, "source", f"{source!r} stands twice with different codes"))
        else:
            out.append((source, code, case == "exact"))
    return out


@lru_cache(maxsize=1)
def shipped() -> UnitTable:
    """The shipped table, read once. Raises ValueError naming file and line when it is faulty."""
    problems: list[Problem] = []
    table = UnitTable(read_rows(TABLE, problems))
    if problems:
        raise ValueError("\n".join(str(p) for p in problems))
    return table
