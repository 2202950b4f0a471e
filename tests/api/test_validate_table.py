"""``$validate`` finds each fault at its FHIRPath and invents none: a table written from the standard
(http://hl7.org/fhir/R4/validation.html, json.html, and the definitions and invariants of each type)."""

# ruff: noqa: E501 -- a table of cases, one a line
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from conformance import systems
from conformance.fhirjson import JsonNumber
from conformance.profiles import shipped
from fhir_server.api import validate
from fhir_server.api.inputs import Inputs
from fhir_server.api.validate import Known

HL7 = "http://terminology.hl7.org/CodeSystem/"
UCUM = "http://unitsofmeasure.org"
TEXT = {"text": "x"}
ABSENT = {"extension": [{"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "unknown"}]}
SUBJECT = {"reference": "Patient/p"}
WHEN = "2026-03-01T08:30:00+08:00"


def typed(kind: str, /, **sound: Any) -> Callable[..., dict[str, Any]]:
    return lambda **more: {"resourceType": kind, **sound, **more}


observation = typed("Observation", status="final", code=TEXT)
patient = typed("Patient")
report = typed("DiagnosticReport", status="final", code=TEXT)
order = typed("ServiceRequest", status="active", intent="order", subject=SUBJECT)
condition = typed("Condition", subject=SUBJECT)
task = typed("Task", status="requested", intent="order")
bundle = typed("Bundle", type="collection")
composition = typed(
    "Composition", status="final", type=TEXT, date=WHEN, author=[{"reference": "Practitioner/d"}], title="x"
)
consent = typed("Consent", status="active", scope=TEXT, category=[TEXT])
listed = typed("List", status="current", mode="working")
search_parameter = typed(
    "SearchParameter",
    url="http://e.org/s",
    name="x",
    status="draft",
    description="x",
    code="x",
    base=["Patient"],
    type="token",
)
capability = typed(
    "CapabilityStatement",
    status="draft",
    date="2026",
    kind="requirements",
    fhirVersion="4.0.1",
    format=["json"],
    description="x",
    rest=[{"mode": "server"}],
)
operation = typed(
    "OperationDefinition", name="x", status="draft", kind="operation", code="x", system=True, type=False, instance=False
)
structure = typed(
    "StructureDefinition",
    url="http://e.org/p",
    name="x",
    status="draft",
    kind="resource",
    abstract=False,
    type="Patient",
    baseDefinition="http://hl7.org/fhir/StructureDefinition/Patient",
    derivation="constraint",
)
mapped = typed("ConceptMap", status="draft")
coded = typed("CodeSystem", status="draft", content="complete")
audit = typed(
    "AuditEvent", type={"code": "x"}, recorded=WHEN, agent=[{"requestor": True}], source={"observer": {"display": "x"}}
)


def narrative(div: str) -> dict[str, Any]:
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{div}</div>'}


def timing(**repeat: Any) -> dict[str, Any]:
    return order(occurrenceTiming={"repeat": repeat})


def target(**more: Any) -> dict[str, Any]:
    return mapped(group=[{"element": [{"code": "a", "target": [{"code": "b", **more}]}]}])


def element(**more: Any) -> dict[str, Any]:
    return structure(differential={"element": [{"id": "Patient.name", "path": "Patient.name", **more}]})


def concept(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": HL7 + system, "code": code}]}


def entry(type: str, *entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return bundle(type=type, entry=list(entries), **more)


OURS = {p["type"]: p["url"] for p in shipped.profiles()}


def claimed(resource: dict[str, Any]) -> dict[str, Any]:
    return {**resource, "meta": {"profile": [OURS[resource["resourceType"]]]}}


SHARED = observation(subject=SUBJECT, valueString="x")
ITEM = {"system": systems.ITEMS, "code": "GLU"}
LOINC = {"system": systems.LOINC, "code": "2345-7"}
RESIDENT = {"system": systems.RESIDENT_ID, "value": "11010519491231002X"}
ONE = {"id": "a", "resourceType": "Patient"}
GET = {"request": {"method": "GET", "url": "Patient"}}

# What is wrong, the resource, and every issue: its code, for an invariant its key, and its FHIRPath.
FAULTS: list[tuple[str, dict[str, Any], list[str]]] = [
    # Structure, cardinality and types.
    ("a required element is missing", typed("Observation", status="final")(), ["required Observation.code"]),
    ("a required element of a part", observation(component=[{"valueString": "x"}]), ["required Observation.component[0].code"]),
    ("a required list", typed("Consent", status="active", scope=TEXT, policyRule=TEXT)(), ["required Consent.category"]),
    ("two where one is allowed", observation(subject=[SUBJECT, SUBJECT]), ["structure Observation.subject"]),
    ("one where a list is due", patient(name={"family": "x"}), ["structure Patient.name"]),
    ("an element R4 does not have", patient(colour="red"), ["structure Patient.colour"]),
    ("an element of R5", observation(instantiatesCanonical="http://e.org/x"), ["structure Observation.instantiatesCanonical"]),
    ("an unknown element deep inside", patient(contact=[{"name": {"text": "x", "nick": "y"}}]), ["structure Patient.contact[0].name.nick"]),
    ("a text for a boolean", patient(active="true"), ["structure Patient.active"]),
    ("a text for a number", observation(valueQuantity={"value": "5"}), ["structure Observation.valueQuantity.value"]),
    ("a fraction for an integer", observation(valueInteger=JsonNumber("1.5")), ["structure Observation.valueInteger"]),
    ("nothing for a positive number", patient(telecom=[{"rank": 0}]), ["value Patient.telecom[0].rank"]),
    ("a choice in two types", observation(valueString="x", valueInteger=1), ["structure Observation.value"]),
    ("a choice once as value, once as extension", patient(deceasedBoolean=True, _deceasedDateTime=ABSENT), ["structure Patient.deceased"]),
    ("a type the choice does not have", observation(valueDecimal=1), ["structure Observation.valueDecimal"]),
    ("an empty object", observation(method={}), ["structure Observation.method"]),
    ("an empty object with rules of its own", patient(contact=[{}]), ["structure Patient.contact[0]"]),
    ("an empty object with required elements", typed("Provenance", target=[SUBJECT], recorded=WHEN)(agent=[{}]), ["structure Provenance.agent[0]"]),
    ("a contained resource of no type", observation(contained=[{"id": "a"}]), ["required Observation.contained[0].resourceType"]),
    ("an entry of a type nobody knows", bundle(entry=[{"resource": {"resourceType": "Patent"}}]), ["code-invalid Bundle.entry[0].resource.resourceType"]),
    ("an empty list", patient(name=[]), ["structure Patient.name"]),
    ("an empty text", patient(language=""), ["value Patient.language"]),
    ("null", patient(gender=None), ["code-invalid Patient.gender"]),
    ("a type nobody knows", {"resourceType": "Patent"}, ["structure resourceType"]),
    # Codes, formats and targets.
    ("a code outside a required binding", observation(status="done"), ["code-invalid Observation.status"]),
    ("a code in the wrong case", patient(gender="Male"), ["code-invalid Patient.gender"]),
    ("a concept outside a required binding", condition(clinicalStatus=concept("condition-clinical", "sick")), ["code-invalid Condition.clinicalStatus"]),
    ("the right code of another system", condition(verificationStatus=concept("condition-clinical", "confirmed")), ["code-invalid Condition.verificationStatus"]),
    ("a text for a required binding", condition(clinicalStatus=TEXT), ["code-invalid Condition.clinicalStatus"]),
    ("a day that does not exist", patient(birthDate="2023-02-29"), ["value Patient.birthDate"]),
    ("a time for a date", patient(birthDate=WHEN), ["value Patient.birthDate"]),
    ("a time without a zone", observation(effectiveDateTime="2026-03-01T08:30:00"), ["value Observation.effectiveDateTime"]),
    ("a time without seconds", observation(effectiveDateTime="2026-03-01T08:30+08:00"), ["value Observation.effectiveDateTime"]),
    ("a day for an instant", observation(issued="2026-03-01"), ["value Observation.issued"]),
    ("an id with a sign", patient(id="a_b"), ["value Patient.id"]),
    ("a URI with a blank", patient(identifier=[{"system": "urn: x", "value": "1"}]), ["value Patient.identifier[0].system"]),
    ("no base64", typed("Binary", contentType="a/b")(data="%%"), ["value Binary.data"]),
    ("a target of another type", observation(subject={"reference": "Practitioner/a"}), ["value Observation.subject.reference"]),
    ("a performer that is a specimen", report(performer=[{"reference": "Specimen/a"}]), ["value DiagnosticReport.performer[0].reference"]),
    ("a derivation of a patient", observation(derivedFrom=[SUBJECT]), ["value Observation.derivedFrom[0].reference"]),
    ("no reference at all", observation(subject={"reference": "p1"}), ["value Observation.subject.reference"]),
    # Extensions.
    ("ext-1 both", patient(extension=[{"url": "http://e.org", "valueCode": "x", "extension": [{"url": "a", "valueCode": "b"}]}]), ["invariant ext-1 Patient.extension[0]"]),
    ("ext-1 neither", patient(extension=[{"url": "http://e.org"}]), ["invariant ext-1 Patient.extension[0]"]),
    ("an extension without url", patient(modifierExtension=[{"valueCode": "x"}]), ["required Patient.modifierExtension[0].url"]),
    ("a modifier extension where none may be", observation(code={**TEXT, "modifierExtension": [{"url": "http://e.org", "valueCode": "x"}]}), ["structure Observation.code.modifierExtension"]),
    ("an unknown part of a primitive", patient(birthDate="1980", _birthDate={"note": "x"}), ["structure Patient._birthDate.note"]),
    ("ele-1 an id alone", observation(code={"id": "a"}), ["invariant ele-1 Observation.code"]),
    ("ele-1 a null without extension", patient(name=[{"given": ["x", None]}]), ["invariant ele-1 Patient.name[0].given[1]"]),
    ("ele-1 an id of no value", patient(_gender={"id": "a"}), ["invariant ele-1 Patient.gender"]),
    # Invariants of resources and datatypes.
    ("obs-6", observation(valueString="x", dataAbsentReason=TEXT), ["invariant obs-6 Observation"]),
    ("obs-7", observation(code={"coding": [LOINC]}, valueString="x", component=[{"code": {"coding": [LOINC]}}]), ["invariant obs-7 Observation"]),
    ("obs-3", observation(referenceRange=[{"type": TEXT}]), ["invariant obs-3 Observation.referenceRange[0]"]),
    ("dom-2", observation(subject={"reference": "#a"}, contained=[{**ONE, "contained": [{**ONE, "id": "b"}]}]), ["invariant dom-2 Observation.contained[0].contained"]),
    ("dom-3", observation(contained=[ONE]), ["invariant dom-3 Observation.contained[0]"]),
    ("dom-4", observation(subject={"reference": "#a"}, contained=[{**ONE, "meta": {"lastUpdated": WHEN}}]), ["invariant dom-4 Observation.contained[0].meta"]),
    ("dom-5", observation(subject={"reference": "#a"}, contained=[{**ONE, "meta": {"security": [{"code": "R"}]}}]), ["invariant dom-5 Observation.contained[0].meta.security"]),
    ("two contained with one id", observation(subject={"reference": "#a"}, contained=[ONE, ONE]), ["invalid Observation.contained[1].id"]),
    ("ref-1 without contained", observation(subject={"reference": "#a"}), ["invariant ref-1 Observation.subject.reference"]),
    ("ref-1 with another contained", observation(subject={"reference": "#b"}, performer=[{"reference": "#a"}], contained=[ONE]), ["invariant ref-1 Observation.subject.reference"]),
    ("per-1", patient(name=[{"text": "x", "period": {"start": "2026-02", "end": "2026-01"}}]), ["invariant per-1 Patient.name[0].period"]),
    ("rng-2", observation(valueRange={"low": {"value": 2}, "high": {"value": 1}}), ["invariant rng-2 Observation.valueRange"]),
    ("rat-1", observation(valueRatio={"numerator": {"value": 1}}), ["invariant rat-1 Observation.valueRatio"]),
    ("qty-3", observation(valueQuantity={"value": 1, "code": "mg"}), ["invariant qty-3 Observation.valueQuantity"]),
    ("sqty-1", observation(referenceRange=[{"low": {"value": 1, "comparator": "<"}}]), ["invariant sqty-1 Observation.referenceRange[0].low"]),
    ("age-1 without unit", condition(onsetAge={"value": 5}), ["invariant age-1 Condition.onsetAge"]),
    ("age-1 below zero", condition(onsetAge={"value": JsonNumber("-1.5"), "system": UCUM, "code": "a"}), ["invariant age-1 Condition.onsetAge"]),
    ("drt-1", timing(boundsDuration={"value": 5, "code": "d"}), ["invariant drt-1 ServiceRequest.occurrenceTiming.repeat.boundsDuration"]),
    ("tim-2", timing(frequency=1, period=1), ["invariant tim-2 ServiceRequest.occurrenceTiming.repeat"]),
    ("tim-5", timing(period=-1, periodUnit="d"), ["invariant tim-5 ServiceRequest.occurrenceTiming.repeat"]),
    ("tim-8", timing(countMax=3), ["invariant tim-8 ServiceRequest.occurrenceTiming.repeat"]),
    ("tim-10", timing(timeOfDay=["08:00:00"], when=["MORN"]), ["invariant tim-10 ServiceRequest.occurrenceTiming.repeat"]),
    ("att-1", patient(photo=[{"data": "QUJD"}]), ["invariant att-1 Patient.photo[0]"]),
    ("cpt-2", patient(telecom=[{"value": "139"}]), ["invariant cpt-2 Patient.telecom[0]"]),
    ("pat-1", patient(contact=[{"gender": "male"}]), ["invariant pat-1 Patient.contact[0]"]),
    ("org-1", typed("Organization", active=True)(), ["invariant org-1 Organization"]),
    ("org-2", typed("Organization", name="x")(address=[{"use": "home"}]), ["invariant org-2 Organization.address[0]"]),
    ("org-3", typed("Organization", name="x")(telecom=[{"use": "work"}, {"use": "home"}]), ["invariant org-3 Organization.telecom[1]"]),
    ("txt-1", patient(text=narrative("<script>x</script>")), ["invariant txt-1 Patient.text.div"]),
    ("txt-2", patient(text=narrative("<p> </p>")), ["invariant txt-2 Patient.text.div"]),
    ("prr-1", order(orderDetail=[TEXT]), ["invariant prr-1 ServiceRequest"]),
    ("inv-1", task(authoredOn="2026-03-02", lastModified="2026-03-01"), ["invariant inv-1 Task.lastModified"]),
    ("con-1", condition(stage=[{"type": TEXT}]), ["invariant con-1 Condition.stage[0]"]),
    ("con-2", condition(evidence=[{"extension": [{"url": "http://e.org", "valueCode": "x"}]}]), ["invariant con-2 Condition.evidence[0]"]),
    ("con-4", condition(clinicalStatus=concept("condition-clinical", "active"), abatementString="x"), ["invariant con-4 Condition"]),
    ("ppc-1", consent(), ["invariant ppc-1 Consent"]),
    ("sev-1", audit(entity=[{"name": "x", "query": "QUJD"}]), ["invariant sev-1 AuditEvent.entity[0]"]),
    ("lst-1", listed(emptyReason=TEXT, entry=[{"item": SUBJECT}]), ["invariant lst-1 List"]),
    ("lst-2", listed(entry=[{"item": SUBJECT, "deleted": True}]), ["invariant lst-2 List.entry[0]"]),
    ("lst-3", listed(mode="snapshot", entry=[{"item": SUBJECT, "date": "2026"}]), ["invariant lst-3 List.entry[0]"]),
    ("cmp-1", composition(section=[{"title": "x"}]), ["invariant cmp-1 Composition.section[0]"]),
    ("cmp-2", composition(section=[{"emptyReason": TEXT, "entry": [SUBJECT]}]), ["invariant cmp-2 Composition.section[0]"]),
    ("bdl-1", bundle(total=1), ["invariant bdl-1 Bundle"]),
    ("bdl-2", entry("collection", {"resource": ONE, "search": {"mode": "match"}}), ["invariant bdl-2 Bundle.entry[0]"]),
    ("bdl-3", entry("transaction", {"resource": ONE}), ["invariant bdl-3 Bundle.entry[0]"]),
    ("bdl-4", entry("batch", {**GET, "response": {"status": "200"}}), ["invariant bdl-4 Bundle.entry[0]"]),
    ("bdl-5", entry("searchset", {"fullUrl": "http://e.org/Patient/a"}), ["invariant bdl-5 Bundle.entry[0]"]),
    ("bdl-7", entry("collection", {"fullUrl": "urn:oid:1.1", "resource": ONE}, {"fullUrl": "urn:oid:1.1", "resource": ONE}), ["invariant bdl-7 Bundle.entry[1].fullUrl"]),
    ("bdl-8", entry("collection", {"fullUrl": "http://e.org/Patient/a/_history/1", "resource": ONE}), ["invariant bdl-8 Bundle.entry[0].fullUrl"]),
    ("bdl-9", entry("document", {"resource": composition()}, identifier={"value": "1"}, timestamp=WHEN), ["invariant bdl-9 Bundle"]),
    ("bdl-10", entry("document", {"resource": composition()}, identifier={"system": "urn:oid:1.2", "value": "1"}), ["invariant bdl-10 Bundle"]),
    ("bdl-11", entry("document", {"resource": ONE}, identifier={"system": "urn:oid:1.2", "value": "1"}, timestamp=WHEN), ["invariant bdl-11 Bundle.entry[0]"]),
    ("bdl-12", entry("message", {"resource": ONE}), ["invariant bdl-12 Bundle.entry[0]"]),
    ("a fault in a Bundle", entry("collection", {"resource": ONE}, {"resource": {**ONE, "gender": "x"}}), ["code-invalid Bundle.entry[1].resource.gender"]),
    ("ref-1 in a Bundle", entry("collection", {"resource": observation(subject={"reference": "#a"})}), ["invariant ref-1 Bundle.entry[0].resource.subject.reference"]),
    ("dom-3 in a Bundle", entry("collection", {"resource": observation(contained=[ONE])}), ["invariant dom-3 Bundle.entry[0].resource.contained[0]"]),
    ("ele-1 in a contained resource", observation(subject={"reference": "#a"}, contained=[{**ONE, "maritalStatus": {"id": "m"}}]), ["invariant ele-1 Observation.contained[0].maritalStatus"]),
    ("csd-1", coded(concept=[{"code": "a"}, {"code": "b", "concept": [{"code": "a"}]}]), ["invariant csd-1 CodeSystem.concept[1].concept[0].code"]),
    ("cmd-1", target(equivalence="narrower"), ["invariant cmd-1 ConceptMap.group[0].element[0].target[0]"]),
    ("vsd-1", typed("ValueSet", status="draft")(compose={"include": [{"version": "1"}]}), ["invariant vsd-1 ValueSet.compose.include[0]"]),
    ("spd-1", search_parameter(xpath="f:x"), ["invariant spd-1 SearchParameter"]),
    ("spd-2", search_parameter(chain=["name"]), ["invariant spd-2 SearchParameter"]),
    ("opd-1", operation(parameter=[{"name": "x", "use": "in", "min": 0, "max": "1"}]), ["invariant opd-1 OperationDefinition.parameter[0]"]),
    ("cpb-9", capability(rest=[{"mode": "server", "resource": [{"type": "Patient"}, {"type": "Patient"}]}]), ["invariant cpb-9 CapabilityStatement.rest[0].resource[1]"]),
    ("cpb-14", capability(kind="instance"), ["invariant cpb-14 CapabilityStatement"]),
    ("eld-2", element(min=2, max="1"), ["invariant eld-2 StructureDefinition.differential.element[0]"]),
    ("eld-8", element(fixedString="x", patternString="x"), ["invariant eld-8 StructureDefinition.differential.element[0]"]),
    ("sdf-6", structure(), ["invariant sdf-6 StructureDefinition"]),
    ("mrp-2", typed("MeasureReport", status="complete", type="summary", measure="http://e.org/m", period={"start": "2026"})(group=[{"stratifier": [{"stratum": [{"measureScore": {"value": 1}}]}]}]), ["invariant mrp-2 MeasureReport.group[0].stratifier[0].stratum[0]"]),
    # Our profiles.
    ("profile: an element is required", claimed(observation(valueString="x")), ["required Observation.subject"]),
    ("profile: tj-1", claimed(observation(subject=SUBJECT)), ["invariant tj-1 Observation"]),
    ("profile: a stricter binding", claimed({**SHARED, "status": "unknown"}), ["code-invalid Observation.status"]),
    ("profile: a stricter target", claimed({**SHARED, "subject": {"reference": "Group/g"}}), ["value Observation.subject"]),
    ("profile: a slice too often", claimed({**SHARED, "code": {"coding": [ITEM, LOINC, {**ITEM, "code": "K"}]}}), ["value Observation.code.coding"]),
    ("profile: an element of a slice", claimed({**SHARED, "code": {"coding": [LOINC, {"system": systems.ITEMS}]}}), ["required Observation.code.coding[1].code"]),
    ("profile: no identifier", claimed(report(subject=SUBJECT, issued=WHEN)), ["required DiagnosticReport.identifier"]),
    ("profile: a slice without its value", claimed(patient(identifier=[{"system": systems.RESIDENT_ID}])), ["required Patient.identifier[0].value"]),
    ("profile: two of one slice", claimed(patient(identifier=[RESIDENT, RESIDENT])), ["value Patient.identifier"]),
]  # fmt: skip

SOUND: list[tuple[str, dict[str, Any]]] = [
    ("a required code given as an extension alone", typed("Observation", code=TEXT, _status=ABSENT)()),
    ("a null whose extension stands beside it", patient(name=[{"given": ["x", None], "_given": [None, ABSENT]}])),
    ("the id of a primitive with a value", patient(gender="male", _gender={"id": "a"})),
    ("a value and another code in components", observation(valueString="x", component=[{"code": TEXT, "valueString": "y"}])),
    ("a component with the code of the whole, which has no value", observation(code={"coding": [LOINC]}, component=[{"code": {"coding": [LOINC]}, "valueInteger": 1}])),
    ("a year as start and a month of it as end", patient(address=[{"text": "x", "period": {"start": "2026", "end": "2026-01"}}])),
    ("a start and end in other zones", observation(effectivePeriod={"start": "2026-01-02T00:00:00+08:00", "end": "2026-01-01T17:00:00Z"})),
    ("a leap second", task(authoredOn="2016-12-31T23:59:60Z", lastModified="2017-01-01T00:00:00Z")),
    ("a leap day", patient(birthDate="2024-02-29")),
    ("a contained resource that refers to its container", observation(contained=[{"resourceType": "Provenance", "id": "a", "target": [{"reference": "#"}], "recorded": WHEN, "agent": [{"who": {"display": "x"}}]}])),
    ("contained resources that refer to each other", observation(specimen={"reference": "#s"}, contained=[{"resourceType": "Specimen", "id": "s", "subject": {"reference": "#a"}}, ONE])),
    ("a reference by identifier alone", observation(subject={"identifier": {"system": "urn:oid:1.2", "value": "1"}})),
    ("an absolute reference, and one to a version", observation(subject={"reference": "https://e.org/fhir/Patient/p"}, derivedFrom=[{"reference": "Observation/o/_history/2"}])),
    ("an unknown modifier extension", patient(modifierExtension=[{"url": "http://e.org/x", "valueBoolean": True}])),
    ("an extension in an extension", patient(extension=[{"url": "http://e.org/x", "id": "e", "extension": [{"url": "a", "valueCode": "b"}]}])),
    ("a concept with another coding beside the required one", condition(clinicalStatus={"coding": [{"system": "urn:oid:1.2", "code": "1"}, *concept("condition-clinical", "active")["coding"]]})),
    ("an age", condition(onsetAge={"value": JsonNumber("0.5"), "unit": "岁", "system": UCUM, "code": "a"})),
    ("a code of a quantity whose system says why it is missing", observation(valueQuantity={"value": 1, "code": "x", "_system": ABSENT})),
    ("a narrative with Chinese and an image", patient(text=narrative('<p>结果 <img src="#i" alt="图"/></p>'))),
    ("the same fullUrl twice in a history", entry("history", *[{"fullUrl": "urn:oid:1.1", "resource": ONE, "request": {"method": "PUT", "url": "Patient/a"}, "response": {"status": "200"}}] * 2)),
    ("a contained resource in a Bundle", entry("collection", {"resource": observation(subject={"reference": "#a"}, contained=[ONE])})),
    ("a conditional reference in a transaction", entry("transaction", {"resource": observation(subject={"reference": "Patient?identifier=urn:oid:1.2|7"}), "request": {"method": "POST", "url": "Observation"}})),
    ("a decimal of many digits", observation(valueQuantity={"value": JsonNumber("0.00000000000000000010")})),
    ("a shared result with items in any order", claimed({**SHARED, "code": {"coding": [{"system": "urn:oid:1.2", "code": "1"}, LOINC, ITEM]}})),
    ("a registered patient with other numbers", claimed(patient(identifier=[{"system": "urn:oid:1.2", "value": "1"}, RESIDENT]))),
]  # fmt: skip


def told(resource: dict[str, Any]) -> list[str]:
    """Each issue as code, key of an invariant, and place."""
    out = []
    for one in validate.issues("", "", resource, Inputs(), Known()):
        key = one["details"]["text"].partition(":")[0] if one["code"] == "invariant" else ""
        out.append(" ".join(part for part in (one["code"], key, *one.get("expression", ())) if part))
    return out


@pytest.mark.parametrize(("resource", "wanted"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_each_fault_is_told_at_its_place_and_no_other(resource: dict[str, Any], wanted: list[str]) -> None:
    assert told(resource) == wanted


@pytest.mark.parametrize("resource", [s[1] for s in SOUND], ids=[s[0] for s in SOUND])
def test_what_is_unusual_and_sound_is_valid(resource: dict[str, Any]) -> None:
    assert told(resource) == ["informational"]
