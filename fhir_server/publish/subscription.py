"""A Subscription as a client writes it -> what is stored, and what the sender needs (http://hl7.org/fhir/R4/subscription.html,
Subscriptions R5 Backport 1.1.0). Pure: nothing is looked up.

``criteria`` is a topic of this server, narrowed by filters, or a query of one type (``Observation?code=...``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qsl

from conformance import subscription_topics as backport
from conformance.capability import RESOURCE_TYPES
from fhir_server.access import Principal
from fhir_server.errors import Category, Fault
from fhir_server.publish.endpoints import Endpoints, NotAllowed
from fhir_server.search import dates
from fhir_server.search.query import Query, parse
from fhir_server.search.sql import where_of
from fhir_server.search.statement import Context, Statement

HIDDEN: Final = "(not shown)"
"""Stands for the value of a header: it may be a secret, and others may read the resource."""
FACILITY: Final = "facility"
"""Our own filter of result topics: the facility that reported it."""
_TIMEOUT: Final = 30
_LONGEST_TIMEOUT: Final = 120
_MOST: Final = 100
_MIMES: Final = ("application/fhir+json", "application/json")
_HEADER: Final = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x20-\x7e]*)")
_OURS: Final = frozenset(
    {"host", "content-type", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"}
)
_QUERY: Final = re.compile(r"([A-Za-z]+)(?:\?(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the sender needs (columns of the table ``subscription``)."""

    topic: str
    types: tuple[int, ...]
    criteria: tuple[str, ...]
    status: str
    content: str
    mime: str
    endpoint: str
    headers: tuple[str, ...]
    heartbeat: int | None
    timeout: int
    most: int
    ends: datetime | None


@dataclass(frozen=True, slots=True)
class Before:
    """The Subscription that is updated: its resource, its endpoint and headers with their values, who wrote it."""

    resource: Mapping[str, Any]
    endpoint: str
    headers: tuple[str, ...]
    subject: str


def accept(
    resource: dict[str, Any], before: Before | None, asker: Principal, endpoints: Endpoints, context: Context
) -> tuple[dict[str, Any], Wanted | None]:
    """The resource as it is stored, and what is sent for it: None for one that is over (``end``) and never sends anything.

    The server alone sets ``active`` and ``error``: whatever the client says but ``off`` asks for a new start. Raises Fault
    UNPROCESSABLE for what cannot be done here, FORBIDDEN for what the asker may not read himself.
    """
    ends = _end(resource.get("end"), context)
    if ends is not None and ends <= context.now:
        return resource, None
    channel = resource["channel"]
    headers = _headers(channel, before, asker)
    shown = [f"{h.partition(':')[0]}: {HIDDEN}" for h in headers]
    stored = {**resource, "channel": {**channel, **({"header": shown} if shown else {})}}
    if before is not None and headers == before.headers and _same(stored, before.resource):
        stored["status"] = resource["status"]
    elif resource["status"] != "off":
        stored = {k: v for k, v in stored.items() if k != "error"} | {"status": "requested"}
    topic, types, criteria = _criteria(resource, asker, context)
    content, mime = _payload(channel, bool(topic))
    custom = [e for e in channel.get("_type", {}).get("extension", ()) if e["url"] == backport.CHANNEL_TYPE]
    if channel["type"] != "rest-hook" or custom:
        raise _cannot("Only the channel type rest-hook is served here.", "Subscription.channel.type")
    endpoint = channel.get("endpoint", "")
    try:
        endpoints.require(endpoint)
    except NotAllowed as refused:
        raise _cannot(str(refused), "Subscription.channel.endpoint") from None
    extensions = {e["url"]: e for e in channel.get("extension", ())}
    heartbeat = _whole(extensions, backport.HEARTBEAT, "valueUnsignedInt")
    timeout = _whole(extensions, backport.TIMEOUT, "valueUnsignedInt")
    most = _whole(extensions, backport.MAX_COUNT, "valuePositiveInt")
    wanted = Wanted(
        topic, types, criteria, stored["status"], content, mime, endpoint, headers, heartbeat or None,
        min(timeout or _TIMEOUT, _LONGEST_TIMEOUT), min(most or 1, _MOST), ends,
    )  # fmt: skip
    return stored, wanted


def _cannot(text: str, where: str) -> Fault:
    return Fault(Category.UNPROCESSABLE, text, where=where)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    def told(resource: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in resource.items() if k != "meta"}

    return told(one) == told(other)


def _end(text: str | None, context: Context) -> datetime | None:
    if text is None:
        return None
    try:
        return dates.span(text, context.zone)[0]
    except (ValueError, OverflowError):
        raise _cannot("end must be an instant.", "Subscription.end") from None


# --- what it is about -----------------------------------------------------------------------------------------------------------------


