"""An Observation as the few plain texts that an old HIS shows: nothing is rounded, translated or left out of a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain_result(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Observation -> the parts of the type ``Result`` (fhir_server.api.soap_schema)."""
    coding = _first(resource.get("code", {}).get("coding"))
    value, unit = _value(resource)
    period = resource.get("effectivePeriod", {})
    return {
        "id": resource["id"],
        "patient": resource.get("subject", {}).get("reference"),
        "status": resource["status"],
        "code_system": coding.get("system"),
        "code": coding.get("code"),
        "name": resource.get("code", {}).get("text") or coding.get("display"),
        "value": value,
        "unit": unit,
        "reference_range": _range(_first(resource.get("referenceRange"))),
        "interpretation": _text(_first(resource.get("interpretation"))),
        "effective": resource.get("effectiveDateTime") or period.get("start"),
        "issued": resource.get("issued"),
        "performer": _first(resource.get("performer")).get("display"),
        "report": _first(resource.get("basedOn")).get("reference"),
        "category": _first(_first(resource.get("category")).get("coding")).get("code"),
    }


def _first(items: Any) -> Mapping[str, Any]:
    return items[0] if items else {}


def _text(concept: Mapping[str, Any]) -> str | None:
    coding = _first(concept.get("coding"))
    return concept.get("text") or coding.get("code") or coding.get("display")


def _quantity(quantity: Mapping[str, Any]) -> str:
    return f"{quantity.get('comparator', '')}{quantity.get('value', '')}"


def _value(resource: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The value as text, and its unit; of components one a line."""
    if found := resource.get("valueQuantity"):
        return _quantity(found), found.get("unit") or found.get("code")
    if found := resource.get("valueRatio"):
        return f"{_quantity(found.get('numerator', {}))}:{_quantity(found.get('denominator', {}))}", None
    if found := resource.get("valueRange"):
        return f"{_quantity(found.get('low', {}))}-{_quantity(found.get('high', {}))}", found.get("low", {}).get("unit")
    if found := resource.get("valueCodeableConcept"):
        return _text(found), None
    if found := resource.get("valueSampledData"):
        return found.get("data"), found.get("origin", {}).get("unit")
    for name in ("valueString", "valueDateTime", "valueTime", "valueInteger", "valueBoolean"):
        if name in resource:
            return str(resource[name]), None
    lines = []
    for part in resource.get("component", ()):
        value, unit = _value(part)
        lines.append(f"{_text(part['code'])}: {value or ''} {unit or ''}".strip())
    return "\n".join(lines) or None, None


def _range(found: Mapping[str, Any]) -> str | None:
    if found.get("text"):
        return str(found["text"])
    low, high = _quantity(found.get("low", {})), _quantity(found.get("high", {}))
    return f"{low}-{high}" if low and high else f">={low}" if low else f"<={high}" if high else None
