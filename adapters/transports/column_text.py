"""Values of database columns as text, as they are written there: digits, zones and padding neither added nor lost."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

from adapters.charset import decode
from adapters.contract import Unreadable

_LATIN1: Final[dict[str, int]] = {bytes([n]).decode("cp1252", "ignore") or chr(n): n for n in range(256)}
"""What databases make of a byte of a column they call Latin-1 (cp1252 and, where that has none, the control character)."""

_ZERO_DATE: Final = re.compile(r"0000-00-00(?:[ T]00:00:00(?:\.0{1,6})?)?", re.ASCII)
"""MySQL's and MariaDB's way of saying that there is no date."""


def text_of(value: Any, charset: str, *, latin1: bool = False) -> tuple[str, bool]:
    """A value that is not NULL as text (MySQL's zero date: none), and whether it could be decoded (else its bytes as hex digits).

    charset  of binary columns, and with ``latin1`` of texts that the database takes for Latin-1; empty: UTF-8 or GB18030
    """
    if isinstance(value, str):
        text = value.strip()
        if _ZERO_DATE.fullmatch(text):
            return "", True
        if not latin1 or text.isascii() or not all(c in _LATIN1 for c in text):
            return text, True
        value = bytes(_LATIN1[c] for c in text)
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(value)
        try:
            return decode(raw, "", charset).text.strip(), True
        except Unreadable:
            return raw.hex(), False
    return _plain(value), True


def _plain(value: Any) -> str:
    """A value of a column as text, with the digits it has: ``6.30`` stays ``6.30``, a time without a zone gets none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds" if value.microsecond else "seconds")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        minutes, seconds = divmod(int(value.total_seconds()), 60)
        return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
    return str(value).strip()
