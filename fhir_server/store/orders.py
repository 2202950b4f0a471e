"""A message about an order that carries its ORC alone (``ORC|CA|PL1`` without OBR) says how every test of that order stands.

The OBR is optional (HL7 v2.5.1 section 4.4.1.1), and an order is stored under its number and test: the status goes to the tests of the
patient that bear the number and were stated before, also when they arrive later. A new order sent again as it was says nothing new: one
that was cancelled since stays cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.search import params
from fhir_server.store import joining, rows
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from fhir_server.store.joining import Resource
from fhir_server.store.statement import Key, Statement, said_at, with_status
from fhir_server.store.versions import Batch, stored_resource
from mappings import ids

_REQUESTS: Final = frozenset({RESOURCE_TYPES["ServiceRequest"]})


def follow(cursor: rows.Cursor, codec: Codec, batch: Batch) -> None:
    """Gives the tests of an order the status a statement about the whole order has. The locks of the patients of the batch are held;
    nothing is asked unless the batch has such a statement, or an order."""
    now = list(joining.current(batch, _REQUESTS))
    stated = {key: v.statement for key, v in now if not v.statement.mention and v.withdrawn is None}
    if not stated:
        return
    written = {key: version.statement for key, version in now}
    joining.write(cursor, batch, _told_before(cursor, codec, batch, stated), _REQUESTS)
    whole = [(key, statement) for key, statement in stated.items() if _is_whole(statement.resource)]
    found: dict[Key, Resource] = {}
    changed: dict[Key, tuple[Resource, Origin]] = {}
    for key, statement in sorted(whole, key=lambda one: said_at(one[1].recency)):
        tests = {k: s.resource for k, s in written.items() if (k[0], s.patient) == (key[0], statement.patient)}
        tokens = params.extract(
            {"resourceType": "ServiceRequest", "identifier": statement.resource["identifier"]}
        ).tokens
        for stored, _, body in rows.of_patients(cursor, [(key[0], statement.patient or "")], sorted(_REQUESTS), tokens):
            if stored not in tests:
                tests[stored] = stored_resource(codec, body)
        found |= tests
        states = {**rows.states(cursor, tests), **batch.after}
        for test, resource in tests.items():
            before = said_at(states[test].recency) <= said_at(statement.recency)
            if before and not _is_whole(resource) and _same_order(statement.resource, resource):
                changed[test] = with_status(resource, statement.resource["status"]), statement.origin
    turned = {key: new for key, new in changed.items() if new[0]["status"] != found[key].get("status")}
    joining.write(cursor, batch, turned, _REQUESTS)


def _told_before(
    cursor: rows.Cursor, codec: Codec, batch: Batch, stated: Mapping[Key, Statement]
) -> dict[Key, tuple[Resource, Origin]]:
    """The tests of the batch whose order was stated as a whole at a later time, in a message that arrived before."""
    homes: dict[Key, list[Key]] = {}
    for key, statement in stated.items():
        for number in {} if _is_whole(statement.resource) else _numbers(statement.resource).values():
            named = (statement.origin.facility, "ServiceRequest", statement.patient or "", *number, "")
            homes.setdefault((key[0], key[1], ids.logical_id(key[0], *named)), []).append(key)
    states = {k: s for k, s in rows.states(cursor, homes.keys() - stated.keys()).items() if s.withdrawn is None}
    changed: dict[Key, tuple[Resource, Origin]] = {}
    for home, body in rows.bodies(cursor, states).items():
        whole, said = stored_resource(codec, body), said_at(states[home].recency)
        for key in homes[home]:
            test = stated[key].resource
            before = said_at(batch.after[key].recency) <= said
            if before and _is_whole(whole) and _same_order(whole, test) and test.get("status") != whole["status"]:
                changed[key] = with_status(test, whole["status"]), stated[key].origin
    return changed


def _is_whole(request: Mapping[str, Any]) -> bool:
    return "code" not in request and request["status"] != "unknown" and bool(request.get("identifier"))


def _same_order(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """By the placer's numbers; by the filler's where one of the two has no placer's."""
    a, b = _numbers(one), _numbers(other)
    kind = next((kind for kind in ("PLAC", "FILL") if kind in a and kind in b), "")
    return bool(kind) and a[kind] == b[kind]


def _numbers(request: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The placer's (PLAC) and the filler's (FILL) number of an order: system and value."""
    held = {
        c.get("code"): (i.get("system", ""), i["value"])
        for i in request.get("identifier") or ()
        for c in (i.get("type") or {}).get("coding") or ()
        if i.get("value")
    }
    return {kind: held[kind] for kind in ("PLAC", "FILL") if kind in held}
