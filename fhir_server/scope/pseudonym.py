"""Bodies without what tells who the patient is, for auditors: logical ids stay, so that findings can be followed.

Left out: names, numbers, addresses below the city, contacts, photographs, free text and attached documents; a birth date becomes its
year. Labelled PSEUDED (http://terminology.hl7.org/CodeSystem/v3-ObservationValue).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from conformance import fhirjson
from fhir_server.errors import Category, Fault
from fhir_server.search.definitions import posted
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
        "valueContactPoint", "extension", "modifierExtension", "title",
    }
)  # fmt: skip
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
    person = resource.get("resourceType") in _PERSONS
    out: dict[str, Any] = {}
    for key, value in resource.items():
        plain = key.removeprefix("_")
        if person and plain in _OF_PERSONS:
            continue
        if person and plain == "address" and isinstance(value, list):
            out[key] = [{k: a[k] for k in _ADDRESS if k in a} for a in value if isinstance(a, dict)]
        elif person and key == "birthDate" and isinstance(value, str):
            out[key] = value[:4]
        elif plain not in _EVERYWHERE and not (person and key == "_birthDate"):
            out[key] = _value(value)
    return out


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "resourceType" in value:
        return _resource(value)
    kind = value.get("type")  # of a Reference; elsewhere it may be a concept, or several
    person = isinstance(kind, str) and kind in _PERSONS
    if "reference" in value or person:
        literal = value.get("reference")
        if person or not isinstance(literal, str) or any(f"{p}/" in literal for p in _PERSONS):
            return {k: v for k, v in value.items() if k in ("reference", "type")}
    coded = "code" in value or "coding" in value  # the words of a code tell what was examined, not who was
    return {k: _value(v) for k, v in value.items() if (coded and k == "text") or k.removeprefix("_") not in _EVERYWHERE}


def require_no_identity(queries: Iterable[Query]) -> None:
    """Raises Fault FORBIDDEN for a search that asks who somebody is: its count alone would tell."""
    for query in queries:
        sorts = [(query.type, k.strip().lstrip("-")) for n, v in query.used if n == "_sort" for k in v.split(",")]
        for name, code in [*sorts, *(pair for f in query.filters for pair in _asked(query.type, f))]:
            added = any(code == p.code for p, _ in posted(name))  # nobody judged what it looks at
            told = added or (code in _NUMBERS and name not in DIRECTORIES)
            if told or code in _FREE or code == "identifier" or (name in _PERSONS and code not in _ASKABLE):
                raise Fault(
                    Category.FORBIDDEN,
                    "Auditors see pseudonymised data: names, numbers, birth dates, addresses and free text cannot be searched.",
                    where=code,
                )


def _asked(type: str, found: Filter) -> Iterable[tuple[str, str]]:
    if found.modifier == "identifier":
        yield type, "identifier"
    if not found.inner:
        yield type, found.code.partition(":")[0]
    for other, inner in found.inner:
        yield from _asked(other, inner)
