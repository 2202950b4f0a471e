"""Reports, documents, key images and ECG of DICOM: findings and conclusion apart, measurements with units, status as flagged."""

from __future__ import annotations

import base64
from array import array
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from adapters.convert import convert
from adapters.dicom.package import header_bytes, pack
from conformance import systems, validator
from mappings.model import Conversion
from mappings.profile import load_profiles
from tests.dicom_objects import ROOT, image, part10

PROFILE = load_profiles()["generic"]


def code(value: str, meaning: str, scheme: str = "DCM") -> Dataset:
    out = Dataset()
    out.CodeValue, out.CodingSchemeDesignator, out.CodeMeaning = value, scheme, meaning
    return out


def content(kind: str, concept: Dataset, *inner: Dataset, **values: Any) -> Dataset:
    out = Dataset()
    out.RelationshipType, out.ValueType = "CONTAINS", kind
    out.ConceptNameCodeSequence = Sequence([concept])
    for keyword, value in values.items():
        setattr(out, keyword, value)
    if inner:
        out.ContentSequence = Sequence(inner)
    return out


def text(concept: Dataset, words: str) -> Dataset:
    return content("TEXT", concept, TextValue=words)


def measured(concept: Dataset, value: str, unit: str, *inner: Dataset) -> Dataset:
    of = Dataset()
    of.NumericValue = value
    of.MeasurementUnitsCodeSequence = Sequence([code(unit, unit, "UCUM")])
    return content("NUM", concept, *inner, MeasuredValueSequence=Sequence([of]))


def report(*inner: Dataset, uid: str = "9.1", **elements: Any) -> bytes:
    data = image(
        series=9, pixels=False, Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33", SOPInstanceUID=f"{ROOT}.{uid}",
        ContentDate="20260301", ContentTime="110000", CompletionFlag="COMPLETE", VerificationFlag="VERIFIED",
    )  # fmt: skip
    data.ValueType = "CONTAINER"
    data.ConceptNameCodeSequence = Sequence([code("18782-3", "X线检查报告", "LN")])
    data.ContentSequence = Sequence(inner)
    for keyword, value in elements.items():
        if value is None:
            data.pop(keyword, None)
        else:
            setattr(data, keyword, value)
    return part10(data)


def converted(raw: bytes) -> Conversion:
    found = convert(raw, PROFILE, "dicom", "2026-03-02T00:00:00Z")
    assert found.held is None
    for entry in found.entries:
        assert not [i for i in validator.check(entry.resource) if i.severity in ("error", "fatal")], entry.resource
    return found


def kinds(found: Conversion, kind: str) -> list[dict[str, Any]]:
    return [e.resource for e in found.entries if e.resource["resourceType"] == kind]


FINDINGS = content("CONTAINER", code("121070", "Findings"), text(code("121071", "Finding"), "两肺纹理清晰。"))
CONCLUSION = content("CONTAINER", code("121076", "Conclusions"), text(code("121077", "Conclusion"), "胸部未见异常。"))


def test_findings_and_conclusion_are_kept_apart() -> None:
    found = converted(report(FINDINGS, CONCLUSION))
    (one,) = kinds(found, "DiagnosticReport")
    assert one["conclusion"] == "胸部未见异常。"
    assert {o["code"]["text"]: o["valueString"] for o in kinds(found, "Observation")} == {
        "Finding": "两肺纹理清晰。",
        "Conclusions": "胸部未见异常。",
    }
    assert one["category"][0]["coding"][0]["code"] == "RAD"
    assert one["identifier"][0]["value"] == "CT20260301001"


