"""What a clinician writes himself does not open to him what other facilities hold (docs/access.md, "Treatment relationship").

Anybody can register a Patient under somebody else's number and write an order for him. So a visit, order or referral that a person
writes for somebody his facility does not treat already counts for what the facility registered alone, and a Patient that he
registered for no order-time answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import psycopg

from conformance import fhirjson
from conformance.capability import RESOURCE_TYPES
from fhir_server.errors import Category, Fault
from fhir_server.identity import matcher
from fhir_server.scope.rows import Relation, facility_names
from fhir_server.search import params
from fhir_server.store.access_rows import MADE_BY, TREATING, WRITTEN_BY
from fhir_server.store.change import Change

_PATIENT: Final = RESOURCE_TYPES["Patient"]


def registered(conn: psycopg.Connection[Any], relation: Relation, patient: str) -> bool:
    """Did the asker's facility register the Patient?"""
    found = conn.execute(
        "SELECT FROM source_patient p JOIN resource r ON r.shard = p.shard AND r.rtype = %s AND r.id = p.patient"
        " WHERE p.patient = %s AND p.facility = %s",
        [_PATIENT, patient, relation.facility],
    )
    return relation.facility != "" and found.fetchone() is not None


def is_limited(
    conn: psycopg.Connection[Any],
    relation: Relation,
    resource: dict[str, Any],
    current: Callable[[str, str], Change | None],
    *,
    new: bool,
) -> bool:
    """Must ``restrict`` follow when the asker stores this resource? To be asked before. True for a new Patient, and for what would
    make a treatment relationship that the facility has not yet; what the asker opened by break-glass ends, and is his alone.

    ``current``: the current state of a resource he sees. Raises Fault FORBIDDEN when it would make a Patient somebody else.
    """
    if resource["resourceType"] == "Patient":
        if not new:
            before = current("Patient", resource["id"])
            _require_same(conn, relation, fhirjson.loads(before.body) if before else None, resource)
        return new
    if resource["resourceType"] not in TREATING:
        return False
    patient = params.extract(resource).patient
    return patient is not None and not _treated(conn, relation, patient)


def restrict(conn: psycopg.Connection[Any], relation: Relation, place: tuple[int, int, str]) -> None:
    """Makes what was just stored (shard, type, id) count for what the asker's facility registered alone; a Patient is marked as
    registered by a clinician."""
    if place[1] == _PATIENT:
        conn.execute(
            "INSERT INTO treatment (shard, rtype, id, facility, patient, until) VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            [*place, MADE_BY + relation.facility, place[2], relation.now],
        )
        return
    conn.execute(
        "DELETE FROM treatment WHERE shard = %s AND rtype = %s AND id = %s AND facility <> %s",
        [*place, relation.facility],
    )
    if relation.facility:
        conn.execute(
            "UPDATE treatment SET facility = %s WHERE shard = %s AND rtype = %s AND id = %s",
            [WRITTEN_BY + relation.facility, *place],
        )


def _require_same(
    conn: psycopg.Connection[Any], relation: Relation, before: dict[str, Any] | None, after: dict[str, Any]
) -> None:
    """What links a Patient to those of other facilities may be changed where a clinician of the facility registered it, and nobody
    else has told of a treatment."""
    if matcher.facts(before) == matcher.facts(after):
        return
    made = conn.execute(
        "SELECT FROM source_patient s JOIN treatment t ON t.shard = s.shard AND t.rtype = %s AND t.id = s.patient"
        " WHERE s.patient = %s AND t.facility = %s",
        [_PATIENT, after["id"], MADE_BY + relation.facility],
    )
    if made.fetchone() is None or _treated(conn, relation, after["id"]):
        text = "Name, sex, birth date and resident ID number are changed by the system that registered the patient."
        raise Fault(Category.FORBIDDEN, text, where="Patient")


def _treated(conn: psycopg.Connection[Any], relation: Relation, patient: str) -> bool:
    found = conn.execute(
        "SELECT FROM source_patient s JOIN source_patient o ON o.person = s.person"
        " JOIN treatment t ON t.shard = o.shard AND t.patient = o.patient"
        " WHERE s.patient = %s AND t.facility = ANY(%s) AND t.until > %s LIMIT 1",
        [patient, facility_names(relation.facility), relation.since],
    )
    return found.fetchone() is not None
