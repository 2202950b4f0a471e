"""What a request says about itself: formats, preferences, conditions, and its body (http://hl7.org/fhir/R4/http.html#general)."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl

from fastapi import Request

from conformance import fhirjson
from fhir_server.errors import Category, Fault

MAX_DEPTH: Final = 64
"""Deepest nesting of a JSON body; FHIR resources in use stay below 20."""

_LARGE: Final = 65_536
_JSON: Final = frozenset({"json", "application/json", "application/fhir+json", "text/json", "application/json+fhir"})
_ANY: Final = frozenset({"*/*", "application/*", "text/*"})
_ETAG = re.compile(r'\s*(?:W/)?"([^"]*)"\s*|\s*(\d+)\s*')


@dataclass(frozen=True, slots=True)
class Preferences:
    """``Prefer`` header (http://hl7.org/fhir/R4/http.html#ops): what to return after a write (minimal, representation,
    OperationOutcome; empty when not said), and whether unknown parameters are refused."""

    returns: str
    strict: bool


def preferences(headers: Mapping[str, str]) -> Preferences:
    """Read from the headers; unknown preferences are ignored, names may be in any letters, the first of a name counts (RFC 7240)."""
    told: dict[str, str] = {}
    for preference in re.split("[,;]", headers.get("prefer", "")):
        name, _, value = preference.partition("=")
        told.setdefault(name.strip().lower(), value.strip().strip('"'))
    returns = told.get("return", "")
    return Preferences(
        returns if returns in ("minimal", "representation", "OperationOutcome") else "",
        told.get("handling", "") == "strict",
    )


def require_json_answer(request: Request) -> None:
    """Raises Fault NOT_ACCEPTABLE unless the client takes FHIR JSON. ``_format`` wins over Accept."""
    # An unescaped "+" of application/fhir+json arrives as a blank.
    wanted = asked(request, "_format").replace("fhir json", "fhir+json")
    if not _takes_json(wanted or request.headers.get("accept", "*/*"), one=bool(wanted)):
        raise Fault(Category.NOT_ACCEPTABLE, "This server answers in application/fhir+json (FHIR 4.0) only.")


def asked(request: Request, name: str) -> str:
    """A control parameter of the query such as ``_pretty``, empty without; a query that cannot hold it is not taken apart."""
    return request.query_params.get(name, "") if name[1:].encode() in request.scope["query_string"] else ""


@lru_cache(maxsize=256)
def _takes_json(offers: str, *, one: bool) -> bool:
    for offer in [offers] if one else offers.split(","):
        name, _, parameters = offer.strip().lower().partition(";")
        quality = re.search(r"\bq=([0-9.]+)", parameters)
        version = re.search(r"fhirversion=([0-9.]+)", parameters)
        if (
            name.strip() in _JSON | _ANY
            and not (quality and float(quality[1].strip(".") or 0) == 0)
            and (version is None or version[1] in ("4.0", "4.0.1"))
        ):
            return True
    return False


async def raw_body(request: Request, limit: int) -> bytes:
    """The body, at most ``limit`` bytes, also when it comes compressed by gzip. Raises Fault TOO_LARGE, MEDIA_TYPE for another coding,
    INVALID for what is no gzip."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", "x-gzip"):
        text = "A body may be compressed by gzip, and in no other way."
        raise Fault(Category.MEDIA_TYPE, text, headers={"Accept-Encoding": "gzip"})
    raw = await _sent(request, limit)
    return raw if coding == "identity" else await asyncio.to_thread(_unpacked, raw, limit)


def _unpacked(raw: bytes, limit: int) -> bytes:
    packed = zlib.decompressobj(wbits=31)
    try:
        body = packed.decompress(raw, limit + 1)
    except zlib.error:
        raise Fault(Category.INVALID, "The body is not gzip, as Content-Encoding says.") from None
    if len(body) > limit:
        raise Fault(Category.TOO_LARGE, f"The body is larger than {limit} bytes.")
    if not packed.eof:
        raise Fault(Category.INVALID, "The gzip body is cut off.")
    return body


async def _sent(request: Request, limit: int) -> bytes:
    told = request.headers.get("content-length", "")
    parts, size = [], int(told) if told.isdecimal() else 0
    if size > limit:
        raise Fault(Category.TOO_LARGE, f"The body is larger than {limit} bytes.")
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Fault(Category.TOO_LARGE, f"The body is larger than {limit} bytes.")
        parts.append(part)
    return b"".join(parts)


async def resource_body(request: Request, limit: int) -> dict[str, Any]:
    """The body as a resource; its decimals keep their digits.

    Raises Fault MEDIA_TYPE for another content type than FHIR JSON, INVALID for what is no JSON object with a resourceType.
    """
    _require_json(request)
    raw = await raw_body(request, limit)
    # A large body would keep everybody else waiting.
    return parse_resource(raw) if len(raw) < _LARGE else await asyncio.to_thread(parse_resource, raw)


