"""DICOM objects made for tests, of invented people: a study of images, as a modality or PACS would send it."""

from __future__ import annotations

import io
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

ROOT = "1.2.826.0.1.3680043.10.1444"
"""An UID root for tests."""
CT = "1.2.840.10008.5.1.4.1.1.2"
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def image(study: str = "1", series: int = 1, number: int = 1, *, pixels: bool = True, **elements: Any) -> Dataset:
    """One CT slice; ``elements`` by keyword replace or add, None takes an element away."""
    out = Dataset()
    out.SpecificCharacterSet = "GB18030"
    out.SOPClassUID = CT
    out.SOPInstanceUID = f"{ROOT}.{study}.{series}.{number}"
    out.StudyDate, out.StudyTime = "20260301", "093000"
    out.AccessionNumber = "CT20260301001"
    out.Modality = "CT"
    out.StudyDescription = "胸部CT平扫"
    out.PatientName = "Wang^Xiaodong=王^小东"
    out.PatientID = "P0001"
    out.PatientBirthDate, out.PatientSex = "19800101", "M"
    out.BodyPartExamined = "CHEST"
    out.StudyInstanceUID = f"{ROOT}.{study}"
    out.SeriesInstanceUID = f"{ROOT}.{study}.{series}"
    out.SeriesNumber, out.InstanceNumber = series, number
    for keyword, value in elements.items():
        if value is None:
            out.pop(keyword, None)
        else:
            setattr(out, keyword, value)
    if pixels:
        out.Rows = out.Columns = 16
        out.BitsAllocated = out.BitsStored = 16
        out.HighBit, out.PixelRepresentation, out.SamplesPerPixel = 15, 0, 1
        out.PhotometricInterpretation = "MONOCHROME2"
        out.add_new(0x7FE00010, "OW", bytes(range(256)) * 2)
    return out


def part10(data: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """The data set as a file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = data.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    data.file_meta = meta
    dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence (PS3.3 section 8.8)."""
    out = Dataset()
    out.CodeValue, out.CodingSchemeDesignator, out.CodeMeaning = value, scheme, meaning
    return out


def key_objects(title: Dataset, numbers: list[int], study: str = "1") -> Dataset:
    """A Key Object Selection about images of series 1 of a study."""
    out = image(study, 9, 1, pixels=False, Modality="KO", BodyPartExamined=None)
    out.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.59"
    out.ContentDate, out.ContentTime = "20260302", "080000"
    out.ValueType, out.ConceptNameCodeSequence = "CONTAINER", [title]
    evidence, series = Dataset(), Dataset()
    evidence.StudyInstanceUID, series.SeriesInstanceUID = f"{ROOT}.{study}", f"{ROOT}.{study}.1"
    series.ReferencedSOPSequence = []
    for number in numbers:
        sop = Dataset()
        sop.ReferencedSOPClassUID, sop.ReferencedSOPInstanceUID = CT, f"{ROOT}.{study}.1.{number}"
        series.ReferencedSOPSequence.append(sop)
    evidence.ReferencedSeriesSequence = [series]
    out.CurrentRequestedProcedureEvidenceSequence = [evidence]
    return out
