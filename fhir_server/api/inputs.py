"""The input of an operation (http://hl7.org/fhir/R4/operations.html#executing): from the URL, a Parameters resource, or a resource
alone; and Parameters as its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from conformance import fhirjson
from conformance.validator import check
from fhir_server.api.content import json_body, query_of, query_pairs
from fhir_server.api.responses import Invalid
from fhir_server.api.security import services_of
from fhir_server.errors import Category, Fault


@dataclass(slots=True)
class Inputs:
    """pairs: parameters of simple types as text, in order; values: those of complex types; resources: by name (``resource`` when the
    body is a resource alone)."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """The one value of a simple type, empty when not given. Raises Fault INVALID when it is given twice."""
        found = [v for n, v in self.pairs if n == name]
        if len(found) > 1:
            raise Fault(Category.INVALID, f"{name} may be given once.", where=name)
        return found[0] if found else ""

    def flag(self, name: str) -> bool:
        """A boolean, false when not given."""
        value = self.text(name)
        if value not in ("", "true", "false"):
            raise Fault(Category.INVALID, f"{name} must be true or false.", where=name)
        return value == "true"

    def number(self, name: str) -> int | None:
        """A whole number, 0 or more; None when not given."""
        value = self.text(name)
        if value and not (value.isascii() and value.isdecimal()):
            raise Fault(Category.INVALID, f"{name} must be a whole number, 0 or more.", where=name)
        return int(value[:9]) if value else None

    def value(self, name: str) -> dict[str, Any]:
        """The one value of a complex type; empty when not given."""
        found = self.values.get(name, [])
        if len(found) > 1:
            raise Fault(Category.INVALID, f"{name} may be given once.", where=name)
        return found[0] if found else {}


async def inputs(request: Request) -> Inputs:
    """What an operation is called with. Raises Fault INVALID for what cannot be read, MEDIA_TYPE for another format than JSON."""
    out = Inputs(query_pairs(query_of(request)))
    if request.method not in ("GET", "HEAD"):
        body = await json_body(request, services_of(request).settings.max_request)
        if body is not None and body["resourceType"] == "Parameters":
            _read(body, out)
        elif body is not None:
            out.resources["resource"] = body
    out.pairs = [(n, v) for n, v in out.pairs if n not in ("_format", "_pretty")]
    return out


def _read(body: Mapping[str, Any], out: Inputs) -> None:
    parameters = body.get("parameter", [])
    # Resources are checked by the operation that takes them: to validate one may be all that is asked.
    shell = parameters
    if isinstance(parameters, list):
        shell = [{k: v for k, v in p.items() if k != "resource"} if isinstance(p, dict) else p for p in parameters]
    broken = check({**body, "parameter": shell}) if shell != [] else []
    if broken:
        raise Invalid(broken)
    for parameter in parameters:
        name = parameter["name"]
        if isinstance(parameter.get("resource"), dict):
            out.resources[name] = parameter["resource"]
        for key, value in parameter.items():
            if key.startswith("value"):
                _take(name, value, out)


def _take(name: str, value: Any, out: Inputs) -> None:
    if isinstance(value, dict):
        out.values.setdefault(name, []).append(value)
    elif isinstance(value, bool):
        out.pairs.append((name, "true" if value else "false"))
    else:
        out.pairs.append((name, str(value)))


def output(*parameters: Mapping[str, Any]) -> bytes:
    """A Parameters resource as JSON."""
    return fhirjson.dumps({"resourceType": "Parameters", "parameter": list(parameters)})
