"""Replay: messages go back into the queue after a mapping was mended. What they say twice changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from fhir_server.ingest.inbox import READY_CHANNEL

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
