"""Ledger rows become resources that the API can find (recognition.as_fhir): by a converter that has nothing else to do.

A row stands in ``ledger_news`` from the transaction that wrote it until the one that stored its resources, so none is left out and
none is made twice. The order-time answer never waits for this.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Final

import orjson
import psycopg

from fhir_server.errors import Fault
from fhir_server.publish import reopened
from fhir_server.recognition.as_fhir import Told, resources
from fhir_server.store import repository
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from mappings.catalogue import Catalogue

BATCH: Final = 20

_TAKE: Final = """
WITH taken AS (
  DELETE FROM ledger_news WHERE (chain, number) IN (
    SELECT chain, number FROM ledger_news ORDER BY chain, number LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING chain, number)
SELECT l.kind, l.at, l.facility, l.entry, l.chain, l.number FROM ledger l JOIN taken t ON t.chain = l.chain AND t.number = l.number
ORDER BY l.at, l.chain, l.number"""

# What a row of another version's shape, or a text no FHIR string may hold, comes to.
_UNFIT: Final = (Fault, KeyError, TypeError, psycopg.DataError, psycopg.IntegrityError)

log = logging.getLogger(__name__)


def publish(conn: psycopg.Connection[Any], codec: Codec, sensitive: Collection[str], batch: int = BATCH) -> int:
    """Stores the resources of up to ``batch`` rows in one transaction; how many rows were taken. Raises psycopg's errors."""
    with conn.transaction():
        taken = conn.execute(_TAKE, (batch,)).fetchall()
        for kind, at, facility, text, chain, number in taken:
            told = Told(kind, at, facility, orjson.loads(text))
            try:
                with conn.transaction():
                    if kind == "reopened":
                        reopened.record(conn, codec, told, chain, number)
                    for resource in resources(told, sensitive):
                        repository.put(conn, codec, resource, origin=Origin(facility, None, None, at))
            except _UNFIT as fault:
                # The ledger row stands; only its reading copy is missing, and the other rows must not wait for it.
                log.warning("a ledger row has no resource", extra={"reason": type(fault).__name__})
    return len(taken)


def not_shown(known: Catalogue) -> frozenset[str]:
    """Codes of all sensitive items, and of orderables with such a member: rows about them are not shown here."""
    items = {code for code, item in known.items.items() if item.sensitivity}
    panels = {o.code for o in known.orderables.values() if not items.isdisjoint((*o.required, *o.optional))}
    return frozenset(items | panels)
