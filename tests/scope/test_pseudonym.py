"""Resources without what tells who the patient is: of every shape R4 has, and nothing else is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from conformance import fhirjson
from fhir_server.scope.pseudonym import pseudonymous

FILE = Path(__file__).parents[1] / "data" / "fhir-r4" / "examples.ndjson.zst"


def test_every_official_example_has_a_form_without_identity() -> None:
    text = zstandard.ZstdDecompressor().decompress(FILE.read_bytes(), max_output_size=2**26)
    for line in text.splitlines():
        before, after = json.loads(line), json.loads(pseudonymous(line))
        assert (after["resourceType"], after["id"]) == (before["resourceType"], before["id"])


def test_a_type_that_is_a_concept_stays_beside_a_reference_without_its_display() -> None:
    concept = {"coding": [{"system": "http://x", "code": "a"}]}
    agent = {"type": concept, "who": {"reference": "Patient/p", "type": "Patient", "display": "王某"}}
    provenance = {"resourceType": "Provenance", "id": "v", "agent": [agent]}
    after = json.loads(pseudonymous(fhirjson.dumps(provenance)))
    assert after["agent"] == [{"type": concept, "who": {"reference": "Patient/p", "type": "Patient"}}]
    visit = {"resourceType": "Encounter", "id": "e", "participant": [{"type": [concept]}]}
    assert json.loads(pseudonymous(fhirjson.dumps(visit)))["participant"] == [{"type": [concept]}]


NAME, NUMBER = "王小明", "330726199001011234"
WHO = {"reference": "Patient/p", "display": NAME, "identifier": {"value": NUMBER}}


@pytest.mark.parametrize(
    "resource",
    [
        {"resourceType": "Consent", "provision": {"actor": [{"reference": WHO, "role": {"text": NAME}}]}},
        {"resourceType": "Specimen", "accessionIdentifier": {"value": NUMBER}, "container": [{"description": NAME}]},
        {"resourceType": "Encounter", "hospitalization": {"preAdmissionIdentifier": {"value": NUMBER}}},
        {"resourceType": "GuidanceResponse", "requestIdentifier": {"value": NUMBER}},
        {"resourceType": "Composition", "relatesTo": [{"code": "appends", "targetIdentifier": {"value": NUMBER}}]},
        {"resourceType": "Procedure", "performedString": NAME},
        {"resourceType": "Condition", "onsetString": NAME, "abatementString": NAME},
        {"resourceType": "Task", "input": [{"type": {"text": "x"}, "valueString": NAME}], "output": [{"valueMarkdown": NAME}]},
        {"resourceType": "Observation", "valueString": f"患者{NAME},女,因腹痛入院。" * 5},
        {"resourceType": "Observation", "component": [{"valueString": f"患者{NAME},女,因腹痛入院。" * 5}]},
        {"resourceType": "Observation", "hasMember": [{"reference": "Observation/o", "display": f"{NAME} 血常规"}]},
        {"resourceType": "Group", "name": f"{NAME}一家", "member": [{"entity": WHO}]},
        {"resourceType": "Device", "patient": WHO, "deviceName": [{"name": NAME}], "serialNumber": NUMBER},
        {"resourceType": "DetectedIssue", "detail": f"{NAME}重复检查"},
        {"resourceType": "AuditEvent", "entity": [{"name": NAME, "what": WHO, "description": NAME}], "outcomeDesc": NAME},
        {"resourceType": "Bundle", "entry": [{"request": {"method": "POST", "url": "Patient", "ifNoneExist": f"identifier={NUMBER}"}}]},
    ],
    ids=lambda resource: resource["resourceType"],
)  # fmt: skip
def test_neither_name_nor_number_is_left(resource: dict[str, Any]) -> None:
    after = pseudonymous(fhirjson.dumps(resource)).decode()
    assert NAME not in after
    assert NUMBER not in after


def test_a_result_in_a_word_and_the_names_of_who_made_it_stay() -> None:
    made = {
        "resourceType": "Observation",
        "id": "o",
        "valueString": "阴性(-)",
        "component": [{"valueString": "1:80"}],
        "performer": [{"reference": "Organization/g", "display": "县医院检验科"}, {"display": "李医生"}],
    }
    after = json.loads(pseudonymous(fhirjson.dumps(made)))
    assert {key: after[key] for key in made} == made
