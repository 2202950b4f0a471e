"""Pages by keyset: the next page begins after the last match shown, by value, not by number, so that it neither skips nor repeats
while others write (http://hl7.org/fhir/R4/http.html#paging).

Without ``_sort`` matches come in the order of (shard, id), which no update changes. With ``_sort`` that pair breaks ties. A key may be
absent: matches with the first key come first, in either direction, then those without it, each with a plain index range; absent
further keys come last.

What may match much or little is read in windows: parts of the data that follow each other in the order of the page, a range of
shards or of the first key. In each the matches are found by index and sorted, the next is as wide as the page still needs by the
density seen so far, and what was found is never thrown away. So a page of a frequent code costs what it holds, whatever the size of
the database, and a rare one is collected in at most four statements.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.errors import Category, Fault
from fhir_server.search.query import Query, Sort
from fhir_server.search.sql import where, where_of
from fhir_server.search.statement import Context, Statement
from fhir_server.search.where import Where
from mappings.ids import SHARDS

Row = Mapping[str, Any]
_WALK: Final = 4000
"""Rows of the type in the first window of an index on a sort key."""
_WIDEST: Final = 300_000
"""Most rows of the type in such a window; what matches less often is collected."""
_GROWTH: Final = 16
"""How many times as wide as all windows before it one may be."""
COLUMNS: Final = 'r.shard, r.id, r.version, r.updated, r.patient, r.dict, r.body, r."order"'
_NULLABLE: Final = frozenset({"start_at", "issued_at", "patient", ""})
_INDEXED: Final = frozenset({"start_at", "updated"})


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
    """Finished SQL text and its arguments. keyed: it finds its rows by a key, so its plan is the same for every value, and nothing
    comes after it that does not."""

    text: str
    args: list[Any]
    keyed: bool = False


def rows(query: Query, context: Context, limit: int) -> Generator[Sql, Sequence[Row], list[Row]]:
    """Yields the statements of one page, is sent their rows, returns at most ``limit`` of them. Columns: COLUMNS, then k0, k1, ...
    (sort keys)."""
    place = decode(query)
    out = Statement()
    conditions = where(query, context, out)
    wide = conditions.tokens and not conditions.narrow and all(sort.column for sort in query.sort)
    phases: Sequence[bool | None] = (None,)
    # Few rows are sorted in one go; many are read in the order of an index, one part of it after the other.
    if query.sort and query.sort[0].column in _NULLABLE and not conditions.narrow:
        phases = (True, False) if place is None or place.keys[0] is not None else (False,)
    found: list[Row] = []
    for number, present in enumerate(phases):
        part = _Part(query, context, place if number == 0 else None, present)
        missing = limit - len(found)
        if wide and (present is False or not query.sort):
            found.extend((yield from part.by_shard(missing)))
        elif wide and query.sort[0].column in _INDEXED:
            found.extend((yield from part.by_key(missing)))
        else:
            found.extend((yield part.statement(missing, (out, conditions) if number == 0 else None)))
        if len(found) == limit:
            break
    return found


def count(query: Query, context: Context) -> Sql:
    """Number of all matches, as one row with one column."""
    out = Statement()
    conditions = where(query, context, out)
    return Sql(f"SELECT count(*) FROM resource r WHERE {' AND '.join(conditions.collected())}", out.args)  # noqa: S608


@dataclass(frozen=True, slots=True)
class _Part:
    """Part of the matches that one index has in the order of the page.

    place: where it begins, None at its start. present: True for matches with the first key, False for those without, None for all.
    """

    query: Query
    context: Context
    place: Place | None
    present: bool | None

    def by_shard(self, limit: int) -> Generator[Sql, Sequence[Row], list[Row]]:
        """The first ``limit`` in the order of (shard, id), in windows."""
        found: list[Row] = []
        low = begin = self.place.shard if self.place else 0
        width = max(1, min(64, limit // 256))
        while low < SHARDS and len(found) < limit:
            high = low + width if low + width < SHARDS * 3 // 4 else SHARDS  # a small rest is not worth a statement
            found.extend((yield self.statement(limit - len(found), shards=(low, high))))
            low = high
            width = _next(low - begin, len(found), limit)
        return found

    def by_key(self, limit: int) -> Generator[Sql, Sequence[Row], list[Row]]:
        """The first ``limit`` in the order of an index on the first key, in windows. The last one has no end."""
        found: list[Row] = []
        begin: Any = None
        seen, width = 0, _WALK
        while len(found) < limit:
            end: Any = None
            if width <= _WIDEST and (found or seen < _WALK * _GROWTH):
                got = yield self._end(begin, width)
                end = got[0]["k0"] if got else None
            found.extend((yield self.statement(limit - len(found), keys=(begin, end))))
            if end is None:
                break
            begin, seen = end, seen + width
            width = _next(seen, len(found), limit)
        return found

    def _end(self, begin: Any, width: int) -> Sql:
        """Where the window after key ``begin`` ends that holds about ``width`` rows of the type, whatever they say."""
        out = Statement()
        times = [f for f in self.query.filters if f.of_time]
        (rtype, _, *ranges) = where_of(self.query.type, times, self.context, out).texts
        sort = self.query.sort[0]
        key = f"r.{sort.column}"
        texts = [rtype, *ranges, f"{key} IS NOT NULL"]
        start = begin if begin is not None or self.place is None else self.place.keys[0]
        if start is not None:
            texts.append(
                f"{key} {'<' if sort.descending else '>'}{'=' if begin is None else ''} {out.arg(start, _cast(sort))}"
            )
        text = f"SELECT {key} AS k0 FROM resource r WHERE {' AND '.join(texts)} ORDER BY {self._first(key)}"  # noqa: S608
        return Sql(f"{text} OFFSET {out.arg(width, 'bigint')} LIMIT 1", out.args)

    def statement(
        self,
        limit: int,
        begun: tuple[Statement, Where] | None = None,
        *,
        shards: tuple[int, int] | None = None,
        keys: tuple[Any, Any] | None = None,
    ) -> Sql:
        """All of it, or one window. begun: a statement with the conditions of the search in it. shards: from, to before. keys: after
        the first (None: from the start) to the second (None: to the end)."""
        out = Statement()
        if shards is not None:
            low, high = (out.arg(n, "smallint") for n in shards)
            out.window = f"r.shard >= {low} AND r.shard < {high}"
        out, conditions = begun or (out, where(self.query, self.context, out))
        named, joins = _keys(self.query.sort, out)
        texts = [*conditions.texts[:2], *filter(None, (out.window,))]
        if shards is not None and conditions.linked:
            # PostgreSQL cannot know how few reports the results of a window have: it would walk all reports beside them.
            texts[0] = texts[0].replace("r.rtype", "(r.rtype + 0)")
        if self.present is not None:
            texts.append(f"{named[0]} IS {'NOT ' if self.present else ''}NULL")
        if self.place is not None:
            texts.extend(_after(self.query, named, self.place, self.present, out))
        if keys is not None:
            texts.extend(self._between(named[0], keys, out))
        bounded = keys is not None and keys[1] is not None
        texts.extend((conditions.each() if bounded else conditions.collected())[2:])
        order = self._order(named)
        # An expression instead of the column keeps PostgreSQL from walking an index for the order; a window may be walked.
        collect = (conditions.narrow or conditions.tokens) and not bounded
        order += ["(r.shard + 0)" if collect else "r.shard", "r.id"]
        columns = COLUMNS + "".join(f", {key} AS k{i}" for i, key in enumerate(named))
        text = f"SELECT {columns} FROM resource r{joins} WHERE {' AND '.join(texts)} ORDER BY {', '.join(order)}"  # noqa: S608
        keyed = conditions.keyed and not self.query.includes and self.query.total == "none"
        return Sql(f"{text} LIMIT {out.arg(limit, 'bigint')}", out.args, keyed)

    def _between(self, key: str, keys: tuple[Any, Any], out: Statement) -> list[str]:
        sort = self.query.sort[0]
        begin, end = keys
        texts = []
        if begin is not None:
            texts.append(f"{key} {'<' if sort.descending else '>'} {out.arg(begin, _cast(sort))}")
        if end is not None:
            texts.append(f"{key} {'>=' if sort.descending else '<='} {out.arg(end, _cast(sort))}")
        return texts

    def _order(self, keys: Sequence[str]) -> list[str]:
        order = []
        for i, (key, sort) in enumerate(zip(keys, self.query.sort, strict=True)):
            if i == 0 and self.present is False:
                continue
            order.append(self._first(key) if i == 0 else f"{key} {'DESC' if sort.descending else 'ASC'} NULLS LAST")
        return order

    def _first(self, key: str) -> str:
        sort = self.query.sort[0]
        nulls = " NULLS LAST"
        if sort.column not in _NULLABLE:
            nulls = ""
        elif self.present and not sort.descending:
            # No key is absent here, so the order of nulls is free: this one reads the index (rtype, start_at DESC NULLS LAST) backward.
            nulls = " NULLS FIRST"
        return f"{key} {'DESC' if sort.descending else 'ASC'}{nulls}"


def _next(seen: int, found: int, limit: int) -> int:
    """Width of the next window, after ``seen`` of the same kind held ``found`` of ``limit`` matches: a quarter more than needed."""
    most = seen * _GROWTH
    return min(most, (limit - found) * seen * 5 // (found * 4) + 1) if found else most


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
    rtype = out.arg(RESOURCE_TYPES[query.type], "smallint")
    # The row comparison names all columns of the primary key, so that it is one index range.
    exact = f"(r.shard, r.rtype, r.id) > ({shard}, {rtype}, {logical})"
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


def place_of(query: Query, row: Row) -> Place:
    """The place of a result row (a mapping with shard, id, k0, k1, ...)."""
    return Place(tuple(row[f"k{i}"] for i in range(len(query.sort))), row["shard"], row["id"])
