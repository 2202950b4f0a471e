"""The order of segments in an HL7 v2 message: missing, unexpected and too many segments, by the structures hl7apy knows.

HL7 v2.5.1 section 2.12 (message structures), chapter 3 and 7, table 0354. Off the hot path, as conformance.hl7v2_standard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

from hl7apy import load_library

UNENDING = -1
"""Cardinality without a limit."""
_MOST_UNEXPECTED = 20
# Trigger events that use the structure of another one, for versions and senders without MSH-9.3 (HL7 v2.5.1 chapter 3, table 0354).
_SHARED = {
    "ADT": {
        "A04": "A01", "A08": "A01", "A13": "A01", "A14": "A05", "A28": "A05", "A31": "A05", "A07": "A06", "A10": "A09", "A11": "A09",
        "A12": "A09", "A22": "A21", "A23": "A21", "A25": "A21", "A26": "A21", "A27": "A21", "A29": "A21", "A32": "A21", "A33": "A21",
        "A40": "A39", "A41": "A39", "A42": "A39", "A46": "A30", "A47": "A30", "A34": "A30", "A35": "A30", "A36": "A30", "A48": "A30",
        "A49": "A30", "A51": "A50", "A55": "A54", "A52": "A52", "A53": "A52", "A62": "A61",
    },
    "MDM": {
        "T03": "T01", "T05": "T01", "T07": "T01", "T09": "T01", "T11": "T01", "T04": "T02", "T06": "T02", "T08": "T02", "T10": "T02",
    },
    "ORU": {"R32": "R01", "R31": "R01", "R30": "R30"},
    "OUL": {},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the order: what, the segment id, where it is (or would be needed), and what was expected."""

    kind: Literal["missing-segment", "unexpected-segment", "too-many-segments"]
    segment: str
    where: str
    detail: str


class Named(Protocol):
    """What is needed of a segment: id, and id with ordinal."""

    @property
    def name(self) -> str:
        """``OBX``."""
        ...

    @property
    def where(self) -> str:
        """``OBX[3]``."""
        ...


@dataclass(frozen=True, slots=True)
class Node:
    """A segment or a group: children empty for a segment. starts: segments that can begin it. choice: one of the children, not all."""

    name: str
    least: int
    most: int
    children: tuple[Node, ...]
    starts: frozenset[str]
    choice: bool = False


@lru_cache(maxsize=256)
def structure_of(version: str, code: str, event: str, structure: str) -> Node | None:
    """The structure of a message by MSH-12 and MSH-9.1 to 9.3; None when the version has no such message."""
    messages = load_library(version).MESSAGES
    shared = _SHARED.get(code, {}).get(event, "")
    for name in (structure, f"{code}_{event}", f"{code}_{shared}", code):
        if name and name in messages:
            return _node(name, messages[name], (1, 1))
    return None


def _node(name: str, reference: Any, cardinality: tuple[int, int]) -> Node:
    children = tuple(
        _node(child, inner, limits) if kind == "GRP" else Node(child, limits[0], limits[1], (), frozenset({child}))
        for child, inner, limits, kind in reference[1]
    )
    choice = reference[0] == "choice"
    starts: set[str] = set()
    for child in children:
        starts |= child.starts
        if child.least and not choice:
            break
    return Node(name, cardinality[0], cardinality[1], children, frozenset(starts), choice)


def faults(segments: Sequence[Named], root: Node) -> list[Fault]:
    """Missing, unexpected and too many segments. One that fits nowhere is told and left out, and reading goes on."""
    out: list[Fault] = []
    rest = list(segments)
    unexpected: list[Fault] = []
    while True:
        walk = _Walk(rest)
        walk.group(root)
        if walk.at == len(rest) or len(unexpected) == _MOST_UNEXPECTED:
            out = walk.found
            break
        stranger = rest.pop(walk.at)
        unexpected.append(
            Fault("unexpected-segment", stranger.name, stranger.where, f"not expected here in {root.name}")
        )
    return out + unexpected


class _Walk:
    """Reads segments along a structure as far as it goes."""

    def __init__(self, segments: list[Named]) -> None:
        self._segments = segments
        self.at = 0
        self.found: list[Fault] = []

    def _name(self) -> str:
        return self._segments[self.at].name if self.at < len(self._segments) else ""

    def group(self, group: Node, after: frozenset[str] = frozenset()) -> None:
        """Read one group. after: segments that may follow it."""
        if group.choice:
            taken = next((c for c in group.children if self._name() in c.starts), None)
            if taken is not None:
                self._child(taken, group, after)
            elif group.least:
                self._missing("/".join(sorted(group.starts)), group)
            return
        for number, child in enumerate(group.children):
            following = set(after)
            for later in reversed(group.children[number + 1 :]):
                following = set(later.starts) | (set() if later.least else following)
            self._child(child, group, frozenset(following))

    def _child(self, child: Node, group: Node, following: frozenset[str]) -> None:
        times = 0
        while self._name() in child.starts and (child.most == UNENDING or times < child.most):
            before, told = self.at, len(self.found)
            if child.children:
                self.group(child, following | child.starts if child.most != 1 else following)
            else:
                self.at += 1
            if len(self.found) > told and times >= child.least and self._segments[before].name in following:
                # It fits better into what comes after this optional group.
                self.at = before
                del self.found[told:]
                break
            times += 1
            if self.at == before:
                break
        if times < child.least:
            self._missing(child.name if not child.children else "/".join(sorted(child.starts)), group)
        elif not child.children and times == child.most != UNENDING and self._again(child.name, group):
            while self._name() == child.name:
                where = self._segments[self.at].where
                self.found.append(
                    Fault("too-many-segments", child.name, where, f"at most {child.most} in {group.name}")
                )
                self.at += 1

    def _missing(self, name: str, group: Node) -> None:
        where = self._segments[self.at].where if self.at < len(self._segments) else "end of message"
        self.found.append(Fault("missing-segment", name, where, f"needed in {group.name}, before this place"))

    def _again(self, name: str, group: Node) -> bool:
        """The same segment once more, where it cannot begin the group again."""
        return self._name() == name and name not in group.starts
