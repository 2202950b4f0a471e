"""The RESTful API of FHIR R4 under /fhir (http://hl7.org/fhir/R4/http.html): one function per interaction.

Reads run on asyncpg in the event loop, writes on psycopg in threads. Every access is in the audit log before its answer leaves.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response

from conformance import capability, fhirjson
from conformance.capability import RESOURCE_TYPES
from conformance.operations.served import operations as operations_of
from fhir_server.access import Principal
from fhir_server.api import (
    audit_events,
    batch_requests,
    export,
    interaction,
    json_patch,
    operations,
    searches,
    subscriptions,
    subset,
    transaction,
)
from fhir_server.api.authorization import configuration
from fhir_server.api.bundle import bundle, history_entry
from fhir_server.api.content import (
    etag,
    not_modified,
    preferences,
    query_of,
    query_pairs,
    raw_body,
    require_json_answer,
    required_version,
    resource_body,
)
from fhir_server.api.interaction import Touched, audited, base_of, context_of, in_transaction
from fhir_server.api.responses import EXPECTED, fault_of, fhir, http_date, outcome, stored_as
from fhir_server.api.searches import READ, require_served
from fhir_server.api.security import Asker, permit, services_of
from fhir_server.api.visible import seen_by
from fhir_server.api.writes import Written, require_valid
from fhir_server.errors import Category, Fault
from fhir_server.search import include
from fhir_server.search.definitions import parameters, posted_codes
from fhir_server.store import reader

router = APIRouter()


@router.api_route("/metadata", methods=READ)
async def capabilities(request: Request) -> Response:
    """The CapabilityStatement of what is served (http://hl7.org/fhir/R4/http.html#capabilities). Needs no token."""
    require_json_answer(request)
    return fhir(request, _statement(base_of(request), posted_codes()))


@lru_cache(maxsize=2)
def _statement(base: str, _: frozenset[tuple[str, str]]) -> bytes:
    served = {
        name: [("_id", "token", ""), ("_lastUpdated", "date", ""), *_search_parameters(name)] for name in RESOURCE_TYPES
    }
    includes = {
        name: [
            f"{name}:{code}"
            for code, p in parameters(name).items()
            if p.kind == "reference" and p.indexed and not p.own
        ]
        for name in RESOURCE_TYPES
    }
    smart = configuration(base)
    statement = capability.capability_statement(
        base,
        version("tongjian"),
        datetime.now(UTC),
        served,
        capability.security(smart["token_endpoint"], smart["introspection_endpoint"], smart["revocation_endpoint"]),
        includes=includes,
        revincludes={name: include.references_to(name) for name in RESOURCE_TYPES},
        system_interactions=("transaction", "batch", "history-system", "search-system"),
        operations=operations_of(RESOURCE_TYPES),
    )
    return fhirjson.dumps(statement)


def _search_parameters(name: str) -> list[tuple[str, str, str]]:
    return [(code, p.kind, p.url) for code, p in parameters(name).items() if p.indexed]


# --- the whole system -------------------------------------------------------------------------------------------------------


@router.post("")
@router.post("/")
async def transact(request: Request, asker: Asker) -> Response:
    """Transaction or batch (http://hl7.org/fhir/R4/http.html#transaction)."""
    require_json_answer(request)
    services = services_of(request)
    resource = await resource_body(request, services.settings.max_request)
    base, context, wanted = base_of(request), context_of(request), preferences(request.headers)
    steps = await interaction.in_thread(transaction.read_steps, resource, base)
    kind = str(resource["type"])
    for step in steps:
        if isinstance(step, Fault) and kind == "transaction":
            raise step
        if isinstance(step, transaction.Step):
            for needed in step.interactions:
                await permit(request, asker, needed, step.type)
            if step.method == "PATCH" and wanted.returns == "representation":
                await permit(request, asker, "read", step.type)
    good = [s for s in steps if isinstance(s, transaction.Step)]
    results: list[transaction.Step | Fault | bytes] = []
    if kind == "transaction":
        results.extend(await in_transaction(services, context, asker, lambda w: transaction.all_or_nothing(w, good)))
    else:
        for step in steps:
            results.append(await _alone(request, asker, step))
    touched = [Touched(name, who) for s in results if isinstance(s, transaction.Step) for name, who in s.touched]
    await audited(request, asker, "E", kind, touched, types={s.type for s in good})
    refused = {
        s.type for s, r in zip(steps, results, strict=True) if isinstance(r, Fault) and isinstance(s, transaction.Step)
    }
    if refused:
        await audited(request, asker, "E", kind, (), types=refused, outcome="4")
    return fhir(request, transaction.answer(kind, results, wanted, base))


async def _alone(
    request: Request, asker: Principal, step: transaction.Step | batch_requests.OwnRequest | Fault
) -> transaction.Step | Fault | bytes:
    """What became of one entry of a batch."""
    if isinstance(step, Fault):
        return step
    try:
        if isinstance(step, batch_requests.OwnRequest):
            return await batch_requests.answered(request, step)
        return await in_transaction(services_of(request), context_of(request), asker, transaction.single(step))
    except EXPECTED as error:
        return fault_of(error)


@router.api_route("/_history", methods=READ)
async def history_system(request: Request, asker: Asker) -> Response:
    """History of everything (http://hl7.org/fhir/R4/http.html#history)."""
    return await _history(request, asker, "history-system", None, None)


# Before the routes of instances, whose ids would match their names.
router.include_router(export.router)
router.include_router(subscriptions.router)
router.include_router(operations.router)
router.include_router(searches.router)
for _address in ("", "/"):
    router.add_api_route(_address, searches.search_system, methods=READ)


# --- a type -----------------------------------------------------------------------------------------------------------------


@router.post("/{kind}")
async def create(request: Request, asker: Asker, kind: str) -> Response:
    """Create, with If-None-Exist conditional (http://hl7.org/fhir/R4/http.html#create, #ccreate)."""
    require_served(kind)
    exist = request.headers.get("if-none-exist")
    await permit(request, asker, "create", kind)
    if exist is not None:
        await permit(request, asker, "search-type", kind)
    resource = await _resource(request, kind)
    return await _write(request, asker, "C", "create", lambda w: w.create(resource, exist and exist.lstrip("?")))


@router.put("/{kind}")
async def update_conditionally(request: Request, asker: Asker, kind: str) -> Response:
    """Conditional update (http://hl7.org/fhir/R4/http.html#cond-update)."""
    require_served(kind)
    await permit(request, asker, "update", kind)
    await permit(request, asker, "search-type", kind)
    resource = await _resource(request, kind)
    query, expected, absent = query_of(request), required_version(request.headers), _absent(request)
    return await _write(
        request, asker, "U", "update", lambda w: w.conditional_update(resource, query, expected, absent=absent)
    )


@router.patch("/{kind}")
async def patch_conditionally(request: Request, asker: Asker, kind: str) -> Response:
    """Conditional patch (http://hl7.org/fhir/R4/http.html#patch)."""
    require_served(kind)
    await permit(request, asker, "patch", kind)
    await permit(request, asker, "search-type", kind)
    patch = await _patch(request)
    query, expected = query_of(request), required_version(request.headers)
    return await _write(request, asker, "U", "patch", lambda w: w.conditional_patch(kind, query, patch, expected))


@router.delete("/{kind}")
async def delete_conditionally(request: Request, asker: Asker, kind: str) -> Response:
    """Conditional delete of one match (http://hl7.org/fhir/R4/http.html#3.1.0.7.1)."""
    require_json_answer(request)
    require_served(kind)
    await permit(request, asker, "delete", kind)
    await permit(request, asker, "search-type", kind)
    query, expected = query_of(request), required_version(request.headers)
    return await _write(request, asker, "D", "delete", lambda w: w.conditional_delete(kind, query, expected))


@router.api_route("/{kind}/_history", methods=READ)
async def history_type(request: Request, asker: Asker, kind: str) -> Response:
    """History of a type (http://hl7.org/fhir/R4/http.html#history)."""
    require_served(kind)
    return await _history(request, asker, "history-type", kind, None)


# --- an instance ------------------------------------------------------------------------------------------------------------


@router.api_route("/{kind}/{logical}", methods=READ)
async def read(request: Request, asker: Asker, kind: str, logical: str) -> Response:
    """Read, conditional with If-None-Match and If-Modified-Since (http://hl7.org/fhir/R4/http.html#read, #cread)."""
    require_json_answer(request)
    require_served(kind)
    summary, elements = subset.asked(query_pairs(query_of(request)))
    await permit(request, asker, "read", kind)
    if kind == "AuditEvent" and audit_events.is_reader(asker):
        logged = await audit_events.read(request, asker, logical)
        if logged is not None:
            return logged
    services = await seen_by(services_of(request), asker, context_of(request), "r")
    stored = await reader.read(services.keyed or services.pool, services.codec, kind, logical)
    if stored is not None and not stored.deleted:
        stored = stored._replace(body=subset.part(stored.body, kind, summary=summary, elements=elements))
    return await _one(request, asker, "read", stored, f"{kind}/{logical}")


@router.api_route("/{kind}/{logical}/_history/{number}", methods=READ)
async def vread(request: Request, asker: Asker, kind: str, logical: str, number: str) -> Response:
    """Read of one version (http://hl7.org/fhir/R4/http.html#vread)."""
    require_json_answer(request)
    require_served(kind)
    await permit(request, asker, "vread", kind)
    services = await seen_by(services_of(request), asker, context_of(request), "r")
    stored = None
    if number.isascii() and number.isdecimal() and number[0] != "0":
        stored = await reader.vread(services.pool, services.codec, kind, logical, int(number[:12]))
    return await _one(request, asker, "vread", stored, f"{kind}/{logical}/_history/{number}")


async def _one(request: Request, asker: Asker, name: str, stored: reader.Stored | None, where: str) -> Response:
    touched = [Touched(stored.resource_type, stored.patient)] if stored is not None else []
    kind, _, logical = where.partition("/")
    resource = f"{kind}/{logical.partition('/')[0]}"
    if stored is None or stored.deleted:
        await audited(request, asker, "R", name, touched, types={kind}, resource=resource, outcome="4")
        if stored is None:
            raise Fault(Category.NOT_FOUND, f"{where} is not known.")
        headers = {"ETag": etag(stored.version), "Last-Modified": http_date(stored.updated)}
        raise Fault(Category.GONE, f"{where} was deleted.", headers=headers)
    await audited(request, asker, "R", name, touched, types={kind}, resource=resource)
    headers = {"ETag": etag(stored.version), "Last-Modified": http_date(stored.updated)}
    if not_modified(request, stored.version, stored.updated):
        return fhir(request, b"", status=304, headers=headers)
    return fhir(request, stored.body, headers=headers)


@router.put("/{kind}/{logical}")
async def update(request: Request, asker: Asker, kind: str, logical: str) -> Response:
    """Update, also under an id the client gives (http://hl7.org/fhir/R4/http.html#update)."""
    require_served(kind)
    _require_id(logical)
    await permit(request, asker, "update", kind)
    resource = await _resource(request, kind)
    if resource.get("id") != logical:
        raise Fault(Category.INVALID, "The resource needs an id, the same as in the URL.", where=f"{kind}.id")
    expected, absent = required_version(request.headers), _absent(request)
    return await _write(request, asker, "U", "update", lambda w: w.update(resource, expected, absent=absent))


@router.patch("/{kind}/{logical}")
async def patch(request: Request, asker: Asker, kind: str, logical: str) -> Response:
    """JSON Patch (http://hl7.org/fhir/R4/http.html#patch)."""
    require_served(kind)
    _require_id(logical)
    await permit(request, asker, "patch", kind)
    operations = await _patch(request)
    expected = required_version(request.headers)
    return await _write(request, asker, "U", "patch", lambda w: w.patch(kind, logical, operations, expected))


@router.delete("/{kind}/{logical}")
async def delete(request: Request, asker: Asker, kind: str, logical: str) -> Response:
    """Delete; history stays (http://hl7.org/fhir/R4/http.html#delete)."""
    require_json_answer(request)
    require_served(kind)
    _require_id(logical)
    await permit(request, asker, "delete", kind)
    expected = required_version(request.headers)
    return await _write(request, asker, "D", "delete", lambda w: w.delete(kind, logical, expected))


@router.api_route("/{kind}/{logical}/_history", methods=READ)
async def history_instance(request: Request, asker: Asker, kind: str, logical: str) -> Response:
    """History of one resource (http://hl7.org/fhir/R4/http.html#history)."""
    require_served(kind)
    return await _history(request, asker, "history-instance", kind, logical)


router.add_api_route("/{kind}/{logical}/{inner}", searches.search_compartment, methods=READ)


# --- shared -----------------------------------------------------------------------------------------------------------------


def _require_id(logical: str) -> None:
    """Raises Fault for what is a search, a history or an operation of the type, and no resource."""
    if logical.startswith("$"):
        raise Fault(Category.NOT_FOUND, "There is no such operation at this address.")
    if logical in ("_search", "_history"):
        allowed = "POST" if logical == "_search" else ", ".join(READ)
        raise Fault(Category.METHOD, "This is not an interaction of this address.", headers={"Allow": allowed})


def _absent(request: Request) -> bool:
    """Whether the write is to take place only when there is nothing yet (RFC 9110 section 13.1.2)."""
    return request.headers.get("if-none-match", "").strip() == "*"


async def _resource(request: Request, kind: str) -> dict[str, Any]:
    """The body of a create or update: sound, and of the type the URL names."""
    require_json_answer(request)
    resource = await resource_body(request, services_of(request).settings.max_request)
    if resource["resourceType"] != kind:
        raise Fault(Category.INVALID, f"The body is not a resource of type {kind}.", where="resourceType")
    await interaction.in_thread(require_valid, resource)
    return resource


async def _patch(request: Request) -> json_patch.Patch:
    require_json_answer(request)
    if request.headers.get("content-type", "").lower().partition(";")[0].strip() != json_patch.MEDIA_TYPE:
        text = f"Send the patch as {json_patch.MEDIA_TYPE}."
        raise Fault(Category.MEDIA_TYPE, text, headers={"Accept-Patch": json_patch.MEDIA_TYPE})
    return json_patch.read(await raw_body(request, services_of(request).settings.max_request))


async def _write(request: Request, asker: Asker, action: Any, name: str, write: Any) -> Response:
    """One write in a transaction of its own, and its answer."""
    services = services_of(request)
    written: Written = await in_transaction(services, context_of(request), asker, write)
    change = written.change
    kind = request.path_params["kind"]
    touched = [Touched(kind, change.patient)] if change else []
    resource = change.reference if change else ""
    await audited(request, asker, action, name, touched, types={kind}, resource=resource)
    if written.status == 204 or change is None:
        return fhir(request, b"", status=204, headers={"ETag": etag(change.version)} if change else None)
    headers = {
        "ETag": etag(change.version),
        "Last-Modified": http_date(change.updated),
        "Location": f"{base_of(request)}/{change.versioned}",
    }
    wanted = preferences(request.headers).returns
    body = change.body
    if wanted == "minimal" or (name == "patch" and not asker.may("read", kind)):
        body = b""  # a patch need not say what the rest of the resource is
    elif wanted == "OperationOutcome":
        body = outcome([stored_as(change)])
    return fhir(request, body, status=written.status, headers=headers)


async def _history(request: Request, asker: Asker, name: str, kind: str | None, logical: str | None) -> Response:
    require_json_answer(request)
    await permit(request, asker, name, kind or "*")
    letter = "r" if name == "history-instance" else "s"
    services, base = await seen_by(services_of(request), asker, context_of(request), letter), base_of(request)
    pairs, strict = query_pairs(query_of(request)), preferences(request.headers).strict
    count, since, at, before = interaction.history_parameters(pairs, services.settings.zone, strict=strict)
    stored = await reader.history(
        services.pool, services.codec, kind, logical, since=since, at=at, before=before, count=count + 1
    )
    if not stored and logical is not None and (before, since, at) == (None, None, None):
        await audited(request, asker, "R", name, (), types={kind or ""}, resource=f"{kind}/{logical}", outcome="4")
        raise Fault(Category.NOT_FOUND, f"{kind}/{logical} is not known.")
    shown = stored[:count]
    touched = [Touched(s.resource_type, s.patient) for s in shown]
    await audited(request, asker, "R", name, touched, types={kind} if kind else set())
    place = "/".join(p for p in (base, kind, logical, "_history") if p)
    links = [("self", interaction.history_url(place, query_of(request)))]
    if len(stored) > count and shown:
        links.append(("next", interaction.history_url(place, query_of(request), shown[-1].seq)))
    return fhir(request, bundle("history", [history_entry(s, base) for s in shown], links=links))
