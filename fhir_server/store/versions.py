"""Versions -> rows: bodies, search values, flat results and history, written for a whole batch at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.search import params
from fhir_server.store import rows
from fhir_server.store.body import Codec
from fhir_server.store.change import Change, Origin
from fhir_server.store.fold import Version
from fhir_server.store.results import flatten
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


@dataclass(slots=True)
class _Rows:
    history: list[tuple[Any, ...]] = field(default_factory=list)
    current: list[tuple[Any, ...]] = field(default_factory=list)
    search: list[tuple[Any, ...]] = field(default_factory=list)
    results: list[tuple[Any, ...]] = field(default_factory=list)


def write(cursor: rows.Cursor, codec: Codec, batch: Batch) -> list[Change]:
    """Writes the batch inside the caller's transaction; one Change for each version."""
    changes: list[Change] = []
    new = _Rows()
    observations: list[tuple[Version, dict[str, Any]]] = []
    superseded: list[Key] = []
    instants: dict[Any, str] = {}
    for key, versions in batch.versions.items():
        after = batch.after[key]
        for version in versions:
            text = instants.get(version.updated)
            if text is None:
                text = instants[version.updated] = instant(version.updated)
            resource, body = _rendered(version, text)
            changes.append(_change(key, version, resource, body))
            stored = codec.compress(body)
            if version.number == after.version:
                _add_current(new, key, version, after, resource, stored)
                if key in batch.before:
                    superseded.append(key)
                if key[1] == OBSERVATION and after.patient:
                    observations.append((version, resource))
            else:
                _add_history(new, key, version, stored)
    _add_results(new, cursor, codec, batch, observations)
    rows.supersede(cursor, superseded)
    rows.close_results(cursor, [(k[0], k[2], batch.after[k].updated) for k in superseded if k[1] == OBSERVATION])
    rows.advance(cursor, _moved(batch))
    rows.insert(cursor, history=new.history, current=new.current, search=new.search, results=new.results)
    return changes


def stored_resource(codec: Codec, stored: tuple[int, bytes]) -> dict[str, Any]:
    """A resource from its row (dictionary id, compressed body)."""
    resource: dict[str, Any] = loads(codec.decompress(*stored))
    return resource


def _rendered(version: Version, updated: str) -> tuple[dict[str, Any], bytes]:
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


def _add_current(
    new: _Rows, key: Key, version: Version, after: State, resource: dict[str, Any], stored: tuple[int, bytes]
) -> None:
    indexed = params.extract(resource)
    origin = version.statement.origin
    new.current.append(
        (
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
            indexed.tokens,
            after.recency,
            after.content,
            after.withdrawn,
            origin.inbox,
            origin.mapping,
            *stored,
        )
    )
    for ordinal, value in enumerate(indexed.values):
        new.search.append((*key, ordinal, *value))


def _add_history(new: _Rows, key: Key, version: Version, stored: tuple[int, bytes]) -> None:
    statement = version.statement
    new.history.append(
        (
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
    )


def _add_results(
    new: _Rows, cursor: rows.Cursor, codec: Codec, batch: Batch, observations: list[tuple[Version, dict[str, Any]]]
) -> None:
    specimens = _specimens(cursor, codec, batch.named, observations)
    for version, resource in observations:
        statement = version.statement
        shard, _, logical = statement.key
        parent = batch.after[statement.key].parent
        flat = flatten(
            resource,
            facility=statement.origin.facility,
            report=batch.named.get((shard, DIAGNOSTIC_REPORT, parent)) if parent else None,
            specimen=specimens.get(_specimen_key(shard, resource)),
        )
        new.results.append(
            (
                shard,
                logical,
                version.number,
                statement.patient,
                parent,
                statement.origin.facility,
                version.updated,
                statement.origin.backfill,
                *flat,
            )
        )


def _specimens(
    cursor: rows.Cursor,
    codec: Codec,
    named: Mapping[Key, dict[str, Any]],
    observations: Iterable[tuple[Version, dict[str, Any]]],
) -> Mapping[Key, dict[str, Any]]:
    """The specimens of the Observations: of the batch, and those that only the store has (a correction may not repeat it)."""
    wanted = {_specimen_key(version.statement.key[0], resource) for version, resource in observations}
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
    rows.supersede(cursor, [key])
    if key[1] == OBSERVATION:
        rows.close_results(cursor, [(key[0], key[2], state.updated)])
    nothing = (None, None, None, None)  # parent and times
    row: tuple[Any, ...] = (
        *(*key, state.version, state.top, state.updated, True, state.patient),
        *(*nothing, [], state.recency, state.content, None, origin.inbox, origin.mapping),
        *codec.compress(b""),
    )
    rows.insert(cursor, current=[row])
