"""What holds for any message: nothing disappears, everything that comes out is FHIR, and the order of arrival does not matter."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.contract import Unreadable
from adapters.convert import convert
from adapters.hl7v2.delimiters import escape
from adapters.hl7v2.reader import read
from adapters.transports.mllp_frames import Frames, frame
from conformance import validator
from mappings.model import Conversion
from mappings.profile import load_profiles

GOLDEN = Path(__file__).parent / "golden"
GENERIC = load_profiles()["generic"]
HEAD = "MSH|^~\\&|LIS|H1|TJ|TJ|20240601100000||ORU^R01|P1|P|2.5.1\rPID|1||P1^^^HIS^PI||张^三||19491231|M\r"
OBR = "OBR|1||F1|XCG^血常规^L|||20240601083000|||||||||||||||20240601093000|||{status}\r"

_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff"), max_size=30)
_VALUE = st.one_of(
    st.decimals(-10_000, 10_000, places=2).map(str),
    st.sampled_from(
        [
            "<0.1",
            "≥1:160",
            "阴性",
            "3-5",
            "++",
            "***",
            '""',
            "",
            "20240230",
            "2024",
            "1^:^8",
            ">^5",
            "^1^+",
            "见报告",
            "5.6 mmol/L",
        ]
    ),
    _TEXT.map(escape),
)
_OBX = st.tuples(
    st.sampled_from(
        ["NM", "SN", "ST", "TX", "FT", "CE", "CWE", "CF", "DT", "TM", "TS", "DTM", "IS", "DR", "NR", "VR", ""]
    ),
    st.sampled_from(["K^钾^L", "718-7^Hb^LN", "1037^所见^LN", "^只有名称", "GLU"]),
    st.sampled_from(["", "1", "1.1", "红细胞"]),
    _VALUE,
    st.sampled_from(["", "mmol/L", "10^9/L", "怪单位"]),
    st.sampled_from(["", "3-5", "<5", "阴性", "男:1-2", '""']),
    st.sampled_from(["", "H", "↑", "M", "H~A", "??"]),
    st.sampled_from(["F", "P", "C", "X", "W", "N", "", "2", "Q"]),
)


def _sound(conversion: Conversion) -> None:
    faults = [i for e in conversion.entries for i in validator.check(e.resource) if i.severity in ("error", "fatal")]
    assert not faults, faults


@settings(max_examples=150, deadline=None)
@given(st.lists(_OBX, min_size=1, max_size=6))
def test_generated_results_are_valid_and_no_field_disappears(rows: list[tuple[str, ...]]) -> None:
    lines = [f"OBX|{n}|{t}|{c}|{s}|{v}|{u}|{r}|{f}|||{x}\r" for n, (t, c, s, v, u, r, f, x) in enumerate(rows, 1)]
    raw = (HEAD + OBR.format(status="F") + "".join(lines)).encode()
    conversion = convert(raw, GENERIC)
    _sound(conversion)
    found = [e.resource for e in conversion.entries if e.resource["resourceType"] == "Observation"]
    assert len(found) == len(rows)
    for resource in found:
        said = (
            [k for k in resource if k.startswith("value")]
            or resource.get("component")
            or resource.get("dataAbsentReason")
        )
        assert said or resource["status"] == "registered"
    assert not [u for u in conversion.unread if u.where.startswith("OBX") and u.where.endswith(("-5", "-3", "-11"))]


@settings(max_examples=200, deadline=None)
@given(_TEXT)
def test_any_text_survives_being_escaped_sent_and_read(text: str) -> None:
    wanted = " ".join(text.split())
    raw = (HEAD + OBR.format(status="F") + f"OBX|1|ST|K^钾^L||a{escape(text)}b||||||F\r").encode()
    assert " ".join(read(raw).records[3].first(5).split()) == " ".join(f"a{text}b".split()), wanted


def _cuts(raw: bytes, step: int) -> Iterator[bytes]:
    return (raw[:at] for at in range(0, len(raw), step))


@pytest.mark.parametrize("name", ["oru-microbiology-parent", "oru-ed-wrapped", "adt-a01-full-visit", "omi-o23-imaging"])
def test_a_message_cut_at_any_byte_is_refused_or_gives_valid_resources(name: str) -> None:
    for part in _cuts((GOLDEN / f"{name}.hl7").read_bytes(), 7):
        try:
            conversion = convert(part, GENERIC)
        except Unreadable as refused:
            assert refused.issue.key
            continue
        _sound(conversion)


def test_a_frame_cut_at_any_byte_gives_no_message() -> None:
    framed = frame((GOLDEN / "adt-a08-null.hl7").read_bytes())
    for at in range(len(framed) - 1):
        frames = Frames(1 << 20)
        assert [f for f in frames.feed(framed[:at]) if not f.fault] == []
        assert [f for f in frames.close() if not f.fault] == []


def _state(order: tuple[bytes, ...]) -> dict[str, tuple[Any, ...]]:
    """What is current after the messages arrived in this order: the greatest recency of each resource."""
    current: dict[str, tuple[Any, ...]] = {}
    for raw in order:
        for entry in convert(raw, GENERIC).entries:
            resource = entry.resource
            if resource["resourceType"] not in ("Observation", "DiagnosticReport"):
                continue
            told = (entry.recency, resource["status"], str(resource.get("valueQuantity", {}).get("value", "")))
            current[resource["id"]] = max(current.get(resource["id"], told), told)
    return {logical: told[1:] for logical, told in current.items()}


def test_reports_of_one_order_end_in_the_same_state_in_any_order_of_arrival() -> None:
    def message(number: int, status: str, value: str, at: str) -> bytes:
        head = HEAD.replace("20240601100000", f"2024060110{number:02}00")
        order = OBR.format(status=status).replace("20240601093000", at)
        return (head + order + f"OBX|1|NM|K^钾^L||{value}|mmol/L|||||{status}\r").encode()

    sent = (
        message(1, "P", "4.0", "20240601090000"),
        message(2, "F", "4.1", "20240601093000"),
        message(3, "C", "4.2", "20240601100000"),
        message(4, "P", "9.9", "20240601110000"),
    )
    states = [_state(order) for order in itertools.permutations(sent)]
    assert all(state == states[0] for state in states)
    assert {told[0] for told in states[0].values()} == {"corrected"}
    assert Decimal("4.2") in {Decimal(told[1]) for told in states[0].values() if told[1]}
