"""Replay: messages go back into the queue after a mapping was mended. What they say twice changes nothing.

``replay_decided`` finds the messages itself: those whose stored results carry a code that was decided on in the worklist since.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from conformance.capability import RESOURCE_TYPES
from fhir_server.ingest.inbox import READY_CHANNEL
from fhir_server.search.definitions import parameters
from fhir_server.search.leaves import hash_of

_ORDERS = ("ServiceRequest", "DiagnosticReport")
REPLAYABLE = ("held", "done", "quality-control")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which messages: all given conditions hold. reason: issue key of the hold; ids: inbox ids; since: received then or later."""

    facility: str | None = None
    status: str = "held"
    reason: str | None = None
    ids: tuple[int, ...] = ()
    since: datetime | None = None


_REPLAY = """
UPDATE inbox SET status = 'ready', attempts = 0, reason = NULL, claimed_by = NULL, lease_until = NULL
WHERE status = %(status)s
  AND (%(facility)s::text IS NULL OR facility = %(facility)s)
  AND (%(reason)s::text IS NULL OR reason = %(reason)s)
  AND (%(ids)s::bigint[] = '{}' OR id = ANY(%(ids)s::bigint[]))
  AND (%(since)s::timestamptz IS NULL OR received_at >= %(since)s)
"""


def replay(conn: psycopg.Connection[Any], selection: Selection) -> int:
    """Puts the selected messages back to ready and wakes the workers; returns how many. Order per patient is kept by the claim.

    Raises ValueError for a status that cannot be replayed (refused bytes have no facility to convert them for).
    """
    if selection.status not in REPLAYABLE:
        raise ValueError(f"status is one of {', '.join(REPLAYABLE)}")
    with conn.transaction():
        count = conn.execute(
            _REPLAY,
            {
                "status": selection.status,
                "facility": selection.facility,
                "reason": selection.reason,
                "ids": list(selection.ids),
                "since": selection.since,
            },
        ).rowcount
        if count:
            conn.execute(f"NOTIFY {READY_CHANNEL}")
    return count


_DECIDED = """
SELECT id, facility, kind, code, name, target FROM code_mapping
WHERE until IS NULL AND replayed IS NULL AND (%(facility)s::text IS NULL OR facility = %(facility)s) ORDER BY id FOR UPDATE
"""
_KINDS = "SELECT id FROM resource_kind WHERE facility = %(facility)s AND "
_OF_CODE = _KINDS + "code = %(code)s AND item IS DISTINCT FROM %(target)s"
_OF_UNIT = _KINDS + "unit_text = %(code)s AND unit IS DISTINCT FROM %(target)s"
_OF_ORDER = "SELECT id FROM resource_kind WHERE rtype = ANY(%(rtypes)s::smallint[]) AND tokens && %(hashes)s::bigint[]"
_MESSAGES = "SELECT DISTINCT inbox FROM resource WHERE tokens && %s::bigint[] AND inbox IS NOT NULL"
_AGAIN = """
UPDATE inbox SET status = 'ready', attempts = 0, reason = NULL, claimed_by = NULL, lease_until = NULL
WHERE status = 'done' AND facility = %s AND id = ANY(%s::bigint[])
"""


def replay_decided(conn: psycopg.Connection[Any], at: datetime, facility: str | None = None) -> int:
    """Puts stored messages back whose results or orders a decision of the worklist would map otherwise; returns how many.

    Each decision is replayed once. ``at``: now.
    """
    again = 0
    with conn.transaction():
        for number, where, kind, code, name, target in conn.execute(_DECIDED, {"facility": facility}).fetchall():
            ids = _messages(conn, where, kind, code, name, target)
            if ids:
                again += conn.execute(_AGAIN, (where, ids)).rowcount
            conn.execute("UPDATE code_mapping SET replayed = %s WHERE id = %s", (at, number))
        if again:
            conn.execute(f"NOTIFY {READY_CHANNEL}")
    return again


def _messages(
    conn: psycopg.Connection[Any], facility: str, kind: str, code: str, name: str, target: str | None
) -> list[int]:
    """Inbox ids of current results that carry the code (the name, the unit) and are mapped otherwise, or of orders that carry it."""
    asked: dict[str, Any] = {"facility": facility, "code": code or name, "target": target}
    query = {"code": _OF_CODE, "unit": _OF_UNIT, "order": _OF_ORDER}[kind]
    hashes: list[int] = []
    if kind == "order":
        hashes = [hash_of(parameters(t)["code"].paths[0][0].seed, code or name) for t in _ORDERS]
        asked |= {"rtypes": [RESOURCE_TYPES[t] for t in _ORDERS], "hashes": hashes}
    # A kind is found in the tokens of its resources, and so is a hash that is not part of the kind.
    wanted = [row[0] for row in conn.execute(query, asked)] + hashes
    return [row[0] for row in conn.execute(_MESSAGES, (wanted,))] if wanted else []
