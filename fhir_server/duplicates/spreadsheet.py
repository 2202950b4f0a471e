"""Audit and measures as an Excel workbook (ECMA-376, written by XlsxWriter): one sheet a table, numbers as numbers."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import xlsxwriter


@dataclass(frozen=True, slots=True)
class Sheet:
    """One sheet: name (at most 31 characters), header, lines. Decimal and int are numbers; None is an empty cell."""

    name: str
    header: Sequence[str]
    lines: Iterable[Sequence[Any]]


def workbook(sheets: Iterable[Sheet]) -> bytes:
    """The bytes of an .xlsx file."""
    out = io.BytesIO()
    # Text that begins with = or http is data here, never a formula or a link.
    options = {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
    with xlsxwriter.Workbook(out, options) as book:
        bold = book.add_format({"bold": True})
        for sheet in sheets:
            page = book.add_worksheet(sheet.name)
            page.write_row(0, 0, sheet.header, bold)
            for number, line in enumerate(sheet.lines, 1):
                for column, cell in enumerate(line):
                    if cell is not None:
                        page.write(number, column, float(cell) if isinstance(cell, Decimal) else cell)
            page.freeze_panes(1, 0)
            page.autofit()
    return out.getvalue()
