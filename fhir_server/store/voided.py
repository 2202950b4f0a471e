"""Results follow their report: what a laboratory reported before it cancelled the report (OBR-25 X without OBX), or with it (OBX-11 F
below OBR-25 X), is withdrawn, and in force again when the report is.

A result that is not void itself is withdrawn while its report is, and was not said to be so before the result was said. That depends
on the current versions alone, so any order of arrival ends in the same state. A report whose number belongs to another patient is not
looked at: its parts are withdrawn with it (repository).
"""

from __future__ import annotations

from typing import Any, Final

from fhir_server.store import rows
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from fhir_server.store.fold import Version, advanced
from fhir_server.store.joining import current
from fhir_server.store.statement import Key, State, Statement, of_state, said_at, with_status
from fhir_server.store.versions import DIAGNOSTIC_REPORT, OBSERVATION, Batch, stored_resource

VOID: Final = frozenset({"cancelled", "entered-in-error"})


def follow(cursor: rows.Cursor, codec: Codec, batch: Batch) -> None:
    """Withdraws results of the batch, and stored ones, whose report is void; ends the withdrawal of those whose report is not."""
    told = {key: v.statement for key, v in current(batch, (DIAGNOSTIC_REPORT,))}
    if not any(key[1] == DIAGNOSTIC_REPORT for key in batch.before) and not any(map(_is_void, told.values())):
        return  # nearly always: reports that are new and in force
    results = {key: v.statement for key, v in current(batch, (OBSERVATION,))}
    states = {key: batch.after[key] for key in results}
    corrected = [(key[0], key[2]) for key in told if key in batch.before]
    for key, state in rows.family(cursor, corrected).items():
        if key[1] == OBSERVATION and key not in states:
            states[key] = batch.after.get(key, state)
    # The late ones: their report was current before, and only its stored body says its status.
    late = {_report(key, states[key]) for key in results} - told.keys()
    stored = {key: stored_resource(codec, s) for key, s in rows.bodies(cursor, late & batch.before.keys()).items()}
    turning: dict[Key, State] = {}
    for key, state in states.items():
        home = _report(key, state)
        report = batch.after.get(home) or batch.before.get(home)
        if report is None or report.withdrawn is not None or report.patient != state.patient or state.deleted:
            continue
        said = told[home].resource if home in told else stored.get(home, {})
        own = key in results and results[key].resource.get("status") in VOID
        void = not own and said.get("status") in VOID and said_at(report.recency) >= said_at(state.recency)
        if void != (state.withdrawn is not None):
            turning[key] = state
    kept = rows.bodies(cursor, turning.keys() - results.keys())
    for key, state in turning.items():
        if key in results:
            resource, origin = results[key].resource, results[key].origin
        else:
            resource, origin = stored_resource(codec, kept[key]), told[_report(key, state)].origin
            if state.withdrawn is not None:
                resource = with_status(resource, state.withdrawn)
            elif resource.get("status") in VOID:
                continue
        batch.before.setdefault(key, state)
        turn(batch, key, state, resource, origin)


def _is_void(report: Statement) -> bool:
    return report.resource.get("status") in VOID


def _report(key: Key, state: State) -> Key:
    return key[0], DIAGNOSTIC_REPORT, state.parent or ""


def turn(batch: Batch, key: Key, state: State, resource: dict[str, Any], origin: Origin) -> None:
    """One more version of what is current: withdrawn where it was in force, in force where it was withdrawn.

    resource: as stated, with its own status; origin: of the statement that is the reason.
    """
    stated = (resource.get("status") or "") if state.withdrawn is None else None
    after = advanced(state, origin, stated)
    again = of_state(key, resource, state, origin)
    batch.after[key] = after
    batch.versions.setdefault(key, []).append(
        Version(again, after.version, after.updated, "updated", stated, restored=stated is None)
    )
