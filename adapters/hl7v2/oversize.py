"""Where a message is too large: the segment and field that take most of it, told from its bytes without reading it as a message."""

from __future__ import annotations

import re

_LINE = re.compile(rb"[\r\n]+")
_ID = re.compile(rb"[A-Z][A-Z0-9]{2}")
_SHOWN = 40
"""Bytes of the field that are shown: enough to know it again."""


def place(data: bytes, *, cut: bool) -> tuple[str, str]:
    """(position as ``OBX[3]-5``, beginning of the field); both empty when the bytes do not begin with MSH.

    data  the message, or with ``cut`` the beginning of it that was kept: then the field in which it was cut off is the one
    """
    start = data.find(b"MSH", 0, 512)
    separator = data[start + 3 : start + 4]
    if start < 0 or not separator or separator.isalnum() or separator.isspace():
        return "", ""
    counts: dict[str, int] = {}
    found: list[tuple[str, list[bytes]]] = []
    for line in _LINE.split(data[start:]):
        fields = line.split(separator)
        name = fields[0].strip().upper()
        if _ID.fullmatch(name):
            counts[name.decode()] = number = counts.get(name.decode(), 0) + 1
            found.append((f"{name.decode()}[{number}]", fields))
        elif found and line.strip():
            # A line of text inside a field (wrapped Base64).
            found[-1][1][-1] += line
    if not found:
        return "", ""
    where, fields = found[-1] if cut else max(found, key=lambda one: max(map(len, one[1])))
    chosen = len(fields) - 1 if cut else max(range(len(fields)), key=lambda n: len(fields[n]))
    if not chosen:
        return where, ""
    return f"{where}-{chosen + where.startswith('MSH')}", fields[chosen][:_SHOWN].decode(errors="replace")
