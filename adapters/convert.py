"""The formats we read: bytes -> Envelope, Conversion, single messages. Adding a format is one row of ``FORMATS``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from adapters.contract import Envelope
from adapters.hl7v2 import peek as hl7v2_peek
from adapters.hl7v2 import reader as hl7v2_reader
from mappings import engine
from mappings.facility import Facility
from mappings.model import Conversion
from mappings.profile import Profile


@dataclass(frozen=True, slots=True)
class Format:
    """How one format is read.

    convert  bytes of one message, the sender's profile and when it was received (FHIR instant, or empty) -> Conversion
    peek     bytes of one message -> Envelope, without converting it
    split    a stream of messages -> the bytes of each
    """

    convert: Callable[[bytes, Profile, str], Conversion]
    peek: Callable[[bytes, Facility], Envelope]
    split: Callable[[BinaryIO], Iterator[bytes]]


def _hl7v2(raw: bytes, profile: Profile, received_at: str) -> Conversion:
    message = hl7v2_reader.read(raw, profile.facility.charset)
    conversion = engine.convert(message, profile, f"urn:sha256:{hashlib.sha256(raw).hexdigest()}", received_at)
    conversion.issues[:0] = message.issues
    return conversion


FORMATS: dict[str, Format] = {"hl7v2": Format(_hl7v2, hl7v2_peek.peek, hl7v2_reader.split)}
"""Format word -> its functions."""


def convert(raw: bytes, profile: Profile, format: str = "hl7v2", received_at: str = "") -> Conversion:
    """Read and map one message; ``received_at`` (FHIR instant) tells what lies in the future.

    Raises Unreadable when the bytes are not a message of the format, KeyError for an unknown format.
    """
    return FORMATS[format].convert(raw, profile, received_at)


def peek(raw: bytes, profile: Profile, format: str = "hl7v2") -> Envelope:
    """What must be known before the acknowledgement. Raises Unreadable like ``convert``."""
    return FORMATS[format].peek(raw, profile.facility)


def split(stream: BinaryIO, format: str = "hl7v2") -> Iterator[bytes]:
    """The messages of a file or batch, one by one."""
    return FORMATS[format].split(stream)
