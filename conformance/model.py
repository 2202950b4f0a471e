"""The ``fhir.resources`` R4B models as a second opinion on what clients write. They check; they never serialise.

R4B (4.3.0) differs from R4 (4.0.1) in a few types; those in ``_SCHEMA_ALONE`` are judged by the schema only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Final

from fhir.resources import R4B
from pydantic import BaseModel, ValidationError

from conformance import structure
from conformance.issue import Issue

# R4B rejects official R4 examples of these (primitive-extension arrays in CodeSystem, changed SearchParameter).
_SCHEMA_ALONE: Final = frozenset({"CodeSystem", "SearchParameter"})


def check(resource: dict[str, Any], root: str = "") -> Iterator[Issue]:
    """Problems the models see; none for a type that R4B does not have. Contained resources and Bundle entries are checked each by
    the model of its type. ``root`` is the FHIRPath of the resource, its type when empty."""
    name = resource["resourceType"]
    root = root or name
    for path, inner in structure.inner(name, resource):
        yield from check(inner, f"{root}.{path}")
    if name in _SCHEMA_ALONE:
        return
    try:
        model: type[BaseModel] = R4B.get_fhir_model_class(name)
    except KeyError:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.model_validate(_alone(resource))
    except ValidationError as fault:
        # The error's own text quotes the input, so only its place and kind are told.
        for error in fault.errors(include_input=False, include_context=False, include_url=False):
            where = root + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"])
            yield Issue("model", "error", where, f"The R4 model does not accept this value ({error['type']}).")


def _alone(resource: dict[str, Any]) -> dict[str, Any]:
    """The resource without those inside it."""
    out = {k: v for k, v in resource.items() if k != "contained"}
    if resource["resourceType"] == "Bundle" and "entry" in out:
        out["entry"] = [
            {k: v for k, v in entry.items() if k not in ("resource", "response")} | {"fullUrl": "urn:oid:1.1"}
            for entry in out["entry"]
        ]
    return out
