"""How the bytes of DICOM begin. By itself, so that who only looks for the format does not load a DICOM library."""

from __future__ import annotations

from typing import Final

PREAMBLE: Final = 132
"""Bytes before the first element of a file: 128 of no meaning, and ``DICM`` (PS3.10 section 7.1)."""
PACKAGE: Final = b"TJDS1\n"
"""The first bytes of a study package (package.py): what came of a study so far."""
LISTED: Final = b"TJDL1\n"
"""The first bytes of a study package that is the list an archive gives: what the study consists of there, and no more."""
_PREFIX: Final = b"DICM"
_META: Final = b"\x02\x00\x00\x00UL\x04\x00"
_BARE: Final = frozenset(b"\x08\x00" + bytes((element, 0)) for element in (0x00, 0x01, 0x05, 0x08, 0x12, 0x16, 0x18))
"""What a data set of an image begins with: its group length, its character set, or another element of group 0008."""


def start_of(raw: bytes) -> int | None:
    """Offset of the first element of a file; None when it does not begin like one.

    Old programs write files without the 128 bytes, without ``DICM``, or the data set alone (PS3.10 section 7.1 asks for all three).
    """
    if raw[128:PREAMBLE] == _PREFIX:
        return PREAMBLE
    if raw.startswith(_PREFIX):
        return len(_PREFIX)
    return 0 if raw.startswith(_META) or raw[:4] in _BARE else None


def is_object(raw: bytes) -> bool:
    """The bytes start like one DICOM object."""
    return start_of(raw) is not None


def is_package(raw: bytes) -> bool:
    """The bytes start like a study package."""
    return raw.startswith((PACKAGE, LISTED))


def is_dicom(raw: bytes) -> bool:
    """The bytes start like a DICOM object or a study package."""
    return is_package(raw) or is_object(raw)
