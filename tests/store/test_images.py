"""Images, order and report of one examination are joined in the store, whatever comes first, and once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from adapters.convert import convert, recognise
from adapters.dicom.package import header_bytes, pack
from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.recognition import images
from fhir_server.store import repository
from fhir_server.store.body import Codec
from mappings.facility import Identifiers
from mappings.model import Entry
from mappings.profile import Profile, load_profiles
from tests.dicom_objects import image, part10
from tests.store import county

Conn = psycopg.Connection[Any]
ACCESSION = "CT20260301001"
ORDER = (
    "MSH|^~\\&|HIS|A|||20260301080000||ORM^O01|O1|P|2.4\rPID|1||P0001^^^HIS^MR||王小东||19800101|M\r"
    f"ORC|NW|RQ77^HIS|{ACCESSION}\rOBR|1|RQ77^HIS|{ACCESSION}|CTX^胸部CT平扫||||||||||||||||||||RAD\r"
)
REPORT = (
    "MSH|^~\\&|RIS|A|||20260301110000||ORU^R01|R1|P|2.4\rPID|1||P0001^^^HIS^MR||王小东||19800101|M\r"
    f"OBR|1|RQ77^HIS|{ACCESSION}|CTX^胸部CT平扫|||20260301093000|||||||||||||||20260301110000||RAD|F\r"
    "OBX|1|TX|DESC^检查所见||两肺纹理清晰||||||F\rOBX|2|TX|IMP^诊断意见||胸部未见异常||||||F\r"
)
CORRECTED = (
    REPORT.replace("|R1|", "|R2|")
    .replace("20260301110000", "20260301130000")
    .replace("RAD|F", "RAD|C")
    .replace("未见异常", "右肺结节")
)


@pytest.fixture(scope="module")
def profile() -> Profile:
    generic = load_profiles()["generic"]
    return replace(
        generic,
        facility=generic.facility.model_copy(update={"identifiers": Identifiers(dicom_issuer="HIS")}),
        digest="i",
    )


def entries(raw: bytes, profile: Profile) -> list[Entry]:
    found = convert(raw, profile, recognise(raw), "2026-03-02T00:00:00Z")
    assert found.held is None
    return found.entries


def study(*numbers: int, **elements: Any) -> bytes:
    return pack(header_bytes(part10(image(number=n, **elements))) for n in numbers)


def store(conn: Conn, codec: Codec, profile: Profile, *messages: bytes) -> None:
    for n, raw in enumerate(messages, 1):
        repository.apply(conn, codec, [(county.origin(n, minute=n), entries(raw, profile))])
        conn.commit()


def current(conn: Conn, codec: Codec, kind: str) -> list[tuple[int, dict[str, Any]]]:
    rows = conn.execute(
        'SELECT version, dict, body, id, patient, "order" FROM resource WHERE rtype = %s', (RESOURCE_TYPES[kind],)
    ).fetchall()
    return [(r[0], loads(codec.decompress(r[1], bytes(r[2]), r[3:]))) for r in rows]


def one(conn: Conn, codec: Codec, kind: str) -> dict[str, Any]:
    ((_, found),) = current(conn, codec, kind)
    return found


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_order_images_and_report_are_joined_in_any_order_of_arrival(
    order: tuple[int, ...], conn: Conn, codec: Codec, profile: Profile
) -> None:
    messages = [ORDER.encode(), study(1, 2), REPORT.encode()]
    store(conn, codec, profile, *(messages[n] for n in order))
    report, images_, request = (one(conn, codec, k) for k in ("DiagnosticReport", "ImagingStudy", "ServiceRequest"))
    assert report["imagingStudy"] == [{"reference": f"ImagingStudy/{images_['id']}"}]
    assert [r["reference"] for r in images_["basedOn"]] == [f"ServiceRequest/{request['id']}"]
    assert images_["basedOn"][0]["identifier"]["value"] == ACCESSION
    assert images.facts([images_])["images_complete"] is True


def test_a_correction_and_a_growing_study_keep_the_join(conn: Conn, codec: Codec, profile: Profile) -> None:
    store(conn, codec, profile, study(1), REPORT.encode(), study(1, 2, 3), CORRECTED.encode(), study(1, 2))
    report, images_ = one(conn, codec, "DiagnosticReport"), one(conn, codec, "ImagingStudy")
    assert report["status"] == "corrected" and report["conclusion"] == "胸部右肺结节"
    assert report["imagingStudy"] == [{"reference": f"ImagingStudy/{images_['id']}"}]
    assert images_["numberOfInstances"] == 3


def test_the_same_messages_again_write_nothing(conn: Conn, codec: Codec, profile: Profile) -> None:
    messages = [REPORT.encode(), study(1, 2), ORDER.encode()]
    store(conn, codec, profile, *messages)
    before = {k: current(conn, codec, k) for k in ("DiagnosticReport", "ImagingStudy", "ServiceRequest")}
    store(conn, codec, profile, *messages, *messages)
    assert {k: current(conn, codec, k) for k in before} == before


def test_a_report_of_another_examination_is_not_joined(conn: Conn, codec: Codec, profile: Profile) -> None:
    other = REPORT.replace(ACCESSION, "MR1").replace("RQ77", "RQ78").replace("|R1|", "|R3|")
    store(conn, codec, profile, other.encode(), study(1))
    assert "imagingStudy" not in one(conn, codec, "DiagnosticReport")
    assert [r.get("reference") for r in one(conn, codec, "ImagingStudy")["basedOn"]] == [None]


def test_all_in_one_batch_are_joined_and_a_report_names_its_raw_message(
    conn: Conn, codec: Codec, profile: Profile
) -> None:
    batch = [
        (county.origin(n), entries(raw, profile))
        for n, raw in enumerate((REPORT.encode(), study(1), ORDER.encode()), 7)
    ]
    repository.apply(conn, codec, batch)
    conn.commit()
    assert one(conn, codec, "DiagnosticReport")["imagingStudy"]
    store(conn, codec, profile, study(1, 2))
    kept = conn.execute("SELECT inbox FROM resource WHERE rtype = %s", (RESOURCE_TYPES["DiagnosticReport"],)).fetchone()
    assert kept == (7,)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_study_told_again_under_another_number_is_no_longer_the_first_patients(
    order: tuple[int, ...], conn: Conn, codec: Codec, profile: Profile
) -> None:
    # An emergency patient's temporary number, corrected in the archive an hour later; both orders of arrival end alike.
    said = [
        (study(1, 2, PatientID="T0001"), "2026-03-02T00:00:00Z"),
        (study(1, 2, PatientID="P0001"), "2026-03-02T01:00:00Z"),
    ]
    for n in order:
        raw, received = said[n]
        found = convert(raw, profile, recognise(raw), received)
        repository.apply(conn, codec, [(county.origin(n + 1, minute=n), found.entries)])
        conn.commit()
    numbers = {p["id"]: p["identifier"][0]["value"] for _, p in current(conn, codec, "Patient")}
    states = {
        numbers[s["subject"]["reference"].removeprefix("Patient/")]: s["status"]
        for _, s in current(conn, codec, "ImagingStudy")
    }
    assert states == {"T0001": "entered-in-error", "P0001": "available"}


def test_images_that_are_missing_by_the_headers_are_known_to_recognition(
    conn: Conn, codec: Codec, profile: Profile
) -> None:
    store(conn, codec, profile, REPORT.encode(), study(1, 2, NumberOfStudyRelatedInstances="3"))
    assert images.facts([one(conn, codec, "ImagingStudy")])["images_complete"] is False
    store(conn, codec, profile, study(1, 2, 3, NumberOfStudyRelatedInstances="3"))
    assert images.facts([one(conn, codec, "ImagingStudy")])["images_complete"] is True


def test_one_image_alone_leaves_it_unknown_whether_the_study_is_complete(
    conn: Conn, codec: Codec, profile: Profile
) -> None:
    store(conn, codec, profile, part10(image()))
    assert images.facts([one(conn, codec, "ImagingStudy")])["images_complete"] is None
    store(conn, codec, profile, study(1, 2))
    assert images.facts([one(conn, codec, "ImagingStudy")])["images_complete"] is True
