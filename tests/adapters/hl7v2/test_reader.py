"""adapters.hl7v2.reader: what is read from odd messages, and what is said about it."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.contract import Unreadable
from adapters.hl7v2.reader import Message, read
from mappings.source import part

MSH = "MSH|^~\\&|LIS|H1|HIS|C1|20260102101112||ORU^R01^ORU_R01|M1|P|2.5.1"
ORU = f"{MSH}\rPID|1||P1^^^H1^PI||张^三\rOBR|1|||CBC\rOBX|1|NM|WBC^白细胞||5.6|10\\S\\9/L|3.5-9.5|N~A|||F\r"


def message(*lines: str, header: str = MSH, end: str = "\r") -> bytes:
    return end.join([header, *lines, ""]).encode()


def keys(found: Message) -> list[tuple[str, str]]:
    return [(issue.key, issue.where) for issue in found.issues]


def refusal(raw: bytes) -> str:
    with pytest.raises(Unreadable) as refused:
        read(raw)
    assert refused.value.issue.severity == "error"
    assert refused.value.issue.text.isascii()
    return refused.value.issue.key


def dump(found: Message) -> list[tuple[str, list[tuple[int, object]]]]:
    return [(r.where, [(n, r.get(n)) for n in r.filled()]) for r in found.records]


def test_gives_segments_fields_repetitions_and_components() -> None:
    found = read(ORU.encode())
    assert (found.format, found.charset, found.issues) == ("hl7v2", "utf-8", [])
    assert [r.where for r in found.records] == ["MSH[1]", "PID[1]", "OBR[1]", "OBX[1]"]
    obx = found.records[3]
    assert obx.name == "OBX"
    assert obx.get(3) == (("WBC", "白细胞"),)
    assert obx.first(3, 2) == "白细胞"
    assert obx.get(6) == (("10^9/L",),)
    assert obx.get(8) == (("N",), ("A",))
    assert obx.get(4) == obx.get(99) == ()
    assert obx.first(4) == obx.first(3, 9) == ""
    assert list(obx.filled()) == [1, 2, 3, 5, 6, 7, 8, 11]


def test_counts_msh_from_the_separator() -> None:
    msh = read(ORU.encode()).header
    assert msh.get(1) == (("|",),)
    assert msh.get(2) == (("^~\\&",),)
    assert (msh.first(3), msh.first(9, 2), msh.first(10), msh.first(12)) == ("LIS", "R01", "M1", "2.5.1")
    assert list(msh.filled()) == [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]
    assert msh.raw(9) == "ORU^R01^ORU_R01"


def test_keeps_subcomponents_and_joins_them_for_text() -> None:
    obx = read(message("OBX|1|NM|X||4.7|mg|4.50&5.90^b")).records[1]
    assert obx.get(7) == ((("4.50", "5.90"), "b"),)
    assert obx.first(7) == "4.50&5.90"
    assert part(obx.get(7)[0], 1, 2) == "5.90"


def test_keeps_hl7_null_apart_from_absent() -> None:
    pid = read(message('PID|1|""|P1||""^b')).records[1]
    assert pid.get(2) == (('""',),)
    assert pid.first(2) == pid.first(5) == ""
    assert 2 in pid.filled()


def test_fields_of_blanks_and_delimiters_are_empty() -> None:
    pid = read(message("PID|1|^^^|  |~~|&|^umol/L|~x")).records[1]
    assert list(pid.filled()) == [1, 6, 7]
    assert pid.get(2) == pid.get(3) == pid.get(4) == pid.get(5) == ()
    assert pid.get(6) == (("", "umol/L"),)
    assert pid.get(7) == (("",), ("x",))


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_segments_may_end_with_any_line_end(end: str) -> None:
    expected = dump(read(ORU.encode()))
    assert dump(read(ORU.replace("\r", end).encode())) == expected
    assert dump(read(ORU.replace("\r", end).rstrip().encode())) == expected


def test_line_ends_may_be_mixed() -> None:
    assert dump(read(b"MSH|^~\\&|||||||ORU|1\r\nPID|1\nPV1|1\rOBX|1\r\n\r\n"))[1:] == [
        (n, [(1, (("1",),))]) for n in ("PID[1]", "PV1[1]", "OBX[1]")
    ]


@pytest.mark.parametrize(
    "around",
    [
        (b"\xef\xbb\xbf", b""),
        (b"\x0b", b"\x1c\r"),
        (b"\r\n \r\n", b"\r\n\r\n"),
        (b"\x0b\x0b", b"\x1c\r\x1c\r"),
        (b"[SOM]", b"[EOM]"),
        (b"<VT>", b"<FS><CR>"),
        (b"", b"\0\0\0\0"),
        (b"", b"\x1c\r\0"),
        (b"\0\0", b"\x1a"),
        (b" \t", b"  "),
    ],
)
def test_framing_around_the_message_is_taken_off(around: tuple[bytes, bytes]) -> None:
    found = read(around[0] + ORU.encode() + around[1])
    assert dump(found) == dump(read(ORU.encode()))
    assert found.issues == []


def test_text_before_and_after_the_message_is_left_out_with_an_issue() -> None:
    found = read(b"sent by LIS\r\n" + ORU.encode() + b"\x1cchecksum 12")
    assert dump(found) == dump(read(ORU.encode()))
    assert [k for k, _ in keys(found)] == ["leading-junk", "trailing-junk"]


def test_control_characters_are_left_out_with_an_issue() -> None:
    found = read(ORU.replace("5.6", "5\x00.6\x01").encode())
    assert found.records[3].first(5) == "5.6"
    assert [k for k, _ in keys(found)] == ["control-character"]


def test_a_byte_order_mark_inside_a_message_is_left_out() -> None:
    found = read(message("PID|1|\ufeff|P1\ufeff||\\XEFBBBF\\Li"))
    assert found.records[1].get(2) == ()
    assert found.records[1].get(3) == (("P1",),)
    assert found.records[1].first(5) == "Li"


def test_every_separator_may_be_another_one() -> None:
    raw = "MSH@$*!%@LIS@H1@@@20260102@@ORU$R01@M1@P@2.3\rOBX@1@NM@WBC$x%y@@10^9/L@a!S!b@1*2"
    found = read(raw.encode())
    obx = found.records[1]
    assert found.header.first(9, 2) == "R01"
    assert obx.get(3) == (("WBC", ("x", "y")),)
    assert obx.get(5) == (("10^9/L",),)
    assert obx.get(6) == (("a$b",),)
    assert obx.get(7) == (("1",), ("2",))


def test_five_encoding_characters_are_fine_under_any_version() -> None:
    found = read(b"MSH|^~\\&#|L|H|||20260102||ORU^R01|M1|P|2.5.1\rOBX|1|ST|a#b^c||cut\\P\\x")
    assert found.records[1].get(3) == (("a#b", "c"),)
    assert found.records[1].first(5) == "cut#x"
    assert found.issues == []


def test_separators_missing_from_a_short_msh2_separate_nothing() -> None:
    found = read(b"MSH|^~|L|H|||20260102||ORU^R01|M1|P|2.5\rOBX|1|ST|a^b~c||x\\F\\y&z")
    obx = found.records[1]
    assert obx.get(3) == (("a", "b"), ("c",))
    assert obx.get(5) == (("x\\F\\y&z",),)
    assert keys(found) == [("short-delimiters", "MSH[1]-2")]
    assert read(b"MSH|^|L|H|||20260102||ORU^R01|M1\rOBX|1|ST|a^b~c").records[1].get(3) == (("a", "b~c"),)


def test_an_escape_character_written_twice_in_msh2_is_read_as_one() -> None:
    found = read(b"MSH|^~\\\\&|L|H|||20260102||ORU^R01|M1\rOBX|1|ST|a&b")
    assert found.records[1].get(3) == ((("a", "b"),),)
    assert keys(found) == [("doubled-escape", "MSH[1]-2")]


def test_unknown_escapes_are_kept_and_said_once_per_field() -> None:
    found = read(message("OBX|1|TX|N||a \\Z99\\ b \\Z98\\|\\C2842\\x", "NTE|1||C:\\temp\\x"))
    assert found.records[1].first(5) == "a \\Z99\\ b \\Z98\\"
    assert keys(found) == [
        ("unknown-escape", "OBX[1]-5"),
        ("unknown-escape", "OBX[1]-6"),
        ("unknown-escape", "NTE[1]-3"),
    ]
    assert {i.severity for i in found.issues} == {"information"}


def test_an_escaped_header_field_is_told_by_its_own_number() -> None:
    found = read(b"MSH|^~\\&|A\\S\\B|H\\q\\|||20260102||ORU^R01|M1\r")
    assert found.header.first(3) == "A^B"
    assert keys(found) == [("unknown-escape", "MSH[1]-4")]


def test_raw_line_breaks_inside_a_field_are_joined() -> None:
    report = "OBX|1|TX|R||<a>\n  <b/>\n\n</a>|x|||||F"
    found = read(message(report, "NTE|1||last"))
    obx = found.records[1]
    assert obx.first(5) == "<a>\n  <b/>\n\n</a>"
    assert obx.first(11) == "F"
    assert keys(found) == [("line-joined", "OBX[1]-5")]
    assert [r.where for r in found.records] == ["MSH[1]", "OBX[1]", "NTE[1]"]


def test_a_word_of_three_letters_in_a_text_is_no_segment() -> None:
    found = read(message("NTE|1||first", "END", "Obx", "PV1"))
    assert [r.where for r in found.records] == ["MSH[1]", "NTE[1]", "PV1[1]"]
    assert found.records[1].first(3) == "first\nEND\nObx"


def test_a_document_of_many_lines_is_joined_in_linear_time() -> None:
    found = read(message("OBX|1|ED|PDF||^AP^^Base64^" + "\n".join(["QUJD" * 19] * 60_000) + "|||||F"))
    assert len(found.records[1].first(5, 5)) == 60_000 * 77 - 1
    assert found.records[1].first(10) == "F"


def test_lower_case_segment_ids_are_read_with_an_issue() -> None:
    found = read(message("pid|1||P1"))
    assert (found.records[1].where, found.records[1].first(3)) == ("PID[1]", "P1")
    assert keys(found) == [("segment-case", "PID[1]")]
    assert read(ORU.replace("MSH", "msh").encode()).header.first(10) == "M1"


def test_indented_segments_are_read() -> None:
    assert [r.where for r in read(message("  PID|1||P1", "\tPV1|1")).records] == ["MSH[1]", "PID[1]", "PV1[1]"]


def test_misspelt_segment_ids_do_not_spoil_the_segment_before() -> None:
    found = read(message("PIDX|1||P1", "PV|1|I"))
    assert found.header.first(12) == "2.5.1"
    assert [r.where for r in found.records] == ["MSH[1]", "PIDX[1]", "PV[1]"]
    assert keys(found) == [("bad-segment-id", "PIDX[1]"), ("bad-segment-id", "PV[1]")]


def test_a_stray_line_after_the_header_is_left_out_with_an_issue() -> None:
    found = read(message("what is this", "PID|1"))
    assert found.header.first(12) == "2.5.1"
    assert keys(found) == [("stray-line", "MSH[1]")]


@pytest.mark.parametrize("line", ["MSH", "msh", "MSHA|b"])
def test_a_crippled_second_header_is_no_message_and_no_crash(line: str) -> None:
    found = read(message(line, "PID|1||P1"))
    assert found.header.first(10) == "M1"
    assert found.records[-1].first(3) == "P1"
    assert found.issues
    dump(found)


@pytest.mark.parametrize("line", ["MSH|^~\\&|x", "msh|x", "  MSH|x", "\u3000MSH|a", "MSH |x"])
def test_a_second_header_is_refused_so_that_no_two_patients_are_mixed(line: str) -> None:
    assert refusal(message("PID|1||P1", line, "PID|1||P2")) == "several-messages"


def test_segments_stay_in_the_order_sent_and_unknown_ones_are_kept() -> None:
    names = ["OBX", "ZZZ", "PID", "ORC", "OBR", "ORC", "Z01"]
    found = read(message(*(f"{n}|1|x" for n in names)))
    assert [r.name for r in found.records] == ["MSH", *names]
    assert found.records[6].where == "ORC[2]"


def test_add_goes_on_with_the_last_field_before_it() -> None:
    found = read(message("OBX|1|TX|R||first, ", "ADD|second|u|||||F", "NTE|1||x"))
    assert (found.records[1].first(5), found.records[1].first(6), found.records[1].first(11)) == (
        "first, second",
        "u",
        "F",
    )
    assert [r.name for r in found.records] == ["MSH", "OBX", "NTE"]


def test_a_message_that_goes_on_elsewhere_is_marked() -> None:
    found = read(message("OBX|1|TX|R||first", "DSC|next1|F"))
    assert keys(found) == [("continued-message", "DSC[1]-1")]
    assert found.issues[0].severity == "error"


def test_batch_segments_around_one_message_are_left_out_with_an_issue() -> None:
    found = read(b"FHS|^~\\&|a\rBHS|^~\\&|b\r" + ORU.encode() + b"BTS|1\rFTS|1\r")
    assert dump(found) == dump(read(ORU.encode()))
    assert [k for k, _ in keys(found)] == ["batch-envelope"]


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (b"", "empty"),
        (b"\x0b\x1c\r", "empty"),
        (b" \r\n\0", "empty"),
        (b"\xef\xbb\xbf\r\n", "empty"),
        (b"PID|1||P1\rPV1|1\r", "no-header"),
        (b"hello world", "no-header"),
        (b"MSHX|^~\\&|a", "no-header"),
        (b"xMSH", "no-header"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "no-header"),
        (bytes(range(256)) * 4, "binary-noise"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", "binary-noise"),
        (b"MSH|^~\\&|LIS|H1\r", "too-short-header"),
        (b"MSH|^~\r", "too-short-header"),
        (b"MSH|", "too-short-header"),
        (b"MSH ^~ & a b c d e f g h i", "bad-delimiters"),
        (b"MSH||a|b|c|d|e||ORU^R01|1", "bad-delimiters"),
        (b"MSH|^^\\&|a|b|c|d|e||ORU^R01|1", "bad-delimiters"),
        (b"MSH|abcd|a|b|c|d|e||ORU^R01|1", "bad-delimiters"),
        (b"MSH|^~\\&#!|a|b|c|d|e||ORU^R01|1", "bad-delimiters"),
        (MSH.encode() + b"\r" + ORU.encode(), "several-messages"),
        (ORU.encode() + b"\x1c\r\x0b" + ORU.encode(), "several-messages"),
        (MSH.encode() + b"\rPID|1||\xff\xff\xff\xff|", "charset-unknown"),
    ],
)
def test_refuses_what_is_no_message_with_a_reason(raw: bytes, key: str) -> None:
    assert refusal(raw) == key


# --- character sets ------------------------------------------------------------------------------------------------------------------

# Characters whose second byte in GBK is a delimiter: 5C, 5E, 7C, 7E.
PAIRS = [bytes([lead, trail]).decode("gb18030") for lead in (0x81, 0x90, 0xA0, 0xD5) for trail in b"\\^|~`"]
TRAPS = [pair for pair in PAIRS if pair.isprintable()]


@pytest.mark.parametrize("declared", ["", "GB 18030-2000", "GBK", "UNICODE UTF-8", "ASCII"])
def test_gb18030_trail_bytes_that_look_like_delimiters_do_not_cut(declared: str) -> None:
    name = "".join(TRAPS)
    assert len(TRAPS) > 10
    header = f"MSH|^~\\&|LIS{name}|医院{name}|||20260102||ORU^R01|M1|P|2.5.1||||||{declared}"
    found = read(
        "\r".join([header, f"PID|1||P1^^^{name}^PI||{name}^三~{name}", f"OBX|1|ST|W||{name}|{name}"]).encode("gb18030")
    )
    assert found.charset == "gb18030"
    assert found.header.first(3) == f"LIS{name}"
    assert found.header.first(9, 2) == "R01"
    assert found.records[1].get(5) == ((name, "三"), (name,))
    assert found.records[2].first(5) == found.records[2].first(6) == name
    expected = {"": ["charset-detected"], "UNICODE UTF-8": ["charset-mismatch"], "ASCII": ["charset-mismatch"]}
    assert [k for k, _ in keys(found)] == expected.get(declared, [])


@pytest.mark.parametrize(
    ("declared", "codec", "name"),
    [
        ("BIG-5", "cp950", "許功蓋王小明"),
        ("ISO IR87", "iso2022_jp_2", "山田太郎"),
        ("KS X 1001", "cp949", "홍길동"),
        ("ISO IR14", "cp932", "ｿﾀ表示"),
        ("8859/1", "iso8859-1", "Müller"),
        ("8859/5", "iso8859-5", "Иванов"),
        ("UNICODE UTF-8", "utf-8", "张三🙂"),
    ],
)
def test_msh18_is_found_although_the_fields_before_it_are_in_that_set(declared: str, codec: str, name: str) -> None:
    header = f"MSH|^~\\&|{name}|{name}|||20260102||ORU^R01|M1|P|2.5.1||||||{declared}"
    found = read(f"{header}\rPID|1||P1||{name}^x".encode(codec))
    assert (found.charset, found.issues) == (codec, [])
    assert found.records[1].get(5) == ((name, "x"),)


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_read(codec: str) -> None:
    found = read(ORU.encode(codec))
    assert dump(found) == dump(read(ORU.encode()))
    assert found.charset == codec


def test_the_facilitys_set_is_used_when_nothing_else_fits() -> None:
    raw = message("PID|1||P1||Größe^ÿ").decode().encode("latin-1")
    assert refusal(raw) == "charset-unknown"
    assert read(raw, "8859/1").records[1].get(5) == (("Größe", "ÿ"),)


# --- properties ----------------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32))
def test_a_message_cut_off_anywhere_is_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    codec = rng.choice(["utf-8", "gb18030", "utf-16"])
    raw = bytearray(ORU.encode(codec)[: rng.randrange(len(ORU.encode(codec)))])
    for _ in range(rng.choice([0, 0, 1, 5])):
        if raw:
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    try:
        found = read(bytes(raw))
    except Unreadable as refused:
        assert refused.issue.key
    else:
        dump(found)


def test_a_message_cut_off_at_every_byte_is_read_or_refused() -> None:
    for codec in ("utf-8", "gb18030"):
        raw = ORU.encode(codec)
        for end in range(len(raw)):
            try:
                dump(read(raw[:end]))
            except Unreadable as refused:
                assert refused.issue.key in (
                    "empty",
                    "no-header",
                    "too-short-header",
                    "bad-delimiters",
                    "charset-unknown",
                )


@given(st.binary(max_size=300))
def test_any_bytes_after_a_header_are_read_or_refused(noise: bytes) -> None:
    try:
        dump(read(MSH.encode() + b"\r" + noise))
    except Unreadable as refused:
        assert refused.issue.key in ("charset-unknown", "several-messages", "bad-delimiters")


ODD = Path(__file__).parents[2] / "data" / "hl7v2-odd"


def test_issue_positions_name_the_field() -> None:
    found = read((ODD / "edge-cases_unknown-escapes.hl7").read_bytes())
    assert keys(found) == [("unknown-escape", "OBX[1]-5")]


def test_reading_a_large_report_needs_little_more_memory_than_its_text() -> None:
    raw = message(*(f"OBX|{n}|NM|T{n}^x^L||{n}.5|mmol/L|1-9|N|||F" for n in range(4000)))
    read(raw)
    tracemalloc.start()
    found = read(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.records) == 4001
    assert peak < len(raw) * 16
