"""Notifications and states of topic-based subscriptions as resources (Subscriptions R5 Backport 1.1.0, R4 profiles). Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from conformance import subscription_topics as backport
from fhir_server.store.statement import instant

Kind = Literal["handshake", "heartbeat", "event-notification", "query-status", "query-event"]
_DELETED: Final = "204 No Content"


@dataclass(frozen=True, slots=True)
class State:
    """What a status says: logical id, topic (empty: none), status, number of the last event, why it is in error."""

    id: str
    topic: str
    status: str
    events: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One event. focus: ``<type>/<id>``, empty when it is not told; version: of the focus then; gone: it was deleted; resource: the
    focus as the client may read it now; more: what belongs to it."""

    number: int
    at: datetime
    focus: str = ""
    version: int = 0
    gone: bool = False
    resource: Mapping[str, Any] | None = None
    more: tuple[Mapping[str, Any], ...] = ()


def status(state: State, kind: Kind, events: Sequence[Event], base: str, *, topic: bool = True) -> dict[str, Any]:
    """The Parameters of the profile backport-subscription-status-r4. ``topic``: name it (an empty notification does not)."""
    parameters: list[dict[str, Any]] = [
        {"name": "subscription", "valueReference": {"reference": f"{base}/Subscription/{state.id}"}}
    ]
    if state.topic and topic:
        parameters.append({"name": "topic", "valueCanonical": state.topic})
    parameters += [
        {"name": "status", "valueCode": state.status},
        {"name": "type", "valueCode": kind},
        {"name": "events-since-subscription-start", "valueString": str(state.events)},
    ]
    parameters += [{"name": "notification-event", "part": _parts(event, base)} for event in events]
    if state.reason and state.status in ("error", "off"):
        parameters.append({"name": "error", "valueCodeableConcept": {"text": state.reason}})
    return {
        "resourceType": "Parameters",
        "id": str(uuid.uuid4()),
        "meta": {"profile": [backport.STATUS_PROFILE]},
        "parameter": parameters,
    }


def _parts(event: Event, base: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"name": "event-number", "valueString": str(event.number)},
        {"name": "timestamp", "valueInstant": instant(event.at)},
    ]
    if event.focus:
        parts.append({"name": "focus", "valueReference": {"reference": f"{base}/{event.focus}"}})
    for one in event.more:
        reference = f"{base}/{one['resourceType']}/{one['id']}"
        parts.append({"name": "additional-context", "valueReference": {"reference": reference}})
    return parts


def notification(
    state: State, kind: Kind, events: Sequence[Event], content: str, base: str, at: datetime
) -> dict[str, Any]:
    """The Bundle of the profile backport-subscription-notification-r4: the status first, then with ``full-resource`` what the events
    are about. Every entry has a request and a response, as a history asks (bdl-3, bdl-4)."""
    told = [e if content != "empty" else Event(e.number, e.at) for e in events]
    head = status(state, kind, told, base, topic=content != "empty")
    entries: list[dict[str, Any]] = [
        {
            "fullUrl": f"urn:uuid:{head['id']}",
            "resource": head,
            "request": {"method": "GET", "url": f"{base}/Subscription/{state.id}/$status"},
            "response": {"status": "200"},
        }
    ]
    if content == "full-resource":
        seen: set[str] = set()
        for event in told:
            for entry in _entries(event, base):
                if entry["fullUrl"] not in seen:
                    seen.add(entry["fullUrl"])
                    entries.append(entry)
    return {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "meta": {"profile": [backport.NOTIFICATION_PROFILE]},
        "type": "history",
        "timestamp": instant(at),
        "entry": entries,
    }


def _entries(event: Event, base: str) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    if event.gone and event.focus:
        out.append(
            {
                "fullUrl": f"{base}/{event.focus}",
                "request": {"method": "DELETE", "url": event.focus},
                "response": {"status": _DELETED},
            }
        )
    if event.resource is not None:
        first = event.version == 1
        out.append(_entry(event.resource, "PUT", "201 Created" if first else "200 OK", base))
    out += [_entry(one, "GET", "200 OK", base) for one in event.more]
    return out


def _entry(resource: Mapping[str, Any], method: str, code: str, base: str) -> dict[str, Any]:
    name = f"{resource['resourceType']}/{resource['id']}"
    return {
        "fullUrl": f"{base}/{name}",
        "resource": resource,
        "request": {"method": method, "url": name},
        "response": {"status": code},
    }
