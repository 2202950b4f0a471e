"""adapters.hl7v2.ack: acknowledgements written and read (HL7 v2.5.1 sections 2.9, 2.15.5, 2.15.8)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.contract import Unreadable
from adapters.hl7v2 import ack
from adapters.hl7v2.ack import Code, Facts, Outcome, acknowledge, facts, on_completion, on_receipt, parse
from adapters.hl7v2.reader import read
from conformance.issue import Issue

NOW = datetime(2026, 1, 2, 10, 11, 12, tzinfo=timezone(timedelta(hours=8)))
BAD_DATE = Issue("bad-date", "error", "OBX[3]-14", "The date does not exist; correct OBX-14.", "20260231")


def sent(version: str = "2.5.1", *, modes: str = "|", charset: str = "", nine: str = "ORU^R01^ORU_R01") -> bytes:
    return (
        f"MSH|^~\\&|LIS^l|H1&x|HIS|C1|20260102||{nine}|M\\S\\1|T|{version}|||{modes}||{charset}\rPID|1||P1\r".encode()
    )


def lines(raw: bytes, codec: str = "utf-8") -> list[str]:
    text = raw.decode(codec)
    assert text.endswith("\r")
    return text[:-1].split("\r")


def answer(raw: bytes, code: Code = "AA", issues: Sequence[Issue] | Issue | None = None) -> list[str]:
    return lines(acknowledge(facts(raw), code, issues, "A1", NOW))


def test_an_acceptance_swaps_sender_and_receiver_and_names_the_message() -> None:
    assert answer(sent()) == [
        "MSH|^~\\&|HIS|C1|LIS^l|H1&x|20260102101112+0800||ACK^R01^ACK|A1|T|2.5.1",
        "MSA|AA|M\\S\\1",
    ]


def test_an_error_names_segment_field_and_component_since_2_5() -> None:
    issue = Issue("unmapped-code", "error", "OBX[3]-3.4", "Code | is ^ not mapped.", "secret")
    assert answer(sent(), "AE", issue)[1:] == [
        "MSA|AE|M\\S\\1|Code \\F\\ is \\S\\ not mapped.",
        "ERR||OBX^3^3^1^4|103^Table value not found^HL70357|E|unmapped-code^^L|||Code \\F\\ is \\S\\ not mapped.",
    ]


@pytest.mark.parametrize("version", ["2.2", "2.3", "2.3.1", "2.4"])
def test_an_error_stands_in_err1_before_2_5(version: str) -> None:
    assert answer(sent(version), "AE", BAD_DATE)[2] == "ERR|OBX^3^14^102&Data type error&HL70357"


@pytest.mark.parametrize(
    ("version", "nine", "expected"),
    [
        ("2.1", "ORU", "ACK"),
        ("2.2", "ORU^R01", "ACK^R01"),
        ("2.3", "ORU^R01", "ACK^R01"),
        ("2.3.1", "ORU^R01", "ACK^R01^ACK"),
        ("2.8.2", "ADT^A01^ADT_A01", "ACK^A01^ACK"),
        ("", "ORU^R01", "ACK^R01^ACK"),
        ("2.5", "XYZ", "ACK"),
    ],
)
def test_msh9_has_the_form_of_the_senders_version(version: str, nine: str, expected: str) -> None:
    assert answer(sent(version, nine=nine))[0].split("|")[8] == expected


def test_the_clock_has_no_offset_before_2_3() -> None:
    assert answer(sent("2.2"))[0].split("|")[6] == "20260102101112"


def test_the_answer_uses_the_senders_delimiters() -> None:
    raw = b"MSH#!@%*#S!s#F#R#G#20260102##ORU!R01#M1#P#2.5\r"
    found = answer(raw, "AE", Issue("bad-value", "error", "PID[1]-5", "a#b!c"))
    assert found == [
        "MSH#!@%*#R#G#S!s#F#20260102101112+0800##ACK!R01!ACK#A1#P#2.5",
        "MSA#AE#M1#a%F%b%S%c",
        "ERR##PID!1!5#102!Data type error!HL70357#E#bad-value!!L###a%F%b%S%c",
    ]


def test_with_short_delimiters_the_old_err_stays_readable() -> None:
    found = answer(b"MSH|^~|S|F|R|G|20260102||ORU^R01|M1|P|2.3\r", "AE", BAD_DATE)
    assert found[2] == "ERR|OBX^3^14^102 Data type error HL70357"


@pytest.mark.parametrize(
    ("declared", "codec", "eighteen"),
    [
        ("", "gb18030", ""),
        ("GB 18030-2000", "gb18030", "GB 18030-2000"),
        ("GBK", "gb18030", "GBK"),
        ("UNICODE UTF-8", "utf-8", "UNICODE UTF-8"),
        ("UNICODE UTF-8", "gb18030", "GB 18030-2000"),
        ("ASCII~GB 18030-2000", "gb18030", "GB 18030-2000"),
        ("8859/1", "utf-8", "UNICODE UTF-8"),
    ],
)
def test_the_answer_is_in_the_character_set_received(declared: str, codec: str, eighteen: str) -> None:
    raw = sent(charset=declared).decode().replace("H1&x", "县医院检验科").encode(codec)
    found = lines(acknowledge(facts(raw), "AA", None, "A1", NOW), codec)[0].split("|")
    assert found[5] == "县医院检验科"
    assert (found[17] if len(found) > 17 else "") == eighteen


def test_no_patient_data_leaves_with_an_error() -> None:
    assert "20260231" not in "".join(answer(sent(), "AE", BAD_DATE))


def test_every_problem_has_its_err_and_notes_have_none() -> None:
    note = Issue("charset-detected", "information", "MSH[1]-18", "read as gb18030")
    fatal = Issue("no-header", "fatal", "", "no MSH")
    found = answer(sent(), "AR", [fatal, BAD_DATE, note])
    assert [line.split("|")[4] for line in found[2:]] == ["F", "E"]
    assert found[2].split("|")[2] == ""


def test_the_short_text_is_at_most_80_characters() -> None:
    issue = Issue("bad-value", "error", "PID[1]", "x" * 300)
    found = answer(sent(), "AE", issue)
    assert found[1] == f"MSA|AE|M\\S\\1|{'x' * 80}"
    assert found[2].endswith("x" * 300)
    assert lines(acknowledge(facts(sent()), "AA", None, "A1", NOW, "held"))[1] == "MSA|AA|M\\S\\1|held"


@pytest.mark.parametrize(
    ("where", "location"),
    [
        ("OBX[3]-5.1", "OBX^3^5^1^1"),
        ("OBX[3]-5.1.2", "OBX^3^5^1^1^2"),
        ("PID[1]-3[2].4", "PID^1^3^2^4"),
        ("PID[1]-3(2)", "PID^1^3^2"),
        ("MSH[1]", "MSH^1"),
        ("MSA", "MSA"),
        ("Observation.value", ""),
        ("", ""),
    ],
)
def test_the_location_is_taken_from_the_issue(where: str, location: str) -> None:
    assert answer(sent(), "AE", Issue("bad-value", "error", where, "x"))[2].split("|")[2] == location


# HL7 table 0357.
@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("no-header", "100"),
        ("too-short-header", "101"),
        ("bad-delimiters", "102"),
        ("charset-unknown", "102"),
        ("unmapped-code", "103"),
        ("too-large", "104"),
        ("unsupported-type", "200"),
        ("foreign-facility", "204"),
        ("something-else", "207"),
    ],
)
def test_the_error_code_is_of_table_0357(key: str, code: str) -> None:
    assert ack.condition(Issue(key, "error", "", "x"))[0] == code


# --- facts of anything ---------------------------------------------------------------------------------------------------------------


def test_a_message_that_cannot_be_read_is_still_answered_to_its_sender() -> None:
    two = sent() + sent()
    assert facts(two).control_id == "M\\S\\1"
    undecodable = sent() + b"NTE|1||\xff\xff\xff\xff\xff\r"
    assert (facts(undecodable).control_id, facts(undecodable).sender) == ("M\\S\\1", ("LIS^l", "H1&x"))
    assert facts(sent()[:70]).receiver == ("HIS", "C1")


@pytest.mark.parametrize("raw", [b"", b"noise", b"\x00\x01\x02\xff" * 100, b"MSH|^~", b"MSH|aaaa|b", b"PID|1||x"])
def test_what_is_no_message_is_answered_with_standard_delimiters(raw: bytes) -> None:
    assert facts(raw) == Facts()
    issue = Issue("no-header", "error", "MSH[1]", "There is no MSH segment.")
    found = answer(raw, "AR", issue)
    assert found[0] == "MSH|^~\\&|||||20260102101112+0800||ACK|A1|P|2.5.1"
    assert found[1] == "MSA|AR||There is no MSH segment."


def test_values_outside_table_0155_do_not_make_enhanced_mode() -> None:
    # Analysers write the kind of result into MSH-16.
    assert not facts(sent(modes="|2")).enhanced
    assert facts(sent(modes="al|")).accept_ack == "AL"
    assert answer(sent(modes="AL|NE"))[0].split("|")[14:16] == ["NE", "NE"]


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_can_be_answered(noise: bytes, cut: bool) -> None:
    raw = sent()[: len(noise)] + noise if cut else noise
    parse(acknowledge(facts(raw), "AR", BAD_DATE, "A1", NOW))


# --- which code to send: one test per combination (sections 2.9.2 and 2.9.3, table 0155) ----------------------------------------------

OUTCOMES: tuple[Outcome, ...] = ("accepted", "error", "rejected")


@pytest.mark.parametrize("sixteen", ["", "2"])
@pytest.mark.parametrize(("outcome", "code"), [("accepted", "AA"), ("error", "AE"), ("rejected", "AR")])
def test_original_mode_answers_once_on_receipt(sixteen: str, outcome: Outcome, code: Code) -> None:
    assert on_receipt("", sixteen, outcome) == code
    assert on_completion("", sixteen, outcome) is None


@pytest.mark.parametrize(
    ("fifteen", "sixteen", "codes"),
    [
        ("AL", "AL", ("CA", "CE", "CR")),
        ("AL", "NE", ("CA", "CE", "CR")),
        ("AL", "ER", ("CA", "CE", "CR")),
        ("AL", "SU", ("CA", "CE", "CR")),
        ("AL", "", ("CA", "CE", "CR")),
        ("ER", "AL", (None, "CE", "CR")),
        ("ER", "NE", (None, "CE", "CR")),
        ("ER", "ER", (None, "CE", "CR")),
        ("ER", "SU", (None, "CE", "CR")),
        ("ER", "", (None, "CE", "CR")),
        ("SU", "AL", ("CA", None, None)),
        ("SU", "NE", ("CA", None, None)),
        ("SU", "ER", ("CA", None, None)),
        ("SU", "SU", ("CA", None, None)),
        ("SU", "", ("CA", None, None)),
        ("NE", "AL", (None, "AE", "AR")),
        ("NE", "NE", (None, None, None)),
        ("NE", "ER", (None, "AE", "AR")),
        ("NE", "SU", (None, None, None)),
        ("NE", "", (None, None, None)),
        ("", "AL", (None, "AE", "AR")),
        ("", "NE", (None, None, None)),
        ("", "ER", (None, "AE", "AR")),
        ("", "SU", (None, None, None)),
    ],
)
def test_enhanced_mode_answers_receipt_by_msh15(fifteen: str, sixteen: str, codes: tuple[Code | None, ...]) -> None:
    assert tuple(on_receipt(fifteen, sixteen, o) for o in OUTCOMES) == codes


@pytest.mark.parametrize("fifteen", ["AL", "NE", "ER", "SU", ""])
@pytest.mark.parametrize(
    ("sixteen", "codes"),
    [
        ("AL", ("AA", "AE", "AR")),
        ("NE", (None, None, None)),
        ("ER", (None, "AE", "AR")),
        ("SU", ("AA", None, None)),
    ],
)
def test_enhanced_mode_answers_completion_by_msh16(fifteen: str, sixteen: str, codes: tuple[Code | None, ...]) -> None:
    assert tuple(on_completion(fifteen, sixteen, o) for o in OUTCOMES) == codes


def test_enhanced_mode_without_msh16_wants_no_application_answer() -> None:
    assert [on_completion("AL", "", o) for o in OUTCOMES] == [None, None, None]


# --- reading acknowledgements --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.3.1", "2.4", "2.5.1", "2.8"])
def test_what_is_written_can_be_read(version: str) -> None:
    found = parse(acknowledge(facts(sent(version)), "AE", BAD_DATE, "A1", NOW))
    assert (found.code, found.control_id, found.accepted) == ("AE", "M\\S\\1", False)
    assert found.text == BAD_DATE.text
    [error] = found.errors
    assert (error.location, error.code, error.severity) == ("OBX^3^14", "102", "E")
    assert error.text == (BAD_DATE.text if version >= "2.5" else "Data type error")


def test_an_acceptance_is_accepted() -> None:
    for code in ("AA", "CA"):
        assert parse(f"MSH|^~\\&|||||20260102||ACK|1|P|2.5\rMSA|{code}|M1\r".encode()).accepted


def test_an_answer_without_msa_is_no_acknowledgement() -> None:
    with pytest.raises(Unreadable) as refused:
        parse(sent())
    assert refused.value.issue.key == "no-acknowledgement"


def test_an_acknowledgement_is_a_message() -> None:
    found = read(acknowledge(facts(sent()), "AE", BAD_DATE, "A1", datetime(2026, 1, 2, tzinfo=UTC)))
    assert [r.name for r in found.records] == ["MSH", "MSA", "ERR"]
    assert found.issues == []
