"""Persons: facility Patients held together by certain matches and merges, and the history of who belonged to whom."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import psycopg

from fhir_server.identity.matcher import Facts
from mappings.ids import shard_of_id

LINK: Final = "A24"
"""The trigger that links Patients of which none retires."""


@dataclass(frozen=True, slots=True)
class Link:
    """A Patient whose person changed. basis: ``resident-id``, ``merge``, ``unmerge`` or ``alone``."""

    shard: int
    patient: str
    facility: str
    person: str
    basis: str


@dataclass(slots=True)
class Row:
    """A row of ``source_patient``; ``certain``: matcher.certain_key."""

    shard: int
    patient: str
    facility: str
    person: str
    facts: Facts
    certain: bytes | None


Shards = Mapping[str, int]
"""Shards of Patients whose id does not say it (ids given by clients)."""
COLUMNS = "s.shard, s.patient, s.facility, s.person, s.resident_id, s.name, s.sex, s.birth, s.certain"


def as_row(r: Sequence[Any]) -> Row:
    """COLUMNS as read -> Row."""
    return Row(r[0], r[1], r[2], r[3], Facts(r[4], r[5] or "", r[6], r[7]), r[8])


def load(conn: psycopg.Connection[Any], ids: Iterable[str], shards: Shards) -> dict[str, Row]:
    """The registered ones of these Patients, by logical id."""
    wanted = list(dict.fromkeys(ids))
    found = conn.execute(
        f"SELECT {COLUMNS} FROM unnest(%s::smallint[], %s::text[]) AS a(shard, patient) JOIN source_patient s USING (shard, patient)",  # noqa: S608
        ([shard_of_patient(i, shards) for i in wanted], wanted),
    )
    return {r[1]: as_row(r) for r in found.fetchall()}


def shard_of_patient(logical_id: str, shards: Shards) -> int:
    """Shard of a Patient: what ``shards`` says, else what a derived id says, else none (-1)."""
    if logical_id in shards:
        return shards[logical_id]
    derived = shard_of_id(logical_id)
    return -1 if derived is None else derived


class Stated(NamedTuple):
    """The newest statement about a pair of Patients."""

    linked: bool
    trigger: str
    at: datetime


def in_force(stated: Mapping[tuple[str, str], Stated]) -> set[tuple[str, str]]:
    """The pairs (retired, surviving) that are one person by what was stated (pure; any order of arrival gives the same).

    A37 takes back what was said before, whichever of the two it names first (HL7 v2.5.1 section 3.3.37: it "unlinks two PID
    segments"), and every earlier merge of the two. A Patient is merged into one other: the newest merge counts (equal times: the
    greater id). A24 links, so a Patient may have several.
    """
    apart: dict[str | frozenset[str], datetime] = {}
    merged: dict[str, tuple[datetime, str]] = {}
    for (retired, surviving), said in stated.items():
        if not said.linked:
            for name in (retired, surviving, frozenset((retired, surviving))):
                apart[name] = max(said.at, apart.get(name, said.at))
        elif said.trigger != LINK:
            merged[retired] = max((said.at, surviving), merged.get(retired, (said.at, surviving)))
    out = set()
    for (retired, surviving), said in stated.items():
        if not said.linked:
            continue
        taken_back = apart.get(frozenset((retired, surviving)) if said.trigger == LINK else retired)
        newest = said.trigger == LINK or merged[retired] == (said.at, surviving)
        if newest and (taken_back is None or taken_back < said.at):
            out.add((retired, surviving))
    return out


@dataclass(slots=True)
class Closure:
    """Every Patient that is, or until now was, in one person with a changed one.

    rows by logical id; what was stated of pairs (retired, surviving); of these the merges in force; Patients said to be apart.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    stated: dict[tuple[str, str], Stated] = field(default_factory=dict)
    merges: set[tuple[str, str]] = field(default_factory=set)
    unlinked: set[str] = field(default_factory=set)


def closure(conn: psycopg.Connection[Any], seeds: Collection[str], shards: Shards) -> Closure:
    """Follows keys, merges and present persons from the seeds until nothing new turns up (two rounds, as a rule)."""
    out = Closure()
    known_shards = dict(shards)
    ids, keys, persons = set(seeds), set[bytes](), set[str]()
    seen_keys, seen_persons = set[bytes](), set[str]()
    while ids or keys or persons:
        found = conn.execute(
            f"SELECT {COLUMNS} FROM unnest(%(shards)s::smallint[], %(ids)s::text[]) AS a(shard, patient)"  # noqa: S608
            " JOIN source_patient s USING (shard, patient)"
            f" UNION SELECT {COLUMNS} FROM source_patient s WHERE s.certain = ANY(%(keys)s::bytea[])"
            f" UNION SELECT {COLUMNS} FROM source_patient s WHERE s.person = ANY(%(persons)s::text[])",
            {
                "shards": [shard_of_patient(i, known_shards) for i in ids],
                "ids": list(ids),
                "keys": list(keys),
                "persons": list(persons),
            },
        ).fetchall()
        fresh = [r for columns in found if (r := as_row(columns)).patient not in out.rows]
        out.rows.update({r.patient: r for r in fresh})
        known_shards.update({r.patient: r.shard for r in fresh})
        seen_keys |= keys
        seen_persons |= persons
        keys = {r.certain for r in fresh if r.certain} - seen_keys
        persons = {r.person for r in fresh} - seen_persons
        ids = _merged_with(conn, [r.patient for r in fresh], known_shards, out)
    out.merges = in_force(out.stated)
    out.unlinked = {i for pair, said in out.stated.items() if not said.linked for i in pair}
    return out


