"""Computing again, for what is stored, what reading rights depend on: classes of sensitive data, treatment, consents.

They are computed when a resource is stored, so a new version of the program or another table of sensitive data leaves what is stored
behind. It is gone through patient by patient, each in one transaction that also records how far it came, under the lock its writers
take; then what is about no patient. Nobody sees a state between. Classes that come from what a resource refers to beyond its patient
need another round when a round changed something.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import psycopg

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.store import access_rows, headings, rows
from fhir_server.store.body import Codec
from fhir_server.store.statement import Key
from fhir_server.store.versions import DIAGNOSTIC_REPORT
from mappings import sensitive
from mappings.ids import SHARDS

CHUNK = 300
"""Resources of a chunk, to which the last patient is added whole: writers about its patients wait that long."""
_ROUNDS: Final = 4
_MEANING: Final = 1
"""To be raised when access_rows reads treatment, consents or directories otherwise."""
_DIRECTORIES: Final = frozenset(RESOURCE_TYPES[name] for name in access_rows.DIRECTORIES)
_PATIENT: Final = RESOURCE_TYPES["Patient"]

_STATE = """
SELECT round, alone, shard, rtype, id, seen, changed, moved, crossing, finished IS NOT NULL FROM access_refresh WHERE rules = %s
"""
_PATIENTS = """
SELECT shard, patient FROM (
    SELECT shard, patient FROM resource WHERE patient IS NOT NULL AND (shard, patient) > (%s, %s) ORDER BY shard, patient LIMIT %s) r
GROUP BY shard, patient ORDER BY shard, patient
"""
_ALONE = """
SELECT r.shard, r.rtype, r.id FROM generate_series(%s::int, %s) AS s(shard) CROSS JOIN LATERAL (
    SELECT shard, rtype, id FROM resource r WHERE r.shard = s.shard AND r.patient IS NULL ORDER BY rtype, id OFFSET 0) r
WHERE (r.shard, r.rtype, r.id) > (%s, %s, %s) LIMIT %s
"""
_COLUMNS = """
SELECT r.shard, r.rtype, r.id, r.patient, r.parent, r.deleted, r.inbox, r.updated, r.sensitivity,
    (SELECT k.item FROM resource_kind k WHERE r.rtype = 15 AND k.id = r.tokens[1]), r.dict, r.body, r."order"
FROM resource r
"""
_OF_PATIENTS = (
    _COLUMNS
    + "JOIN unnest(%s::smallint[], %s::text[]) AS k(shard, patient) ON r.shard = k.shard AND r.patient = k.patient"
)
_OF_KEYS = (
    _COLUMNS + "JOIN unnest(%s::smallint[], %s::smallint[], %s::text[]) AS k(shard, rtype, id)"
    " ON r.shard = k.shard AND r.rtype = k.rtype AND r.id = k.id"
)
_PAST = """
SELECT h.* FROM unnest(%s::smallint[], %s::smallint[], %s::text[]) AS k(shard, rtype, id) CROSS JOIN LATERAL (
    SELECT shard, rtype, id, version, deleted, inbox, sensitivity, (SELECT k.item FROM resource_kind k WHERE k.id = h.kind), dict, body,
        patient, "order"
    FROM resource_history h WHERE h.shard = k.shard AND h.rtype = k.rtype AND h.id = k.id OFFSET 0) h
