"""``POST /relay/messages``: batches of relays (docs/connect-relay.md). A batch is durable before the answer, and each message once."""

from __future__ import annotations

import asyncio

import asyncpg
from fastapi import APIRouter, Request, Response

from fhir_server import telemetry
from fhir_server.api.client_password import MessageAsker
from fhir_server.api.content import raw_body
from fhir_server.api.messages import Doors, may_send
from fhir_server.api.security import address_of, services_of
from fhir_server.errors import Category, Fault
from fhir_server.ingest import relayed
from fhir_server.relay.batch import MEDIA_TYPE, PATH, Answer, BadBatch, Held, unpack
from fhir_server.store.database import Borrowed

router = APIRouter()


@router.post(PATH)
async def relay_messages(request: Request, asker: MessageAsker) -> Response:
    """Takes a batch, which may be empty: 200 with the numbers that are stored. 409: a number was used before for another message."""
    await may_send(request, asker)
    doors: Doors | None = request.app.state.doors
    if doors is None:
        raise Fault(Category.UNAVAILABLE, "This server takes no messages.")
    services = services_of(request)
    intake = doors.intake(request, asker, relayed.CHANNEL)
    if request.headers.get("content-type", "") != MEDIA_TYPE:
        raise Fault(Category.MEDIA_TYPE, f"Send a batch as {MEDIA_TYPE}.")
    body = await raw_body(request, services.settings.max_request)
    at = services.clock()
    try:
        said, messages = await asyncio.to_thread(unpack, body)
        arrived = await asyncio.to_thread(relayed.arrivals, intake, said, messages, at)
    except BadBatch as fault:
        raise Fault(Category.INVALID, str(fault)) from None
    except relayed.NotWhole:
        raise Fault(Category.INVALID, "A message is not the one whose SHA-256 was sent.") from None
    try:
        async with Borrowed(services.pool) as connection:
            taken = await relayed.store(connection, asker.facility, said, arrived, at, address_of(request))
    except relayed.NumberReused:
        raise Fault(Category.CONFLICT, "A number of this relay was used before for another message.") from None
    except asyncpg.DataError:
        raise Fault(Category.INVALID, "A message holds what the database cannot keep.") from None
    for _, parts in arrived:
        for arrival, _ in parts:
            telemetry.RECEIVED.labels(asker.facility, relayed.CHANNEL, arrival.format).inc()
    if said.messages:
        await services.audit.record(asker, "C", "submit-relay", (), at=services.clock(), address=address_of(request))
    held = tuple(Held(seq=seq, reason=reason) for seq, reason in taken.held)
    answer = Answer(at=services.clock(), stored=taken.stored, known=taken.known, held=held)
    return Response(answer.model_dump_json(), media_type="application/json")
