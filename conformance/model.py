"""The ``fhir.resources`` R4B models as a second opinion on what clients write. They check; they never serialise.

R4B (4.3.0) differs from R4 (4.0.1) in a few types; those in ``_SCHEMA_ALONE`` are judged by the schema only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Final

from fhir.resources import R4B
from pydantic import BaseModel, ValidationError

from conformance.issue import Issue

# R4B rejects official R4 examples of these (primitive-extension arrays in CodeSystem, changed SearchParameter).
_SCHEMA_ALONE: Final = frozenset({"CodeSystem", "SearchParameter"})


def check(resource: dict[str, Any]) -> Iterator[Issue]:
    """Problems the model sees; none for a type that R4B does not have."""
    name = resource["resourceType"]
    if name in _SCHEMA_ALONE:
        return
    try:
        model: type[BaseModel] = R4B.get_fhir_model_class(name)
    except KeyError:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.model_validate(resource)
    except ValidationError as fault:
        # The error's own text quotes the input, so only its place and kind are told.
        for error in fault.errors(include_input=False, include_context=False, include_url=False):
            where = name + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"])
            yield Issue("model", "error", where, f"The R4 model does not accept this value ({error['type']}).")
