"""Where the data elements of a Part 10 object lie, checked before anything parses them (DICOM PS3.5 chapter 7, PS3.10 chapter 7).

Lengths must stay inside the object, sequences may nest only so deep, a deflated data set may grow only so far: a damaged or hostile
object is refused here, with the reason, and never reaches the library that reads values.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from pydicom.datadict import dictionary_has_tag, dictionary_VR

from adapters.contract import Unreadable
from adapters.dicom.signature import start_of
from conformance.issue import Issue

MAX_HEADER: Final = 128 * 1024 * 1024
"""Bytes of one object without its pixels; an encapsulated PDF or a long waveform is far smaller."""
MAX_DEPTH: Final = 64
MAX_ELEMENTS: Final = 1_000_000
MAX_ITEMS: Final = 200_000
"""Items of sequences in one object: each takes more than a kilobyte when it is read. Enhanced objects have some ten a frame."""
PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
"""Float, Double Float and Pixel Data (PS3.3 C.7.6.3, C.7.6.24)."""
_IMPLICIT: Final = "1.2.840.10008.1.2"
_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
_DEFLATED: Final = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1"})
_LONG: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)  # fmt: skip
"""Value representations with a length of 32 bits (PS3.5 section 7.1.2)."""
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Part10:
    """One object as its parts.

    syntax    transfer syntax UID; of a deflated object the plain one its data set had before
    dataset   bytes of the data set, inflated; with the pixels when they were sent
    pixels    offset of Pixel Data in ``dataset``; its length when there is none
    explicit  value representations are written; little: byte order
    """

    syntax: str
    dataset: bytes
    pixels: int
    explicit: bool
    little: bool


def _refuse(key: str, words: str) -> Unreadable:
    return Unreadable(Issue(key, "error", "", words))


def take_apart(raw: bytes, values: dict[int, bytes] | None = None) -> Part10:
    """One Part 10 object, checked.

    values  by tag, filled in as ``walk`` does
    Raises Unreadable: ``not-dicom``, ``dicom-truncated``, ``dicom-bad-length``, ``dicom-too-deep``, ``too-large``.
    """
    start, syntax = _meta(raw)
    if syntax in _DEFLATED:
        dataset, explicit, little = inflated(raw[start:]), True, True
    else:
        dataset = raw[start:]
        little = syntax != _BIG_ENDIAN
        # Some writers name one syntax and use the other: the first element tells.
        explicit = dataset[4:6].isalpha() and dataset[4:6].isupper() if len(dataset) > 5 else syntax != _IMPLICIT
    return Part10(syntax, dataset, walk(dataset, explicit, little, values), explicit, little)


def header_bytes(part10: bytes, values: dict[int, bytes] | None = None) -> bytes:
    """The object as it was sent, up to Pixel Data; the whole of it when it has none (reports, documents, waveforms).

    values  by tag, filled in as ``walk`` does

    Of a deflated object the compressed bytes that hold as much. Raises Unreadable like ``take_apart``.
    """
    found = take_apart(part10, values)
    start, syntax = _meta(part10)
    if found.pixels == len(found.dataset):
        return part10
    if syntax not in _DEFLATED:
        return part10[: start + found.pixels]
    stream, made, wanted = zlib.decompressobj(-zlib.MAX_WBITS), 0, found.pixels + 12
    for offset in range(start, len(part10), _BLOCK):
        made += len(stream.decompress(part10[offset : offset + _BLOCK], wanted))
        if made >= wanted:
            return part10[: offset + _BLOCK]
    return part10


def check_pixels(data: bytes | mmap.mmap, at: int) -> None:
    """Pixel Data at ``at`` ends inside ``data``: a file cut off on its way has a whole header. Nothing there is nothing missing.

    Raises Unreadable ``dicom-truncated``.
    """
    if at + 8 > len(data):
        return
    order = ">" if data[at] == 0x7F else "<"
    at += 12 if data[at + 4 : at + 6] in _LONG else 8
    words = "The object ends inside its pixels; send it again."
    if at > len(data):
        raise _refuse("dicom-truncated", words)
    (length,) = struct.unpack_from(order + "L", data, at - 4)
    # Compressed pixels are items up to a delimiter (PS3.5 section A.4).
    tag = 0
    while length == _UNDEFINED and tag != _SEQUENCE_END:
        if at + 8 > len(data):
            raise _refuse("dicom-truncated", words)
        group, number, size = struct.unpack_from(order + "HHL", data, at)
        tag = group << 16 | number
        at += 8 + size
    if at + (0 if length == _UNDEFINED else length) > len(data):
        raise _refuse("dicom-truncated", words)


def inflated(compressed: bytes) -> bytes:
    """A raw deflate stream (PS3.5 section A.5), also a cut one; refused when it grows beyond ``MAX_HEADER``."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = stream.decompress(compressed, MAX_HEADER + 1)
    except zlib.error:
        raise _refuse("not-dicom", "The deflated data set cannot be inflated; send the object again.") from None
    if len(out) > MAX_HEADER:
        raise _refuse("too-large", f"The deflated data set grows beyond {MAX_HEADER} bytes; send it uncompressed.")
    return out


