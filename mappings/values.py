"""OBX-5 by OBX-2 -> Observation.value[x] (HL7 v2.5.1 chapter 7.4.2; V2-to-FHIR guide, segment map OBX, rows OBX-5 and OBX-6).

Chinese laboratories send numbers, comparators and titres as text, so text is looked into; what is not sure stays text. A value is
never invented: nothing sent, ``""`` or an analyser's filler gives ``dataAbsentReason``. Where typing changed the written form, the
text as sent stays beside the value (extension ``source-text``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from conformance import systems
from conformance.fhirjson import JsonNumber
from conformance.issue import Issue
from mappings import times
from mappings.findings import DISPLAY, absence, finding
from mappings.numbers import COMPARATOR, COMPARATORS, level, number, quantity
from mappings.reference_range import read_bounds, reference_range
from mappings.source import NULL, Element, text
from mappings.units import Unit, shipped

__all__ = ["Typed", "joined", "reference_range", "typed"]

Concept = Callable[[Element], dict[str, Any] | None]
"""Reads a CE/CWE/CNE/CF repetition as a CodeableConcept; None when it is empty."""

TEXT_TYPES = frozenset({"ST", "TX", "FT", ""})
CODED_TYPES = frozenset({"CE", "CWE", "CNE", "CF"})
LEFT_TO_CALLER = frozenset({"ED", "RP"})
"""Encapsulated data and reference pointers are attachments, not values; ``typed`` returns nothing for them."""


@dataclass(frozen=True, slots=True)
class Typed:
    """One OBX-5.

    value       ``{"valueQuantity": {...}}``; or ``{"dataAbsentReason": {...}}``, then maybe with ``extension`` source-text; or ``{}``
                for ED and RP
    components  the values of several repetitions that cannot be one value; each goes to an Observation.component with the same code
                (``value`` is then empty: FHIR invariant obs-7)
    issues      problems found; severity warning or information, never error: a strange value does not hold a message
    """

    value: dict[str, Any]
    components: tuple[dict[str, Any], ...] = ()
    issues: tuple[Issue, ...] = ()


# --- numbers in text ---------------------------------------------------------------------------------------------------------------

_NUM = r"(?:\d+\.?\d*|\.\d+)(?:[Ee][+-]?\d{1,2})?"
_PLAIN = re.compile(rf"[+-]?{_NUM}", re.ASCII)
_ARROWED = re.compile(rf"([+-]?{_NUM})\s*[↑↓]+", re.ASCII)
_WITH_UNIT = re.compile(rf"({COMPARATOR})?\s*([+-]?{_NUM})\s*((?![\d\s.,]).{{2,20}}|%)", re.ASCII)
_COMPARED = re.compile(rf"({COMPARATOR})\s*([+-]?{_NUM})", re.ASCII)
_TITRE = re.compile(rf"({COMPARATOR})?\s*(\d{{1,3}})\s*:\s*(\d{{1,7}})", re.ASCII)
_SPAN = re.compile(r"(?:0|[1-9]\d*)(?:\.\d+)?\s*(?:[-~]{1,2}|至)\s*(?:0|[1-9]\d*)(?:\.\d+)?", re.ASCII)
_LONGEST = 64
"""Longer text is a report, not a value: it is not searched for numbers."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def typed(
    value_type: str,
    repetitions: tuple[Element, ...],
    unit: Unit | None,
    *,
    zone: ZoneInfo,
    concept: Concept,
    expected_unit: str = "",
    range_text: str = "",
    where: str = "",
) -> Typed:
    """Type one OBX-5.

    value_type     OBX-2; empty or unknown is treated as text
    repetitions    OBX-5 as the Source gives it, unescaped
    unit           OBX-6, None when empty
    zone           facility zone for DT/DTM values
    concept        reader of coded repetitions
    expected_unit  UCUM unit of the catalogue item, empty when unmapped or not quantitative: with it a bare ST number is a number
    range_text     OBX-7: a numeric range also says that a bare ST number is a number
    where          position of OBX-5 for issues
    """
    value_type = value_type.strip().upper()
    if value_type in LEFT_TO_CALLER:
        return Typed({})
    if (
        value_type == "NM"
        and len(repetitions) == 1
        and len(repetitions[0]) == 1
        and isinstance(sent := repetitions[0][0], str)
    ):
        # Most results by far are one plain number.
        plain = number(sent)
        if plain is not None and plain.text == sent:
            return Typed({"valueQuantity": quantity(plain, unit)})
    known = [_printable(r) for r in repetitions if _written(r)]
    if not known:
        return _absent(NULL if any(joined(r) == NULL for r in repetitions) else "", "unknown", where)
    context = _Context(unit, zone, concept, where, bool(unit or expected_unit or _is_numeric_range(range_text)))
    if value_type in TEXT_TYPES and len(known) > 1:
        whole = "\n".join(joined(r) for r in known)
        return Typed({"valueString": _clean(whole)})
    results = [_one(value_type, r, context) for r in known]
    if len(results) == 1:
        return results[0]
    issues = tuple(i for r in results for i in r.issues)
    return Typed({}, tuple(r.value for r in results), issues)


