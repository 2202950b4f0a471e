"""Local codes of one facility -> catalogue items and orderables, from reviewed CSV files, with the time they are valid.

``tests.csv`` columns: ``code`` (OBX-3.1 as sent; may be empty when the facility sends names only), ``name`` (its usual name; further
names after ``|``), ``item`` (platform item code), ``valid_from`` and ``valid_to`` (``YYYY-MM-DD``, both inclusive, empty = open),
``note``.
``orders.csv`` columns: ``code``, ``name``, ``orderable``, ``price_fen`` (the facility's own price), ``valid_from``, ``valid_to``,
``note``.

A code decides. A name is asked only when no code was sent, and a name that belongs to another item than the code does makes the pair a
conflict: it is then not mapped (a code can be used again for something else).
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Generic, Literal, TypeVar

from mappings.catalogue import Catalogue, Item, Orderable
from mappings.csv_rows import Problem, Row, read_rows

_BEFORE_ALL, _AFTER_ALL = "0000-00-00", "9999-99-99"

_PROVINCE = "京津冀晋蒙辽吉黑沪苏浙皖闽赣鲁豫鄂湘粤桂琼渝川贵云藏陕甘青宁新"
_SCOPE = rf"(?:全国|全区|全省|全市|本省|本市|[{_PROVINCE}]{{1,6}}|[\u4e00-\u9fff]{{1,8}}[省市区县])"
_MARK = re.compile(
    r"[【\[〔]\s*(?P<boxed>[^【】\[\]〔〕()]{0,12}?HR|互认)\s*[】\]〕]"
    # In round brackets only with a scope: 心率(HR) is the heart rate.
    rf"|\(\s*(?P<round>{_SCOPE}HR|互认)\s*\)"
    rf"|(?:^|(?<=\s))(?P<bare>{_SCOPE}HR)(?=\s|[-_:：]|$)[-_:：]?|(?P<sign>^[*★☆▲△]+|[*★☆▲△]+$)"
)
_BLANKS = re.compile(r"[\s\u200b-\u200f\ufeff]+")


@lru_cache(maxsize=8192)
def clean_name(text: str) -> tuple[str, str]:
    """A test name as sent -> (name without recognition marks, the mark): ``【全国HR】总胆红素`` -> (``总胆红素``, ``全国HR``).

    Marks are ``<scope>HR`` in brackets, a bare ``全国HR`` set off from the name (国卫医发〔2022〕6号), and the signs ``* ★ ☆ ▲ △``
    at either end (local practice). Several marks are joined by a space. ``HR`` alone is the heart rate and stays. The name comes back
    half width and trimmed.
    """
    name = _BLANKS.sub(" ", unicodedata.normalize("NFKC", text)).strip()
    marks: list[str] = []
    while found := _MARK.search(name):
        rest = (name[: found.start()] + " " + name[found.end() :]).strip()
        if not rest:
            break
        marks.append((found["boxed"] or found["round"] or found["bare"] or found["sign"]).strip())
        name = _BLANKS.sub(" ", rest)
    return name, " ".join(marks)


def name_key(text: str) -> str:
    """The spelling under which names are compared: without marks and blanks, half width, lower case."""
    return _BLANKS.sub("", clean_name(text)[0]).casefold()


@dataclass(frozen=True, slots=True)
class LocalTest:
    """A mapped test: the facility's code, and the catalogue item with what a resource needs of it."""

    code: str
    name: str
    item: str
    loinc: str
    display: str
    unit: str
    specimens: tuple[str, ...]
    window_days: int
    valid_from: str = ""
    valid_to: str = ""


@dataclass(frozen=True, slots=True)
class LocalOrder:
    """A mapped order code. ``price`` in fen, the facility's own, None when it gives none (the catalogue's suggestion then counts)."""

    code: str
    name: str
    orderable: str
    display: str
    price: int | None
    valid_from: str = ""
    valid_to: str = ""


_T = TypeVar("_T", LocalTest, LocalOrder)