def test_chinese_headings_without_codes_of_dicom_are_kept_apart_too() -> None:
    found = converted(
        report(
            text(code("01", "影像所见", "99LOCAL"), "右肺结节。"), text(code("02", "诊断意见", "99LOCAL"), "建议随访。")
        )
    )
    assert kinds(found, "DiagnosticReport")[0]["conclusion"] == "建议随访。"


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        ({}, "final"),
        ({"VerificationFlag": "UNVERIFIED"}, "preliminary"),
        ({"CompletionFlag": "PARTIAL"}, "partial"),
        ({"PreliminaryFlag": "PRELIMINARY"}, "preliminary"),
        ({"VerificationFlag": None}, "preliminary"),
        ({"VerificationFlag": None, "CompletionFlag": None}, "unknown"),
    ],
)
def test_a_report_is_final_only_when_it_is_complete_and_verified(flags: dict[str, Any], status: str) -> None:
    assert kinds(converted(report(FINDINGS, **flags)), "DiagnosticReport")[0]["status"] == status


def test_measurements_of_two_groups_are_told_apart_and_keep_their_units() -> None:
    def group(name: str, value: str) -> Dataset:
        site = content(
            "CODE",
            code("363698007", "Finding Site", "SCT"),
            ConceptCodeSequence=Sequence([code("39607008", "Lung", "SCT")]),
        )
        site.RelationshipType = "HAS CONCEPT MOD"
        tracking = text(code("112039", "Tracking Identifier"), name)
        return content(
            "CONTAINER",
            code("125007", "Measurement Group"),
            tracking,
            measured(code("410668003", "Length", "SCT"), value, "mm", site),
        )

    found = converted(
        report(content("CONTAINER", code("126010", "Imaging Measurements"), group("L1", "6.30"), group("L2", "8")))
    )
    observations = kinds(found, "Observation")
    assert [(str(o["valueQuantity"]["value"]), o["valueQuantity"]["code"]) for o in observations] == [
        ("6.30", "mm"),
        ("8", "mm"),
    ]
    assert len({o["id"] for o in observations}) == 2
    assert observations[0]["code"]["coding"][0] == {"system": systems.SNOMED, "code": "410668003", "display": "Length"}
    assert observations[0]["bodySite"]["coding"][0]["code"] == "39607008"


def test_what_is_nested_in_a_measurement_group_is_of_that_group() -> None:
    """A container in the group, and a number a measurement was inferred from (TID 1501 lets both stand there)."""

    def group(name: str, value: str) -> Dataset:
        deviation = measured(code("386136009", "Standard Deviation", "SCT"), "0.5", "mm")
        diameter = measured(code("81827009", "Diameter", "SCT"), value, "mm", deviation)
        inner = content("CONTAINER", code("121070", "Findings"), diameter)
        return content(
            "CONTAINER", code("125007", "Measurement Group"), text(code("112039", "Tracking Identifier"), name), inner
        )

    found = convert(report(group("结节1", "12.50"), group("结节2", "31")), PROFILE, "dicom", "2026-03-02T00:00:00Z")
    plain = convert(report(group("", "12.50"), group("", "31")), PROFILE, "dicom", "2026-03-02T00:00:00Z")
    told = [str(o).count("结节") for o in kinds(found, "Observation")]
    assert told == [1, 1, 1, 1]
    assert len(kinds(plain, "Observation")) == 4


def test_the_site_of_a_measurement_group_is_that_of_each_of_its_measurements() -> None:
    # TID 1501 of PS3.16: Finding Site modifies the group; a measurement may name one of its own.
    def site(value: str, meaning: str) -> Dataset:
        words = code("363698007", "Finding Site", "SCT")
        out = content("CODE", words, ConceptCodeSequence=Sequence([code(value, meaning, "SCT")]))
        out.RelationshipType = "HAS CONCEPT MOD"
        return out

    long = measured(code("103339001", "Long axis", "SCT"), "8.5", "mm")
    short = measured(code("103340004", "Short axis", "SCT"), "6", "mm", site("10200004", "Liver"))
    group = content("CONTAINER", code("125007", "Measurement Group"), site("39607008", "Lung"), long, short)
    other = measured(code("410668003", "Length", "SCT"), "3", "mm")
    found = converted(report(content("CONTAINER", code("126010", "Imaging Measurements"), group, other)))
    told = [o.get("bodySite", {}).get("coding", [{}])[0].get("code") for o in kinds(found, "Observation")]
    assert told == ["39607008", "10200004", None]


