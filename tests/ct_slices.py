"""CT slices to send, with pixels; every identity is invented."""

from __future__ import annotations

from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.8.498.990125"
STUDY = f"{ROOT}.1"
SERIES = f"{ROOT}.2"


def ct_slice(number: int, *, study: str = STUDY, pixels: int = 2048) -> Dataset:
    """One CT slice; ``number`` gives its SOP Instance UID and Instance Number."""
    slice_ = Dataset()
    slice_.file_meta = FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
    instance = f"{study}.3.{number}"
    slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = instance
    slice_.StudyInstanceUID, slice_.SeriesInstanceUID = study, SERIES
    slice_.PatientID, slice_.PatientName, slice_.PatientSex = "B000777", "CE^SHI", "F"
    slice_.StudyDate, slice_.StudyTime, slice_.AccessionNumber = "20260304", "101500", "CT777"
    slice_.StudyDescription, slice_.Modality, slice_.BodyPartExamined = "Chest", "CT", "CHEST"
    slice_.SeriesNumber, slice_.InstanceNumber = 1, number
    slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = 16, pixels // 32, 1
    slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 0
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
    slice_.PixelData = bytes(number % 256 for _ in range(pixels))
    return slice_


def part10(slice_: Dataset) -> bytes:
    """The object as a file."""
    out = BytesIO()
    slice_.save_as(out, enforce_file_format=True)
    return out.getvalue()
