"""What this server claims: the resource types it serves and its CapabilityStatement
(http://hl7.org/fhir/R4/capabilitystatement.html, http://hl7.org/fhir/R4/compartmentdefinition-patient.html)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

FHIR_VERSION: Final = "4.0.1"

# Append only: the number is stored with every row (resource.rtype). Never renumber, never reuse.
RESOURCE_TYPES: Final[dict[str, int]] = {
    "Patient": 1,
    "Person": 2,
    "Practitioner": 3,
    "PractitionerRole": 4,
    "Organization": 5,
    "Location": 6,
    "Endpoint": 7,
    "Device": 8,
    "Encounter": 9,
    "Condition": 10,
    "Procedure": 11,
    "ServiceRequest": 12,
    "Task": 13,
    "Specimen": 14,
    "Observation": 15,
    "DiagnosticReport": 16,
    "ImagingStudy": 17,
    "Media": 18,
    "Binary": 19,
    "DocumentReference": 20,
    "Composition": 21,
    "Bundle": 22,
    "List": 23,
    "Communication": 24,
    "CommunicationRequest": 25,
    "DetectedIssue": 26,
    "GuidanceResponse": 27,
    "Flag": 28,
    "Consent": 29,
    "Provenance": 30,
    "AuditEvent": 31,
    "Subscription": 32,
    "ValueSet": 33,
    "CodeSystem": 34,
    "ConceptMap": 35,
    "StructureDefinition": 36,
    "SearchParameter": 37,
    "OperationDefinition": 38,
    "CapabilityStatement": 39,
    "Measure": 40,
    "MeasureReport": 41,
    "ChargeItemDefinition": 42,
    "Group": 43,
    "Basic": 44,
    "RelatedPerson": 45,
    "AllergyIntolerance": 46,
    "MessageHeader": 47,
}
"""Resource type -> its fixed number."""

TYPE_NAMES: Final[dict[int, str]] = {number: name for name, number in RESOURCE_TYPES.items()}
"""Fixed number -> resource type."""

PATIENT_LINKS: Final[dict[str, tuple[str, ...]]] = {
    "Patient": ("link.other",),
    "Person": ("link.target",),
    "Encounter": ("subject",),
    "Condition": ("subject", "asserter"),
    "Procedure": ("subject", "performer.actor"),
    "ServiceRequest": ("subject", "performer"),
    "Specimen": ("subject",),
    "Observation": ("subject", "performer"),
    "DiagnosticReport": ("subject",),
    "ImagingStudy": ("subject",),
    "Media": ("subject",),
    "DocumentReference": ("subject", "author"),
    "Composition": ("subject", "author", "attester.party"),
    "List": ("subject", "source"),
    "Communication": ("subject", "sender", "recipient"),
    "CommunicationRequest": ("subject", "sender", "recipient", "requester"),
    "DetectedIssue": ("patient",),
    "Flag": ("subject",),
    "Consent": ("patient",),
    "Provenance": ("target",),
    "AuditEvent": ("agent.who", "entity.what"),
    "MeasureReport": ("subject",),
    "Group": ("member.entity",),
    "Basic": ("subject", "author"),
    "RelatedPerson": ("patient",),
    "AllergyIntolerance": ("patient", "recorder", "asserter"),
}
"""Type in the Patient compartment -> the elements that place it there; the first one names whom the resource is about."""

PATIENT_TYPES: Final[frozenset[str]] = frozenset(PATIENT_LINKS)
"""Types of the Patient compartment."""
