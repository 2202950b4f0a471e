"""A county in a database: Patients, persons, reports and orders, written through the store as a feed would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg

from conformance import systems
from conformance.fhirjson import JsonNumber
from fhir_server.recognition.rules import Rules
from fhir_server.store import repository
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from mappings.ids import logical_id, shard_of, shard_of_id
from mappings.model import Entry, Recency, Tier
from mappings.times import sortable


@dataclass
class County:
    """Writes rows; every method commits. Times are aware; ``recorded`` is when the platform got to know."""

    url: str
    rules: Rules
    counts: dict[str, int] = field(default_factory=dict)

    def _apply(self, facility: str, recorded: datetime, entries: Sequence[Entry]) -> None:
        with psycopg.connect(self.url) as conn:
            repository.apply(conn, Codec.load(conn), [(Origin(facility, None, None, recorded), entries)])

    def patient(self, facility: str, number: str, person: str, since: datetime, until: datetime | None = None) -> str:
        """A Patient of a facility, linked to a person from ``since``; its logical id."""
        key = f"{systems.facility_system(facility, 'patient')}|{number}"
        shard = shard_of(facility, key)
        logical = logical_id(shard, facility, "Patient", key)
        if f"Patient/{logical}" not in self.counts:
            system, _, value = key.partition("|")
            resource = {"resourceType": "Patient", "id": logical, "identifier": [{"system": system, "value": value}]}
            self._apply(facility, since, [Entry(resource, Recency(Tier.FINAL, "", sortable(since)), logical)])
        self.counts[f"Patient/{logical}"] = 1
        with psycopg.connect(self.url) as conn:
            conn.execute(
                "INSERT INTO source_patient (shard, patient, facility, person) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (shard, patient) DO UPDATE SET person = excluded.person",
                (shard, logical, facility, person),
            )
            conn.execute(
                "UPDATE identity_link SET until = %s WHERE shard = %s AND patient = %s AND until IS NULL",
                (since, shard, logical),
            )
            conn.execute(
                "INSERT INTO identity_link (shard, patient, recorded, until, person, grade, basis)"
                " VALUES (%s, %s, %s, %s, %s, 'certain', 'resident-id')",
                (shard, logical, since, until, person),
            )
        return logical

    def report(
        self,
        facility: str,
        patient: str,
        number: str,
        items: Sequence[str],
        effective: datetime | None,
        *,
        recorded: datetime | None = None,
        issued: datetime | None = None,
        status: str = "final",
        order: str = "",
        mapped: bool = True,
        changes: Mapping[str, Any] | None = None,
    ) -> str:
        """A report with one Observation an item; its logical id. Sent again with the same number it is a new version."""
        issued = issued or (effective + timedelta(minutes=30) if effective else None)
        recorded = recorded or (issued + timedelta(minutes=1) if issued else datetime.now().astimezone())
        shard = _shard(patient)
        logical = logical_id(shard, facility, "DiagnosticReport", number)
        tier = Tier.PRELIMINARY if status in ("preliminary", "registered") else Tier.FINAL
        recency = Recency(tier, sortable(issued) if issued else "", sortable(recorded))
        subject = {"reference": f"Patient/{patient}"}
        based_on = {"basedOn": [{"reference": f"ServiceRequest/{order}"}]} if order else {}
        times = ({"effectiveDateTime": effective.isoformat()} if effective else {}) | (
            {"issued": issued.isoformat()} if issued else {}
        )
        entries = []
        for code in items:
            item = self.rules.items[code]
            coding = [{"system": systems.local_codes(facility, "tests"), "code": f"{facility}-{code}"}]
            if mapped:
                coding.append({"system": systems.ITEMS, "code": code})
            value: dict[str, Any] = {"valueString": "阴性"}
            if item.unit:
                quantity = {"value": JsonNumber("6.30"), "unit": item.unit, "system": systems.UCUM, "code": item.unit}
                value = {"valueQuantity": quantity}
            observation = {
                "resourceType": "Observation",
                "id": logical_id(shard, facility, "Observation", number, code),
                "status": status,
                "code": {"coding": coding, "text": item.name_zh},
                "subject": subject,
                **based_on,
                **times,
                **value,
                **(changes or {}),
            }
            entries.append(Entry(observation, recency, patient, parent=logical))
        report = {
            "resourceType": "DiagnosticReport",
            "id": logical,
            "status": status,
            "identifier": [{"system": systems.facility_system(facility, "filler"), "value": number}],
            "code": {"text": number},
            "subject": subject,
            "result": [{"reference": f"Observation/{e.resource['id']}"} for e in entries],
            **based_on,
            **times,
        }
        self._apply(facility, recorded, [Entry(report, recency, patient), *entries])
        return logical

    def order(
        self,
        facility: str,
        patient: str,
        number: str,
        code: str,
        authored: datetime | None,
        system: str = "",
        **changes: Any,
    ) -> str:
        """A ServiceRequest with the facility's own order code, or one of ``system``; its logical id."""
        logical = logical_id(_shard(patient), facility, "ServiceRequest", number)
        resource = {
            "resourceType": "ServiceRequest",
            "id": logical,
            "meta": {"source": systems.source_uri(facility, number)},
            "status": "active",
            "intent": "order",
            "identifier": [{"system": systems.facility_system(facility, "placer"), "value": number}],
            "code": {"coding": [{"system": system or systems.local_codes(facility, "orders"), "code": code}]},
            "subject": {"reference": f"Patient/{patient}"},
            **({"authoredOn": authored.isoformat()} if authored else {}),
            **changes,
        }
        recorded = authored or datetime.now().astimezone()
        self._apply(facility, recorded, [Entry(resource, Recency(Tier.FINAL, "", sortable(recorded)), patient)])
        return logical

    def encounter(self, facility: str, patient: str, number: str, kind: str, since: datetime, **more: Any) -> str:
        """A visit of a class (AMB, EMER ...); its logical id."""
        logical = logical_id(_shard(patient), facility, "Encounter", number)
        resource = {
            "resourceType": "Encounter",
            "id": logical,
            "status": "in-progress",
            "class": {"system": systems.V3 + "ActCode", "code": kind},
            "subject": {"reference": f"Patient/{patient}"},
            **more,
        }
        self._apply(facility, since, [Entry(resource, Recency(Tier.FINAL, "", sortable(since)), patient)])
        return logical


def _shard(patient: str) -> int:
    shard = shard_of_id(patient)
    assert shard is not None
    return shard
