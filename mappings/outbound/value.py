"""Observation.value[x] -> OBX-2, OBX-5 and OBX-6.

The value could have been sent in several ways. They are tried in order of preference, each is read as the receiver would read it
(``mappings.values.typed``), and the first that gives the same value is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from conformance import systems
from conformance.fhirjson import JsonNumber
from mappings import values
from mappings.outbound.dialect import Dialect
from mappings.outbound.line import trimmed
from mappings.results import SOURCE_UNIT
from mappings.source import NULL, Element
from mappings.units import Unit

_UNREADABLE = re.compile(r"([<>]?=?)(.*)([\d+])", re.DOTALL)

Written = tuple[str, tuple[Element, ...]]
"""OBX-2, and the repetitions of OBX-5."""

_ABSENT_WORDS = {"not-performed": "未做", "temp-unknown": "待测", "as-text": "见报告", "error": "***"}
"""data-absent-reason -> a word the reader takes for it."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a reader of the value will know: unit, range text, unit of the catalogue item; narrative: the text is part of a report."""

    dialect: Dialect
    unit: Unit | None
    range_text: str
    expected_unit: str
    narrative: bool = False


def unit_element(observation: dict[str, Any]) -> Element:
    """OBX-6: UCUM code and the unit as the laboratory writes it, its text alone when it has no UCUM code; () when there is none."""
    source = next((e["valueString"] for e in observation.get("extension", ()) if e["url"] == SOURCE_UNIT), "")
    quantity = next(_quantities(observation), {"unit": source} if source else next(_bounds(observation), {}))
    text, code = quantity.get("unit", ""), quantity.get("code", "") if quantity.get("system") == systems.UCUM else ""
    if code:
        return trimmed(code, "" if text == code else text, "UCUM")
    return (text,) if text else ()


