r"""A study package: what is known of a study so far, as one raw message of the inbox.

``TJDS1\n`` (an archive's list: ``TJDL1\n``), then for each object its length (8 bytes, most significant first) and the Part 10
object up to Pixel Data. Objects without pixels (reports, documents, key objects, waveforms) are whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from adapters.contract import Unreadable
from adapters.dicom import structure
from adapters.dicom.signature import LISTED, PACKAGE, is_package, start_of
from conformance.issue import Issue

_LENGTH: Final = 8


def pack(objects: Iterable[bytes], *, listed: bool = False) -> bytes:
    """Part 10 objects, each as ``header_bytes`` gives it -> one message. listed: they are all an archive has of the study now."""
    parts = [LISTED if listed else PACKAGE]
    for raw in objects:
        parts += (len(raw).to_bytes(_LENGTH, "big"), raw)
    return b"".join(parts)


def unpack(message: bytes) -> Iterator[bytes]:
    """The objects of a package in their order; a single Part 10 object is a package of one.

    Raises Unreadable: ``not-dicom`` when it is neither, ``dicom-truncated`` when it ends early.
    """
    if not is_package(message):
        if start_of(message) is None:
            words = "The bytes are neither a DICOM object (128 bytes and DICM) nor a study package."
            raise Unreadable(Issue("not-dicom", "error", "", words))
        yield message
        return
    at = len(PACKAGE)
    while at < len(message):
        start = at + _LENGTH
        length = int.from_bytes(message[at:start], "big")
        if start > len(message) or length > len(message) - start:
            words = "The study package ends inside an object; it was cut off on its way."
            raise Unreadable(Issue("dicom-truncated", "error", "", words))
        at = start + length
        yield message[start:at]


def header_bytes(part10: bytes) -> bytes:
    """The object as it was sent, up to Pixel Data (7FE0,0010); the whole of it when it has none.

    Raises Unreadable: ``not-dicom``, ``dicom-truncated``, ``dicom-bad-length``, ``dicom-too-deep``, ``too-large``.
    """
    return structure.header_bytes(part10)
