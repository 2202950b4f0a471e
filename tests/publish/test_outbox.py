"""fhir_server.publish.outbox: who is told of what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from fhir_server.identity.person import Link
from fhir_server.publish import outbox
from fhir_server.store.change import Change, Origin

AT = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


def change(kind: Any, resource_type: str, id: str, status: str | None = None, **more: Any) -> Change:
    origin = Origin("county", more.pop("inbox", 1), 1, AT, backfill=more.pop("backfill", False))
    resource = {"resourceType": resource_type, "status": status} if status else None
    return Change(kind, resource_type, id, 5, 2, AT, "p1", origin, resource, b"", **more)


@pytest.mark.parametrize(
    ("kind", "status", "more", "topic"),
    [
        ("created", "final", {}, "result-new"),
        ("created", "preliminary", {}, "result-new"),
        ("updated", "final", {}, "result-new"),
        ("updated", "corrected", {}, "result-corrected"),
        ("updated", "amended", {}, "result-corrected"),
        ("updated", "cancelled", {}, "result-voided"),
        ("updated", "entered-in-error", {"voided": True}, "result-voided"),
        ("updated", "final", {"restored": True}, "result-corrected"),
        ("deleted", None, {}, "result-voided"),
    ],
)
def test_a_report_is_told_of_by_what_became_of_it(
    kind: str, status: str | None, more: dict[str, bool], topic: str
) -> None:
    rows = outbox.rows([change(kind, "DiagnosticReport", "r1", status, **more)], [])
    assert rows == [(5, topic, "county", "p1", "DiagnosticReport/r1/_history/2")]


def test_results_are_told_of_by_their_report_and_alone_only_without_one() -> None:
    report, result = (
        change("created", "DiagnosticReport", "r1", "final"),
        change("created", "Observation", "o1", "final"),
    )
    other = change("updated", "Observation", "o2", "corrected", inbox=2)
    assert [row[4] for row in outbox.rows([result, report, other], [])] == [
        "DiagnosticReport/r1/_history/2",
        "Observation/o2/_history/2",
    ]


def test_stale_versions_patients_and_the_backfill_lane_tell_nobody() -> None:
    quiet = [
        change("stale", "DiagnosticReport", "r1", "final"),
        change("unchanged", "DiagnosticReport", "r1", "final"),
        change("created", "Patient", "p1"),
        change("created", "DiagnosticReport", "r2", "final", backfill=True),
    ]
    assert (
        outbox.rows(quiet, [Link(5, "p1", "county", "p1", "alone"), Link(5, "p2", "county", "p1", "resident-id")]) == []
    )


def test_a_merge_and_its_withdrawal_are_told() -> None:
    links = [Link(5, "p2", "county", "p1", "merge"), Link(6, "p3", "county", "p3", "unmerge")]
    assert [(row[1], row[4]) for row in outbox.rows([], links)] == [
        ("patient-merged", "Patient/p2"),
        ("patient-merged", "Patient/p3"),
    ]


def test_rows_commit_with_the_transaction_they_tell_of(database_url: str) -> None:
    rows = outbox.rows([change("created", "DiagnosticReport", "r1", "final")], [])
    with psycopg.connect(database_url) as conn:
        outbox.write(conn, [], AT)
        outbox.write(conn, rows, AT)
        conn.rollback()
        assert conn.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
        outbox.write(conn, rows, AT)
        found = conn.execute(
            "SELECT shard, topic, facility, patient, resource, created, published FROM outbox"
        ).fetchall()
        assert found == [(*rows[0], AT, None)]
