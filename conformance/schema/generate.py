"""Makes r4.json from the official definitions: ``python -m conformance.schema.generate FOLDER``.

FOLDER is the unpacked npm package ``hl7.fhir.r4.examples@4.0.1`` (CC0): StructureDefinitions, ValueSets and CodeSystems of R4
4.0.1. Every type and backbone element becomes one definition: which elements, how many, which type, which codes (required bindings),
which targets a reference may have, at most one of a choice, and the invariants of ``invariants``. Descriptions are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from conformance.schema.invariants import INVARIANTS, Schema

_HL7: Final = "http://hl7.org/fhir/StructureDefinition/"
_FHIR_TYPE: Final = _HL7 + "structuredefinition-fhir-type"
_ID: Final = r"[A-Za-z0-9\-\.]{1,64}"
_NO_CONTROL: Final = r"[^\x00-\x08\x0b\x0c\x0e-\x1f]*"
_INK: Final = r"[^ \t\r\n\f\v]"
_LEAP: Final = r"(([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)-02-29)"
_YEAR: Final = r"([0-9]([0-9]([0-9][1-9]|[1-9]0)|[1-9]00)|[1-9]000)"
_MONTH_DAY: Final = (
    r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_DAY: Final = rf"({_YEAR}-{_MONTH_DAY}|{_LEAP})"
_TIME: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?"
_ZONE: Final = r"(Z|[+-]((0[0-9]|1[0-3]):[0-5][0-9]|14:00))"
_INT32: Final = 2**31 - 1

# http://hl7.org/fhir/R4/datatypes.html#primitive; dates are real dates, a text is more than blanks and has no control characters.
PRIMITIVES: Final[dict[str, Schema]] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "minimum": -_INT32 - 1, "maximum": _INT32},
    "positiveInt": {"type": "integer", "minimum": 1, "maximum": _INT32},
    "unsignedInt": {"type": "integer", "minimum": 0, "maximum": _INT32},
    "decimal": {"type": "number"},
    "string": {"type": "string", "pattern": rf"^{_NO_CONTROL}[^\s\x00-\x1f]{_NO_CONTROL}$"},
    "uri": {"type": "string", "pattern": r"^\S+$"},
    "code": {"type": "string", "pattern": rf"^{_INK}+([ \t\r\n]{_INK}+)*$"},
    "id": {"type": "string", "pattern": rf"^{_ID}$"},
    "oid": {"type": "string", "pattern": r"^urn:oid:[0-2](\.(0|[1-9][0-9]*))+$"},
    "uuid": {"type": "string", "pattern": r"^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
    "base64Binary": {
        "type": "string",
        "pattern": r"^\s*(([0-9A-Za-z+/]\s*){4})*([0-9A-Za-z+/]\s*){2}(([0-9A-Za-z+/]\s*){2}|[0-9A-Za-z+/]\s*=\s*|=\s*=\s*)$",
    },
    "date": {"type": "string", "pattern": rf"^({_YEAR}(-(0[1-9]|1[0-2]))?|{_DAY})$"},
    "dateTime": {"type": "string", "pattern": rf"^({_YEAR}(-(0[1-9]|1[0-2]))?|{_DAY}(T{_TIME}{_ZONE})?)$"},
    "instant": {"type": "string", "pattern": rf"^{_DAY}T{_TIME}{_ZONE}$"},
    "time": {"type": "string", "pattern": rf"^{_TIME}$"},
    "xhtml": {"type": "string", "pattern": r"^\s*<div[\s>]"},
}
PRIMITIVES.update(url=PRIMITIVES["uri"], canonical=PRIMITIVES["uri"], markdown=PRIMITIVES["string"])

# Where R4's own examples stray from the listed targets, the type they refer to (Observation/clinical-gender).
_STRAYS: Final = {"Observation.performer": {"Encounter"}}

# Bound to systems too large or too open to list here (languages, media types, currencies, units).
_OPEN: Final = ("urn:", "http://unitsofmeasure.org")


class Definitions:
    """The package, read on demand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_url: dict[str, dict[str, Any]] = {}
        for kind in ("ValueSet", "CodeSystem"):
            for path in folder.glob(f"{kind}-*.json"):
                resource = json.loads(path.read_text("utf-8"))
                self._by_url[f"{kind} {resource['url']}"] = resource

    def types(self) -> Iterable[dict[str, Any]]:
        """Complex types and resources that are no profiles, in the order of their names."""
        for path in sorted(self._folder.glob("StructureDefinition-*.json")):
            sd = json.loads(path.read_text("utf-8"))
            if sd["kind"] in ("complex-type", "resource") and sd.get("derivation") != "constraint":
                yield sd

    def codes(self, value_set: str) -> list[str] | None:
        """The codes of a value set, or None when they cannot all be listed."""
        found = self._by_url.get("ValueSet " + value_set.partition("|")[0])
        if found is None:
            return None
        out: dict[str, None] = {}
        for include in found.get("compose", {}).get("include", ()):
            listed = self._included(include)
            if listed is None:
                return None
            out.update(dict.fromkeys(listed))
        return sorted(out) or None

    def pairs(self, value_set: str) -> dict[str, list[str]] | None:
        """The codes of a value set by system, or None when they cannot all be listed."""
        found = self._by_url.get("ValueSet " + value_set)
        out: dict[str, list[str]] = {}
        for include in found.get("compose", {}).get("include", ()) if found else ():
            listed = self._included(include) if "system" in include else None
            if listed is None:
                return None
            out.setdefault(include["system"], []).extend(listed)
        return out or None

    def _included(self, include: dict[str, Any]) -> list[str] | None:
        if "valueSet" in include:
            lists = [self.codes(v) for v in include["valueSet"]]
            return None if any(c is None for c in lists) else [code for codes in lists for code in codes or ()]
        if include.get("system", "urn:").startswith(_OPEN) or "filter" in include:
            return None
        if "concept" in include:
            return [c["code"] for c in include["concept"]]
        system = self._by_url.get("CodeSystem " + include["system"])
        if system is None or system.get("content") != "complete":
            return None
        return list(_concepts(system.get("concept", ())))


