"""Bytes of a table -> rows of named texts: CSV and TSV (RFC 4180), XLSX (ECMA-376), JSON or JSON lines, XML with an element a row.

Values stay as written: a number keeps its digits. A workbook that unpacks to much more than it is, is refused before it is unpacked.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from adapters import xmltree
from adapters.charset import decode
from adapters.contract import Unreadable
from conformance.issue import Issue

Row = dict[str, str]
_DELIMITERS = (",", "\t", ";", "|")
_MOST_ROWS = 200_000
_MOST_UNPACKED = 128 * 1024 * 1024
_MOST_RATIO = 200
_MOST_FILES = 500
_MOST_ELEMENTS = 4_000_000
_COLUMN = re.compile(r"[A-Z]+")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{12,}(?:[Ee][-+]?\d+)?|-?\d+(?:\.\d+)?[Ee][-+]?\d+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
ZIP = b"PK\x03\x04"


def _refuse(key: str, words: str) -> Unreadable:
    return Unreadable(Issue(key, "error", "", words))


def is_json(raw: bytes) -> bool:
    """Whether the bytes start like JSON."""
    return raw.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def read_rows(raw: bytes, charset: str, elements: Sequence[str] = ()) -> list[Row]:
    """All rows with something in them; the first row of a text or sheet names the columns.

    elements  names of XML elements that are rows. Raises Unreadable: ``bad-table``, ``zip-bomb``, ``charset-unknown``, and those of
    adapters.xmltree.parse.
    """
    if raw.startswith(ZIP):
        rows = _named(_sheet(raw))
    elif is_json(raw):
        rows = _objects(raw, charset)
    elif xmltree.root_name(raw):
        rows = _elements(raw, charset, elements)
    else:
        rows = _named(_lines(decode(raw, "", charset).text))
    if len(rows) > _MOST_ROWS:
        raise _refuse("bad-table", f"The table has more than {_MOST_ROWS} rows; send it in parts.")
    return [clean for row in rows if any((clean := printable(row)).values())]


def printable(row: Row) -> Row:
    """A row without control characters and halves of characters, which no FHIR text may hold."""
    return {_CONTROL.sub("", name): _CONTROL.sub("", value).strip() for name, value in row.items()}


def header_of(raw: bytes, charset: str) -> list[str]:
    """The first line of a text as columns, by the delimiter that gives the most; empty when it is no text."""
    first = re.split(rb"[\r\n]", raw[: 64 * 1024].removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n"), maxsplit=1)[0]
    try:
        every = [_cells([decode(first, "", charset).text], d) for d in _DELIMITERS]
    except Unreadable:
        return []
    return max((cells[0] for cells in every if cells), key=len, default=[])


def _cells(lines: Iterable[str], delimiter: str) -> list[list[str]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=False)
    try:
        return [[cell.strip() for cell in row] for row in reader]
    except csv.Error as fault:
        raise _refuse("bad-table", f"The table cannot be read ({fault}).") from None


def _lines(text: str) -> list[list[str]]:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").lstrip("\n")
    first = text.split("\n", 1)[0]
    best = max(_DELIMITERS, key=first.count)
    return _cells(io.StringIO(text), best)


def _named(cells: list[list[str]]) -> list[Row]:
    filled = [row for row in cells if any(row)]
    if not filled:
        raise _refuse("bad-table", "The table is empty.")
    names = filled[0]
    doubled = {n for n in names if n and names.count(n) > 1}
    if doubled:
        raise _refuse("bad-table", f"Columns are named twice: {', '.join(sorted(doubled))}.")
    return [{n: v for n, v in zip(names, row, strict=False) if n and v} for row in filled[1:]]


def _objects(raw: bytes, charset: str) -> list[Row]:
    text = decode(raw, "", charset).text.strip()
    try:
        if text.startswith("["):
            found = json.loads(text, parse_float=str, parse_int=str)
        else:
            found = [json.loads(line, parse_float=str, parse_int=str) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        raise _refuse("bad-table", "This is neither a list of JSON objects nor one JSON object a line.") from None
    if not all(isinstance(row, dict) for row in found):
        raise _refuse("bad-table", "Each row has to be a JSON object.")
    return [{str(k): _plain(v) for k, v in row.items() if v not in (None, "")} for row in found]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _elements(raw: bytes, charset: str, elements: Sequence[str]) -> list[Row]:
    root = xmltree.parse(raw, charset).root
    wanted = list(root.iter(*elements)) if elements else []
    holders = {holder for element in wanted for holder in element.iterancestors()}
    around: dict[xmltree.Element, Row] = {}
    rows = []
    for element in wanted:
        row: Row = {}
        _leaves(element, row)
        for holder in element.iterancestors():
            if holder not in around:
                around[holder] = _beside(holder, holders, elements)
            for name, value in around[holder].items():
                row.setdefault(name, value)
        rows.append(row)
    if not rows:
        raise _refuse("unknown-format", f"No table of the profile has rows in an XML document of type {root.tag}.")
    return rows


def _leaves(element: xmltree.Element, row: Row) -> None:
    """Attributes and innermost elements. A name that stands there already is told apart by the element around it: ``Doctor/Name``;
    an attribute of an inner element is ``Doctor/@id``."""
    for inner in element.iter():
        for name, value in inner.attrib.items():
            if not name.startswith("{"):
                row.setdefault(name if inner is element else f"{inner.tag}/@{name}", value.strip())
        if inner is not element and not len(inner) and inner.text:
            value = xmltree.words(inner)
            if row.setdefault(inner.tag, value) != value:
                row.setdefault(f"{inner.getparent().tag}/{inner.tag}", value)


def _beside(holder: xmltree.Element, holders: set[xmltree.Element], elements: Sequence[str]) -> Row:
    """What an element around rows says of all of them: its attributes, and the inner elements beside the rows. Elements of one name
    that stand there more than once are not about all of them, and are left out."""
    row = {name: value.strip() for name, value in holder.attrib.items() if not name.startswith("{")}
    tags = [child.tag for child in holder]
    for child in holder:
        if child in holders or child.tag in elements or tags.count(child.tag) > 1:
            continue
        if not len(child) and child.text:
            row.setdefault(child.tag, xmltree.words(child))
        else:
            within: Row = {}
            _leaves(child, within)
            for name, value in within.items():
                if row.setdefault(name, value) != value:
                    row.setdefault(f"{child.tag}/{name}", value)
    return row


# --- XLSX --------------------------------------------------------------------------------------------------------------------


def _sheet(raw: bytes) -> list[list[str]]:
    """The first sheet of a workbook. Formulas give their stored value; dates come as Excel's numbers."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as book:
            _check(book, len(raw))
            names = set(book.namelist())
            sheets = sorted(
                (n for n in names if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", n)),
                key=lambda n: int(re.sub(r"\D", "", n)),
            )
            if not sheets:
                raise _refuse("bad-table", "The file is not an Excel workbook (XLSX) with a sheet.")
            shared = _shared(book.read("xl/sharedStrings.xml")) if "xl/sharedStrings.xml" in names else []
            return _grid(book.read(sheets[0]), shared)
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


def _grid(raw: bytes, shared: list[str]) -> list[list[str]]:
    out: list[list[str]] = []
    for row in xmltree.parse(raw, max_elements=_MOST_ELEMENTS).root.iter("row"):
        cells: list[str] = []
        for cell in row.findall("c"):
            place = _COLUMN.match(cell.get("r", ""))
            column = _number(place[0]) if place else len(cells)
            if column > 1000:
                continue
            cells.extend("" for _ in range(column + 1 - len(cells)))
            cells[column] = _cell(cell, shared)
        out.append(cells)
    return out


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
    return "" if kind == "e" else value.strip()
