"""Small invented messages as entries, for the store tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from conformance import systems
from conformance.fhirjson import JsonNumber
from fhir_server.store.change import Origin
from mappings import ids
from mappings.model import Entry, Recency, Tier

FACILITY = "county"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def origin(inbox: int = 1, *, minute: int = 0, backfill: bool = False, facility: str = FACILITY) -> Origin:
    return Origin(facility, inbox, 1, NOON + timedelta(minutes=minute), backfill)


def patient_id(number: str) -> str:
    return ids.logical_id(ids.shard_of(FACILITY, f"|{number}"), FACILITY, "Patient", f"|{number}")


def report_id(number: str, report: str) -> str:
    return ids.logical_id(ids.shard_of(FACILITY, f"|{number}"), FACILITY, "DiagnosticReport", report)


def observation_id(number: str, report: str, code: str) -> str:
    return ids.logical_id(ids.shard_of(FACILITY, f"|{number}"), FACILITY, "Observation", report, code)


def recency(minute: int, tier: Tier = Tier.FINAL, rank: int = 3) -> Recency:
    at = f"2026-03-01T10:{minute:02d}:00.000000Z"
    return Recency(int(tier), at, at, rank)


def patient(number: str, *, name: str = "王小明", at: int = 0, tier: Tier = Tier.MENTION) -> Entry:
    logical = patient_id(number)
    resource: dict[str, Any] = {
        "resourceType": "Patient",
        "id": logical,
        "identifier": [{"system": systems.facility_system(FACILITY, "patient"), "value": number}],
        "name": [{"text": name}],
    }
    return Entry(resource, recency(at, tier), logical)


def report(
    number: str,
    name: str,
    values: dict[str, str],
    *,
    at: int,
    status: str = "final",
    tier: Tier = Tier.FINAL,
) -> list[Entry]:
    """A laboratory message: the patient mentioned, a report, a specimen and one Observation for each value."""
    who = patient_id(number)
    parent = report_id(number, name)
    shard = ids.shard_of(FACILITY, f"|{number}")
    specimen = ids.logical_id(shard, FACILITY, "Specimen", name)
    meta = {"source": systems.source_uri(FACILITY, f"M{at}")}
    subject = {"reference": f"Patient/{who}"}
    entries = [
        patient(number, at=at),
        Entry(
            {
                "resourceType": "Specimen",
                "id": specimen,
                "meta": meta,
                "type": {"coding": [{"system": systems.V2 + "0487", "code": "SER"}]},
                "subject": subject,
                "collection": {"collectedDateTime": "2026-03-01T09:30:00+08:00"},
            },
            recency(at, tier),
            who,
            parent=parent,
        ),
        Entry(
            {
                "resourceType": "DiagnosticReport",
                "id": parent,
                "meta": meta,
                "identifier": [{"system": systems.facility_system(FACILITY, "filler"), "value": name}],
                "status": status,
                "code": {"text": "生化"},
                "subject": subject,
                "basedOn": [{"reference": f"ServiceRequest/{ids.logical_id(shard, FACILITY, 'ServiceRequest', name)}"}],
                "issued": "2026-03-01T11:00:00+08:00",
                "result": [{"reference": f"Observation/{observation_id(number, name, code)}"} for code in values],
            },
            recency(at, tier),
            who,
            business=f"DiagnosticReport|{systems.facility_system(FACILITY, 'filler')}|{name}",
        ),
    ]
    entries += [
        Entry(
            {
                "resourceType": "Observation",
                "id": observation_id(number, name, code),
                "meta": meta,
                "status": status,
                "code": {"coding": [{"system": systems.local_codes(FACILITY, "tests"), "code": code}], "text": code},
                "subject": subject,
                "specimen": {"reference": f"Specimen/{specimen}"},
                "valueQuantity": {
                    "value": JsonNumber(value),
                    "unit": "mmol/L",
                    "system": systems.UCUM,
                    "code": "mmol/L",
                },
            },
            recency(at, tier),
            who,
            parent=parent,
        )
        for code, value in values.items()
    ]
    return entries


def practitioner(number: str, name: str = "李医生") -> Entry:
    resource = {
        "resourceType": "Practitioner",
        "id": ids.directory_id(FACILITY, "Practitioner", number),
        "name": [{"text": name}],
    }
    return Entry(resource, recency(0, Tier.MENTION), None)
