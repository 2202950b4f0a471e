"""The catalogue: recognizable items (analytes, examinations) and orderables (what a doctor orders), read from CSV, versioned by digest.

Files under ``mappings/catalogue``: ``items.csv`` (one row an item), ``orderables.csv``, ``members.csv`` (items of an orderable).
LOINC codes are used under the LOINC licence (LICENCE-LOINC.txt); every code has its LOINC mod-10 check digit verified at load.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from conformance.terminology import loinc_valid
from mappings import ucum
from mappings.csv_rows import Problem, Row, read_rows

DIRECTORY = Path(__file__).with_name("catalogue")
CATEGORIES = ("lab", "imaging", "ultrasound", "ecg", "pathology", "endoscopy", "function")
SPECIMENS = (
    "serum", "plasma", "whole-blood", "arterial-blood", "urine", "urine-24h", "stool", "semen", "sputum", "csf", "respiratory",
    "breath", "cervix", "tissue",
)  # fmt: skip
WINDOW_STATUS = ("found", "suggestion")
TIME_BASES = ("", "effective", "issued")
LATERALITIES = ("", "left", "right", "bilateral")
CONTRASTS = ("", "without", "with", "without-and-with")
"""With intravenous contrast medium or without."""


@dataclass(frozen=True, slots=True)
class Item:
    """A recognizable item.

    code          platform code, stable for ever: category letter + 4 digits (``L0006``); a retired code is never used again
    loinc         LOINC code, empty when none was verified
    unit          UCUM unit of the item, empty for words (``[Presence]``, images)
    unit_aliases  UCUM codes that mean the very same for this item: ``[IU]/L`` for the catalytic activity of an enzyme, whose
                  international unit is 1 umol/min (IUPAC); elsewhere an international unit is defined by its own reference preparation
    window_days   N x 24 h; 0 = never recognized automatically
    window_status ``found`` in a published list, or ``suggestion`` of this project
    specimens     specimens the item is defined for; empty when not sure
    molar_mass    g/mol, for the display of mass and molar units only; None when not given
    time_base     ``effective`` or ``issued`` where the window of this item runs from another time than the policy says; else empty
    body_site, laterality, modality (DICOM PS3.16 CID 29, or US, ES, BMD), contrast, projection
                  what an examination is of; empty when it does not apply or is not fixed by the item
    method_class  class of methods whose results may stand for each other; empty when any may
    groups        words a policy may name (``infection``)
    sensitivity   class of results that need a grant to be seen; empty for ordinary items
    before_surgery  decisive before surgery or transfusion (circumstance 3 of the six)
    valid_from, valid_to  calendar days ``YYYY-MM-DD``, both inclusive, empty = open
    recorded      from when this row was known (ISO 8601 with zone), empty = always
    """

    code: str
    category: str
    name_zh: str
    name_en: str
    loinc: str = ""
    unit: str = ""
    window_days: int = 0
    window_status: str = "suggestion"
    specimens: tuple[str, ...] = ()
    molar_mass: Decimal | None = None
    source: str = ""
    loinc_check: str = ""
    unit_aliases: tuple[str, ...] = ()
    time_base: str = ""
    body_site: str = ""
    laterality: str = ""
    modality: str = ""
    contrast: str = ""
    projection: tuple[str, ...] = ()
    method_class: str = ""
    groups: tuple[str, ...] = ()
    sensitivity: str = ""
    before_surgery: bool = False
    valid_from: str = ""
    valid_to: str = ""
    recorded: str = ""

    def holds(self, day: str, known: datetime | None = None) -> bool:
        """Is this row in force on a calendar day, and was it known by ``known`` (aware; None: do not ask)?"""
        if known is not None and self.recorded and datetime.fromisoformat(self.recorded) > known:
            return False
        return (self.valid_from or "0000") <= day <= (self.valid_to or "9999")

    def accepts(self, unit: str) -> bool:
        """True when a result in UCUM unit ``unit`` measures the item's property: its unit in any size (``g/dL`` for ``g/L``), never a
        mass for an amount of substance, one arbitrary unit for another, or another annotation (FEU, DDU)."""
        return any(ucum.same_property(unit, own) for own in (self.unit, *self.unit_aliases) if own)


@dataclass(frozen=True, slots=True)
class Orderable:
    """What is ordered and charged as one (医嘱/收费项目): item codes; ``price`` in fen, a suggestion, None when unset."""

    code: str
    category: str
    name_zh: str
    name_en: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    price: int | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """items (the newest row of each) and orderables by code; ``by_loinc`` item by LOINC code; ``digest`` over the files, in hex;
    ``history``: all rows of those items that have several, by valid time."""

    items: Mapping[str, Item]
    orderables: Mapping[str, Orderable]
    digest: str
    by_loinc: Mapping[str, Item] = field(default_factory=dict)
    history: Mapping[str, tuple[Item, ...]] = field(default_factory=dict)


class CatalogueError(Exception):
    """The catalogue cannot be used; ``problems`` names every fault with file and line."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems


