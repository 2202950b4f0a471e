"""Messages continued in the next one: DSC-1 of a part is MSH-14 of the next (HL7 v2.5.1 section 2.10.2).

Parts that follow each other in a file become one message under the first header. A part whose continuation does not follow is given as
it is; reading it says so, and it is held: half a message is never stored. Parts that arrive as messages of their own are put together
in the inbox (fhir_server.ingest.parts).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_LAST = re.compile(rb"[\r\n]DSC([^A-Za-z0-9\r\n\x1c])([^\r\n\x1c]*)[\r\n\x1c]*\Z")
_LINE = re.compile(rb"[\r\n]+")
_LARGEST = 32 * 1024 * 1024
"""Bytes of a joined message; what is larger stays in parts."""
_POINTER = 14
"""MSH-14, counted from the separator (section 2.15.9.1): the 13th field of the line."""


def joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The messages of a file with continued ones put together."""
    held = b""
    for part in parts:
        whole = part
        if held:
            last = _LAST.search(held)
            if last and _pointer_of(part) == _first_field(last) and len(held) + len(part) <= _LARGEST:
                whole = held[: last.start()] + b"\r" + (*_LINE.split(part, maxsplit=1), b"")[1]
            else:
                yield held
            held = b""
        last = _LAST.search(whole, max(0, len(whole) - 400))
        if last and _first_field(last):
            held = whole
        else:
            yield whole
    if held:
        yield held


def pointers(raw: bytes) -> tuple[str, str]:
    """(MSH-14, DSC-1) of one message, empty where it has none: which part it goes on from, and which one goes on with it."""
    start = raw.find(b"MSH")
    head = raw[start:] if start > 0 else raw
    last = _LAST.search(raw, max(0, len(raw) - 400))
    before, after = _pointer_of(head[:4096]), _first_field(last) if last else b""
    return before.decode(errors="replace"), after.decode(errors="replace")


def _first_field(last: re.Match[bytes]) -> bytes:
    return last[2].split(last[1])[0].strip()


def _pointer_of(part: bytes) -> bytes:
    fields = _LINE.split(part, maxsplit=1)[0].split(part[3:4])
    return fields[_POINTER - 1].strip() if len(fields) >= _POINTER else b""