def _concepts(concepts: Iterable[dict[str, Any]]) -> Iterable[str]:
    for concept in concepts:
        yield concept["code"]
        yield from _concepts(concept.get("concept", ()))


class Generator:
    """Builds ``$defs``; the resource types are known before references are written."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        self._types = list(definitions.types())
        self._resources = [sd["type"] for sd in self._types if sd["kind"] == "resource" and not sd["abstract"]]
        self._complex = {sd["type"] for sd in self._types}
        self.defs: dict[str, Schema] = {name: dict(schema) for name, schema in PRIMITIVES.items()}

    def build(self) -> Schema:
        """The whole document."""
        self.defs["resource"] = {
            "type": "object",
            "required": ["resourceType"],
            "properties": {"resourceType": {"enum": self._resources}},
        }
        for sd in self._types:
            if not sd["abstract"] or sd["type"] in ("Element", "BackboneElement"):
                self._type(sd)
        target = "|".join(self._resources)
        self.defs["Reference"]["properties"]["reference"] = {
            "type": "string",
            "$comment": "reference",
            "pattern": rf"^(#\S*|[A-Za-z][A-Za-z0-9+.\-]*:\S+|({target})/{_ID}(/_history/{_ID})?)$",
        }
        self.defs["SimpleQuantity"] = {
            "$ref": "#/$defs/Quantity",
            "$comment": "sqty-1|a comparator is not allowed here",
            "not": {"required": ["comparator"]},
        }
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$comment": "Made by conformance.schema.generate from hl7.fhir.r4.examples 4.0.1 (CC0 1.0). FHIR is a trademark of HL7.",
            "$defs": dict(sorted(self.defs.items())),
        }

    def _type(self, sd: dict[str, Any]) -> None:
        elements = sd["snapshot"]["element"]
        parents = {e["path"].rpartition(".")[0] for e in elements} | {sd["type"]}
        for path in parents - {""}:
            children = [e for e in elements if e["path"].rpartition(".")[0] == path]
            self._object(path, children, sd["type"] if sd["kind"] == "resource" and path == sd["type"] else "", parents)

    def _object(self, path: str, elements: list[dict[str, Any]], resource: str, parents: set[str]) -> None:
        properties: dict[str, Schema] = {}
        required: list[str] = []
        rules: list[Schema] = []
        if resource:
            properties["resourceType"] = {"const": resource}
            required.append("resourceType")
        for element in elements:
            name = element["path"].rpartition(".")[2]
            if name.endswith("[x]"):
                self._choice(name[:-3], element, properties, rules)
                continue
            schema, primitive = self._element(element, parents)
            many = element["max"] != "1"
            properties[name] = (
                {"type": "array", "minItems": 1, "items": _or_null(schema, primitive)} if many else schema
            )
            if primitive:
                shadow: Schema = {"$ref": "#/$defs/Element"}
                properties["_" + name] = (
                    {"type": "array", "minItems": 1, "items": _or_null(shadow, True)} if many else shadow
                )
            if element["min"] and primitive:
                rules.append({"if": {"not": {"required": ["_" + name]}}, "then": {"required": [name]}})
            elif element["min"]:
                required.append(name)
        schema = {"type": "object", "minProperties": 1, "properties": properties, "additionalProperties": False}
        if required:
            schema["required"] = required
        for key, text, rule in INVARIANTS.get(path, ()):
            rules.append({"$comment": f"{key}|{text}", **rule})
        if rules:
            schema["allOf"] = rules
        self.defs[path] = schema

    def _element(self, element: dict[str, Any], parents: set[str]) -> tuple[Schema, bool]:
        """Schema of one element's value, and whether it is a primitive (and so has a ``_`` twin)."""
        if "contentReference" in element:
            return {"$ref": "#/$defs/" + element["contentReference"].partition("#")[2]}, False
        if element["path"] in parents:
            return {"$ref": "#/$defs/" + element["path"]}, False
        return self._typed(element["type"][0], element)

    def _typed(self, type_: dict[str, Any], element: dict[str, Any]) -> tuple[Schema, bool]:
        code = type_["code"]
        if code.startswith("http://hl7.org/fhirpath/"):
            code = next((e["valueUrl"] for e in type_.get("extension", ()) if e["url"] == _FHIR_TYPE), "string")
            resource_id = element["path"].endswith(".id") and element["base"]["path"] == "Resource.id"
            return {"$ref": "#/$defs/" + ("id" if resource_id else code)}, False
        if code == "Resource" or code in self._resources:
            return {"$ref": "#/$defs/resource"}, False
        if code == "Reference":
            return self._reference(type_, element), False
        if code == "Quantity" and _HL7 + "SimpleQuantity" in type_.get("profile", ()):
            return {"$ref": "#/$defs/SimpleQuantity"}, False
        if code in PRIMITIVES:
            return self._bound(code, element), True
        if code == "CodeableConcept":
            return self._concept(element), False
        if code not in self._complex:
            raise ValueError(f"{element['path']}: type {code} is not known")
        return {"$ref": "#/$defs/" + code}, False

    def _bound(self, code: str, element: dict[str, Any]) -> Schema:
        binding = element.get("binding", {})
        if code == "code" and binding.get("strength") == "required":
            codes = self._definitions.codes(binding["valueSet"])
            if codes:
                name = "codes:" + binding["valueSet"].partition("|")[0].rpartition("/")[2]
                self.defs[name] = {"enum": codes}
                return {"$ref": "#/$defs/" + name}
        return {"$ref": "#/$defs/" + code}

    def _concept(self, element: dict[str, Any]) -> Schema:
        """A concept of a required binding has a coding of it (http://hl7.org/fhir/R4/terminologies.html#required)."""
        binding = element.get("binding", {})
        url = binding.get("valueSet", "").partition("|")[0]
        pairs = self._definitions.pairs(url) if binding.get("strength") == "required" else None
        if not pairs:
            return {"$ref": "#/$defs/CodeableConcept"}
        listed = [
            {"required": ["system", "code"], "properties": {"system": {"const": system}, "code": {"enum": codes}}}
            for system, codes in pairs.items()
        ]
        name = "concepts:" + url.rpartition("/")[2]
        shown = ", ".join(code for codes in pairs.values() for code in codes)
        self.defs[name] = {
            "$ref": "#/$defs/CodeableConcept",
            "allOf": [
                {
                    "$comment": f"bound|{shown} of {', '.join(pairs)}",
                    "required": ["coding"],
                    "properties": {"coding": {"contains": {"anyOf": listed}}},
                }
            ],
        }
        return {"$ref": "#/$defs/" + name}

    def _reference(self, type_: dict[str, Any], element: dict[str, Any]) -> Schema:
        listed = {t.rpartition("/")[2] for t in type_.get("targetProfile", ())}
        targets = sorted(listed | _STRAYS.get(element["path"], set())) if listed else []
        if not targets or "Resource" in targets or not set(targets) <= set(self._resources):
            return {"$ref": "#/$defs/Reference"}
        name = "reference:" + ",".join(targets)
        self.defs[name] = {
            "$ref": "#/$defs/Reference",
            "properties": {
                "reference": {
                    "$comment": "target",
                    "pattern": rf"^(#|[A-Za-z][A-Za-z0-9+.\-]*:|({'|'.join(targets)})/)",
                }
            },
        }
        return {"$ref": "#/$defs/" + name}

    def _choice(self, name: str, element: dict[str, Any], properties: dict[str, Schema], rules: list[Schema]) -> None:
        forms: list[Schema] = []
        for type_ in element["type"]:
            key = name + type_["code"][0].upper() + type_["code"][1:]
            properties[key], primitive = self._typed(type_, element)
            if primitive:
                properties["_" + key] = {"$ref": "#/$defs/Element"}
                forms.append({"anyOf": [{"required": [key]}, {"required": ["_" + key]}]})
            else:
                forms.append({"required": [key]})
        if element["path"] == "Extension.value[x]":
            # With url and one more property the rule holds, unless that property is id: the common case costs nothing.
            one = {"oneOf": [{"required": ["extension"]}, *forms]}
            rules.append(
                {
                    "$comment": "ext-1|give extensions or one value, not both",
                    "if": {"maxProperties": 2, "required": ["url"]},
                    "then": {"minProperties": 2, "not": {"required": ["id"]}},
                    "else": one,
                }
            )
        elif element["min"]:
            rules.append({"$comment": f"choice|{name}", "oneOf": forms})
        elif len(forms) > 1:
            rules.append({"$comment": f"choice|{name}", "oneOf": [{"not": {"anyOf": forms}}, *forms]})


def _or_null(schema: Schema, primitive: bool) -> Schema:
    """In an array of primitives null keeps the place of a value that has only extensions (json.html#primitive)."""
    return {"anyOf": [schema, {"type": "null"}]} if primitive else schema


def main(folder: str) -> None:
    """Writes r4.json beside this module."""
    document = Generator(Definitions(Path(folder))).build()
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=False)
    Path(__file__).with_name("r4.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
