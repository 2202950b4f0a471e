"""Audit entries as AuditEvent resources following IHE Basic Audit Log Patterns 1.1.4 (https://profiles.ihe.net/ITI/BALP/1.1.4)."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any, Final

from conformance import systems

_PROFILE: Final = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."
_DCM: Final = "http://dicom.nema.org/resources/ontology/DCM"
_PARTICIPATION: Final = systems.V3 + "ParticipationType"
_ENTITY_TYPE: Final = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_OBJECT_ROLE: Final = "http://terminology.hl7.org/CodeSystem/object-role"
_SOURCE: Final = (_DCM, "110153", "Source Role ID")
_DESTINATION: Final = (_DCM, "110152", "Destination Role ID")
_APPLICATION: Final = (_DCM, "110150", "Application")
_CUSTODIAN: Final = ("http://terminology.hl7.org/CodeSystem/provenance-participant-type", "custodian", "Custodian")
_AUTHOR: Final = (_PARTICIPATION, "AUT", "Author")
_RECIPIENT: Final = (_PARTICIPATION, "IRCP", "information recipient")

Coding = tuple[str, str, str]

# Pattern -> roles of client, server and user. In a read and in a history the server is the source of the data.
_ROLES: Final[dict[str, tuple[Coding, Coding, Coding]]] = {
    "Create": (_SOURCE, _DESTINATION, _AUTHOR),
    "Read": (_DESTINATION, _SOURCE, _RECIPIENT),
    "Update": (_SOURCE, _DESTINATION, _AUTHOR),
    "Delete": (_APPLICATION, _CUSTODIAN, _AUTHOR),
    "Query": (_SOURCE, _DESTINATION, _RECIPIENT),
}
_PATTERNS: Final[dict[str, str]] = {
    "create": "Create",
    "read": "Read",
    "vread": "Read",
    "update": "Update",
    "patch": "Update",
    "delete": "Delete",
    "search-type": "Query",
    "search-system": "Query",
}
RESTFUL: Final = frozenset({*_PATTERNS, "history-instance", "history-type", "history-system", "transaction", "batch"})
"""Interactions that http://hl7.org/fhir/restful-interaction names; all others are operations."""


def to_fhir(chain: str, number: int, at: datetime, entry: str, *, server: str = "tongjian") -> list[dict[str, Any]]:
    """An audit row as AuditEvents: one per patient, as the profiles ask, and one when no patient is known; none for an anchor.

    server is the network name of this server. The profile is claimed only where it is met: a successful RESTful interaction whose
    client address is known. ``entity.query`` holds parameter names alone; the values may be patient data and are not kept.
    """
    stored = json.loads(entry)
    if "anchor" in stored:
        return []
    patients: list[str] = stored["patients"]
    return [
        _event(f"{chain}.{number}" + (f".{i}" if len(patients) > 1 else ""), at, stored, patient, server)
        for i, patient in enumerate(patients or [""], start=1)
    ]


def _event(id: str, at: datetime, stored: dict[str, Any], patient: str, server: str) -> dict[str, Any]:
    interaction: str = stored["interaction"]
    pattern = _PATTERNS.get(interaction, "")
    restful = interaction in RESTFUL
    event: dict[str, Any] = {"resourceType": "AuditEvent", "id": id}
    entities = _entities(stored, patient, pattern)
    if pattern and stored["outcome"] == "0" and stored["address"] and (pattern == "Query" or stored["resource"]):
        event["meta"] = {"profile": [f"{_PROFILE}{'Patient' if patient else ''}{pattern}"]}
    event["type"] = _coding("http://terminology.hl7.org/CodeSystem/audit-event-type", "rest", "Restful Operation")
    if restful:
        event["subtype"] = [{"system": "http://hl7.org/fhir/restful-interaction", "code": interaction}]
    else:
        event["subtype"] = [
            {"system": "http://hl7.org/fhir/restful-interaction", "code": "operation"},
            {"system": f"{systems.BASE}/CodeSystem/operation", "code": interaction.replace(" ", "-")},
        ]
    event["action"] = stored["action"]
    event["recorded"] = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    event["outcome"] = stored["outcome"]
    event["agent"] = _agents(stored, pattern, server)
    event["source"] = {
        "observer": {"display": server},
        "type": [_coding("http://terminology.hl7.org/CodeSystem/security-source-type", "4", "Application Server")],
    }
    if entities:
        event["entity"] = entities
    return event


def _agents(stored: dict[str, Any], pattern: str, server: str) -> list[dict[str, Any]]:
    client, own, user = _ROLES.get(pattern, _ROLES["Query"])
    subject = stored["subject"] or "unknown"
    client_agent: dict[str, Any] = {"type": _concept(client), "who": {"display": stored["address"] or subject}}
    client_agent["requestor"] = not stored["subject"]
    if stored["address"]:
        client_agent["network"] = {"address": stored["address"], "type": "2"}
    agents = [
        client_agent,
        {
            "type": _concept(own),
            "who": {"display": server},
            "requestor": False,
            "network": {"address": server, "type": "1"},
        },
    ]
    if stored["subject"]:
        who: dict[str, Any] = {"identifier": {"system": f"{systems.BASE}/sid/subject", "value": subject}}
        if stored["facility"]:
            facility = {"system": systems.FACILITY, "value": stored["facility"]}
            who["identifier"]["assigner"] = {"identifier": facility}
        agents.append(
            {
                "type": _concept(user),
                "role": [{"coding": [{"system": f"{systems.BASE}/CodeSystem/role", "code": stored["role"]}]}],
                "who": who,
                "altId": subject,
                "requestor": True,
            }
        )
    return agents


def _entities(stored: dict[str, Any], patient: str, pattern: str) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    system_object = _coding(_ENTITY_TYPE, "2", "System Object")
    if pattern == "Query":
        query = f"{','.join(stored['types'])}?{stored['query']}"
        out.append(
            {
                "type": system_object,
                "role": _coding(_OBJECT_ROLE, "24", "Query"),
                "query": base64.b64encode(query.encode()).decode(),
            }
        )
    elif stored["resource"]:
        out.append(
            {
                "what": {"reference": stored["resource"]},
                "type": system_object,
                "role": _coding(_OBJECT_ROLE, "4", "Domain Resource"),
            }
        )
    if patient:
        out.append(
            {
                "what": {"reference": f"Patient/{patient}"},
                "type": _coding(_ENTITY_TYPE, "1", "Person"),
                "role": _coding(_OBJECT_ROLE, "1", "Patient"),
            }
        )
    return out


def _coding(system: str, code: str, display: str) -> dict[str, str]:
    return {"system": system, "code": code, "display": display}


def _concept(coding: Coding) -> dict[str, Any]:
    return {"coding": [_coding(*coding)]}
