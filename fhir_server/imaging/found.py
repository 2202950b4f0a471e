"""What an archive tells of a study, as Part 10 objects without pixels: the same bytes each time it tells the same.

Texts come decoded (DICOM JSON is UTF-8, PS3.18 section F.2), so that the objects say UTF-8, whatever the modality wrote.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from io import BytesIO
from typing import Any, Final

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from adapters.dicom.package import header_bytes, pack

_BULK: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class NotUnderstood(Exception):
    """The archive's answer holds no objects that can be read; the text is free of patient data."""


def from_json(items: Iterable[dict[str, Any]]) -> list[Dataset]:
    """WADO-RS metadata (PS3.18 section 10.4) -> data sets; bulk data that is not in it stays empty. Raises NotUnderstood."""
    try:
        return [Dataset.from_json(item, bulk_data_uri_handler=lambda *_: None) for item in items]
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise NotUnderstood(f"metadata ({type(fault).__name__})") from None


def package(found: Iterable[Dataset]) -> bytes:
    """Data sets of one study -> a study package, ordered by SOP Instance UID. Raises NotUnderstood."""
    out = []
    for one in sorted(found, key=lambda d: str(d.get("SOPInstanceUID", ""))):
        for keyword in _BULK:
            if keyword in one:
                del one[keyword]
        kind, instance = one.get("SOPClassUID"), one.get("SOPInstanceUID")
        if not kind or not instance:
            raise NotUnderstood("an instance without SOP Class or Instance UID")
        one.SpecificCharacterSet = "ISO_IR 192"
        one.remove_private_tags()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = kind
        one.file_meta.MediaStorageSOPInstanceUID = instance
        written = BytesIO()
        try:
            with warnings.catch_warnings():
                # What an archive passes on need not keep every rule of a value representation.
                warnings.simplefilter("ignore")
                one.save_as(written, enforce_file_format=True)
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as fault:
            raise NotUnderstood(f"instance ({type(fault).__name__})") from None
        out.append(header_bytes(written.getvalue()))
    if not out:
        raise NotUnderstood("no instances")
    return pack(out, listed=True)