def test_a_verified_report_takes_the_place_of_the_draft_it_names() -> None:
    draft = report(text(code("121071", "Finding"), "草稿"), uid="9.1", VerificationFlag="UNVERIFIED")
    sop, series, study = Dataset(), Dataset(), Dataset()
    sop.ReferencedSOPInstanceUID, sop.ReferencedSOPClassUID = f"{ROOT}.9.1", "1.2.840.10008.5.1.4.1.1.88.33"
    series.ReferencedSOPSequence, study.ReferencedSeriesSequence = Sequence([sop]), Sequence([series])
    final = report(FINDINGS, uid="9.2", PredecessorDocumentsSequence=Sequence([study]))
    found = converted(pack([draft, final, header_bytes(part10(image()))]))
    (one,) = kinds(found, "DiagnosticReport")
    assert one["status"] == "final"
    assert [o["valueString"] for o in kinds(found, "Observation")] == ["两肺纹理清晰。"]
    # a report in the study it is about names its images
    assert one["imagingStudy"] == [{"reference": f"ImagingStudy/{kinds(found, 'ImagingStudy')[0]['id']}"}]


def test_a_report_alone_makes_no_study_without_images() -> None:
    assert kinds(converted(report(FINDINGS)), "ImagingStudy") == []


def test_an_encapsulated_pdf_is_the_presented_form_of_the_report() -> None:
    pdf = b"%PDF-1.4 made up\n%%EOF"
    data = image(
        series=8, pixels=False, Modality="DOC", SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1", DocumentTitle="胸部CT报告"
    )
    data.MIMETypeOfEncapsulatedDocument, data.EncapsulatedDocument = "application/pdf", pdf
    found = converted(part10(data))
    (one,) = kinds(found, "DiagnosticReport")
    assert one["status"] == "unknown"
    assert one["presentedForm"][0]["contentType"] == "application/pdf"
    (binary,) = kinds(found, "Binary")
    assert base64.b64decode(binary["data"]) == pdf
    assert kinds(found, "DocumentReference")[0]["content"][0]["attachment"]["url"] == f"Binary/{binary['id']}"


def test_key_images_are_a_document_that_names_them_and_the_study() -> None:
    data = image(
        series=7, pixels=False, Modality="KO", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.59", SOPInstanceUID=f"{ROOT}.7.1"
    )
    data.ConceptNameCodeSequence = Sequence([code("113000", "Of Interest")])
    sop, series, study = Dataset(), Dataset(), Dataset()
    sop.ReferencedSOPInstanceUID, series.SeriesInstanceUID = f"{ROOT}.1.1.1", f"{ROOT}.1.1"
    series.ReferencedSOPSequence, study.ReferencedSeriesSequence = Sequence([sop]), Sequence([series])
    data.CurrentRequestedProcedureEvidenceSequence = Sequence([study])
    data.ContentSequence = Sequence([text(code("113012", "Key Object Description"), "右肺结节")])
    raw = part10(data)
    found = converted(pack([header_bytes(part10(image())), raw]))
    (document,) = kinds(found, "DocumentReference")
    assert document["type"]["coding"][0]["code"] == "113000"
    assert document["description"] == "右肺结节; 1 images"
    assert {"reference": f"ImagingStudy/{kinds(found, 'ImagingStudy')[0]['id']}"} in document["context"]["related"]
    bodies = {b["contentType"]: base64.b64decode(b["data"]) for b in kinds(found, "Binary")}
    assert bodies["application/dicom"] == raw
    assert f"urn:oid:{ROOT}.1.1.1".encode() in bodies["text/plain; charset=utf-8"]


