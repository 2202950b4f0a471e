"""OBX-5 by OBX-2. Sources: HL7 v2.5.1 chapter 7.4.2.5 and 2.A (NM, SN, DTM, TM); V2-to-FHIR guide, map OBX, rows OBX-5, OBX-6."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import fhirjson, systems
from mappings.source import Element
from mappings.units import Unit, shipped
from mappings.values import Typed, joined, typed

SHANGHAI = ZoneInfo("Asia/Shanghai")


def concept(element: Element) -> dict[str, Any] | None:
    return {"text": joined(element)} if joined(element) else None


def value_of(kind: str, *elements: str | Element, unit: str = "", **more: str) -> Typed:
    repetitions = tuple((e,) if isinstance(e, str) else e for e in elements)
    return typed(
        kind,
        repetitions,
        shipped().lookup(unit) if unit else None,
        zone=SHANGHAI,
        concept=concept,
        where="OBX[1]-5",
        **more,
    )


def quantity(text: str, unit: str = "", comparator: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {"value": Decimal(text)}
    if comparator:
        out["comparator"] = comparator
    if unit:
        out |= {"unit": unit, "system": systems.UCUM, "code": shipped().lookup(unit).ucum}
    return out


def bare(body: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in body.items() if k != "extension"}


def source_text(body: dict[str, Any]) -> str | None:
    return next((e["valueString"] for e in body.get("extension", ()) if e["url"] == systems.SOURCE_TEXT), None)


# --- NM ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "served"),
    [("5.60", b"5.60"), ("0.0000001", b"0.0000001"), ("-3.20", b"-3.20"), ("100", b"100"), ("1.0E2", b"1.0E2")],
)
def test_a_number_keeps_its_digits(sent: str, served: bytes) -> None:
    found = value_of("NM", sent, unit="mmol/L")
    assert bare(found.value["valueQuantity"]) == quantity(sent, "mmol/L")
    assert b'"value":' + served + b"," in fhirjson.dumps(found.value)
    assert source_text(found.value["valueQuantity"]) is None
    assert not found.issues


@pytest.mark.parametrize(
    ("sent", "number"), [("+5", "5"), (".5", "0.5"), ("5.", "5"), ("01.20", "1.20"), ("５.６", "5.6"), ("5.6↑", "5.6")]
)
def test_a_number_json_cannot_hold_as_written_keeps_its_source_text(sent: str, number: str) -> None:
    found = value_of("NM", sent, unit="mmol/L").value["valueQuantity"]
    assert bare(found) == quantity(number, "mmol/L")
    assert fhirjson.dumps({"v": found["value"]}) == b'{"v":' + number.encode() + b"}"
    assert source_text(found) == sent


def test_a_comparator_in_a_number_is_a_comparator() -> None:
    assert value_of("NM", "<0.5", unit="mmol/L").value == {"valueQuantity": quantity("0.5", "mmol/L", "<")}


@pytest.mark.parametrize("sent", ["1,234", "5,6", "1.2.3", "NaN", "Infinity", "12 hours", "9" * 60])
def test_a_number_that_is_none_stays_text_with_an_issue(sent: str) -> None:
    found = value_of("NM", sent, unit="mmol/L")
    assert found.value == {"valueString": sent}
    assert [(i.key, i.severity, i.where, i.value) for i in found.issues] == [
        ("bad-number", "warning", "OBX[1]-5", sent)
    ]


@pytest.mark.parametrize(
    ("kind", "sent", "reason"),
    [
        ("NM", "***.**", "error"),
        ("NM", "****", "error"),
        ("NM", "----", "unknown"),
        ("NM", "-", "unknown"),
        ("ST", "----", "unknown"),
        ("ST", "见备注", "as-text"),
        ("ST", "详见报告单", "as-text"),
        ("ST", "未做", "not-performed"),
        ("ST", "待测", "temp-unknown"),
        ("NM", "N/A", "unknown"),
    ],
)
def test_a_filler_is_no_value_and_its_text_stays(kind: str, sent: str, reason: str) -> None:
    found = value_of(kind, sent, unit="mmol/L")
    assert found.value["dataAbsentReason"]["coding"] == [{"system": systems.DATA_ABSENT, "code": reason}]
    assert source_text(found.value) == sent
    assert not [k for k in found.value if k.startswith("value")]
    assert [i.key for i in found.issues] == ["no-value"]


@pytest.mark.parametrize("sent", ["", '""', "  "])
@pytest.mark.parametrize("kind", ["NM", "ST", "SN", "CE", "DT", "TX", ""])
def test_nothing_sent_is_never_an_empty_text_or_zero(kind: str, sent: str) -> None:
    found = value_of(kind, sent)
    assert found.value == {"dataAbsentReason": {"coding": [{"system": systems.DATA_ABSENT, "code": "unknown"}]}}


def test_no_repetition_at_all_is_no_value() -> None:
    assert "dataAbsentReason" in value_of("NM").value


# --- SN ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "key", "body"),
    [
        (("", "182"), "valueQuantity", quantity("182")),
        (("=", "440"), "valueQuantity", quantity("440")),
        ((">", "100"), "valueQuantity", quantity("100", comparator=">")),
        ((">=", "0.50"), "valueQuantity", quantity("0.50", comparator=">=")),
        (("≤", "5"), "valueQuantity", quantity("5", comparator="<=")),
        (("<5",), "valueQuantity", quantity("5", comparator="<")),
        (("", "1", ":", "128"), "valueRatio", {"numerator": quantity("1"), "denominator": quantity("128")}),
        (
            (">", "1", ":", "128"),
            "valueRatio",
            {"numerator": quantity("1", comparator=">"), "denominator": quantity("128")},
        ),
        (("", "1", "/", "2"), "valueRatio", {"numerator": quantity("1"), "denominator": quantity("2")}),
        (("", "1", "-", "3"), "valueRange", {"low": quantity("1"), "high": quantity("3")}),
    ],
)
def test_a_structured_number_becomes_what_its_parts_say(element: Element, key: str, body: dict[str, Any]) -> None:
    found = value_of("SN", element)
    assert list(found.value) == [key]
    assert bare(found.value[key]) == body
    assert not found.issues


def test_one_plus_stays_text() -> None:
    assert value_of("SN", ("", "1", "+")).value == {"valueString": "1+"}


def test_not_equal_has_no_fhir_comparator_and_stays_text() -> None:
    found = value_of("SN", ("<>", "5"), unit="mg/dL")
    assert found.value == {"valueString": "<>5 mg/dL"}
    assert not found.issues


@pytest.mark.parametrize(
    "element", [("", "x"), (">", "1", "-", "3"), ("", "3", "-", "1"), ("", "1", "~", "3"), ("?", "5")]
)
def test_a_structured_number_that_makes_no_sense_stays_text_with_an_issue(element: Element) -> None:
    found = value_of("SN", element)
    assert list(found.value) == ["valueString"]
    assert [i.key for i in found.issues] == ["bad-number"]


def test_both_parts_of_a_ratio_and_a_range_carry_the_unit() -> None:
    span = value_of("SN", ("", "1", "-", "3"), unit="/HPF").value["valueRange"]
    assert span["low"]["code"] == span["high"]["code"] == "/[HPF]"


# --- text ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "number", "comparator", "changed"),
    [
        ("<0.01", "0.01", "<", False),
        ("＜0.01", "0.01", "<", True),
        (">1000", "1000", ">", False),
        ("＞1000", "1000", ">", True),
        ("≤5", "5", "<=", True),
        ("≥ 90", "90", ">=", True),
        ("< 0.5", "0.5", "<", True),
        ("大于1000", "1000", ">", True),
        ("〈0.5", "0.5", "<", True),
        ("<=5", "5", "<=", False),
    ],
)
@pytest.mark.parametrize("kind", ["ST", "TX", "FT", ""])
def test_a_comparator_in_text_is_a_quantity(kind: str, sent: str, number: str, comparator: str, changed: bool) -> None:
    found = value_of(kind, sent, unit="ng/mL").value["valueQuantity"]
    assert bare(found) == quantity(number, "ng/mL", comparator)
    assert source_text(found) == (sent if changed else None)


@pytest.mark.parametrize(
    ("sent", "comparator"), [("1:160", ""), ("1：160", ""), ("≥1:160", ">="), (">1:320", ">"), ("<1:20", "<")]
)
def test_a_titre_is_a_ratio(sent: str, comparator: str) -> None:
    ratio = value_of("ST", sent).value["valueRatio"]
    assert ratio["numerator"] == quantity("1", comparator=comparator)
    assert ratio["denominator"]["value"] in (20, 160, 320)


@pytest.mark.parametrize(
    "sent",
    [
        "12:30",
        "2024-03-18",
        "10-12 hours",
        "0-0-1-0",
        "1.2.840",
        "见附图及说明文字",
        "黄色",
        "A",
        "1/2",
        "010-88888888",
    ],
)
def test_other_text_stays_text(sent: str) -> None:
    assert value_of("ST", sent).value == {"valueString": sent}


def test_a_bare_integer_in_text_is_a_number_only_when_something_says_so() -> None:
    assert value_of("ST", "15").value == {"valueString": "15"}
    assert value_of("ST", "15", unit="/min").value == {"valueQuantity": quantity("15", "/min")}
    assert value_of("ST", "15", range_text="10-20").value == {"valueQuantity": quantity("15")}
    assert value_of("ST", "15", expected_unit="U/L").value == {"valueQuantity": quantity("15")}
    assert value_of("ST", "1.020").value == {"valueQuantity": quantity("1.020")}


@pytest.mark.parametrize("sent", ["0-1", "0~1", "3.5-5.3", "3.5～5.3"])
def test_a_span_in_text_is_a_range(sent: str) -> None:
    found = value_of("ST", sent, unit="/HPF").value["valueRange"]
    assert found["low"]["value"] < found["high"]["value"]


@pytest.mark.parametrize("sent", ["5.6 mmol/L", "5.6mmol/L", "5.6 MMOL/L"])
def test_a_known_unit_behind_the_number_is_the_unit(sent: str) -> None:
    for unit in ("", "mmol/L"):
        found = value_of("ST", sent, unit=unit).value["valueQuantity"]
        assert (found["value"], found["code"]) == (Decimal("5.6"), "mmol/L")
        assert source_text(found) == sent


@pytest.mark.parametrize("sent", ["5.6 mg/dL", "5.6 x", "5 of 6", "2 个月前", "12 PM"])
def test_another_or_unknown_word_behind_a_number_keeps_it_text(sent: str) -> None:
    assert value_of("ST", sent, unit="mmol/L").value == {"valueString": sent}


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("阴性(-)", "NEG"),
        ("阴性（－）", "NEG"),
        ("阴性", "NEG"),
        ("NEG", "NEG"),
        ("Negative", "NEG"),
        ("(-)", "NEG"),
        ("阳性(+)", "POS"),
        ("阳性（+）", "POS"),
        ("POS", "POS"),
        ("未检出", "ND"),
        ("Reactive", "RR"),
        ("Non-Reactive", "NR"),
    ],
)
def test_a_sure_finding_is_coded_and_keeps_its_words(sent: str, code: str) -> None:
    found = value_of("ST", sent).value["valueCodeableConcept"]
    assert found["text"] == sent
    assert [(c["system"], c["code"]) for c in found["coding"]] == [(systems.INTERPRETATION, code)]


@pytest.mark.parametrize("sent", ["+", "++", "+++", "1+", "±", "+-", "弱阳性", "弱阳性(±)", "-", "可疑"])
def test_a_grade_is_a_concept_without_code(sent: str) -> None:
    assert value_of("ST", sent).value == {"valueCodeableConcept": {"text": sent}}


def test_a_finding_in_a_number_field_is_typed_as_what_it_is() -> None:
    found = value_of("NM", "阴性")
    assert found.value["valueCodeableConcept"]["coding"][0]["code"] == "NEG"
    assert [i.key for i in found.issues] == ["bad-number"]


def test_unescaped_component_separators_in_text_come_back() -> None:
    assert value_of("ST", ("10", "9/L")).value == {"valueString": "10^9/L"}


def test_several_texts_are_lines_of_one_value() -> None:
    assert value_of("TX", "a", "b").value == {"valueString": "a\nb"}


def test_control_characters_do_not_reach_fhir_strings() -> None:
    assert value_of("ST", "a\x00b\x07 c\r\nd").value == {"valueString": "ab c\nd"}


# --- other types ---------------------------------------------------------------------------------------------------------


def test_several_numbers_become_components_and_no_top_value() -> None:
    found = value_of("NM", "1", "2", unit="g")
    assert found.value == {}
    assert [c["valueQuantity"]["value"] for c in found.components] == [1, 2]


def test_dates_and_times() -> None:
    assert value_of("DT", "20240318").value == {"valueDateTime": "2024-03-18"}
    assert value_of("DTM", "202403181104").value == {"valueDateTime": "2024-03-18T11:04:00+08:00"}
    assert value_of("TM", "1104").value == {"valueTime": "11:04:00"}
    assert value_of("DR", ("20240101", "20240202")).value == {
        "valuePeriod": {"start": "2024-01-01", "end": "2024-02-02"}
    }


@pytest.mark.parametrize(
    ("kind", "sent"), [("DT", "20240231"), ("TS", "2024031811040"), ("TM", "2500"), ("DR", "20240231")]
)
def test_an_impossible_date_stays_text_with_an_issue(kind: str, sent: str) -> None:
    found = value_of(kind, sent)
    assert found.value == {"valueString": sent}
    assert [i.key for i in found.issues] == ["bad-date"]


def test_a_two_digit_year_is_said() -> None:
    assert [i.key for i in value_of("TS", "24-03-18").issues] == ["century-assumed"]


def test_coded_values_are_read_by_the_given_reader() -> None:
    assert value_of("CE", ("A", "阳性", "L")).value == {"valueCodeableConcept": {"text": "A^阳性^L"}}
    assert value_of("IS", "A").value == {"valueCodeableConcept": {"text": "A"}}


def test_a_composite_quantity_brings_its_own_unit() -> None:
    assert value_of("CQ", ("5.0", "mg")).value == {"valueQuantity": quantity("5.0", "mg")}


def test_attachments_are_left_to_the_caller() -> None:
    assert value_of("ED", ("", "PDF", "", "Base64", "AAAA")) == Typed({})


def test_an_unknown_unit_keeps_its_text_and_has_no_code() -> None:
    found = typed("NM", (("5",),), Unit("Zoll", None), zone=SHANGHAI, concept=concept)
    assert found.value == {"valueQuantity": {"value": 5, "unit": "Zoll"}}


@settings(deadline=None)
@given(
    st.sampled_from(["NM", "ST", "SN", "TX", "DT", "TM", "CE", "XX", "NR", "CQ", "DR"]),
    st.lists(st.text(max_size=12), max_size=5),
)
def test_any_input_gives_at_most_one_value_and_never_an_empty_one(kind: str, components: list[str]) -> None:
    found = value_of(kind, tuple(components))
    keys = [k for k in found.value if k.startswith("value")]
    assert len(keys) + ("dataAbsentReason" in found.value) == 1
    if keys == ["valueString"]:
        assert found.value["valueString"].strip()
