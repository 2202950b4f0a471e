"""``Observation/$lastn``: the last results of each kind (http://hl7.org/fhir/R4/observation-operation-lastn.html).

PostgreSQL gives the newest ``max`` of each resource_kind, which is finer than a code; Observations that share a coding are then one
group, also by way of a third that has both codings.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final

import orjson

from fhir_server.errors import Category, Fault
from fhir_server.search import include
from fhir_server.search.followed import followed
from fhir_server.search.page import COLUMNS, Row, Sql
from fhir_server.search.query import Query
from fhir_server.search.run import Decompress, Found, Hit, come_along, hit_of, settled
from fhir_server.search.sql import where
from fhir_server.search.statement import Context, Statement

MOST: Final = 10_000
"""Most Observations looked at."""
_WHEN: Final = "coalesce(r.start_at, r.effective_at, r.issued_at, r.reported_at)"
"""Null for a result without any date: when it was stored says nothing about its age, so it comes after those with one."""


def search(
    query: Query, most: int, context: Context, decompress: Decompress, *, allowed: Callable[[str], bool]
) -> Generator[Sql, Sequence[Row], Found]:
    """The newest ``most`` matches of each group, newest first; the group with the newest result first. As ``run.search`` otherwise."""
    query = yield from settled(query, decompress, allowed)
    query = yield from followed(query, context, decompress)
    out = Statement()
    found_by = where(query, context, out)
    conditions = " AND ".join(found_by.collected())
    rows = yield Sql(
        f'SELECT {COLUMNS}, s."when", s.common FROM (SELECT shard, id, rtype, "when", common, row_number() OVER '  # noqa: S608
        f'(PARTITION BY common, alone ORDER BY "when" DESC NULLS LAST, updated DESC, id) AS place '
        f'FROM (SELECT r.shard, r.id, r.rtype, r.updated, {_WHEN} AS "when", '
        "r.tokens[1] AS common, CASE WHEN k.code IS NULL AND k.name IS NULL AND k.loinc IS NULL THEN r.id END AS alone "
        f"FROM resource r JOIN resource_kind k ON k.id = r.tokens[1] WHERE {conditions}) c) s "
        "JOIN resource r ON r.shard = s.shard AND r.rtype = s.rtype AND r.id = s.id "
        f'WHERE s.place <= {out.arg(most, "bigint")} ORDER BY s."when" DESC NULLS LAST, r.updated DESC, r.id LIMIT {MOST + 1}',
        out.args,
        # Planning takes longer than finding the results of one patient.
        found_by.keyed and not query.includes,
    )
    if len(rows) > MOST:
        raise Fault(Category.INVALID, "Too many Observations. Ask for one patient, a category or a code.")
    found = Found()
    hits = [hit_of(query.type, row, decompress) for row in rows]
    for group in _groups(hits):
        found.matches.extend(group[:most])
    wanted = [i for i in query.includes if any(map(allowed, include.included_types(i)))]
    if wanted and found.matches:
        yield from come_along(wanted, found, context, decompress, allowed)
    found.total = len(found.matches)
    return Found(total=found.total) if query.summary == "count" else found


def _groups(hits: Sequence[Hit]) -> list[list[Hit]]:
    """Hits, newest first, in groups that share a coding (or the text, without a coding), each newest first."""
    group_of: dict[tuple[str, str], int] = {}
    merged: dict[int, int] = {}

    def root(number: int) -> int:
        while (above := merged.get(number, number)) != number:
            number = above
        return number

    placed: list[tuple[int, Hit]] = []
    for number, hit in enumerate(hits):
        codes = _codes(orjson.loads(hit.body)) or [("", f"\x1f{hit.id}")]
        known = {root(group_of[c]) for c in codes if c in group_of}
        mine = min(known, default=number)
        merged.update(dict.fromkeys(known, mine))
        group_of.update(dict.fromkeys(codes, mine))
        placed.append((mine, hit))
    groups: dict[int, list[Hit]] = {}
    for number, hit in placed:
        groups.setdefault(root(number), []).append(hit)
    return list(groups.values())


def _codes(observation: Mapping[str, Any]) -> list[tuple[str, str]]:
    code = observation.get("code", {})
    codings = [(c.get("system", ""), c["code"]) for c in code.get("coding", ()) if c.get("code")]
    return codings or ([("\x1f", code["text"])] if code.get("text") else [])