def joined(element: Element) -> str:
    """A repetition as one text: components by ``^``, sub-components by ``&`` (text that was not escaped comes back whole)."""
    return "^".join(text(c) for c in element).rstrip("^")


@dataclass(frozen=True, slots=True)
class _Context:
    unit: Unit | None
    zone: ZoneInfo
    concept: Concept
    where: str
    numeric: bool
    """A bare number in a text field is a number: it has a unit, a numeric range, or the item is quantitative."""


def _one(value_type: str, element: Element, context: _Context) -> Typed:
    first = (text(element[0]).strip() if element else "") or joined(element)
    match value_type:
        case "NM":
            return _number(joined(element).strip(), context)
        case "SN":
            return _structured(element, context)
        case "CE" | "CWE" | "CNE" | "CF":
            found = context.concept(element)
            return (
                Typed({"valueCodeableConcept": found}) if found else _absent(joined(element), "unknown", context.where)
            )
        case "IS" | "ID":
            # One line, as the words of a coded value: a code has no formatting.
            return Typed({"valueCodeableConcept": {"text": " ".join(_clean(joined(element)).split())}})
        case "DT" | "DTM" | "TS":
            return _moment(first, context)
        case "TM":
            return _time(first, context)
        case "DR":
            return _period(element, context)
        case "NR":
            return _range(element, context)
        case "CQ":
            own = text(element[1]) if len(element) > 1 else ""
            return _number(first, replace(context, unit=shipped().lookup(own)) if own.strip() else context)
        case "SD":
            return _sampled(element, context)
        case _ if value_type in TEXT_TYPES:
            return _text(joined(element), context)
        case _:
            return Typed({"valueString": _clean(joined(element))})


# --- one type each -----------------------------------------------------------------------------------------------------------------


def _number(sent: str, context: _Context) -> Typed:
    """NM: one number; a comparator, a filler or prose in it is typed as what it is, and said."""
    value = number(sent)
    if value is not None:
        return Typed({"valueQuantity": _with_source(quantity(value, context.unit), sent if value.text != sent else "")})
    if level(sent) == "-":
        return _absent(sent, "unknown", context.where)
    found = _text(sent, replace(context, numeric=True))
    if "dataAbsentReason" in found.value or "valueQuantity" in found.value:
        return found
    issue = Issue(
        "bad-number",
        "warning",
        context.where,
        "The value type is NM but the value is not a number; it is kept as text.",
        sent,
    )
    return Typed(found.value, (), (*found.issues, issue))


def _text(sent: str, context: _Context) -> Typed:
    """ST, TX, FT: an absent value, a finding, a number with comparator, a titre, a range, or text."""
    if len(sent) > _LONGEST:
        return Typed({"valueString": _clean(sent)})
    bare = level(sent)
    if reason := absence(bare):
        return _absent(sent, reason, context.where)
    if code := finding(bare):
        concept: dict[str, Any] = {"text": _clean(sent)}
        if code in DISPLAY:
            concept["coding"] = [{"system": systems.INTERPRETATION, "code": code, "display": DISPLAY[code]}]
        return Typed({"valueCodeableConcept": concept})
    value = _in_text(bare, context)
    if value is None:
        return Typed({"valueString": _clean(sent)})
    (key, body), *_ = value.items()
    return Typed({key: _with_source(body, sent if _rebuilt(key, body) != sent else "")})


