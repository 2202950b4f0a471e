"""References between resources of a patient that no message states: what the batch writes gets them, and what is stored gets a version.

Only the references are ours: what was stated, how it is ordered and the message it came from stay as they were (as with a withdrawal).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from fhir_server.store import rows
from fhir_server.store.change import Origin
from fhir_server.store.fold import Version, advanced
from fhir_server.store.statement import Key, of_state, tail_of
from fhir_server.store.versions import Batch

Resource = dict[str, Any]
Home = tuple[int, str]
"""Shard and patient."""


def current(batch: Batch, rtypes: Collection[int]) -> Iterator[tuple[Key, Version]]:
    """The versions of these resource types that will be current when the batch is written."""
    for key, versions in batch.versions.items():
        if key[1] in rtypes:
            found = next((v for v in versions if v.number == batch.after[key].version), None)
            if found is not None:
                yield key, found


def write(
    cursor: rows.Cursor, batch: Batch, changed: Mapping[Key, tuple[Resource, Origin]], rtypes: Collection[int]
) -> None:
    """Puts the changed resources into the batch: in place of what it writes, or as a further version of what is stored."""
    now = dict(current(batch, rtypes))
    for key, stored in rows.states(cursor, [key for key in changed if key not in now]).items():
        resource, origin = changed[key]
        state = batch.after.get(key, stored)
        if state.withdrawn is not None or state.deleted:
            continue
        # It still comes from the message that stated it.
        own = replace(origin, inbox=state.inbox, mapping=state.mapping)
        after = advanced(state, own, None)
        batch.before.setdefault(key, state)
        batch.after[key] = after
        again = of_state(key, resource, state, own)
        batch.versions.setdefault(key, []).append(Version(again, after.version, after.updated, "updated", None))
    for key, (resource, _) in changed.items():
        if key in now:
            statement = now[key].statement
            statement.resource, statement.tail, statement.members = resource, tail_of(resource), ()
