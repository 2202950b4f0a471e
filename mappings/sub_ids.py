"""Results of one code told apart by OBX-4: one Observation with components, where the profile says so (``sub_ids: components``).

Without it each OBX is an Observation of its own. Observation.component fits parts that mean nothing alone (fields of a blood smear);
only the laboratory knows that, so it is never guessed.
"""

from __future__ import annotations

from typing import Any

from mappings import ids
from mappings.context import Context
from mappings.model import Entry
from mappings.source import Record

_OF_PART = ("dataAbsentReason", "interpretation", "referenceRange", "extension")


def together(results: list[tuple[Record, dict[str, Any]]], x: Context) -> list[tuple[Record, dict[str, Any]]]:
    """Joins results of equal code and status that carry different sub-ids; changes the conversion's entries and gives what is left."""
    groups: dict[tuple[str, str], list[tuple[Record, dict[str, Any]]]] = {}
    for record, observation in results:
        if record.get(4) and "component" not in observation and "hasMember" not in observation:
            groups.setdefault((record.first(3) or record.first(3, 2), observation["status"]), []).append(
                (record, observation)
            )
    gone: set[int] = set()
    for (code, _), group in groups.items():
        if len(group) < 2 or len({record.first(4) for record, _ in group}) != len(group):
            continue
        first = group[0][1]
        parts = [_part(record, observation) for record, observation in group]
        for key in (*_OF_PART, *[k for k in first if k.startswith("value")]):
            first.pop(key, None)
        first["component"] = parts
        first["id"] = ids.logical_id(
            x.shard, x.facility.id, "Observation", x.patient, x.order.scope, code, "components"
        )
        notes = [note for _, observation in group for note in observation.get("note", ())]
        if notes:
            first["note"] = notes
        gone |= {id(observation) for _, observation in group[1:]}
    if gone:
        entries: list[Entry] = x.conversion.entries
        x.keep([e for e in entries if id(e.resource) not in gone])
    return [(record, observation) for record, observation in results if id(observation) not in gone]


def _part(record: Record, observation: dict[str, Any]) -> dict[str, Any]:
    """One component: the code with the sub-id in its text, and what is said of its value."""
    code = {**observation["code"], "text": f"{observation['code'].get('text', '')} {record.first(4)}".strip()}
    return {"code": code} | {k: v for k, v in observation.items() if k in _OF_PART or k.startswith("value")}
