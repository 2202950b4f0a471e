"""The catalogue as FHIR R4 terminology: CodeSystem, ValueSet and ConceptMap (http://hl7.org/fhir/R4/terminology-module.html).

Pure: catalogue in, resources out. Ids and urls are stable; the version is the digest of the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from conformance import systems
from mappings.catalogue import CATEGORIES, Catalogue, Item

# property code -> (type, description); http://hl7.org/fhir/R4/codesystem.html#properties
_PROPERTIES: Final = {
    "category": ("code", "Kind of item: lab, imaging, ultrasound, ecg, pathology, endoscopy, function"),
    "unit": ("string", "UCUM unit; none for words and images"),
    "windowDays": ("integer", "Window in days of 24 hours, boundary inside; 0: never recognized automatically"),
    "windowSuggested": ("boolean", "The window is a suggestion that a quality-control group has to approve"),
    "timeBase": ("code", "Time the window runs from where it is the item's own: effective or issued"),
    "specimen": ("string", "Specimen the item is defined for"),
    "bodySite": ("string", "Body site of an examination"),
    "laterality": ("code", "left, right or bilateral"),
    "modality": ("code", "Modality of an examination"),
    "contrast": ("code", "without, with or without-and-with contrast medium"),
    "projection": ("string", "Projection or sequence"),
    "methodClass": ("string", "Class of methods whose results may stand for each other"),
    "group": ("string", "Group a policy may name"),
    "sensitivity": ("string", "Class of results that need a grant to be seen"),
    "beforeSurgery": ("boolean", "Decisive before surgery or transfusion"),
    "validFrom": ("dateTime", "First day it is in force"),
    "validTo": ("dateTime", "Last day it is in force"),
}
_LOINC_NOTICE: Final = (
    "This material contains content from LOINC (http://loinc.org). LOINC is copyright Regenstrief Institute, Inc. and the Logical "
    "Observation Identifiers Names and Codes (LOINC) Committee and is available at no cost under the license at http://loinc.org/license."
)


def resources(catalogue: Catalogue) -> list[dict[str, Any]]:
    """CodeSystems of items and orderables, a ValueSet of all recognizable items and one a category, ConceptMaps items -> LOINC and
    orderables -> items."""
    items = list(catalogue.items.values())
    return [
        _items(catalogue, items),
        _orderables(catalogue),
        _value_set(catalogue, "recognizable-items", "Recognizable items", [i for i in items if i.window_days]),
        *(
            _value_set(
                catalogue, f"items-{category}", f"Items: {category}", [i for i in items if i.category == category]
            )
            for category in CATEGORIES
        ),
        _to_loinc(catalogue, items),
        _members(catalogue),
    ]


def _head(kind: str, id: str, name: str, title: str, catalogue: Catalogue) -> dict[str, Any]:
    return {
        "resourceType": kind,
        "id": id,
        "url": f"{systems.BASE}/{kind}/{id}",
        "version": catalogue.digest[:16],
        "name": name,
        "title": title,
        "status": "active",
    }


def _items(catalogue: Catalogue, items: Iterable[Item]) -> dict[str, Any]:
    concepts = [
        {
            "code": i.code,
            "display": i.name_en,
            "designation": [{"language": "zh-CN", "value": i.name_zh}],
            "property": _properties(i),
        }
        for i in items
    ]
    return _head("CodeSystem", "items", "RecognizableItems", "Recognizable test and examination items", catalogue) | {
        "caseSensitive": True,
        "content": "complete",
        "count": len(concepts),
        "property": [{"code": c, "type": t, "description": d} for c, (t, d) in _PROPERTIES.items()],
        "concept": concepts,
    }


def _properties(item: Item) -> list[dict[str, Any]]:
    values: dict[str, Any] = {
        "category": item.category, "unit": item.unit, "windowDays": item.window_days,
        "windowSuggested": item.window_status == "suggestion", "timeBase": item.time_base, "specimen": item.specimens,
        "bodySite": item.body_site, "laterality": item.laterality, "modality": item.modality, "contrast": item.contrast,
        "projection": item.projection, "methodClass": item.method_class, "group": item.groups, "sensitivity": item.sensitivity,
        "beforeSurgery": item.before_surgery or "", "validFrom": item.valid_from, "validTo": item.valid_to,
    }  # fmt: skip
    out = []
    for code, value in values.items():
        kind = _PROPERTIES[code][0]
        for one in value if isinstance(value, tuple) else (value,):
            if one != "":
                out.append({"code": code, f"value{kind[0].upper()}{kind[1:]}": one})
    return out


def _orderables(catalogue: Catalogue) -> dict[str, Any]:
    concepts = [
        {"code": o.code, "display": o.name_en, "designation": [{"language": "zh-CN", "value": o.name_zh}]}
        for o in catalogue.orderables.values()
    ]
    return _head("CodeSystem", "orderables", "Orderables", "What is ordered and charged as one", catalogue) | {
        "caseSensitive": True,
        "content": "complete",
        "count": len(concepts),
        "concept": concepts,
    }


def _value_set(catalogue: Catalogue, id: str, title: str, items: Iterable[Item]) -> dict[str, Any]:
    name = "".join(word.capitalize() for word in id.split("-"))
    concepts = [{"code": i.code, "display": i.name_en} for i in items]
    return _head("ValueSet", id, name, title, catalogue) | {
        "compose": {"include": [{"system": systems.ITEMS, "version": catalogue.digest[:16], "concept": concepts}]}
    }


def _to_loinc(catalogue: Catalogue, items: Iterable[Item]) -> dict[str, Any]:
    elements = [
        {"code": i.code, "display": i.name_en, "target": [{"code": i.loinc, "equivalence": "equivalent"}]}
        for i in items
        if i.loinc
    ]
    return _head("ConceptMap", "items-loinc", "ItemsToLoinc", "Recognizable items to LOINC", catalogue) | {
        "copyright": _LOINC_NOTICE,
        "group": [{"source": systems.ITEMS, "target": systems.LOINC, "element": elements}],
    }


def _members(catalogue: Catalogue) -> dict[str, Any]:
    """An orderable to the items it needs or may carry: each is narrower than what is ordered."""
    elements: list[Mapping[str, Any]] = []
    for o in catalogue.orderables.values():
        targets = [
            {"code": item, "equivalence": "narrower", "comment": role}
            for role, codes in (("required", o.required), ("optional", o.optional))
            for item in codes
        ]
        elements.append({"code": o.code, "display": o.name_en, "target": targets})
    return _head("ConceptMap", "orderables-items", "OrderablesToItems", "Orderables to their items", catalogue) | {
        "group": [{"source": systems.ORDERABLES, "target": systems.ITEMS, "element": elements}]
    }
