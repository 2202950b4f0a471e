"""Rows -> Source by a header contract of the facility's profile (``tables``): which columns there must be, and what each one is.

A file is cut into one message for each report (patient, order and report number), whose bytes are its rows as JSON; so one wrong report
holds nobody else's, and the same rows again change nothing. What a database is polled for has this form too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta

from adapters import xmltree
from adapters.contract import Unreadable
from adapters.segments import Draft, Message
from adapters.table.rows import SURPLUS, Row, Rows, header_of, is_json, printable, read_rows
from adapters.table.workbook import OLD, ZIP
from conformance.issue import Issue
from mappings.facility import Facility, Table
from mappings.model import Unread
from mappings.outbound.line import Line
from mappings.paths import parse

_REPORT = ("ORC", "OBR", "TQ1", "SPM", "NTE")
_TIMES = frozenset(
    {
        "MSH-7",
        "PID-7",
        "PV1-44",
        "PV1-45",
        "ORC-9",
        "OBR-6",
        "OBR-7",
        "OBR-8",
        "OBR-14",
        "OBR-22",
        "SPM-17",
        "SPM-18",
        "OBX-14",
        "OBX-19",
    }
)
_NUMBERED = ("PID-", "PV1-19", "ORC-2", "ORC-3", "OBR-2", "OBR-3")
_ABOUT = ("PV1-19", "ORC-2", "ORC-3", "OBR-2", "OBR-3", "OBR-4", "OBX-3", "OBX-5")
_SHORTENED = re.compile(r"\d(?:\.\d+)?[Ee]\+\d{1,3}|\d\.\d+[Ee]\d{1,3}", re.ASCII)
_SPREADSHEET_ERRORS = frozenset(
    {"#N/A", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "######", "########"}
)
_SERIAL = re.compile(r"\d{5}(?:\.\d+)?")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_DAY_ZERO = datetime(1899, 12, 30, tzinfo=UTC)


def is_table(raw: bytes, facility: Facility) -> bool:
    """Whether bytes that are no other format are a table: a workbook, JSON, rows of XML, or text with the header of a contract."""
    if raw.startswith((ZIP, OLD)) or is_json(raw):
        return True
    if xmltree.root_name(raw):
        return any(t.element for t in facility.tables)
    names = header_of(raw, facility.charset, _columns(facility)) if facility.tables else set()
    return any(len(names & set(t.columns.values())) * 2 > len(t.columns) for t in facility.tables)


def _columns(facility: Facility) -> set[str]:
    return {column for table in facility.tables for column in table.columns.values()}


def _read(raw: bytes, facility: Facility) -> Rows:
    elements = [t.element for t in facility.tables if t.element]
    return read_rows(raw, facility.charset, elements, _columns(facility))


def split(raw: bytes, facility: Facility) -> Iterator[bytes]:
    """The messages of a file, each the JSON text of its rows. A file nobody can read comes back whole, so that reading it says why."""
    try:
        found = _read(raw, facility)
        table = _contract(found.names, facility)
    except Unreadable:
        yield raw
        return
    groups: dict[tuple[str, ...], list[Row]] = {}
    for number, row in enumerate(found.rows):
        key = tuple(
            row.get(table.columns.get(place, ""), "") for place in ("PID-3", "PID-3.1", "OBR-2", "OBR-3", "PV1-19")
        )
        # A row without patient and number belongs to nothing: it is a message of its own, and is held.
        groups.setdefault(key if any(key) else (str(number),), []).append(row)
    for group in groups.values():
        yield json.dumps({"table": table.name, "rows": group}, ensure_ascii=False).encode()


def _contract(names: Collection[str], facility: Facility) -> Table:
    """The table whose columns these are. Raises Unreadable ``missing-columns`` or ``unknown-format``."""
    missing: list[list[str]] = []
    for table in facility.tables:
        lacking = sorted(c for c in set(table.columns.values()) - set(names) if c not in table.optional)
        if not lacking:
            return table
        missing.append(lacking)
    if not missing:
        words = "The profile has no tables; describe the columns of this file there (tables)."
        raise Unreadable(Issue("unknown-format", "error", "", words))
    fewest = min(missing, key=len)
    raise Unreadable(
        Issue("missing-columns", "error", "", f"Columns of the contract are missing: {', '.join(fewest)}.")
    )


def read(raw: bytes, facility: Facility) -> Message:
    """One message that ``split`` made, or a whole file of one report. Raises Unreadable like ``adapters.table.rows.read_rows``."""
    rows, table, read_at = _message(raw, facility)
    draft = Draft()
    issues: list[Issue] = []
    unread: list[Unread] = []
    msh = draft.add("MSH")
    msh.put(9, ("RPT", table.name.upper()))
    places = [(parse(place), column) for place, column in table.columns.items()]
    fixed = [(parse(place), value) for place, value in table.constants.items()]
    msh.put(10, f"{table.name}/{hashlib.sha256(raw).hexdigest()[:24]}")
    first = rows[0]
    for name in ("PID", "PV1"):
        line = draft.add(name, "row[1]") if name == "PID" or any(p[0] == name for p, _ in places) else None
        if line is not None:
            _fill(line, name, first, places, fixed)
    _fill(msh, "MSH", first, places, fixed)
    if read_at and 7 not in msh.fields:
        msh.put(7, read_at)
    _agree(rows, table, issues)
    _sound(rows, table, issues)
    _one_value(rows, places, issues)
    before: tuple[str, ...] | None = None
    seen: set[tuple[tuple[str, str], ...]] = set()
    for number, row in enumerate(rows, 1):
        where = f"row[{number}]"
        if (content := tuple(sorted(row.items()))) in seen:
            words = "The row stands twice in the report (a JOIN of the view?); it counts once."
            issues.append(Issue("row-twice", "warning", where, words))
            continue
        seen.add(content)
        key = tuple(row.get(c, "") for p, c in places if p[0] == "OBR" and p[1] in (2, 3, 4))
        if key != before:
            before = key
            for name in _REPORT:
                if name == "OBR" or any(p[0] == name for p, _ in (*places, *fixed)):
                    _fill(draft.add(name, where), name, row, places, fixed)
        _result(draft.add("OBX", where), row, places, fixed)
        known = set(table.columns.values())
        unread += [Unread(f"{where}.{column}", value) for column, value in row.items() if column not in known and value]
    return Message("table", draft.records(), "utf-8", issues, unread)


def _message(raw: bytes, facility: Facility) -> tuple[list[Row], Table, str]:
    """Rows, their contract, and when they were read from a database (empty for a file)."""
    if raw.startswith(b'{"table"'):
        try:
            found = json.loads(raw)
            table = next(t for t in facility.tables if t.name == found["table"])
            rows = [printable({str(k): str(v) for k, v in row.items()}) for row in found["rows"]]
            damaged = ", ".join(map(str, found.get("undecodable", ())))
            read_at = str(found.get("read_at", ""))
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise Unreadable(
                Issue("bad-table", "error", "", "These are no rows of a table; send the file again.")
            ) from None
        except StopIteration:
            words = "The profile has no table of this name any more: add it and replay."
            raise Unreadable(Issue("unknown-format", "error", "", words)) from None
        if damaged:
            words = (
                f"The text of these columns is in no character set we know: {damaged}. Set the charset of the profile."
            )
            raise Unreadable(Issue("charset-unknown", "error", "", words))
        return rows, table, read_at
    whole = _read(raw, facility)
    if not whole.rows:
        raise Unreadable(Issue("bad-table", "error", "", "The table has a header and no rows."))
    return whole.rows, _contract(whole.names, facility), ""


def _agree(rows: list[Row], table: Table, issues: list[Issue]) -> None:
    """All rows of a report have to say the same of the patient."""
    for place, column in table.columns.items():
        if place.startswith("PID-") and len({row.get(column, "") for row in rows}) > 1:
            words = f"The rows of one report differ in the column {column}; whose report it is cannot be told."
            issues.append(Issue("rows-disagree", "error", f"row[1].{column}", words))


def _one_value(rows: list[Row], places: list[tuple[tuple[str, int, int], str]], issues: list[Issue]) -> None:
    """Two numbers of one item that nothing tells apart (no OBX-4, no other time): a view with every version of a row, or a series
    without its times. Which of them counts is not guessed."""
    telling = [c for (name, number, _), c in places if name == "OBX" and number in (3, 4, 14, 19)]
    telling += [c for (name, number, _), c in places if name in ("OBR", "ORC", "SPM") and (name, number) != ("OBR", 22)]
    values = [c for place, c in places if place[:2] == ("OBX", 5)]
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    for number, row in enumerate(rows, 1):
        value = tuple(row.get(c, "") for c in values)
        if not any(_NUMBER.fullmatch(v) for v in value):
            continue
        if known.setdefault(tuple(row.get(c, "") for c in telling), value) != value:
            words = (
                "The report has two numbers for one item, and nothing tells which counts: give the newest row alone, or a column for "
                "OBX-4 or OBX-14 that tells them apart."
            )
            issues.append(Issue("item-twice", "error", f"row[{number}]", words))
            return


def _sound(rows: list[Row], table: Table, issues: list[Issue]) -> None:
    """Rows that a program for tables has spoilt are held: cells beyond the header, shortened numbers, error values; and rows about
    no report, order or result where the contract has some (a line of totals)."""
    for number, row in enumerate(rows, 1):
        if row.get(SURPLUS):
            words = "The row has more cells than the header, so nobody knows which is which: quote cells that hold the delimiter."
            issues.append(Issue("row-cells", "error", f"row[{number}]", words))
        for place, column in table.columns.items():
            value = row.get(column, "")
            shortened = place.startswith(_NUMBERED) and _SHORTENED.fullmatch(value)
            if shortened or value in _SPREADSHEET_ERRORS:
                words = f"The column {column} holds a number a program for tables shortened, or its error value: export it as text."
                issues.append(Issue("spoilt-cell", "error", f"row[{number}].{column}", words))
    said = [column for place, column in table.columns.items() if place.startswith(_ABOUT)]
    if said and not any(row.get(column) for row in rows for column in said):
        words = "The row names no report, order or result; it may be a line of totals."
        issues.append(Issue("bad-table", "error", "row[1]", words))


def _fill(
    line: Line,
    name: str,
    row: Row,
    places: list[tuple[tuple[str, int, int], str]],
    fixed: list[tuple[tuple[str, int, int], str]],
) -> None:
    """Puts the columns of one segment into it; a constant stands where the row says nothing."""
    for (segment, number, component), column in places:
        if segment == name and row.get(column):
            _put(line, number, component, _time(f"{segment}-{number}", row[column]))
    for (segment, number, component), value in fixed:
        if segment == name and (number not in line.fields or component):
            _put(line, number, component, value)


def _put(line: Line, number: int, component: int, value: str) -> None:
    held = [*line.fields[number][0]] if number in line.fields else []
    at = component or 1
    held.extend("" for _ in range(at - len(held)))
    held[at - 1] = held[at - 1] or value
    line.fields[number] = (tuple(held),)


def _time(place: str, value: str) -> str:
    """A day number of Excel in a column of times -> date and time; anything else as written."""
    if place not in _TIMES or not _SERIAL.fullmatch(value):
        return value
    moment = _DAY_ZERO + timedelta(seconds=round(float(value) * 86400))
    return moment.strftime("%Y%m%d" if "." not in value else "%Y%m%d%H%M%S")


def _result(
    obx: Line, row: Row, places: list[tuple[tuple[str, int, int], str]], fixed: list[tuple[tuple[str, int, int], str]]
) -> None:
    """OBX of a row that names an item; OBX-2 by the value where no column says it. A row without an item says nothing of a result."""
    said = any(row.get(c) for p, c in places if p[0] == "OBX" and p[1] in (3, 5))
    if not said:
        return
    _fill(obx, "OBX", row, places, fixed)
    if 2 not in obx.fields and 5 in obx.fields:
        obx.put(2, "NM" if _NUMBER.fullmatch(str(obx.fields[5][0][0])) else "ST")
