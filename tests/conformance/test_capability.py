"""Resource types, the Patient compartment and the CapabilityStatement."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from conformance import capability, validator

DATE = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
BASE = "http://127.0.0.1:8080/fhir"
RESOURCE_ID = ("_id", "token", "http://hl7.org/fhir/SearchParameter/Resource-id")
SECURITY = capability.security("http://a/auth/token", "http://a/auth/introspect", "http://a/auth/revoke")
CODE = ("code", "token", "http://hl7.org/fhir/SearchParameter/clinical-code")


def statement(**more: Any) -> dict[str, Any]:
    params = {name: [CODE] for name in capability.RESOURCE_TYPES} | {"Resource": [RESOURCE_ID]}
    return capability.capability_statement(BASE, "0.1.0", DATE, params, SECURITY, **more)


def test_the_numbers_of_the_types_never_change() -> None:
    # Stored with every row. Add at the end; never renumber.
    names = list(capability.RESOURCE_TYPES)
    assert list(capability.RESOURCE_TYPES.values()) == list(range(1, len(names) + 1))
    assert names[:3] == ["Patient", "Person", "Practitioner"]
    assert names[14:16] == ["Observation", "DiagnosticReport"]
    assert names[46] == "MessageHeader"


def test_type_names_is_the_reverse() -> None:
    assert {v: k for k, v in capability.TYPE_NAMES.items()} == capability.RESOURCE_TYPES


def test_every_served_type_is_a_resource_type_of_r4() -> None:
    assert set(capability.RESOURCE_TYPES) <= validator.known_types()


def test_the_patient_compartment_is_that_of_the_standard() -> None:
    # http://hl7.org/fhir/R4/compartmentdefinition-patient.html
    assert set(capability.RESOURCE_TYPES) >= capability.PATIENT_TYPES
    assert not capability.PATIENT_TYPES & {
        "Task",
        "GuidanceResponse",
        "Device",
        "Binary",
        "Organization",
        "Practitioner",
    }
    assert {"Patient", "Observation", "DiagnosticReport", "ServiceRequest", "Specimen"} <= capability.PATIENT_TYPES


def test_the_statement_is_sound() -> None:
    made = statement(
        includes={"Observation": ["Observation:subject"]},
        revincludes={"DiagnosticReport": ["Provenance:target"]},
        operations={
            "System": [("export", "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/export")],
            "Patient": [("everything", "http://hl7.org/fhir/OperationDefinition/Patient-everything")],
        },
    )
    assert validator.check_fully(made) == []


def test_the_statement_says_what_is_served_and_nothing_else() -> None:
    made = capability.capability_statement(BASE, "0.1.0", DATE, {"Patient": [CODE]}, SECURITY, interactions=("read",))
    rest = made["rest"][0]
    assert made["fhirVersion"] == "4.0.1"
    assert made["implementation"]["url"] == BASE
    assert [r["type"] for r in rest["resource"]] == ["Patient"]
    assert rest["resource"][0]["interaction"] == [{"code": "read"}]
    assert rest["resource"][0]["searchParam"] == [{"name": "code", "type": "token", "definition": CODE[2]}]


def test_a_parameter_of_every_type_stands_once_at_each_type() -> None:
    for resource in statement()["rest"][0]["resource"]:
        assert [p["name"] for p in resource["searchParam"]] == ["_id", "code"]


def test_a_type_that_is_not_served_is_refused() -> None:
    with pytest.raises(ValueError, match="Medication"):
        capability.capability_statement(BASE, "0.1.0", DATE, {"Medication": [CODE]}, SECURITY)
