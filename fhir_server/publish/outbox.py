"""The outbox: one row per thing others want to know, committed with the change itself (table ``outbox``).

result-new        a report (or a result without one) that is there now, or went from preliminary to final
result-corrected  one whose new version corrects an earlier one (the publisher takes a result-new of a report that was adopted so)
result-voided     one that is withdrawn: entered in error, cancelled, or sent for the wrong patient
patient-merged    a Patient whose facility merged it with another, or took the merge back
answer-reopened   a DetectedIssue whose answer no longer stands: the mark or quality assessment behind it was taken back
resource-changed  a resource of a type that somebody subscribed to by a query, created or changed

The backfill lane tells nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

import psycopg

from conformance.capability import TYPE_NAMES
from fhir_server.identity.person import Link
from fhir_server.store.change import Change

CHANNEL = "tongjian_outbox"
"""NOTIFY channel for those who deliver."""
_VOID = frozenset({"entered-in-error", "cancelled"})
_CORRECTED = frozenset({"corrected", "amended", "appended"})

Row = tuple[int, str, str, str | None, str]
"""shard, topic, facility, patient, resource"""


_ASKED_FOR = """
SELECT DISTINCT unnest(types) FROM subscription WHERE topic = '' AND status IN ('requested', 'active', 'error')"""


def asked_for(conn: psycopg.Connection[Any]) -> frozenset[str]:
    """Resource types that somebody subscribed to by a query."""
    return frozenset(TYPE_NAMES[row[0]] for row in conn.execute(_ASKED_FOR))


def rows(changes: Iterable[Change], links: Iterable[Link], asked: Collection[str] = ()) -> list[Row]:
    """What to tell of one batch (pure). Results are told of by report; by themselves only where their report did not change.
    ``asked``: types of which every change is told."""
    changes = list(changes)
    told: dict[tuple[int | None, str | None], list[Change]] = {}
    for change in changes:
        if (
            change.resource_type in ("DiagnosticReport", "Observation")
            and change.kind in ("created", "updated", "deleted")
            and not change.origin.backfill
        ):
            told.setdefault((change.origin.inbox, change.patient), []).append(change)
    out: list[Row] = []
    for group in told.values():
        reports = [c for c in group if c.resource_type == "DiagnosticReport"]
        out += [(c.shard, _topic(c), c.origin.facility, c.patient, c.versioned) for c in reports or group]
    out += [
        (link.shard, "patient-merged", link.facility, link.patient, f"Patient/{link.patient}")
        for link in links
        if link.basis in ("merge", "unmerge")
    ]
    return out + [
        (c.shard, "resource-changed", c.origin.facility, c.patient, c.versioned)
        for c in changes
        if c.resource_type in asked and c.kind in ("created", "updated") and not c.origin.backfill
    ]


def _topic(change: Change) -> str:
    status = (change.resource or {}).get("status")
    if change.voided or change.kind == "deleted" or status in _VOID:
        return "result-voided"
    return "result-corrected" if status in _CORRECTED or change.restored else "result-new"


def write(conn: psycopg.Connection[Any], found: Sequence[Row], at: datetime) -> None:
    """Writes the rows inside the caller's transaction."""
    if found:
        conn.execute(
            "INSERT INTO outbox (created, shard, topic, facility, patient, resource) SELECT %s, *"
            " FROM unnest(%s::smallint[], %s::text[], %s::text[], %s::text[], %s::text[])",
            (at, *map(list, zip(*found, strict=True))),
        )
