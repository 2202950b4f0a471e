"""Results follow a report that is written through the API: a DiagnosticReport that is set cancelled or entered-in-error withdraws its
results, and one that is written in force again ends that.

Results that came by message belong to their report (voided.follow). Those of clients are the ones that the report names, or named
before, and that no other report in force names. One that is written again after that is said again, and in force.
"""

from __future__ import annotations

from typing import Any

from fhir_server.search import params
from fhir_server.store import rows, voided
from fhir_server.store.body import Codec
from fhir_server.store.headings import results_of
from fhir_server.store.statement import Key, with_status
from fhir_server.store.versions import DIAGNOSTIC_REPORT, OBSERVATION, Batch, stored_resource


def follow(cursor: rows.Cursor, codec: Codec, batch: Batch, report: Key) -> None:
    """Puts into the batch what the report in it changes about its results."""
    voided.follow(cursor, codec, batch)
    statement = batch.versions[report][-1].statement
    before = rows.bodies(cursor, [report]) if report in batch.before else {}
    said = {*results_of(statement.resource)}
    named = said | {r for body in before.values() for r in results_of(stored_resource(codec, body))}
    void = statement.resource.get("status") in voided.VOID
    found = {
        key: state
        for key, state in rows.states(cursor, [(report[0], OBSERVATION, name) for name in sorted(named)]).items()
        if state.patient == statement.patient
        and state.parent is None
        and not state.deleted
        and (void or state.withdrawn is not None)
    }
    for key, stored in rows.bodies(cursor, found).items():
        state, resource = found[key], stored_resource(codec, stored)
        if state.withdrawn is not None:
            if void or key[2] not in said:
                continue
            resource = with_status(resource, state.withdrawn)
        elif not void or resource.get("status") in voided.VOID or _vouched(cursor, codec, report, key, state.patient):
            continue
        batch.before[key] = state
        voided.turn(batch, key, state, resource, statement.origin)


def _vouched(cursor: rows.Cursor, codec: Codec, report: Key, result: Key, patient: str | None) -> bool:
    """Whether another report of the patient that is in force names the result."""
    if patient is None:
        return False
    naming: dict[str, Any] = {"resourceType": "DiagnosticReport", "result": [{"reference": f"Observation/{result[2]}"}]}
    others = rows.of_patients(cursor, [(result[0], patient)], [DIAGNOSTIC_REPORT], list(params.extract(naming).tokens))
    return any(
        key != report and stored_resource(codec, body).get("status") not in voided.VOID for key, _, body in others
    )
