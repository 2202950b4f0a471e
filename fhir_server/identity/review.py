"""Pairs of Patients kept apart that a person should look at (table ``identity_review``)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import psycopg

from fhir_server.identity import matcher
from fhir_server.identity.matcher import Facts
from fhir_server.identity.person import COLUMNS, Row, as_row

_REVIEWED_PAIRS = 20

_ALIKE = f"""
SELECT a.patient, s.* FROM unnest(%(ids)s::text[], %(numbers)s::bytea[], %(names)s::text[], %(births)s::date[], %(keys)s::bytea[])
    AS a(patient, resident_id, name, birth, certain)
CROSS JOIN LATERAL (
    (SELECT {COLUMNS} FROM source_patient s WHERE s.resident_id = a.resident_id AND s.patient <> a.patient
        AND s.certain IS DISTINCT FROM coalesce(a.certain, '') ORDER BY s.patient LIMIT {_REVIEWED_PAIRS})
    UNION
    (SELECT {COLUMNS} FROM source_patient s WHERE s.name = a.name AND s.birth = a.birth AND s.patient <> a.patient
        AND s.certain IS DISTINCT FROM coalesce(a.certain, '') ORDER BY s.patient LIMIT {_REVIEWED_PAIRS})) s
"""  # noqa: S608 - constants of this module


def list_pairs(
    conn: psycopg.Connection[Any],
    rows: Mapping[str, Row],
    persons: Mapping[str, str],
    changed: Mapping[str, Facts],
    at: datetime,
) -> None:
    """Lists the pairs around changed Patients that a person should look at, and closes those that are settled."""
    pairs: dict[tuple[str, str], tuple[int, int, str]] = {}
    if changed:
        named: list[tuple[str | None, date | None]] = [
            (f.name, f.birth) if matcher.comparable_name(f.name) else (None, None) for f in changed.values()
        ]
        found = conn.execute(
            _ALIKE,
            {
                "ids": list(changed),
                "numbers": [f.resident_id for f in changed.values()],
                "names": [n for n, _ in named],
                "births": [b for _, b in named],
                "keys": [matcher.certain_key(f) for f in changed.values()],
            },
        ).fetchall()
        for patient, *other_columns in found:
            other = as_row(other_columns)
            if persons[patient] == persons.get(other.patient, other.person):
                continue
            verdict = matcher.judge(changed[patient], changed.get(other.patient, other.facts))
            if verdict.grade in ("probable", "possible"):
                a, b = sorted((rows[patient], other), key=lambda row: row.patient)
                pairs[a.patient, b.patient] = (a.shard, b.shard, verdict.reason)
    listed = conn.execute(
        "SELECT patient, other FROM identity_review r WHERE closed IS NULL AND ((shard, patient) IN"
        " (SELECT * FROM unnest(%(shards)s::smallint[], %(ids)s::text[])) OR other = ANY(%(ids)s::text[]))",
        {"shards": [row.shard for row in rows.values()], "ids": list(rows)},
    ).fetchall()
    settled = [
        (a, b)
        for a, b in listed
        if (a in rows and b in rows and persons[a] == persons[b])
        or ((a in changed or b in changed) and (a, b) not in pairs)
    ]
    if settled:
        conn.execute(
            "UPDATE identity_review r SET closed = %s FROM unnest(%s::text[], %s::text[]) AS a(patient, other)"
            " WHERE r.patient = a.patient AND r.other = a.other AND r.closed IS NULL",
            (at, [s[0] for s in settled], [s[1] for s in settled]),
        )
    if pairs:
        conn.execute(
            "INSERT INTO identity_review AS r (recorded, shard, patient, other_shard, other, reason)"
            " SELECT %s, * FROM unnest(%s::smallint[], %s::text[], %s::smallint[], %s::text[], %s::text[])"
            " ON CONFLICT (shard, patient, other_shard, other) DO UPDATE SET reason = EXCLUDED.reason, closed = NULL,"
            " recorded = EXCLUDED.recorded WHERE r.reason <> EXCLUDED.reason OR r.closed IS NOT NULL",
            (
                at,
                [p[0] for p in pairs.values()],
                [a for a, _ in pairs],
                [p[1] for p in pairs.values()],
                [b for _, b in pairs],
                [p[2] for p in pairs.values()],
            ),
        )
