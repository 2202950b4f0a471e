"""Images of a study become one ImagingStudy: what the headers say, what they do not say, and how statements of it merge."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit

from adapters.contract import Unreadable
from adapters.convert import convert, peek, recognise
from adapters.dicom.package import header_bytes, pack
from conformance import systems, validator
from mappings.facility import Identifiers, Pacs
from mappings.model import Conversion
from mappings.profile import Profile, load_profiles
from tests.dicom_objects import ROOT, SYNTAXES, code, image, key_objects, part10


@pytest.fixture(scope="module")
def generic() -> Profile:
    return load_profiles()["generic"]


def package(*objects: Dataset) -> bytes:
    return pack(header_bytes(part10(o)) for o in objects)


def converted(raw: bytes, profile: Profile, at: str = "2026-03-02T00:00:00Z") -> Conversion:
    assert recognise(raw) == "dicom"
    found = convert(raw, profile, "dicom", at)
    for entry in found.entries:
        assert not [i for i in validator.check(entry.resource) if i.severity in ("error", "fatal")], entry.resource
    return found


def study(found: Conversion) -> dict[str, Any]:
    (one,) = [e.resource for e in found.entries if e.resource["resourceType"] == "ImagingStudy"]
    return one


def keys(found: Conversion) -> set[str]:
    return {i.key for i in found.issues}


def test_series_and_instances_stand_in_the_order_of_their_numbers_whatever_came_first(generic: Profile) -> None:
    objects = [image(series=s, number=n) for s in (2, 1) for n in (10, 2, 1)]
    found = study(converted(package(*objects, objects[0]), generic))
    assert [s["number"] for s in found["series"]] == [1, 2]
    assert [[i["number"] for i in s["instance"]] for s in found["series"]] == [[1, 2, 10]] * 2
    assert (found["numberOfSeries"], found["numberOfInstances"]) == (2, 6)
    assert [s["numberOfInstances"] for s in found["series"]] == [3, 3]
    assert found["series"][0]["uid"] == f"{ROOT}.1.1"
    assert found["series"][0]["instance"][0]["sopClass"] == {
        "system": "urn:ietf:rfc:3986",
        "code": "urn:oid:1.2.840.10008.5.1.4.1.1.2",
    }


def test_fewer_images_than_the_headers_name_are_said_to_be_missing(generic: Profile) -> None:
    objects = [
        image(number=n, NumberOfStudyRelatedInstances="5", NumberOfSeriesRelatedInstances="4") for n in (1, 2, 3)
    ]
    found = converted(package(*objects), generic)
    assert study(found)["numberOfInstances"] == 5
    assert study(found)["series"][0]["numberOfInstances"] == 4
    assert "images-missing" in keys(found)


def test_one_object_alone_says_nothing_of_the_others(generic: Profile) -> None:
    found = converted(part10(image()), generic)
    one = study(found)
    assert "numberOfInstances" not in one and "numberOfSeries" not in one
    assert "numberOfInstances" not in one["series"][0]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: str(s.name))
def test_a_study_reads_the_same_in_every_transfer_syntax(syntax: Any, generic: Profile) -> None:
    found = study(converted(pack([header_bytes(part10(image(), syntax))]), generic))
    assert found["description"] == "胸部CT平扫"
    assert found["series"][0]["bodySite"]["code"] == "816094009"


def test_statements_of_a_study_merge_to_the_fullest_in_any_order_of_arrival(generic: Profile) -> None:
    objects = [image(number=n) for n in (1, 2, 3)]
    stated = []
    for minute, count in enumerate((1, 2, 3)):
        found = converted(package(*objects[:count]), generic, f"2026-03-02T00:0{minute}:00Z")
        stated += [e for e in found.entries if e.resource["resourceType"] == "ImagingStudy"]
    assert len({e.resource["id"] for e in stated}) == 1
    for order in permutations(stated):
        newest = max(order, key=lambda e: e.recency)
        assert newest.resource["numberOfInstances"] == 3
    late = converted(package(*objects[:1]), generic, "2026-03-03T00:00:00Z")
    (again,) = [e for e in late.entries if e.resource["resourceType"] == "ImagingStudy"]
    assert again.recency < max(e.recency for e in stated)


@pytest.mark.parametrize(
    ("labels", "bytes_of", "codec"),
    [
        ("GB18030", "王^小东", "gb18030"),
        ("GBK", "王^小东", "gbk"),
        ("ISO_IR 192", "王^小东", "utf-8"),
        (["", "ISO 2022 IR 58"], "王^小东", None),
        (["ISO 2022 IR 6", "ISO 2022 IR 58"], "王^小东", None),
        # 镕: its GBK bytes end in 0x5E, the caret; 诺 in 0x5C would be the backslash of several values
        ("GB18030", "朱^镕基", "gb18030"),
    ],
)
def test_chinese_names_are_read_in_every_character_set(
    labels: Any, bytes_of: str, codec: str | None, generic: Profile
) -> None:
    data = image(SpecificCharacterSet=labels, StudyDescription="CT", PatientName=None)
    raw_name = (
        bytes_of.encode(codec) if codec else b"^".join(b"\x1b$)A" + p.encode("gb2312") for p in bytes_of.split("^"))
    )
    data.add_new(0x00100010, "PN", b"Wang^Xiaodong=" + raw_name)
    found = converted(package(data), generic)
    (patient,) = [e.resource for e in found.entries if e.resource["resourceType"] == "Patient"]
    assert patient["name"][0]["text"] == bytes_of.replace("^", "")
    assert not {"charset-detected", "charset-mismatch"} & keys(found)


@pytest.mark.parametrize("label", [None, "", "ISO_IR 100"])
def test_gbk_bytes_without_a_true_label_are_never_read_as_latin_letters_in_silence(
    label: str | None, generic: Profile
) -> None:
    data = image(SpecificCharacterSet=label, StudyDescription=None, PatientName=None)
    data.add_new(0x00100010, "PN", "王^小东".encode("gbk"))
    data.add_new(0x00081030, "LO", "胸部平扫".encode("gbk"))
    raw = package(data)
    found = converted(raw, generic)
    assert study(found)["description"] == "胸部平扫"
    assert {"charset-detected", "charset-mismatch"} & keys(found)
    told = converted(raw, with_(generic, charset="GB18030"))
    assert study(told)["description"] == "胸部平扫"
    assert not {"charset-detected", "charset-mismatch"} & keys(told)


def with_(profile: Profile, **changed: Any) -> Profile:
    facility = profile.facility.model_copy(update=changed)
    return replace(profile, facility=facility, digest=f"{profile.digest} {sorted(changed)}")


def test_latin_letters_stay_latin(generic: Profile) -> None:
    data = image(SpecificCharacterSet="ISO_IR 100", StudyDescription=None, PatientName=None)
    data.add_new(0x00100010, "PN", "Äneas^Rüdiger".encode("latin-1"))
    found = converted(package(data), generic)
    assert [e.resource["name"][0]["family"] for e in found.entries if e.resource["resourceType"] == "Patient"] == [
        "Äneas"
    ]
    assert not {"charset-detected", "charset-mismatch"} & keys(found)


def test_the_patient_is_the_one_of_the_messages_when_the_profile_names_the_issuer(generic: Profile) -> None:
    def patient(data: Dataset, profile: Profile) -> str:
        (key,) = peek(package(data), profile, "dicom").patient_keys
        return key

    named = with_(generic, identifiers=Identifiers(dicom_issuer="HIS"))
    assert patient(image(), generic) == "|P0001"
    assert patient(image(), named) == "HIS|P0001"
    assert patient(image(IssuerOfPatientID="RIS"), named) == "RIS|P0001"
    # a resident ID number (GB 11643, made up, right check character) is nobody's own number
    assert patient(image(PatientID="110101198001010010"), named) == "|110101198001010010"


def test_other_numbers_of_the_patient_are_kept_with_their_issuers(generic: Profile) -> None:
    other, card = Dataset(), Dataset()
    other.PatientID, other.IssuerOfPatientID, other.TypeOfPatientID = "E77", "EMPI", "TEXT"
    card.PatientID, card.TypeOfPatientID = "110101198001010010", "TEXT"
    found = converted(package(image(OtherPatientIDsSequence=Sequence([other, card]))), generic)
    (patient,) = [e.resource for e in found.entries if e.resource["resourceType"] == "Patient"]
    own = systems.facility_system("generic", "patient")
    assert [(i["system"], i["value"]) for i in patient["identifier"]] == [
        (own, "P0001"),
        (f"{own}/EMPI", "E77"),
        (systems.RESIDENT_ID, "110101198001010010"),
    ]


def test_the_offset_of_the_object_goes_before_the_zone_of_the_facility(generic: Profile) -> None:
    assert study(converted(package(image()), generic))["started"] == "2026-03-01T09:30:00+08:00"
    told = study(converted(package(image(TimezoneOffsetFromUTC="+0600")), generic))
    assert told["started"] == "2026-03-01T09:30:00+06:00"


def test_side_view_and_contrast_stand_where_the_headers_tell_and_nowhere_else(generic: Profile) -> None:
    plain = study(converted(package(image()), generic))["series"][0]
    assert "laterality" not in plain and "extension" not in plain
    told = study(
        converted(package(image(ImageLaterality="R", ViewPosition="LL", ContrastBolusAgent="碘海醇 350")), generic)
    )["series"][0]
    assert told["laterality"]["code"] == "24028007"
    assert [(e["url"], e["valueString"]) for e in told["extension"]] == [
        (systems.VIEW, "LL"),
        (systems.CONTRAST, "碘海醇 350"),
    ]
    both = study(converted(package(image(ImageLaterality="R"), image(number=2, ImageLaterality="L")), generic))[
        "series"
    ][0]
    assert "laterality" not in both
    none = study(converted(package(image(ContrastBolusAgent="NONE")), generic))["series"][0]
    assert none["extension"] == [{"url": systems.CONTRAST, "valueString": "without"}]


def test_an_unknown_body_part_keeps_its_word_without_a_code(generic: Profile) -> None:
    assert study(converted(package(image(BodyPartExamined="LEFT LOBE")), generic))["series"][0]["bodySite"] == {
        "display": "LEFT LOBE"
    }


@pytest.mark.parametrize(
    ("objects", "key"),
    [
        ([image(StudyInstanceUID=None)], "dicom-no-uid"),
        ([image(SeriesInstanceUID=None)], "dicom-no-uid"),
        ([image(), image(study="2")], "two-studies"),
        ([image(), image(number=2, PatientID="P0002")], "two-patients"),
        ([image(FileSetConsistencyFlag=0)], "dicom-directory"),
        ([], "dicom-empty"),
    ],
)
def test_what_belongs_to_no_one_study_of_one_patient_is_refused_with_the_reason(
    objects: list[Dataset], key: str, generic: Profile
) -> None:
    with pytest.raises(Unreadable) as refused:
        convert(package(*objects), generic, "dicom")
    assert refused.value.issue.key == key


def test_an_examination_in_the_future_holds_the_message(generic: Profile) -> None:
    held = converted(package(image()), generic, "2026-02-01T00:00:00Z").held
    assert held is not None and held.key == "future-date"


def test_the_endpoint_is_the_archive_that_the_profile_names(generic: Profile) -> None:
    archive = Pacs(name="main", dicomweb="https://pacs.example.org/dicom-web")
    found = converted(package(image()), with_(generic, pacs=[archive]))
    (endpoint,) = [e.resource for e in found.entries if e.resource["resourceType"] == "Endpoint"]
    assert endpoint["address"] == "https://pacs.example.org/dicom-web"
    assert study(found)["endpoint"] == [{"reference": f"Endpoint/{endpoint['id']}"}]
    assert "endpoint" not in study(converted(package(image()), generic))


def test_what_is_said_of_the_patient_and_not_read_is_listed(generic: Profile) -> None:
    found = converted(package(image(PatientComments="青霉素过敏", PatientWeight="62")), generic)
    assert {(u.where, u.value) for u in found.unread} == {
        ("(0010,1030) PatientWeight", "62"),
        ("(0010,4000) PatientComments", "青霉素过敏"),
    }


_REJECTED = (
    # PS3.16 CID 7011; IHE RAD TF-1 section 33 (IOCM): who reads the note no longer uses the images.
    ("113001", "Rejected for Quality Reasons", "cancelled"),
    ("113037", "Rejected for Patient Safety Reasons", "entered-in-error"),
    ("113038", "Incorrect Modality Worklist Entry", "entered-in-error"),
    ("113039", "Data Retention Policy Expired", "cancelled"),
)


@pytest.mark.parametrize(("value", "meaning", "status"), _REJECTED, ids=[r[1] for r in _REJECTED])
def test_a_rejection_note_takes_its_images_out_of_the_study(
    value: str, meaning: str, status: str, generic: Profile
) -> None:
    images = [image(number=n, NumberOfStudyRelatedInstances="2") for n in (1, 2)]
    before = converted(package(*images), generic, "2026-03-03T00:00:00Z")
    some = converted(package(*images, key_objects(code(value, "DCM", meaning), [1])), generic)
    assert "images-rejected" in keys(some)
    assert "images-missing" not in keys(some)
    left = study(some)
    assert left["status"] == "available"
    assert [i["uid"] for s in left["series"] for i in s["instance"]] == [f"{ROOT}.1.1.2", f"{ROOT}.1.9.1"]
    gone = converted(package(*images, key_objects(code(value, "DCM", meaning), [1, 2])), generic)
    assert study(gone)["status"] == status
    assert "modality" not in study(gone)
    # The note is the newer statement, although fewer images are left, whatever is received last.
    stated = [next(e for e in c.entries if e.resource["resourceType"] == "ImagingStudy") for c in (before, gone)]
    assert max(stated, key=lambda e: e.recency).resource["status"] == status


def test_a_choice_of_key_images_and_a_local_code_reject_nothing(generic: Profile) -> None:
    for title in (code("113000", "DCM", "Of Interest"), code("113001", "99LOCAL", "本院代码")):
        found = converted(package(image(), key_objects(title, [1])), generic)
        assert "images-rejected" not in keys(found)
        assert study(found)["numberOfInstances"] == 2
        # ImagingStudy.modality is of acquisitions (CID 29); the series of the selection says what it is.
        assert [m["code"] for m in study(found)["modality"]] == ["CT"]
        assert [s["modality"]["code"] for s in study(found)["series"]] == ["CT", "KO"]


def test_what_all_frames_of_an_enhanced_object_share_is_said_of_its_series(generic: Profile) -> None:
    anatomy, usage, groups = Dataset(), Dataset(), Dataset()
    anatomy.FrameLaterality, anatomy.AnatomicRegionSequence = "L", [code("72696002", "SCT", "Knee")]
    groups.FrameAnatomySequence, groups.ContrastBolusUsageSequence = [anatomy], [usage]
    for given, told in (("NO", "without"), ("YES", "Gadobutrol")):
        usage.ContrastBolusAgentAdministered = given
        agent = code("418351005", "SCT", "Gadobutrol")
        found = image(
            BodyPartExamined=None, ContrastBolusAgentSequence=[agent], SharedFunctionalGroupsSequence=[groups]
        )
        (series,) = study(converted(package(found), generic))["series"]
        assert (series["laterality"]["display"], series["bodySite"]["code"]) == ("Left", "72696002")
        assert [e["valueString"] for e in series["extension"]] == [told]


def test_headers_that_contradict_each_other_say_nothing(generic: Profile) -> None:
    agent = code("418351005", "SCT", "Gadobutrol")
    (series,) = study(
        converted(
            package(
                image(number=1, Laterality="L", ImageLaterality="R"),
                image(number=2, ContrastBolusAgent="NO", ContrastBolusAgentSequence=[agent]),
                image(number=3, ContrastBolusAgent="NO"),
            ),
            generic,
        )
    )["series"]
    assert "laterality" not in series
    assert "extension" not in series


@pytest.mark.parametrize("syntax", SYNTAXES[:2], ids=lambda s: str(s.name))
@pytest.mark.parametrize("start", [128, 132], ids=["no preamble", "no prefix"])
def test_a_file_without_preamble_or_prefix_is_read(syntax: Any, start: int, generic: Profile) -> None:
    assert study(converted(part10(image(), syntax)[start:], generic))["description"] == "胸部CT平扫"


@pytest.mark.parametrize("syntax", SYNTAXES[:2], ids=lambda s: str(s.name))
def test_a_data_set_alone_is_read(syntax: Any, generic: Profile) -> None:
    whole = part10(image(), syntax)
    bare = whole[whole.index(b"\x08\x00\x05\x00") :]
    assert study(converted(bare, generic))["series"][0]["instance"][0]["uid"] == f"{ROOT}.1.1.1"


def test_a_file_that_ends_inside_its_pixels_is_refused(generic: Profile) -> None:
    plain = part10(image())
    compressed = image()
    compressed.PixelData = encapsulate([bytes(100), bytes(60)])
    compressed["PixelData"].VR, compressed["PixelData"].is_undefined_length = "OB", True
    for whole in (plain, part10(compressed, JPEGBaseline8Bit)):
        assert study(converted(whole, generic))
        for cut in (1, 9, 100):
            with pytest.raises(Unreadable) as refused:
                convert(whole[:-cut], generic, "dicom", "2026-03-02T00:00:00Z")
            assert refused.value.issue.key == "dicom-truncated"