"""


class Progress(NamedTuple):
    """seen: resources looked at in this round, of which there are ``round``; changed: in all; done: nothing is left."""

    round: int
    seen: int
    changed: int
    done: bool


def rules() -> str:
    """What names the rules of this process: another text, and what is stored may have to be computed again."""
    return f"{_MEANING}-{sensitive.table().digest}"


def is_due(conn: psycopg.Connection[Any]) -> bool:
    """True while something is stored that was not computed by the rules of this process to its end."""
    row = conn.execute(
        "SELECT EXISTS (SELECT FROM resource) AND NOT EXISTS ("
        " SELECT FROM access_refresh WHERE rules = %s AND finished IS NOT NULL)",
        (rules(),),
    ).fetchone()
    return bool(row and row[0])


def settle(conn: psycopg.Connection[Any], now: datetime) -> None:
    """Records, of a database without resources, that all that will be stored follows the rules of this process."""
    with conn.transaction():
        if conn.execute("SELECT FROM resource LIMIT 1").fetchone() is None:
            conn.execute("DELETE FROM access_refresh WHERE rules <> %s", (rules(),))
            conn.execute(
                "INSERT INTO access_refresh (rules, finished) VALUES (%s, %s) ON CONFLICT (rules) DO UPDATE"
                " SET finished = excluded.finished WHERE access_refresh.finished IS NULL",
                (rules(), now),
            )


def begin(conn: psycopg.Connection[Any], *, again: bool = False) -> bool:
    """Takes up the refresh by the rules of this process where it was left, or begins it; ``again``: from the start. False when it is
    finished already."""
    with conn.transaction():
        conn.execute("LOCK TABLE access_refresh IN SHARE ROW EXCLUSIVE MODE")
        conn.execute("DELETE FROM access_refresh WHERE rules <> %s OR %s", (rules(), again))
        conn.execute("INSERT INTO access_refresh (rules) VALUES (%s) ON CONFLICT DO NOTHING", (rules(),))
        row = conn.execute(_STATE, (rules(),)).fetchone()
    return row is not None and not row[9]


def step(conn: psycopg.Connection[Any], codec: Codec, now: datetime) -> Progress:
    """One chunk, in a transaction of its own. A chunk that the database broke off because of others (deadlock) raises
    psycopg.errors.DeadlockDetected and can be done again. Raises LookupError when ``begin`` was not called, or another process began by
    other rules meanwhile."""
    with conn.transaction(), conn.cursor(binary=True) as cursor:
        row = cursor.execute(_STATE + " FOR UPDATE", (rules(),)).fetchone()
        if row is None:
            raise LookupError("this refresh was begun anew by other rules")
        number, alone, shard, rtype, logical, seen, changed, moved, crossing, done = row
        if done:
            return Progress(number, seen, changed, True)
        keys: list[Key] = []
        if alone:
            keys = cursor.execute(_ALONE, (shard, SHARDS - 1, shard, rtype, logical, CHUNK)).fetchall()
            rows.lock(cursor, [_named(key) for key in keys])
            found = _load(cursor, codec, _OF_KEYS, keys)
        else:
            keys = [
                (home, _PATIENT, patient)
                for home, patient in cursor.execute(_PATIENTS, (shard, logical, CHUNK)).fetchall()
            ]
            rows.lock(cursor, [key[2] for key in keys])
            found = _load(cursor, codec, _OF_PATIENTS, keys)
        unit = _compute(cursor, found)
        wrote = _write(cursor, unit, found)
        if keys:
            shard, rtype, logical = keys[-1]
        elif not alone:
            alone, shard, rtype, logical = True, 0, 0, ""
        elif (moved and crossing) and number < _ROUNDS:
            number, alone, shard, rtype, logical, seen, moved, crossing = number + 1, False, 0, 0, "", 0, 0, 0
        else:
            done = True
        seen, changed, moved = seen + len(found), changed + wrote, moved + wrote
        cursor.execute(
            "UPDATE access_refresh SET round = %s, alone = %s, shard = %s, rtype = %s, id = %s, seen = %s, changed = %s, moved = %s,"
            " crossing = %s, finished = %s WHERE rules = %s",
            (
                *(number, alone, shard, rtype, logical, seen, changed, moved, crossing + unit.crossing),
                *(now if done else None, rules()),
            ),
        )
        return Progress(number, seen, changed, done)


def _named(key: Key) -> str:
    return f"{_NAMES[key[1]]}/{key[2]}"


_NAMES: Final = {number: name for name, number in RESOURCE_TYPES.items()}


@dataclass(slots=True)
class _Stored:
    """A current row. own: classes of its content, past: of its past versions (version, classes as stored, as computed)."""

    key: Key
    patient: str | None
    parent: str | None
    deleted: bool
    by_api: bool
    updated: datetime
    before: int
    own: int
    resource: Mapping[str, Any] | None
    past: list[tuple[int, int, int]]
    targets: set[tuple[str, str]]
    headed: int = 0
    """Classes of the reports that name it as their result (headings)."""

    @property
    def leans(self) -> bool:
        """True when others had a part in its classes: its versions keep them, for nobody knows which of them had which."""
        return bool(self.targets or self.parent or self.headed) or self.key[1] == DIAGNOSTIC_REPORT


@dataclass(slots=True)
class _Unit:
    classes: dict[Key, int]
    crossing: int


def _load(cursor: rows.Cursor, codec: Codec, text: str, keys: Sequence[Key]) -> dict[Key, _Stored]:
    """Rows of patients (the keys are those of the Patients) or of keys, with the classes of what they say themselves."""
    if not keys:
        return {}
    shards, logical = rows.numbers([k[0] for k in keys]), rows.texts([k[2] for k in keys])
    whole = text is _OF_KEYS
    given = (shards, rows.numbers([k[1] for k in keys]), logical) if whole else (shards, logical)
    out: dict[Key, _Stored] = {}
    for *key, patient, parent, deleted, inbox, updated, before, item, number, body, order in cursor.execute(
        text, given
    ).fetchall():
        at: Key = (key[0], key[1], key[2])
        stored = _Stored(at, patient, parent, deleted, inbox is None, updated, before or 0, 0, None, [], set())
        if not deleted:
            plain = codec.decompress(number, bytes(body), (at[2], patient, order))
            stored.own, stored.targets, stored.resource = _read(at, plain, item, stored.by_api)
        out[at] = stored
    past = [rows.numbers([k[0] for k in out]), rows.numbers([k[1] for k in out]), rows.texts([k[2] for k in out])]
    for *key, version, deleted, inbox, before, item, number, body, patient, order in cursor.execute(
        _PAST, past
    ).fetchall():
        at = (key[0], key[1], key[2])
        bits = 0
        if not deleted:
            plain = codec.decompress(number, bytes(body), (at[2], patient, order))
            bits, targets, _ = _read(at, plain, item, inbox is None)
            out[at].targets |= targets
        out[at].past.append((version, before or 0, bits))
    return out


def _read(
    key: Key, body: bytes, item: str | None, by_api: bool
) -> tuple[int, set[tuple[str, str]], Mapping[str, Any] | None]:
    """Classes of a body, what it refers to (of API writes), and the resource where its content counts."""
    if key[1] in _DIRECTORIES:
        return 0, set(), None
    table = sensitive.table()
    wanted = by_api or access_rows.is_watched(key)
    if not wanted and not table.speaks(body):
        return table.bits({}, (), item), set(), None
    resource = loads(body)
    return table.bits(resource, (body,), item), access_rows.telling(resource) if by_api else set(), resource


def _compute(cursor: rows.Cursor, found: Mapping[Key, _Stored]) -> _Unit:
    """The classes of all rows, as their writers would have given them: those of results go to their report and those of a report to its
    results, those of what an API write refers to go to it; what was deleted keeps those of its versions."""
    places = {(_NAMES[key[1]], key[2]): key for key in found}
    outside = {target for one in found.values() for target in one.targets if target not in places}
    beyond = access_rows.classes_of(cursor, outside) if outside else {}
    classes = {key: one.own for key, one in found.items()}
    children: dict[Key, list[_Stored]] = defaultdict(list)
    for key, one in found.items():
        if one.parent:
            children[key[0], DIAGNOSTIC_REPORT, one.parent].append(one)
    for key, one in found.items():
        if one.by_api and one.own and one.resource is not None and key[1] == DIAGNOSTIC_REPORT:
            for logical in headings.results_of(one.resource):
                if (at := places.get(("Observation", logical))) and found[at].patient == one.patient:
                    found[at].headed |= one.own
    moving = True
    while moving:
        moving = False
        for key, one in found.items():
            bits = classes[key] | one.headed
            for target in one.targets:
                bits |= classes[places[target]] if target in places else beyond.get(target, 0)
            if one.deleted or key[1] == DIAGNOSTIC_REPORT:
                for _, _, past in one.past:
                    bits |= past
            if key in children:
                for child in children[key]:
                    bits |= classes[child.key]
                    for _, _, past in child.past:
                        bits |= past
            if one.parent and (report := found.get((key[0], DIAGNOSTIC_REPORT, one.parent))):
                bits |= report.own
            if key[1] in _DIRECTORIES:
                bits = 0
            if bits != classes[key]:
                classes[key], moving = bits, True
    return _Unit(classes, sum(1 for one in found.values() if any(t not in places for t in one.targets)))


def _write(cursor: rows.Cursor, unit: _Unit, found: Mapping[Key, _Stored]) -> int:
    """Writes what differs; the number of resources of which something did."""
    wrong = [key for key, one in found.items() if one.before != unit.classes[key]]
    touched = set(wrong)
    if wrong:
        cursor.execute(
            "UPDATE resource r SET sensitivity = nullif(k.bits, 0) FROM unnest(%s::smallint[], %s::smallint[], %s::text[],"
            " %s::smallint[]) AS k(shard, rtype, id, bits) WHERE r.shard = k.shard AND r.rtype = k.rtype AND r.id = k.id",
            [*([key[n] for key in wrong] for n in range(3)), [unit.classes[key] for key in wrong]],
        )
    past = [
        (key, version, want)
        for key, one in found.items()
        for version, before, bits in one.past
        if before != (want := 0 if key[1] in _DIRECTORIES else bits | (unit.classes[key] if one.leans else 0))
    ]
    if past:
        touched |= {key for key, _, _ in past}
        cursor.execute(
            "UPDATE resource_history h SET sensitivity = nullif(k.bits, 0) FROM unnest(%s::smallint[], %s::smallint[], %s::text[],"
            " %s::int[], %s::smallint[]) AS k(shard, rtype, id, version, bits)"
            " WHERE h.shard = k.shard AND h.rtype = k.rtype AND h.id = k.id AND h.version = k.version",
            [
                *([key[n] for key, _, _ in past] for n in range(3)),
                [v for _, v, _ in past],
                [bits for _, _, bits in past],
            ],
        )
    said = [
        access_rows.Stated(key, one.resource, one.patient, one.by_api, one.updated)
        for key, one in found.items()
        if access_rows.is_watched(key)
    ]
    touched |= access_rows.restate(cursor, said)
    return len(touched)
