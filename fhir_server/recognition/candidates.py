"""Earlier results of a person, as they were visible at one time: one statement, on indexes, never opening a body.

A facility's Patient leads to its person, the person to every Patient linked to it then, and those to their result rows of the wanted
items (tables ``identity_link`` and ``result``). Rows of a Patient nobody has looked at yet are found through the Patient itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final

import asyncpg

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.recognition.criteria import NOT_KEPT, Candidate
from fhir_server.scope.rows import Relation
from fhir_server.search.definitions import parameters
from fhir_server.search.leaves import hash_of
from fhir_server.store.body import Codec, UnknownDictionary
from mappings.ids import shard_of_id

_LINKED: Final = ("person", "grade")
_KEPT: Final = tuple(name for name in Candidate._fields if name not in NOT_KEPT)
RESULT_FIELDS: Final = tuple(name for name in _KEPT if name not in _LINKED)
"""Fields of a Candidate that are columns of ``result``."""
_ALL: Final = ", ".join(f"f.linked_{name}" if name in _LINKED else f'(f.found)."{name}"' for name in _KEPT)
_PATIENT: Final = RESOURCE_TYPES["Patient"]
_ENCOUNTER: Final = RESOURCE_TYPES["Encounter"]
_EMERGENCY: Final = frozenset({"EMER"})

# The grade of a pair is the weaker of the two links; a Patient without any link row stands for itself.
_FOR_PATIENT: Final = f"SELECT {_ALL} FROM earlier_results($1::smallint, $2, $3, $4) f"  # noqa: S608 - columns of our own dataclass

_BY_ID: Final = """
SELECT r.shard, r.id, p.person, p.facility FROM resource r LEFT JOIN source_patient p ON p.shard = r.shard AND p.patient = r.id
WHERE r.shard = $1 AND r.rtype = $2 AND r.id = $3 AND NOT r.deleted"""
_BY_IDENTIFIER: Final = """
SELECT r.shard, r.id, p.person, p.facility FROM resource r LEFT JOIN source_patient p ON p.shard = r.shard AND p.patient = r.id
WHERE r.rtype = $1 AND r.tokens @> ARRAY[$2::bigint] AND NOT r.deleted ORDER BY r.id LIMIT 50"""


@dataclass(frozen=True, slots=True)
class Who:
    """A facility's Patient: shard, logical id, and the facility it belongs to if that is known."""

    shard: int
    patient: str
    facility: str | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the asker has to do with a patient: does his facility treat him, did one of its clinicians register him,
    may it be told what other facilities hold about him."""

    treats: bool
    made: bool
    permits: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Person of the Patient at that time (None when nobody has looked at it), and the candidate results."""

    person: str | None
    candidates: tuple[Candidate, ...]


@cache
def _identifier_seed() -> int:
    return parameters("Patient")["identifier"].paths[0][0].seed


async def shard_of_resource(connection: asyncpg.Connection, type: str, id: str) -> int | None:
    """Shard of a resource by its logical id: derived ids carry it, ids given by clients are looked up; None when unknown."""
    derived = shard_of_id(id)
    if derived is not None:
        return derived
    found: int | None = await connection.fetchval(
        "SELECT shard FROM client_id WHERE rtype = $1 AND id = $2", RESOURCE_TYPES[type], id
    )
    return found


async def identify(connection: asyncpg.Connection, patient: str, facility: str) -> Who | str:
    """The Patient meant: a logical id (``Patient/`` before it is allowed), or ``system|value`` of a business identifier.

    An identifier that several Patients carry (a resident ID number) means the one of the asking ``facility``, else any of them when
    all are linked to one person. Returns ``unknown-patient`` or ``ambiguous-patient`` when it is not clear who is meant.
    """
    if "|" in patient:
        token = hash_of(_identifier_seed(), patient)
        rows = await connection.fetch(_BY_IDENTIFIER, _PATIENT, token)
    else:
        shard = await shard_of_resource(connection, "Patient", patient.removeprefix("Patient/"))
        rows = (
            await connection.fetch(_BY_ID, shard, _PATIENT, patient.removeprefix("Patient/"))
            if shard is not None
            else []
        )
    if not rows:
        return "unknown-patient"
    own = [r for r in rows if r["facility"] == facility]
    if len(rows) > 1 and len(own) != 1 and len({r["person"] or r["id"] for r in rows}) > 1:
        return "ambiguous-patient"
    row = own[0] if own else rows[0]
    return Who(row["shard"], row["id"], row["facility"])