def _in_text(bare: str, context: _Context) -> dict[str, Any] | None:
    """Levelled text -> the one FHIR value it can mean, or None."""
    # An integer alone may be an identifier or a count of anything; one with a decimal point is a measurement.
    numeric = context.numeric or "." in bare
    if numeric and _PLAIN.fullmatch(bare) and (value := number(bare)) is not None:
        return {"valueQuantity": quantity(value, context.unit)}
    if found := _COMPARED.fullmatch(bare):
        value = number(found[2])
        return None if value is None else {"valueQuantity": quantity(value, context.unit, COMPARATORS[found[1]])}
    if (found := _ARROWED.fullmatch(bare)) and (value := number(found[1])) is not None:
        return {"valueQuantity": quantity(value, context.unit)}
    if (found := _TITRE.fullmatch(bare)) and int(found[2]) and int(found[3]) and (found[2] == "1" or found[1]):
        numerator, denominator = number(found[2]), number(found[3])
        if numerator is not None and denominator is not None:
            return {"valueRatio": _ratio(numerator, denominator, COMPARATORS.get(found[1] or "", ""), context.unit)}
    if numeric and _SPAN.fullmatch(bare):
        low, high = read_bounds(bare)
        if low is not None and high is not None:
            return {"valueRange": {"low": quantity(low, context.unit), "high": quantity(high, context.unit)}}
    return _with_unit(bare, context.unit)


def _with_unit(bare: str, unit: Unit | None) -> dict[str, Any] | None:
    """``5.6 mmol/L`` where OBX-6 is empty or says the same: the unit was sent, only not in its field."""
    found = _WITH_UNIT.fullmatch(bare)
    written = shipped().lookup(found[3]) if found else None
    value = number(found[2]) if found else None
    if (
        found is None
        or written is None
        or value is None
        or written.ucum is None
        or (unit is not None and unit.ucum != written.ucum)
    ):
        return None
    return {"valueQuantity": quantity(value, unit or written, COMPARATORS.get(found[1] or "", ""))}


def _structured(element: Element, context: _Context) -> Typed:
    """SN: comparator, number, separator or suffix, number (HL7 v2.5.1 2.A.71)."""
    parts = [level(text(c)) for c in element[:4]] + [""] * (4 - len(element))
    sign, one, mark, two = parts
    sent = joined(element)
    first, second = number(one), number(two)
    comparator = COMPARATORS.get(sign, "")
    if not one and not two and sign:
        # The whole value stands in the comparator's place.
        return _text(sign, replace(context, numeric=True))
    if first is None or (two and second is None) or (sign and not comparator and sign != "="):
        return _structured_text(parts, sent, context, understood=sign == "<>")
    if second is not None and mark in (":", "/"):
        return Typed({"valueRatio": _with_source(_ratio(first, second, comparator, context.unit), sent)})
    if second is not None and mark == "-" and not comparator and first <= second:
        span = {"low": quantity(first, context.unit), "high": quantity(second, context.unit)}
        return Typed({"valueRange": _with_source(span, sent)})
    if not mark and second is None:
        changed = sent if element[0] not in ("", *set(COMPARATORS.values())) or one != first.text else ""
        return Typed({"valueQuantity": _with_source(quantity(first, context.unit, comparator), changed)})
    return _structured_text(parts, sent, context, understood=mark == "+" and second is None)


def _structured_text(parts: list[str], sent: str, context: _Context, *, understood: bool) -> Typed:
    unit = f" {context.unit.text}" if context.unit else ""
    value = {"valueString": _clean(("".join(parts) or sent) + unit)}
    if understood:
        return Typed(value)
    issue = Issue(
        "bad-number", "warning", context.where, "The structured number cannot be read; it is kept as text.", sent
    )
    return Typed(value, (), (issue,))


def _moment(sent: str, context: _Context) -> Typed:
    moment = times.parse(sent, context.zone)
    if moment is None:
        return _bad_date(sent, context)
    issues: tuple[Issue, ...] = ()
    if moment.century_assumed:
        issues = (
            Issue("century-assumed", "warning", context.where, "The year has two digits; it was read as 20YY.", sent),
        )
    return Typed({"valueDateTime": moment.fhir}, (), issues)