def _criteria(
    resource: Mapping[str, Any], asker: Principal, context: Context
) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
    """Topic (empty: none), numbers of the types, filters as ``<Type>?<query>`` (no type: whatever the event is about)."""
    where, text = "Subscription.criteria", resource["criteria"]
    said = [e for e in resource.get("_criteria", {}).get("extension", ()) if e["url"] == backport.FILTER]
    extra = [str(e.get("valueString", "")) for e in said]
    topic = backport.TOPICS.get(text)
    types: tuple[str, ...]
    allowed: Collection[str]
    if topic is None:
        named = text.partition("?")[0]
        if ":" in named or "/" in named:
            known = ", ".join(backport.TOPICS)
            raise _cannot(
                f"There is no such topic here, but {known}; or write a query: Observation?code=1234-5.", where
            )
        if extra:
            raise _cannot("Filters narrow a topic; here everything belongs into the query of criteria.", where)
        types, filters, allowed = (named,), [text], RESOURCE_TYPES.keys()
    else:
        types, filters, allowed = topic.focus, [f if "?" in f else f"?{f}" for f in extra], {*topic.filters, ""}
    for one in filters:
        kind, query = cut(one)
        if kind not in allowed:
            served = f"; a filter of this topic may name {', '.join(topic.filters)}" if topic else ""
            raise _cannot(f"{kind or 'Nothing'} is no type that can be asked for{served}.", where)
        for about in (kind,) if kind else types:
            _require_searchable(about, query, context, filtering=topic is not None)
    looked_at = {kind for kind, _ in map(cut, filters) if kind and kind not in types}
    if not any(asker.may("read", t) for t in types) or not all(asker.may("read", t) for t in looked_at):
        text = f"The token does not allow read on {' or '.join(sorted({*types, *looked_at}))}."
        raise Fault(Category.FORBIDDEN, text, where=where)
    return topic.url if topic else "", tuple(RESOURCE_TYPES[t] for t in types), tuple(filters)


def cut(criteria: str) -> tuple[str, list[tuple[str, str]]]:
    """``<Type>?<query>`` -> type and decoded pairs."""
    kind, _, query = criteria.partition("?")
    return kind, parse_qsl(query, keep_blank_values=True)


def facilities_of(pairs: Sequence[tuple[str, str]]) -> list[frozenset[str]]:
    """The facilities that each of our own filters names."""
    return [frozenset(v.split(",")) for n, v in pairs if n == FACILITY]


def query_of(kind: str, pairs: Sequence[tuple[str, str]]) -> Query:
    """The pairs, but our own filters, as a search. Raises Fault INVALID."""
    return parse(kind, [(n, v) for n, v in pairs if n != FACILITY], strict=True)


def _require_searchable(kind: str, pairs: list[tuple[str, str]], context: Context, *, filtering: bool) -> None:
    where = "Subscription.criteria"
    if filtering and (not pairs or (kind == "Patient" and facilities_of(pairs))):
        raise _cannot("A filter is a search such as DiagnosticReport?patient=Patient/123, or facility=<id>.", where)
    if not filtering and facilities_of(pairs):
        raise _cannot("facility narrows topics only.", where)
    try:
        query = query_of(kind, pairs)
        # What has to be looked up in value sets is understood when it is looked at.
        plain = [f for f in query.filters if f.modifier not in ("in", "not-in", "above", "below")]
        where_of(kind, plain, context, Statement())
    except Fault as fault:
        raise _cannot(f"criteria cannot be understood: {fault.text}", where) from None
    if query.sort or query.includes or query.cursor or query.elements or query.summary:
        raise _cannot(
            "criteria has search parameters only, none for the result (_sort, _include, _summary ...).", where
        )


# --- how it is sent -------------------------------------------------------------------------------------------------------------------


def _payload(channel: Mapping[str, Any], topical: bool) -> tuple[str, str]:
    """How much is sent, and the media type (empty: nothing is sent)."""
    mime, where = channel.get("payload", ""), "Subscription.channel.payload"
    if mime and mime.partition(";")[0].strip().lower() not in _MIMES:
        raise _cannot("Notifications are sent as application/fhir+json only.", where)
    said = [
        e.get("valueCode") for e in channel.get("_payload", {}).get("extension", ()) if e["url"] == backport.CONTENT
    ]
    if not topical:
        if said:
            raise _cannot("The payload content belongs to a topic.", where)
        return "full-resource" if mime else "empty", mime
    if not mime or len(said) != 1 or said[0] not in backport.CONTENTS:
        text = f"A topic needs payload application/fhir+json with one extension {backport.CONTENT}: {', '.join(backport.CONTENTS)}."
        raise _cannot(text, where)
    return said[0], mime


def _headers(channel: Mapping[str, Any], before: Before | None, asker: Principal) -> tuple[str, ...]:
    """The headers with their values: one that is not shown keeps the value it had, for the same client and endpoint."""
    where = "Subscription.channel.header"
    kept = {}
    if before is not None and before.subject == asker.subject and before.endpoint == channel.get("endpoint"):
        kept = {h.partition(":")[0].lower(): h for h in before.headers}
    out = []
    for text in channel.get("header", ()):
        found = _HEADER.fullmatch(text)
        if found is None or found[1].lower() in _OURS:
            raise _cannot("A header is 'Name: value' in ASCII, and not one that this server sets itself.", where)
        if found[2].strip() == HIDDEN and found[1].lower() not in kept:
            raise _cannot(f"The value of header {found[1]} is not known: send it again.", where)
        out.append(kept[found[1].lower()] if found[2].strip() == HIDDEN else text)
    return tuple(out)


def _whole(extensions: Mapping[str, Mapping[str, Any]], url: str, element: str) -> int | None:
    extension = extensions.get(url)
    if extension is None:
        return None
    value = extension.get(element)
    if not isinstance(value, int):
        raise _cannot(f"Extension {url} needs {element}.", "Subscription.channel")
    return value
