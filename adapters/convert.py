"""The formats we read: bytes -> Envelope, Conversion, single messages. Adding a format is one row of ``FORMATS``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from adapters import segments, xmltree
from adapters.cda import reader as cda_reader
from adapters.contract import Envelope, Unreadable
from adapters.dicom.signature import is_dicom
from adapters.ecg import aecg, muse, philips
from adapters.hl7v2 import peek as hl7v2_peek
from adapters.hl7v2 import reader as hl7v2_reader
from adapters.table import reader as table
from conformance.issue import Issue
from mappings import engine
from mappings.facility import Facility
from mappings.model import Conversion
from mappings.profile import Profile

Split = Callable[[BinaryIO, Facility | None], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Format:
    """How one format is read.

    convert  bytes of one message, the sender's profile and when it was received (FHIR instant, or empty) -> Conversion
    peek     bytes of one message -> Envelope, without converting it
    split    a stream of messages, the facility -> the bytes of each
    """

    convert: Callable[[bytes, Profile, str], Conversion]
    peek: Callable[[bytes, Facility], Envelope]
    split: Split


def _hl7v2(raw: bytes, profile: Profile, received_at: str) -> Conversion:
    message = hl7v2_reader.read(raw, profile.facility.charset)
    conversion = engine.convert(message, profile, f"urn:sha256:{hashlib.sha256(raw).hexdigest()}", received_at)
    conversion.issues[:0] = message.issues
    return conversion


def _document(read: Callable[[bytes, str], segments.Message]) -> Format:
    """A format whose reader gives segments, with the facility's character set; one file is one document."""
    return _segments(lambda raw, facility: read(raw, facility.charset), lambda stream, _: iter([stream.read()]))


def _segments(read: Callable[[bytes, Facility], segments.Message], split: Split) -> Format:
    """A format whose reader gives segments."""

    def convert(raw: bytes, profile: Profile, received_at: str) -> Conversion:
        message = read(raw, profile.facility)
        digest = f"urn:sha256:{hashlib.sha256(raw).hexdigest()}"
        conversion = engine.convert(message, profile, digest, received_at)
        conversion.issues[:0] = message.issues
        conversion.unread += message.unread
        return conversion

    def peek(raw: bytes, facility: Facility) -> Envelope:
        return segments.envelope(read(raw, facility), facility)

    return Format(convert, peek, split)


def _dicom(raw: bytes, facility: Facility) -> segments.Message:
    from adapters.dicom import reader  # noqa: PLC0415 - 12 MB that only who gets images needs

    return reader.read(raw, facility)


def _peek_dicom(raw: bytes, facility: Facility) -> Envelope:
    from adapters.dicom import reader  # noqa: PLC0415 - as above

    return reader.peek(raw, facility)


def _unknown(raw: bytes, charset: str) -> segments.Message:
    """Bytes of no format we know: kept, and held with the reason."""
    root = xmltree.root_name(raw)
    what = f"an XML document of type {root}" if root else "in no format this version reads"
    words = f"The file is {what}; it is kept as it is. Ask the vendor for one of the formats in docs/connect-files.md."
    raise Unreadable(Issue("unknown-format", "error", "", words))


def _rows(stream: BinaryIO, facility: Facility | None) -> Iterator[bytes]:
    raw = stream.read()
    return table.split(raw, facility) if facility is not None else iter([raw])


FORMATS: dict[str, Format] = {
    "hl7v2": Format(_hl7v2, hl7v2_peek.peek, lambda stream, _: hl7v2_reader.split(stream)),
    "cda": _document(cda_reader.read),
    "aecg": _document(aecg.read),
    "muse": _document(muse.read),
    "philips": _document(philips.read),
    "dicom": replace(_segments(_dicom, lambda stream, _: iter([stream.read()])), peek=_peek_dicom),
    "table": _segments(table.read, _rows),
    "unknown": _document(_unknown),
}
"""Format word -> its functions."""


def recognise(raw: bytes, profile: Profile | None = None) -> str:
    """The format of a file by its first bytes; ``hl7v2`` for what starts like no other: that reader says best what is wrong."""
    if is_dicom(raw):
        return "dicom"
    if hl7v2_peek.is_marked(raw):
        return "hl7v2"
    root = xmltree.root_name(raw)
    known = {aecg.ROOT: "aecg", muse.ROOT: "muse", philips.ROOT: "philips"}
    if root in known:
        return known[root]
    if root in cda_reader.ROOTS:
        return "cda"
    if profile is not None and table.is_table(raw, profile.facility):
        return "table"
    return "unknown" if root else "hl7v2"


def convert(raw: bytes, profile: Profile, format: str = "hl7v2", received_at: str = "") -> Conversion:
    """Read and map one message; ``received_at`` (FHIR instant) tells what lies in the future.

    Raises Unreadable when the bytes are not a message of the format, KeyError for an unknown format.
    """
    return FORMATS[format].convert(raw, profile, received_at)


def peek(raw: bytes, profile: Profile, format: str = "hl7v2") -> Envelope:
    """What must be known before the acknowledgement. Raises Unreadable like ``convert``."""
    return FORMATS[format].peek(raw, profile.facility)


def split(stream: BinaryIO, format: str = "hl7v2", profile: Profile | None = None) -> Iterator[bytes]:
    """The messages of a file or batch, one by one. A table needs the profile, which says what its columns are."""
    return FORMATS[format].split(stream, profile.facility if profile is not None else None)