def _merged_with(conn: psycopg.Connection[Any], ids: list[str], shards: Shards, out: Closure) -> set[str]:
    """Adds the merge statements about ``ids``; returns the Patients they name that are not among the rows yet."""
    if not ids:
        return set()
    stated = conn.execute(
        "SELECT m.patient, m.surviving, m.linked, m.trigger, m.stated_at"
        " FROM unnest(%(shards)s::smallint[], %(ids)s::text[]) AS a(shard, patient) JOIN identity_merge m USING (shard, patient)"
        " UNION SELECT patient, surviving, linked, trigger, stated_at FROM identity_merge WHERE surviving = ANY(%(ids)s::text[])",
        {"shards": [shard_of_patient(i, shards) for i in ids], "ids": ids},
    ).fetchall()
    named = set[str]()
    for retired, surviving, linked, trigger, at in stated:
        out.stated[retired, surviving] = Stated(linked, trigger, at)
        if linked:
            named.update((retired, surviving))
    return named - out.rows.keys()


def components(known: Closure) -> dict[str, str]:
    """Patient -> person: the smallest id of all it is connected with (pure)."""
    rows = known.rows
    parent = {i: i for i in rows}

    def root(i: str) -> str:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(a: str, b: str) -> None:
        x, y = root(a), root(b)
        parent[max(x, y)] = min(x, y)

    first: dict[bytes, str] = {}
    for i, row in rows.items():
        if row.certain:
            join(first.setdefault(row.certain, i), i)
    for retired, surviving in known.merges:
        if retired in rows and surviving in rows:
            join(retired, surviving)
    return {i: root(i) for i in rows}


def relink(conn: psycopg.Connection[Any], known: Closure, persons: Mapping[str, str], at: datetime) -> list[Link]:
    """Writes the persons that differ from the stored ones, with their history; returns what changed."""
    rows = known.rows
    if not rows:
        return []
    open_since = {
        r[0]: r[1]
        for r in conn.execute(
            "SELECT l.patient, l.recorded FROM unnest(%s::smallint[], %s::text[]) AS a(shard, patient)"
            " JOIN identity_link l USING (shard, patient) WHERE l.until IS NULL",
            ([row.shard for row in rows.values()], list(rows)),
        ).fetchall()
    }
    keys: dict[bytes, int] = {}
    for row in rows.values():
        if row.certain:
            keys[row.certain] = keys.get(row.certain, 0) + 1
    merged = {i for pair in known.merges for i in pair}
    retired = {i for i, _ in known.merges}
    links, times = [], []
    for i, row in rows.items():
        if persons[i] == row.person and i in open_since:
            continue
        if i in retired:
            basis = "merge"
        elif row.certain and keys[row.certain] > 1:
            basis = "resident-id"
        elif i in merged:
            basis = "merge"
        else:
            basis = "unmerge" if i in known.unlinked else "alone"
        links.append(Link(row.shard, i, row.facility, persons[i], basis))
        # A clock that stepped back must not end a link before it began.
        times.append(max(at, open_since[i] + timedelta(microseconds=1)) if i in open_since else at)
    if links:
        columns = ([k.shard for k in links], [k.patient for k in links], times, [k.person for k in links])
        conn.execute(
            "UPDATE identity_link l SET until = a.recorded FROM unnest(%s::smallint[], %s::text[], %s::timestamptz[])"
            " AS a(shard, patient, recorded) WHERE l.shard = a.shard AND l.patient = a.patient AND l.until IS NULL",
            columns[:3],
        )
        conn.execute(
            "INSERT INTO identity_link (shard, patient, recorded, person, basis, grade)"
            " SELECT *, 'certain' FROM unnest(%s::smallint[], %s::text[], %s::timestamptz[], %s::text[], %s::text[])",
            (*columns, [k.basis for k in links]),
        )
        conn.execute(
            "UPDATE source_patient s SET person = a.person FROM unnest(%s::smallint[], %s::text[], %s::text[])"
            " AS a(shard, patient, person) WHERE s.shard = a.shard AND s.patient = a.patient AND s.person <> a.person",
            (columns[0], columns[1], columns[3]),
        )
    return links
