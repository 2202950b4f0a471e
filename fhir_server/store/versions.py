"""Versions -> rows: bodies, search values, flat results and history, written for a whole batch at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.search import params
from fhir_server.store import rows
from fhir_server.store.body import Codec
from fhir_server.store.change import Change, Origin
from fhir_server.store.fold import Version
from fhir_server.store.results import Kind, Result, flatten
from fhir_server.store.statement import WITHDRAWN, Key, State, instant, render, tail_of, with_status

OBSERVATION: Final = RESOURCE_TYPES["Observation"]
DIAGNOSTIC_REPORT: Final = RESOURCE_TYPES["DiagnosticReport"]
SPECIMEN: Final = RESOURCE_TYPES["Specimen"]


@dataclass(slots=True)
class Batch:
    """What one transaction writes. before: states found; after: states as folded; versions: to write, of each key in order."""

    before: dict[Key, State] = field(default_factory=dict)
    after: dict[Key, State] = field(default_factory=dict)
    versions: dict[Key, list[Version]] = field(default_factory=dict)
    named: dict[Key, dict[str, Any]] = field(default_factory=dict)
    """Specimens and DiagnosticReports the batch states, for the flat results."""


def write(cursor: rows.Cursor, codec: Codec, batch: Batch) -> list[Change]:
    """Writes the batch inside the caller's transaction; one Change for each version, those of one resource in order.

    Everything that asks or moves comes first; then rows are made while the server takes in the ones before (COPY).
    """
    past: list[tuple[Key, Version]] = []
    current: list[tuple[Key, Version]] = []
    for key, versions in batch.versions.items():
        for version in versions:
            (current if version.number == batch.after[key].version else past).append((key, version))
    rows.supersede(cursor, {key: batch.after[key].updated for key, _ in current if key in batch.before})
    rows.advance(cursor, _moved(batch))
    flat = _results(cursor, codec, batch, current)

    changes: list[Change] = []
    instants: dict[datetime, str] = {}
    if past:  # before the current rows, so that change numbers follow the order of versions
        with rows.copying(cursor, "resource_history") as add:
            for key, version in past:
                resource, body = rendered(version, instants)
                changes.append(_change(key, version, resource, body))
                add(_history_row(key, version, codec.compress(body)))
    search: list[tuple[Any, ...]] = []
    if current:
        with rows.copying(cursor, "resource") as add:
            for key, version in current:
                after = batch.after[key]
                resource, body = rendered(version, instants)
                changes.append(_change(key, version, resource, body))
                indexed = params.extract(resource)
                add(current_row(key, version, after, indexed, flat.get(key), codec.compress(body)))
                for ordinal, value in enumerate(indexed.values):
                    search.append((*key, ordinal, *value))
    rows.copy(cursor, "search_value", search)
    return changes


def stored_resource(codec: Codec, stored: tuple[int, bytes]) -> dict[str, Any]:
    """A resource from its row (dictionary id, compressed body)."""
    resource: dict[str, Any] = loads(codec.decompress(*stored))
    return resource


def rendered(version: Version, instants: dict[datetime, str]) -> tuple[dict[str, Any], bytes]:
    """The resource as served, as dict and as JSON. ``instants`` remembers times already written out: a batch has few."""
    updated = instants.get(version.updated)
    if updated is None:
        updated = instants[version.updated] = instant(version.updated)
    statement = version.statement
    if version.withdrawn is None:
        return render(statement.resource, statement.tail, version.number, updated)
    resource = with_status(statement.resource, WITHDRAWN)
    return render(resource, tail_of(resource), version.number, updated)


def _change(key: Key, version: Version, resource: dict[str, Any], body: bytes) -> Change:
    statement = version.statement
    return Change(
        kind=version.kind,
        resource_type=statement.resource_type,
        id=key[2],
        shard=key[0],
        version=version.number,
        updated=version.updated,
        patient=statement.patient,
        origin=statement.origin,
        resource=resource,
        body=body,
        voided=version.withdrawn is not None and version.kind != "stale",
        restored=version.restored,
        left=version.left,
    )


def current_row(
    key: Key,
    version: Version,
    after: State,
    indexed: params.Indexed,
    flat: tuple[int, Result] | None,
    stored: tuple[int, bytes],
) -> tuple[Any, ...]:
    """The row of ``resource`` for a version that is current; ``flat``: number of the kind and result of an Observation of a patient."""
    origin = version.statement.origin
    return (
        *key,
        version.number,
        after.top,
        version.updated,
        False,
        after.patient,
        after.parent,
        indexed.start,
        indexed.end,
        indexed.issued,
        rows.packed(indexed.tokens),
        rows.stored_recency(after),
        after.content,
        after.withdrawn,
        origin.inbox,
        origin.mapping,
        origin.backfill,
        *(_NO_RESULT if flat is None else _result_columns(*flat, indexed)),
        *stored,
    )


_NO_RESULT: Final = (None,) * 6


def _result_columns(kind: int, flat: Result, indexed: params.Indexed) -> tuple[Any, ...]:
    effective = flat.effective if indexed.start is None else None
    issued = flat.issued if indexed.issued is None else None
    return kind, flat.order, flat.number, flat.value_text, effective, issued


def _history_row(key: Key, version: Version, stored: tuple[int, bytes]) -> tuple[Any, ...]:
    statement = version.statement
    return (
        *key,
        version.number,
        version.updated,
        False,
        version.kind == "stale",
        statement.patient,
        statement.content,
        statement.origin.inbox,
        statement.origin.mapping,
        *stored,
    )


def _results(
    cursor: rows.Cursor, codec: Codec, batch: Batch, current: Iterable[tuple[Key, Version]]
) -> dict[Key, tuple[int, Result]]:
    """Number of the kind and flat result of each Observation about a patient."""
    mine = [(key, version) for key, version in current if key[1] == OBSERVATION and batch.after[key].patient]
    specimens = _specimens(cursor, codec, batch.named, (version for _, version in mine))
    flat: dict[Key, tuple[Kind, Result]] = {}
    for key, version in mine:
        statement, parent = version.statement, batch.after[key].parent
        result = flatten(
            statement.resource if version.withdrawn is None else with_status(statement.resource, WITHDRAWN),
            facility=statement.origin.facility,
            report=batch.named.get((key[0], DIAGNOSTIC_REPORT, parent)) if parent else None,
            specimen=specimens.get(_specimen_key(key[0], statement.resource)),
        )
        flat[key] = result.kind(statement.origin.facility), result
    numbers = rows.kinds(cursor, {kind for kind, _ in flat.values()})
    return {key: (numbers[kind], result) for key, (kind, result) in flat.items()}


def _specimens(
    cursor: rows.Cursor, codec: Codec, named: Mapping[Key, dict[str, Any]], observations: Iterable[Version]
) -> Mapping[Key, dict[str, Any]]:
    """The specimens of the Observations: of the batch, and those that only the store has (a correction may not repeat it)."""
    wanted = {_specimen_key(version.statement.key[0], version.statement.resource) for version in observations}
    missing = [key for key in wanted if key[2] and key not in named]
    if not missing:
        return named
    found = {key: stored_resource(codec, stored) for key, stored in rows.bodies(cursor, missing).items()}
    return {**named, **found}


def _specimen_key(shard: int, resource: Mapping[str, Any]) -> Key:
    """Key of Observation.specimen, which shares the shard of its patient; an empty id when there is none."""
    kind, _, logical = ((resource.get("specimen") or {}).get("reference") or "").partition("/")
    return shard, SPECIMEN, logical if kind == "Specimen" else ""


def _moved(batch: Batch) -> dict[Key, State]:
    """Rows that stay current, but of which a stale version or a repeated statement raised ``top`` or ``recency``."""
    out = {}
    for key, before in batch.before.items():
        after = batch.after.get(key, before)
        if after.version == before.version and (after.top != before.top or after.recency != before.recency):
            out[key] = after
    return out


def delete(cursor: rows.Cursor, codec: Codec, key: Key, state: State, origin: Origin) -> None:
    """Replaces the current row by one without content: nothing to find it by, its versions in history. ``state`` is the new one."""
    rows.supersede(cursor, {key: state.updated})
    nothing = (None, None, None, None)  # parent and times
    row: tuple[Any, ...] = (
        *(*key, state.version, state.top, state.updated, True, state.patient),
        *(*nothing, rows.packed([]), rows.stored_recency(state), state.content, None, origin.inbox, origin.mapping),
        *(origin.backfill, *_NO_RESULT),
        *codec.compress(b""),
    )
    rows.copy(cursor, "resource", [row])
