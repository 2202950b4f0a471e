"""adapters.hl7v2.peek: what is known of a message before it is acknowledged."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.contract import Envelope, Unreadable
from adapters.convert import recognise
from adapters.hl7v2.peek import peek
from mappings.facility import Facility, Identifiers, Organization
from mappings.profile import load_profiles

FACILITY = Facility(id="h1", organization=Organization(name="县医院"))


def envelope(*lines: str, header: str = "", nine: str = "ORU^R01^ORU_R01", facility: Facility = FACILITY) -> Envelope:
    header = header or f"MSH|^~\\&|LIS|H1|HIS|C1|20260102101112||{nine}|M1|P|2.5.1"
    return peek("\r".join([header, *lines]).encode(), facility)


def test_gives_the_facts_of_the_header() -> None:
    found = envelope(
        "PID|1||P1^^^H1^PI",
        header="MSH|^~\\&|LIS^x|H1|||20260102101112+0800||ORU^R01|M1|P|2.5.1^CHN|||AL|NE||UNICODE UTF-8",
    )
    assert found.format == "hl7v2"
    assert (found.trigger, found.control_id, found.sender, found.version) == ("ORU^R01", "M1", ("LIS", "H1"), "2.5.1")
    assert (found.accept_ack, found.application_ack, found.charset) == ("AL", "NE", "utf-8")
    assert found.sent_at == datetime(2026, 1, 2, 2, 11, 12, tzinfo=UTC)
    assert found.patient_keys == ("H1|P1",)
    assert not found.quality_control


@pytest.mark.parametrize(
    ("nine", "event", "trigger"),
    [
        ("ORU^R01^ORU_R01", "", "ORU^R01"),
        ("ORU^R01", "", "ORU^R01"),
        ("oru^r01", "", "ORU^R01"),
        ("ORU!R01", "", "ORU^R01"),
        ("ORU_R01", "", "ORU^R01"),
        ("^^ORU_R01", "", "ORU^R01"),
        ("ADT^^ADT_A01", "A08", "ADT^A08"),
        ("ADT", "A04", "ADT^A04"),
        ("ADT", "", "ADT"),
        ("ORU", "", "ORU^R01"),
        ("ORM", "", "ORM^O01"),
        ("ACK", "", "ACK"),
        ("", "A01", ""),
    ],
)
def test_the_trigger_is_read_from_what_senders_write_in_msh9(nine: str, event: str, trigger: str) -> None:
    lines = [f"EVN|{event}|20260102"] if event else []
    assert envelope(*lines, nine=nine).trigger == trigger


def test_msh7_without_an_offset_is_in_the_facilitys_zone() -> None:
    sent = envelope().sent_at
    assert sent is not None
    assert sent.utcoffset() == timedelta(hours=8)


@pytest.mark.parametrize("written", ["", "yesterday", "2026130", "20261301"])
def test_an_unreadable_msh7_is_none(written: str) -> None:
    assert envelope(header=f"MSH|^~\\&|L|H|||{written}||ORU^R01|M1").sent_at is None


def test_names_every_patient_first_pid_then_mrg_each_once() -> None:
    found = envelope("PID|1||A^^^H1^PI", "MRG|B^^^H1^PI", "PID|2||C^^^H1^PI~9^^^X^NI", "MRG|A^^^H1^PI", nine="ADT^A40")
    assert found.patient_keys == ("H1|A", "H1|C", "H1|B")


def test_the_merge_key_uses_the_authority_of_the_profile() -> None:
    facility = Facility(
        id="h1", organization=Organization(name="x"), identifiers=Identifiers(authorities={"HIS": "urn:oid:1.2.3"})
    )
    found = envelope("PID|1||A^^^HIS^PI", "MRG|B^^^HIS", nine="ADT^A40", facility=facility)
    assert found.patient_keys == ("urn:oid:1.2.3|A", "urn:oid:1.2.3|B")


def test_a_message_without_a_patient_has_no_key() -> None:
    assert envelope("PV1|1|O", nine="ADT^A01").patient_keys == ()


def test_pid_is_found_in_lower_case_and_in_gb18030() -> None:
    raw = "MSH|^~\\&|检验\\F\\|县医院|||20260102||ORU^R01|M1|P|2.4\rpid|1||P1^^^乡镇^PI||张三".encode("gb18030")
    found = peek(raw, FACILITY)
    assert (found.patient_keys, found.charset, found.sender) == (("乡镇|P1",), "gb18030", ("检验|", "县医院"))
    assert [i.key for i in found.issues] == ["charset-detected"]


def test_a_pid_inside_a_text_is_not_a_patient() -> None:
    assert envelope("PID|1||A^^^H1^PI", "NTE|1||see PID|9||B").patient_keys == ("H1|A",)


@pytest.mark.parametrize(
    ("sixteen", "lines", "expected"),
    [
        ("", ["PID|1||P1", "SPM|1|S"], False),
        ("2", ["PID|1||P1"], True),
        ("1", ["PID|1||P1"], True),
        ("0", ["PID|1||P1"], False),
        ("AL", ["PID|1||P1"], False),
        ("", ["OBR|1", "OBX|1"], True),
        ("", ["PID|1||P1", "SPM|1||||||||||Q"], True),
        ("", ["PID|1||P1", "SPM|1||||||||||P"], False),
        ("", ["PID|1||P1", "SPM|1||||||||||Q", "SPM|2||||||||||P"], False),
    ],
)
def test_quality_control_runs_are_told(sixteen: str, lines: list[str], expected: bool) -> None:
    header = f"MSH|^~\\&|LIS|H1|||20260102||ORU^R01|M1|P|2.3.1||||{sixteen}"
    assert envelope(*lines, header=header).quality_control is expected


def test_a_patient_whose_segment_is_broken_over_lines_is_no_quality_control() -> None:
    raw = b"MSH|^~\\&|L|H|||20240101||ORU^R01|M1|P|2.5\rPID\r|1||7||x\rOBR|1||F1|K\rOBX|1|NM|K||1||||||F\r"
    assert not peek(raw, FACILITY).quality_control


def test_only_result_messages_can_be_quality_control() -> None:
    assert not envelope("PV1|1", nine="ADT^A01").quality_control
    assert not envelope("ORC|NW", nine="ORM^O01").quality_control


def test_control_patients_of_the_facility_are_quality_control() -> None:
    facility = Facility(id="h1", organization=Organization(name="x"), quality_control_patients=["^QC"])
    assert envelope("PID|1||QC01", facility=facility).quality_control
    assert not envelope("PID|1||01QC", facility=facility).quality_control


def test_refuses_what_the_reader_refuses() -> None:
    for raw in (b"", b"PID|1", b"MSH|^~"):
        with pytest.raises(Unreadable):
            peek(raw, FACILITY)


@given(st.binary(max_size=200), st.booleans())
def test_never_raises_anything_else(noise: bytes, with_header: bool) -> None:
    raw = (b"MSH|^~\\&|L|H|||20260102||ORU^R01|M1|P\rPID|1||" if with_header else b"") + noise
    try:
        peek(raw, FACILITY)
    except Unreadable as refused:
        assert refused.issue.key


@pytest.mark.parametrize("mark", ["[SOM]", "<VT>", "\r\n[SOM] ", "\ufeff[0B]"])
@pytest.mark.parametrize("header", ["MSH|^~\\&|LIS", "FHS|^~\\&|LIS"])
def test_a_mark_of_stripped_framing_before_the_header_is_neither_json_nor_xml(mark: str, header: str) -> None:
    assert recognise((mark + header).encode(), load_profiles()["generic"]) == "hl7v2"


@pytest.mark.parametrize("text", ['["MSH|"]', "[1,2]MSH|", "<MSH>|", "<abc>MSHX|"])
def test_json_and_xml_that_speak_of_headers_stay_what_they_are(text: str) -> None:
    assert recognise(text.encode(), load_profiles()["generic"]) != "hl7v2"
