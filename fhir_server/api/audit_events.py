"""The audit log as AuditEvents, for auditors and administrators: read and search by type (http://hl7.org/fhir/R4/auditevent.html).

Events that others sent here come after those of the log: the last page of the log links to them.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode, urlsplit

from fastapi import Request, Response

from conformance import fhirjson
from fhir_server import audit_search
from fhir_server.access import Principal
from fhir_server.api import interaction, subset
from fhir_server.api.bundle import bundle
from fhir_server.api.content import query_of
from fhir_server.api.interaction import Touched, audited, base_of, context_of
from fhir_server.api.responses import fhir
from fhir_server.api.security import services_of
from fhir_server.api.visible import require_searchable
from fhir_server.errors import Fault
from fhir_server.search.query import CURSOR, parse

STORED: Final = "_stored"
"""Our parameter in the link from the log to the events that others sent."""
_READERS: Final = ("auditor", "administrator")
_TYPE: Final = "AuditEvent"

Pairs = list[tuple[str, str]]


def is_reader(asker: Principal) -> bool:
    """Whether the asker sees the log itself; a token narrowed to some events, or to a patient, does not."""
    return asker.role in _READERS and not asker.patient and _TYPE not in asker.narrowed("s")


def wants_log(asker: Principal, kind: str, pairs: Pairs) -> bool:
    """Whether a search is answered from the log."""
    return kind == _TYPE and is_reader(asker) and not any(name in (STORED, CURSOR) for name, _ in pairs)


async def search(request: Request, asker: Principal, pairs: Pairs) -> Response:
    """A page of the log, newest first."""
    services, base = services_of(request), base_of(request)
    asked = audit_search.read(pairs, context_of(request), asker.facility)
    plain = [
        (n, v) for n, v in pairs if n not in (audit_search.BEFORE, "_sort", "_count", "_total", "_summary", "_elements")
    ]
    total = None
    if asked.counted or asked.only_counted:
        total = await audit_search.total(services.pool, asked) + await _stored(request, asker, plain)
    found: list[audit_search.Event] = []
    links = [("self", _url(base, pairs))]
    if not asked.only_counted:
        found, more = await audit_search.page(services.pool, asked, _server(base))
        rest = [(n, v) for n, v in pairs if n != audit_search.BEFORE]
        if more:
            place = found[-1].place
            links.append(("next", _url(base, [*rest, (audit_search.BEFORE, ".".join(map(str, place)))])))
        elif await _stored(request, asker, plain):
            links.append(("next", _url(base, [*rest, (STORED, "true")])))
    summary, elements = subset.asked([p for p in pairs if p != ("_summary", "count")])
    entries = [_entry(event, base, summary, elements) for event in found]
    touched = [Touched(_TYPE, event.patient or None) for event in found]
    await audited(request, asker, "R", "search-type", touched, types={_TYPE}, query=query_of(request))
    return fhir(request, bundle("searchset", entries, links=links, total=total))


async def read(request: Request, asker: Principal, logical: str) -> Response | None:
    """One event of the log; None when the id is none of the log, or nothing the asker sees."""
    services = services_of(request)
    found = await audit_search.one(services.pool, logical, _server(base_of(request)), asker.facility)
    if found is None:
        return None
    summary, elements = subset.asked(list(request.query_params.multi_items()))
    body = subset.part(fhirjson.dumps(found.resource), _TYPE, summary=summary, elements=elements)
    touched = [Touched(_TYPE, found.patient or None)]
    await audited(request, asker, "R", "read", touched, types={_TYPE}, resource=f"{_TYPE}/{logical}")
    return fhir(request, body)


async def _stored(request: Request, asker: Principal, pairs: Pairs) -> int:
    """How many events that others sent meet the search; none of those an auditor may not search so."""
    query = parse(_TYPE, [*pairs, ("_summary", "count")], strict=False)
    try:
        require_searchable(asker, [query])
    except Fault:
        return 0
    found = await interaction.search(services_of(request), [query], context_of(request), asker)
    return found.total or 0


def _entry(event: audit_search.Event, base: str, summary: str, elements: frozenset[str]) -> bytes:
    url = f"{base}/{_TYPE}/{event.resource['id']}"
    body = subset.part(fhirjson.dumps(event.resource), _TYPE, summary=summary, elements=elements)
    return b'{"fullUrl":"%b","resource":%b,"search":{"mode":"match"}}' % (url.encode(), body)


def _url(base: str, pairs: Pairs) -> str:
    told = urlencode(pairs, quote_via=quote, safe=":,/|*$")
    return f"{base}/{_TYPE}" + (f"?{told}" if told else "")


def _server(base: str) -> str:
    """Network name of this server."""
    return urlsplit(base).hostname or "tongjian"
