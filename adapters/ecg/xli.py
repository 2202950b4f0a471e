"""XLI, the compression of Philips Sierra ECG: per lead a header, LZW with codes of 10 bits, then second differences
(public description: sierra-ecg-tools). The limb leads III, aVR, aVL, aVF are stored as what a computation from I and II misses."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_HEADER = struct.Struct("<ihh")
_BITS = 10
_LAST = (1 << _BITS) - 2
_MOST = 4 * 1024 * 1024
"""Bytes of one lead when unpacked."""


class XliError(Exception):
    """The bytes are no XLI data."""


def leads(data: bytes) -> list[list[int]]:
    """All chunks of a waveform, one for each lead, as stored. Raises XliError."""
    out: list[list[int]] = []
    at = 0
    while at + _HEADER.size <= len(data):
        size, _, start = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if size <= 0 or at + size > len(data):
            raise XliError
        out.append(_differences(_unpacked(data[at : at + size]), start))
        at += size
    if not out:
        raise XliError
    return out


def _codes(data: bytes) -> Iterator[int]:
    held = bits = 0
    for byte in data:
        held, bits = (held << 8) | byte, bits + 8
        if bits >= _BITS:
            bits -= _BITS
            yield held >> bits
            held &= (1 << bits) - 1


def _unpacked(data: bytes) -> bytes:
    table = [bytes([n]) for n in range(256)]
    out = bytearray()
    before = b""
    for code in _codes(data):
        if code > _LAST:
            break
        if code < len(table):
            now = table[code]
        elif code == len(table) and before:
            now = before + before[:1]
        else:
            raise XliError
        out += now
        if len(out) > _MOST:
            raise XliError
        if before and len(table) <= _LAST:
            table.append(before + now[:1])
        before = now
    return bytes(out)


def _differences(data: bytes, start: int) -> list[int]:
    """High bytes first, low bytes after; then x[n] = 2 x[n-1] - x[n-2] - d[n-1], the d less 64."""
    # A last low byte of zero may be left out.
    data += b"\0" * (len(data) % 2)
    half = len(data) // 2
    if half < 2:
        raise XliError
    words = [struct.unpack(">h", data[n : n + 1] + data[half + n : half + n + 1])[0] for n in range(half)]
    out = words[:2]
    last = start
    for n in range(2, half):
        out.append(2 * out[n - 1] - out[n - 2] - last)
        last = words[n] - 64
    return out


def limbs(stored: list[list[int]]) -> list[list[int]]:
    """I, II, III, aVR, aVL, aVF and the others as recorded. Leads of unequal length stay as stored."""
    if len(stored) < 6 or len({len(s) for s in stored[:6]}) != 1:
        return stored
    one, two = stored[0], stored[1]
    three = [b - a - c for a, b, c in zip(one, two, stored[2], strict=True)]
    right = [-c - (a + b) // 2 for a, b, c in zip(one, two, stored[3], strict=True)]
    left = [(a - b) // 2 - c for a, b, c in zip(one, three, stored[4], strict=True)]
    foot = [(a + b) // 2 - c for a, b, c in zip(two, three, stored[5], strict=True)]
    return [one, two, three, right, left, foot, *stored[6:]]