def _meta(raw: bytes) -> tuple[int, str]:
    """File Meta Information (PS3.10 section 7.1) -> offset of the data set, transfer syntax (empty when none is named)."""
    at, syntax = start_of(raw), ""
    if at is None:
        raise _refuse("not-dicom", "The file does not start like a DICOM object (128 bytes and DICM).")
    while raw[at : at + 2] == b"\x02\x00":
        if len(raw) < at + 12:
            raise _refuse("dicom-truncated", "The object ends inside its file meta information; send it again.")
        element = raw[at + 2 : at + 4]
        if raw[at + 4 : at + 6] in _LONG:
            (length,) = struct.unpack_from("<L", raw, at + 8)
            value = at + 12
        else:
            (length,) = struct.unpack_from("<H", raw, at + 6)
            value = at + 8
        if value + length > len(raw):
            raise _refuse("dicom-truncated", "The object ends inside its file meta information; send it again.")
        if element == b"\x10\x00":
            syntax = raw[value : value + length].decode("ascii", "replace").strip("\0 ")
        at = value + length
    return at, syntax


def walk(data: bytes, explicit: bool, little: bool, values: dict[int, bytes] | None = None) -> int:
    """Step over every element, down into sequences -> offset of Pixel Data at the top, or the length of ``data``.

    values  the tags in it get the bytes of their elements at the top, where those are there
    """
    order = "<" if little else ">"
    head = struct.Struct(order + "HHL").unpack_from
    short = struct.Struct(order + "H").unpack_from
    size = len(data)
    # The open sequences and items, innermost last: where they end (None: at their delimiter), the kind, the end of what holds them.
    ends: list[tuple[int | None, bool, int]] = []
    at = elements = items = 0
    while True:
        while ends and ends[-1][0] == at:
            ends.pop()
        if not ends and (at >= size or not data[at : at + 8].strip(b"\0")):
            return size
        limit = ends[-1][2] if ends else size
        if at + 8 > limit:
            raise _refuse("dicom-truncated", "The object ends inside a data element; send it again.")
        elements += 1
        if elements > MAX_ELEMENTS or at > MAX_HEADER:
            raise _refuse("too-large", f"The object has more than {MAX_ELEMENTS} data elements or {MAX_HEADER} bytes.")
        group, number, length = head(data, at)
        tag = group << 16 | number
        if tag in PIXELS and not ends:
            return at
        at += 8
        if group == 0xFFFE:
            if tag == _ITEM:
                items += 1
                if items > MAX_ITEMS:
                    raise _refuse("too-large", f"The sequences of the object have more than {MAX_ITEMS} items.")
                _open(ends, at, length, limit, of_items=False)
                continue
            if not ends or ends[-1][0] is not None or ends[-1][1] != (tag == _SEQUENCE_END):
                raise _refuse("dicom-bad-length", "A sequence of the object ends where none is open; send it again.")
            ends.pop()
            continue
        sequence = False
        vr = data[at - 4 : at - 2] if explicit else b""
        if vr.isalpha() and vr.isupper():
            if vr in _LONG:
                if at + 4 > limit:
                    raise _refuse("dicom-truncated", "The object ends inside a data element; send it again.")
                (length,) = struct.unpack_from(order + "L", data, at)
                at += 4
            else:
                (length,) = short(data, at - 2)
            sequence = vr == b"SQ"
        if not sequence and vr in (b"", b"UN"):
            sequence = _is_sequence(tag)
        if length == _UNDEFINED or (sequence and length):
            _open(ends, at, length, limit, of_items=True)
            continue
        if length > limit - at:
            words = (
                f"The length of element ({group:04X},{number:04X}) leads beyond the end of the object; send it again."
            )
            raise _refuse("dicom-bad-length", words)
        if values and tag in values and not ends:
            values[tag] = data[at : at + length]
        at += length


@lru_cache(maxsize=4096)
def _is_sequence(tag: int) -> bool:
    """The data dictionary (PS3.6) says so; of a private element nothing is known."""
    return dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"


def _open(ends: list[tuple[int | None, bool, int]], at: int, length: int, limit: int, *, of_items: bool) -> None:
    if len(ends) >= 2 * MAX_DEPTH:
        raise _refuse("dicom-too-deep", f"The object nests sequences deeper than {MAX_DEPTH} levels.")
    if length != _UNDEFINED and length > limit - at:
        raise _refuse("dicom-bad-length", "The length of a sequence leads beyond the end of the object; send it again.")
    ends.append((None, of_items, limit) if length == _UNDEFINED else (at + length, of_items, at + length))
