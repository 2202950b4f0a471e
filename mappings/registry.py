"""The registry: datatype mappings by the guide's spelling, and functions on whole records that rules call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mappings.compiled import Datatype, Step
from mappings.context import Context
from mappings.grammar import Rule
from mappings.source import Element

DATATYPES: dict[str, Datatype] = {}
CALLS: dict[str, Step] = {}

Plain = Callable[[Element, Context], Any]
Ruled = Callable[[Element, Context, Rule], Any]


def components(reads: str) -> frozenset[int]:
    """``"1-3 5"`` -> {1, 2, 3, 5}."""
    out: set[int] = set()
    for part in reads.split():
        low, _, high = part.partition("-")
        out.update(range(int(low), int(high or low) + 1))
    return frozenset(out)


def call(name: str) -> Callable[[Step], Step]:
    """Register a function on a whole record, for ``call`` of a rule."""

    def register(function: Step) -> Step:
        CALLS[name] = function
        return function

    return register


def datatype(name: str, reads: str) -> Callable[[Plain], Plain]:
    """Register a function of (repetition, context)."""

    def register(function: Plain) -> Plain:
        DATATYPES[name] = Datatype(name, lambda rule: function, components(reads))
        return function

    return register


def ruled(name: str, reads: str) -> Callable[[Ruled], Ruled]:
    """Register a function of (repetition, context, rule): it needs the rule's table, kind or hold."""

    def register(function: Ruled) -> Ruled:
        def make(rule: Rule) -> Plain:
            return lambda element, x: function(element, x, rule)

        DATATYPES[name] = Datatype(name, make, components(reads))
        return function

    return register
