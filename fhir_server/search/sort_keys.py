"""``_sort`` by tokens, references, quantities, numbers and URIs (http://hl7.org/fhir/R4/search.html#sort).

Only hashes of tokens and references are indexed, so such an order is made from the bodies of all matches, up to MOST of them: a
patient's results, not the county's. Every key of the order is then read from the body, and pages continue after a place as elsewhere
(search/page).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Final

import orjson

from fhir_server.errors import Category, Fault
from fhir_server.search import dates, page
from fhir_server.search.definitions import Parameter
from fhir_server.search.leaves import Leaf, full_name, normalise, reference_text
from fhir_server.search.page import COLUMNS, Place, Row, Sql
from fhir_server.search.params import walk
from fhir_server.search.quantities import stored
from fhir_server.search.query import Query, Sort
from fhir_server.search.sql import where
from fhir_server.search.statement import Context, Statement

MOST: Final = 5000
"""Most matches that are sorted by their bodies."""
_PARTS: Final = ("text", "family", "city", "district", "state", "postalCode", "country")
_LISTS: Final = ("given", "prefix", "suffix", "line")

Key = str | datetime | Decimal


def needed(query: Query) -> bool:
    """Whether the order of the query is made from bodies."""
    return any(s.parameter is not None and s.parameter.kind not in ("string", "date") for s in query.sort)


def rows_of(
    query: Query, context: Context, decompress: Callable[..., bytes]
) -> Generator[Sql, Sequence[Row], list[Row]]:
    """The matches of one page in their order, and one more when there is one. Raises Fault INVALID when there are too many to sort."""
    place = page.decode(query)
    after = _typed(query, place) if place is not None else None
    out = Statement()
    conditions = " AND ".join(where(query, context, out).collected())
    rows = yield Sql(
        f"SELECT {COLUMNS}, r.start_at, r.issued_at FROM resource r WHERE {conditions} LIMIT {MOST + 1}",  # noqa: S608
        out.args,
    )
    if len(rows) > MOST:
        text = f"This order is made for up to {MOST} matches. Narrow the search, for example to one patient or a date."
        raise Fault(Category.INVALID, text, where="_sort")
    found = []
    for row in rows:
        body = orjson.loads(decompress(row["dict"], bytes(row["body"]), (row["id"], row["patient"], row["order"])))
        keys = [_key(query.type, s, row, body, context) for s in query.sort]
        if place is None or after is None or _is_after(query, keys, row, after, place):
            found.append((keys, row))
    found.sort(key=lambda f: (f[1]["shard"], f[1]["id"]))
    for i, sort in reversed(list(enumerate(query.sort))):
        there = [f for f in found if f[0][i] is not None]
        there.sort(key=_nth(i), reverse=sort.descending)
        found = [*there, *(f for f in found if f[0][i] is None)]
    return [{**row, **_told(keys)} for keys, row in found[: query.count + 1]]


def _nth(place: int) -> Callable[[tuple[Sequence[Any], Any]], Any]:
    return lambda found: found[0][place]


def _told(keys: Sequence[Key | None]) -> dict[str, str | datetime | None]:
    return {f"k{i}": str(k) if isinstance(k, Decimal) else k for i, k in enumerate(keys)}


def _typed(query: Query, place: Place) -> list[Key | None]:
    try:
        return [
            Decimal(str(key)) if key is not None and _is_number(sort) else key
            for key, sort in zip(place.keys, query.sort, strict=True)
        ]
    except (InvalidOperation, TypeError):
        raise Fault(
            Category.INVALID,
            "The page link does not belong to this search. Search again from the start.",
            where="_cursor",
        ) from None


def _is_number(sort: Sort) -> bool:
    return sort.parameter is not None and sort.parameter.kind in ("quantity", "number")


def _is_after(query: Query, keys: Sequence[Key | None], row: Row, after: Sequence[Any], place: Place) -> bool:
    for key, other, sort in zip(keys, after, query.sort, strict=True):
        if key == other:
            continue
        if key is None or other is None:
            return key is None
        return bool(key < other if sort.descending else key > other)
    return bool((row["shard"], row["id"]) > (place.shard, place.id))


def _key(type: str, sort: Sort, row: Row, body: Mapping[str, Any], context: Context) -> Key | None:
    """The least value for ascending, the greatest for descending order."""
    if sort.column:
        key: Key | None = row[sort.column]
        return key
    assert sort.parameter is not None  # what is no column has a parameter
    values: list[Key] = []
    for read in _readers(type, sort.parameter, sort.descending):
        read(body, values, context)
    return (max if sort.descending else min)(values, default=None)


Reader = Callable[[Mapping[str, Any], list[Key], Context], None]


@cache
def _readers(type: str, parameter: Parameter, descending: bool) -> tuple[Reader, ...]:
    return tuple(_reader(type, path.steps, parameter.kind, descending) for path, _ in parameter.paths)


def _reader(type: str, steps: Any, kind: str, descending: bool) -> Reader:
    if steps[0][0] == "deceased":
        return lambda body, values, _: values.append(
            "true" if "deceasedDateTime" in body or body.get("deceasedBoolean") is True else "false"
        )
    leaves = walk(type, steps, _Values(kind, descending))

    def read(body: Mapping[str, Any], values: list[Key], context: Context) -> None:
        found: list[Callable[[Context], Iterator[Key]]] = []
        for name, leaf in leaves:
            if name in body:
                leaf(body[name], found)
        for one in found:
            values.extend(one(context))

    return read


class _Values:
    """The end of a path: what a value of its datatype sorts by."""

    def __init__(self, kind: str, descending: bool) -> None:
        self._kind, self._descending = kind, descending

    def leaf(self, datatype: str) -> Leaf | None:
        kind, descending = self._kind, self._descending

        def keep(value: Any, found: list[Callable[[Context], Iterator[Key]]]) -> None:
            found.append(lambda context: _values(kind, datatype, value, descending, context))

        return keep


def _values(kind: str, datatype: str, value: Any, descending: bool, context: Context) -> Iterator[Key]:
    if kind in ("quantity", "number"):
        forms = list(stored(_exact(value)))
        if forms:
            yield forms[-1][2 if descending else 1]  # base units where there are some
    elif kind == "date":
        try:
            read = {"Period": dates.period, "Timing": dates.timing}.get(datatype, dates.span)
            found = read(value, context.zone)
        except (ValueError, TypeError, OverflowError):
            return
        if found is not None:
            yield found[1 if descending else 0]
    elif isinstance(value, dict):
        yield from (t for t in _texts(kind, value, context) if isinstance(t, str) and t)
    elif isinstance(value, bool):
        yield "true" if value else "false"
    elif value is not None:
        yield normalise(str(value)) if kind == "string" else str(value)


def _texts(kind: str, value: Mapping[str, Any], context: Context) -> Iterator[str]:
    if kind == "string":
        yield from (normalise(value[p]) for p in _PARTS if isinstance(value.get(p), str))
        yield from (normalise(t) for p in _LISTS for t in value.get(p, ()) if t)
        yield normalise(full_name(value))
    elif kind == "reference" and "resourceType" not in value:
        literal = value.get("reference")
        yield reference_text(literal, context.base) if literal else (value.get("identifier") or {}).get("value", "")
    elif "resourceType" in value:  # a resource in a Bundle
        yield f"{value['resourceType']}/{value.get('id', '')}"
    elif "coding" in value or "text" in value:
        codes = [c.get("code", "") for c in value.get("coding", ())]
        yield from codes or [value.get("text", "")]
    else:
        yield value.get("code") or value.get("value") or ""


def _exact(value: Any) -> Any:
    """Numbers as they are written: what orjson read as float."""
    if isinstance(value, float):
        return Decimal(str(value))
    if isinstance(value, dict):
        return {k: _exact(v) for k, v in value.items()}
    return value
