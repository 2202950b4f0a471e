"""Earlier results of a person, as they were visible at one time: one statement, on indexes, never opening a body.

A facility's Patient leads to its person, the person to every Patient linked to it then, and those to their result rows of the wanted
items (tables ``identity_link`` and ``result``). Rows of a Patient nobody has looked at yet are found through the Patient itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

import asyncpg

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.recognition.criteria import Candidate
from fhir_server.store.body import Codec
from mappings.ids import shard_of_id

_LINKED: Final = ("person", "grade")
RESULT_COLUMNS: Final = ", ".join(f'r."{f.name}"' for f in fields(Candidate) if f.name not in _LINKED)
"""Columns of ``result`` (alias r) that fill a Candidate, in its field order without person and grade."""
_ALL: Final = ", ".join(f'l."{f.name}"' if f.name in _LINKED else f'r."{f.name}"' for f in fields(Candidate))
_PATIENT: Final = RESOURCE_TYPES["Patient"]
_ENCOUNTER: Final = RESOURCE_TYPES["Encounter"]
_EMERGENCY: Final = frozenset({"EMER"})

# The grade of a pair is the weaker of the two links; a Patient without any link row stands for itself.
_FOR_PATIENT: Final = f"""
WITH me AS (
  SELECT person, grade FROM identity_link
  WHERE shard = $1 AND patient = $2 AND recorded <= $4 AND (until IS NULL OR until > $4)
), linked AS (
  SELECT l.shard, l.patient, l.person, CASE WHEN me.grade = 'certain' THEN l.grade ELSE me.grade END AS grade
  FROM me JOIN identity_link l ON l.person = me.person
  WHERE l.recorded <= $4 AND (l.until IS NULL OR l.until > $4)
  UNION ALL
  SELECT $1, $2, NULL, NULL WHERE NOT EXISTS (SELECT FROM me)
)
SELECT (SELECT person FROM me) AS me, {_ALL}
FROM linked l LEFT JOIN result r
  ON r.shard = l.shard AND r.patient = l.patient AND r.item = ANY($3)
  AND r.recorded <= $4 AND (r.until IS NULL OR r.until > $4)
"""  # noqa: S608 - column names of our own dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """Person of the Patient at that time (None when nobody is linked), and the candidate results."""

    person: str | None
    candidates: tuple[Candidate, ...]

    @property
    def patients(self) -> tuple[str, ...]:
        """Logical ids of the Patients whose results these are."""
        return tuple(sorted({c.patient for c in self.candidates if c.patient}))


async def shard_of_resource(connection: asyncpg.Connection, type: str, id: str) -> int | None:
    """Shard of a resource by its logical id: derived ids carry it, ids given by clients are looked up; None when unknown."""
    derived = shard_of_id(id)
    if derived is not None:
        return derived
    found: int | None = await connection.fetchval(
        "SELECT shard FROM client_id WHERE rtype = $1 AND id = $2", RESOURCE_TYPES[type], id
    )
    return found


async def find(connection: asyncpg.Connection, patient: str, items: Sequence[str], at: datetime) -> Found:
    """Results of the Patient's person for catalogue items, visible at ``at`` (aware)."""
    shard = await shard_of_resource(connection, "Patient", patient)
    if shard is None:
        return Found(None, ())
    rows = await connection.fetch(_FOR_PATIENT, shard, patient, list(items), at)
    return Found(rows[0]["me"] if rows else None, _candidates(rows))


def _candidates(rows: Iterable[Any]) -> tuple[Candidate, ...]:
    return tuple(Candidate(*tuple(row)[1:]) for row in rows if row["id"] is not None)


async def emergency(connection: asyncpg.Connection, codec: Codec, encounter: str, patient: str) -> bool | None:
    """Is the visit an emergency (Encounter.class EMER)? None when the Encounter is unknown, of another Patient, or has no class."""
    shard = await shard_of_resource(connection, "Encounter", encounter)
    if shard is None:
        return None
    row = await connection.fetchrow(
        "SELECT dict, body FROM resource WHERE shard = $1 AND rtype = $2 AND id = $3 AND patient = $4 AND NOT deleted",
        shard,
        _ENCOUNTER,
        encounter,
        patient,
    )
    return is_emergency(loads(codec.decompress(row["dict"], row["body"]))) if row else None


def is_emergency(encounter: dict[str, Any]) -> bool | None:
    """Encounter resource -> True for class EMER, False for another class, None when it has none."""
    found = encounter.get("class")
    code = found.get("code") if isinstance(found, dict) else None
    return code in _EMERGENCY if isinstance(code, str) and code else None
