"""Bundles put together from stored JSON, byte by byte: no body is parsed on its way out (http://hl7.org/fhir/R4/bundle.html)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import quote, urlencode

import orjson

from fhir_server.api.content import etag
from fhir_server.api.responses import issue, outcome
from fhir_server.api.subset import part
from fhir_server.search.page import encode
from fhir_server.search.query import CURSOR, Query
from fhir_server.search.run import Found, Hit
from fhir_server.store.reader import Stored
from fhir_server.store.statement import instant

Link = tuple[str, str]
"""relation, url"""


def searchset(query: Query, found: Found, base: str) -> bytes:
    """The answer to a search: matches, then what came along, then one OperationOutcome when something was not done as asked."""
    links = [("self", search_url(query, base))]
    if found.next is not None:
        links.append(("next", search_url(query, base, encode(query, found.next))))
    summary, elements = query.summary, query.elements
    entries = [
        _entry(hit, part(hit.body, hit.type, summary=summary, elements=elements), base, b"match")
        for hit in found.matches
    ]
    entries += [_entry(hit, part(hit.body, hit.type, summary=summary), base, b"include") for hit in found.included]
    told = [issue("warning", "not-supported", reason, name) for name, reason in query.ignored]
    if found.cut:
        told.append(issue("warning", "too-costly", "Too many resources come along with this page; some were left out."))
    if told:
        entries.append(b'{"resource":' + outcome(told) + b',"search":{"mode":"outcome"}}')
    return bundle("searchset", entries, links=links, total=found.total)


def _entry(hit: Hit, body: bytes, base: str, mode: bytes) -> bytes:
    url = f"{base}/{hit.type}/{hit.id}".encode()
    return b'{"fullUrl":"%b","resource":%b,"search":{"mode":"%b"}}' % (url, body, mode)


def history_entry(stored: Stored, base: str) -> bytes:
    """One version in a history: what was asked and answered then (http://hl7.org/fhir/R4/http.html#history)."""
    method, status = ("DELETE", "204 No Content") if stored.deleted else ("PUT", "200 OK")
    if stored.version == 1 and not stored.deleted:
        status = "201 Created"
    name = f"{stored.resource_type}/{stored.id}"
    rest = {
        "request": {"method": method, "url": name},
        "response": {"status": status, "etag": etag(stored.version), "lastModified": instant(stored.updated)},
    }
    head = b'{"fullUrl":%b,' % orjson.dumps(f"{base}/{name}")
    return head + (b"" if stored.deleted else b'"resource":%b,' % stored.body) + orjson.dumps(rest)[1:]


def search_url(query: Query, base: str, cursor: str = "") -> str:
    """The search as a URL: the parameters that took effect, and the place when it is not the first page."""
    pairs = [*query.used, (CURSOR, cursor)] if cursor else query.used
    if not cursor and query.cursor:
        pairs = [*query.used, (CURSOR, query.cursor)]
    # ":" "," "/" and "|" stay readable; clients compare links as text.
    told = urlencode(pairs, quote_via=quote, safe=":,/|*$")
    place = query.type if query.place is None else query.place
    return f"{base}/{place}".rstrip("/") + (f"?{told}" if told else "")


def bundle(type: str, entries: Sequence[bytes], *, links: Iterable[Link] = (), total: int | None = None) -> bytes:
    """A Bundle of entries that are JSON already."""
    pieces = [b'{"resourceType":"Bundle","type":"%b"' % type.encode()]
    if total is not None:
        pieces.append(b',"total":%d' % total)
    shown = [{"relation": relation, "url": url} for relation, url in links]
    if shown:
        pieces.append(b',"link":' + orjson.dumps(shown))
    if entries:
        pieces += (b',"entry":[', b",".join(entries), b"]")
    pieces.append(b"}")
    return b"".join(pieces)  # at once: a page of a thousand is megabytes
