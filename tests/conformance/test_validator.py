"""The validator says what is wrong, and where; official examples pass (tests/data/SOURCES.md)."""

from __future__ import annotations

import copy
import json
import random
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from conformance import fhirjson, validator
from conformance.fhirjson import JsonNumber
from tests.seeds import seed_of

EXAMPLES = sorted((Path(__file__).parents[1] / "data" / "fhir-r4").glob("*.json"))

PATIENT: dict[str, Any] = {"resourceType": "Patient", "id": "p1", "gender": "female", "birthDate": "1980-02-29"}
OBSERVATION: dict[str, Any] = {
    "resourceType": "Observation",
    "id": "o1",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]},
    "subject": {"reference": "Patient/p1"},
    "effectiveDateTime": "2026-03-01T08:30:00+08:00",
    "valueQuantity": {
        "value": JsonNumber("6.30"),
        "unit": "umol/L",
        "system": "http://unitsofmeasure.org",
        "code": "umol/L",
    },
    "referenceRange": [
        {"low": {"value": JsonNumber("4.1"), "unit": "umol/L"}, "high": {"value": 11, "unit": "umol/L"}}
    ],
}
REPORT: dict[str, Any] = {
    "resourceType": "DiagnosticReport",
    "status": "final",
    "code": {"text": "血常规"},
    "result": [{"reference": "Observation/o1"}],
}
REQUEST: dict[str, Any] = {
    "resourceType": "ServiceRequest",
    "status": "active",
    "intent": "order",
    "subject": {"reference": "Patient/p1"},
}
SPECIMEN: dict[str, Any] = {"resourceType": "Specimen", "subject": {"reference": "Patient/p1"}}
ENCOUNTER: dict[str, Any] = {
    "resourceType": "Encounter",
    "status": "finished",
    "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
}
ORGANIZATION: dict[str, Any] = {"resourceType": "Organization", "name": "县人民医院"}
CONDITION: dict[str, Any] = {"resourceType": "Condition", "subject": {"reference": "Patient/p1"}}
BUNDLE: dict[str, Any] = {
    "resourceType": "Bundle",
    "type": "transaction",
    "entry": [{"fullUrl": "urn:oid:1.2", "resource": PATIENT, "request": {"method": "PUT", "url": "Patient/p1"}}],
}
LIST: dict[str, Any] = {"resourceType": "List", "status": "current", "mode": "working"}
CONSENT_CODE = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}]}
CONSENT: dict[str, Any] = {
    "resourceType": "Consent",
    "status": "active",
    "scope": CONSENT_CODE,
    "category": [CONSENT_CODE],
    "policyRule": {"text": "opt in"},
}
SOUND = [
    PATIENT, OBSERVATION, REPORT, REQUEST, SPECIMEN, ENCOUNTER, ORGANIZATION, CONDITION, BUNDLE, LIST, CONSENT,
]  # fmt: skip

DROP = object()

