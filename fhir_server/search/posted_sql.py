"""Filters by posted parameters whose values are texts, and ``:missing`` of any of them -> SQL on rows of search_value."""

from __future__ import annotations

from collections.abc import Iterable

from fhir_server.search.definitions import Parameter
from fhir_server.search.leaves import STRING_LENGTH
from fhir_server.search.query import Filter
from fhir_server.search.statement import Statement


def as_text(f: Filter) -> bool:
    """True when the condition is made here; others are those of any parameter whose values stand in search_value."""
    if f.modifier == "missing":
        return True
    if f.kind in ("date", "number", "quantity") or (f.kind, f.modifier) == ("uri", "below"):
        return False
    return f.kind != "string" or f.modifier == "exact"


def condition(f: Filter, parameter: Parameter, forms: Iterable[str], rtype: int, out: Statement) -> str:
    """The condition on ``resource r``. forms: the texts that the values of the filter ask for."""
    number = out.arg(parameter.own + (f.modifier == "exact"), "smallint")
    here = "v.shard = r.shard AND v.rtype = r.rtype AND v.id = r.id"
    if f.modifier == "missing":
        sense = "NOT " if f.values == ("true",) else ""
        return f"{sense}EXISTS (SELECT FROM search_value v WHERE {here} AND v.param = {number})"
    texts = out.arg([t[:STRING_LENGTH] for t in sorted(forms)], "text[]")
    if f.modifier == "not":
        return (
            f"NOT EXISTS (SELECT FROM search_value v WHERE {here} AND v.param = {number} AND v.string = ANY({texts}))"
        )
    return (
        "(r.shard, r.id) IN (SELECT v.shard, v.id FROM search_value v "  # noqa: S608 -- placeholders only
        f"WHERE v.rtype = {out.arg(rtype, 'smallint')} AND v.param = {number} AND v.string = ANY({texts}))"
    )
