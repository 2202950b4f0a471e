"""A report with everything that belongs to it, as it was when its version was written (async reads; nothing is changed)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import asyncpg

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.store import reader
from fhir_server.store.body import Codec
from mappings.outbound.people import Resources

_FOLLOWED: Final = frozenset(
    {"Patient", "Encounter", "Observation", "Specimen", "ServiceRequest", "Practitioner", "PractitionerRole", "Organization",
     "Location", "Binary"}
)  # fmt: skip
_STATED: Final = frozenset({"Observation", "Specimen"})
"""Types whose older version is looked for when they changed after the report did."""
_DEEPEST: Final = 4
"""Report -> request -> role -> organisation is three steps; a location chain is longer and is cut."""

_PARENT: Final = "SELECT parent FROM resource WHERE shard = $1 AND rtype = $2 AND id = $3"
_AS_OF: Final = """
SELECT version FROM resource_history
WHERE shard = $1 AND rtype = $2 AND id = $3 AND (updated < $4 OR updated = $4 AND ($5::bigint IS NULL OR inbox IS NULL OR inbox <= $5))
  AND NOT stale AND NOT deleted ORDER BY version DESC LIMIT 1
"""
_LAST: Final = """
SELECT max(version) FROM resource_history WHERE shard = $1 AND rtype = $2 AND id = $3 AND version < $4 AND NOT stale AND NOT deleted
"""


class _Moment(NamedTuple):
    """When a version was stored, and by which message: those of one batch share the time, later messages have higher numbers."""

    at: datetime
    inbox: int | None

    def before(self, stored: reader.Stored) -> bool:
        """Was that version stored after this moment?"""
        if self.inbox is None or stored.inbox is None:
            return stored.updated > self.at
        return (stored.updated, stored.inbox) > (self.at, self.inbox)


@dataclass(frozen=True, slots=True)
class Gathered:
    """main: the report (or a result without one); resources: it and what it leads to, by ``<type>/<id>``."""

    main: dict[str, Any]
    resources: Resources

    @property
    def reference(self) -> str:
        """``<type>/<id>`` of the main resource."""
        return f"{self.main['resourceType']}/{self.main['id']}"

    def bundle(self) -> dict[str, Any]:
        """A collection Bundle, the main resource first (http://hl7.org/fhir/R4/bundle.html)."""
        rest = [r for k, r in self.resources.items() if k != self.reference]
        entries = [
            {"fullUrl": f"urn:tongjian:{r['resourceType']}/{r['id']}", "resource": r} for r in (self.main, *rest)
        ]
        return {"resourceType": "Bundle", "type": "collection", "entry": entries}


async def gather(conn: asyncpg.Connection, codec: Codec, shard: int, versioned: str) -> Gathered | None:
    """``<type>/<id>/_history/<version>`` of an outbox row -> the report; None when nothing of it was ever there.

    A result that belongs to a report leads to that report. What was deleted is told as entered in error.
    """
    kind, logical, _, version = versioned.split("/")
    stored = await reader.vread(conn, codec, kind, logical, int(version))
    if stored is None:
        return None
    at = _Moment(stored.updated, stored.inbox)
    withdrawn = stored.deleted
    if withdrawn:
        last = await conn.fetchval(_LAST, shard, RESOURCE_TYPES[kind], logical, int(version))
        stored = await reader.vread(conn, codec, kind, logical, last) if last is not None else None
        if stored is None:
            return None
    main: dict[str, Any] = loads(stored.body)
    if kind == "Observation":
        parent = await conn.fetchval(_PARENT, shard, RESOURCE_TYPES[kind], logical)
        report = await _as_of(conn, codec, "DiagnosticReport", parent, at) if parent else None
        if report is not None:
            main, withdrawn = report, False
    resources = await _reach(conn, codec, main, at)
    if withdrawn:
        for resource in resources.values():
            if resource["resourceType"] in ("DiagnosticReport", "Observation"):
                resource["status"] = "entered-in-error"
    return Gathered(main, resources)


async def _reach(conn: asyncpg.Connection, codec: Codec, main: dict[str, Any], at: _Moment) -> Resources:
    found: Resources = {f"{main['resourceType']}/{main['id']}": main}
    front = [main]
    for _ in range(_DEEPEST):
        wanted = dict.fromkeys(r for resource in front for r in _references(resource) if "/".join(r) not in found)
        if not wanted:
            break
        stored = await reader.read_many(conn, codec, list(wanted))
        front = []
        for (kind, logical), one in stored.items():
            resource = None if one.deleted else loads(one.body)
            if kind in _STATED and (one.deleted or at.before(one)):
                resource = await _as_of(conn, codec, kind, logical, at) or resource
            if resource is not None:
                found[f"{kind}/{logical}"] = resource
                front.append(resource)
    return found


async def _as_of(conn: asyncpg.Connection, codec: Codec, kind: str, logical: str, at: _Moment) -> dict[str, Any] | None:
    """The version that was current at a time, else the current one; None when there is none."""
    stored = await reader.read(conn, codec, kind, logical)
    if stored is not None and at.before(stored):
        version = await conn.fetchval(_AS_OF, stored.shard, RESOURCE_TYPES[kind], logical, *at)
        if version is not None:
            stored = await reader.vread(conn, codec, kind, logical, version)
    return None if stored is None or stored.deleted else loads(stored.body)


def _references(value: Any) -> Iterator[tuple[str, str]]:
    """References and attachment addresses anywhere in a resource, of the types that are followed."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("reference", "url") and isinstance(inner, str):
                parts = inner.split("/")
                if parts[0] in _FOLLOWED and len(parts) >= 2:
                    yield parts[0], parts[1]
            elif key not in ("securityContext", "basedOn") or value.get("resourceType") == "DiagnosticReport":
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
