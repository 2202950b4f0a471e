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


def _is(name: str, *codes: str) -> Schema:
    return {"required": [name], "properties": {name: {"enum": list(codes)}}}


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
    return {"properties": {"entry": {"items": schema}}}


_CONDITION_ERROR: Final = _coded("verificationStatus", "condition-ver-status", "entered-in-error")
_ALLERGY_ERROR: Final = _coded("verificationStatus", "allergyintolerance-verification", "entered-in-error")

INVARIANTS: Final[dict[str, tuple[tuple[str, str, Schema], ...]]] = {
    "Quantity": (("qty-3", "a unit code needs its system", _if(_has("code"), _any("system", "_system"))),),
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
    "Organization": (("org-1", "give an identifier or a name", _any("identifier", "name", "_name")),),
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
    "AllergyIntolerance": (
        (
            "ait-1",
            "give clinicalStatus unless entered in error",
            {"anyOf": [_ALLERGY_ERROR, _has("clinicalStatus")]},
        ),
        ("ait-2", "drop clinicalStatus when entered in error", _if(_ALLERGY_ERROR, _none(_has("clinicalStatus")))),
    ),
    "AuditEvent.entity": (("sev-1", "name and query exclude each other", _none(_has("name", "query"))),),
    "List": (("lst-1", "emptyReason is for a list without entries", _none(_has("emptyReason", "entry"))),),
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
    ),
    "MeasureReport": (
        (
            "mrp-1",
            "a report for data collection has no group",
            _if(_is("type", "data-collection"), _none(_has("group"))),
        ),
    ),
}
