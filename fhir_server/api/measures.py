"""``GET /audit/measures``: recognition rates with named denominators, by month, as FHIR and Excel; ``/cases``: what they count.

For auditors (docs/auditors.md). A token of one facility sees that facility; of sensitive items nothing is counted without the grant.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import psycopg
from fastapi import APIRouter, Request, Response

from conformance import fhirjson
from fhir_server.access import Principal
from fhir_server.api import audit
from fhir_server.api.cds_hooks import answer
from fhir_server.api.security import Asker, services_of
from fhir_server.duplicates import measure_report as shown
from fhir_server.errors import Category, Fault
from fhir_server.recognition import measures as figures
from fhir_server.recognition.measures import By, Measures

router = APIRouter(prefix="/audit/measures")

_FORMATS: Final = ("json", "csv", "xlsx", "fhir")
_MOST: Final = 1000


@router.get("")
async def measures(request: Request, asker: Asker) -> Response:
    """``from``, ``to`` (exclusive), ``by`` (facility, department, doctor or item), what narrows them, ``trend=true``, ``top`` (rows),
    ``format`` (json, csv, xlsx or fhir)."""
    await audit.may(request, asker)
    query = request.query_params
    form, by = query.get("format", "json"), _by(query)
    if form not in _FORMATS:
        raise Fault(Category.INVALID, f"format is {', '.join(_FORMATS)}.", where="format")
    hidden, services = audit.hidden(request, asker), services_of(request)
    top = audit.number(query, "top", 0)
    start, end, only = _period(request, asker, query)

    def work(conn: psycopg.Connection[Any]) -> tuple[Measures, Any]:
        found = figures.measure(conn, services.rules, start, end, services.clock(), (by,), only, hidden)
        months = None
        if query.get("trend") == "true":
            months = shown.trend(conn, services.rules, found, services.settings.zone, hidden)
        return found, months

    found, months = await audit.written(request, work)
    if top:
        found = figures.first(found, top)
    await audit.seen(request, asker, "R")
    if form == "fhir":
        return Response(fhirjson.dumps(shown.as_fhir(found)), media_type="application/fhir+json")
    if form == "xlsx":
        return Response(shown.as_xlsx(found, months or ()), media_type=audit.MEDIA["xlsx"])
    if form == "csv":
        return Response(figures.as_csv(found), media_type=audit.MEDIA["csv"])
    return answer(shown.as_dict(found, months))


@router.get("/cases")
async def cases(request: Request, asker: Asker) -> Response:
    """What a figure counts: ``figure`` (reminders, views, reports, adopted, refused, not_counted), period and filters as above,
    ``_count`` (at most 1000) and ``_offset``."""
    await audit.may(request, asker)
    query = request.query_params
    figure = next((f for f in shown.FIGURES if f == query.get("figure")), None)
    if figure is None:
        raise Fault(Category.INVALID, f"figure is {', '.join(shown.FIGURES)}.", where="figure")
    start, end, only = _period(request, asker, query)
    period = Measures(start, end, services_of(request).clock(), (), only, figures.Counts(), ())
    limit = min(audit.number(query, "_count", 100), _MOST)
    offset = audit.number(query, "_offset", 0)
    wanted = shown.Wanted(figure, period, audit.hidden(request, asker), limit, offset)
    rules = services_of(request).rules
    found = await audit.written(request, lambda conn: shown.cases(conn, rules, wanted))
    await audit.seen(request, asker, "R")
    return answer({"figure": figure, "cases": found, "_count": limit, "_offset": offset})


def _by(query: Mapping[str, str]) -> By:
    by = next((d for d in figures.DIMENSIONS if d == query.get("by", "facility")), None)
    if by is None:
        raise Fault(Category.INVALID, f"by is {', '.join(figures.DIMENSIONS)}.", where="by")
    return by


def _period(request: Request, asker: Principal, query: Mapping[str, str]) -> tuple[datetime, datetime, dict[By, str]]:
    start, end, scope = audit.period(request, asker, query)
    named = {"facility": scope.facility, "department": scope.department, "doctor": scope.doctor, "item": scope.item}
    return start, end, shown.filters_of(named)
