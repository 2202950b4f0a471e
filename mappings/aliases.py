"""Everything a local test name may mean: items of the catalogue and, so that they can be refused, known tests outside it.

From the catalogue's names and ``aliases.csv`` (other names, abbreviations, a usual reference interval).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from mappings import names, ucum
from mappings.catalogue import Catalogue, CatalogueError, Item
from mappings.csv_rows import Problem, read_rows
from mappings.examination_names import Examination, examination
from mappings.name_words import canonical

TABLE = Path(__file__).with_name("aliases.csv")
ORDERABLES = Path(__file__).with_name("orderable_aliases.csv")

_SPECIMENS = (
    ("urine", ("尿",)), ("stool", ("粪", "便", "stool")), ("csf", ("脑脊液", "csf")),
    ("fluid", ("胸水", "腹水", "胸腹", "积液", "浆膜", "关节液", "羊水")), ("sputum", ("痰",)), ("semen", ("精子", "精液", "精浆")),
    ("breath", ("呼气", "breath")), ("vaginal", ("阴道", "白带")), ("blood", ("血", "serum", "plasma", "blood")), ("marrow", ("骨髓",)),
)  # fmt: skip
_NO_URINE = re.compile("(?<=[钠利])尿|尿(?=素|酸(?!碱)|苷|嘧啶|钠肽)")
"""Urea, urate and natriuretic peptides: the character for urine inside the name of a substance."""
_BLOOD = frozenset({"serum", "plasma", "whole-blood", "arterial-blood"})


@dataclass(slots=True)
class Known:
    """One thing a name may mean: an item, or (``item`` None) a known test outside the catalogue."""

    item: Item | None
    names: dict[str, str] = field(default_factory=dict)
    abbreviations: set[str] = field(default_factory=set)
    examinations: list[Examination] = field(default_factory=list)
    low: Decimal | None = None
    high: Decimal | None = None
    unit: str = ""
    specimens: frozenset[str] = frozenset()


def read(catalogue: Catalogue, table: Path = TABLE) -> list[Known]:
    """All items, then the known tests outside the catalogue. Raises CatalogueError with file, line and column of every fault."""
    out: dict[str, Known] = {}
    for item in catalogue.items.values():
        known = out[item.code] = Known(item, unit=item.unit)
        for text in (item.name_zh, item.name_en):
            for spelling, cost in names.variants(text):
                if cost < names.INSIDE and (
                    len(names.han(spelling)) >= 2 or not names.han(item.name_zh) or text == item.name_en or cost <= 0.02
                ):
                    known.names.setdefault(spelling, "name")
        if seen := examination(item.name_zh):
            known.examinations.append(seen)
        known.specimens = _specimens(item)
    problems: list[Problem] = []
    strangers: list[Known] = []
    for row in read_rows(table, ("item", "names", "abbreviations", "low", "high", "unit"), (), problems):
        if row["item"] and row["item"] not in out:
            problems.append(Problem(table.name, row.line, "item", f"{row['item']!r} is not an item of the catalogue"))
            continue
        known = out.get(row["item"]) or Known(None)
        if known.item is None:
            strangers.append(known)
        for text in row["names"].split("|"):
            if text.strip():
                known.names.setdefault(names.key(text), "alias")
                if seen := examination(text):
                    known.examinations.append(seen)
        known.abbreviations |= {names.key(a) for a in row["abbreviations"].split("|") if a.strip()}
        for column in ("low", "high"):
            try:
                value = Decimal(row[column]) if row[column] else None
            except ArithmeticError:
                problems.append(Problem(table.name, row.line, column, "is not a number"))
                continue
            if column == "low":
                known.low = value
            else:
                known.high = value
        known.unit = row["unit"] or known.unit
        if row["unit"] and ucum.read(row["unit"]) is None:
            problems.append(Problem(table.name, row.line, "unit", f"{row['unit']!r} is not a UCUM code"))
    if problems:
        raise CatalogueError(problems)
    for known in (*out.values(), *strangers):
        for spelling, kind in tuple(known.names.items()):
            known.names.setdefault(canonical(spelling), kind)
    return [*out.values(), *strangers]


def _specimens(item: Item) -> frozenset[str]:
    named = specimen(item.name_zh)
    if named and named != "blood":
        return frozenset({named})
    return frozenset("blood" if s in _BLOOD else s for s in item.specimens)


def specimen(text: str) -> str:
    """A specimen as sent, or a name that says one, as one word; ``blood`` for serum, plasma, whole blood; empty: none said."""
    lowered = _NO_URINE.sub("", text.lower())
    if lowered in _BLOOD:
        return "blood"
    return next(
        (word for word, signs in _SPECIMENS if lowered and (lowered == word or any(s in lowered for s in signs))), ""
    )
