"""Versions -> rows: bodies, search values, flat results and history, written for a whole batch at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.search import params
from fhir_server.store import access_rows, headings, kinds, posted_parameters, rows
from fhir_server.store.body import Codec
from fhir_server.store.change import Change, Origin
from fhir_server.store.fold import Version
from fhir_server.store.kinds import Kind
from fhir_server.store.results import Result, flatten
from fhir_server.store.statement import WITHDRAWN, Key, State, instant, render, tail_of, with_status
from mappings import sensitive

OBSERVATION: Final = RESOURCE_TYPES["Observation"]
DIAGNOSTIC_REPORT: Final = RESOURCE_TYPES["DiagnosticReport"]
ENCOUNTER: Final = RESOURCE_TYPES["Encounter"]
SPECIMEN: Final = RESOURCE_TYPES["Specimen"]
_DIRECTORIES: Final = frozenset(RESOURCE_TYPES[name] for name in access_rows.DIRECTORIES)


@dataclass(slots=True)
class Made:
    """A version that is current, on its way to its row. flat: of an Observation about a patient; classes: of sensitive data."""

    key: Key
    version: Version
    resource: dict[str, Any]
    body: bytes
    indexed: params.Indexed = params.NOTHING
    flat: Result | None = None
    kind: Kind = kinds.NOTHING
    classes: int | None = None


@dataclass(slots=True)
class Batch:
    """What one transaction writes. before: states found; after: states as folded; versions: to write, of each key in order."""

    before: dict[Key, State] = field(default_factory=dict)
    after: dict[Key, State] = field(default_factory=dict)
    versions: dict[Key, list[Version]] = field(default_factory=dict)
    named: dict[Key, dict[str, Any]] = field(default_factory=dict)
    """Specimens, Encounters and DiagnosticReports the batch states, for the flat results."""


def write(cursor: rows.Cursor, codec: Codec, batch: Batch) -> list[Change]:
    """Writes the batch inside the caller's transaction; one Change for each version, those of one resource in order.

    Everything that asks or moves comes first; then bodies are compressed while the server takes in the rows before (COPY).
    """
    posted_parameters.learn(cursor)
    past: list[tuple[Key, Version]] = []
    current: list[tuple[Key, Version]] = []
    for key, versions in batch.versions.items():
        for version in versions:
            (current if version.number == batch.after[key].version else past).append((key, version))
    rows.supersede(cursor, {key: batch.after[key].updated for key, _ in current if key in batch.before})
    rows.advance(cursor, _moved(batch))
    instants: dict[datetime, str] = {}
    made = [Made(key, version, *rendered(version, instants)) for key, version in current]
    numbers = _index(cursor, codec, batch, made)
    reports = _classify(cursor, codec, batch, made)

    changes: list[Change] = []
    if past:  # before the current rows, so that change numbers follow the order of versions
        with rows.copying(cursor, "resource_history") as add:
            for key, version in past:
                resource, body = rendered(version, instants)
                changes.append(_change(key, version, resource, body))
                names = (key[2], version.statement.patient, None)
                classes = _classes(key, resource, version.statement.members or (body,)) or None
                add(_history_row(key, version, classes, codec.compress(body, names)))
    if made:
        with rows.copying(cursor, "resource") as add:
            for m in made:
                changes.append(_change(m.key, m.version, m.resource, m.body))
                after, order = batch.after[m.key], m.flat.order if m.flat else None
                stored = codec.compress(m.body, (m.key[2], after.patient, order))
                add(current_row(m, after, numbers[m.kind], stored))
    rows.copy(cursor, "search_value", [(*m.key, n, *value) for m in made for n, value in enumerate(m.indexed.values)])
    access_rows.spread(cursor, reports)
    access_rows.write(cursor, (_said(m, batch) for m in made))
    return changes


def _classes(key: Key, resource: Mapping[str, Any], written: Sequence[bytes], item: str | None = None) -> int:
    return 0 if key[1] in _DIRECTORIES else sensitive.table().bits(resource, written, item)


def _classify(cursor: rows.Cursor, codec: Codec, batch: Batch, made: Sequence[Made]) -> list[Key]:
    """Fills in the classes of sensitive data; the reports whose classes depend on rows beside theirs."""
    by_report: dict[Key, int] = {}
    for m in made:
        written = m.version.statement.members or (m.body,)
        bits = _classes(m.key, m.resource, written, m.kind.result.item if m.kind.result else None)
        if m.version.statement.origin.inbox is None and m.key[1] not in _DIRECTORIES:
            if bits and m.key[1] == DIAGNOSTIC_REPORT:
                headings.tell(cursor, m.key, batch.after[m.key].patient, m.resource, bits)
            if m.key[1] == OBSERVATION:
                bits |= headings.above(cursor, codec, m.key, batch.after[m.key].patient)
            bits |= access_rows.referred(cursor, m.resource)
        m.classes = bits or None
        parent = batch.after[m.key].parent
        if bits and parent:
            report = (m.key[0], DIAGNOSTIC_REPORT, parent)
            by_report[report] = by_report.get(report, 0) | bits
    here = {m.key for m in made}
    own = {m.key: m.classes for m in made if m.classes and m.key[1] == DIAGNOSTIC_REPORT}
    for m in made:
        if own and (
            parent := batch.after[m.key].parent
        ):  # "positive" says little, under the heading of its report it says all
            m.classes = (m.classes or 0) | (own.get((m.key[0], DIAGNOSTIC_REPORT, parent)) or 0) or None
        if m.key in by_report:
            m.classes = (m.classes or 0) | by_report[m.key]
    again = [m.key for m in made if m.key[1] == DIAGNOSTIC_REPORT and m.key in batch.before and not m.classes]
    return [*(key for key in by_report if key not in here), *again]


def _said(made: Made, batch: Batch) -> access_rows.Said:
    origin = made.version.statement.origin
    patient = batch.after[made.key].patient
    first = made.key not in batch.before
    return access_rows.Said(made.key, made.resource, patient, origin.facility, origin.recorded, first)


def _index(cursor: rows.Cursor, codec: Codec, batch: Batch, made: Sequence[Made]) -> dict[Kind, int]:
    """Fills in search values, flat results and kinds; the numbers of the kinds."""
    results = [m for m in made if m.key[1] == OBSERVATION and batch.after[m.key].patient]
    beside = _beside(cursor, codec, batch.named, results)
    for m in results:
        parent = batch.after[m.key].parent
        m.flat = flatten(
            m.resource,
            facility=m.version.statement.origin.facility,
            report=batch.named.get((m.key[0], DIAGNOSTIC_REPORT, parent)) if parent else None,
            specimen=beside.get(_named(m.key[0], m.resource, "specimen", SPECIMEN)),
            encounter=beside.get(_named(m.key[0], m.resource, "encounter", ENCOUNTER)),
        )
    for m in made:
        statement = m.version.statement
        if m.version.withdrawn is None:
            m.indexed = params.extract(statement.resource, statement.members)
        else:
            m.indexed = params.extract(m.resource)
        m.kind = kinds.kind_of(m.key[1], m.indexed, m.flat and m.flat.common(m.version.statement.origin.facility))
    return kinds.record(cursor, {m.kind for m in made})


def stored_resource(codec: Codec, stored: rows.Stored) -> dict[str, Any]:
    """A resource from its row."""
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


def current_row(made: Made, after: State, kind: int, stored: tuple[int, bytes]) -> tuple[Any, ...]:
    """The row of ``resource`` for a version that is current. kind: its number; stored: dictionary id and compressed body."""
    key, version, indexed, flat = made.key, made.version, made.indexed, made.flat
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
        rows.packed((kind, *indexed.tokens)),
        rows.stored_recency(after),
        after.content,
        after.withdrawn,
        origin.inbox,
        origin.mapping,
        origin.backfill,
        *(_NO_RESULT if flat is None else _result_columns(flat, indexed)),
        made.classes,
        *stored,
    )


_NO_RESULT: Final = (None,) * 5


def _result_columns(flat: Result, indexed: params.Indexed) -> tuple[Any, ...]:
    effective = flat.effective if indexed.start is None else None
    issued = flat.issued if indexed.issued is None else None
    return flat.order, flat.number, flat.value_text, effective, issued


def _history_row(key: Key, version: Version, classes: int | None, stored: tuple[int, bytes]) -> tuple[Any, ...]:
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
        classes,
        *stored,
    )


def _beside(
    cursor: rows.Cursor, codec: Codec, named: Mapping[Key, dict[str, Any]], observations: Iterable[Made]
) -> Mapping[Key, dict[str, Any]]:
    """Specimens and visits of the Observations: of the batch, and those that only the store has (a correction may not repeat them)."""
    wanted = {
        _named(m.key[0], m.resource, *which)
        for m in observations
        for which in (("specimen", SPECIMEN), ("encounter", ENCOUNTER))
    }
    missing = [key for key in wanted if key[2] and key not in named]
    if not missing:
        return named
    found = {key: stored_resource(codec, stored) for key, stored in rows.bodies(cursor, missing).items()}
    return {**named, **found}


def _named(shard: int, resource: Mapping[str, Any], element: str, rtype: int) -> Key:
    """Key of what a reference of an Observation names, which shares the shard of its patient; an empty id when there is none."""
    return _key(shard, (resource.get(element) or {}).get("reference") or "", rtype)


@lru_cache(maxsize=4096)
def _key(shard: int, reference: str, rtype: int) -> Key:
    # The results of one message name the same few.
    kind, _, logical = reference.partition("/")
    return shard, rtype, logical if RESOURCE_TYPES.get(kind) == rtype else ""


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
        *(origin.backfill, *_NO_RESULT, None),
        *codec.compress(b"", (key[2], state.patient, None)),
    )
    rows.copy(cursor, "resource", [row])
    access_rows.forget(cursor, [key])
    access_rows.keep(cursor, key)
