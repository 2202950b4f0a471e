"""adapters.hl7v2.oversize: which field makes a message too large."""

from __future__ import annotations

import pytest

from adapters.hl7v2.oversize import place

_HEAD = b"MSH|^~\\&|LIS|H|TJ|TJ|20240601100000||ORU^R01|1|P|2.5.1\rPID|1||P1\rOBR|1||F1\r"


def test_a_message_cut_off_inside_a_field_is_too_large_there() -> None:
    kept = _HEAD + b"OBX|1|NM|K||4.1|mmol/L|||||F\rOBX|2|ED|PDF^x||^application^pdf^Base64^" + b"A" * 50_000
    assert place(kept, cut=True) == ("OBX[2]-5", "^application^pdf^Base64^AAAAAAAAAAAAAAAA")


def test_lines_of_wrapped_base64_belong_to_the_field_before_them() -> None:
    kept = _HEAD + b"OBX|1|ED|PDF^x||^application^pdf^Base64^\r" + b"QUJD\r\n" * 9_000
    assert place(kept, cut=True)[0] == "OBX[1]-5"
    assert place(kept + b"||||||F\rOBX|2|NM|K||4.1\r", cut=False)[0] == "OBX[1]-5"


def test_of_a_whole_message_the_longest_field_is_named() -> None:
    whole = _HEAD + b"OBX|1|TX|A||" + b"x" * 500 + b"||||||F\rNTE|1||short\r"
    assert place(whole, cut=False) == ("OBX[1]-5", "x" * 40)


@pytest.mark.parametrize("data", [b"", b"noise", b"MSH", b"MSHA" + b"x" * 100, b"\xff\xfeM\0S\0H\0"])
def test_bytes_that_are_no_message_have_no_place(data: bytes) -> None:
    assert place(data, cut=True) == ("", "")


def test_a_header_without_end_is_too_large_in_its_last_field() -> None:
    assert place(b"MSH|^~\\&|" + b"L" * 60_000, cut=True) == ("MSH[1]-3", "L" * 40)
