"""A notification about a document (MDM^T01, T03, T05, T07, T09, T11 without OBX) says how it stands, not that its content is gone: the
content stays that of the last statement that had one, in whatever order they come.

HL7 v2.5.1 section 9.5: only T02, T04, T06, T08 and T10 carry the content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.store import joining, rows
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from fhir_server.store.joining import Resource
from fhir_server.store.statement import Key
from fhir_server.store.versions import Batch, stored_resource

_DOCUMENTS: Final = frozenset({RESOURCE_TYPES["DocumentReference"]})


def join(cursor: rows.Cursor, codec: Codec, batch: Batch) -> None:
    """Gives documents of the batch, and stored ones, the content they lack. The locks of the patients of the batch are held; one
    question to the server when a notification, or a late content, is about a document that is stored."""
    keys = [key for key in batch.versions if key[1] in _DOCUMENTS]
    if not keys:
        return
    written = {key: version.statement for key, version in joining.current(batch, _DOCUMENTS)}
    asking = [k for k in keys if k in batch.before and not (k in written and _has_content(written[k].resource))]
    stored = {key: stored_resource(codec, body) for key, body in rows.bodies(cursor, asking).items()}
    changed: dict[Key, tuple[Resource, Origin]] = {}
    for key in keys:
        now: Mapping[str, Any] | None = written[key].resource if key in written else stored.get(key)
        if now is None or _has_content(now):
            continue
        told = sorted(
            (v.statement for v in batch.versions[key] if _has_content(v.statement.resource)), key=lambda s: s.recency
        )
        content = told[-1].resource if told else stored.get(key)
        if content is not None and _has_content(content):
            origin = written[key].origin if key in written else told[-1].origin
            changed[key] = {**now, "content": content["content"]}, origin
    joining.write(cursor, batch, changed, _DOCUMENTS)


def _has_content(document: Mapping[str, Any]) -> bool:
    return any(c["attachment"].keys() & {"url", "data"} for c in document.get("content") or () if "attachment" in c)
