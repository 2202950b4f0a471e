"""A message about an order that carries its ORC alone (``ORC|CA|PL1`` without OBR) says how every test of that order stands.

The OBR is optional (HL7 v2.5.1 section 4.4.1.1), and an order is stored under its number and test: the status goes to the tests of the
patient that bear the number and were stated before.
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
from fhir_server.store.statement import Key, said_at, with_status
from fhir_server.store.versions import Batch, stored_resource

_REQUESTS: Final = frozenset({RESOURCE_TYPES["ServiceRequest"]})


def follow(cursor: rows.Cursor, codec: Codec, batch: Batch) -> None:
    """Gives the tests of an order the status a statement about the whole order has. The locks of the patients of the batch are held;
    nothing is asked unless the batch has such a statement."""
    whole = [
        (key, version.statement)
        for key, version in joining.current(batch, _REQUESTS)
        if _is_whole(version.statement.resource) and not version.statement.mention and version.withdrawn is None
    ]
    if not whole:
        return
    written = {key: version.statement for key, version in joining.current(batch, _REQUESTS)}
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
        numbers = _numbers(statement.resource)
        for test, resource in tests.items():
            before = said_at(states[test].recency) <= said_at(statement.recency)
            if before and not _is_whole(resource) and numbers & _numbers(resource):
                changed[test] = with_status(resource, statement.resource["status"]), statement.origin
    turned = {key: new for key, new in changed.items() if new[0]["status"] != found[key].get("status")}
    joining.write(cursor, batch, turned, _REQUESTS)


def _is_whole(request: Mapping[str, Any]) -> bool:
    return "code" not in request and request["status"] != "unknown" and bool(request.get("identifier"))


def _numbers(request: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The placer's number of an order, else the filler's."""
    held = {
        c.get("code"): (i.get("system", ""), i["value"])
        for i in request.get("identifier") or ()
        for c in (i.get("type") or {}).get("coding") or ()
        if i.get("value")
    }
    return {held[kind] for kind in ("PLAC", "FILL") if kind in held}
