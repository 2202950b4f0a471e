"""Invariants of R4 4.0.1 that a JSON Schema can say, by definition: key of the standard, what to do, the rule.

Each is quoted from the StructureDefinition it belongs to (http://hl7.org/fhir/R4/<type>.html#invs). The others need FHIRPath.
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]


def _has(*names: str) -> Schema:
    return {"required": list(names)}


def _any(*names: str) -> Schema:
    return {"anyOf": [_has(n) for n in names]}


def _given(name: str) -> Schema:
    """A primitive element exists: a value, or an extension that says why there is none."""
    return _any(name, "_" + name)


def _begins(stem: str) -> Schema:
    """Some form of the choice ``stem[x]`` exists."""
    return {"not": {"propertyNames": {"not": {"pattern": f"^_?{stem}[A-Z]"}}}}


def _each(list: str, schema: Schema) -> Schema:
    return {"properties": {list: {"items": schema}}}


def _is(name: str, *codes: str) -> Schema:
    return {"required": [name], "properties": {name: {"enum": list(codes)}}}


def _is_true(name: str) -> Schema:
    return {"required": [name], "properties": {name: {"const": True}}}


def _coded(name: str, system: str, code: str) -> Schema:
    """The CodeableConcept ``name`` has a coding with this code of a system of terminology.hl7.org."""
    url = "http://terminology.hl7.org/CodeSystem/" + system
    coding = {"required": ["system", "code"], "properties": {"system": {"const": url}, "code": {"const": code}}}
    return {
        "required": [name],
        "properties": {name: {"required": ["coding"], "properties": {"coding": {"contains": coding}}}},
    }


def _if(condition: Schema, then: Schema) -> Schema:
    return {"if": condition, "then": then}


def _none(schema: Schema) -> Schema:
    return {"not": schema}


def _entries(schema: Schema) -> Schema:
    return _each("entry", schema)


def _unit(key: str, text: str, value: Schema) -> tuple[str, str, Schema]:
    """A quantity of one kind: a value has a code of UCUM."""
    ucum = {"properties": {"system": {"const": "http://unitsofmeasure.org"}, "value": value}}
    return (key, text, {"allOf": [_if(_has("value"), _given("code")), ucum]})


def _one_of(first: Schema, second: Schema) -> Schema:
    return {"oneOf": [first, second]}


_CONDITION_ERROR: Final = _coded("verificationStatus", "condition-ver-status", "entered-in-error")
_ALLERGY_ERROR: Final = _coded("verificationStatus", "allergyintolerance-verification", "entered-in-error")

_QTY_3: Final = ("qty-3", "a unit code needs its system", _if(_has("code"), _given("system")))
_PATH: Final = ("path", "searchParam")
_ROOT: Final = {"properties": {"path": {"pattern": r"^[^.]*$"}}}
_NOT_HOME: Final = _none(_is("use", "home"))
_PINNED: Final = "type|defaultValue|fixed|pattern|example|minValue|maxValue|maxLength|binding"

INVARIANTS: Final[dict[str, tuple[tuple[str, str, Schema], ...]]] = {
    "Quantity": (_QTY_3,),
    "Age": (_QTY_3, _unit("age-1", "an age is above 0 with a UCUM code of time", {"exclusiveMinimum": 0})),
    "Distance": (_QTY_3, _unit("dis-1", "a distance has a UCUM code of length", {})),
    "Count": (
        _QTY_3,
        _unit("cnt-3", "a count is a whole number with UCUM code 1", {"multipleOf": 1}),
        ("cnt-3", "a count is a whole number with UCUM code 1", {"properties": {"code": {"const": "1"}}}),
    ),
    "Duration": (
        (
            "drt-1",
            "a code needs a value and the system of UCUM",
            _if(_has("code"), {"allOf": [_has("value"), _is("system", "http://unitsofmeasure.org")]}),
        ),
    ),
    "Expression": (
        ("exp-1", "give an expression or a reference", _any("expression", "_expression", "reference", "_reference")),
    ),
    "Timing.repeat": (
        ("tim-1", "a duration needs its unit", _if(_given("duration"), _given("durationUnit"))),
        ("tim-2", "a period needs its unit", _if(_given("period"), _given("periodUnit"))),
        ("tim-4", "a duration is not negative", {"properties": {"duration": {"minimum": 0}}}),
        ("tim-5", "a period is not negative", {"properties": {"period": {"minimum": 0}}}),
        ("tim-6", "periodMax needs period", _if(_given("periodMax"), _given("period"))),
        ("tim-7", "durationMax needs duration", _if(_given("durationMax"), _given("duration"))),
        ("tim-8", "countMax needs count", _if(_given("countMax"), _given("count"))),
        (
            "tim-9",
            "an offset needs a when that is no meal itself",
            _if(
                _given("offset"),
                {"required": ["when"], "properties": {"when": _none({"contains": {"enum": ["C", "CM", "CD", "CV"]}})}},
            ),
        ),
        ("tim-10", "timeOfDay and when exclude each other", _none(_has("timeOfDay", "when"))),
    ),
    "DataRequirement.codeFilter": (("drq-1", "give a path or a searchParam", _one_of(*map(_given, _PATH))),),
    "DataRequirement.dateFilter": (("drq-2", "give a path or a searchParam", _one_of(*map(_given, _PATH))),),
    "TriggerDefinition": (
        ("trd-1", "data and timing exclude each other", _none({"allOf": [_has("data"), _begins("timing")]})),
        ("trd-2", "a condition needs data", _if(_has("condition"), _has("data"))),
        (
            "trd-3",
            "a named event needs a name, a periodic one timing, one of data its data",
            {
                "allOf": [
                    _if(_is("type", "named-event"), _given("name")),
                    _if(_is("type", "periodic"), _begins("timing")),
                    _if({"required": ["type"], "properties": {"type": {"pattern": "^data-"}}}, _has("data")),
                ]
            },
        ),
    ),
    "Ratio": (
        (
            "rat-1",
            "give numerator and denominator, or neither with an extension",
            {
                "if": _any("numerator", "denominator"),
                "then": _has("numerator", "denominator"),
                "else": _has("extension"),
            },
        ),
    ),
    "ContactPoint": (("cpt-2", "a value needs its system", _if(_has("value"), _any("system", "_system"))),),
    "Attachment": (("att-1", "data needs contentType", _if(_has("data"), _any("contentType", "_contentType"))),),
    "Patient.contact": (
        ("pat-1", "give a name, telecom, address or organization", _any("name", "telecom", "address", "organization")),
    ),
    "Organization": (
        ("org-1", "give an identifier or a name", _any("identifier", "name", "_name")),
        ("org-2", "an address of an organization is never of use home", _each("address", _NOT_HOME)),
        ("org-3", "a telecom of an organization is never of use home", _each("telecom", _NOT_HOME)),
    ),
    "Observation": (
        (
            "obs-6",
            "dataAbsentReason and a value exclude each other",
            _if(
                _has("dataAbsentReason"),
                _none(
                    _any(
                        *(
                            f"value{t}"
                            for t in (
                                "Quantity",
                                "CodeableConcept",
                                "String",
                                "Boolean",
                                "Integer",
                                "Range",
                                "Ratio",
                                "SampledData",
                                "Time",
                                "DateTime",
                                "Period",
                            )
                        )
                    )
                ),
            ),
        ),
    ),
    "Observation.referenceRange": (("obs-3", "give low, high or text", _any("low", "high", "text", "_text")),),
    "ServiceRequest": (("prr-1", "orderDetail needs code", _if(_has("orderDetail"), _has("code"))),),
    "Condition": (
        (
            "con-4",
            "an abated condition is inactive, in remission or resolved",
            _if(
                _any("abatementDateTime", "abatementAge", "abatementPeriod", "abatementRange", "abatementString"),
                {
                    "anyOf": [
                        _coded("clinicalStatus", "condition-clinical", code)
                        for code in ("inactive", "resolved", "remission")
                    ]
                },
            ),
        ),
        ("con-5", "drop clinicalStatus when entered in error", _if(_CONDITION_ERROR, _none(_has("clinicalStatus")))),
    ),
    "Condition.stage": (("con-1", "give summary or assessment", _any("summary", "assessment")),),
    "Condition.evidence": (("con-2", "give code or detail", _any("code", "detail")),),
    "AllergyIntolerance": (
        (
            "ait-1",
            "give clinicalStatus unless entered in error",
            {"anyOf": [_ALLERGY_ERROR, _has("clinicalStatus")]},
        ),
        ("ait-2", "drop clinicalStatus when entered in error", _if(_ALLERGY_ERROR, _none(_has("clinicalStatus")))),
    ),
    "AuditEvent.entity": (("sev-1", "name and query exclude each other", _none(_has("name", "query"))),),
    "List": (
        ("lst-1", "emptyReason is for a list without entries", _none(_has("emptyReason", "entry"))),
        (
            "lst-2",
            "deleted is for mode changes",
            _if(_none(_is("mode", "changes")), _entries(_none(_given("deleted")))),
        ),
        (
            "lst-3",
            "an entry date is for mode working",
            _if(_none(_is("mode", "working")), _entries(_none(_given("date")))),
        ),
    ),
    "Composition.section": (
        ("cmp-1", "give text, entries or sections", _any("text", "entry", "section")),
        ("cmp-2", "emptyReason is for a section without entries", _none(_has("emptyReason", "entry"))),
    ),
    "Consent": (("ppc-1", "give a policy or policyRule", _any("policy", "policyRule")),),
    "Group": (
        ("grp-1", "members need actual = true", _if(_has("member"), {"properties": {"actual": {"const": True}}})),
    ),
    "Bundle": (
        ("bdl-1", "total is for searchset and history", _if(_has("total"), _is("type", "searchset", "history"))),
        (
            "bdl-2",
            "entry.search is for searchset",
            _if(_none(_is("type", "searchset")), _entries(_none(_has("search")))),
        ),
        (
            "bdl-3",
            "entry.request is for batch, transaction and history, and needed there",
            {
                "if": _is("type", "batch", "transaction", "history"),
                "then": _entries(_has("request")),
                "else": _entries(_none(_has("request"))),
            },
        ),
        (
            "bdl-4",
            "entry.response is for batch-response, transaction-response and history, and needed there",
            {
                "if": _is("type", "batch-response", "transaction-response", "history"),
                "then": _entries(_has("response")),
                "else": _entries(_none(_has("response"))),
            },
        ),
        (
            "bdl-9",
            "a document needs an identifier with system and value",
            _if(
                _is("type", "document"),
                {"required": ["identifier"], "properties": {"identifier": _has("system", "value")}},
            ),
        ),
        ("bdl-10", "a document needs timestamp", _if(_is("type", "document"), _has("timestamp"))),
    ),
    "Bundle.entry": (("bdl-5", "give a resource, request or response", _any("resource", "request", "response")),),
    "ValueSet.compose.include": (
        ("vsd-1", "give a system or value sets", _any("valueSet", "system", "_system")),
        ("vsd-2", "concepts and filters need a system", _if(_any("concept", "filter"), _any("system", "_system"))),
        ("vsd-3", "concept and filter exclude each other", _none(_has("concept", "filter"))),
    ),
    "CapabilityStatement": (
        ("cpb-1", "give rest, messaging or document", _any("rest", "messaging", "document")),
        (
            "cpb-2",
            "give a description, software or implementation",
            _any("description", "_description", "software", "implementation"),
        ),
        (
            "cpb-3",
            "a messaging end-point is for kind instance",
            _if(_none(_is("kind", "instance")), _each("messaging", _none(_has("endpoint")))),
        ),
        ("cpb-14", "kind instance needs implementation", _if(_is("kind", "instance"), _has("implementation"))),
        (
            "cpb-15",
            "kind capability needs software and has no implementation",
            _if(_is("kind", "capability"), {"required": ["software"], **_none(_has("implementation"))}),
        ),
        (
            "cpb-16",
            "kind requirements has neither software nor implementation",
            _if(_is("kind", "requirements"), _none(_any("software", "implementation"))),
        ),
    ),
    "MeasureReport": (
        (
            "mrp-1",
            "a report for data collection has no group",
            _if(_is("type", "data-collection"), _none(_has("group"))),
        ),
    ),
    "MeasureReport.group.stratifier.stratum": (
        ("mrp-2", "give a value or components, not both", _one_of(_has("value"), _has("component"))),
    ),
    "Measure.group.stratifier": (
        (
            "mea-1",
            "give a criteria (or code, description) or components, not both",
            _one_of(_any("code", "description", "_description", "criteria"), _has("component")),
        ),
    ),
    "ValueSet.expansion.contains": (
        ("vsd-6", "give a code or a display", _any("code", "_code", "display", "_display")),
        ("vsd-9", "give a code unless abstract", {"anyOf": [_given("code"), _is_true("abstract")]}),
        ("vsd-10", "a code needs its system", _if(_given("code"), _given("system"))),
    ),
    "ConceptMap.group.element.target": (
        (
            "cmd-1",
            "a narrower or inexact target needs a comment",
            _if(_is("equivalence", "narrower", "inexact"), _given("comment")),
        ),
    ),
    "ConceptMap.group.unmapped": (
        ("cmd-2", "mode fixed needs a code", _if(_is("mode", "fixed"), _given("code"))),
        ("cmd-3", "mode other-map needs a url", _if(_is("mode", "other-map"), _given("url"))),
    ),
    "OperationDefinition.parameter": (
        ("opd-1", "give a type or parts", _any("type", "_type", "part")),
        ("opd-2", "searchType is for type string", _if(_given("searchType"), _is("type", "string"))),
        (
            "opd-3",
            "targetProfile is for type Reference or canonical",
            _if(_any("targetProfile", "_targetProfile"), _is("type", "Reference", "canonical")),
        ),
    ),
    "SearchParameter": (
        ("spd-1", "an xpath needs xpathUsage", _if(_given("xpath"), _given("xpathUsage"))),
        ("spd-2", "chain is for type reference", _if(_any("chain", "_chain"), _is("type", "reference"))),
    ),
    "StructureDefinition": (
        (
            "sdf-5",
            "a profile of Extension needs context",
            _if(_is("type", "Extension"), {"anyOf": [_is("derivation", "specialization"), _has("context")]}),
        ),
        ("sdf-6", "give a differential or a snapshot", _any("differential", "snapshot")),
        ("sdf-18", "contextInvariant is for Extension", _if(_has("contextInvariant"), _is("type", "Extension"))),
        (
            "sdf-21",
            "default values are for specializations",
            _if(
                _none(_is("derivation", "specialization")),
                {"properties": {"differential": _each("element", _none(_begins("defaultValue")))}},
            ),
        ),
    ),
    "StructureDefinition.mapping": (("sdf-2", "give a name or a uri", _any("name", "_name", "uri", "_uri")),),
    "StructureDefinition.snapshot": (
        ("sdf-3", "each element has definition, min and max", _each("element", _has("definition", "min", "max"))),
        ("sdf-8b", "each element has a base", _each("element", _has("base"))),
        ("sdf-16", "each element has an id", _each("element", _has("id"))),
    ),
    "StructureDefinition.differential": (
        ("sdf-17", "each element has an id", _each("element", _has("id"))),
        ("sdf-20", "the root element is not sliced", _each("element", _if(_ROOT, _none(_has("slicing"))))),
        ("sdf-23", "the root element has no sliceName", _each("element", _if(_ROOT, _none(_given("sliceName"))))),
    ),
    "ElementDefinition": (
        (
            "eld-5",
            "contentReference excludes type, binding and values",
            _if(_given("contentReference"), {"propertyNames": _none({"pattern": f"^_?({_PINNED})"})}),
        ),
        ("eld-6", "a fixed value needs one type", _if(_begins("fixed"), {"properties": {"type": {"maxItems": 1}}})),
        ("eld-7", "a pattern needs one type", _if(_begins("pattern"), {"properties": {"type": {"maxItems": 1}}})),
        (
            "eld-8",
            "pattern and fixed value exclude each other",
            _none({"allOf": [_begins("fixed"), _begins("pattern")]}),
        ),
        (
            "eld-15",
            "default value and meaningWhenMissing exclude each other",
            _none({"allOf": [_begins("defaultValue"), _given("meaningWhenMissing")]}),
        ),
        (
            "eld-16",
            "a sliceName has letters, digits and / - _ [ ] @",
            {"properties": {"sliceName": {"pattern": r"^[a-zA-Z0-9/\-_\[\]@]+$"}}},
        ),
        ("eld-18", "isModifier needs isModifierReason", _if(_is_true("isModifier"), _given("isModifierReason"))),
        ("eld-22", "sliceIsConstraining needs sliceName", _if(_given("sliceIsConstraining"), _given("sliceName"))),
        ("eld-3", "max is a number or *", {"properties": {"max": {"pattern": r"^(\*|[0-9]+)$"}}}),
    ),
    "ElementDefinition.slicing": (
        ("eld-1", "give a discriminator or a description", _any("discriminator", "description", "_description")),
    ),
    "ElementDefinition.type": (
        (
            "eld-4",
            "aggregation is for Reference and canonical",
            _if(_any("aggregation", "_aggregation"), _is("code", "Reference", "canonical")),
        ),
        (
            "eld-17",
            "targetProfile is for Reference and canonical",
            _if(_any("targetProfile", "_targetProfile"), _is("code", "Reference", "canonical")),
        ),
    ),
    "ElementDefinition.binding": (
        (
            "eld-12",
            "valueSet begins with http:, https: or urn:",
            {"properties": {"valueSet": {"pattern": "^(http:|https|urn:)"}}},
        ),
    ),
}