async def json_body(request: Request, limit: int) -> dict[str, Any] | None:
    """The same for a body that may be empty: then None."""
    raw = await raw_body(request, limit)
    if not raw:
        return None
    _require_json(request)
    return parse_resource(raw) if len(raw) < _LARGE else await asyncio.to_thread(parse_resource, raw)


def _require_json(request: Request) -> None:
    media = request.headers.get("content-type", "").lower()
    if media.partition(";")[0].strip() not in _JSON:
        raise Fault(Category.MEDIA_TYPE, "Send the resource as application/fhir+json.")
    version = re.search(r"fhirversion=([0-9.]+)", media)
    if version and version[1] not in ("4.0", "4.0.1"):
        raise Fault(Category.MEDIA_TYPE, "This server takes FHIR 4.0 only.")


def parse_resource(raw: bytes) -> dict[str, Any]:
    """JSON bytes as a resource. Raises Fault INVALID, with line and column where the JSON is broken."""
    try:
        value = fhirjson.loads(raw)
        fhirjson.dumps(value)  # finds what has no JSON text: lone surrogates, numbers beyond 64 bits
    except json.JSONDecodeError as error:
        raise Fault(
            Category.INVALID, f"The body is not JSON: {error.msg} in line {error.lineno}, column {error.colno}."
        ) from None
    except UnicodeDecodeError as error:
        raise Fault(Category.INVALID, f"The body is not UTF-8 (byte {error.start}).") from None
    except (ValueError, TypeError) as error:
        raise Fault(Category.INVALID, f"The body cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict) or not isinstance(value.get("resourceType"), str):
        raise Fault(Category.INVALID, "The body must be a JSON object with a resourceType.", where="resourceType")
    if depth(value) > MAX_DEPTH:
        raise Fault(Category.INVALID, f"The body is nested deeper than {MAX_DEPTH} levels.")
    return value


def depth(value: Any) -> int:
    """Levels of nesting, counted up to one beyond the limit."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return depth


async def form_pairs(request: Request, limit: int) -> list[tuple[str, str]]:
    """Name and value pairs of a POST ``_search``: those of the URL, then those of the body."""
    raw = await raw_body(request, limit)
    media = request.headers.get("content-type", "").lower().partition(";")[0].strip()
    if raw and media != "application/x-www-form-urlencoded":
        raise Fault(Category.MEDIA_TYPE, "Send search parameters as application/x-www-form-urlencoded.")
    return [*query_pairs(query_of(request)), *query_pairs(raw.decode("utf-8", "replace"))]


def query_of(request: Request) -> str:
    """The query string of the request; bytes that are no UTF-8 become the replacement character."""
    raw: bytes = request.scope["query_string"]
    return raw.decode("utf-8", "replace")


def query_pairs(query: str) -> list[tuple[str, str]]:
    """A query string as decoded name and value pairs. Raises Fault INVALID for control characters."""
    pairs = parse_qsl(query, keep_blank_values=True, encoding="utf-8", errors="replace")
    for name, value in pairs:
        if any(c < " " for c in name + value):
            raise Fault(Category.INVALID, "A search parameter contains a control character.")
    return pairs


def etag(version: int) -> str:
    """The version id as weak entity tag (http://hl7.org/fhir/R4/http.html#versioning)."""
    return f'W/"{version}"'


def versions_in(header: str) -> list[str]:
    """Version ids of an If-Match or If-None-Match header; ``*`` stays as it is."""
    if header.strip() == "*":
        return ["*"]
    found = [_ETAG.fullmatch(part) for part in header.split(",")]
    return [m[1] if m[1] is not None else m[2] for m in found if m]


def not_modified(request: Request, version: int, updated: datetime) -> bool:
    """True when the client's copy is current (If-None-Match before If-Modified-Since, RFC 9110 section 13.2.2)."""
    tags = request.headers.get("if-none-match")
    if tags is not None:
        return bool({"*", str(version)} & set(versions_in(tags)))
    since = request.headers.get("if-modified-since")
    if since is None:
        return False
    try:
        at = parsedate_to_datetime(since)
    except ValueError:
        return False
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return updated.replace(microsecond=0) <= at


def required_version(headers: Mapping[str, str]) -> str | None:
    """The version id of If-Match, None without the header or for ``*``. Raises Fault INVALID when it names no single version."""
    header = headers.get("if-match")
    if header is None:
        return None
    tags = versions_in(header)
    if len(tags) != 1:
        raise Fault(Category.INVALID, 'If-Match must name one version such as W/"3".', where="If-Match")
    return tags[0]