@dataclass(frozen=True, slots=True)
class Found(Generic[_T]):
    """Answer of ``find``: mapping or None, found by code or name, cleaned name and its mark, and whether code and name disagree."""

    mapping: _T | None
    by: Literal["code", "name", ""]
    name: str
    mark: str
    conflict: bool = False


class CodeTable(Generic[_T]):
    """Local codes of one facility; key = code and valid time."""

    def __init__(self, rows: Iterable[tuple[_T, tuple[str, ...]]]) -> None:
        """rows: mapping and all its names."""
        self._by_code: dict[str, list[_T]] = {}
        self._by_name: dict[str, list[_T]] = {}
        self.rows: tuple[_T, ...] = ()
        self._given: tuple[tuple[_T, tuple[str, ...]], ...] = tuple(rows)
        kept: list[_T] = []
        for row, names in self._given:
            kept.append(row)
            if row.code:
                self._by_code.setdefault(clean_name(row.code)[0], []).append(row)
            for name in names:
                self._by_name.setdefault(name_key(name), []).append(row)
        self.rows = tuple(kept)
        self._starts = sorted({row.valid_from for row in kept if row.valid_from})
        self._ends = sorted({row.valid_to for row in kept if row.valid_to})

    def extended(self, rows: Iterable[tuple[_T, tuple[str, ...]]]) -> CodeTable[_T]:
        """A new table with these rows as well."""
        return CodeTable(chain(self._given, rows))

    def period(self, at: str) -> tuple[int, int]:
        """Equal for two dates when every code means the same on both; a date that is unknown (empty) has a period of its own."""
        if not at:
            return (-1, -1)
        day = at[:10]
        return bisect_right(self._starts, day), bisect_left(self._ends, day)

    def find(self, code: str, name: str = "", at: str = "") -> Found[_T]:
        """Look a test or order up.

        code  local code as sent, marks allowed; empty when none was sent
        name  local name as sent
        at    calendar date ``YYYY-MM-DD`` of the result, empty when unknown: then only a code with one meaning for all time is found
        """
        bare, mark = clean_name(name or code)
        if code and name and (more := clean_name(code)[1]):
            mark = f"{mark} {more}".strip() if more not in mark else mark
        key = name_key(name) if name else ""
        named = _valid(self._by_name.get(key, []), at) if key else []
        if not code:
            sure = len({_target(n) for n in named}) == 1
            return Found(named[0], "name", bare, mark) if sure else Found(None, "", bare, mark)
        coded = _valid(self._by_code.get(clean_name(code)[0], []), at)
        if len(coded) != 1:
            return Found(None, "", bare, mark)
        row = coded[0]
        if named and all(_target(n) != _target(row) for n in named):
            return Found(None, "", bare, mark, conflict=True)
        return Found(row, "code", bare, mark)

    def lookup(self, code: str, name: str = "", at: str = "") -> _T | None:
        """``find(...)`` for callers that only need the mapping."""
        return self.find(code, name, at).mapping


def _target(row: LocalTest | LocalOrder) -> str:
    return row.item if isinstance(row, LocalTest) else row.orderable


def _valid(rows: list[_T], at: str) -> list[_T]:
    if not at:
        return rows
    day = at[:10]
    return [r for r in rows if (r.valid_from or _BEFORE_ALL) <= day <= (r.valid_to or _AFTER_ALL)]


# --- files ---------------------------------------------------------------------------------------------------------------


def read_tests(path: Path, catalogue: Catalogue, problems: list[Problem]) -> CodeTable[LocalTest]:
    """Read ``tests.csv``; faults (unknown item, overlapping codes, bad dates) are appended with file and line."""
    out: list[tuple[LocalTest, tuple[str, ...]]] = []
    columns = ("code", "name", "item")
    spans: dict[str, list[tuple[str, str, int]]] = {}
    for row in read_rows(path, columns, ("valid_from", "valid_to", "note"), problems):
        item = catalogue.items.get(row["item"])
        if item is None:
            problems.append(Problem(path.name, row.line, "item", f"{row['item']!r} is not an item of the catalogue"))
        names = _names(path, row, problems)
        _check_dates(path, row, spans, problems)
        if item is not None:
            out.append((_local_test(row, names, item), names))
    return CodeTable(out)