def load(directory: Path = DIRECTORY) -> Catalogue:
    """Read and check the catalogue. Raises CatalogueError with all faults at once."""
    problems: list[Problem] = []
    history = _items(path_of(directory, "items.csv"), problems)
    items = {code: rows[-1] for code, rows in history.items()}
    orderables = _orderables(directory, items, problems)
    if problems:
        raise CatalogueError(problems)
    digest = hashlib.sha256()
    for name in ("items.csv", "orderables.csv", "members.csv"):
        digest.update(path_of(directory, name).read_bytes().replace(b"\r\n", b"\n"))
    by_loinc = {i.loinc: i for i in items.values() if i.loinc}
    several = {code: rows for code, rows in history.items() if len(rows) > 1}
    return Catalogue(
        MappingProxyType(items), MappingProxyType(orderables), digest.hexdigest(), MappingProxyType(by_loinc), several
    )


@lru_cache(maxsize=1)
def shipped() -> Catalogue:
    """The shipped catalogue, read once."""
    return load()


def of(directory: Path | None) -> Catalogue:
    """The catalogue of a rules folder; None: the shipped one. Raises CatalogueError."""
    return shipped() if directory in (None, DIRECTORY) else load(directory or DIRECTORY)


def path_of(directory: Path, name: str) -> Path:
    """A file of a rules folder; one that the folder does not have is the shipped one."""
    own = directory / name
    return own if own.is_file() else DIRECTORY / name


# --- rows ----------------------------------------------------------------------------------------------------------------

_ITEM_COLUMNS = (
    "code",
    "category",
    "name_zh",
    "name_en",
    "loinc",
    "ucum_unit",
    "window_days",
    "window_status",
    "specimen",
    "molar_mass",
)
_ITEM_ATTRIBUTES = (
    "unit_aliases", "time_base", "body_site", "laterality", "modality", "contrast", "projection", "method_class", "groups",
    "sensitivity", "before_surgery", "valid_from", "valid_to", "recorded", "source", "loinc_check",
)  # fmt: skip
_LETTER = {
    "lab": "L",
    "imaging": "R",
    "ultrasound": "U",
    "ecg": "E",
    "pathology": "P",
    "endoscopy": "S",
    "function": "F",
}


def _items(path: Path, problems: list[Problem]) -> dict[str, tuple[Item, ...]]:
    """Rows of each code by valid time; a code may have several rows when their valid times do not overlap."""
    found: dict[str, list[tuple[Item, int]]] = {}
    seen: dict[tuple[str, str], tuple[str, int]] = {}

    def wrong(row: Row, column: str, text: str) -> None:
        problems.append(Problem(path.name, row.line, column, text))

    for row in read_rows(path, _ITEM_COLUMNS, _ITEM_ATTRIBUTES, problems):
        code, category, loinc, unit = row["code"], row["category"], row["loinc"], row["ucum_unit"]
        if category not in CATEGORIES:
            wrong(row, "category", f"{category!r} is not one of {', '.join(CATEGORIES)}")
        elif not (len(code) == 5 and code[0] == _LETTER[category] and code[1:].isdecimal()):
            wrong(row, "code", f"{code!r} is not {_LETTER[category]} and four digits")
        for column in ("name_zh", "loinc"):
            if row[column] and (first := seen.setdefault((column, row[column]), (code, row.line)))[0] != code:
                wrong(row, column, f"{row[column]!r} stands in line {first[1]} already")
        if not row["name_zh"] or not row["name_en"]:
            wrong(row, "name_zh", "both names are needed")
        if loinc and not loinc_valid(loinc):
            wrong(row, "loinc", f"{loinc!r} fails the LOINC check digit")
        if unit and ucum.read(unit) is None:
            wrong(row, "ucum_unit", f"{unit!r} is not a UCUM code")
        aliases = tuple(a for a in row["unit_aliases"].split("|") if a)
        for alias in aliases:
            if ucum.read(alias) is None:
                wrong(row, "unit_aliases", f"{alias!r} is not a UCUM code")
        if not row["window_days"].isdecimal():
            wrong(row, "window_days", "a whole number of days is needed (0 = never)")
        if row["window_status"] not in WINDOW_STATUS:
            wrong(row, "window_status", f"must be one of {', '.join(WINDOW_STATUS)}")
        specimens = tuple(s for s in row["specimen"].split("|") if s)
        for specimen in specimens:
            if specimen not in SPECIMENS:
                wrong(row, "specimen", f"{specimen!r} is not one of {', '.join(SPECIMENS)}")
        mass = row["molar_mass"]
        if mass and not mass.replace(".", "", 1).isdecimal():
            wrong(row, "molar_mass", "a number in g/mol is needed")
            mass = ""
        days = int(row["window_days"]) if row["window_days"].isdecimal() else 0
        for column, known in (("time_base", TIME_BASES), ("laterality", LATERALITIES), ("contrast", CONTRASTS)):
            if row[column] not in known:
                wrong(row, column, f"{row[column]!r} is not one of {', '.join(known[1:])}")
        if row["before_surgery"] not in ("", "yes"):
            wrong(row, "before_surgery", "must be empty or yes")
        dated = check_period(row, path.name, problems)
        item = Item(
            code, category, row["name_zh"], row["name_en"], loinc, unit, days, row["window_status"], specimens,
            Decimal(mass) if mass else None, row["source"], row["loinc_check"], aliases, row["time_base"], row["body_site"],
            row["laterality"], row["modality"], row["contrast"], words(row["projection"]), row["method_class"],
            words(row["groups"]), row["sensitivity"], row["before_surgery"] == "yes", *dated,
        )  # fmt: skip
        rows = found.setdefault(code, [])
        for other, line in rows:
            if (item.valid_from or "0000") <= (other.valid_to or "9999") and (other.valid_from or "0000") <= (
                item.valid_to or "9999"
            ):
                wrong(row, "code", f"{code!r} stands in line {line} already, for the same time")
        rows.append((item, row.line))
    return {code: tuple(sorted((i for i, _ in rows), key=lambda i: i.valid_from)) for code, rows in found.items()}


