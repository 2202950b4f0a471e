"""docs/fhir-api.md names what the search takes."""

from __future__ import annotations

import re
from pathlib import Path

from fhir_server.search import include, query

TEXT = (Path(__file__).parents[2] / "docs" / "fhir-api.md").read_text("utf-8")


def test_the_modifiers_of_each_kind_are_documented() -> None:
    for kind in ("token", "reference", "string", "date", "uri"):
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| {kind} |"))
        told = set(re.findall(r"`:([\w-]+)`", row))
        wanted = {m for m in query.MODIFIERS[kind] if not m[0].isupper()}
        assert told - {"Patient"} == wanted, kind


def test_the_result_parameters_and_limits_are_documented() -> None:
    for name in query.RESULT_PARAMETERS:
        assert f"`{name}`" in TEXT or name in (query.CURSOR, "_contained"), name
    assert f"{query.DEFAULT_COUNT} when not said, {query.MAX_COUNT} at most" in TEXT
    assert f"{include.MAX_INCLUDED:,} resources a page at most" in TEXT
