"""What this server claims: the resource types it serves and its CapabilityStatement
(http://hl7.org/fhir/R4/capabilitystatement.html, http://hl7.org/fhir/R4/compartmentdefinition-patient.html)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from conformance import subscription_topics as backport

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

INTERACTIONS: Final[tuple[str, ...]] = (
    "read",
    "vread",
    "update",
    "patch",
    "delete",
    "history-instance",
    "history-type",
    "create",
    "search-type",
)
"""Interactions every served type has (http://hl7.org/fhir/R4/http.html)."""

SYSTEM_INTERACTIONS: Final[tuple[str, ...]] = ("transaction",)
"""Interactions of the whole system."""

OAUTH_URIS: Final = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"


def security(token_uri: str, introspect_uri: str, revoke_uri: str) -> dict[str, Any]:
    """CapabilityStatement.rest.security of a server with SMART backend services
    (https://hl7.org/fhir/smart-app-launch/STU2.2/conformance.html); absolute addresses of its authorization server."""
    uris = {"token": token_uri, "introspect": introspect_uri, "revoke": revoke_uri}
    return {
        "extension": [{"url": OAUTH_URIS, "extension": [{"url": k, "valueUri": v} for k, v in uris.items()]}],
        "cors": False,
        "service": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                        "code": "SMART-on-FHIR",
                        "display": "SMART-on-FHIR",
                    }
                ]
            }
        ],
        "description": "Bearer tokens (RFC 6750) with SMART v2 scopes except for discovery and health; every access is recorded.",
    }


Operation = tuple[str, str]
"""Operation name without ``$``, canonical URL of its OperationDefinition."""


def capability_statement(
    base_url: str,
    version: str,
    date: datetime,
    search_params: Mapping[str, Sequence[tuple[str, str, str]]],
    security: Mapping[str, Any],
    *,
    interactions: Sequence[str] = INTERACTIONS,
    system_interactions: Sequence[str] = SYSTEM_INTERACTIONS,
    includes: Mapping[str, Sequence[str]] | None = None,
    revincludes: Mapping[str, Sequence[str]] | None = None,
    operations: Mapping[str, Sequence[Operation]] | None = None,
) -> dict[str, Any]:
    """The CapabilityStatement of a running server, made from what it serves.

    base_url       address of the FHIR API, without a trailing slash
    version, date  of the software; date is when the statement last changed (the start of the server)
    search_params  resource type -> (name, search type, canonical URL of the SearchParameter); its keys are the types served.
                   The key ``Resource`` holds those of every type.
    security       CapabilityStatement.rest.security
    includes, revincludes   resource type -> values of _include and _revinclude (``Observation:subject``)
    operations     resource type -> operations; the key ``System`` holds those of the base address
    """
    unknown = set(search_params) - set(RESOURCE_TYPES) - {"Resource"}
    if unknown:
        raise ValueError(f"not served: {', '.join(sorted(unknown))}")
    every = search_params.get("Resource", ())
    given = operations or {}
    rest: dict[str, Any] = {
        "mode": "server",
        "security": dict(security),
        "resource": [
            _resource(
                name,
                interactions,
                [*every, *search_params[name]],
                (includes or {}).get(name, ()),
                (revincludes or {}).get(name, ()),
                given.get(name, ()),
            )
            for name in RESOURCE_TYPES
            if name in search_params
        ],
        "interaction": [{"code": code} for code in system_interactions],
    }
    if not rest["interaction"]:
        del rest["interaction"]
    if given.get("System"):
        rest["operation"] = _operations(given["System"])
    return {
        "resourceType": "CapabilityStatement",
        "id": "tongjian",
        "url": f"{base_url}/metadata",
        "version": version,
        "name": "Tongjian",
        "title": "Tongjian FHIR R4 server",
        "status": "active",
        "experimental": False,
        "date": date.isoformat(timespec="seconds"),
        "publisher": "Tongjian",
        "description": "Mutual recognition of test and examination results in a county medical consortium.",
        "kind": "instance",
        **({"instantiates": [backport.SERVER]} if "Subscription" in search_params else {}),
        "software": {"name": "Tongjian", "version": version},
        "implementation": {"description": "Tongjian", "url": base_url},
        "fhirVersion": FHIR_VERSION,
        "format": ["application/fhir+json", "json"],
        "patchFormat": ["application/json-patch+json"],
        **({"implementationGuide": [backport.IMPLEMENTATION_GUIDE]} if "Subscription" in search_params else {}),
        "rest": [rest],
    }


def _resource(
    type: str,
    interactions: Sequence[str],
    params: Sequence[tuple[str, str, str]],
    includes: Sequence[str],
    revincludes: Sequence[str],
    operations: Sequence[Operation],
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "type": type,
        "profile": f"http://hl7.org/fhir/StructureDefinition/{type}",
        "interaction": [{"code": code} for code in interactions],
        "versioning": "versioned",
        "readHistory": True,
        "updateCreate": True,
        "conditionalCreate": True,
        "conditionalRead": "full-support",
        "conditionalUpdate": True,
        "conditionalDelete": "single",
        "referencePolicy": ["literal", "logical", "local"],
    }
    if type == "Subscription":
        out["extension"] = [{"url": backport.TOPIC_OF_SERVER, "valueCanonical": url} for url in backport.TOPICS]
        out["supportedProfile"] = [backport.PROFILE]
    if includes:
        out["searchInclude"] = list(includes)
    if revincludes:
        out["searchRevInclude"] = list(revincludes)
    # cpb-12: a search parameter name stands once.
    unique = {name: (name, kind, definition) for name, kind, definition in params}
    if unique:
        out["searchParam"] = [
            {"name": name, "type": kind, **({"definition": definition} if definition else {})}
            for name, kind, definition in unique.values()
        ]
    if operations:
        out["operation"] = _operations(operations)
    return out


def _operations(operations: Sequence[Operation]) -> list[dict[str, str]]:
    return [{"name": name, "definition": definition} for name, definition in operations]