def words(cell: str) -> tuple[str, ...]:
    """The words of a cell, ``|`` between them."""
    return tuple(w.strip() for w in cell.split("|") if w.strip())


def check_period(row: Row, file: str, problems: list[Problem]) -> tuple[str, str, str]:
    """valid_from, valid_to (days) and recorded (time with zone) of a row, each empty when open or wrong."""
    for column in ("valid_from", "valid_to"):
        if row[column]:
            try:
                right = date.fromisoformat(row[column]).isoformat() == row[column]
            except ValueError:
                right = False
            if not right:
                problems.append(Problem(file, row.line, column, f"{row[column]!r} is not a date YYYY-MM-DD"))
                return "", "", ""
    if row["valid_to"] and row["valid_from"] > row["valid_to"]:
        problems.append(Problem(file, row.line, "valid_to", "is before valid_from"))
    if row["recorded"]:
        try:
            zoned = datetime.fromisoformat(row["recorded"]).tzinfo is not None
        except ValueError:
            zoned = False
        if not zoned:
            problems.append(Problem(file, row.line, "recorded", f"{row['recorded']!r} is not a time with zone"))
            return row["valid_from"], row["valid_to"], ""
    return row["valid_from"], row["valid_to"], row["recorded"]


def _orderables(directory: Path, items: Mapping[str, Item], problems: list[Problem]) -> dict[str, Orderable]:
    path, members_path = path_of(directory, "orderables.csv"), path_of(directory, "members.csv")
    rows = read_rows(path, ("code", "category", "name_zh", "name_en", "price_fen"), ("note",), problems)
    codes = {row["code"] for row in rows}
    members: dict[str, dict[str, list[str]]] = {}
    for row in read_rows(members_path, ("orderable", "item", "role"), ("name_zh", "note"), problems):
        orderable, item, role = row["orderable"], row["item"], row["role"]
        if codes and orderable not in codes:  # a file that could not be read is told once
            problems.append(Problem(members_path.name, row.line, "orderable", f"{orderable!r} is not in {path.name}"))
        if item not in items:
            problems.append(Problem(members_path.name, row.line, "item", f"{item!r} is not in items.csv"))
        elif row["name_zh"] and row["name_zh"] != items[item].name_zh:
            problems.append(
                Problem(
                    members_path.name, row.line, "name_zh", f"{item} is {items[item].name_zh}, not {row['name_zh']}"
                )
            )
        if role not in ("required", "optional"):
            problems.append(Problem(members_path.name, row.line, "role", "must be required or optional"))
            continue
        lists = members.setdefault(orderable, {"required": [], "optional": []})
        if item in lists["required"] or item in lists["optional"]:
            problems.append(Problem(members_path.name, row.line, "item", f"{item!r} stands twice under {orderable}"))
        lists[role].append(item)
    out: dict[str, Orderable] = {}
    for row in rows:
        code, price = row["code"], row["price_fen"]
        if code in out:
            problems.append(Problem(path.name, row.line, "code", f"{code!r} stands twice"))
        if not code or not row["name_zh"] or not row["name_en"]:
            problems.append(Problem(path.name, row.line, "code", "code and both names are needed"))
        if row["category"] not in CATEGORIES:
            problems.append(
                Problem(path.name, row.line, "category", f"{row['category']!r} is not one of {', '.join(CATEGORIES)}")
            )
        if price and not price.isdecimal():
            problems.append(Problem(path.name, row.line, "price_fen", "a whole number of fen is needed"))
            price = ""
        found = members.get(code, {"required": [], "optional": []})
        if not found["required"]:
            problems.append(
                Problem(path.name, row.line, "code", f"{code!r} has no required member in {members_path.name}")
            )
        out[code] = Orderable(
            code, row["category"], row["name_zh"], row["name_en"], tuple(found["required"]), tuple(found["optional"]),
            int(price) if price else None,
        )  # fmt: skip
    return out
