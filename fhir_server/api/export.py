"""``$export`` of everything and of all patients (https://hl7.org/fhir/uv/bulkdata/STU2/export.html): kick-off, status, files,
cancel."""

from __future__ import annotations

import re
from email.utils import format_datetime
from typing import Final, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from conformance import fhirjson
from conformance.capability import RESOURCE_TYPES
from fhir_server.access import Principal
from fhir_server.api.export_job import KEPT, Exports, Job, query_of
from fhir_server.api.inputs import inputs
from fhir_server.api.interaction import audited, base_of, context_of
from fhir_server.api.responses import fhir, issue, outcome
from fhir_server.api.searches import searched
from fhir_server.api.security import Asker, permit, services_of
from fhir_server.errors import Category, Fault
from fhir_server.search import dates, types
from fhir_server.store.statement import instant

router = APIRouter()

FORMATS: Final = ("application/fhir+ndjson", "application/fhir ndjson", "application/ndjson", "ndjson")
_KNOWN: Final = ("_outputFormat", "_since", "_type", "_typeFilter")
_NEXT_FILTER: Final = re.compile(r",(?=[A-Z][A-Za-z]+\?)")
_STATUS: Final = "$export-status"


def _exports(request: Request) -> Exports:
    """The jobs of this server, made when the first is asked for."""
    state = request.app.state
    if not hasattr(state, "exports"):
        state.exports = Exports(services_of(request).settings.data_dir / "exports")
    return cast(Exports, state.exports)


@router.api_route("/$export", methods=["GET", "POST"])
async def export(request: Request, asker: Asker) -> Response:
    """Kick-off: every type."""
    return await _begin(request, asker, list(RESOURCE_TYPES), patients=False)


@router.api_route("/Patient/$export", methods=["GET", "POST"])
async def export_patients(request: Request, asker: Asker) -> Response:
    """Kick-off: all patients, and what is in their compartments."""
    return await _begin(request, asker, types.types_of("Patient"), patients=True)


async def _begin(request: Request, asker: Principal, known: list[str], *, patients: bool) -> Response:
    asked = await inputs(request)
    preferred = request.headers.get("prefer", "").lower()
    if "respond-async" not in preferred:
        raise Fault(Category.INVALID, "An export is answered later: send Prefer: respond-async.", where="Prefer")
    strict = "handling=lenient" not in preferred
    unknown = [n for n, _ in asked.pairs if n not in _KNOWN]
    if unknown and strict:
        raise Fault(Category.INVALID, f"$export has no parameter {unknown[0]} here.", where=unknown[0])
    if asked.text("_outputFormat") not in ("", *FORMATS):
        raise Fault(Category.INVALID, "The files are application/fhir+ndjson.", where="_outputFormat")
    context = context_of(request)
    since = asked.text("_since").replace(" ", "+")
    if since:
        try:
            dates.span(since, context.zone)
        except (ValueError, OverflowError):
            raise Fault(Category.INVALID, "_since must be an instant.", where="_since") from None
    wanted = await searched(request, asker, known, [v for n, v in asked.pairs if n == "_type"])
    filters: dict[str, list[str]] = {name: [] for name in wanted}
    for part in (p for n, v in asked.pairs if n == "_typeFilter" for p in _NEXT_FILTER.split(v)):
        name, _, text = part.partition("?")
        if name not in filters or not text:
            raise Fault(Category.INVALID, "_typeFilter is Type?query, of a type that is exported.", where="_typeFilter")
        query_of(name, text, since, patients=patients)
        filters[name].append(text)
    told = {name: texts or [""] for name, texts in filters.items()}
    await audited(request, asker, "E", "$export", (), types=set(wanted), query="&".join(n for n, _ in asked.pairs))
    job = _exports(request).begin(services_of(request), context, asker, str(request.url), patients, since, told)
    headers = {"Content-Location": f"{base_of(request)}/{_STATUS}/{job.id}"}
    text = outcome([issue("information", "informational", "The export has begun. Ask at the Content-Location.")])
    return fhir(request, text, status=202, headers=headers)


@router.get(f"/{_STATUS}/{{job}}")
async def export_status(request: Request, asker: Asker, job: str) -> Response:
    """How far the export is; its files when it is complete."""
    found = await _found(request, asker, job)
    if found.state == "running":
        return fhir(request, b"", status=202, headers={"X-Progress": "running", "Retry-After": "2"})
    await audited(request, asker, "R", "$export-status", (), types=set(found.filters), query="")
    if found.state == "failed":
        return fhir(request, outcome([issue("error", "exception", found.fault)]), status=500)
    base = base_of(request)
    files = [
        {"type": name, "url": f"{base}/{_STATUS}/{job}/{name}.ndjson", "count": n} for name, n in found.counts.items()
    ]
    manifest = {
        "transactionTime": instant(found.began),
        "request": found.request,
        "requiresAccessToken": True,
        "output": files,
        "error": [],
    }
    headers = {"Expires": format_datetime(found.began + KEPT, usegmt=True)}
    return Response(fhirjson.dumps(manifest), 200, headers, "application/json")


@router.get(f"/{_STATUS}/{{job}}/{{name}}.ndjson")
async def export_file(request: Request, asker: Asker, job: str, name: str) -> Response:
    """One file."""
    found = await _found(request, asker, job)
    path = _exports(request).file(found, name)
    await permit(request, asker, "search-type", name)
    await audited(request, asker, "R", "$export-file", (), types={name}, query="")
    return FileResponse(path, media_type="application/fhir+ndjson")


@router.delete(f"/{_STATUS}/{{job}}")
async def export_cancel(request: Request, asker: Asker, job: str) -> Response:
    """Stops the export and removes its files."""
    found = await _found(request, asker, job)
    await _exports(request).end(found)
    await audited(request, asker, "D", "$export-status", (), types=set(found.filters), query="")
    text = outcome([issue("information", "informational", "The export was ended and its files were removed.")])
    return fhir(request, text, status=202)


async def _found(request: Request, asker: Principal, job: str) -> Job:
    return _exports(request).find(job, services_of(request), context_of(request), asker)
