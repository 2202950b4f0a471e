"""Bodies without what tells who the patient is, for auditors: logical ids stay, so that findings can be followed.

Left out: names, numbers, addresses below the city, contacts, photographs, free text and attached documents; a birth date becomes its
year. Labelled PSEUDED (http://terminology.hl7.org/CodeSystem/v3-ObservationValue).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from conformance import fhirjson
from fhir_server.errors import Category, Fault
from fhir_server.search.definitions import parameters, posted
from fhir_server.search.query import Filter, Query
from fhir_server.store.access_rows import DIRECTORIES
from fhir_server.store.body import Codec, Names

_LABEL: Final = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "PSEUDED"}
_PERSONS: Final = frozenset({"Patient", "Person", "RelatedPerson"})
_OF_PERSONS: Final = frozenset({"name", "telecom", "photo", "contact", "extension", "deceasedDateTime"})
_EVERYWHERE: Final = frozenset(
    {
        "identifier", "masterIdentifier", "accession", "groupIdentifier", "requisition", "placerGroupNumber", "text", "div", "note",
        "comment", "conclusion", "presentedForm", "content", "attachment", "data", "payload", "description", "patientInstruction",
        "sourceAttachment", "query", "sourceIdentifier", "valueAttachment", "valueIdentifier", "valueHumanName", "valueAddress",
        "valueContactPoint", "extension", "modifierExtension", "title", "accessionIdentifier", "preAdmissionIdentifier",
        "requestIdentifier", "targetIdentifier", "valueString", "valueMarkdown", "valueAnnotation", "valueBase64Binary",
        "contentString", "contentAttachment", "performedString", "onsetString", "abatementString", "detail", "altId", "outcomeDesc",
        "ifNoneExist",
    }
)  # fmt: skip
_OF_TYPE: Final = {
    "Group": frozenset({"name"}),
    "Device": frozenset(
        {"deviceName", "serialNumber", "distinctIdentifier", "lotNumber", "udiCarrier", "url", "contact"}
    ),
}
"""What else may tell, in resources of one type; of a Device only when it is a patient's."""
_WORD: Final = 64
"""Characters of a result in words that is shown; what is longer is prose."""
_NO_PERSONS: Final = DIRECTORIES - {"Device"}
_ADDRESS: Final = ("use", "type", "city", "state", "country", "period")
_ASKABLE: Final = frozenset(
    {
        "_id", "_lastUpdated", "_tag", "_profile", "_security", "_source", "_has", "gender", "active", "deceased", "language",
        "organization", "general-practitioner", "link", "patient", "practitioner", "relatedperson", "relationship",
    }
)  # fmt: skip
"""What may be asked of persons; anything else, parameters that were posted too, could tell who somebody is."""
_NUMBERS: Final = frozenset(
    {
        "accession", "requisition", "group-identifier", "related-id", "source-identifier", "security-identifier",
        "description", "title", "entity-name",
    }
)  # fmt: skip
"""Parameters about what is left out of bodies: numbers that lead to a patient, free text."""
_FREE: Final = frozenset({"_text", "_content"})


class PseudonymousCodec(Codec):
    """Gives bodies without identity, except those about the ``opened`` Patients (logical ids)."""

    def __init__(self, inner: Codec, opened: Collection[str]) -> None:
        self._inner = inner
        self._opened = frozenset(opened)

    def compress(self, body: bytes, names: Names) -> tuple[int, bytes]:
        """As the codec it stands for."""
        return self._inner.compress(body, names)

    def decompress(self, dictionary: int, data: bytes, names: Names) -> bytes:
        """The JSON bytes without identity."""
        body = self._inner.decompress(dictionary, data, names)
        return body if not body or names[1] in self._opened else pseudonymous(body)


def pseudonymous(body: bytes) -> bytes:
    """A resource as JSON -> the same without what tells who the patient is."""
    found = fhirjson.loads(body)
    if found["resourceType"] in _NO_PERSONS:
        return body
    resource = _resource(found)
    meta = resource.setdefault("meta", {})
    meta["security"] = [*meta.get("security", []), _LABEL]
    return fhirjson.dumps(resource)


