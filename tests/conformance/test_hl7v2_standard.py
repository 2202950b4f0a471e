"""A message against the standard. Each expectation is a row of HL7 v2.5.1 (chapters 2, 2.A, 3, 7) unless another version is named."""

from __future__ import annotations

from adapters.hl7v2 import reader
from conformance import hl7v2_standard
from conformance.hl7v2_standard import Deviation

MSH = "MSH|^~\\&|LIS|A|TJ|TJ|20260301080000+0800||ORU^R01^ORU_R01|1|P|2.5.1"
PID = "PID|1||100^^^A^PI||王^建国||19620517|M"
OBR = "OBR|1||R1|BIO^生化|||20260301080000+0800|||||||||||||||20260301080000+0800|||F"
OBX = "OBX|1|NM|T1^葡萄糖||5.6|mmol/L|3.9-6.1|N|||F"


def found(
    *lines: str, version: str = "2.5.1", message: tuple[str, str, str] = ("ORU", "R01", "ORU_R01")
) -> list[Deviation]:
    source = reader.read(("\r".join(lines) + "\r").encode())
    return hl7v2_standard.check(source.records, version, *message)[0]


def said(*lines: str, **given: str) -> set[tuple[str, str]]:
    return {(d.kind, d.place) for d in found(*lines, **given)}


def test_a_message_of_the_standard_has_no_deviation() -> None:
    assert found(MSH, PID, OBR, OBX) == []


def test_a_missing_segment_is_named_with_its_place() -> None:
    (one,) = found(MSH, PID, "ORC|RE", OBX)[:1]
    assert (one.kind, one.place, one.where) == ("missing-segment", "OBR", "OBX[1]")


def test_a_segment_that_fits_nowhere_is_told_and_reading_goes_on() -> None:
    assert said(MSH, PID, OBR, OBX, "PV1|1|I") == {("unexpected-segment", "PV1")}


def test_a_z_segment_is_no_deviation() -> None:
    assert found(MSH, PID, OBR, OBX, "ZZZ|anything") == []


def test_a_segment_that_may_stand_once_and_stands_twice_is_one_too_many() -> None:
    assert said(MSH, PID, "PD1|||A", "PD1|||B", OBR, OBX) == {("too-many-segments", "PD1")}


def test_several_orders_with_their_own_results_and_specimens_are_right() -> None:
    assert found(MSH, PID, "ORC|RE", OBR, OBX, "SPM|1|||SER^血清", "ORC|RE", OBR, OBX) == []


def test_a_missing_required_field_is_told() -> None:
    assert said(MSH, PID, OBR, OBX.replace("T1^葡萄糖", "")) == {("missing-field", "OBX-3")}


def test_data_types_are_checked_by_the_value_type_the_message_states() -> None:
    assert said(MSH, PID, OBR, OBX.replace("|5.6|", "|abc|")) == {("data-type", "OBX-5")}
    assert said(MSH, PID, OBR, OBX.replace("|NM|", "|ST|").replace("|5.6|", "|abc|")) == set()
    assert said(MSH, PID.replace("19620517", "1962年"), OBR, OBX) == {("data-type", "PID-7.1")}


def test_a_code_outside_its_table_is_quoted_and_a_user_table_is_only_suggested() -> None:
    (one,) = found(MSH, PID, OBR, OBX.replace("|||F", "|||Q"))
    assert (one.kind, one.place, one.required) == ("table", "OBX-11", True)
    assert "'Q'" in one.detail
    (two,) = found(MSH, PID.replace("|M", "|X"), OBR, OBX)
    assert (two.place, two.required) == ("PID-8", False)


def test_repetitions_components_and_fields_beyond_the_definition_are_told() -> None:
    assert ("too-many-repetitions", "PID-8") in said(MSH, PID.replace("|M", "|M~F"), OBR, OBX)
    assert ("unknown-component", "OBX-11.2") in said(MSH, PID, OBR, OBX + "^x")
    assert ("unknown-field", "OBX-30") in said(MSH, PID, OBR, OBX + "|" * 19 + "x")


def test_a_value_longer_than_its_data_type_is_told() -> None:
    assert ("length", "OBX-1") in said(MSH, PID, OBR, OBX.replace("OBX|1|", "OBX|12345|"))


def test_an_unknown_version_is_told_and_the_newest_taken() -> None:
    assert ("version", "MSH-12") in said(MSH, PID, OBR, OBX, version="9.9")


def test_an_event_that_shares_a_structure_finds_it_without_msh_9_3() -> None:
    lines = (MSH.replace("ORU^R01^ORU_R01", "ADT^A08"), "EVN|A08|20260301080000+0800", PID, "PV1|1|I")
    assert said(*lines, message=("ADT", "A08", "")) == set()
    assert said(*lines, message=("ADT", "Q77", "")) == {("structure", "MSH-9")}


def test_old_versions_are_checked_as_well() -> None:
    for version in ("2.2", "2.3", "2.3.1", "2.4", "2.6", "2.7", "2.8.2"):
        assert ("data-type", "OBX-5") in said(MSH, PID, OBR, OBX.replace("|5.6|", "|abc|"), version=version)


def test_times_of_day_without_an_offset_are_counted() -> None:
    source = reader.read("\r".join((MSH, PID, OBR.replace("080000+0800|||", "080000|||", 1), OBX, "")).encode())
    times = hl7v2_standard.check(source.records, "2.5.1", "ORU", "R01", "ORU_R01")[1]
    assert (times.stated, times.without_zone) == (3, ("OBR-7",))


def test_no_value_of_a_patient_stands_in_a_deviation() -> None:
    deviations = found(MSH, PID.replace("19620517", "王建国的生日"), OBR, OBX.replace("|5.6|", "|李四阳性|"))
    assert not any("王" in d.detail or "李四" in d.detail for d in deviations)


def test_a_very_long_message_is_checked() -> None:
    assert ("unexpected-segment", "PV1") in said(MSH, PID, OBR, *[OBX] * 5000, *["PV1|1|I"] * 30)


def test_a_name_in_a_coded_field_is_not_quoted() -> None:
    (one,) = found(MSH, PID.replace("|M", "|张三丰"), OBR, OBX)
    assert (one.kind, one.place) == ("table", "PID-8")
    assert "张" not in one.detail
    (one,) = found(MSH, PID.replace("|M", "|男"), OBR, OBX)
    assert "男" in one.detail
