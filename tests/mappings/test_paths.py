"""What a profile may say about a sender's own ways (mappings.paths, times.hl7, order_numbers): by data alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.convert import convert, peek
from mappings import times
from mappings.paths import parse
from mappings.profile import Profile, load_profiles


def _profile(folder: Path, more: str) -> Profile:
    (folder / "f.yaml").write_text("id: f\norganization: {name: 测试}\n" + more, encoding="utf-8")
    return load_profiles(folder)["f"]


def _result(patient: str, at: str, number: str = "1") -> bytes:
    return (
        f"MSH|^~\\&|AN|F|TJ|TJ|{at}||ORU^R01|M{patient}{at}|P|2.5.1\rPID|1||{patient}^^^F^PI||甲\r"
        f"OBR|1||{number}|K^钾^L|||{at}|||||||||||||||{at}|||F\rOBX|1|NM|K^钾^L||4.1|mmol/L|||||F\r"
    ).encode()


def _reports(raw: bytes, profile: Profile) -> list[tuple[str, str]]:
    entries = convert(raw, profile).entries
    return [(e.resource["id"], e.business) for e in entries if e.resource["resourceType"] == "DiagnosticReport"]


def test_a_number_used_again_another_day_takes_no_result_from_another_patient_by_default(tmp_path: Path) -> None:
    profile = _profile(tmp_path, "")
    monday, tuesday, wrong = (
        _reports(_result(p, at), profile)
        for p, at in (("P1", "20240603090000"), ("P2", "20240604090000"), ("P3", "20240603090000"))
    )
    assert monday[0][1] != tuesday[0][1]
    # The same day it was sent for the wrong patient: one key, so that the store withdraws the older one.
    assert monday[0][1] == wrong[0][1]


def test_with_daily_numbers_one_patient_has_a_report_a_day(tmp_path: Path) -> None:
    days = [_result("P1", at) for at in ("20240603090000", "20240604090000")]
    lasting = [_reports(raw, _profile(tmp_path, ""))[0][0] for raw in days]
    assert lasting[0] == lasting[1]
    daily = [_reports(raw, _profile(tmp_path, "order_numbers: daily\n"))[0][0] for raw in days]
    assert daily[0] != daily[1]
    for raw in days:
        kinds = {
            e.resource["resourceType"]: e.resource["id"]
            for e in convert(raw, _profile(tmp_path, "order_numbers: daily\n")).entries
        }
        assert kinds["ServiceRequest"]


def test_peek_and_conversion_see_the_patient_in_the_same_place(tmp_path: Path) -> None:
    profile = _profile(tmp_path, "paths: {PID-3: ZPI-2}\ntriggers: {ZLB^Z01: ORU^R01}\n")
    raw = b"MSH|^~\\&|L|F|||20240601100000||ZLB^Z01|M1|P|2.5\rPID|1||||x\rZPI|1|P77^^^HIS^PI\rOBR|1||F1|K\rOBX|1|NM|K||1||||||F\r"
    envelope = peek(raw, profile)
    assert envelope.trigger == "ORU^R01"
    assert envelope.patient_keys == ("HIS|P77",)
    conversion = convert(raw, profile)
    patient = next(e.resource for e in conversion.entries if e.resource["resourceType"] == "Patient")
    assert patient["identifier"][0]["value"] == "P77"
    assert "ZPI[1]-2" not in {u.where for u in conversion.unread}
    assert "ZPI[1]-1" in {u.where for u in conversion.unread}


def test_a_place_the_sender_leaves_empty_changes_nothing(tmp_path: Path) -> None:
    profile = _profile(tmp_path, "paths: {PID-3: ZPI-2, PID-8: PID-40}\n")
    raw = b"MSH|^~\\&|L|F|||20240601100000||ADT^A08|M1|P|2.5\rPID|1||P1^^^HIS^PI||x|||M\rZPI|1\r"
    patient = next(e.resource for e in convert(raw, profile).entries if e.resource["resourceType"] == "Patient")
    assert (patient["identifier"][0]["value"], patient["gender"]) == ("P1", "male")


@pytest.mark.parametrize(
    ("written", "form", "wanted"),
    [
        ("01/06/2024 08:30:05", "dd/MM/yyyy HH:mm:ss", "20240601083005"),
        ("1/6/2024", "dd/MM/yyyy", "20240601"),
        ("2024年6月1日 8时", "yyyy年MM月dd日 HH时", "2024060108"),
        ("20240601", "dd/MM/yyyy", "20240601"),
    ],
)
def test_a_date_format_of_the_profile_is_read_as_hl7(written: str, form: str, wanted: str) -> None:
    assert times.hl7(written, (form,)) == wanted


@pytest.mark.parametrize("path", ["OBX", "OBX-0", "obx-3", "OBX-3.0", "OBX-3.1.1", "PID-3-1"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a place"):
        parse(path)


def test_orders_and_results_sent_for_training_say_so_unless_the_feed_always_writes_it(tmp_path: Path) -> None:
    raw = _result("P1", "20240603090000").replace(b"|P|2.5.1", b"|T|2.5.1")
    # HL7 v2.5.1 table 0103: T training.
    tag = [{"system": "http://terminology.hl7.org/CodeSystem/v2-0103", "code": "T"}]
    said = convert(raw, _profile(tmp_path, ""))
    tagged = {e.resource["resourceType"] for e in said.entries if e.resource["meta"].get("tag") == tag}
    assert tagged == {"ServiceRequest", "DiagnosticReport", "Observation", "Provenance"}
    assert [i.where for i in said.issues if i.key == "not-production"] == ["MSH[1]-11"]
    always = convert(raw, _profile(tmp_path, "processing_id: ignored\n"))
    assert {e.resource["resourceType"] for e in always.entries if "tag" in e.resource["meta"]} == {"Provenance"}
    assert not [i for i in always.issues if i.key == "not-production"]
