"""Quantity, number and composite filters -> SQL (http://hl7.org/fhir/R4/search.html#quantity, #combining).

The value of an Observation about a patient stands in its row and its kind, any other in rows of search_value. A list of values is one
join with unnest, so the plan is the same for one value and for two hundred.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.errors import Category, Fault
from fhir_server.search.definitions import Parameter
from fhir_server.search.params import RESULT_VALUE
from fhir_server.search.quantities import GREATEST, LEAST, Box, boxes
from fhir_server.search.query import split, unescape
from fhir_server.search.statement import Statement, kinds_of

_MATCH: Final = (
    "v.number >= q.low_from AND v.number <= q.low_to AND v.number_high >= q.high_from AND v.number_high <= q.high_to"
)


def boxes_of(value: str, kind: str, code: str) -> list[Box]:
    """A quantity (``number|system|code``, ``number||code``) or number as a client writes it. Raises Fault INVALID."""
    number, *unit = [unescape(p) for p in split(value, "|")]
    try:
        if unit and (kind == "number" or len(unit) != 2):
            raise ValueError("not number|system|code")
        named = (unit[0] or None, unit[1]) if unit and unit[1] else None
        return boxes(number.strip(), named)
    except ValueError:
        form = "5.4" if kind == "number" else "5.4|http://unitsofmeasure.org|mg"
        raise Fault(Category.INVALID, f"{code}: not a {kind} such as {form}.", where=code) from None


def rows(numbers: Sequence[int], wanted: Sequence[tuple[str, Box]], rtype: str, out: Statement) -> str:
    """The condition that a resource has a row of search_value in one of the boxes. Each box has a text to stand before its unit."""
    columns = ", ".join(
        [
            out.arg([before + box.unit for before, box in wanted], "text[]"),
            *_bounds([box for _, box in wanted], out),
        ]
    )
    return (
        f"(r.shard, r.id) IN (SELECT v.shard, v.id FROM unnest({columns}) AS q(unit, low_from, low_to, high_from, high_to), "  # noqa: S608
        f"search_value v WHERE v.rtype = {rtype} AND v.param = ANY({out.arg(list(numbers), 'smallint[]')}) "
        f"AND v.string = q.unit AND {_MATCH})"
    )


def _bounds(wanted: Iterable[Box], out: Statement) -> list[str]:
    _, *columns = zip(*wanted, strict=True)
    return [out.arg(list(column), "numeric[]") for column in columns]


def quantity(parameter: Parameter, wanted: Sequence[Box], type: str, out: Statement) -> tuple[str, str]:
    """(condition to look at row by row, condition that finds the rows by an index) for any of the boxes."""
    rtype = out.arg(RESOURCE_TYPES[type], "smallint")
    numbers = [path.number for path, _ in parameter.paths]
    stored = rows(numbers, [("", box) for box in wanted], rtype, out)
    if not any(path.text == RESULT_VALUE for path, _ in parameter.paths):
        return stored, stored
    unit = out.arg([box.unit[1:] if box.unit.startswith("|") else None for box in wanted], "text[]")
    base = out.arg([box.unit if box.unit.startswith("ucum:") else None for box in wanted], "text[]")
    other = out.arg(
        [bool(box.unit) and box.unit[0] != "|" and not box.unit.startswith("ucum:") for box in wanted], "bool[]"
    )
    columns = ", ".join([unit, base, other, *_bounds(wanted, out)])
    named = (
        f"unnest({columns}) AS q(unit, base, other, low_from, low_to, high_from, high_to) WHERE NOT q.other AND "
        "CASE WHEN q.unit IS NOT NULL THEN q.unit IN (k.unit, k.unit_text) "
        "WHEN q.base IS NOT NULL THEN q.base = k.base ELSE true END"
    )
    value = "r.number * CASE WHEN q.base IS NULL THEN 1 ELSE k.factor END"
    # As quantities.span, which rows of search_value went through when they were stored.
    near = "greatest(abs(x.v) * 1E-15, CASE WHEN x.v = 0 THEN 1E-15 ELSE 0 END)"
    low = f"CASE k.comparator WHEN '<' THEN {LEAST} WHEN '<=' THEN {LEAST} WHEN '>' THEN x.v + {near} ELSE x.v END"
    high = (
        f"CASE k.comparator WHEN '>' THEN {GREATEST} WHEN '>=' THEN {GREATEST} WHEN '<' THEN x.v - {near} ELSE x.v END"
    )
    flat = (
        f"r.number IS NOT NULL AND (EXISTS (SELECT FROM resource_kind k, {named} AND k.id = r.tokens[1] AND EXISTS ("  # noqa: S608
        f"SELECT FROM (SELECT {value} AS v) x WHERE {low} BETWEEN q.low_from AND q.low_to "
        f"AND {high} BETWEEN q.high_from AND q.high_to))) IS TRUE"
    )
    kinds = kinds_of([f"k.rtype = {rtype}", f"k.unit_text IS NOT NULL AND EXISTS (SELECT FROM {named})"])
    loose = kinds_of([f"k.rtype = {rtype}"])
    here = f"r.rtype = {rtype}{out.within}"
    kinds = kinds if all(box.unit for box in wanted) else loose
    return (
        f"(({flat}) OR {stored})",
        f"(r.shard, r.id) IN (SELECT r.shard, r.id FROM resource r WHERE {here} AND NOT r.deleted "  # noqa: S608
        f"AND r.tokens[1] = ANY({kinds}) AND {flat} UNION ALL SELECT r.shard, r.id FROM resource r WHERE {here} AND {stored})",
    )
