"""Pages by keyset: the next page begins after the last match shown, by value, not by number, so that it neither skips nor repeats
while others write (http://hl7.org/fhir/R4/http.html#paging).

Without ``_sort`` matches come in the order of (shard, id), which no update changes. With ``_sort`` that pair breaks ties. A key may be
absent: matches with the first key come first, in either direction, then those without it (two statements, each with a plain index
range); absent further keys come last.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from fhir_server.errors import Category, Fault
from fhir_server.search.query import Query, Sort
from fhir_server.search.sql import where
from fhir_server.search.statement import Context, Statement

WALK: Final = 4000
"""Rows that a walk in page order looks at before matches are collected instead."""
COLUMNS: Final = 'r.shard, r.id, r.version, r.updated, r.patient, r.dict, r.body, r."order"'
_NULLABLE: Final = frozenset({"start_at", "issued_at", "patient", ""})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page begins: after this match. ``keys`` are its sort values, None for an absent one."""

    keys: tuple[str | datetime | None, ...]
    shard: int
    id: str


def encode(query: Query, place: Place) -> str:
    """The place as an opaque text for a link; it holds for the same search only."""
    keys = [k.isoformat() if isinstance(k, datetime) else k for k in place.keys]
    text = json.dumps([_digest(query), keys, place.shard, place.id], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(query: Query) -> Place | None:
    """The place named by the query's cursor, None without one. Raises Fault INVALID when it was not made for this search."""
    if not query.cursor:
        return None
    try:
        raw = base64.urlsafe_b64decode(query.cursor + "=" * (-len(query.cursor) % 4))
        digest, keys, shard, logical = json.loads(raw)
        if digest != _digest(query) or len(keys) != len(query.sort):
            raise ValueError("made for another search")
        if not isinstance(logical, str) or type(shard) is not int or not 0 <= shard < 32768:
            raise ValueError("not a place")
        read = tuple(
            datetime.fromisoformat(k) if k is not None and _cast(s) == "timestamptz" else k
            for k, s in zip(keys, query.sort, strict=True)
        )
        if any(isinstance(k, datetime) and k.tzinfo is None for k in read):
            raise ValueError("not a place")
    except (ValueError, TypeError):
        raise Fault(
            Category.INVALID,
            "The page link does not belong to this search. Search again from the start.",
            where="_cursor",
        ) from None
    return Place(read, shard, logical)


def _digest(query: Query) -> str:
    """Twelve characters that change with what is searched and how it is sorted; the page size may change between pages."""
    told = [
        query.type if query.place is None else f"/{query.place}",
        *(f"{n}={v}" for n, v in query.used if n not in ("_count", "_total", "_summary", "_elements")),
    ]
    return hashlib.blake2b("\x1f".join(told).encode(), digest_size=9).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Sql:
    """Finished SQL text and its arguments. ``trial``: when it gives fewer rows than asked for, they count for nothing."""

    text: str
    args: list[Any]
    trial: bool = False


def statements(query: Query, context: Context, limit: int) -> list[Sql]:
    """The statements of one page, to be run in order until ``limit`` rows are there. Columns: COLUMNS, then k0, k1, ... (sort keys)."""
    place = decode(query)
    phases: Sequence[bool | None] = (None,)
    # Few rows are sorted in one go; many are read in the order of an index, one part of it after the other.
    if query.sort and query.sort[0].column in _NULLABLE and not where(query, context, Statement()).narrow:
        phases = (True, False) if place is None or place.keys[0] is not None else (False,)
    out = []
    for number, phase in enumerate(phases):
        out.extend(_phase(query, context, limit, place if number == 0 else None, phase))
    return out


def count(query: Query, context: Context) -> Sql:
    """Number of all matches, as one row with one column."""
    out = Statement()
    conditions = where(query, context, out)
    return Sql(f"SELECT count(*) FROM resource r WHERE {' AND '.join(conditions.collected())}", out.args)  # noqa: S608


def _phase(query: Query, context: Context, limit: int, place: Place | None, present: bool | None) -> list[Sql]:
    """``present``: True for rows with the first key, False for those without, None for all.

    A token search that may match much or little tries a walk of WALK rows in page order first: where every hundredth row matches,
    that fills the page. What matches less is collected by the GIN index and sorted. Either way the work has a bound.
    """
    out = Statement()
    conditions = where(query, context, out)
    keys, joins = _keys(query.sort, out)
    bounds = []
    if present is not None:
        bounds.append(f"{keys[0]} IS {'NOT ' if present else ''}NULL")
    if place is not None:
        bounds.extend(_after(query, keys, place, present, out))
    order = []
    for i, (key, sort) in enumerate(zip(keys, query.sort, strict=True)):
        if i == 0 and present is False:
            continue
        nulls = " NULLS LAST"
        if i == 0 and sort.column not in _NULLABLE:
            nulls = ""
        elif i == 0 and present and not sort.descending:
            # No key is absent here, so the order of nulls is free: this one reads the index (rtype, start_at DESC NULLS LAST) backward.
            nulls = " NULLS FIRST"
        order.append(f"{key} {'DESC' if sort.descending else 'ASC'}{nulls}")
    named = COLUMNS + "".join(f", {key} AS k{i}" for i, key in enumerate(keys))
    last = f"LIMIT {out.arg(limit, 'bigint')}"
    always, rest = conditions.texts[:2], conditions.collected()[2:]
    walked = ", ".join([*order, "r.shard", "r.id"])
    # An expression instead of the column keeps PostgreSQL from walking an index for the order.
    sorted_ = ", ".join([*order, "(r.shard + 0)", "r.id"])
    found = []
    if conditions.tokens and not conditions.narrow and not joins:
        steps = WALK * 8 // max(8, conditions.longest)
        inner = f"SELECT * FROM resource r WHERE {' AND '.join([*always, *bounds])} ORDER BY {walked} LIMIT {steps}"  # noqa: S608
        text = f"SELECT {named} FROM ({inner}) r WHERE {' AND '.join(conditions.each()[2:])} ORDER BY {walked} {last}"  # noqa: S608
        found.append(Sql(text, out.args, trial=True))
    collect = conditions.narrow or conditions.tokens
    text = " AND ".join([*always, *bounds, *rest])
    order_by = sorted_ if collect else walked
    found.append(Sql(f"SELECT {named} FROM resource r{joins} WHERE {text} ORDER BY {order_by} {last}", out.args))  # noqa: S608
    return found


def _keys(sorts: Sequence[Sort], out: Statement) -> tuple[list[str], str]:
    keys, joins = [], ""
    for i, sort in enumerate(sorts):
        if sort.column:
            keys.append(f"r.{sort.column}")
            continue
        # The least value for ascending, the greatest for descending order (R4 leaves the choice among several values open).
        column = ("v.high" if sort.descending else "v.low") if sort.dates else "v.string"
        numbers = out.arg(list(sort.numbers), "smallint[]")
        joins += (
            f" LEFT JOIN LATERAL (SELECT {'max' if sort.descending else 'min'}({column}) AS k FROM search_value v "  # noqa: S608
            f"WHERE v.shard = r.shard AND v.rtype = r.rtype AND v.id = r.id AND v.param = ANY({numbers})) s{i} ON true"
        )
        keys.append(f"s{i}.k")
    return keys, joins


def _cast(sort: Sort) -> str:
    return "timestamptz" if sort.dates or sort.column in ("updated", "start_at", "issued_at") else "text"


def _after(query: Query, keys: list[str], place: Place, present: bool | None, out: Statement) -> list[str]:
    """Conditions for the rows after a place: an index range for the first key, then the exact order."""
    shard, logical = out.arg(place.shard, "smallint"), out.arg(place.id, "text")
    # The row comparison names all columns of the primary key, so that it is one index range.
    exact = f"(r.shard, r.rtype, r.id) > ({shard}, $1::smallint, {logical})"
    sorts = list(zip(keys, query.sort, place.keys, strict=True))
    for i, (key, sort, value) in reversed(list(enumerate(sorts))):
        if value is None:
            exact = f"({key} IS NULL AND {exact})"
            continue
        at = out.arg(value, _cast(sort))
        after = f"{key} {'<' if sort.descending else '>'} {at}"
        if sort.column in _NULLABLE and not (i == 0 and present):
            after = f"({after} OR {key} IS NULL)"
        exact = f"({after} OR ({key} = {at} AND {exact}))"
    if not sorts or present is False or (present is None and sorts[0][1].column in _NULLABLE):
        return [exact]
    key, sort, value = sorts[0]
    return [f"{key} {'<=' if sort.descending else '>='} {out.arg(value, _cast(sort))}", exact]


def place_of(query: Query, row: Any) -> Place:
    """The place of a result row (a mapping with shard, id, k0, k1, ...)."""
    return Place(tuple(row[f"k{i}"] for i in range(len(query.sort))), row["shard"], row["id"])
