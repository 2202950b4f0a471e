"""FHIR JSON that keeps its digits (http://hl7.org/fhir/R4/json.html, http://hl7.org/fhir/R4/datatypes.html#decimal).

R4 says the precision of a decimal shall be preserved. ``orjson`` alone reads ``6.30`` as the float 6.3, so reading goes through
the standard library with a number type that remembers its text, and writing hands that text to ``orjson`` untouched.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import orjson


class JsonNumber(Decimal):
    """A Decimal that is written exactly as it was read (``1.0E2`` stays ``1.0E2``)."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> JsonNumber:
        self = super().__new__(cls, text)
        self.text = text
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> JsonNumber:
        """A number is never changed, so it is its own copy."""
        return self


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a property name stands twice in one object")
    return out


def loads(data: bytes | str) -> Any:
    """JSON text -> Python values; numbers with a fraction or exponent become JsonNumber. Raises ValueError on bad JSON."""
    if isinstance(data, bytes):
        data = data.decode("utf-8-sig")
    try:
        return json.loads(data, parse_float=JsonNumber, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def _default(value: Any) -> Any:
    if isinstance(value, JsonNumber):
        return orjson.Fragment(value.text)
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value))
    raise TypeError(f"{type(value).__name__} has no JSON form")


def members(value: dict[str, Any]) -> list[bytes]:
    """Each member of an object as JSON, ``"name":value``, in their order: with commas between and braces around them it is ``dumps``.

    What many resources share (codes, units, ranges) is so told by its bytes, and has to be looked at once.
    """
    return [orjson.dumps({name: inner}, default=_default)[1:-1] for name, inner in value.items()]


def dumps(value: Any, *, pretty: bool = False) -> bytes:
    """Python values -> UTF-8 JSON bytes; a Decimal is written with all its digits. ``pretty`` indents by two spaces."""
    return orjson.dumps(value, default=_default, option=orjson.OPT_INDENT_2 if pretty else 0)