def test_every_sample_of_a_real_ecg_is_kept_with_its_scale() -> None:
    path = get_testdata_file("waveform_ecg.dcm", download=False)
    assert isinstance(path, str)
    raw = Path(path).read_bytes()
    found = converted(raw)
    data = pydicom.dcmread(path)
    samples = array("h")
    samples.frombytes(data.WaveformSequence[0].WaveformData)
    leads = [o for o in kinds(found, "Observation") if "valueSampledData" in o and "extension" not in o]
    names = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    assert [o["code"]["text"] for o in leads] == [f"Lead {n}" for n in names]
    for index, lead in enumerate(leads):
        sampled = lead["valueSampledData"]
        assert [int(s) for s in sampled["data"].split()] == list(samples[index::12])
        assert (str(sampled["period"]), str(sampled["factor"])) == ("1", "1.25")
    said = {
        o["code"]["coding"][0]["code"]: str(o["valueQuantity"]["value"])
        for o in kinds(found, "Observation")
        if "valueQuantity" in o
    }
    # the annotations of the file: PR 161, QRS 75, QT 368, QTc 370 ms, axes 74, 52, 57
    assert said == {
        "8625-6": "161",
        "8633-0": "75",
        "8634-8": "368",
        "8636-3": "370",
        "8626-4": "74",
        "8632-2": "52",
        "8638-9": "57",
    }
    (one,) = kinds(found, "DiagnosticReport")
    assert one["status"] == "preliminary" and one["conclusion"] == "RITMO SINUSALE\nECG NORMALE"


def test_a_private_number_of_a_lead_is_not_taken_for_a_standard_one() -> None:
    path = get_testdata_file("waveform_ecg.dcm", download=False)
    data = pydicom.dcmread(str(path))
    source = data.WaveformSequence[0].ChannelDefinitionSequence[0].ChannelSourceSequence[0]
    source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = "99-3", "99CART", "first electrode"
    found = converted(part10(data))
    leads = [o["code"]["text"] for o in kinds(found, "Observation") if "valueSampledData" in o and "extension" not in o]
    # CID 3001: only MDC 2:3 and SCP-ECG 5.6.3-9-3 are V1, which the file has as its seventh lead.
    assert leads == [f"Lead {n}" for n in ("II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")]
    assert [i.where for i in found.issues if i.key == "bad-waveform"] == ["waveform[1].channel[1]"]


def test_the_doctors_report_of_an_ecg_is_the_same_report_as_the_recording() -> None:
    def ecg(flag: str) -> str:
        found = converted(report(text(code("121077", "Conclusion"), "窦性心律"), Modality="ECG", VerificationFlag=flag))
        return str(kinds(found, "DiagnosticReport")[0]["id"])

    path = get_testdata_file("waveform_ecg.dcm", download=False)
    data = pydicom.dcmread(str(path))
    data.PatientID, data.AccessionNumber = "P0001", "CT20260301001"
    village = converted(part10(data))
    assert kinds(village, "DiagnosticReport")[0]["id"] == ecg("VERIFIED")


@pytest.mark.parametrize("given", ["nothing", "no-value", "reason"])
def test_a_measurement_without_a_value_is_told_and_gets_none(given: str) -> None:
    """PS3.3 table C.18.1-1: Measured Value Sequence may be empty, and (0040,A301) says why."""
    height = content("NUM", code("11727-5", "估计胎儿体重", "LN"))
    if given == "no-value":
        height = measured(code("11727-5", "估计胎儿体重", "LN"), "", "g")
    if given == "reason":
        height.MeasuredValueSequence = Sequence([])
        height.NumericValueQualifierCodeSequence = Sequence([code("114006", "Measurement failure")])
    found = converted(report(height, measured(code("11820-8", "双顶径", "LN"), "93", "mm")))
    first, second = (e.resource for e in found.entries if e.resource["resourceType"] == "Observation")
    assert not any(key.startswith("value") for key in first)
    told = first["dataAbsentReason"]["coding"][0]["code"]
    assert told == ("114006" if given == "reason" else "unknown")
    assert [i.where for i in found.issues if i.key == "sr-no-value"] == ["content[1]"]
    assert str(second["valueQuantity"]["value"]) == "93"
