"""Resources that are sound because each of their elements is one that was found sound before: the fast way through ``validator``.

The schema of a resource type says two kinds of things: which elements there may and must be (their names alone decide), and what
stands in each (its value alone decides). So a set of names that was sound once is sound always, and so is an element that is equal to
the byte, or but for its ids, number and time of day. Where a type has rules between elements
(contained resources, components, Bundle), nothing is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

_BETWEEN: Final = frozenset({"contained", "component", "_status"})
"""Elements with rules that look at other elements too (structure.py); a resource that has one is checked as a whole."""
_NAMES_ONLY: Final = frozenset({"$comment", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "required"})
"""Keywords that ask whether an element is there, not what it says."""
_WHOLE: Final = frozenset({"type", "minProperties", "properties", "additionalProperties", "required", "allOf"})
_OWN: Final = frozenset({"id", "identifier", "valueQuantity", "result", "target", "recorded", "entity"})
"""Elements that hardly two resources have alike."""
_REFERENCE: Final = re.compile(rb'/[0-9a-v]{24}"')
"""The end of a reference with a derived id (mappings.ids). It begins with a plain character, so that looking for it is fast."""
_ID: Final = re.compile(rb'"id":"[A-Za-z0-9.-]{1,64}"')
_NUMBER: Final = re.compile(rb'"valueQuantity":\{"value":-?[0-9]+(?:\.[0-9]+)?')
_SOURCE: Final = re.compile(rb'"meta":\{"source":"[!#-\[\]-~]+"\}')
_TIME: Final = re.compile(
    rb'("[A-Za-z]+":"[0-9-]{10}T)(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?((?:Z|[+-][0-9:]{5})")'
)
"""A date and time: whether that exists, its day and its zone say, since the time of day is one."""
_DAY: Final = re.compile(rb'"[0-9]{4}-')
_NAMED: Final = frozenset({"identifier", "extension", "entity"})
"""Elements that hold an identifier, which hardly two resources share."""
_VALUE: Final = re.compile(rb'"value":"[A-Za-z0-9.:-]+"')
_MOST: Final = 4096
"""Elements of each kind remembered for each type; when there are more, all are forgotten and learned again."""
_LONGEST: Final = 1024
_MOST_SHAPES: Final = 512


class KnownSound:
    """What is known of one resource type. is_sound: looks at a whole resource of it."""

    def __init__(self, is_sound: Callable[[dict[str, Any]], bool]) -> None:
        self._is_sound = is_sound
        self._fewest: dict[str, Any] = {}
        self._shapes: set[tuple[str, ...]] = set()
        self._met: set[bytes] = set()
        """Elements as they are: a message says the same of each of its results."""
        self._sound: set[bytes] = set()
        """One for all that are alike."""

    def covers(self, resource: dict[str, Any], members: Sequence[bytes]) -> bool:
        """Whether the resource is sound; False: not known, check it. members: ``fhirjson.members`` of it."""
        if tuple(resource) not in self._shapes:
            return False
        met = self._met
        for member in [m for m in members if m not in met]:
            name = member[1 : member.index(b'"', 1)].decode()
            alike = _alike(name, member)
            if alike not in self._sound:
                # Added to a resource that has what it must have and no more, so that only this element can be at fault.
                if not self._is_sound({**self._fewest, name: resource[name]}):
                    return False
                _keep(self._sound, alike)
            if name not in _OWN:
                _keep(met, member)
        return True

    def learn(self, resource: dict[str, Any], members: Sequence[bytes]) -> None:
        """The resource was checked as a whole, and is sound."""
        if _BETWEEN.isdisjoint(resource):
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            self._shapes.add(tuple(resource))
            if not self._fewest:
                self._fewest = self._stripped(resource)
            for name, member in zip(resource, members, strict=True):
                _keep(self._sound, _alike(name, member))

    def _stripped(self, resource: dict[str, Any]) -> dict[str, Any]:
        """Of a sound resource the elements without which it would not be sound."""
        left = dict(resource)
        for name in resource:
            less = {other: value for other, value in left.items() if other != name}
            if self._is_sound(less):
                left = less
        return left


def _keep(known: set[bytes], member: bytes) -> None:
    if len(member) <= _LONGEST:
        if len(known) >= _MOST:
            known.clear()
        known.add(member)


def _alike(name: str, member: bytes) -> bytes:
    """The element with another id, number, source or time of day, one for all: its soundness does not depend on which it is."""
    if name == "valueQuantity":
        return _NUMBER.sub(b'"valueQuantity":{"value":0', member, 1)
    if name == "id":
        return b'"id":"0"' if _ID.fullmatch(member) else member
    if name == "meta":
        return b'"meta":{"source":"x"}' if _SOURCE.fullmatch(member) else member
    if len(_DAY.findall(member)) == 1:  # of two times one has to be before the other (per-1)
        member = _TIME.sub(rb"\g<1>00:00:00\g<2>", member, 1)
    if name in _NAMED:
        member = _VALUE.sub(b'"value":"x"', member)
    return _REFERENCE.sub(b'/0"', member)


def separable(schema: dict[str, Any]) -> bool:
    """Whether the schema of a resource type has no rule between the values of two elements."""
    return schema.keys() <= _WHOLE and all(_names_only(rule) for rule in schema.get("allOf", ()))


def _names_only(schema: dict[str, Any]) -> bool:
    return all(
        keyword in _NAMES_ONLY
        and (
            keyword in ("$comment", "required")
            or all(_names_only(inner) for inner in (below if isinstance(below, list) else [below]))
        )
        for keyword, below in schema.items()
    )
