"""Datatype maps of the guide, one repetition in, one FHIR value out; positions as in the guide's datatype CSVs."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from conformance import systems
from mappings import maps
from mappings.context import Context, Memo
from mappings.grammar import Rule
from mappings.profile import load_profiles
from mappings.registry import DATATYPES
from mappings.source import Component

_PROFILE = load_profiles()["generic"]
assert maps.REGISTERED


def _context() -> Context:
    return Context(_PROFILE, Memo())


def _make(name: str, *components: Component, x: Context | None = None, **rule: Any) -> Any:
    made = DATATYPES[name].make(Rule.model_validate({"row": "PID-3", "to": "x", "as": name, **rule}))
    return made(components, x or _context())


def test_cx_becomes_an_identifier_in_the_system_of_its_authority() -> None:
    found = _make(
        "CX[Identifier]",
        "123",
        "5",
        "M11",
        ("HIS", "2.16.840.1.1", "ISO"),
        "MR",
        "",
        "20200101",
        "20301231",
        kind="patient",
    )
    assert found["value"] == "123"
    assert found["system"] == "urn:oid:2.16.840.1.1"
    assert found["type"]["coding"][0]["code"] == "MR"
    assert found["assigner"] == {"display": "HIS"}
    assert found["period"] == {"start": "2020-01-01", "end": "2030-12-31"}
    assert {e["valueString"] for e in found["extension"]} == {"5", "M11"}


@pytest.mark.parametrize(
    ("authority", "system"),
    [
        ("", "/sid/generic/patient"),
        ("HIS", "/sid/generic/patient/HIS"),
        (("", "1.2.3", "ISO"), "urn:oid:1.2.3"),
        (("", "PATID", ""), "/sid/generic/patient/PATID"),
        (("X", "0E7B1A7C-1111-4222-8333-444455556666", "UUID"), "urn:uuid:0e7b1a7c-1111-4222-8333-444455556666"),
        (("X", "{0E7B1A7C-1111-4222-8333-444455556666}", "GUID"), "urn:uuid:0e7b1a7c-1111-4222-8333-444455556666"),
        (("", "unicode utf-8.16.1", "UUID"), "/sid/generic/patient/unicode%20utf-8.16.1"),
    ],
)
def test_identifier_system_comes_from_the_authority_and_is_never_shared_between_facilities(
    authority: Component, system: str
) -> None:
    assert _make("CX[Identifier]", "1", "", "", authority, kind="patient")["system"].endswith(system)


def test_a_resident_id_number_has_its_national_system() -> None:
    assert (
        _make("CX[Identifier]", "11010519491231002X", "", "", "", "NI", kind="patient")["system"] == systems.RESIDENT_ID
    )


def test_an_identifier_without_a_number_is_no_identifier() -> None:
    assert _make("CX[Identifier]", "", "", "", "", "51", kind="patient") is None
    assert _make("CX[Identifier]", '""', kind="patient") is None


@pytest.mark.parametrize(
    ("components", "expected"),
    [
        (("张", "三"), {"text": "张三", "family": "张", "given": ["三"]}),
        (("张三",), {"text": "张三"}),
        (("欧阳娜娜",), {"text": "欧阳娜娜"}),
        (("张三", "男"), {"text": "张三"}),
        (
            ("Doe", "John", "Q", "Jr", "Dr", "MD"),
            {"text": "Dr John Q Doe Jr MD", "family": "Doe", "given": ["John", "Q"]},
        ),
        (("DOE",), {"text": "DOE", "family": "DOE"}),
        (("阿不都热合曼·买买提",), {"text": "阿不都热合曼·买买提"}),
    ],
)
def test_xpn_becomes_a_name_whose_text_is_the_truth(components: tuple[str, ...], expected: dict[str, Any]) -> None:
    found = _make("XPN[HumanName]", *components)
    assert {key: found.get(key) for key in expected} == expected
    if "family" not in expected:
        assert "family" not in found


@pytest.mark.parametrize(("code", "value"), [("I", "IDE"), ("A", "ABC"), ("P", "SYL")])
def test_xpn_8_tells_ideographs_letters_and_sounds_apart(code: str, value: str) -> None:
    assert _make("XPN[HumanName]", "Zhang", "San", "", "", "", "", "L", code)["extension"][0]["valueCode"] == value


def test_own_parts_of_a_family_name_are_kept_beside_it() -> None:
    found = _make("XPN[HumanName]", ("van Dam", "van", "Dam"), "Jo")
    assert found["family"] == "van Dam"
    assert [e["valueString"] for e in found["_family"]["extension"]] == ["van", "Dam"]


def test_xad_becomes_an_address() -> None:
    found = _make(
        "XAD[Address]", ("1 Street", "Street", "1"), "Flat 2", "City", "State", "100", "CN", "H", "", "County", "77"
    )
    assert found["line"] == ["1 Street", "Street", "1", "Flat 2"]
    assert (found["city"], found["district"], found["state"], found["postalCode"], found["country"]) == (
        "City",
        "County",
        "State",
        "100",
        "CN",
    )
    assert found["use"] == "home"
    assert found["extension"][0]["valueString"] == "77"


@pytest.mark.parametrize(
    ("components", "value", "system", "use"),
    [
        (("5551234",), "5551234", "phone", None),
        (("", "PRN", "PH", "", "86", "010", "5551234", "9"), "+86 010 5551234 X9", "phone", "home"),
        (("", "PRN", "CP", "", "", "", "13800000000"), "13800000000", "phone", "mobile"),
        (("", "NET", "Internet", "a@example.test"), "a@example.test", "email", None),
        (("", "WPN", "FX", "", "", "", "", "", "", "", "", "5550000"), "5550000", "fax", "work"),
    ],
)
def test_xtn_becomes_a_contact_point(components: tuple[str, ...], value: str, system: str, use: str | None) -> None:
    found = _make("XTN[ContactPoint]", *components)
    assert (found["value"], found["system"], found.get("use")) == (value, system, use)


def test_xcn_with_a_number_becomes_a_practitioner_and_without_one_a_name() -> None:
    x = _context()
    found = _make("XCN[Practitioner]", "D1", "王", "敏", "", "", "", "MD", "", "HIS", "L", "", "", "LN", x=x)
    assert found["display"] == "王敏"
    made = x.directory[found["reference"].partition("/")[2]].resource
    assert made["identifier"][0]["value"] == "D1"
    assert made["qualification"][0]["code"]["coding"][0]["code"] == "MD"
    assert _make("XCN[Practitioner]", "", "王", "敏", x=x) == {"type": "Practitioner", "display": "王敏"}
    assert _make("XCN[Practitioner]", "王敏", x=x) == {"type": "Practitioner", "display": "王敏"}
    assert len(x.directory) == 1


def test_the_same_practitioner_has_the_same_id_with_and_without_a_name() -> None:
    assert _make("XCN[Practitioner]", "D1", "王")["reference"] == _make("XCN[Practitioner]", "D1")["reference"]


def test_pl_becomes_nested_locations_and_a_reference_to_the_innermost() -> None:
    x = _context()
    found = _make("PL[Location]", "内一科", "203", "05", "CXYY", x=x)
    chain = []
    reference = found["reference"]
    while reference:
        place = x.directory[reference.partition("/")[2]].resource
        chain.append((place["name"], place["physicalType"]["coding"][0]["code"]))
        reference = place.get("partOf", {}).get("reference", "")
    assert chain == [("05", "bd"), ("203", "ro"), ("内一科", "area"), ("CXYY", "si")]


def test_cwe_keeps_every_coding_with_its_system_and_the_original_text() -> None:
    found = _make("CWE[CodeableConcept]", "73211009", "Diabetes", "SCT", "E11", "Type 2", "I10", "2024", "", "糖尿病")
    assert [(c["system"], c["code"]) for c in found["coding"]] == [
        ("http://snomed.info/sct", "73211009"),
        ("http://hl7.org/fhir/sid/icd-10", "E11"),
    ]
    assert found["coding"][0]["version"] == "2024"
    assert found["text"] == "糖尿病"


def test_a_table_gives_the_fhir_code_and_keeps_a_differing_code_as_sent() -> None:
    found = _make("CWE[CodeableConcept]", "A", "Separated", "HL70002", table="MaritalStatus")
    assert [c["code"] for c in found["coding"]] == ["L", "A"]
    assert found["coding"][0]["system"].endswith("v3-MaritalStatus")


def test_a_code_labelled_loinc_that_is_none_stays_local_and_is_told() -> None:
    x = _context()
    found = _make("CWE[CodeableConcept]", "1037", "检查所见", "LN", x=x)
    assert found["coding"][0]["system"] == systems.local_codes("generic", "codes")
    assert [i.key for i in x.conversion.issues] == ["not-loinc"]


def test_free_text_in_the_code_position_is_text_and_not_a_code() -> None:
    assert _make("CWE[CodeableConcept]", "胸痛待查", kind="reasons") == {"text": "胸痛待查"}
    assert _make("CWE[CodeableConcept]", "01", kind="dispositions")["coding"][0]["code"] == "01"


def test_a_code_the_table_does_not_know_is_left_out_and_told() -> None:
    x = _context()
    assert _make("CWE[code]", "Q", table="AdministrativeSex", x=x) is None
    assert [i.key for i in x.conversion.issues] == ["code-not-in-table"]


@pytest.mark.parametrize(
    ("sent", "gender"),
    [
        ("M", "male"),
        ("F", "female"),
        ("1", "male"),
        ("2", "female"),
        ("0", "unknown"),
        ("9", "unknown"),
        ("A", "other"),
        ("N", "other"),
        ("男", "male"),
        ("f", "female"),
    ],
)
def test_sex_follows_table_0001_and_gb_t_2261(sent: str, gender: str) -> None:
    assert _make("CWE[code]", sent, table="AdministrativeSex") == gender


@pytest.mark.parametrize(
    ("written", "fhir"),
    [
        ("1970", "1970"),
        ("197002", "1970-02"),
        ("19700201", "1970-02-01"),
        ("20240318110400+0900", "2024-03-18T11:04:00+09:00"),
    ],
)
def test_dates_keep_their_precision_and_zone(written: str, fhir: str) -> None:
    assert _make("DTM[dateTime]", written) == fhir


def test_an_impossible_date_is_left_out_and_names_the_field() -> None:
    x = _context()
    assert _make("DTM[dateTime]", "20240230", x=x) is None
    assert [(i.key, i.severity) for i in x.conversion.issues] == [("bad-date", "warning")]


def test_a_date_alone_is_no_instant() -> None:
    x = _context()
    assert _make("DTM[instant]", "20240318", x=x) is None
    assert [i.key for i in x.conversion.issues] == ["date-without-time"]


def test_cq_keeps_the_digits_and_codes_a_known_unit() -> None:
    found = _make("CQ[Quantity]", "5.0", "mL")
    assert (found["value"], str(found["value"]), found["unit"], found["code"]) == (Decimal("5.0"), "5.0", "mL", "mL")
    assert _make("CQ[Quantity]", "five") is None


def test_a_period_that_ends_before_it_starts_loses_its_end() -> None:
    x = _context()
    assert _make("DR[Period]", "20240302", "20240301", x=x) == {"start": "2024-03-02"}
    assert [i.key for i in x.conversion.issues] == ["end-before-start"]
