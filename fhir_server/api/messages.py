"""Raw messages over HTTP (docs/connect-http.md): ``POST /messages`` takes what facilities write, in every format of adapters.convert,
``GET /messages/{id}`` and ``GET /messages?control_id=`` tell what became of it.

The token binds the facility. A message is durable before the answer; the same bytes again give the same id and change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import asyncpg
from fastapi import APIRouter, Request, Response

from adapters.convert import FORMATS
from adapters.hl7v2.batch import shortage
from conformance.issue import Issue
from fhir_server.access import Principal
from fhir_server.api.cds_hooks import answer
from fhir_server.api.client_password import MessageAsker
from fhir_server.api.content import raw_body
from fhir_server.api.security import address_of, permit, permit_role, services_of
from fhir_server.errors import Category, Fault
from fhir_server.ingest import inbox, submission
from fhir_server.ingest.group_commit import DatabaseAway
from fhir_server.ingest.intake import Intake, represented
from fhir_server.ingest.receive import Receiver
from fhir_server.ingest.submission import Taken
from fhir_server.store.database import Borrowed
from mappings.facility import Channel

router = APIRouter(prefix="/messages")

CHANNEL: Final = "http"
_FORMS: Final = ("application/x-www-form-urlencoded", "multipart/")
_ROLES: Final = ("system", "integrator")
_MOST_LISTED: Final = 100
_SAID: Final = {"ready": "waiting", "claimed": "waiting", "failed": "refused"}
"""Status of the inbox -> as told; the others (done, held, quality-control) stay."""


class Doors:
    """One Intake for each facility and way in, made when first used. ``receiver``: open."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._known: dict[tuple[str, str], Intake] = {}

    def intake(self, request: Request, asker: Principal, channel: str) -> Intake:
        """Of the asker's facility. Raises Fault FORBIDDEN when the token names none that has a profile."""
        services = services_of(request)
        profile = services.profiles.get(asker.facility) if asker.facility else None
        if profile is None:
            text = "The token names no facility with a profile; messages are taken for one facility. Ask for a token with a facility."
            raise Fault(Category.FORBIDDEN, text)
        name = (profile.id, channel)
        if name not in self._known:
            own = next((c for c in profile.facility.channels if c.name == channel), None)
            self._known[name] = Intake(
                profile, own or Channel(name=channel, max_bytes=services.settings.max_request), services.profiles
            )
        return self._known[name]


async def take(request: Request, asker: Principal, raw: bytes, kind: str, channel: str) -> list[dict[str, Any]]:
    """Makes the messages of ``raw`` durable and tells of each what ``GET /messages/{id}`` tells, with ``repeated``.

    kind: a format word, empty: recognised. Raises Fault INVALID, FORBIDDEN, TOO_LARGE, UNAVAILABLE.
    """
    await may_send(request, asker)
    doors: Doors | None = request.app.state.doors
    if doors is None:
        raise Fault(Category.UNAVAILABLE, "This server takes no messages.")
    intake = doors.intake(request, asker, channel)
    if kind and kind not in FORMATS:
        words = ", ".join(f for f in FORMATS if f != "unknown")
        raise Fault(Category.INVALID, f"format is one of {words}, or left out.", where="format")
    if not raw.strip():
        raise Fault(Category.INVALID, "The body is empty; send the message as it is.")
    if len(raw) > intake.channel.max_bytes:
        raise Fault(
            Category.TOO_LARGE, f"The body is larger than {intake.channel.max_bytes} bytes, the limit of this channel."
        )
    try:
        taken = await submission.take(intake, doors.receiver, raw, kind, services_of(request).clock)
    except DatabaseAway:
        raise Fault(
            Category.UNAVAILABLE,
            "The messages cannot be stored now: send the same bytes again later; nothing is doubled.",
        ) from None
    services = services_of(request)
    # Whom it is about is not known before it is read.
    ids = [t.accepted.id for t in taken if t.accepted]
    await services.audit.record(
        asker,
        "C",
        f"submit-{channel}",
        (),
        outcome="0" if ids else "8",
        at=services.clock(),
        address=address_of(request),
    )
    places = [(t.accepted.shard, t.accepted.id) for t in taken if t.accepted]
    async with Borrowed(services.pool) as connection:
        found = {row["id"]: row for row in await inbox.told(connection, _facilities(request, asker), places)}
    return [_taken(t, found) for t in taken]


async def may_send(request: Request, asker: Principal) -> None:
    """Raises Fault FORBIDDEN, after an audit entry, unless the asker is a system or integrator that may create every type: what is in
    a message is not known before it is read."""
    await permit_role(request, asker, "submit", *_ROLES)
    await permit(request, asker, "create", "*")


