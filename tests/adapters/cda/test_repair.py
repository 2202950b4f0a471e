"""Faults of real CDA senders: one fixture each; what is repaired is said, what is not sure is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.convert import convert, recognise
from mappings.model import Conversion
from mappings.profile import load_profiles

GOLDEN = Path(__file__).parents[2] / "mappings" / "golden" / "cda-c0007-blood-count.xml"
REPORT = GOLDEN.read_text("utf-8")
VALUE = '<value xsi:type="REAL" value="6.30"/>'

FAULTS = {
    "repair-namespace": ("urn:hl7-org:v3", "urn:h17-org:v3"),
    "repair-xsi": ("XMLSchema-instance", "XMLSchema-nstance"),
    "repair-element-name": ("<title>检验报告</title>", "<Title>检验报告</Title>"),
    "repair-oid-letter": ("2.16.156.10011.1.33", "2.16.156.1001l.1.33"),
    "repair-oid-root": ('root="2.16.156.10011.1.5"', 'root="16.156.10011.1.5"'),
    "repair-prefix": (' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"', ""),
    "repair-ampersand": ("云溪县人民医院</name>", "云溪县人民医院&分院</name>"),
    "repair-control-character": ("标本轻度溶血", "标本\x0b轻度溶血"),
}


def converted(text: str) -> Conversion:
    raw = text.encode()
    return convert(raw, load_profiles()["county-hospital"], recognise(raw))


def observation(found: Conversion, text: str) -> dict[str, Any]:
    """The Observation with that code text."""
    kept = [e.resource for e in found.entries if e.resource["resourceType"] == "Observation"]
    return next(o for o in kept if o["code"].get("text") == text)


@pytest.mark.parametrize("key", FAULTS)
def test_a_fault_with_one_meaning_is_repaired_and_reported(key: str) -> None:
    right, wrong = FAULTS[key]
    assert right in REPORT
    found = converted(REPORT.replace(right, wrong))
    assert [i.key for i in found.issues if i.key.startswith("repair-")] == [key]
    assert found.held is None
    assert str(observation(found, "WBC")["valueQuantity"]["value"]) == "6.30"
    report = next(e.resource for e in found.entries if e.resource["resourceType"] == "DiagnosticReport")
    assert [i["value"] for i in report["identifier"]] == ["SQ778", "JY0302001"]


def test_a_clean_document_has_no_repair() -> None:
    assert [i.key for i in converted(REPORT).issues if i.key.startswith("repair-")] == []


def test_a_bare_less_than_sign_in_a_value_is_the_comparator_it_looks_like() -> None:
    found = converted(REPORT.replace(VALUE, '<value xsi:type="ST"><0.01</value>'))
    assert "repair-less-than" in {i.key for i in found.issues}
    quantity = observation(found, "WBC")["valueQuantity"]
    assert (quantity["comparator"], str(quantity["value"])) == ("<", "0.01")


def test_a_name_in_the_place_of_a_code_is_read_as_the_name() -> None:
    entry = (
        '<entry><observation classCode="OBS" moodCode="EVN"><code code="血小板计数"/>'
        '<value xsi:type="PQ" value="212" unit="10^9/L"/></observation></entry>'
    )
    found = converted(REPORT.replace("<entry>", entry + "<entry>", 1))
    assert "repair-name-in-code" in {i.key for i in found.issues}
    platelets = observation(found, "血小板计数")
    assert str(platelets["valueQuantity"]["value"]) == "212"


def test_a_name_in_the_place_of_the_code_of_an_item_of_wst_500_is_said_too() -> None:
    item = '<value xsi:type="ST">WBC</value>'
    assert item in REPORT
    found = converted(REPORT.replace(item, '<value xsi:type="CD" code="白细胞计数"/>'))
    assert [i.key for i in found.issues if i.key.startswith("repair-")] == ["repair-name-in-code"]
    assert "coding" not in observation(found, "白细胞计数")["code"]


def test_no_reference_range_is_made_up() -> None:
    assert all("referenceRange" not in e.resource for e in converted(REPORT).entries)


def test_values_after_all_items_belong_to_them_in_order() -> None:
    """Item, item, value, value: the n-th value is of the n-th item."""
    opened = '    <entry><observation classCode="OBS" moodCode="EVN">\n      <code code="{}.00"'
    start = REPORT.index(opened.format("DE04.30.017"))
    end = REPORT.index(opened.format("DE04.30.019"), REPORT.index("DE04.30.016.00"))
    first = REPORT[start:end]
    second_item_end = REPORT.index("</observation></entry>", end) + len("</observation></entry>\n")
    moved = REPORT[:start] + REPORT[end:second_item_end] + first + REPORT[second_item_end:]
    found = converted(moved)
    assert found.held is None
    assert str(observation(found, "WBC")["valueQuantity"]["value"]) == "6.30"
    assert str(observation(found, "血红蛋白")["valueQuantity"]["value"]) == "92"


def test_a_value_that_could_be_of_two_items_holds_the_document() -> None:
    extra = REPORT.index('    <entry><observation classCode="OBS" moodCode="EVN">\n      <code code="DE04.30.015.00"')
    again = REPORT[
        extra : REPORT.index("</observation></entry>", REPORT.index("10^9/L")) + len("</observation></entry>\n")
    ]
    held = converted(REPORT[:extra] + again + REPORT[extra:]).held
    assert held is not None
    assert held.key == "positional-link"
    assert held.where.startswith("section[2]/entry[")


def test_without_a_signature_the_report_is_not_called_final() -> None:
    start, end = (
        REPORT.index("<legalAuthenticator>"),
        REPORT.index("</legalAuthenticator>") + len("</legalAuthenticator>"),
    )
    found = converted(REPORT[:start] + REPORT[end:])
    assert {
        e.resource["status"] for e in found.entries if e.resource["resourceType"] in ("Observation", "DiagnosticReport")
    } == {"unknown"}


def test_a_replacement_with_the_same_report_number_corrects_the_same_resources() -> None:
    parent = '<parentDocument><id root="2.16.156.10011.1.1" extension="DOC-2026-0001"/></parentDocument>'
    relation = f'<relatedDocument typeCode="RPLC">{parent}</relatedDocument>'
    second = REPORT.replace("DOC-2026-0001", "DOC-2026-0002").replace("20260302103000", "20260302120000")
    second = second.replace('value="6.30"', 'value="6.80"').replace(
        "  <component><structuredBody>", relation + "  <component><structuredBody>"
    )
    before, after = converted(REPORT), converted(second)
    one, two = (observation(c, "WBC") for c in (before, after))
    assert one["id"] == two["id"]
    assert (one["status"], two["status"]) == ("final", "corrected")
    newest = max(
        (e for c in (before, after) for e in c.entries if e.resource["id"] == one["id"]), key=lambda e: e.recency
    )
    assert str(newest.resource["valueQuantity"]["value"]) == "6.80"
    document = next(e.resource for e in after.entries if e.resource["resourceType"] == "DocumentReference")
    assert document["relatesTo"][0]["code"] == "replaces"
    assert document["relatesTo"][0]["target"]["identifier"]["value"] == "DOC-2026-0001"


def test_a_part_of_a_document_is_held_with_the_reason() -> None:
    from adapters.contract import Unreadable

    with pytest.raises(Unreadable) as fault:
        converted("<section xmlns='urn:hl7-org:v3'><title>Results</title></section>")
    assert fault.value.issue.key == "not-a-document"
