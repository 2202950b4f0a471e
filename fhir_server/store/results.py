"""The flat result row of an Observation (view ``result``): what recognition, cumulative tables, audit and exports read.

http://hl7.org/fhir/R4/observation.html. A value that was not stated stays None: nothing is guessed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, Final, NamedTuple

from conformance import systems
from fhir_server.search import dates
from fhir_server.store import specimens
from fhir_server.store.stated import Stated, stated
from mappings import catalogue


class Common(NamedTuple):
    """What thousands of results have in common: columns of ``resource_kind``."""

    facility: str
    performer: str | None
    item: str | None
    loinc: str | None
    code: str
    name: str | None
    specimen: str | None
    comparator: str | None
    unit: str | None
    unit_text: str | None
    flag: str | None
    range_text: str | None
    status: str
    mark: str | None
    quality: str | None
    method: str | None
    site: str | None
    laterality: str | None
    contrast: str | None
    health_check: str | None


class Result(NamedTuple):
    """The stated part of a row of ``result``."""

    performer: str | None
    item: str | None
    loinc: str | None
    code: str
    name: str | None
    specimen: str | None
    number: Decimal | None
    comparator: str | None
    value_text: str | None
    unit: str | None
    unit_text: str | None
    flag: str | None
    range_text: str | None
    order: str | None
    status: str
    effective: datetime | None
    issued: datetime | None
    mark: str | None
    quality: str | None
    stated: Stated

    def common(self, facility: str) -> Common:
        """The part it shares with others sent by ``facility``."""
        return Common(
            facility,
            *(self.performer, self.item, self.loinc, self.code, self.name, self.specimen, self.comparator, self.unit),
            *(self.unit_text, self.flag, self.range_text, self.status, self.mark, self.quality),
            *self.stated,
        )


TEST: Final = "test"
"""Status of the row of a result that was not made in the care of the patient: no code of Observation.status is this one."""
_NOT_CARE: Final = frozenset(
    {
        (systems.V2 + "0103", "T"),
        (systems.V2 + "0103", "D"),
        ("http://terminology.hl7.org/CodeSystem/v3-ActReason", "HTEST"),
    }
)
_LARGEST_EXPONENT: Final = 100
_LONGEST_CODE: Final = 64


def flatten(
    observation: Mapping[str, Any],
    *,
    facility: str,
    report: Mapping[str, Any] | None = None,
    specimen: Mapping[str, Any] | None = None,
    encounter: Mapping[str, Any] | None = None,
) -> Result:
    """One Observation -> its row.

    ``facility`` is the one that sent it (its local code system is known by it); ``report``, ``specimen`` and ``encounter`` are the
    resources the Observation belongs to, where at hand: they give the order, the times, the specimen and the kind of visit that the
    Observation itself does not state.
    """
    item, loinc, code, name = _codes(observation.get("code") or {}, facility)
    number, comparator, value_text, unit, unit_text = _value(observation)
    effective = _effective(observation)
    if effective is None and specimen is not None:
        # The effective time of a laboratory result is when the specimen was taken (Observation.effective, note in R4).
        collection = specimen.get("collection") or {}
        effective = _time(collection.get("collectedDateTime") or (collection.get("collectedPeriod") or {}).get("start"))
    if effective is None and report is not None:
        effective = _effective(report)
    issued = _time(observation.get("issued"))
    if issued is None and report is not None:
        issued = _time(report.get("issued"))
    return Result(
        performer=_performer(observation),
        item=item,
        loinc=loinc,
        code=code,
        name=name,
        specimen=specimens.word_of(specimen),
        number=number,
        comparator=comparator,
        value_text=value_text,
        unit=unit,
        unit_text=unit_text,
        flag=_flag(observation),
        range_text=_range_text(observation),
        order=_order(observation) or (_order(report) if report is not None else None),
        status=TEST if not_care(observation) else observation.get("status") or "unknown",
        effective=effective,
        issued=issued,
        mark=_extension(observation, systems.MARK),
        quality=_noted(observation) or _condition(specimen),
        stated=stated(observation, encounter),
    )


def not_care(resource: Mapping[str, Any]) -> bool:
    """Does its meta say that it was not made in the care of the patient: training or debugging (table 0103, MSH-11), or test data
    (v3 ActReason HTEST, of FHIR clients)?"""
    meta = resource.get("meta") or {}
    labels = (*(meta.get("tag") or ()), *(meta.get("security") or ())) if "tag" in meta or "security" in meta else ()
    return any((label.get("system"), label.get("code")) in _NOT_CARE for label in labels)


def _codes(concept: Mapping[str, Any], facility: str) -> tuple[str | None, str | None, str, str | None]:
    item = loinc = None
    local: Mapping[str, Any] | None = None
    first: Mapping[str, Any] | None = None
    own = systems.local_codes(facility, "tests")
    alone = True
    for coding in concept.get("coding") or ():
        system = coding.get("system")
        if system == systems.ITEMS:
            item = item or _indexable(coding.get("code"))
        elif system == systems.LOINC:
            loinc = loinc or _indexable(coding.get("code"))
        if system == own:
            local = local or coding
        first = first or coding
        alone = alone and system == systems.LOINC
    if item is None and loinc and alone:
        # LOINC and nothing else: the catalogue says which item that is. Beside a local code the facility's own table has the say.
        item = _item_of_loinc(loinc)
    chosen = local or first or {}
    text = concept.get("text")
    return item, loinc, chosen.get("code") or text or chosen.get("display") or "", text or chosen.get("display")


@cache
def _item_of_loinc(loinc: str) -> str | None:
    found = catalogue.of(catalogue.DIRECTORY).by_loinc.get(loinc)
    return found.code if found else None


def _indexable(code: str | None) -> str | None:
    """A code of a length that catalogues have; a client may write any text, and an index entry has a limit."""
    return code if code and len(code) <= _LONGEST_CODE else None


_Value = tuple[Decimal | None, str | None, str | None, str | None, str | None]


def _value(observation: Mapping[str, Any]) -> _Value:
    """number, comparator, value_text, unit (UCUM), unit_text."""
    quantity = observation.get("valueQuantity")
    if quantity is not None:
        unit = quantity.get("code") if quantity.get("system") == systems.UCUM else None
        number, text = _number(quantity.get("value"))
        return (
            number,
            quantity.get("comparator"),
            text,
            unit,
            quantity.get("unit") or quantity.get("code"),
        )
    for key in observation:
        if key.startswith("value"):
            return _other_value(key, observation[key])
    return None, None, None, None, None


def _number(value: Any) -> tuple[Decimal | None, str | None]:
    """A JSON number for the database; one that is too large or too small for any measurement stays text."""
    if not isinstance(value, int | Decimal):
        return None, None
    number = Decimal(value)
    return (number, None) if abs(number.adjusted()) <= _LARGEST_EXPONENT else (None, str(value))


def _other_value(key: str, value: Any) -> _Value:
    if key == "valueInteger":
        number, text = _number(value)
        return number, None, text, None, None
    if key == "valueCodeableConcept":
        coding = (value.get("coding") or [{}])[0]
        return None, None, value.get("text") or coding.get("display") or coding.get("code"), None, None
    if key in ("valueRange", "valueRatio"):
        low, high, between = ("low", "high", "-") if key == "valueRange" else ("numerator", "denominator", ":")
        parts = [value.get(low) or {}, value.get(high) or {}]
        unit = next((p.get("code") for p in parts if p.get("system") == systems.UCUM), None)
        text = between.join(f"{p.get('comparator') or ''}{p.get('value', '')}" for p in parts)
        return None, None, text, unit, next((p["unit"] for p in parts if p.get("unit")), None)
    if isinstance(value, bool):
        return None, None, "true" if value else "false", None, None
    return (None, None, value, None, None) if isinstance(value, str) else (None, None, None, None, None)


def _effective(resource: Mapping[str, Any]) -> datetime | None:
    return _time(
        resource.get("effectiveDateTime")
        or resource.get("effectiveInstant")
        or (resource.get("effectivePeriod") or {}).get("start")
    )


def _time(text: str | None) -> datetime | None:
    """The first moment of a FHIR date or time; None when absent or not one."""
    if not text:
        return None
    try:
        return dates.span(text, dates.SHANGHAI)[0]
    except ValueError:
        return None


def _performer(observation: Mapping[str, Any]) -> str | None:
    """The performing laboratory: a facility id where stated, else the first name given."""
    name: str | None = None
    for performer in observation.get("performer") or ():
        identifier = performer.get("identifier") or {}
        if identifier.get("system") == systems.FACILITY:
            return str(identifier.get("value"))
        kind = performer.get("type") or (performer.get("reference") or "").partition("/")[0]
        if name is None and kind in ("", "Organization"):
            name = performer.get("display") or identifier.get("value")
    return name


def _flag(observation: Mapping[str, Any]) -> str | None:
    for concept in observation.get("interpretation") or ():
        for coding in concept.get("coding") or ():
            if coding.get("system") == systems.INTERPRETATION:
                return str(coding.get("code"))
    return None


def _range_text(observation: Mapping[str, Any]) -> str | None:
    ranges = observation.get("referenceRange") or ()
    if not ranges:
        return None
    first = ranges[0]
    if first.get("text"):
        return str(first["text"])
    low, high = (first.get(side, {}).get("value") for side in ("low", "high"))
    if low is None and high is None:
        return None
    if high is None:
        return f">={low}"
    return f"<={high}" if low is None else f"{low}-{high}"


def _order(resource: Mapping[str, Any]) -> str | None:
    for based_on in resource.get("basedOn") or ():
        kind, _, logical = (based_on.get("reference") or "").partition("/")
        if kind == "ServiceRequest" and logical:
            return str(logical)
    return None


def _extension(resource: Mapping[str, Any], url: str) -> str | None:
    for extension in resource.get("extension") or ():
        if extension.get("url") == url:
            return next((str(v) for k, v in extension.items() if k in ("valueString", "valueCode")), None)
    return None


_SPOILT: Final = re.compile(r"溶血|脂血|乳糜|凝块|凝固|标本不合格|h[a]?emoly[sz]|lip[a]?emi[ac]|icteric|clotted", re.I)
_NOT_SPOILT: Final = re.compile(
    r"(?:无|未见|没有|非|不|排除|避免|防止)[^,,;;。.]{0,6}$|\b(?:no|not|non|without)\b[^,;.]{0,12}$|\bnon-?$", re.I
)


def _noted(observation: Mapping[str, Any]) -> str | None:
    """The word of a comment that says that the specimen was spoilt; None where none does. Laboratories write it there as often as in
    the specimen's own field."""
    for note in observation.get("note") or ():
        text = str(note.get("text") or "")
        for found in _SPOILT.finditer(text):
            if not _NOT_SPOILT.search(text[: found.start()]):
                return found[0]
    return None


def _condition(specimen: Mapping[str, Any] | None) -> str | None:
    """Specimen.condition as code, else text."""
    for concept in (specimen or {}).get("condition") or ():
        for coding in concept.get("coding") or ():
            if coding.get("code"):
                return str(coding["code"])
        if concept.get("text"):
            return str(concept["text"])
    return None
