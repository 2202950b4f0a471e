"""Composite parameters of repeating elements (http://hl7.org/fhir/R4/search.html#combining): both parts must hold in the same element.

The values of one element stand together: a code and a code as one hash of ``code$code``; a code and a quantity as the rows of the
quantity, the code before the unit. A composite of elements that stand once (code-value-quantity) needs nothing stored: both hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fhir_server.search.definitions import Element, Path
from fhir_server.search.leaves import Leaf, Sink, as_rows, coded_forms, hash_of, reference_text
from fhir_server.search.quantities import stored

JOINT = "$"
_QUANTITY = "quantity"


def leaf(element: Element) -> Leaf:
    """What files the values of one element under the composite's own path."""
    (_, codes), (kind, values) = element.parts
    number, seed = element.path.number, element.path.seed

    def composite(value: Any, sink: Sink) -> None:
        named = [form for path in codes for form in _texts(path, value, sink.base) if not form.endswith("|")]
        for path in values:
            for found in _at(path, value):
                if kind == _QUANTITY:
                    rows = list(stored(found))
                    for form in named:
                        sink.values.extend(as_rows(number, rows, form + JOINT))
                else:
                    for text in _forms(found, sink.base):
                        sink.tokens.extend(hash_of(seed, f"{form}{JOINT}{text}") for form in named)

    return composite


def _texts(path: Path, value: Mapping[str, Any], base: str) -> Iterator[str]:
    for found in _at(path, value):
        yield from _forms(found, base)


def _at(path: Path, value: Mapping[str, Any]) -> Iterator[Any]:
    """The values below an element: one child, of one datatype where the path says so."""
    name = path.steps[0][1]
    for suffix in path.types if name not in value else ("",):
        found = value.get(name + suffix[:1].upper() + suffix[1:])
        if found is not None:
            yield from found if isinstance(found, list) else (found,)


def _forms(value: Any, base: str) -> Iterator[str]:
    """The texts under which a code, a boolean or a reference can be asked for."""
    if isinstance(value, bool):
        yield "true" if value else "false"
    elif isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if "reference" in value:
            yield reference_text(value["reference"], base)
        for coding in value.get("coding", (value,)):
            yield from coded_forms(coding.get("system"), coding.get("code"))
