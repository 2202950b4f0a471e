"""Resources without what tells who the patient is: of every shape R4 has, and nothing else is lost."""

from __future__ import annotations

import json
from pathlib import Path

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
