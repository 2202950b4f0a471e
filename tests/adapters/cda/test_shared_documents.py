"""WS/T 500 reports as vendors write them: in which order items, values and units stand, and what has no coded entries.

The documents are made here by the layout of C0007 and C0006; nothing in them is of a person.
"""

from __future__ import annotations

import base64
from typing import Any

import pytest

from adapters.convert import convert, recognise
from mappings.model import Conversion
from mappings.profile import load_profiles


def entry(code: str, value: str, inner: str = "", name: str = "") -> str:
    return (
        f'<entry><observation><code code="{code}.00" displayName="{name}" codeSystem="2.16.156.10011.2.2.1"/>{value}{inner}'
        "</observation></entry>"
    )


def told(text: str) -> str:
    return f'<value xsi:type="ST">{text}</value>'


def item(name: str) -> str:
    return entry("DE04.30.019", told(name))


def value(number: str) -> str:
    return entry("DE04.30.015", f'<value xsi:type="REAL" value="{number}"/>')


def unit(text: str) -> str:
    return entry("DE04.30.016", told(text))


def document(body: str, code: str = "C0007", text: str = "<text/>", more: str = "") -> bytes:
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ClinicalDocument xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<id root="2.16.156.10011.1.1" extension="D1"/>
<code code="{code}" codeSystem="2.16.156.10011.2.4"/><title>报告</title><effectiveTime value="20260302103000"/>
<recordTarget><patientRole><id root="2.16.156.10011.1.33" extension="JY1"/>
<id root="2.16.156.10011.1.13" extension="R1"/>
<patient><name>某某</name></patient></patientRole></recordTarget>{more}
<author><time value="20260302102500"/></author>
<legalAuthenticator><assignedEntity><id extension="D012"/></assignedEntity></legalAuthenticator>
<component><structuredBody><component><section><code code="30954-2"/>{text}{body}</section></component></structuredBody></component>
</ClinicalDocument>""".encode()


def converted(raw: bytes) -> Conversion:
    return convert(raw, load_profiles()["generic"], recognise(raw))


def of_kind(found: Conversion, kind: str) -> list[dict[str, Any]]:
    return [e.resource for e in found.entries if e.resource["resourceType"] == kind]


def quantities(found: Conversion) -> dict[str, tuple[str, str]]:
    return {
        o["code"]["text"]: (str(o["valueQuantity"]["value"]), o["valueQuantity"].get("unit", ""))
        for o in of_kind(found, "Observation")
        if "valueQuantity" in o
    }


ITEMS, VALUES, UNITS = (
    "".join(map(item, "ABC")),
    "".join(map(value, "123")),
    "".join(map(unit, ("g/L", "mmol/L", "U/L"))),
)


@pytest.mark.parametrize(
    "body",
    [
        "".join(
            item(n) + value(v) + unit(u) for n, v, u in (("A", "1", "g/L"), ("B", "2", "mmol/L"), ("C", "3", "U/L"))
        ),
        "".join(
            item(n) + unit(u) + value(v) for n, v, u in (("A", "1", "g/L"), ("B", "2", "mmol/L"), ("C", "3", "U/L"))
        ),
        ITEMS + "".join(value(v) + unit(u) for v, u in (("1", "g/L"), ("2", "mmol/L"), ("3", "U/L"))),
        ITEMS + VALUES + UNITS,
    ],
)
def test_a_unit_beside_its_value_is_the_unit_of_that_value_in_every_order(body: str) -> None:
    found = converted(document(body))
    assert found.held is None
    assert quantities(found) == {"A": ("1", "g/L"), "B": ("2", "mmol/L"), "C": ("3", "U/L")}


def test_an_item_without_a_unit_gets_none_of_its_neighbours() -> None:
    assert quantities(converted(document(item("A") + value("1") + item("B") + unit("g/L") + value("2")))) == {
        "A": ("1", ""),
        "B": ("2", "g/L"),
    }
    assert quantities(converted(document(item("A") + value("1") + unit("g/L") + item("B") + value("2")))) == {
        "A": ("1", "g/L"),
        "B": ("2", ""),
    }


@pytest.mark.parametrize(
    "body", [ITEMS + VALUES + unit("g/L") + unit("U/L"), item("A") + value("1") + unit("g/L") + unit("U/L")]
)
def test_units_that_belong_to_no_value_hold_the_document(body: str) -> None:
    held = converted(document(body)).held
    assert held is not None
    assert held.key == "positional-link"


def test_a_report_that_names_two_patients_is_held() -> None:
    other = '<recordTarget><patientRole><id root="2.16.156.10011.1.13" extension="R2"/></patientRole></recordTarget>'
    held = converted(document(item("A") + value("1"), more=other)).held
    assert held is not None
    assert (held.key, held.where) == ("two-patients", "recordTarget[2]-3")


def test_findings_without_a_name_are_no_conclusion() -> None:
    found = converted(
        document(entry("DE04.50.131", told("双肺纹理清晰")) + entry("DE04.50.131", told("脂肪肝")), "C0006")
    )
    (report,) = of_kind(found, "DiagnosticReport")
    assert "conclusion" not in report
    assert [o["valueString"] for o in of_kind(found, "Observation")] == ["双肺纹理清晰", "脂肪肝"]


@pytest.mark.parametrize("kind", ["20", "34", "8"])
@pytest.mark.parametrize("code", ["C0004", "C0026"])
def test_the_number_of_a_prescription_or_consent_is_not_the_patients(kind: str, code: str) -> None:
    own = '<id root="2.16.156.10011.1.33" extension="JY1"/>'
    raw = document("", code).decode().replace('.1.13" extension="R1"', '.1.11" extension="MZ3"')
    found = converted(raw.replace(own, f'<id root="2.16.156.10011.1.{kind}" extension="X7"/>').encode())
    (patient,) = of_kind(found, "Patient")
    assert [i["value"] for i in patient["identifier"]] == ["MZ3"]
    # The key of a patient is none of the paper's numbers either.
    other = converted(raw.replace(own, f'<id root="2.16.156.10011.1.{kind}" extension="X8"/>').encode())
    assert of_kind(other, "Patient")[0]["id"] == patient["id"]
    assert (kind != "8") == any(u.value == "X7" for u in found.unread)


CHEST, BELLY = (
    [entry("DE04.50.131", told(f"{part}所见")), entry("DE04.50.132", told(f"{part}提示"))] for part in ("胸部", "腹部")
)
PARTS = ["胸部CT平扫", "腹部CT平扫"]


def section(*inner: str) -> str:
    return f"</section></component><component><section><code displayName='检查报告'/><text/>{''.join(inner)}"


@pytest.mark.parametrize(
    ("body", "own"),
    [
        (item(PARTS[0]) + "".join(CHEST) + item(PARTS[1]) + "".join(BELLY), True),
        (item(PARTS[0]) + "".join(CHEST) + section(*BELLY, item(PARTS[1])), True),
        (section(*CHEST, item(PARTS[0])) + section(*BELLY, item(PARTS[1])), True),
        # What stands behind both items, or behind one of them alone, may be about both.
        (item(PARTS[0]) + item(PARTS[1]) + section(*CHEST, *BELLY), False),
        (item(PARTS[0]) + "".join(CHEST) + "".join(BELLY) + item(PARTS[1]), False),
        (item(PARTS[0]) + CHEST[0] + item(PARTS[1]) + BELLY[0] + CHEST[1] + BELLY[1], False),
    ],
)
def test_findings_are_of_their_own_examination_where_the_layout_tells_it(body: str, own: bool) -> None:
    found = converted(document(body, "C0006"))
    said = {r["code"]["text"]: r["conclusion"] for r in of_kind(found, "DiagnosticReport")}
    assert list(said) == PARTS
    for part, conclusion in zip(("胸部", "腹部"), said.values(), strict=True):
        assert conclusion == f"{part}提示" if own else {"胸部提示", "腹部提示"} == set(conclusion.split("\n"))
    assert len(of_kind(found, "Observation")) == (4 if own else 8)


def test_a_report_in_narrative_alone_is_a_document_with_its_text_and_no_empty_report() -> None:
    found = converted(document("", "C0006", "<text>主观提示：未见异常</text>"))
    assert of_kind(found, "DiagnosticReport") == []
    texts = [
        base64.b64decode(b["data"]).decode()
        for b in of_kind(found, "Binary")
        if b["contentType"].startswith("text/plain")
    ]
    assert texts == ["主观提示：未见异常"]


def test_a_ratio_of_quantities_keeps_both_units_and_a_titre_is_a_ratio() -> None:
    ratio = '<value xsi:type="RTO_PQ_PQ"><numerator value="1" unit="mg"/><denominator value="8" unit="mL"/></value>'
    titre = '<value xsi:type="RTO"><numerator value="1"/><denominator value="160"/></value>'
    found = converted(document(item("A") + entry("DE04.30.015", ratio) + item("B") + entry("DE04.30.015", titre)))
    one, two = of_kind(found, "Observation")
    assert one["valueString"] == "1 mg / 8 mL"
    assert str(two["valueRatio"]["denominator"]["value"]) == "160"


def test_lines_and_cells_of_a_narrative_do_not_run_into_one_another() -> None:
    raw = document(
        "",
        "18748-4",
        "<title>Findings</title><text>Lungs clear.<br/>Node<table><tr><td>3</td><td>5 mm</td></tr></table></text>",
    )
    (found,) = of_kind(converted(raw.replace(b"2.16.156.10011.2.4", b"2.16.840.1.113883.6.1")), "Observation")
    assert found["valueString"].split() == ["Lungs", "clear.", "Node", "3", "5", "mm"]
