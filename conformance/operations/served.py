"""Where operations are served, read from their OperationDefinitions (http://hl7.org/fhir/R4/operationdefinition.html)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

Operation = tuple[str, str]
"""Operation name without ``$``, canonical URL of its OperationDefinition."""


@cache
def definitions() -> tuple[dict[str, Any], ...]:
    """The OperationDefinitions, by file name."""
    files = sorted(f.name for f in resources.files(__package__).iterdir() if f.name.endswith(".json"))
    return tuple(json.loads(resources.files(__package__).joinpath(name).read_text("utf-8")) for name in files)


def operations(types: Iterable[str]) -> dict[str, list[Operation]]:
    """Resource type (of ``types``), or ``System`` -> its operations."""
    out: dict[str, list[Operation]] = {}
    for definition in definitions():
        named = definition["code"], definition["url"]
        if definition["system"]:
            out.setdefault("System", []).append(named)
        if definition["type"] or definition["instance"]:
            wanted = set(definition.get("resource", ()))
            for name in types:
                if wanted & {name, "Resource"}:
                    out.setdefault(name, []).append(named)
    return out