# (sound resource, path to change, new value or DROP, key, where)
WRONG: list[tuple[dict[str, Any], tuple[str | int, ...], Any, str, str]] = [
    (OBSERVATION, ("status",), DROP, "missing-element", "Observation.status"),
    (OBSERVATION, ("status",), "done", "bad-code", "Observation.status"),
    (OBSERVATION, ("status",), "", "bad-code", "Observation.status"),
    (OBSERVATION, ("status",), ["final"], "bad-code", "Observation.status"),
    (OBSERVATION, ("code",), DROP, "missing-element", "Observation.code"),
    (OBSERVATION, ("code",), {}, "empty", "Observation.code"),
    (OBSERVATION, ("code",), [], "wrong-type", "Observation.code"),
    (OBSERVATION, ("code", "coding"), [], "empty", "Observation.code.coding"),
    (OBSERVATION, ("code", "coding", 0, "code"), " 2160-0", "bad-format", "Observation.code.coding[0].code"),
    (
        OBSERVATION,
        ("code", "coding", 0, "system"),
        "http://loinc.org x",
        "bad-format",
        "Observation.code.coding[0].system",
    ),
    (OBSERVATION, ("code", "coding", 0, "colour"), "red", "unknown-element", "Observation.code.coding[0].colour"),
    (OBSERVATION, ("valueQuantity", "value"), "6.30", "wrong-type", "Observation.valueQuantity.value"),
    (OBSERVATION, ("valueQuantity", "value"), float("nan"), "wrong-type", "Observation.valueQuantity.value"),
    (OBSERVATION, ("valueQuantity", "comparator"), "<<", "bad-code", "Observation.valueQuantity.comparator"),
    (OBSERVATION, ("valueQuantity", "system"), DROP, "invariant", "Observation.valueQuantity"),
    (OBSERVATION, ("valueQuantity", "unit"), " ", "bad-format", "Observation.valueQuantity.unit"),
    (OBSERVATION, ("valueString",), "6.30", "choice", "Observation.value"),
    (OBSERVATION, ("effectivePeriod",), {"start": "2026"}, "choice", "Observation.effective"),
    (OBSERVATION, ("valueRational",), "1", "unknown-element", "Observation.valueRational"),
    (OBSERVATION, ("dataAbsentReason",), {"text": "clotted"}, "invariant", "Observation"),
    (OBSERVATION, ("component",), [{"code": OBSERVATION["code"], "valueString": "x"}], "invariant", "Observation"),
    (OBSERVATION, ("component",), [{"valueString": "x"}], "missing-element", "Observation.component[0].code"),
    (OBSERVATION, ("effectiveDateTime",), "2026-02-29", "bad-format", "Observation.effectiveDateTime"),
    (OBSERVATION, ("effectiveDateTime",), "2026-04-31", "bad-format", "Observation.effectiveDateTime"),
    (OBSERVATION, ("effectiveDateTime",), "20260301083000", "bad-format", "Observation.effectiveDateTime"),
    (OBSERVATION, ("effectiveDateTime",), "2026-03-01T08:30:00", "bad-format", "Observation.effectiveDateTime"),
    (OBSERVATION, ("effectiveDateTime",), "2026-03-01T24:00:00Z", "bad-format", "Observation.effectiveDateTime"),
    (OBSERVATION, ("issued",), "2026-03-01", "bad-format", "Observation.issued"),
    (OBSERVATION, ("subject", "reference"), "p1", "bad-reference", "Observation.subject.reference"),
    (OBSERVATION, ("subject", "reference"), "Patients/p1", "bad-reference", "Observation.subject.reference"),
    (OBSERVATION, ("subject", "reference"), "Patient/a b", "bad-reference", "Observation.subject.reference"),
    (OBSERVATION, ("subject", "reference"), "Organization/o1", "bad-reference", "Observation.subject.reference"),
    (OBSERVATION, ("referenceRange", 0, "low", "comparator"), "<", "invariant", "Observation.referenceRange[0].low"),
    (OBSERVATION, ("referenceRange", 0, "low", "value"), 12, "invariant", "Observation.referenceRange[0]"),
    (OBSERVATION, ("referenceRange", 0), {"appliesTo": [{"text": "f"}]}, "invariant", "Observation.referenceRange[0]"),
    (OBSERVATION, ("id",), "a/b", "bad-format", "Observation.id"),
    (OBSERVATION, ("id",), "x" * 65, "bad-format", "Observation.id"),
    (OBSERVATION, ("note",), [{"text": ""}], "bad-format", "Observation.note[0].text"),
    (OBSERVATION, ("note",), [{"text": "\x00"}], "bad-format", "Observation.note[0].text"),
    (OBSERVATION, ("note",), [], "empty", "Observation.note"),
    (OBSERVATION, ("note",), {"text": "x"}, "wrong-type", "Observation.note"),
    (OBSERVATION, ("interpretation",), None, "wrong-type", "Observation.interpretation"),
    (OBSERVATION, ("extension",), [{"url": "http://e.org"}], "invariant", "Observation.extension[0]"),
    (OBSERVATION, ("extension",), [{"valueCode": "x"}], "missing-element", "Observation.extension[0].url"),
    (
        OBSERVATION,
        ("extension",),
        [{"url": "http://e.org", "valueCode": "x", "valueString": "y"}],
        "invariant",
        "Observation.extension[0]",
    ),
    (OBSERVATION, ("contained",), [{"resourceType": "Patient"}], "missing-element", "Observation.contained[0].id"),
    (OBSERVATION, ("contained",), [PATIENT | {"gender": "x"}], "bad-code", "Observation.contained[0].gender"),
    (
        OBSERVATION,
        ("contained",),
        [PATIENT | {"contained": [PATIENT]}],
        "invariant",
        "Observation.contained[0].contained",
    ),
    (
        OBSERVATION,
        ("contained",),
        [PATIENT | {"meta": {"versionId": "1"}}],
        "invariant",
        "Observation.contained[0].meta",
    ),
    (OBSERVATION, ("contained",), [{"resourceType": "Nothing"}], "bad-code", "Observation.contained[0].resourceType"),
    (PATIENT, ("birthDate",), "1980-02-30", "bad-format", "Patient.birthDate"),
    (PATIENT, ("birthDate",), "0000", "bad-format", "Patient.birthDate"),
    (PATIENT, ("birthDate",), "1900-02-29", "bad-format", "Patient.birthDate"),
    (PATIENT, ("gender",), "F", "bad-code", "Patient.gender"),
    (PATIENT, ("active",), "true", "wrong-type", "Patient.active"),
    (PATIENT, ("multipleBirthInteger",), Decimal("2.0"), "wrong-type", "Patient.multipleBirthInteger"),
    (PATIENT, ("multipleBirthInteger",), 2**31, "bad-format", "Patient.multipleBirthInteger"),
    (PATIENT, ("telecom",), [{"value": "139"}], "invariant", "Patient.telecom[0]"),
    (PATIENT, ("contact",), [{"gender": "male"}], "invariant", "Patient.contact[0]"),
    (PATIENT, ("name",), [{"given": ["三", ""]}], "bad-format", "Patient.name[0].given[1]"),
    (PATIENT, ("photo",), [{"data": "QUJD"}], "invariant", "Patient.photo[0]"),
    (PATIENT, ("photo",), [{"contentType": "a/b", "data": "QUJ"}], "bad-format", "Patient.photo[0].data"),
    (PATIENT, ("text",), {"status": "generated", "div": "hello"}, "bad-format", "Patient.text.div"),
    (PATIENT, ("resourceType",), "patient", "unknown-type", "resourceType"),
    (REPORT, ("status",), DROP, "missing-element", "DiagnosticReport.status"),
    (REPORT, ("result", 0, "reference"), "Patient/p1", "bad-reference", "DiagnosticReport.result[0].reference"),
    (
        REPORT,
        ("effectivePeriod",),
        {"start": "2026-02", "end": "2026-01"},
        "invariant",
        "DiagnosticReport.effectivePeriod",
    ),
    (REQUEST, ("intent",), DROP, "missing-element", "ServiceRequest.intent"),
    (REQUEST, ("subject",), DROP, "missing-element", "ServiceRequest.subject"),
    (REQUEST, ("priority",), "now", "bad-code", "ServiceRequest.priority"),
    (REQUEST, ("orderDetail",), [{"text": "fasting"}], "invariant", "ServiceRequest"),
    (
        SPECIMEN,
        ("collection",),
        {"collectedDateTime": "2026-13"},
        "bad-format",
        "Specimen.collection.collectedDateTime",
    ),
    (ENCOUNTER, ("class",), DROP, "missing-element", "Encounter.class"),
    (
        ENCOUNTER,
        ("period",),
        {"start": "2026-01-02T00:00:00+08:00", "end": "2026-01-01T15:00:00Z"},
        "invariant",
        "Encounter.period",
    ),
    (ORGANIZATION, ("name",), DROP, "invariant", "Organization"),
    (
        CONDITION,
        ("verificationStatus",),
        {"coding": [{"code": "entered-in-error"}]},
        "bad-code",
        "Condition.verificationStatus",
    ),
    (BUNDLE, ("entry", 0, "request"), DROP, "invariant", "Bundle.entry[0]"),
    (BUNDLE, ("entry", 0, "request", "method"), "put", "bad-code", "Bundle.entry[0].request.method"),
    (BUNDLE, ("entry", 0, "resource", "gender"), 1, "bad-code", "Bundle.entry[0].resource.gender"),
    (BUNDLE, ("entry", 0, "fullUrl"), "http://e.org/Patient/p1/_history/2", "invariant", "Bundle.entry[0].fullUrl"),
    (BUNDLE, ("type",), "document", "invariant", "Bundle"),
    (BUNDLE, ("total",), 1, "invariant", "Bundle"),
    (LIST, ("emptyReason",), {"text": "none"}, "", ""),
    (CONSENT, ("policyRule",), DROP, "invariant", "Consent"),
]


