"""The OpenAPI 3.1 description of everything served over HTTP, at /openapi.json: made from the routes themselves.

FHIR says what a resource and a search are (see the CapabilityStatement at /fhir/metadata); here stands what an HTTP tool needs to
call every address: methods, path parameters with their values, forms of bodies.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from conformance.capability import RESOURCE_TYPES

_ID: Final = {"type": "string", "pattern": r"^[A-Za-z0-9\-.]{1,64}$"}
_PATH: Final[dict[str, dict[str, Any]]] = {
    "kind": {"type": "string", "enum": list(RESOURCE_TYPES)},
    "logical": _ID,
    "inner": {"type": "string", "enum": ["*", *RESOURCE_TYPES]},
    "number": {"type": "string", "pattern": r"^[0-9]{1,9}$"},
}
"""Path parameter -> its schema; others are texts."""

_RESOURCE: Final = {
    "type": "object",
    "required": ["resourceType"],
    "properties": {"resourceType": {"type": "string"}, "id": _ID},
}
_PATCH: Final = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["op", "path"],
        "properties": {
            "op": {"enum": ["add", "remove", "replace", "move", "copy", "test"]},
            "path": {"type": "string"},
            "from": {"type": "string"},
            "value": {},
        },
    },
}
_OBJECT: Final = {"type": "object"}
_SEARCH: Final = {
    "name": "search",
    "in": "query",
    "description": "Search parameters of the type and of all types: see the CapabilityStatement.",
    "style": "form",
    "explode": True,
    "schema": {
        "type": "object",
        "properties": {
            "_id": {"type": "string"},
            "_lastUpdated": {"type": "string"},
            "_sort": {"type": "string"},
            "_count": {"type": "string"},
            "_summary": {"enum": ["true", "text", "data", "count", "false"]},
            "_total": {"enum": ["none", "estimate", "accurate"]},
            "_elements": {"type": "string"},
            "_include": {"type": "string"},
            "_revinclude": {"type": "string"},
            "_has": {"type": "string"},
        },
        "additionalProperties": {"type": "string"},
    },
}
_ANSWER: Final = {
    "default": {
        "description": "The resource, Bundle or document asked for, or an OperationOutcome that says what is wrong."
    }
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of an application whose routers are all in place."""
    with warnings.catch_warnings():
        # One route may serve two methods, which the framework gives one name: names are made anew below.
        warnings.filterwarnings("ignore", message="Duplicate Operation ID")
        out = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path, methods in out["paths"].items():
        for method, operation in methods.items():
            _complete(path, method, operation)
    out["components"] = {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}}
    out["security"] = [{"bearer": []}]
    return out


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    operation["operationId"] = f"{method}{re.sub(r'[^A-Za-z0-9]+', '_', path)}"
    operation["responses"] = _ANSWER
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            parameter["schema"] = _PATH.get(parameter["name"], {"type": "string", "minLength": 1})
    if path.startswith("/fhir"):
        if method in ("get", "head"):
            operation.setdefault("parameters", []).append(_SEARCH)
        elif content := _content(path, method):
            operation["requestBody"] = {"content": content}
    elif method == "post":
        form = "application/x-www-form-urlencoded" if path.startswith("/auth/") else "application/json"
        operation["requestBody"] = {"content": {form: {"schema": _OBJECT}}}


def _content(path: str, method: str) -> dict[str, Any]:
    if path.endswith("/_search"):
        return {"application/x-www-form-urlencoded": {"schema": _SEARCH["schema"]}}
    if method == "patch":
        return {"application/json-patch+json": {"schema": _PATCH}}
    if method in ("post", "put"):
        return {"application/fhir+json": {"schema": _RESOURCE}}
    return {}
