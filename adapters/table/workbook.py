"""XLSX (ECMA-376) -> sheets of cells. A workbook that unpacks to much more than it is, is refused before it is unpacked."""

from __future__ import annotations

import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Mapping

from adapters import xmltree
from adapters.contract import Unreadable
from conformance.issue import Issue

ZIP = b"PK\x03\x04"
_MOST_UNPACKED = 128 * 1024 * 1024
_MOST_RATIO = 200
_MOST_FILES = 500
_BOOK, _STRINGS = "xl/workbook.xml", "xl/sharedstrings.xml"
OLD = bytes.fromhex("D0CF11E0A1B11AE1")
"""How compound files begin: workbooks of Excel 97 (XLS), and those with a password."""
_NOT_COUNTED = "#VALUE!"
_MOST_CELLS = 2_500_000
_MOST_STRINGS = 2_000_000
_MOST_COLUMNS = 1000
_COLUMN = re.compile(r"[A-Z]+")
_MERGED = re.compile(r"([A-Z]{1,3})(\d{1,7}):[A-Z]{1,3}(\d{1,7})", re.ASCII)
_LONG_NUMBER = re.compile(r"-?\d+\.\d{12,}(?:[Ee][-+]?\d+)?|-?\d+(?:\.\d+)?[Ee][-+]?\d+")


def _refuse(key: str, words: str) -> Unreadable:
    return Unreadable(Issue(key, "error", "", words))


def sheets(raw: bytes) -> list[list[list[str]]]:
    """Sheets, rows, cells of a workbook. Formulas give their stored value, an error value when there
    is none; a cell merged over rows stands in each.
    Dates are Excel's numbers.

    Raises Unreadable: ``bad-table``, ``zip-bomb``, ``too-large``, and those of adapters.xmltree.
    """
    if raw.startswith(OLD):
        raise _refuse("bad-table", "The file is an old workbook (XLS), or one with a password; save it as XLSX or CSV.")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as book:
            _check(book, len(raw))
            # Some libraries write their names in other letters, with backslashes, or the first sheet without a number.
            names = {n.replace("\\", "/").lower(): n for n in book.namelist()}
            found = sorted(
                (n for n in names if re.fullmatch(r"xl/worksheets/[^/]+\.xml", n)),
                key=lambda n: (int(re.sub(r"\D", "", n)[:9] or 0), n),
            )
            if not found:
                raise _refuse("bad-table", "The file is not an Excel workbook (XLSX) with a sheet.")
            shared = _shared(book.read(names[_STRINGS])) if _STRINGS in names else []
            if _BOOK in names and _since_1904(book.read(names[_BOOK])):
                raise _refuse("bad-table", "The workbook counts days from 1904; save it with the usual dates of Excel.")
            budget = [_MOST_CELLS]
            out = []
            for name in found:
                sheet = _Sheet(shared, budget)
                xmltree.told(book.read(names[name]), sheet)
                out.append(sheet.rows)
            return out
    # What zipfile lets through of a file that is damaged (zlib; lzma; OSError: bz2), cut off (EOFError), has offsets that lie
    # (ValueError), or is encrypted or packed by a method it does not know (RuntimeError).
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError):
        raise _refuse("bad-table", "The workbook is damaged or encrypted; save it again as XLSX.") from None


def _check(book: zipfile.ZipFile, size: int) -> None:
    unpacked = sum(i.file_size for i in book.infolist())
    if len(book.infolist()) > _MOST_FILES or unpacked > _MOST_UNPACKED or unpacked > _MOST_RATIO * size + 1_000_000:
        raise _refuse("zip-bomb", "The workbook unpacks to far more than it should; it was not unpacked.")


def _shared(raw: bytes) -> list[str]:
    found = _Strings()
    xmltree.told(raw, found)
    return found.strings


def _since_1904(raw: bytes) -> bool:
    properties = xmltree.parse(raw).root.find("workbookPr")
    return properties is not None and properties.get("date1904", "").lower() in ("1", "true")


