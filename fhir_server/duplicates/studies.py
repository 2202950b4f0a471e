"""The imaging studies behind earlier reports, as they stood at the time of an order (as recognition.images reads them for now)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

import orjson
import psycopg

from conformance.capability import RESOURCE_TYPES
from fhir_server.recognition import images
from fhir_server.store.body import Codec

# Every version that ever was current, with the time it was visible from and until.
_VERSIONS: Final = """
WITH w AS MATERIALIZED (SELECT * FROM unnest(%(shards)s::smallint[], %(ids)s::text[]) AS w(shard, id))
SELECT r.id, r.updated, NULL::timestamptz AS until, r.dict, r.body, r.patient, r."order" FROM w
JOIN resource r ON r.shard = w.shard AND r.rtype = %(rtype)s AND r.id = w.id AND NOT r.deleted
UNION ALL
SELECT h.id, h.updated, h.until, h.dict, h.body, h.patient, h."order" FROM w
JOIN resource_history h ON h.shard = w.shard AND h.rtype = %(rtype)s AND h.id = w.id
WHERE NOT h.stale AND NOT h.deleted AND h.until IS NOT NULL"""


class _Version(NamedTuple):
    since: datetime
    until: datetime | None
    body: Mapping[str, Any]


@dataclass(slots=True)
class Studies:
    """Reports and ImagingStudies, every version."""

    reports: dict[str, list[_Version]] = field(default_factory=dict)
    studies: dict[str, list[_Version]] = field(default_factory=dict)

    def facts(self, report: str | None, at: datetime | None) -> dict[str, Any]:
        """The image fields of a Candidate as known at ``at`` (None: now): complete, reachable, quality; empty when nothing is known."""
        told = _then(self.reports.get(report or "", ()), at)
        if told is None:
            return {}
        found = [_then(self.studies.get(i, ()), at) for i in images.references(told)]
        return images.facts([study for study in found if study is not None])

    def changes(self, report: str) -> list[datetime]:
        """The moments at which something about the images of a report became known, ascending."""
        versions = list(self.reports.get(report, ()))
        named = {i for v in versions for i in images.references(v.body)}
        versions += [v for i in named for v in self.studies.get(i, ())]
        return sorted({v.since for v in versions})


def _then(versions: Iterable[_Version], at: datetime | None) -> Mapping[str, Any] | None:
    if at is None:
        return next((v.body for v in versions if v.until is None), None)
    return next((v.body for v in versions if v.since <= at and (v.until is None or v.until > at)), None)


def read(conn: psycopg.Connection[Any], codec: Codec, reports: Iterable[tuple[int, str]]) -> Studies:
    """What is known of the studies of reports, given by shard and logical id. A study stands in the shard of its report."""
    wanted = sorted(set(reports))
    if not wanted:
        return Studies()
    told = _versions(conn, codec, "DiagnosticReport", wanted)
    shards = {report: shard for shard, report in wanted}
    named = {(shards[r], i) for r, versions in told.items() for v in versions for i in images.references(v.body)}
    return Studies(told, _versions(conn, codec, "ImagingStudy", sorted(named)) if named else {})


def _versions(
    conn: psycopg.Connection[Any], codec: Codec, kind: str, keys: Iterable[tuple[int, str]]
) -> dict[str, list[_Version]]:
    shards, ids = zip(*keys, strict=True)
    named = {"shards": list(shards), "ids": list(ids), "rtype": RESOURCE_TYPES[kind]}
    out: dict[str, list[_Version]] = {}
    for logical, since, until, number, body, patient, order in conn.execute(_VERSIONS, named):
        found = orjson.loads(codec.decompress(number, body, (logical, patient, order)))
        out.setdefault(logical, []).append(_Version(since, until, found))
    return out
