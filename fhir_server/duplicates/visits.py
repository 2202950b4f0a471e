"""What the visits of orders say: was it an emergency, and for which department."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import psycopg

from conformance.capability import RESOURCE_TYPES
from fhir_server.duplicates.orders import Placed, reference_of
from fhir_server.recognition.candidates import is_emergency
from fhir_server.recognition.circumstances import either
from fhir_server.store.body import Codec

_BODIES: Final = """
SELECT r.dict, r.body, r.id, r.patient, r."order" FROM unnest(%s::smallint[], %s::text[]) AS w(shard, id)
JOIN resource r ON r.shard = w.shard AND r.rtype = %s AND r.id = w.id AND NOT r.deleted"""


def with_visits(conn: psycopg.Connection[Any], codec: Codec, placed: Sequence[Placed]) -> list[Placed]:
    """The orders with what their visits say: emergency (Encounter.class) and department. A report's visit is the one it names."""
    reports = sorted({(p.shard, p.report) for p in placed if p.report})
    told = _bodies(conn, codec, "DiagnosticReport", reports)
    named = [p.visit or reference_of(told.get(p.report, {}), "encounter", "Encounter") for p in placed]
    visits = _bodies(conn, codec, "Encounter", sorted({(p.shard, v) for p, v in zip(placed, named, strict=True) if v}))
    out = []
    for p, logical in zip(placed, named, strict=True):
        visit = visits.get(logical)
        if visit is None:
            out.append(p)
            continue
        emergency = either(p.emergency, is_emergency(visit))
        out.append(p._replace(emergency=emergency, department=_department(visit), visit=""))
    return out


def _bodies(
    conn: psycopg.Connection[Any], codec: Codec, kind: str, keys: Sequence[tuple[int, str]]
) -> dict[str, dict[str, Any]]:
    if not keys:
        return {}
    shards, ids = zip(*keys, strict=True)
    found = conn.execute(_BODIES, (list(shards), list(ids), RESOURCE_TYPES[kind]), binary=True).fetchall()
    return {names[0]: orjson.loads(codec.decompress(number, body, names)) for number, body, *names in found}


def _department(visit: Mapping[str, Any]) -> str:
    """Encounter.serviceType (PV1-10) as code, else text; else the place of its latest location (PV1-3) as text."""
    kind = visit.get("serviceType") or {}
    code = next((c["code"] for c in kind.get("coding") or () if c.get("code")), "") or kind.get("text") or ""
    places = [(at.get("location") or {}).get("display") for at in visit.get("location") or ()]
    return str(code or next((p for p in reversed(places) if p), ""))
