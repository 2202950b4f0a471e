"""TQ1, and the TQ of ORC-7 and OBR-27 -> when and how often (guide: TQ1[ServiceRequest], TQ[ServiceRequest], RPT[Timing])."""

from __future__ import annotations

from typing import Any

from mappings import times
from mappings.code_table import table
from mappings.coded import concept
from mappings.context import Context
from mappings.datatypes import bare, cq_quantity, number, plain
from mappings.registry import call
from mappings.source import Element, Record

_START = 4
"""Component of TQ: start date and time, as OBR-6 and TQ1-7."""


@call("order_timing")
def order_timing(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """ORC-7 / OBR-27 (TQ, to version 2.5) -> quantity, times and priority (guide: TQ[ServiceRequest])."""
    element = record.get(x.field)[0]
    read: list[int] = []
    quantity = cq_quantity(_subs(element, 1), x)
    if quantity:
        out.setdefault("quantityQuantity", quantity)
        read.append(1)
    bounds = {}
    for component, key in ((4, "start"), (5, "end")):
        # An order's own start is what its message tells; on a report it is a leftover of the order, and holds nothing.
        moment = x.time(bare(element, component), x.severity("order" if component == _START else False))
        if moment:
            bounds[key] = moment.fhir
            read.append(component)
    if bounds and "occurrenceDateTime" not in out:
        out.setdefault("occurrenceTiming", {}).setdefault("repeat", {}).setdefault("boundsPeriod", bounds)
    row = table("Priority").get(bare(element, 6))
    if row:
        out.setdefault("priority", row.code)
        read.append(6)
    if plain(element, 8):
        out.setdefault("note", []).append({"text": plain(element, 8)})
        read.append(8)
    x.leftover(element, tuple(n for n in range(1, len(element) + 1) if n not in read), 0)
    return bool(read)


def _subs(element: Element, component: int) -> Element:
    found = element[component - 1] if component <= len(element) else ""
    return found if isinstance(found, tuple) else (found,)


def _repeat(out: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = out.setdefault("occurrenceTiming", {}).setdefault("repeat", {})
    return found


@call("repeat_pattern")
def repeat_pattern(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """TQ1-3 (RPT) -> occurrenceTiming.code, period (guide: RPT[Timing])."""
    element = record.get(3)[0]
    found = concept(_subs(element, 1), x, "repeat-patterns")
    if found:
        out.setdefault("occurrenceTiming", {})["code"] = found
    period, unit = number(bare(element, 5)), bare(element, 6)
    if period is not None and unit in ("s", "min", "h", "d", "wk", "mo", "a"):
        _repeat(out).update({"period": period, "periodUnit": unit, "frequency": 1})
    return bool(found) or period is not None


@call("time_of_day")
def time_of_day(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """TQ1-4 (repeats) -> timeOfDay."""
    found = [t for element in record.get(4) if (t := times.time_of_day(bare(element, 1)))]
    if found:
        _repeat(out)["timeOfDay"] = found
    return bool(found)


_TIME_UNITS = frozenset({"s", "min", "h", "d", "wk", "mo", "a"})


def _duration(element: Element, x: Context) -> dict[str, Any] | None:
    found = cq_quantity(element, x)
    return found if found and found.get("code") in _TIME_UNITS else None


@call("service_duration")
def service_duration(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """TQ1-6 -> boundsDuration, when its unit is a unit of time."""
    found = _duration(record.get(6)[0], x)
    if found:
        _repeat(out)["boundsDuration"] = found
    return bool(found)


@call("occurrence_duration")
def occurrence_duration(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """TQ1-13 -> duration and durationUnit."""
    found = _duration(record.get(13)[0], x)
    if found:
        _repeat(out).update({"duration": found["value"], "durationUnit": found["code"]})
    return bool(found)
