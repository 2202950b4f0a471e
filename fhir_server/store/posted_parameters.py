"""The table of posted SearchParameters: registered with the resource, learned by every process that writes or searches.

Whoever writes resources calls ``learn`` first, in the same transaction: it takes a shared lock that names the generation of parameters
it writes by. Who indexes what is stored (reindex) waits for the writers of older generations, and nobody for him.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg

from conformance import fhirjson
from fhir_server.errors import Category, Fault
from fhir_server.search import posted
from fhir_server.search.definitions import Parameter

log = logging.getLogger(__name__)

_SEEN = "SELECT search_generation(%s)"
_KNOWN = "SELECT number, definition, state FROM posted_parameter WHERE state <> 'gone' ORDER BY number"
_LAST = 32_000
"""search_value.param is a smallint."""
OFFICIAL = "http://hl7.org/fhir/SearchParameter/"
"""Canonical URLs of what is built in; such a resource is only stored."""


class _Learned:
    """What this process knows."""

    generation = 0


def learn(conn: psycopg.Connection[Any] | psycopg.Cursor[Any]) -> bool:
    """Takes over the parameters as they are now; True when they changed. One small round trip while nothing did."""
    changed = False
    while True:
        row = conn.execute(_SEEN, (_Learned.generation,)).fetchone()
        if row is None or row[0] == _Learned.generation:
            return changed
        found = conn.execute(_KNOWN).fetchall()
        posted.take_over(_usable(found))
        _Learned.generation, changed = row[0], True
        log.info("search_parameters_learned generation=%d parameters=%d", row[0], len(found))


def _usable(found: Sequence[tuple[int, str, str]]) -> Iterator[tuple[dict[str, Parameter], bool]]:
    for number, text, state in found:
        try:
            yield posted.compiled(fhirjson.loads(text), number), state == "ready"
        except posted.Unsupported as fault:
            # Accepted by another version of this program.
            log.warning("search_parameter_not_usable number=%d reason=%s", number, fault)


def in_force(resource: Mapping[str, Any]) -> bool:
    """True for a SearchParameter that takes effect: active, and none of the standard's own."""
    return resource.get("status") == "active" and not str(resource.get("url", "")).startswith(OFFICIAL)


def check(conn: psycopg.Connection[Any], resource: Mapping[str, Any]) -> None:
    """Raises Fault UNPROCESSABLE when a SearchParameter in force cannot be used here."""
    if not in_force(resource):
        return
    try:
        made = posted.compiled(resource, posted.FIRST)
    except posted.Unsupported as fault:
        raise Fault(Category.UNPROCESSABLE, str(fault), where=fault.where) from None
    for _, text, _ in conn.execute(_KNOWN).fetchall():
        other = fhirjson.loads(text)
        if other["code"] == resource["code"] and other["id"] != resource.get("id"):
            for name in posted.compiled(other, posted.FIRST):
                if name in made:
                    raise Fault(
                        Category.UNPROCESSABLE,
                        f"{name} has a search parameter {other['code']} already: SearchParameter/{other['id']}.",
                        where="SearchParameter.code",
                    )


def register(conn: psycopg.Connection[Any], resource: Mapping[str, Any]) -> None:
    """After a SearchParameter was stored: what stood for it is retired; in force, it is indexed from now on."""
    retire(conn, resource["id"])
    if not in_force(resource):
        return
    generation = _next(conn)
    row = conn.execute("SELECT coalesce(max(number) + 2, %s) FROM posted_parameter", (posted.FIRST,)).fetchone()
    if row is None or row[0] > _LAST:
        raise Fault(
            Category.CONFLICT, "No number is left for a search parameter: delete one and wait until it is gone."
        )
    conn.execute(
        "INSERT INTO posted_parameter (number, id, definition, state, generation) VALUES (%s, %s, %s, 'new', %s)",
        (row[0], resource["id"], fhirjson.dumps(resource).decode(), generation),
    )


def retire(conn: psycopg.Connection[Any], logical: str) -> None:
    """The SearchParameter takes no effect any more; its values are removed by and by."""
    live = conn.execute("SELECT FROM posted_parameter WHERE id = %s AND state <> 'gone'", (logical,)).fetchone()
    if live is not None:
        generation = _next(conn)
        conn.execute(
            "UPDATE posted_parameter SET state = 'gone', generation = %s WHERE id = %s AND state <> 'gone'",
            (generation, logical),
        )


def _next(conn: psycopg.Connection[Any] | psycopg.Cursor[Any]) -> int:
    """The next generation. Changes of parameters come one after the other."""
    row = conn.execute("UPDATE search_generation SET number = number + 1 RETURNING number").fetchone()
    assert row is not None  # the migration made the one row
    number: int = row[0]
    return number


def ready(cursor: psycopg.Cursor[Any], number: int) -> None:
    """The index of a parameter is complete: from now on it answers searches."""
    generation = _next(cursor)
    cursor.execute(
        "UPDATE posted_parameter SET state = 'ready', generation = %s WHERE number = %s AND state = 'building'",
        (generation, number),
    )
