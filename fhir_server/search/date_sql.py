"""Comparisons of dates in SQL (http://hl7.org/fhir/R4/search.html#prefix): every prefix, on spans and on instants."""

from __future__ import annotations

from fhir_server.search import dates
from fhir_server.search.statement import Context, Statement


def span_condition(low: str, high: str, prefix: str, wanted: dates.Span, context: Context, out: Statement) -> str:
    """R4 comparison of a stored span [low, high) with the searched one (http://hl7.org/fhir/R4/search.html#prefix)."""

    def a() -> str:
        return out.arg(wanted[0], "timestamptz")

    def b() -> str:
        return out.arg(wanted[1], "timestamptz")

    def inside() -> str:
        # The middle term says nothing new; it bounds the index range.
        return f"({low} >= {a()} AND {low} < {b()} AND {high} <= {b()})"

    if prefix == "ap":
        wanted = _around(wanted, context)
        return f"({low} < {b()} AND {high} > {a()})"
    if prefix == "ne":
        return f"({low} < {a()} OR {high} > {b()})"
    if prefix == "gt":
        return f"{high} > {b()}"
    if prefix == "lt":
        return f"{low} < {a()}"
    if prefix == "ge":
        return f"({high} > {b()} OR {inside()})"
    if prefix == "le":
        return f"({low} < {a()} OR {inside()})"
    if prefix == "sa":
        return f"{low} >= {b()}"
    if prefix == "eb":
        return f"{high} <= {a()}"
    return inside()


def instant_condition(column: str, prefix: str, wanted: dates.Span, context: Context, out: Statement) -> str:
    """The same for an instant, which is one point."""
    a, b = _around(wanted, context) if prefix == "ap" else wanted
    if prefix in ("eq", "ap"):
        return f"({column} >= {out.arg(a, 'timestamptz')} AND {column} < {out.arg(b, 'timestamptz')})"
    if prefix == "ne":
        return f"({column} < {out.arg(a, 'timestamptz')} OR {column} >= {out.arg(b, 'timestamptz')})"
    if prefix in ("gt", "sa"):
        return f"{column} >= {out.arg(b, 'timestamptz')}"
    if prefix == "ge":
        return f"{column} >= {out.arg(a, 'timestamptz')}"
    if prefix == "le":
        return f"{column} < {out.arg(b, 'timestamptz')}"
    return f"{column} < {out.arg(a, 'timestamptz')}"


def during(wanted: dates.Span, out: Statement) -> str:
    """The main date of a resource meets the span, or it has none (http://hl7.org/fhir/R4/patient-operation-everything.html)."""
    low, high = out.arg(wanted[0], "timestamptz"), out.arg(wanted[1], "timestamptz")
    return f"(r.start_at IS NULL OR (r.start_at < {high} AND r.end_at > {low}))"


def _around(wanted: dates.Span, context: Context) -> dates.Span:
    """``ap``: R4 recommends 10 % of the gap between now and the date."""
    gap = abs(context.now - wanted[0]) / 10
    low = wanted[0] - gap if wanted[0] - dates.EARLIEST > gap else dates.EARLIEST
    high = wanted[1] + gap if dates.LATEST - wanted[1] > gap else dates.LATEST
    return low, high
