"""How the bytes of DICOM begin. By itself, so that who only looks for the format does not load a DICOM library."""

from __future__ import annotations

from typing import Final

PREAMBLE: Final = 132
"""Bytes before the first element of a file: 128 of no meaning, and ``DICM`` (PS3.10 section 7.1)."""
PACKAGE: Final = b"TJDS1\n"
"""The first bytes of a study package (package.py)."""


def is_part10(raw: bytes) -> bool:
    """The bytes start like a DICOM file."""
    return raw[128:PREAMBLE] == b"DICM"


def is_dicom(raw: bytes) -> bool:
    """The bytes start like a DICOM object or a study package."""
    return is_part10(raw) or raw.startswith(PACKAGE)
