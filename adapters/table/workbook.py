"""XLSX (ECMA-376) -> sheets of cells. A workbook that unpacks to much more than it is, is refused before it is unpacked."""

from __future__ import annotations

import io
import lzma
import re
import zipfile
import zlib

from adapters import xmltree
from adapters.contract import Unreadable
from conformance.issue import Issue

ZIP = b"PK\x03\x04"
_MOST_UNPACKED = 128 * 1024 * 1024
_MOST_RATIO = 200
_MOST_FILES = 500
_MOST_ELEMENTS = 4_000_000
_COLUMN = re.compile(r"[A-Z]+")
_MERGED = re.compile(r"([A-Z]{1,3})(\d{1,7}):[A-Z]{1,3}(\d{1,7})", re.ASCII)
_LONG_NUMBER = re.compile(r"-?\d+\.\d{12,}(?:[Ee][-+]?\d+)?|-?\d+(?:\.\d+)?[Ee][-+]?\d+")


def _refuse(key: str, words: str) -> Unreadable:
    return Unreadable(Issue(key, "error", "", words))


def sheets(raw: bytes) -> list[list[list[str]]]:
    """Sheets, rows, cells of a workbook. Formulas give their stored value; a cell merged over rows stands in each.
    Dates are Excel's numbers.

    Raises Unreadable: ``bad-table``, ``zip-bomb``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as book:
            _check(book, len(raw))
            names = set(book.namelist())
            found = sorted(
                (n for n in names if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", n)),
                key=lambda n: int(re.sub(r"\D", "", n)),
            )
            if not found:
                raise _refuse("bad-table", "The file is not an Excel workbook (XLSX) with a sheet.")
            shared = _shared(book.read("xl/sharedStrings.xml")) if "xl/sharedStrings.xml" in names else []
            if "xl/workbook.xml" in names and _since_1904(book.read("xl/workbook.xml")):
                raise _refuse("bad-table", "The workbook counts days from 1904; save it with the usual dates of Excel.")
            return [_grid(book.read(name), shared) for name in found]
    # What zipfile lets through of a file that is damaged (zlib; lzma; OSError: bz2), cut off (EOFError), has offsets that lie
    # (ValueError), or is encrypted or packed by a method it does not know (RuntimeError).
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError):
        raise _refuse("bad-table", "The workbook is damaged or encrypted; save it again as XLSX.") from None


def _check(book: zipfile.ZipFile, size: int) -> None:
    unpacked = sum(i.file_size for i in book.infolist())
    if len(book.infolist()) > _MOST_FILES or unpacked > _MOST_UNPACKED or unpacked > _MOST_RATIO * size + 1_000_000:
        raise _refuse("zip-bomb", "The workbook unpacks to far more than it should; it was not unpacked.")


def _shared(raw: bytes) -> list[str]:
    return [
        "".join(t.text or "" for t in si.iter("t"))
        for si in xmltree.parse(raw, max_elements=_MOST_ELEMENTS).root.findall("si")
    ]


def _since_1904(raw: bytes) -> bool:
    properties = xmltree.parse(raw).root.find("workbookPr")
    return properties is not None and properties.get("date1904", "").lower() in ("1", "true")


def _grid(raw: bytes, shared: list[str]) -> list[list[str]]:
    out: list[list[str]] = []
    root = xmltree.parse(raw, max_elements=_MOST_ELEMENTS).root
    places: dict[int, int] = {}
    for row in root.iter("row"):
        number = row.get("r", "")
        places[int(number) if number.isdigit() else len(out) + 1] = len(out)
        cells: list[str] = []
        for cell in row.findall("c"):
            place = _COLUMN.match(cell.get("r", ""))
            column = _number(place[0]) if place else len(cells)
            if column > 1000:
                continue
            cells.extend("" for _ in range(column + 1 - len(cells)))
            cells[column] = _cell(cell, shared)
        out.append(cells)
    for merged in root.iter("mergeCell"):
        _spread(merged.get("ref", ""), out, places)
    return out


def _spread(merged: str, rows: list[list[str]], places: dict[int, int]) -> None:
    """The value of a cell that was merged over rows, into each of these rows."""
    found = _MERGED.fullmatch(merged)
    if found is None:
        return
    column, first, last = _number(found[1]), int(found[2]), int(found[3])
    at = places.get(first)
    value = rows[at][column] if at is not None and column < len(rows[at]) else ""
    for number in range(first + 1, min(last, first + len(rows)) + 1):
        below = places.get(number)
        if value and below is not None:
            cells = rows[below]
            cells.extend("" for _ in range(column + 1 - len(cells)))
            cells[column] = cells[column] or value


def _number(letters: str) -> int:
    out = 0
    for letter in letters[:4]:
        out = out * 26 + ord(letter) - 64
    return out - 1


def _cell(cell: xmltree.Element, shared: list[str]) -> str:
    kind, value = cell.get("t", "n"), cell.findtext("v") or ""
    if kind == "s":
        return shared[int(value)].strip() if value.isdigit() and int(value) < len(shared) else ""
    if kind == "inlineStr":
        return "".join(t.text or "" for t in cell.iter("t")).strip()
    if kind == "b":
        return {"1": "true", "0": "false"}.get(value, value)
    if kind == "n" and _LONG_NUMBER.fullmatch(value):
        # Excel stores 6.3 as 6.2999999999999998: fifteen digits are what it shows.
        return format(float(value), ".15g")
    return value.strip()