def _resource(resource: dict[str, Any]) -> dict[str, Any]:
    kind = resource.get("resourceType")
    person, result = kind in _PERSONS, kind == "Observation"
    told = _OF_TYPE.get(str(kind), frozenset()) if kind != "Device" or "patient" in resource else frozenset()
    out: dict[str, Any] = {}
    for key, value in resource.items():
        plain = key.removeprefix("_")
        if (person and plain in _OF_PERSONS) or plain in told:
            continue
        if person and plain == "address" and isinstance(value, list):
            out[key] = [{k: a[k] for k in _ADDRESS if k in a} for a in value if isinstance(a, dict)]
        elif person and key == "birthDate" and isinstance(value, str):
            out[key] = value[:4]
        elif kind == "AuditEvent" and key == "entity" and isinstance(value, list):
            out[key] = [_value({k: v for k, v in e.items() if k != "name"}) for e in value if isinstance(e, dict)]
        elif not _tells(key, value, result=result) and not (person and key == "_birthDate"):
            out[key] = _value(value, result=result)
    return out


def _tells(key: str, value: Any, *, result: bool) -> bool:
    if key == "valueString" and result and isinstance(value, str):
        return len(value) > _WORD
    return key.removeprefix("_") in _EVERYWHERE


def _value(value: Any, *, result: bool = False) -> Any:
    if isinstance(value, list):
        return [_value(v, result=result) for v in value]
    if not isinstance(value, dict):
        return value
    if "resourceType" in value:
        return _resource(value)
    kind = value.get("type")  # of a Reference; elsewhere it may be a concept, or several
    person = isinstance(kind, str) and kind in _PERSONS
    if "reference" in value or person:
        literal = value.get("reference")
        if isinstance(literal, dict):  # Consent.provision.actor
            return {k: _value(v) for k, v in value.items() if k not in _EVERYWHERE}
        if person or not isinstance(literal, str) or not any(f"{d}/" in literal for d in _NO_PERSONS):
            return {k: v for k, v in value.items() if k in ("reference", "type")}
    coded = "code" in value or "coding" in value  # the words of a code tell what was examined, not who was
    return {
        k: _value(v, result=result)
        for k, v in value.items()
        if (coded and k == "text") or not _tells(k, v, result=result)
    }


def require_no_identity(queries: Iterable[Query]) -> None:
    """Raises Fault FORBIDDEN for a search that asks who somebody is: its count alone would tell."""
    for query in queries:
        sorts = [(query.type, k.strip().lstrip("-")) for n, v in query.used if n == "_sort" for k in v.split(",")]
        for name, code in [*sorts, *(pair for f in query.filters for pair in _asked(query.type, f))]:
            added = any(code == p.code for p, _ in posted(name))  # nobody judged what it looks at
            told = added or (name not in DIRECTORIES and (code in _NUMBERS or _is_left_out(name, code)))
            if told or code in _FREE or code == "identifier" or (name in _PERSONS and code not in _ASKABLE):
                raise Fault(
                    Category.FORBIDDEN,
                    "Auditors see pseudonymised data: names, numbers, birth dates, addresses and free text cannot be searched.",
                    where=code,
                )


def _is_left_out(type: str, code: str) -> bool:
    """Whether a search parameter looks at texts or numbers that bodies are shown without. The audit log has a search of its own."""
    parameter = parameters(type).get(code)
    if parameter is None or type == "AuditEvent":
        return False
    return parameter.kind == "string" or any("Identifier" in path.types for path, _ in parameter.paths)


def _asked(type: str, found: Filter) -> Iterable[tuple[str, str]]:
    if found.modifier == "identifier" or (found.modifier == "text" and type not in DIRECTORIES):
        yield type, "identifier"
    if not found.inner:
        yield type, found.code.partition(":")[0]
    for other, inner in found.inner:
        yield from _asked(other, inner)
