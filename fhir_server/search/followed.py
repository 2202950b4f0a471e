"""A chain in a search that names a patient, ids or an identifier (``DiagnosticReport?patient=1&result.code=718-7``): the few rows are
read, and the references in their bodies followed, instead of asking for all that matches at the other end.

Raises nothing and changes no answer: the chain becomes the list of the references that lead to a match.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from conformance.capability import RESOURCE_TYPES
from fhir_server.search import include
from fhir_server.search.definitions import about
from fhir_server.search.page import COLUMNS, Row, Sql
from fhir_server.search.query import Filter, Include, Query
from fhir_server.search.sql import where_of
from fhir_server.search.statement import Context, Statement
from mappings.ids import shard_of_id

MOST: Final = 1000
"""Most rows whose bodies are read; a search that leaves more is answered by the indexes (chain_sql)."""

Decompress = Callable[[int, bytes, Sequence[str | None]], bytes]


def followed(query: Query, context: Context, decompress: Decompress) -> Generator[Sql, Sequence[Row], Query]:
    """The query without such chains; yields statements and is sent their rows."""
    chains = [f for f in query.filters if f.kind == "chain" and f.inner and not _by_column(query.type, f)]
    others = [f for f in query.filters if f not in chains]
    if not chains or not others or not where_of(query.type, others, context, Statement()).narrow:
        return query
    out = Statement()
    conditions = " AND ".join(where_of(query.type, others, context, out).collected())
    rows = yield Sql(f"SELECT {COLUMNS} FROM resource r WHERE {conditions} LIMIT {MOST + 1}", out.args)  # noqa: S608
    if len(rows) > MOST:
        return query
    bodies = [
        orjson.loads(decompress(row["dict"], bytes(row["body"]), (row["id"], row["patient"], row["order"])))
        for row in rows
    ]
    for chain in chains:
        others.append((yield from _references(query.type, chain, bodies, context)))
    return replace(query, filters=others)


def _by_column(type: str, chain: Filter) -> bool:
    """The Patient that a resource is about stands in its row: such a chain needs no body."""
    assert chain.parameter is not None  # a chain has one
    return about(type, chain.parameter) and all(other == "Patient" for other, _ in chain.inner)


def _references(
    type: str, chain: Filter, bodies: Iterable[Mapping[str, Any]], context: Context
) -> Generator[Sql, Sequence[Row], Filter]:
    assert chain.parameter is not None
    found: list[str] = []
    for other, end in chain.inner:
        named = include.targets(Include(type, chain.parameter, other, False, False), bodies, context.base)
        ids = sorted(logical for _, logical in named)
        if not ids:
            continue
        out = Statement()
        given, rtype = out.arg(ids, "text[]"), out.arg(RESOURCE_TYPES[other], "smallint")
        shards = out.arg([-1 if (shard := shard_of_id(i)) is None else shard for i in ids], "smallint[]")
        ends = where_of(other, [end], context, out)
        # An id names its shard, or the directory client_id does.
        rows = yield Sql(
            f"SELECT r.id FROM unnest({given}, {shards}) AS n(id, derived) CROSS JOIN LATERAL ("  # noqa: S608 -- placeholders only
            f"SELECT r.id FROM resource r WHERE {' AND '.join(ends.each())} AND r.id = n.id AND r.shard IN "
            f"(n.derived, (SELECT c.shard FROM client_id c WHERE c.rtype = {rtype} AND c.id = n.id)) OFFSET 0) r",
            out.args,
        )
        found += [f"{other}/{row['id']}" for row in rows]
    if not found:
        return Filter("_id", "id", "", ())
    return Filter(chain.code, "reference", "", tuple(found), chain.parameter)
