"""The profiles and value sets that come with the program."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def _all() -> dict[str, dict[str, Any]]:
    files = [f for f in resources.files(__package__).iterdir() if f.name.endswith(".json")]
    found = [json.loads(f.read_text("utf-8")) for f in sorted(files, key=lambda f: f.name)]
    return {f["url"]: f for f in found}


def definition(url: str) -> dict[str, Any] | None:
    """StructureDefinition or ValueSet of a canonical URL, None when it is none of ours, or of another version."""
    plain, _, version = url.partition("|")
    found = _all().get(plain)
    return found if found is not None and version in ("", found["version"]) else None


def profiles() -> list[dict[str, Any]]:
    """The StructureDefinitions, by URL."""
    return [d for d in _all().values() if d["resourceType"] == "StructureDefinition"]


@cache
def codes(url: str) -> frozenset[tuple[str, str]] | None:
    """(system, code) pairs of a value set of ours."""
    found = definition(url)
    if found is None or found["resourceType"] != "ValueSet":
        return None
    return frozenset((i["system"], c["code"]) for i in found["compose"]["include"] for c in i["concept"])
