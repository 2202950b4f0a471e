"""Operations of subscriptions: ``$status`` and ``$events``
(http://hl7.org/fhir/uv/subscriptions-backport/STU1.1/OperationDefinition-backport-subscription-status.html, ...-events.html)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from conformance import fhirjson
from conformance import subscription_topics as backport
from fhir_server.api import interaction
from fhir_server.api.bundle import bundle
from fhir_server.api.content import require_json_answer
from fhir_server.api.inputs import Inputs, inputs
from fhir_server.api.interaction import Touched, audited, base_of, context_of
from fhir_server.api.responses import fhir
from fhir_server.api.security import Asker, permit, services_of
from fhir_server.api.visible import seen_by
from fhir_server.errors import Category, Fault
from fhir_server.publish import notices
from fhir_server.publish.notification import State, notification, status
from fhir_server.search.query import MAX_COUNT, parse
from fhir_server.store import reader

router = APIRouter()

_METHODS: Final = ["GET", "HEAD", "POST"]
_KIND: Final = "Subscription"
_ROWS: Final = "SELECT id, topic, events, content, reason FROM subscription WHERE id = ANY($1)"


@router.api_route("/Subscription/$status", methods=_METHODS)
async def statuses(request: Request, asker: Asker) -> Response:
    """The state of all Subscriptions the asker may see, or of those named."""
    require_json_answer(request)
    await permit(request, asker, "search-type", _KIND)
    asked = await inputs(request)
    pairs = [
        ({"id": "_id", "status": "status"}[name], ",".join(v for n, v in asked.pairs if n == name))
        for name in ("id", "status")
        if any(n == name for n, _ in asked.pairs)
    ]
    query = parse(_KIND, [*pairs, ("_count", str(MAX_COUNT))], strict=True)
    found = await interaction.search(services_of(request), [query], context_of(request), asker)
    resources = [fhirjson.loads(hit.body) for hit in found.matches]
    return await _answer(request, asker, resources, "")


@router.api_route("/Subscription/{logical}/$status", methods=_METHODS)
async def status_of(request: Request, asker: Asker, logical: str) -> Response:
    """The state of one."""
    require_json_answer(request)
    await permit(request, asker, "read", _KIND)
    resource = await _read(request, asker, logical, "$status")
    return await _answer(request, asker, [resource], f"{_KIND}/{logical}")


async def _answer(request: Request, asker: Asker, resources: Sequence[dict[str, Any]], named: str) -> Response:
    base, rows = base_of(request), await _rows(request, [r["id"] for r in resources])
    states = [status(_state(r, rows.get(r["id"])), "query-status", [], base) for r in resources]
    await audited(request, asker, "R", "$status", (), types={_KIND}, resource=named, query="")
    entries = [
        fhirjson.dumps({"fullUrl": f"urn:uuid:{s['id']}", "resource": s, "search": {"mode": "match"}}) for s in states
    ]
    return fhir(request, bundle("searchset", entries, total=len(entries)))


@router.api_route("/Subscription/{logical}/$events", methods=_METHODS)
async def events_of(request: Request, asker: Asker, logical: str) -> Response:
    """Past events of one, as the asker may read them now."""
    require_json_answer(request)
    await permit(request, asker, "read", _KIND)
    asked = await inputs(request)
    resource = await _read(request, asker, logical, "$events")
    row = (await _rows(request, [logical])).get(logical)
    content = asked.text("content") or (row["content"] if row else "empty")
    if content not in backport.CONTENTS:
        raise Fault(Category.INVALID, f"content is one of {', '.join(backport.CONTENTS)}.", where="content")
    since, until = _number(asked, "eventsSinceNumber", 1), _number(asked, "eventsUntilNumber", 2**62)
    services, context = services_of(request), context_of(request)
    seen = await notices.events(
        services.pool, logical, (since, until), MAX_COUNT, services.settings, services.codec, asker, context,
        full=content == "full-resource",
    )  # fmt: skip
    told = content != "empty"
    touched = [Touched(seen.types[0] if seen.types else _KIND, p) for p in seen.patients] if told else []
    types = {_KIND, *(seen.types if told else ())}
    await audited(request, asker, "R", "$events", touched, types=types, resource=f"{_KIND}/{logical}", query="")
    state = _state(resource, row)
    made = notification(state, "query-event", seen.events, content, base_of(request), context.now)
    return fhir(request, fhirjson.dumps(made))


async def _read(request: Request, asker: Asker, logical: str, name: str) -> dict[str, Any]:
    services = await seen_by(services_of(request), asker, context_of(request), "r")
    stored = await reader.read(services.pool, services.codec, _KIND, logical)
    if stored is None or stored.deleted:
        await audited(
            request, asker, "R", name, (), types={_KIND}, resource=f"{_KIND}/{logical}", outcome="4", query=""
        )
        raise Fault(Category.GONE if stored else Category.NOT_FOUND, f"{_KIND}/{logical} is not here.")
    resource: dict[str, Any] = fhirjson.loads(stored.body)
    return resource


async def _rows(request: Request, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    return {row["id"]: row for row in await services_of(request).pool.fetch(_ROWS, list(ids))}


def _state(resource: Mapping[str, Any], row: Mapping[str, Any] | None) -> State:
    topic = resource["criteria"] if resource["criteria"] in backport.TOPICS else ""
    reason = (row["reason"] if row else None) or resource.get("error", "")
    return State(resource["id"], topic, resource["status"], row["events"] if row else 0, reason)


def _number(asked: Inputs, name: str, default: int) -> int:
    found = asked.number(name)
    return default if found is None else found
