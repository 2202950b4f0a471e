"""All segment maps, compiled once per process. Importing this module registers every datatype and function the maps name."""

from __future__ import annotations

from functools import cache

from mappings import (
    coded,
    contacts,
    datatypes,
    directory,
    header,
    orders,
    people,
    performers,
    result_status,
    results,
    specimens,
    timing,
)
from mappings.compiled import CompiledMap, compile_map
from mappings.grammar import segment_map_names
from mappings.registry import CALLS, DATATYPES

REGISTERED = (
    coded,
    contacts,
    datatypes,
    directory,
    header,
    orders,
    people,
    performers,
    result_status,
    results,
    specimens,
    timing,
)
"""Modules whose import fills the registry."""


@cache
def segment(name: str) -> CompiledMap:
    """A compiled segment map by name, ``PID-Patient``. Raises ValueError when it names something that does not exist."""
    return compile_map(name, DATATYPES, CALLS)


def compile_all() -> list[CompiledMap]:
    """Compile every map now, so that a fault shows at start and not in the first message."""
    return [segment(name) for name in segment_map_names()]
