"""Results follow their report: what a laboratory reported before it cancelled the report (OBR-25 X without OBX), or with it (OBX-11 F
below OBR-25 X), is withdrawn until it is said again.

A report that comes again with some of its results puts these in force; the others stay withdrawn, because nobody has said since that
they hold. One that comes again without any result is in force as it was. That depends on the statements alone, so any order of arrival
ends in the same state. A report whose number belongs to another patient is not looked at: its parts are withdrawn with it (repository).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any, Final

from fhir_server.store import rows
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from fhir_server.store.fold import Version, advanced
from fhir_server.store.joining import current
from fhir_server.store.statement import (
    Key,
    State,
    Statement,
    digest,
    of_state,
    said_at,
    said_in,
    tail_of,
    with_status,
)
from fhir_server.store.versions import DIAGNOSTIC_REPORT, OBSERVATION, Batch, stored_resource

VOID: Final = frozenset({"cancelled", "entered-in-error"})
_NEVER: Final = (-1, -1)


def follow(cursor: rows.Cursor, codec: Codec, batch: Batch) -> None:
    """Withdraws results of the batch, and stored ones, whose report is void; ends the withdrawal of those whose report is not."""
    said = {
        key: [v.statement for v in versions] for key, versions in batch.versions.items() if key[1] == DIAGNOSTIC_REPORT
    }
    if not any(key[1] == DIAGNOSTIC_REPORT for key in batch.before) and not any(map(_is_void, chain(*said.values()))):
        return  # nearly always: reports that are new and in force
    told = {key: v.statement for key, v in current(batch, (DIAGNOSTIC_REPORT,))}
    results = {key: v.statement for key, v in current(batch, (OBSERVATION,))}
    states = {key: batch.after[key] for key in results}
    corrected = [(key[0], key[2]) for key in said if key in batch.before]
    for key, state in rows.family(cursor, corrected).items():
        if key[1] == OBSERVATION and key not in states:
            states[key] = batch.after.get(key, state)
    # Their report was current before, and only its stored body says what it says.
    late = {_report(key, state) for key, state in states.items()} - told.keys()
    stored = {key: stored_resource(codec, s) for key, s in rows.bodies(cursor, late & batch.before.keys()).items()}
    reports = stored | {key: statement.resource for key, statement in told.items()}
    looked = {key: state for key, state in states.items() if _follows(state, _report(key, state), batch)}
    unsaid = {
        key: home for key, state in looked.items() if _unsaid(key, reports.get(home := _report(key, state)) or {})
    }
    voided = _voided(cursor, codec, batch, said, set(unsaid.values()))
    turning: dict[Key, State] = {}
    for key, state in looked.items():
        home = _report(key, state)
        own = key in results and results[key].resource.get("status") in VOID
        void = not own and key in unsaid and voided.get(home, _NEVER) >= said_at(state.recency)
        if void != (state.withdrawn is not None):
            turning[key] = state
    kept = rows.bodies(cursor, turning.keys() - results.keys())
    for key, state in turning.items():
        home = _report(key, state)
        if key in results:
            resource, origin = results[key].resource, results[key].origin
        else:
            reason = told.get(home) or said[home][-1]
            resource, origin = stored_resource(codec, kept[key]), reason.origin
            if state.withdrawn is not None:
                resource = with_status(resource, state.withdrawn)
            elif resource.get("status") in VOID:
                continue
        batch.before.setdefault(key, state)
        turn(batch, key, state, resource, origin)


def _follows(state: State, home: Key, batch: Batch) -> bool:
    report = batch.after.get(home) or batch.before.get(home)
    return report is not None and report.withdrawn is None and report.patient == state.patient and not state.deleted


def _unsaid(key: Key, report: Mapping[str, Any]) -> bool:
    """Whether the report as it stands does not vouch for the result: it is void, or states others and not this one."""
    if report.get("status") in VOID:
        return True
    listed = report.get("result") or ()
    return bool(listed) and {"reference": f"Observation/{key[2]}"} not in listed


def _voided(
    cursor: rows.Cursor, codec: Codec, batch: Batch, said: Mapping[Key, list[Statement]], homes: Collection[Key]
) -> dict[Key, tuple[int, int]]:
    """When each report was last said to be void (``said_at``), now or ever."""
    times = [(key, said_at(s.recency)) for key in homes for s in said.get(key, ()) if _is_void(s)]
    stored = {key: state for key in homes if (state := batch.before.get(key)) is not None}
    now = rows.bodies(cursor, stored)
    for key, body in now.items():
        if stored[key].withdrawn is None and stored_resource(codec, body).get("status") in VOID:
            times.append((key, said_at(stored[key].recency)))
    for key, content, sent, body in rows.past_bodies(cursor, [key for key, state in stored.items() if state.top > 1]):
        report = stored_resource(codec, body)
        # A report that was withdrawn because its number went to another patient was not said to be void.
        if report.get("status") == "cancelled" or (
            report.get("status") == "entered-in-error" and digest(report, tail_of(report)) == content
        ):
            times.append((key, said_in(report.get("issued", ""), sent)))
    out: dict[Key, tuple[int, int]] = {}
    for key, at in times:
        out[key] = max(at, out.get(key, _NEVER))
    return out


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
