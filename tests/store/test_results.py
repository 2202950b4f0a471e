"""fhir_server.store.results: the flat row says what the Observation says, and nothing more."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from conformance import systems
from conformance.fhirjson import loads
from fhir_server.store import repository
from fhir_server.store.body import Codec
from fhir_server.store.results import flatten
from fhir_server.store.stated import Stated
from tests.store import county

_FULL = loads("""{
  "resourceType": "Observation", "id": "o", "status": "final",
  "extension": [{"url": "http://tongjian.org/fhir/StructureDefinition/recognition-mark", "valueString": "HR"}],
  "basedOn": [{"reference": "CarePlan/x"}, {"reference": "ServiceRequest/order"}],
  "code": {"coding": [
    {"system": "http://loinc.org", "code": "14749-6", "display": "Glucose"},
    {"system": "http://tongjian.org/fhir/CodeSystem/items", "code": "L0050"},
    {"system": "http://tongjian.org/fhir/CodeSystem/county-tests", "code": "GLU", "display": "葡萄糖"}], "text": "葡萄糖HR"},
  "effectiveDateTime": "2026-03-01T09:30:00+08:00", "issued": "2026-03-01T11:00:00.5+08:00",
  "performer": [{"reference": "Practitioner/p", "display": "检验师"},
    {"identifier": {"system": "http://tongjian.org/fhir/sid/facility", "value": "lab"}, "display": "中心实验室"}],
  "valueQuantity": {"value": 0.010, "comparator": "<", "unit": "mmol/l", "system": "http://unitsofmeasure.org",
    "code": "mmol/L"},
  "interpretation": [{"coding": [{"system": "http://local", "code": "x"}]},
    {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation", "code": "L"}]}],
  "referenceRange": [{"low": {"value": 3.9}, "high": {"value": 6.1}, "text": "3.9-6.1"}]
}""")


def test_takes_every_stated_part_of_a_quantity() -> None:
    specimen = loads('{"type": {"text": "血清"}, "condition": [{"coding": [{"code": "HEM"}]}]}')
    row = flatten(_FULL, facility="county", specimen=specimen)
    assert row._asdict() == {
        "performer": "lab",
        "item": "L0050",
        "loinc": "14749-6",
        "code": "GLU",
        "name": "葡萄糖HR",
        "specimen": "serum",
        "number": Decimal("0.010"),
        "comparator": "<",
        "value_text": None,
        "unit": "mmol/L",
        "unit_text": "mmol/l",
        "flag": "L",
        "range_text": "3.9-6.1",
        "order": "order",
        "status": "final",
        "effective": datetime(2026, 3, 1, 1, 30, tzinfo=UTC),
        "issued": datetime(2026, 3, 1, 3, 0, 0, 500000, tzinfo=UTC),
        "mark": "HR",
        "quality": "HEM",
        "stated": Stated(),
    }
    assert str(row.number) == "0.010"


def test_invents_nothing_for_an_observation_that_says_nothing() -> None:
    row = flatten({"resourceType": "Observation"}, facility="county")
    assert row.status == "unknown"
    assert row.code == ""
    assert {v for k, v in row._asdict().items() if k not in ("status", "code", "stated")} == {None}


@pytest.mark.parametrize(
    ("value", "number", "text", "unit"),
    [
        ('"valueString": "阴性"', None, "阴性", None),
        ('"valueCodeableConcept": {"coding": [{"code": "260385009", "display": "Negative"}]}', None, "Negative", None),
        ('"valueCodeableConcept": {"text": "弱阳性 (+-)"}', None, "弱阳性 (+-)", None),
        ('"valueInteger": 3', Decimal(3), None, None),
        ('"valueBoolean": false', None, "false", None),
        ('"valueDateTime": "2026-03-01"', None, "2026-03-01", None),
        (
            '"valueRange": {"low": {"value": 1.50, "system": "http://unitsofmeasure.org", "code": "g/L"}, "high": {"value": 2}}',
            None,
            "1.50-2",
            "g/L",
        ),
        ('"valueRatio": {"numerator": {"value": 1}, "denominator": {"value": 80}}', None, "1:80", None),
        (
            '"valueRatio": {"numerator": {"value": 1, "comparator": "<"}, "denominator": {"value": 20}}',
            None,
            "<1:20",
            None,
        ),
        ('"valueQuantity": {"value": 5, "unit": "odd"}', Decimal(5), None, None),
        ('"valueQuantity": {"value": 1e400}', None, "1E+400", None),
        ('"dataAbsentReason": {"text": "x"}', None, None, None),
        ('"valueSampledData": {"origin": {"value": 0}}', None, None, None),
    ],
)
def test_reads_each_type_of_value(value: str, number: Decimal | None, text: str | None, unit: str | None) -> None:
    row = flatten(loads('{"resourceType": "Observation", ' + value + "}"), facility="county")
    assert (row.number, row.value_text, row.unit) == (number, text, unit)


def test_takes_times_and_order_from_specimen_and_report_where_the_observation_has_none() -> None:
    report = loads(
        '{"effectiveDateTime": "2026-03-01T08:00:00Z", "issued": "2026-03-01T12:00:00Z",'
        ' "basedOn": [{"reference": "ServiceRequest/r"}]}'
    )
    row = flatten({}, facility="f", report=report)
    assert (row.effective, row.issued, row.order) == (
        datetime(2026, 3, 1, 8, tzinfo=UTC),
        datetime(2026, 3, 1, 12, tzinfo=UTC),
        "r",
    )
    taken = loads('{"collection": {"collectedDateTime": "2026-03-01T07:00:00Z"}}')
    assert flatten({}, facility="f", report=report, specimen=taken).effective == datetime(2026, 3, 1, 7, tzinfo=UTC)


def test_keeps_a_day_as_its_first_moment_in_china() -> None:
    assert flatten({"effectiveDateTime": "2026-03-01"}, facility="f").effective == datetime(2026, 2, 28, 16, tzinfo=UTC)


def test_venous_blood_does_not_say_what_was_measured() -> None:
    for concept in ({"text": "静脉血"}, {"coding": [{"system": systems.V2 + "0487", "code": "BLDV"}]}):
        # Serum, plasma or whole blood: not told.
        assert flatten({}, facility="f", specimen={"type": concept}).specimen == "blood"


def test_a_performer_without_facility_is_kept_by_name() -> None:
    performer = [{"reference": "Practitioner/1", "display": "李"}, {"display": "某检验所"}]
    assert flatten({"performer": performer}, facility="f").performer == "某检验所"
    assert flatten({"performer": performer[:1]}, facility="f").performer is None


def test_a_correction_without_its_specimen_finds_the_stored_one(conn: psycopg.Connection[Any], codec: Codec) -> None:
    repository.apply(conn, codec, [(county.origin(1), county.report("1", "R1", {"GLU": "6.3"}, at=0))])
    bare = [
        e
        for e in county.report("1", "R1", {"GLU": "6.4"}, at=2, status="corrected")
        if e.resource["resourceType"] == "Observation"
    ]
    repository.apply(conn, codec, [(county.origin(2, minute=1), bare)])
    rows = conn.execute('SELECT specimen, effective, report, "order" IS NULL FROM result ORDER BY version').fetchall()
    assert [row[0] for row in rows] == ["serum", "serum"]
    assert rows[0][1:3] == rows[1][1:3] == (datetime(2026, 3, 1, 1, 30, tzinfo=UTC), county.report_id("1", "R1"))


@pytest.mark.parametrize(
    ("note", "quality"),
    [
        ("标本溶血,结果仅供参考", "溶血"),
        ("Specimen moderately hemolyzed.", "hemolyz"),
        ("标本无溶血、无脂血", None),
        ("未见凝块;重度脂血", "脂血"),
        ("not hemolyzed", None),
        ("已复查", None),
    ],
)
def test_a_comment_that_says_the_specimen_was_spoilt_is_its_quality(note: str, quality: str | None) -> None:
    assert flatten(_FULL | {"note": [{"text": note}]}, facility="county").quality == quality


def test_a_comment_of_a_spoilt_specimen_outweighs_that_it_was_fit_when_it_came() -> None:
    specimen = {"condition": [{"text": "合格"}]}
    assert flatten(_FULL | {"note": [{"text": "溶血"}]}, facility="county", specimen=specimen).quality == "溶血"
    assert flatten(_FULL, facility="county", specimen=specimen).quality == "合格"
