"""Bytes of a table -> rows of named texts: CSV and TSV (RFC 4180), XLSX (ECMA-376), JSON or JSON lines, XML with an element a row.

Values stay as written: a number keeps its digits. A title above the header, and the header again on each
page, are no rows.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from adapters import xmltree
from adapters.charset import decode, wide_codec
from adapters.contract import Unreadable
from adapters.table.workbook import OLD, ZIP, sheets
from conformance.issue import Issue

Row = dict[str, str]
SURPLUS = ""
"""Name of the cells a row has more than the header: no column has it."""
_ABOVE = 10
"""Lines above the header that may be a title."""
_GUARDED = re.compile(r'="([^"]*)"')
_DELIMITERS = (",", "\t", ";", "|")
_MOST_ROWS = 200_000
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


def _refuse(key: str, words: str) -> Unreadable:
    return Unreadable(Issue(key, "error", "", words))


def is_json(raw: bytes) -> bool:
    """Whether the bytes start like JSON."""
    return raw.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


@dataclass(frozen=True, slots=True)
class Rows:
    """names: all columns there are, also those without a value; rows: those with something in them."""

    names: frozenset[str]
    rows: list[Row]


def read_rows(raw: bytes, charset: str, elements: Sequence[str] = (), columns: Collection[str] = frozenset()) -> Rows:
    """All rows of a table; of a workbook those of every sheet that has the same columns.

    elements  names of XML elements that are rows; columns: those a contract knows: the line of text or row of a sheet that has the most
    of them is the header. Raises Unreadable: ``bad-table``, ``zip-bomb``, ``charset-unknown``, and those of adapters.xmltree.parse.
    """
    if raw.startswith((ZIP, OLD)):
        found = _sheets(raw, columns)
    elif is_json(raw):
        found = _objects(raw, charset)
    elif xmltree.root_name(raw):
        rows = _elements(raw, charset, elements)
        found = Rows(frozenset().union(*rows), rows)
    else:
        found = _named(_lines(decode(raw, "", charset, "").text, columns), columns)
    if len(found.rows) > _MOST_ROWS:
        raise _refuse("bad-table", f"The table has more than {_MOST_ROWS} rows; send it in parts.")
    names = frozenset(_CONTROL.sub("", name) for name in found.names)
    return Rows(names, [clean for row in found.rows if any((clean := printable(row)).values())])


def printable(row: Row) -> Row:
    """A row without control characters and halves of characters, which no FHIR text may hold."""
    return {_CONTROL.sub("", name): _CONTROL.sub("", value).strip() for name, value in row.items()}


def header_of(raw: bytes, charset: str, columns: Collection[str]) -> set[str]:
    """The columns of a contract that a line near the beginning of a text has; empty when it is no text."""
    # Cut after a line, so that no character is cut.
    head = raw[: 64 * 1024]
    if len(raw) > len(head) and wide_codec(raw) is None:
        head = head[: head.rfind(b"\n") + 1] or head
    try:
        cells = _lines(decode(head, "", charset, "").text, columns)
    except Unreadable:
        return set()
    return set(cells[_header(cells, columns)]) & set(columns) if cells else set()


def _header(cells: list[list[str]], columns: Collection[str]) -> int:
    """Which of the first rows is the header: the first with the most known columns; the very first where none is known."""
    return max(range(min(len(cells), _ABOVE)), key=lambda n: (len(set(cells[n]) & set(columns)), -n), default=0)


def _lines(text: str, columns: Collection[str]) -> list[list[str]]:
    """Cells by the delimiter that gives the most known columns; without any, by the one the first line has most."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").lstrip("\n")
    head = "\n".join(text.split("\n", _ABOVE)[:_ABOVE])
    first = text.split("\n", 1)[0]

    def fits(delimiter: str) -> tuple[int, int]:
        cells = [row for row in _cells(head, delimiter) if any(row)]
        return len(set(cells[_header(cells, columns)]) & set(columns)) if cells else 0, first.count(delimiter)

    return [row for row in _cells(text, max(_DELIMITERS, key=fits)) if any(row)]


def _cells(text: str, delimiter: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=False)
    try:
        return [[_GUARDED.sub(r"\1", cell.strip()) for cell in row] for row in reader]
    except csv.Error as fault:
        raise _refuse("bad-table", f"The table cannot be read ({fault}).") from None


def _sheets(raw: bytes, columns: Collection[str]) -> Rows:
    """The sheet with most known columns, and all others that have these; a sheet with some of them refuses the workbook."""
    every = [_named(cells, columns) for cells in ([r for r in s if any(r)] for s in sheets(raw)) if cells]
    if not every:
        raise _refuse("bad-table", "The table is empty.")
    first = max(every, key=lambda sheet: len(sheet.names & set(columns)))
    known = first.names & set(columns)
    rows = list(first.rows)
    for sheet in every:
        if sheet is first or not sheet.names & known:
            continue
        if missing := sorted(known - sheet.names):
            raise _refuse("missing-columns", f"A further sheet of the workbook lacks columns: {', '.join(missing)}.")
        rows += sheet.rows
    return Rows(first.names, rows)


def _named(cells: list[list[str]], columns: Collection[str]) -> Rows:
    if not cells:
        raise _refuse("bad-table", "The table is empty.")
    at = _header(cells, columns)
    names = cells[at]
    _check_names(names)
    rows = []
    for row in cells[at + 1 :]:
        if row == names:
            continue
        made = {n: v for n, v in zip(names, row, strict=False) if n and v}
        beyond = [v for v in row[len(names) :] if v]
        rows.append({**made, SURPLUS: " ".join(beyond)} if beyond else made)
    return Rows(frozenset(n for n in names if n), rows)


def _objects(raw: bytes, charset: str) -> Rows:
    text = decode(raw, "", charset, "").text.strip()
    try:
        if text.startswith("["):
            found = json.loads(text, parse_float=str, parse_int=str, object_pairs_hook=_once)
        else:
            found = [_object(line, n) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (ValueError, RecursionError):
        raise _refuse("bad-table", "This is neither a list of JSON objects nor one JSON object a line.") from None
    if not all(isinstance(row, dict) for row in found):
        raise _refuse("bad-table", "Each row has to be a JSON object.")
    rows = [{str(k): _plain(v) for k, v in row.items() if v not in (None, "")} for row in found]
    return Rows(frozenset(str(k) for row in found for k in row), rows)


def _object(line: str, number: int) -> Any:
    try:
        return json.loads(line, parse_float=str, parse_int=str, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise _refuse("bad-table", f"Line {number} is no JSON object; no line of this file was taken.") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names stand once each: of two values nobody knows which counts."""
    _check_names(name for name, _ in pairs)
    return dict(pairs)


def _check_names(names: Iterable[str]) -> None:
    counted = Counter(names)
    if doubled := sorted(name for name, number in counted.items() if name and number > 1):
        raise _refuse("bad-table", f"Columns are named twice: {', '.join(doubled[:10])}.")


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