def changed(resource: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A copy of the resource with one place changed."""
    out = copy.deepcopy(resource)
    here: Any = out
    for step in path[:-1]:
        here = here[step]
    if value is DROP:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return out


@pytest.mark.parametrize("resource", SOUND, ids=lambda r: r["resourceType"])
def test_accepts_the_sound_resources_of_this_file(resource: dict[str, Any]) -> None:
    assert validator.check_fully(resource) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_accepts_the_official_examples(path: Path) -> None:
    resource = fhirjson.loads(path.read_bytes())
    before = fhirjson.dumps(resource)
    assert validator.check_fully(resource) == []
    assert fhirjson.dumps(resource) == before, "checking changes nothing"


def test_forty_and_more_wrong_resources_are_in_the_table() -> None:
    assert len([w for w in WRONG if w[3]]) >= 40


@pytest.mark.parametrize(
    ("resource", "path", "value", "key", "where"),
    WRONG,
    ids=[f"{r['resourceType']}.{'.'.join(map(str, p))}-{i}" for i, (r, p, *_) in enumerate(WRONG)],
)
def test_names_what_is_wrong_and_where(
    resource: dict[str, Any], path: tuple[str | int, ...], value: Any, key: str, where: str
) -> None:
    issues = validator.check(changed(resource, path, value))
    if not key:
        assert issues == []
        return
    assert (key, where) in [(i.key, i.where) for i in issues]
    assert all(i.severity == "error" and i.text.endswith(".") for i in issues)
    assert all(i.where.startswith((resource["resourceType"], "resourceType")) for i in issues)


def test_an_issue_text_never_quotes_the_value() -> None:
    name = "王小明"
    wrong = [
        changed(PATIENT, ("gender",), name),
        changed(PATIENT, ("birthDate",), name),
        changed(PATIENT, ("name",), name),
        changed(OBSERVATION, ("subject", "reference"), name),
        changed(OBSERVATION, ("status",), [name]),
    ]
    for resource in wrong:
        for issue in validator.check_fully(resource):
            assert name not in issue.text
            assert name not in issue.where


def test_entered_in_error_excludes_a_clinical_status() -> None:
    systems = "http://terminology.hl7.org/CodeSystem/"
    both = CONDITION | {
        "verificationStatus": {"coding": [{"system": systems + "condition-ver-status", "code": "entered-in-error"}]},
        "clinicalStatus": {"coding": [{"system": systems + "condition-clinical", "code": "active"}]},
    }
    assert [i.text[:5] for i in validator.check(both)] == ["con-5"]


def test_a_contained_resource_nobody_refers_to_is_refused_when_a_client_writes_it() -> None:
    alone = OBSERVATION | {"contained": [PATIENT]}
    assert [(i.where, i.text[:5]) for i in validator.check_fully(alone)] == [("Observation.contained[0]", "dom-3")]
    assert validator.check_fully(changed(alone, ("subject", "reference"), "#p1")) == []


def test_reports_several_problems_at_once_in_the_order_of_their_places() -> None:
    resource = changed(changed(OBSERVATION, ("status",), "x"), ("issued",), "yesterday")
    assert [i.where for i in validator.check(resource)] == ["Observation.issued", "Observation.status"]


def test_a_primitive_may_be_absent_when_its_extension_says_why() -> None:
    absent = {
        "extension": [{"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "unknown"}]
    }
    assert validator.check(changed(OBSERVATION, ("status",), DROP) | {"_status": absent}) == []
    assert validator.check(PATIENT | {"name": [{"given": ["三", None], "_given": [None, absent]}]}) == []


def test_decimals_of_any_size_are_numbers() -> None:
    for text in ("0.00", "6.30", "1E-6", "1.0E400", "-12345678901234567890.123456789"):
        assert validator.check(changed(OBSERVATION, ("valueQuantity", "value"), JsonNumber(text))) == []
        assert validator.check(changed(OBSERVATION, ("valueQuantity", "value"), Decimal(text))) == []


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(text: str) -> None:
    issues = validator.check(changed(OBSERVATION, ("valueQuantity", "value"), Decimal(text)))
    assert [(i.key, i.where) for i in issues] == [("wrong-type", "Observation.valueQuantity.value")]


def test_a_local_reference_needs_its_contained_resource() -> None:
    local = changed(OBSERVATION, ("subject", "reference"), "#p1")
    assert validator.check(local | {"contained": [PATIENT]}) == []
    wrong = validator.check(local | {"contained": [PATIENT | {"id": "p2"}]})
    assert [(i.where, i.text[:5]) for i in wrong] == [("Observation.subject.reference", "ref-1")]
    assert [i.text[:5] for i in validator.check_fully(local)] == ["ref-1"]


@pytest.mark.parametrize(
    "given", [None, [], "Patient", 5, {}, {"resourceType": None}, {"resourceType": "Observation2"}]
)
def test_refuses_what_is_no_resource(given: Any) -> None:
    assert len(validator.check(given)) == 1
    assert len(validator.check_fully(given)) == 1


@pytest.mark.parametrize("value", ["\ud800", {1: 2}, 2**70, {"a", "b"}])
def test_refuses_what_has_no_json_form(value: Any) -> None:
    assert [i.key for i in validator.check(OBSERVATION | {"language": value})] == ["not-json"]


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of everything inside a resource."""
    out = [path] if path else []
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        out += places(part, (*path, key))
    return out


ODD: list[Any] = [
    None,
    "",
    " ",
    "x",
    0,
    -1,
    1.5,
    True,
    [],
    {},
    [[]],
    [None],
    {"x": 1},
    "2026-99-99",
    "#",
    Decimal("NaN"),
    DROP,
]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_odd_values_anywhere_are_told_and_never_crash(path: Path) -> None:
    seed = seed_of("validator")
    chance = random.Random(seed)
    resource = fhirjson.loads(path.read_bytes())
    for _ in range(60):
        wrong = changed(resource, chance.choice(places(resource)), chance.choice(ODD))
        if len(places(wrong)) > 1:
            wrong = changed(wrong, chance.choice(places(wrong)), chance.choice(ODD))
        for issue in validator.check_fully(wrong):
            assert issue.key
            assert issue.text.endswith(".")


def test_a_flood_of_errors_is_cut() -> None:
    names = [{"use": "x", "period": {"start": "x"}} for _ in range(1000)]
    assert len(validator.check(PATIENT | {"name": names})) == validator.MOST


def test_a_long_text_takes_no_long_time() -> None:
    long = " " * 200_000
    start = time.perf_counter()
    assert validator.check(OBSERVATION | {"note": [{"text": long}]})
    assert validator.check(changed(OBSERVATION, ("code", "coding", 0, "code"), "a" + long))
    assert validator.check(PATIENT | {"photo": [{"contentType": "a/b", "data": long}]})
    assert time.perf_counter() - start < 2


def test_a_transaction_may_carry_references_still_to_be_resolved() -> None:
    entry = {
        "resource": changed(OBSERVATION, ("subject", "reference"), "Patient?identifier=urn:oid:1.2|7"),
        "request": {"method": "POST", "url": "Observation"},
    }
    assert validator.check(BUNDLE | {"entry": [entry]}) == []
    assert [i.key for i in validator.check(entry["resource"])] == ["bad-reference"]


def test_knows_all_resource_types_of_r4() -> None:
    # CodeSystem http://hl7.org/fhir/resource-types 4.0.1 has 148 codes; Resource and DomainResource are abstract.
    assert len(validator.known_types()) == 146
    assert {"Observation", "Parameters", "OperationOutcome", "Medication"} <= validator.known_types()


@pytest.mark.parametrize(
    ("div", "sound"),
    [
        ('<div xmlns="http://www.w3.org/1999/xhtml"><p>结果 <b>正常</b></p></div>', True),
        ('<div xmlns="http://www.w3.org/1999/xhtml"><script>alert(1)</script></div>', False),
        ('<div xmlns="http://www.w3.org/1999/xhtml"><a href=" java&#10;script:alert(1)">x</a></div>', False),
        ('<div xmlns="http://www.w3.org/1999/xhtml"><p onclick="x()">x</p></div>', False),
        ('<div xmlns="http://www.w3.org/1999/xhtml"><iframe src="x"/>x</div>', False),
        ('<div xmlns="http://www.w3.org/1999/xhtml"> </div>', False),
        ('<div xmlns="http://www.w3.org/1999/xhtml"><p>x</div>', False),
        ("<div>no namespace</div>", False),
    ],
)
def test_a_narrative_has_basic_formatting_only(div: str, sound: bool) -> None:
    issues = validator.check_fully(PATIENT | {"text": {"status": "generated", "div": div}})
    assert (issues == []) is sound
    assert {i.where for i in issues} <= {"Patient.text.div"}


def test_the_shipped_schema_stays_small() -> None:
    path = Path(validator.__file__).parent / "schema" / "r4.json"
    assert path.stat().st_size < 3_000_000
    assert "CC0" in json.loads(path.read_text("utf-8"))["$comment"]
