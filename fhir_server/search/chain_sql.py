"""Chained parameters and ``_has`` -> SQL (http://hl7.org/fhir/R4/search.html#chaining, #has): the other end of a reference.

Each gives two forms of one condition on ``resource r``: one to look at row by row, by the primary key or an index of the other end; and
one that finds the rows from the other end. Whom a resource is about is a column; any other reference is a hash of ``Type/id``
which SQL can compute (leaves.hash_in_sql). OFFSET 0 has the other end read first: its size is unknown to the planner, its index is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.search.definitions import Parameter, Path, about
from fhir_server.search.leaves import COMMON_TARGETS, hash_in_sql
from fhir_server.search.statement import Statement

OF_ONE_PATIENT: Final = frozenset({"Observation"})
"""Types that resources of messages refer to within their own patient only, and of which there are most."""
FEW: Final = 300
"""Most resources at the other end whose hashes are looked for one by one."""


@dataclass(frozen=True, slots=True)
class Link:
    """parameter  the reference
    other      resource type of the other end: the one pointed to, or (``_has``) the one that points
    type       resource type of the rows
    reverse    ``_has``: the other end points here
    each, collected   conditions on the other end (sql.Where)
    narrow     they leave few rows
    """

    parameter: Parameter
    other: str
    type: str
    reverse: bool
    each: Sequence[str]
    collected: Sequence[str]
    narrow: bool = False

    @property
    def by_index(self) -> bool:
        """True when the second form reads only what matches at the other end."""
        return about(self.other, self.parameter) if self.reverse else True


def pointing_to(link: Link, out: Statement) -> tuple[str, str]:
    """Rows whose reference points to a resource of type ``other`` that meets the conditions."""
    each, collected = " AND ".join(link.each), " AND ".join(link.collected)
    if link.other == "Patient" and about(link.type, link.parameter):
        return (
            "EXISTS (SELECT FROM (SELECT r.shard AS shard, r.patient AS id) o, resource r "
            f"WHERE r.shard = o.shard AND r.id = o.id AND {each})",
            f"(r.shard, r.patient) IN (SELECT r.shard, r.id FROM resource r WHERE {collected}{out.within} OFFSET 0)",  # noqa: S608
        )
    hashes = " UNION ALL ".join(
        f"SELECT {_hash(path, link.other, out)} AS h FROM resource r WHERE {collected}"  # noqa: S608
        for path in _paths(link.parameter, link.other)
    )
    if not hashes:
        return "false", "false"
    if link.other in COMMON_TARGETS:
        kinds = f"SELECT k.id FROM resource_kind k WHERE k.tokens && ARRAY({hashes})"  # noqa: S608
        return f"r.tokens[1] IN ({kinds})", f"r.tokens[1] = ANY(ARRAY({kinds}))"
    one = f"EXISTS (SELECT FROM unnest(r.tokens) t(h) WHERE (t.h IN ({hashes})) IS TRUE)"
    if link.other in OF_ONE_PATIENT and not link.narrow:
        return _of_one_patient(link, hashes, one, out)
    if link.narrow or not out.window:
        return one, f"r.tokens && ARRAY({hashes})"
    return one, _few_or_many(hashes, one, RESOURCE_TYPES[link.type], out)


def _of_one_patient(link: Link, hashes: str, anywhere: str, out: Statement) -> tuple[str, str]:
    """What came by message refers to results of its own patient alone, so those of one patient are compared with each other, and no
    hash of every result in the house is computed. What was written through the API may refer to anything."""
    each, collected = " AND ".join(link.each), " AND ".join(link.collected)
    # Both forms name the same arguments, so the type is none.
    rtype = RESOURCE_TYPES[link.type]
    own = "(r.inbox IS NULL OR r.patient IS NULL)"
    ends = [_hash(path, link.other, out) for path in _paths(link.parameter, link.other)]
    near = " OR ".join(f"d.tokens @> ARRAY[{end}]" for end in ends)
    one = (
        "EXISTS (SELECT FROM (SELECT r.shard AS shard, r.patient AS patient, r.tokens AS tokens) d, resource r "
        f"WHERE r.shard = d.shard AND r.patient = d.patient AND {each} AND ({near})) OR {own} AND {anywhere}"
    )
    within = out.within
    ends_of = (
        f"SELECT r.shard, r.patient, ARRAY[{', '.join(ends)}] AS h FROM resource r WHERE {collected}{within} OFFSET 0"  # noqa: S608
    )
    found = (
        f"SELECT d.shard, d.rtype, d.id FROM ({ends_of}) o CROSS JOIN LATERAL (SELECT r.shard, r.rtype, r.id FROM resource r "  # noqa: S608
        f"WHERE r.shard = o.shard AND r.patient = o.patient AND r.rtype = {rtype} AND r.tokens && o.h OFFSET 0) d"
    )
    beyond = (
        f"SELECT r.shard, r.rtype, r.id FROM resource r WHERE r.rtype = {rtype}{within} AND {own} AND "  # noqa: S608
        + (
            _few_or_many(hashes, anywhere, RESOURCE_TYPES[link.type], out)
            if out.window
            else f"r.tokens && ARRAY({hashes})"
        )
    )
    # Looked at once and first: a code that no result has is answered without a look at the reports.
    any_at_all = f"EXISTS (SELECT FROM resource r WHERE {collected})"
    return f"({one})", f"({any_at_all} AND (r.shard, r.rtype, r.id) IN ({found} UNION ALL {beyond}))"


def _few_or_many(hashes: str, one: str, rtype: int, out: Statement) -> str:
    """Rows of a window by the index of tokens when few match at the other end, else each row of the window is looked at: an array of
    a hundred thousand hashes is no key to look for, and comparing it with every row is slower than anything."""
    kind, few = out.arg(rtype, "smallint"), out.arg(FEW, "int")
    some = "(SELECT f.h FROM f)"
    return (
        f"(r.shard, r.id) IN (WITH f AS MATERIALIZED (SELECT ARRAY(SELECT m.h FROM ({hashes}) m LIMIT {few} + 1) AS h) "  # noqa: S608
        # An expression instead of the column leaves the index of tokens as the only one.
        f"SELECT r.shard, r.id FROM resource r WHERE (r.rtype + 0) = {kind} AND cardinality({some}) <= {few} AND r.tokens && {some} "
        f"UNION ALL SELECT r.shard, r.id FROM resource r WHERE r.rtype = {kind}{out.within} AND cardinality({some}) > {few} AND {one})"
    )


def pointed_at_by(link: Link, out: Statement) -> tuple[str, str]:
    """Rows that a resource of type ``other`` points to which meets the conditions."""
    each, collected = " AND ".join(link.each), " AND ".join(link.collected)
    if link.type == "Patient" and about(link.other, link.parameter):
        return (
            "EXISTS (SELECT FROM (SELECT r.shard AS shard, r.id AS id) o, resource r "
            f"WHERE r.shard = o.shard AND r.patient = o.id AND {each})",
            f"(r.shard, r.id) IN (SELECT r.shard, r.patient FROM resource r WHERE {collected}{out.within} OFFSET 0)",  # noqa: S608
        )
    found = []
    for path in _paths(link.parameter, link.type):
        place = "r.tokens @> ARRAY[o.h]"
        if link.type in COMMON_TARGETS:
            place = "r.tokens[1] = ANY(ARRAY(SELECT k.id FROM resource_kind k WHERE k.tokens @> ARRAY[o.h]))"
        found.append(
            f"EXISTS (SELECT FROM (SELECT {_hash(path, link.type, out)} AS h) o, resource r WHERE {place} AND {each})"
        )
    one = " OR ".join(found) or "false"
    return f"({one})", f"({one})"


def _paths(parameter: Parameter, target: str) -> list[Path]:
    return [path for path, only in parameter.paths if only in ("", target)]


def _hash(path: Path, target: str, out: Statement) -> str:
    return hash_in_sql(out.arg(f"{path.seed}/{target}/", "text"), "r.id")