def read_orders(path: Path, catalogue: Catalogue, problems: list[Problem]) -> CodeTable[LocalOrder]:
    """Read ``orders.csv``; faults are appended with file and line."""
    out: list[tuple[LocalOrder, tuple[str, ...]]] = []
    spans: dict[str, list[tuple[str, str, int]]] = {}
    for row in read_rows(
        path, ("code", "name", "orderable"), ("price_fen", "valid_from", "valid_to", "note"), problems
    ):
        orderable = catalogue.orderables.get(row["orderable"])
        if orderable is None:
            problems.append(
                Problem(path.name, row.line, "orderable", f"{row['orderable']!r} is not an orderable of the catalogue")
            )
        price = row["price_fen"]
        if price and not (price.isascii() and price.isdecimal()):
            problems.append(Problem(path.name, row.line, "price_fen", "a whole number of fen is needed"))
            price = ""
        names = _names(path, row, problems)
        _check_dates(path, row, spans, problems)
        if orderable is not None:
            out.append((_local_order(row, names, orderable, int(price) if price else None), names))
    return CodeTable(out)


def _local_test(row: Row, names: tuple[str, ...], item: Item) -> LocalTest:
    return LocalTest(
        row["code"], names[0] if names else row["code"], item.code, item.loinc, item.name_zh, item.unit, item.specimens,
        item.window_days, row["valid_from"], row["valid_to"],
    )  # fmt: skip


def _local_order(row: Row, names: tuple[str, ...], orderable: Orderable, price: int | None) -> LocalOrder:
    name = names[0] if names else row["code"]
    return LocalOrder(row["code"], name, orderable.code, orderable.name_zh, price, row["valid_from"], row["valid_to"])


def _names(path: Path, row: Row, problems: list[Problem]) -> tuple[str, ...]:
    names = tuple(n.strip() for n in row["name"].split("|") if n.strip())
    if not row["code"] and not names:
        problems.append(Problem(path.name, row.line, "code", "a code or a name is needed"))
    return names


def _check_dates(path: Path, row: Row, spans: dict[str, list[tuple[str, str, int]]], problems: list[Problem]) -> None:
    """A code, or a name without code, must not have two meanings on one day."""
    for column in ("valid_from", "valid_to"):
        if row[column]:
            try:
                right = date.fromisoformat(row[column]).isoformat() == row[column]
            except ValueError:
                right = False
            if not right:
                problems.append(Problem(path.name, row.line, column, f"{row[column]!r} is not a date YYYY-MM-DD"))
                return
    start, end = row["valid_from"] or _BEFORE_ALL, row["valid_to"] or _AFTER_ALL
    if start > end:
        problems.append(Problem(path.name, row.line, "valid_to", "is before valid_from"))
    key = "code " + clean_name(row["code"])[0] if row["code"] else "name " + name_key(row["name"].split("|")[0])
    for other_start, other_end, line in spans.setdefault(key, []):
        if start <= other_end and other_start <= end:
            problems.append(
                Problem(
                    path.name, row.line, "code", f"{row['code'] or row['name']!r} overlaps in time with line {line}"
                )
            )
    spans[key].append((start, end, row.line))


@lru_cache(maxsize=256)
def prices(orders: CodeTable[LocalOrder], at: str = "") -> Mapping[str, int]:
    """Orderable -> the facility's own price in fen on a date; an orderable with two prices is left out."""
    found: dict[str, set[int]] = {}
    for row in _valid(list(orders.rows), at):
        if row.price is not None:
            found.setdefault(row.orderable, set()).add(row.price)
    return MappingProxyType({orderable: next(iter(p)) for orderable, p in found.items() if len(p) == 1})


EMPTY_TESTS: CodeTable[LocalTest] = CodeTable(())
EMPTY_ORDERS: CodeTable[LocalOrder] = CodeTable(())
