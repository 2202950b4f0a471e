"""adapters.hl7v2.delimiters: escape sequences both ways (HL7 v2.5.1 section 2.7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.hl7v2.delimiters import STANDARD, Separators, escape, escapes

READ = escapes(STANDARD, "utf-8").unescape


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"10\S\9/L", "10^9/L"),
        (r"a\F\b\S\c\T\d\R\e\E\f", "a|b^c&d~e\\f"),
        (r"cut \P\ here", "cut # here"),
        (r"\H\high\N\ value", "high value"),
        (r"one\.br\two", "one\ntwo"),
        (r"one\.BR\two", "one\ntwo"),
        (r"one\.sp\two", "one\ntwo"),
        (r"one\.sp3\two", "one\n\n\ntwo"),
        (r"one\.sp 2\two", "one\n\ntwo"),
        (r"\.in+3\text", "   text"),
        (r"\.in-3\text", "text"),
        (r"a\.sk2\b", "a  b"),
        (r"\.fi\a\.nf\b\.ce\c", "ab\nc"),
        (r"\.sp99999\x", "\n" * 80 + "x"),
        (r"\X48656C6C6F\ world", "Hello world"),
        (r"\X0D\\X0A\x", "\r\nx"),
        (r"\X0d0a\x", "\r\nx"),
        (r"\XE5BC\\XA0\三", "张三"),
        (r"\E\X41\E\ ", r"\X41\ "),
        (r"C:\temp\file.txt", r"C:\temp\file.txt"),
        (r"a \Z99\ b", r"a \Z99\ b"),
        (r"\C2842\\M824041\text", r"\C2842\\M824041\text"),
        (r"\X4\ and \XZZ\ and \X00\ ", r"\X4\ and \XZZ\ and \X00\ "),
        ("one \\ backslash", "one \\ backslash"),
        ("end\\", "end\\"),
        ("", ""),
    ],
)
def test_reads_each_escape_sequence(written: str, read: str) -> None:
    assert READ(written) == read


def test_hexadecimal_text_is_in_the_messages_character_set() -> None:
    assert escapes(STANDARD, "gb18030").unescape(r"\XD5C5\\XC8\\XFD\ ") == "张三 "
    assert escapes(STANDARD, "iso8859-1").unescape(r"\XC3\\XC7\ ") == "ÃÇ "


def test_hexadecimal_text_in_another_set_is_read_and_said() -> None:
    found = escapes(STANDARD, "utf-8")
    assert found.unescape(r"\XD5C5\ ") == "张 "
    assert list(found.odd(r"x\XD5C5\ ")) == [(1, "\\XD5C5\\", "gb18030")]


def test_odd_sequences_are_found_with_their_place() -> None:
    found = escapes(STANDARD, "utf-8")
    line = r"OBX|1|ST|a\S\b|\Z99\|c\q\|\X0\|lone \ one"
    assert [(p, t) for p, t, _ in found.odd(line)] == [
        (line.index("\\Z"), "\\Z99\\"),
        (line.index("\\q"), "\\q\\"),
        (line.index("\\X0"), "\\X0\\"),
        (line.index("\\ one"), "\\"),
    ]
    assert not found.any_odd(r"a\S\b and \F\ ")
    assert found.any_odd(r"a\Z99\b")


def test_other_delimiters_are_escaped_by_their_own_escape_character() -> None:
    odd = Separators("#", "!", "@", "%", "*", "\0")
    assert escape("a#b!c@d%e*f|^", odd) == "a%F%b%S%c%R%d%E%e%T%f|^"
    assert escapes(odd, "utf-8").unescape("a%F%b%S%c") == "a#b!c"


def test_without_an_escape_character_delimiters_become_blanks() -> None:
    assert escape("a|b^c", Separators("|", "^", "~")) == "a b c"


CONTROLS = "".join(map(chr, range(32)))
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters=CONTROLS) | st.just("\n"), max_size=60)


@given(TEXT | st.text(st.sampled_from("\\XSFTRE.br41|^&~#CMZ \n"), max_size=40))
def test_escaping_and_unescaping_gives_the_text_back(text: str) -> None:
    for separators in (STANDARD, Separators("|", "^", "~", "\\", "&", "#"), Separators("#", "!", "@", "%", "*")):
        written = escape(text, separators)
        plain = set(separators.field + separators.component + separators.repetition + separators.subcomponent + "\r\n")
        assert not set(written) & plain
        assert escapes(separators, "utf-8").unescape(written) == text


@given(st.text(max_size=80))
def test_any_text_can_be_unescaped(text: str) -> None:
    READ(text)
    list(escapes(STANDARD, "gb18030").odd(text))