def _time(sent: str, context: _Context) -> Typed:
    found = times.time_of_day(sent)
    return Typed({"valueTime": found}) if found else _bad_date(sent, context)


def _period(element: Element, context: _Context) -> Typed:
    start, end = (times.parse(text(element[i]), context.zone) if i < len(element) else None for i in (0, 1))
    if (start is None and end is None) or (start and end and start.instant > end.instant):
        return _bad_date(joined(element), context)
    return Typed({"valuePeriod": {k: m.fhir for k, m in (("start", start), ("end", end)) if m}})


def _sampled(element: Element, context: _Context) -> Typed:
    """SD, a type of our own readers of ECG files: origin, unit, period in ms, factor, samples -> SampledData, as sent."""
    origin, period, factor = (number(text(element[n])) for n in (0, 2, 3))
    if origin is None or period is None or factor is None:
        return _absent(NULL, "error", context.where)
    unit = text(element[1])
    base = {"value": origin, "unit": unit, "system": systems.UCUM, "code": unit}
    return Typed(
        {
            "valueSampledData": {
                "origin": base,
                "period": period,
                "factor": factor,
                "dimensions": 1,
                "data": text(element[4]),
            }
        }
    )


def _range(element: Element, context: _Context) -> Typed:
    low, high = (number(level(text(element[i]))) if i < len(element) else None for i in (0, 1))
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        return _text(joined(element), context)
    return Typed(
        {"valueRange": {k: quantity(n, context.unit) for k, n in (("low", low), ("high", high)) if n is not None}}
    )


# --- shared ------------------------------------------------------------------------------------------------------------------------


def _ratio(numerator: JsonNumber, denominator: JsonNumber, comparator: str, unit: Unit | None) -> dict[str, Any]:
    """The comparator of ``>=1:160`` stands on the numerator, as the guide's SN[Ratio] map puts it; it speaks of the titre."""
    return {"numerator": quantity(numerator, unit, comparator), "denominator": quantity(denominator, unit)}


def _with_source(body: dict[str, Any], sent: str) -> dict[str, Any]:
    if sent:
        body["extension"] = [{"url": systems.SOURCE_TEXT, "valueString": _clean(sent)}]
    return body


def _rebuilt(key: str, body: dict[str, Any]) -> str:
    """What a reader of the typed value would write; when the sender wrote something else, the source text is kept."""
    if key == "valueQuantity":
        return f"{body.get('comparator', '')}{body['value'].text}"
    if key == "valueRatio":
        top = body["numerator"]
        return f"{top.get('comparator', '')}{top['value'].text}:{body['denominator']['value'].text}"
    return f"{body['low']['value'].text}-{body['high']['value'].text}"


def _absent(sent: str, reason: str, where: str) -> Typed:
    value: dict[str, Any] = {"dataAbsentReason": {"coding": [{"system": systems.DATA_ABSENT, "code": reason}]}}
    if sent and sent != NULL:
        value["extension"] = [{"url": systems.SOURCE_TEXT, "valueString": _clean(sent)}]
    issue = Issue(
        "no-value", "information", where, "No value was sent; the result is stored without one.", sent or None
    )
    return Typed(value, (), (issue,))


def _bad_date(sent: str, context: _Context) -> Typed:
    issue = Issue("bad-date", "warning", context.where, "The date or time cannot be read; it is kept as text.", sent)
    return Typed({"valueString": _clean(sent)}, (), (issue,))


@lru_cache(maxsize=4096)
def _is_numeric_range(range_text: str) -> bool:
    return len(range_text) <= _LONGEST and read_bounds(level(range_text)) != (None, None)


def _written(element: Element) -> bool:
    sent = joined(element)
    return bool(_clean(sent.replace("^", "").replace("&", ""))) and sent != NULL


def _printable(element: Element) -> Element:
    """The repetition without control characters, which no FHIR string may hold."""
    if not _CONTROL.search(joined(element)):
        return element
    return tuple(_CONTROL.sub("", c) if isinstance(c, str) else tuple(_CONTROL.sub("", s) for s in c) for c in element)


def _clean(sent: str) -> str:
    """FHIR strings hold no control characters and no outer blanks (http://hl7.org/fhir/R4/datatypes.html#string)."""
    return _CONTROL.sub("", sent.replace("\r\n", "\n").replace("\r", "\n")).strip()
