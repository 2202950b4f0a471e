"""How firmly a message speaks: tier and rank of each status (mappings.model.Recency), and the plan of a message family."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from mappings import maps
from mappings.compiled import CompiledMap
from mappings.grammar import MessageMap, message_map
from mappings.model import Tier

STATUS_RANK = {
    "registered": 0,
    "unknown": 1,
    "partial": 2,
    "preliminary": 3,
    "final": 4,
    "appended": 5,
    "amended": 6,
    "corrected": 7,
    "cancelled": 8,
    "entered-in-error": 9,
}
"""Order of Observation and DiagnosticReport statuses stated at the same time: the later in a report's life wins."""

_FINAL = frozenset({"final", "appended", "amended", "corrected", "cancelled", "entered-in-error"})


def tier_of(status: str) -> Tier:
    """Tier of a result by its status."""
    return Tier.FINAL if status in _FINAL else Tier.PRELIMINARY


REQUEST_RANK = {
    "draft": 0,
    "unknown": 1,
    "active": 2,
    "on-hold": 3,
    "completed": 4,
    "revoked": 5,
    "entered-in-error": 6,
}
"""Order of ServiceRequest statuses stated at the same time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A message family with its compiled maps: group -> resource type -> maps in order."""

    map: MessageMap
    groups: dict[str, dict[str, tuple[CompiledMap, ...]]]

    def maps(self, group: str, target: str) -> tuple[CompiledMap, ...]:
        """The maps that fill one resource type of one group; empty when the family does not make it."""
        return self.groups.get(group, {}).get(target, ())

    def tier(self, kind: str) -> Tier:
        """Tier of the family's statements about a resource type."""
        return Tier[self.map.tiers.get(kind, "PRELIMINARY")]


@cache
def plan(code: str) -> Plan:
    """The plan of a message code (MSH-9.1)."""
    found = message_map(code)
    groups = {
        name: {kind: tuple(maps.segment(m) for m in names) for kind, names in targets.items()}
        for name, targets in found.groups.items()
    }
    return Plan(found, groups)