def _bounds(observation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in observation.get("referenceRange", ()):
        yield from (q for q in map(entry.get, ("low", "high")) if q)


def _quantities(observation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for holder in (observation, *observation.get("component", ())):
        if "valueQuantity" in holder:
            yield holder["valueQuantity"]
        if "valueRatio" in holder:
            yield from (q for q in map(holder["valueRatio"].get, ("numerator", "denominator")) if q)
        if "valueRange" in holder:
            yield from (q for q in map(holder["valueRange"].get, ("low", "high")) if q)


def range_text(observation: dict[str, Any]) -> str:
    """OBX-7: the range as the laboratory wrote it, else made of its bounds."""
    found = []
    for entry in observation.get("referenceRange", ()):
        low, high = (digits(entry[k]["value"]) if "value" in entry.get(k, {}) else "" for k in ("low", "high"))
        made = f"{low}-{high}" if low and high else f">={low}" if low else f"<={high}" if high else ""
        found.append(entry.get("text") or made)
    return "~".join(t for t in found if t)


def digits(value: Any) -> str:
    """A JSON number with the digits it was stored with."""
    return value.text if isinstance(value, JsonNumber) else str(value)


def write(holder: dict[str, Any], context: Context) -> Written:
    """The value of an Observation or component. Without one: OBX-2 ``ST``, and the reason as a word where there is one for it."""
    wanted = _value(holder)
    if "dataAbsentReason" in wanted and "extension" not in wanted:
        return next(_candidates(holder, wanted, context))
    if "valueCodeableConcept" in wanted and wanted["valueCodeableConcept"].get("coding") and not _is_finding(wanted):
        return "CWE", (context.dialect.coded(wanted["valueCodeableConcept"], "answers"),)
    best: Written | None = None
    for candidate in _candidates(holder, wanted, context):
        found = _read(candidate, context)
        if found == wanted:
            return candidate
        if best is None and _bare(found) == _bare(wanted):
            best = candidate
    if best is not None:
        return best
    return next(_candidates(holder, wanted, context), ("", ()))


def write_components(components: list[dict[str, Any]], context: Context) -> Written | None:
    """Components that are the repetitions of one OBX-5 -> that OBX-5; None when no one data type holds them all."""
    parts = [write(c, context) for c in components]
    kinds = {kind for kind, _ in parts}
    for kind in ("NM", "SN", "CWE", "TS", "DT", "TM", "DR"):
        if kind not in kinds:
            continue
        written: Written = kind, tuple(element for _, found in parts for element in found)
        if kind == "CWE" and kinds == {kind}:
            return written
        typed = _typed(written, context)
        if [_bare({k: v for k, v in c.items() if k != "code"}) for c in components] == [
            _bare(c) for c in typed.components
        ]:
            return written
    return None


def _value(holder: dict[str, Any]) -> dict[str, Any]:
    """The value with its source text, or why there is none: what ``values.typed`` gives."""
    out = {k: v for k, v in holder.items() if k.startswith("value") or k == "dataAbsentReason"}
    source = [e for e in holder.get("extension", ()) if e["url"] == systems.SOURCE_TEXT]
    return {**out, "extension": source} if source and "dataAbsentReason" in out else out


def _is_finding(value: dict[str, Any]) -> bool:
    return all(c.get("system") == systems.INTERPRETATION for c in value["valueCodeableConcept"]["coding"])


def _bare(value: dict[str, Any]) -> dict[str, Any]:
    """Without source texts: the same measurement."""
    out = {k: v for k, v in value.items() if k != "extension"}
    return {k: {i: j for i, j in v.items() if i != "extension"} if isinstance(v, dict) else v for k, v in out.items()}


def _typed(candidate: Written, context: Context) -> values.Typed:
    return values.typed(
        candidate[0],
        candidate[1],
        context.unit,
        zone=context.dialect.zone,
        concept=lambda e: {"text": values.joined(e).lstrip("^")} if len(e) == 2 else None,
        expected_unit=context.expected_unit,
        range_text=context.range_text,
    )


def _read(candidate: Written, context: Context) -> dict[str, Any]:
    return _typed(candidate, context).value


def _candidates(holder: dict[str, Any], wanted: dict[str, Any], context: Context) -> Iterator[Written]:
    for key, value in wanted.items():
        match key:
            case "valueQuantity":
                yield from _numbers(value)
            case "valueRatio":
                top, bottom = value.get("numerator", {}), value.get("denominator", {})
                yield from _structured(top.get("comparator", ""), top, ":", bottom)
            case "valueRange":
                yield from _ranges(value)
            case "valueString":
                yield from _texts(value, context)
            case "valueCodeableConcept":
                yield "ST", ((value.get("text", ""),),)
                yield "CWE", (("", value.get("text", "")),)
                yield "IS", ((value.get("text", ""),),)
            case "valueDateTime":
                yield ("TS" if "T" in value else "DT"), ((context.dialect.time(value),),)
            case "valueTime":
                yield "TM", ((value.replace(":", ""),),)
            case "valuePeriod":
                ends = (context.dialect.time(value.get(k, "")) for k in ("start", "end"))
                yield "DR", (trimmed(*ends),)
            case "valueBoolean":
                yield "ID", (("Y" if value else "N",),)
            case "valueInteger":
                yield "NM", ((str(value),),)
            case "dataAbsentReason":
                code = next((c.get("code", "") for c in value.get("coding", ())), "")
                yield from _absent(code, holder.get("status", ""))
    for source in _sources(wanted, holder):
        yield "ST", ((source,),)
        yield "NM", ((source,),)
        if "^" in source:
            yield "SN", (tuple(source.split("^")),)


def _absent(code: str, status: str) -> Iterator[Written]:
    """An empty field where it says the same by itself, else a word for the reason, else HL7 null."""
    implied = {"cancelled": ("not-asked", "not-performed"), "registered": ()}.get(status, ("unknown",))
    if code in implied:
        yield "", ()
    if code in _ABSENT_WORDS:
        yield "ST", ((_ABSENT_WORDS[code],),)
    yield "ST", ((NULL,),)


def _sources(wanted: dict[str, Any], holder: dict[str, Any]) -> Iterator[str]:
    places = [holder, *(v for v in wanted.values() if isinstance(v, dict))]
    for place in places:
        yield from (e["valueString"] for e in place.get("extension", ()) if e["url"] == systems.SOURCE_TEXT)


def _numbers(quantity: dict[str, Any]) -> Iterator[Written]:
    if "value" not in quantity:
        return
    comparator, number = quantity.get("comparator", ""), digits(quantity["value"])
    if comparator:
        yield "SN", ((comparator, number),)
        yield "ST", ((comparator + number,),)
    else:
        yield "NM", ((number,),)
        yield "SN", (("", number),)


def _structured(comparator: str, first: dict[str, Any], mark: str, second: dict[str, Any]) -> Iterator[Written]:
    if "value" not in first or "value" not in second:
        return
    one, two = digits(first["value"]), digits(second["value"])
    yield "SN", ((comparator, one, mark, two),)
    yield "ST", ((f"{comparator}{one}{mark}{two}",),)


def _ranges(value: dict[str, Any]) -> Iterator[Written]:
    low, high = value.get("low", {}), value.get("high", {})
    yield from _structured("", low, "-", high)
    ends = (digits(q["value"]) if "value" in q else "" for q in (low, high))
    yield "NR", (trimmed(*ends),)


def _texts(text: str, context: Context) -> Iterator[Written]:
    first = "FT" if "\n" in text else "TX"
    for kind in (first, "ST") if context.narrative else ("ST", first):
        yield kind, ((text,),)
    yield "NM", ((text,),)
    yield "SN", (tuple(text.split("^")),)
    # A structured number that could not be read was kept as text, with its unit.
    bare = text.removesuffix(f" {context.unit.text}") if context.unit else text
    if found := _UNREADABLE.fullmatch(bare):
        yield "SN", ((found[1], found[2], found[3]) if found[3] == "+" else (found[1], found[2], "", found[3]),)
    # A text that would be read as something else as ST: a coded word without a code stays text.
    yield "ID", ((text,),)