class _Strings:
    """Parser target of the shared strings: the text of each, without the readings above it (``rPh``: pinyin)."""

    def __init__(self) -> None:
        self.strings: list[str] = []
        self._parts: list[str] = []
        self._reading = 0
        self._within = False

    def start(self, tag: str, _: Mapping[str, str]) -> None:
        name = tag.rpartition("}")[2]
        self._within = name == "t"
        self._reading += name == "rPh"

    def data(self, text: str) -> None:
        if self._within and not self._reading:
            self._parts.append(text)

    def end(self, tag: str) -> None:
        name = tag.rpartition("}")[2]
        self._within = False
        self._reading -= name == "rPh"
        if name == "si":
            self.strings.append("".join(self._parts))
            self._parts.clear()
            if len(self.strings) > _MOST_STRINGS:
                raise _too_many()

    def close(self) -> None:
        """Nothing is left to do."""


class _Sheet:
    """Parser target of a sheet: its rows of cells. ``budget``: one number, how many cells the workbook may still have."""

    def __init__(self, shared: list[str], budget: list[int]) -> None:
        self.rows: list[list[str]] = []
        self._merged: list[str] = []
        self._places: dict[int, int] = {}
        self._shared = shared
        self._budget = budget
        self._cell: tuple[int, str] | None = None
        self._value: list[str] = []
        self._text: list[str] = []
        self._waits = False
        self._into: list[str] | None = None
        self._reading = 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = tag.rpartition("}")[2]
        self._into = None
        if name == "c":
            place = _COLUMN.match(attributes.get("r", ""))
            column = _number(place[0]) if place else len(self.rows[-1]) if self.rows else 0
            self._cell = (column, attributes.get("t", "n"))
            self._value, self._text, self._waits = [], [], False
        elif name == "v":
            self._into, self._waits = self._value, False
        elif name == "f":
            self._waits = True
        elif name == "t" and not self._reading:
            self._into = self._text
        elif name == "rPh":
            self._reading += 1
        elif name == "row":
            number = attributes.get("r", "")
            self._places[int(number) if number.isdecimal() and len(number) < 9 else len(self.rows) + 1] = len(self.rows)
            self.rows.append([])
            self._spend(1)
        elif name == "mergeCell":
            self._merged.append(attributes.get("ref", ""))
            self._spend(1)

    def data(self, text: str) -> None:
        if self._into is not None:
            self._into.append(text)

    def end(self, tag: str) -> None:
        self._into = None
        name = tag.rpartition("}")[2]
        if name == "rPh":
            self._reading -= 1
        if name != "c" or self._cell is None or not self.rows:
            return
        column, kind = self._cell
        self._cell = None
        if column > _MOST_COLUMNS:
            return
        cells = self.rows[-1]
        if column >= len(cells):
            self._spend(column + 1 - len(cells))
            cells.extend("" for _ in range(column + 1 - len(cells)))
        # A formula that nobody has counted yet is not empty: its value is not known.
        cells[column] = (
            _NOT_COUNTED if self._waits else _cell(kind, "".join(self._value), "".join(self._text), self._shared)
        )

    def close(self) -> None:
        """Every cell is there: the value of those merged over rows goes into each."""
        for merged in self._merged:
            self._spread(merged)

    def _spread(self, merged: str) -> None:
        found = _MERGED.fullmatch(merged)
        if found is None:
            return
        column, first, last = _number(found[1]), int(found[2]), int(found[3])
        at = self._places.get(first)
        value = self.rows[at][column] if at is not None and column < len(self.rows[at]) else ""
        if not value:
            return
        last = min(last, first + len(self.rows))
        self._spend(last - first)
        for number in range(first + 1, last + 1):
            below = self._places.get(number)
            if below is not None:
                cells = self.rows[below]
                cells.extend("" for _ in range(column + 1 - len(cells)))
                cells[column] = cells[column] or value

    def _spend(self, cells: int) -> None:
        self._budget[0] -= cells
        if self._budget[0] < 0:
            raise _too_many()


def _too_many() -> Unreadable:
    return _refuse("too-large", f"The workbook has more than {_MOST_CELLS} cells; send it in parts.")


def _number(letters: str) -> int:
    out = 0
    for letter in letters[:4]:
        out = out * 26 + ord(letter) - 64
    return out - 1


def _cell(kind: str, value: str, text: str, shared: list[str]) -> str:
    if kind == "s":
        return shared[int(value)].strip() if value.isdecimal() and len(value) < 9 and int(value) < len(shared) else ""
    if kind == "inlineStr":
        return text.strip()
    if kind == "b":
        return {"1": "true", "0": "false"}.get(value, value)
    if kind == "n" and _LONG_NUMBER.fullmatch(value):
        # Excel stores 6.3 as 6.2999999999999998: fifteen digits are what it shows.
        return format(float(value), ".15g")
    return value.strip()
