"""Links between facility Patients: which of them are one person.

Nothing here rewrites a resource. A person is a set of Patients held together by certain matches (matcher) and by merges that a
facility stated about its own Patients (HL7 v2.5.1 chapter 3: A18, A24, A34, A40, A47 ..., taken back by A37). Its id is the smallest
logical id among them, so it does not depend on the order of arrival, and a Patient alone is its own person. Each change of a
Patient's person is a row of ``identity_link`` with the time from which it was known. Pairs that look alike but are not certain stand
in ``identity_review``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg

from fhir_server.identity import matcher
from fhir_server.identity.matcher import Facts
from fhir_server.identity.person import Link, Row, closure, components, load, relink, shard_of_patient
from fhir_server.identity.review import list_pairs

if TYPE_CHECKING:
    import asyncpg

_LOCK = 0x706572736F6E  # "person"
UNLINK_TRIGGERS = frozenset({"A37"})

MEMBERS = (
    "SELECT m.shard, m.patient, m.facility FROM source_patient s JOIN source_patient m ON m.person = s.person"
    " WHERE s.shard = {0} AND s.patient = {1} ORDER BY m.patient"
)
"""Patients of the person that Patient {1} of shard {0} belongs to now, itself included."""

MEMBERS_AT = (
    "SELECT m.shard, m.patient FROM identity_link s JOIN identity_link m ON m.person = s.person"
    " AND m.recorded <= {2} AND (m.until IS NULL OR m.until > {2})"
    " WHERE s.shard = {0} AND s.patient = {1} AND s.recorded <= {2} AND (s.until IS NULL OR s.until > {2}) ORDER BY m.patient"
)
"""The same as it was known at the time {2}."""


@dataclass(frozen=True, slots=True)
class PatientState:
    """A facility Patient as it is current now; ``resource`` None when it was deleted."""

    shard: int
    id: str
    facility: str
    resource: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class MergeStatement:
    """A facility says that two of its Patients are one (``linked``) or are not after all; ``stated_at``: when it said so."""

    surviving: str
    retired: str
    facility: str
    trigger: str
    stated_at: datetime
    linked: bool = True


async def members(conn: asyncpg.Connection | asyncpg.Pool, shard: int, patient: str) -> list[tuple[int, str]]:
    """(shard, logical id) of every Patient of the same person, ``patient`` included; itself alone when it is not registered."""
    rows = await conn.fetch(MEMBERS.format("$1", "$2"), shard, patient)
    return [(r["shard"], r["patient"]) for r in rows] or [(shard, patient)]


def members_sync(
    conn: psycopg.Connection[Any], shard: int, patient: str, at: datetime | None = None
) -> list[tuple[int, str]]:
    """The same for synchronous callers; ``at``: as it was known then."""
    sql = MEMBERS if at is None else MEMBERS_AT
    rows = conn.execute(sql.format("%(s)s", "%(p)s", "%(at)s"), {"s": shard, "p": patient, "at": at}).fetchall()
    return [(r[0], r[1]) for r in rows] or [(shard, patient)]


def resolve(
    conn: psycopg.Connection[Any], patients: Sequence[PatientState], merges: Sequence[MergeStatement], at: datetime
) -> list[Link]:
    """Brings links and review list up to date with changed Patients and merges, inside the caller's transaction, recorded at ``at``.

    Returns the Patients whose person changed. Twice the same changes nothing. Resolutions that may change a link run one after the
    other (advisory lock until the end of the transaction), so that two workers meeting one person see each other's Patients.
    """
    fresh = {p.id: p for p in patients}
    facts = {i: matcher.facts(p.resource) for i, p in fresh.items()}
    shards = {i: p.shard for i, p in fresh.items()}
    if not merges and not _changed(load(conn, fresh, shards), facts):
        return []
    conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    stored = load(conn, [*fresh, *(i for m in merges for i in (m.retired, m.surviving))], shards)
    changed = _changed(stored, facts)
    _store_patients(conn, fresh, facts, merges, stored, changed)
    stated = _store_merges(conn, merges, at)
    known = closure(conn, {*changed, *stated}, shards)
    persons = components(known)
    links = relink(conn, known, persons, at)
    list_pairs(conn, known.rows, persons, {i: facts[i] for i in changed}, at)
    return links


def _changed(stored: Mapping[str, Row], facts: Mapping[str, Facts]) -> list[str]:
    return [i for i, now in facts.items() if i not in stored or not _same(stored[i].facts, now)]


def _same(stored: Facts, now: Facts) -> bool:
    return (stored.resident_id, stored.name, stored.sex, stored.birth) == (
        now.resident_id,
        now.name,
        now.sex,
        now.birth,
    )


def _store_patients(
    conn: psycopg.Connection[Any],
    fresh: Mapping[str, PatientState],
    facts: Mapping[str, Facts],
    merges: Sequence[MergeStatement],
    stored: Mapping[str, Row],
    changed: Sequence[str],
) -> None:
    nobody = Facts(None, "", None, None)
    rows = [(fresh[i].shard, i, fresh[i].facility, facts[i]) for i in changed]
    named = {i: m.facility for m in merges for i in (m.retired, m.surviving)}
    # A merge may name a Patient nothing was sent about yet: what comes for it later is then linked at once.
    rows += [
        (shard_of_patient(i, {}), i, facility, nobody)
        for i, facility in named.items()
        if i not in stored and i not in fresh
    ]
    if not rows:
        return
    conn.execute(
        "INSERT INTO source_patient (shard, patient, facility, person, resident_id, name, sex, birth, certain)"
        " SELECT shard, patient, facility, patient, resident_id, name, sex, birth, certain FROM unnest(%s::smallint[], %s::text[],"
        " %s::text[], %s::bytea[], %s::text[], %s::text[], %s::date[], %s::bytea[])"
        " AS a(shard, patient, facility, resident_id, name, sex, birth, certain) ON CONFLICT (shard, patient) DO UPDATE"
        " SET resident_id = EXCLUDED.resident_id, name = EXCLUDED.name, sex = EXCLUDED.sex, birth = EXCLUDED.birth,"
        " certain = EXCLUDED.certain",
        (
            [r[0] for r in rows],
            [r[1] for r in rows],
            [r[2] for r in rows],
            [r[3].resident_id for r in rows],
            [r[3].name or None for r in rows],
            [r[3].sex for r in rows],
            [r[3].birth for r in rows],
            [matcher.certain_key(r[3]) for r in rows],
        ),
    )


def _store_merges(conn: psycopg.Connection[Any], merges: Sequence[MergeStatement], at: datetime) -> list[str]:
    """Keeps the newest statement about each pair; returns the Patients of those that changed something."""
    newest: dict[tuple[str, str], MergeStatement] = {}
    for m in sorted(merges, key=lambda m: (m.stated_at, not m.linked, m.trigger)):
        if m.retired != m.surviving:
            newest[m.retired, m.surviving] = m
    if not newest:
        return []
    rows = list(newest.values())
    written = conn.execute(
        "INSERT INTO identity_merge AS m (shard, patient, surviving, linked, trigger, stated_at, recorded)"
        " SELECT *, %s FROM unnest(%s::smallint[], %s::text[], %s::text[], %s::boolean[], %s::text[], %s::timestamptz[])"
        " ON CONFLICT (shard, patient, surviving) DO UPDATE SET linked = EXCLUDED.linked,"
        " trigger = EXCLUDED.trigger, stated_at = EXCLUDED.stated_at, recorded = EXCLUDED.recorded"
        # Equal times: the separation, which cannot show one patient's results as another's. So any order of arrival ends in the
        # same state.
        " WHERE (m.stated_at, NOT m.linked, m.trigger) < (EXCLUDED.stated_at, NOT EXCLUDED.linked, EXCLUDED.trigger)"
        " RETURNING patient, surviving",
        (
            at,
            [shard_of_patient(m.retired, {}) for m in rows],
            [m.retired for m in rows],
            [m.surviving for m in rows],
            [m.linked for m in rows],
            [m.trigger for m in rows],
            [m.stated_at for m in rows],
        ),
    ).fetchall()
    return [i for pair in written for i in pair]
