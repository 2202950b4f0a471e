"""JSON Patch (RFC 6902) of resources (http://hl7.org/fhir/R4/http.html#patch)."""

from __future__ import annotations

import base64
import binascii
import copy
import json
from collections.abc import Mapping
from typing import Any, Final

import jsonpatch
import jsonpointer

from conformance import fhirjson
from fhir_server.api.content import MAX_DEPTH, depth
from fhir_server.errors import Category, Fault

MEDIA_TYPE: Final = "application/json-patch+json"
_NEEDS: Final = {
    "add": ("value",),
    "remove": (),
    "replace": ("value",),
    "move": ("from",),
    "copy": ("from",),
    "test": ("value",),
}
_MOST: Final = 1000
"""Most operations of one patch."""

Patch = list[dict[str, Any]]


def read(raw: bytes) -> Patch:
    """The operations of a patch document. Raises Fault INVALID for what is none."""
    try:
        patch = fhirjson.loads(raw)
    except json.JSONDecodeError as error:
        raise Fault(Category.INVALID, f"The patch is not JSON: {error.msg} in line {error.lineno}.") from None
    except (ValueError, UnicodeDecodeError):
        raise Fault(Category.INVALID, "The patch cannot be read as JSON.") from None
    if not isinstance(patch, list) or len(patch) > _MOST or depth(patch) > MAX_DEPTH:
        raise Fault(Category.INVALID, f"A JSON Patch is a list of operations, {_MOST} at most.")
    for number, operation in enumerate(patch):
        _check(operation, f"[{number}]")
    return patch


def _check(operation: Any, where: str) -> None:
    if not isinstance(operation, dict) or operation.get("op") not in _NEEDS:
        raise Fault(Category.INVALID, f"op is one of {', '.join(_NEEDS)}.", where=where)
    for name in ("path", *_NEEDS[operation["op"]]):
        if name not in operation:
            raise Fault(Category.INVALID, f"The operation {operation['op']} needs {name}.", where=where)
    for name in ("path", "from"):
        pointer = operation.get(name, "")
        if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
            raise Fault(Category.INVALID, f"{name} is a JSON pointer such as /status.", where=where)


def of_binary(resource: Any, where: str) -> Patch:
    """The patch that an entry of a transaction carries in a Binary. Raises Fault INVALID."""
    said: Mapping[str, Any] = resource if isinstance(resource, dict) else {}
    data = said.get("data")
    if said.get("resourceType") != "Binary" or said.get("contentType") != MEDIA_TYPE or not isinstance(data, str):
        raise Fault(Category.INVALID, f"A PATCH entry needs a Binary of contentType {MEDIA_TYPE}.", where=where)
    try:
        return read(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        raise Fault(Category.INVALID, "The data of the Binary is not base64.", where=where) from None


def applied(patch: Patch, resource: Mapping[str, Any]) -> dict[str, Any]:
    """The patched resource, a copy; decimals keep their digits.

    Raises Fault UNPROCESSABLE when a test fails, a path leads nowhere, or the result is another resource.
    """
    out: Any = copy.deepcopy(resource)
    at = 0
    try:
        for at, operation in enumerate(patch):
            if operation["op"] == "test":
                # The library would let a test of 1 pass for true.
                if not _equal(jsonpointer.resolve_pointer(out, operation["path"]), operation["value"]):
                    raise Fault(Category.UNPROCESSABLE, "The test of the patch fails.", where=f"[{at}].path")
            else:
                out = jsonpatch.JsonPatch([operation]).apply(out, in_place=True)
    except (
        jsonpatch.JsonPatchException,
        jsonpointer.JsonPointerException,
        TypeError,
        ValueError,
        KeyError,
        IndexError,
    ):
        raise Fault(Category.UNPROCESSABLE, "The path of the patch leads nowhere.", where=f"[{at}].path") from None
    if not isinstance(out, dict) or any(out.get(k) != resource[k] for k in ("resourceType", "id")):
        raise Fault(Category.UNPROCESSABLE, "A patch cannot change what a resource is, nor its id.")
    return out


def _equal(a: Any, b: Any) -> bool:
    """RFC 6902 section 4.6: numbers by value, everything else of one type."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)
