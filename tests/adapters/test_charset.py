"""adapters.charset: what the bytes are read as, and what is said about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.charset import codec_named, decode, wide_codec
from adapters.contract import Unreadable

# Invented names; 𠮷 (U+20BB7) needs four bytes in GB18030.
NAME = "张三丰^欧阳娜娜·阿依古丽 白细胞计数 𠮷"


def keys(raw: bytes, declared: str = "", fallback: str = "") -> list[str]:
    return [issue.key for issue in decode(raw, declared, fallback).issues]


# Names of HL7 v2.5.1 table 0211, then spellings seen from senders.
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("ASCII", "ascii"),
        ("8859/1", "iso8859-1"),
        ("8859/2", "iso8859-2"),
        ("8859/9", "iso8859-9"),
        ("8859/15", "iso8859-15"),
        ("ISO IR14", "cp932"),
        ("ISO IR87", "iso2022_jp_2"),
        ("ISO IR159", "iso2022_jp_2"),
        ("GB 18030-2000", "gb18030"),
        ("KS X 1001", "cp949"),
        ("BIG-5", "cp950"),
        ("UNICODE UTF-8", "utf-8"),
        ("UNICODE UTF-16", "utf-16"),
        ("UTF-8", "utf-8"),
        ("utf8", "utf-8"),
        ("Unicode UTF8", "utf-8"),
        ("GBK", "gb18030"),
        ("GB2312", "gb18030"),
        ("gb_2312-80", "gb18030"),
        ("GB18030", "gb18030"),
        ("GB18030-2022", "gb18030"),
        ("CP936", "gb18030"),
        ("windows-936", "gb18030"),
        ("ISO-8859-1", "iso8859-1"),
        ("ISO8859-1:1987", "iso8859-1"),
        ("windows-1252", "cp1252"),
        ("CNS 11643-1992", None),
        ("ISO IR 999", None),
        ("8859/12", None),
        ("8859/99", None),
        ("", None),
    ],
)
def test_names_of_table_0211_and_usual_spellings_are_known(name: str, codec: str | None) -> None:
    assert codec_named(name) == codec


@pytest.mark.parametrize(
    ("declared", "codec"),
    [("UNICODE UTF-8", "utf-8"), ("GB 18030-2000", "gb18030"), ("GBK", "gb18030"), ("UNICODE", "utf-8")],
)
def test_the_declared_set_is_used_without_an_issue(declared: str, codec: str) -> None:
    found = decode(NAME.encode(codec), declared)
    assert (found.text, found.codec, found.issues) == (NAME, codec, ())


def test_undeclared_utf8_is_recognized_before_gb18030() -> None:
    found = decode(NAME.encode(), "")
    assert (found.text, found.codec, found.issues) == (NAME, "utf-8", ())


def test_undeclared_gb18030_is_recognized_and_said_so() -> None:
    found = decode(NAME.encode("gb18030"), "")
    assert (found.text, found.codec) == (NAME, "gb18030")
    assert [(i.key, i.severity) for i in found.issues] == [("charset-detected", "information")]


def test_undeclared_gb18030_is_no_surprise_when_the_facility_is_known_to_send_it() -> None:
    assert keys(NAME.encode("gb18030"), "", "gb18030") == []


def test_the_facilitys_set_is_the_last_candidate() -> None:
    raw = "Größe".encode("latin-1") + b" \xff"
    with pytest.raises(Unreadable):
        decode(raw)
    assert decode(raw, "", "8859/1").text == "Größe ÿ"


def test_plain_ascii_counts_as_the_declared_or_the_facilitys_set() -> None:
    assert decode(b"abc", "GBK").codec == "gb18030"
    assert decode(b"abc", "", "gb18030").codec == "gb18030"
    assert decode(b"abc", "UNICODE UTF-16", "").codec == "utf-8"
    assert decode(b"abc").codec == "utf-8"


def test_latin1_is_never_guessed() -> None:
    with pytest.raises(Unreadable) as refused:
        decode(b"caf\xe9\xff")
    assert (refused.value.issue.key, refused.value.issue.severity) == ("charset-unknown", "error")


def test_latin1_is_used_when_declared() -> None:
    found = decode("Müller, José, Größe".encode("latin-1"), "8859/1")
    assert (found.text, found.codec, found.issues) == ("Müller, José, Größe", "iso8859-1", ())


@pytest.mark.parametrize(
    ("declared", "sent", "read"),
    [
        ("UNICODE UTF-8", "gb18030", "gb18030"),
        ("ASCII", "gb18030", "gb18030"),
        ("ASCII", "utf-8", "utf-8"),
        ("GB 18030-2000", "utf-8", "utf-8"),
        ("GBK", "utf-8", "utf-8"),
        ("8859/1", "utf-8", "utf-8"),
        ("8859/1", "gb18030", "gb18030"),
        ("ISO IR87", "utf-8", "utf-8"),
        ("UNICODE UTF-16", "utf-8", "utf-8"),
    ],
)
def test_a_declared_set_that_does_not_fit_holds_the_message_unless_the_profile_says_so(
    declared: str, sent: str, read: str
) -> None:
    text = "姓名 张三 诊断 高血压 单位 克每升"
    found = decode(text.encode(sent), declared)
    assert (found.text, found.codec) == (text, read)
    assert [(i.key, i.severity, i.value) for i in found.issues] == [("charset-mismatch", "error", declared)]
    stated = decode(text.encode(sent), declared, sent)
    assert (stated.text, stated.codec) == (text, read)
    assert [(i.key, i.severity, i.value) for i in stated.issues] == [("charset-mismatch", "information", declared)]


@pytest.mark.parametrize("declared", ["GBK", "", "UNICODE UTF-8"])
def test_words_in_utf8_among_gb18030_hold_the_message_and_say_where(declared: str) -> None:
    # Read as GB18030 the last byte of 张三丰 would take the delimiter behind it along.
    raw = b"MSH|^~\\&|LIS\rPID|1||B1||" + "张三丰".encode() + b"|\rOBX|1|ST|X||" + "大肠埃希菌".encode("gbk") + b"\r"
    (issue,) = [i for i in decode(raw, declared).issues if i.key == "charset-mixed"]
    assert (issue.severity, issue.where, issue.value) == ("error", "PID[1]-5", "张三丰")


def test_an_unknown_name_is_said_and_the_bytes_are_looked_at() -> None:
    found = decode(NAME.encode("gb18030"), "ISO IR 999")
    assert (found.text, [i.key for i in found.issues]) == (NAME, ["charset-unknown-name"])
    assert decode(b"plain", "ISO IR 999").issues[0].value == "ISO IR 999"


def test_a_later_repetition_of_msh18_counts_when_the_first_does_not_fit() -> None:
    found = decode(NAME.encode("gb18030"), "ASCII~GB 18030-2000")
    assert (found.text, found.codec, found.issues) == (NAME, "gb18030", ())


def test_byte_order_marks_decide_and_are_taken_off() -> None:
    assert decode(b"\xef\xbb\xbfabc", "").text == "abc"
    assert decode(b"\xef\xbb\xbf" + NAME.encode(), "GBK").text == NAME
    assert keys(b"\xef\xbb\xbf" + NAME.encode(), "GBK") == ["charset-mismatch"]
    for codec in ("utf-16", "utf-32"):
        assert decode(NAME.encode(codec), "").text == NAME


def test_utf16_without_a_mark_is_seen_by_its_zero_bytes() -> None:
    assert wide_codec("MSH|^~".encode("utf-16-le")) == "utf-16-le"
    assert wide_codec("MSH|^~".encode("utf-16-be")) == "utf-16-be"
    assert wide_codec(b"MSH|^~\\&|") is None


def test_the_characters_gb18030_2022_moved_out_of_the_private_area_come_out_right() -> None:
    # GB 18030-2022 annex: FE59 is U+9FB4, FE90 is U+9FBA, A6D9 is U+FE10; 2005: A8BC is U+1E3F.
    assert (
        decode(bytes.fromhex("FE59FE90A6D9A8BC") + "张".encode("gb18030"), "GB18030").text
        == "\u9fb4\u9fba\ufe10\u1e3f张"
    )


def test_noise_is_not_text_even_when_it_could_be_decoded() -> None:
    with pytest.raises(Unreadable):
        decode(bytes(range(1, 9)) * 20 + b"\xc4\xe3\x01\xff")


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\ufeff"), max_size=60))
def test_every_text_survives_declared_utf8_and_gb18030(text: str) -> None:
    assert decode(text.encode(), "UNICODE UTF-8").text == text
    assert decode(text.encode(), "").text == text


@given(
    st.binary(max_size=200),
    st.sampled_from(["", "ASCII", "GBK", "UNICODE UTF-8", "8859/1", "UNICODE", "x~y", "ISO IR87"]),
)
def test_any_bytes_are_read_or_refused(raw: bytes, declared: str) -> None:
    try:
        decode(raw, declared)
    except Unreadable as refused:
        assert refused.issue.key == "charset-unknown"
