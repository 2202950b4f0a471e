"""adapters.hl7v2.writer: values become bytes that read as the same values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapters.hl7v2 import reader, writer
from adapters.hl7v2.delimiters import STANDARD, Separators
from mappings.outbound.line import Line
from mappings.source import Component, Element

SEPARATORS = [STANDARD, Separators("|", "$", "~", "\\", "&"), Separators("!", "@", "%", "?", ";")]
# Line ends have a form of their own (\.br\), control characters do not survive reading.
TEXT = st.text(
    st.characters(codec="gb18030", exclude_categories=["Cc", "Cs", "Co"], exclude_characters="\ufeff"), max_size=20
)
COMPONENT = TEXT | st.lists(TEXT, min_size=2, max_size=3).map(tuple)


def header(charset: str) -> Line:
    line = Line("MSH")
    line.put(3, "A")
    line.put(9, ("ORU", "R01"))
    line.put(18, charset)
    return line


@given(
    st.lists(st.lists(COMPONENT, min_size=1, max_size=4).map(tuple), min_size=1, max_size=3),
    st.sampled_from(SEPARATORS),
    st.sampled_from(sorted(writer.CHARSETS)),
)
def test_what_was_written_is_read_back(elements: list[Element], separators: Separators, codec: str) -> None:
    line = Line("OBX")
    line.put(5, *elements)
    line.put(7, "end")
    message = reader.read(writer.write([header(writer.CHARSETS[codec]), line], separators, codec))
    assert (message.charset, message.separators) == (codec, separators)
    written, read = line.fields.get(5, ()), message.records[1].get(5)
    assert [[_parts(c) for c in e] for e in read if any(map(_parts, e))] == [
        [_parts(c) for c in e] for e in written if any(part.strip() for c in e for part in _parts(c))
    ] or not any(part.strip() for e in written for c in e for part in _parts(c))
    assert message.records[1].first(7) == "end"


def _parts(component: Component) -> list[str]:
    return [component] if isinstance(component, str) else list(component)


def test_delimiters_line_ends_and_chinese_are_safe() -> None:
    line = Line("NTE")
    line.put(3, ("a|b^c&d~e\\f\r\n血清",))
    assert writer.write([line]) == "NTE|||a\\F\\b\\S\\c\\T\\d\\R\\e\\E\\f\\.br\\血清\r".encode()
    assert writer.write([line], codec="gb18030").endswith("血清\r".encode("gb18030"))


def test_empty_fields_and_components_are_not_written() -> None:
    line = Line("OBX")
    line.put(1, "1")
    line.put(3, ("", ""))
    line.put(5, "")
    assert writer.write([line]) == b"OBX|1\r"
    assert writer.write([header("UNICODE UTF-8")]) == b"MSH|^~\\&|A||||||ORU^R01|||||||||UNICODE UTF-8\r"
