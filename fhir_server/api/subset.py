"""Parts of a resource: ``_summary`` and ``_elements`` (http://hl7.org/fhir/R4/search.html#summary, #elements).

This is the one place where a body is parsed on its way out; its decimals keep their digits all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

from conformance import fhirjson
from fhir_server.errors import Category, Fault
from fhir_server.search import definitions

SUMMARIES: Final = frozenset({"true", "false", "text", "data", "count"})
_ALWAYS: Final = frozenset({"resourceType", "id", "meta"})
_SUBSETTED: Final = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}


@cache
def _names(type: str, summary: str, elements: frozenset[str]) -> frozenset[str]:
    known = definitions.summaries()[type]
    if elements:
        choices = {f"{n}[x]" for n in elements if f"{type}.{n}[x]" in definitions.elements()}
        return _ALWAYS | elements | choices | known["mandatory"]
    if summary == "text":
        return _ALWAYS | {"text"} | known["mandatory"]
    return _ALWAYS | known["summary"]


def part(body: bytes, type: str, *, summary: str = "", elements: frozenset[str] = frozenset()) -> bytes:
    """The asked-for part of a resource, marked SUBSETTED; the body itself when the whole is asked for.

    summary: ``true``, ``text``, ``data`` or empty; elements: names at the top of the resource, wins over summary.
    """
    if not elements and summary not in ("true", "text", "data"):
        return body
    resource: Mapping[str, Any] = fhirjson.loads(body)
    if summary == "data" and not elements:
        kept = {k: v for k, v in resource.items() if k != "text"}
    else:
        names = _names(type, summary, elements)
        choices = tuple(n.removesuffix("[x]") for n in names if n.endswith("[x]"))
        kept = {k: v for k, v in resource.items() if _base(k) in names or (choices and _chosen(k, choices))}
    meta = resource.get("meta", {})
    kept["meta"] = {**meta, "tag": [*meta.get("tag", []), _SUBSETTED]}
    return fhirjson.dumps(kept)


def _base(key: str) -> str:
    # The extensions of a primitive go with it.
    return key[1:] if key.startswith("_") else key


def _chosen(key: str, choices: Iterable[str]) -> bool:
    name = _base(key)
    return any(name.startswith(c) and name[len(c) : len(c) + 1].isupper() for c in choices)


def asked(pairs: Iterable[tuple[str, str]]) -> tuple[str, frozenset[str]]:
    """``_summary`` and ``_elements`` of a read. Raises Fault INVALID for a summary R4 does not know, or that makes no sense here."""
    summary, elements = "", frozenset[str]()
    for name, value in pairs:
        if name == "_summary":
            if value not in SUMMARIES or value == "count":
                raise Fault(Category.INVALID, "_summary must be true, false, text or data.", where="_summary")
            summary = "" if value == "false" else value
        elif name == "_elements":
            elements = frozenset(n for n in value.split(",") if n)
    return summary, elements
