"""Records opened with a reason: break-glass by clinicians, cases by auditors; each waits for review by somebody else."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from conformance.capability import RESOURCE_TYPES
from fhir_server.errors import Category, Fault
from fhir_server.store.access_rows import OPENED_BY
from mappings.ids import shard_of_id

_FIND = """
SELECT r.shard, r.id FROM resource r WHERE r.rtype = %(rtype)s AND NOT r.deleted AND (
  r.id = %(id)s AND r.shard IN (%(derived)s, (SELECT shard FROM client_id WHERE rtype = %(rtype)s AND id = %(id)s))
  OR %(token)s::bigint IS NOT NULL AND r.tokens @> ARRAY[%(token)s::bigint]) ORDER BY r.id LIMIT 20"""


@dataclass(frozen=True, slots=True)
class Opening:
    """kind: ``break-glass`` or ``case``; subject and facility of who opens; until: when it ends; reason: his words."""

    kind: str
    subject: str
    facility: str
    at: datetime
    until: datetime
    reason: str


def find(conn: psycopg.Connection[Any], logical: str, token: int | None) -> list[tuple[int, str]]:
    """(shard, id) of the Patients of a logical id, or of the token of an identifier; at most 20."""
    derived = shard_of_id(logical) if logical else None
    named = {
        "rtype": RESOURCE_TYPES["Patient"],
        "id": logical,
        "derived": -1 if derived is None else derived,
        "token": token,
    }
    return [(row[0], row[1]) for row in conn.execute(_FIND, named)]


def record(conn: psycopg.Connection[Any], opening: Opening, patients: Sequence[tuple[int, str]]) -> None:
    """Opens the records of the Patients, and of those linked to them."""
    for shard, patient in patients:
        number = uuid.uuid4().hex
        conn.execute(
            "INSERT INTO opened (id, kind, at, until, subject, facility, shard, patient, reason)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                *(number, opening.kind, opening.at, opening.until, opening.subject, opening.facility),
                *(shard, patient, opening.reason),
            ],
        )
        if opening.kind == "break-glass":
            conn.execute(
                "INSERT INTO treatment (shard, rtype, id, facility, patient, until) VALUES (%s, 0, %s, %s, %s, %s)",
                [shard, number, OPENED_BY + opening.subject, patient, opening.until],
            )


def waiting(conn: psycopg.Connection[Any], limit: int = 200) -> list[dict[str, Any]]:
    """Openings nobody has reviewed, oldest first."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT id, kind, at, until, subject, facility, patient, reason FROM opened WHERE reviewed IS NULL"
            " ORDER BY at, id LIMIT %s",
            [limit],
        ).fetchall()


def review(conn: psycopg.Connection[Any], number: str, reviewer: str, verdict: str, at: datetime) -> None:
    """Settles one opening. Raises Fault: INVALID for another verdict, NOT_FOUND, FORBIDDEN for one's own, CONFLICT when it was
    reviewed before."""
    if verdict not in ("justified", "unjustified"):
        raise Fault(Category.INVALID, "verdict is justified or unjustified.", where="verdict")
    row = conn.execute("SELECT subject, reviewed FROM opened WHERE id = %s FOR UPDATE", [number]).fetchone()
    if row is None:
        raise Fault(Category.NOT_FOUND, "There is no opened record of that id.")
    if row[0] == reviewer:
        raise Fault(Category.FORBIDDEN, "Nobody reviews what he opened himself.")
    if row[1] is not None:
        raise Fault(Category.CONFLICT, "It was reviewed before.")
    conn.execute(
        "UPDATE opened SET reviewed = %s, reviewer = %s, verdict = %s WHERE id = %s", [at, reviewer, verdict, number]
    )