async def numbered(connection: asyncpg.Connection, number: str, facility: str) -> Who | str:
    """The facility's own Patient that carries a number, whatever system it is of. Returns a word like ``identify``."""
    rows = await connection.fetch(_BY_IDENTIFIER, _PATIENT, hash_of(_identifier_seed(), number))
    own = [r for r in rows if r["facility"] == facility]
    if len(own) != 1:
        return "ambiguous-patient" if own else "unknown-patient"
    return Who(own[0]["shard"], own[0]["id"], own[0]["facility"])


async def find(connection: asyncpg.Connection, who: Who, items: Sequence[str], at: datetime) -> Found:
    """Results of the Patient's person for catalogue items, visible at ``at`` (aware)."""
    rows = await connection.fetch(_FOR_PATIENT, who.shard, who.patient, list(items), at)
    person = next((row["linked_person"] for row in rows), None)
    return Found(person, tuple(Candidate(*row) for row in rows if row["id"] is not None))


async def seen(connection: asyncpg.Connection, who: Who, relation: Relation) -> Seen | None:
    """None for a Patient that has no person yet."""
    text, args = relation.of_patient(who.shard, who.patient)
    row = await connection.fetchrow(text, *args)
    return Seen(row["treats"], row["made"], row["permits"]) if row is not None else None


async def find_at_once(
    connection: asyncpg.Connection, patient: str, items: Sequence[str], at: datetime, relation: Relation
) -> tuple[Who, Found, Seen | None] | None:
    """``identify``, ``find`` and ``seen`` in one round trip, for a logical id that names its shard; None: ask ``identify``."""
    logical = patient.removeprefix("Patient/")
    shard = None if "|" in patient else shard_of_id(logical)
    if shard is None:
        return None
    related, args = relation.of_patient(shard, logical)
    rows = await connection.fetch(_at_once(related, len(args)), *args, shard, logical, list(items), at)
    if not rows:
        return None
    first = rows[0]
    person = next((row["linked_person"] for row in rows), None)
    found = tuple(Candidate(*tuple(row)[_BESIDE:]) for row in rows if row["id"] is not None)
    known = Seen(first["treats"], first["made"], first["permits"]) if first["treats"] is not None else None
    return Who(shard, logical, first["own"]), Found(person, found), known


_BESIDE: Final = 4
"""Columns of ``_at_once`` before those of a Candidate."""


@cache
def _at_once(related: str, taken: int) -> str:
    """The Patient itself, what the asker has to do with it (``related``, which has the first ``taken`` arguments), and the results;
    no row when there is no such Patient."""
    shard, patient, items, at = (f"${taken + n}" for n in (1, 2, 3, 4))
    return f"""
WITH v AS MATERIALIZED ({related})
SELECT p.facility AS own, v.treats, v.made, v.permits, {_ALL}
FROM resource r LEFT JOIN source_patient p ON p.shard = r.shard AND p.patient = r.id LEFT JOIN v ON true
  LEFT JOIN LATERAL earlier_results({shard}::smallint, {patient}, {items}, {at}) f ON true
WHERE r.shard = {shard} AND r.rtype = {_PATIENT} AND r.id = {patient} AND NOT r.deleted"""  # noqa: S608 - our own columns


async def emergency(connection: asyncpg.Connection, codec: Codec, encounter: str, patient: str) -> bool | None:
    """Is the visit an emergency (Encounter.class EMER)? None when the Encounter is unknown, of another Patient, or has no class."""
    shard = await shard_of_resource(connection, "Encounter", encounter)
    if shard is None:
        return None
    row = await connection.fetchrow(
        'SELECT dict, body, id, patient, "order" FROM resource'
        " WHERE shard = $1 AND rtype = $2 AND id = $3 AND patient = $4 AND NOT deleted",
        shard,
        _ENCOUNTER,
        encounter,
        patient,
    )
    if row is None:
        return None
    try:
        return is_emergency(loads(codec.decompress(row["dict"], row["body"], row[2:])))
    except UnknownDictionary:  # written by a newer process: not worth failing the answer for
        return None


def is_emergency(encounter: dict[str, Any]) -> bool | None:
    """Encounter resource -> True for class EMER, False for another class, None when it has none."""
    found = encounter.get("class")
    code = found.get("code") if isinstance(found, dict) else None
    return code in _EMERGENCY if isinstance(code, str) and code else None