@router.post("")
async def submit(request: Request, asker: MessageAsker) -> Response:
    """Takes a body: 202 with ``messages`` when at least one can be read, 422 when none can (they are kept all the same, held), 503 when
    they cannot be stored. ``format`` in the query names the format; it is recognised without.
    ``issues`` beside ``messages`` tells that a batch has other messages than its trailer counts."""
    media = request.headers.get("content-type", "").lower()
    if media.startswith(_FORMS) or request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Fault(
            Category.MEDIA_TYPE,
            "Send the bytes of the message as the body, neither as a form nor compressed, for example as application/octet-stream.",
        )
    raw = await raw_body(request, services_of(request).settings.max_request)
    messages = await take(request, asker, raw, request.query_params.get("format", ""), CHANNEL)
    good = any(m["status"] not in ("held", "refused") or m["repeated"] for m in messages)
    short = await asyncio.to_thread(shortage, raw) if messages[0]["format"] == "hl7v2" else None
    response = answer({"messages": messages, **({"issues": [said(short)]} if short else {})}, 202 if good else 422)
    if len(messages) == 1 and messages[0]["id"]:
        response.headers["Location"] = f"{_root(request)}/messages/{messages[0]['id']}"
    return response


@router.get("")
async def search(request: Request, asker: MessageAsker, control_id: str = "") -> Response:
    """The facility's messages with this control id (MSH-10, number of a document), newest first, at most 100."""
    return answer({"messages": await by_control_id(request, asker, control_id)})


async def by_control_id(request: Request, asker: Principal, control_id: str) -> list[dict[str, Any]]:
    """What became of the messages of the asker's facility with a control id. Raises Fault INVALID, FORBIDDEN."""
    await permit_role(request, asker, "message-status", *_ROLES)
    if not control_id or "\x00" in control_id:
        raise Fault(Category.INVALID, "Ask for control_id.", where="control_id")
    async with Borrowed(services_of(request).pool) as connection:
        rows = await inbox.told_of(connection, _facilities(request, asker), control_id, _MOST_LISTED)
    return [described(row) for row in rows]


@router.get("/{id}")
async def read(request: Request, asker: MessageAsker, id: str) -> Response:
    """One message of the facility: its status, and while it is held the reason."""
    return answer(await status(request, asker, id))


async def status(request: Request, asker: Principal, id: str) -> dict[str, Any]:
    """What became of a message of the asker's facility. Raises Fault NOT_FOUND for any other."""
    await permit_role(request, asker, "message-status", *_ROLES)
    rows: Sequence[asyncpg.Record] = []
    if id.isdecimal() and id.isascii() and len(id) < 19:
        async with Borrowed(services_of(request).pool) as connection:
            rows = await inbox.told(connection, _facilities(request, asker), [(None, int(id))])
    if not rows:
        raise Fault(Category.NOT_FOUND, "The facility of the token has no message of this id.")
    return described(rows[0])


def _facilities(request: Request, asker: Principal) -> list[str]:
    """The asker's facility and those it may speak for."""
    if not asker.facility:
        raise Fault(Category.FORBIDDEN, "The token names no facility; ask for one with a facility.")
    return [asker.facility, *(p.id for p in represented(services_of(request).profiles, asker.facility))]


def described(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the inbox for its sender: no value of the message."""
    return {
        "id": row["id"],
        "status": _SAID.get(row["status"], row["status"]),
        "format": row["format"],
        "trigger": row["trigger"],
        "control_id": row["control_id"],
        "received_at": row["received_at"].isoformat(),
        "converted_at": row["converted_at"].isoformat() if row["converted_at"] else None,
        "reason": row["reason"],
        "issues": [said(issue) for issue in inbox.issues_of(row["issues"])],
    }


def said(issue: Issue) -> dict[str, str]:
    """An issue without its value, which may be of a patient."""
    return {"key": issue.key, "severity": issue.severity, "where": issue.where, "text": issue.text}


def _taken(taken: Taken, found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    row = found.get(taken.accepted.id) if taken.accepted else None
    if taken.accepted is None or row is None:
        fault = [said(taken.fault)] if taken.fault else []
        return {"id": None, "status": "refused", "format": taken.format, "repeated": False, "issues": fault}
    return {**described(row), "repeated": not taken.accepted.fresh}


def _root(request: Request) -> str:
    base: str = request.app.state.base_url
    return base.removesuffix("/fhir")
