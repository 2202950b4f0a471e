"""Continued messages whose parts arrive one by one (HL7 v2.5.1 section 2.10.2: DSC-1 of a part is MSH-14 of the next).

Each part is stored and acknowledged as it comes. A part that cannot be completed yet is held with the reason ``continued-message``; the
one that completes the message is converted as the whole message, whatever order they came in, and the others are done with it. Parts
share an ordering key with their neighbours (inbox.ordering_keys), so no two workers look at one message at once. Parts more than a day
apart do not belong together: pointers are used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from adapters.hl7v2.continuation import joined, pointers
from conformance.issue import Issue
from fhir_server.ingest.inbox import Claimed, decompress, issues_json

_JOINED = "parts-joined"
_PARTS = """
SELECT shard, id, status, issues, raw FROM inbox WHERE facility = %(facility)s AND flag = 'part'
AND received_at BETWEEN %(at)s - interval '1 day' AND %(at)s + interval '1 day'
AND trigger = (SELECT trigger FROM inbox WHERE shard = %(shard)s AND id = %(id)s)
AND (status <> 'held' OR reason = 'continued-message') AND status <> 'failed'
"""
_DONE = """
UPDATE inbox i SET status = 'done', reason = NULL, issues = %s::jsonb, mapping = %s, converted_at = %s
FROM unnest(%s::smallint[], %s::bigint[]) AS a(shard, id)
WHERE i.shard = a.shard AND i.id = a.id AND (i.status = 'ready' OR i.status = 'held' AND i.reason = 'continued-message')
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A part in the inbox. ``before``, ``after``: MSH-14 and DSC-1; ``mates``: ids of the parts it was put together with."""

    shard: int
    id: int
    raw: bytes
    before: str
    after: str
    mates: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Whole:
    """A message put together. ``raw``: its bytes; ``parts``: from the first to the last."""

    raw: bytes
    parts: tuple[Part, ...]

    @property
    def issue(self) -> Issue:
        """Tells where the bytes are."""
        ids = ",".join(str(part.id) for part in self.parts)
        words = (
            f"The message came in {len(self.parts)} parts, which were put together; the value names their inbox ids."
        )
        return Issue(_JOINED, "information", "DSC[1]-1", words, ids)


def is_part(raw: bytes) -> bool:
    """True when MSH-14 or DSC-1 says that the message is not whole."""
    return any(pointers(raw))


def whole(conn: psycopg.Connection[Any], message: Claimed) -> Whole | None:
    """The message that ``message`` is a part of, when all its parts are in the inbox; else None."""
    asked = {"facility": message.facility, "at": message.received_at, "shard": message.shard, "id": message.id}
    found = []
    for shard, number, status, issues, stored in conn.execute(_PARTS, asked).fetchall():
        mates = frozenset(m for i in issues or () if i["key"] == _JOINED for m in str(i["value"]).split(","))
        # A part that already belongs to a message belongs to no other one: pointers are used again.
        if status != "done" or str(message.id) in mates:
            raw = decompress(stored)
            found.append(Part(shard, number, raw, *pointers(raw), mates))
    return chain(found, message.id)


def chain(parts: Sequence[Part], at: int) -> Whole | None:
    """The parts from the first to the last that contain the one with id ``at`` (pure); None when one is missing.

    Of several that fit, the one it was put together with before counts, else the nearest one on the side where it should have come.
    """
    order = [part for part in parts if part.id == at]
    while order and order[0].before:
        here = order[0]
        fitting = [p for p in parts if p.after == here.before and p not in order]
        order[:0] = sorted(fitting, key=lambda p: (str(p.id) not in here.mates, p.id > here.id, abs(p.id - here.id)))[
            :1
        ] or [_NONE]
    while order and order[-1].after:
        here = order[-1]
        fitting = [p for p in parts if p.before == here.after and p not in order]
        order += sorted(fitting, key=lambda p: (str(p.id) not in here.mates, p.id < here.id, abs(p.id - here.id)))[
            :1
        ] or [_NONE]
    if len(order) < 2 or _NONE in order:
        return None
    made = list(joined(part.raw for part in order))
    return Whole(made[0], tuple(order)) if len(made) == 1 else None


def finish(conn: psycopg.Connection[Any], found: Whole, mapping: int | None, at: datetime) -> None:
    """The other parts are done with the message, in the transaction that stores it. Parts of the same batch finish themselves."""
    shards, ids = [part.shard for part in found.parts], [part.id for part in found.parts]
    conn.execute(_DONE, (issues_json([found.issue]), mapping, at, shards, ids))


_NONE = Part(0, 0, b"", "", "")
"""Stands where a part is missing."""
