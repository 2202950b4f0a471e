"""Terminology operations on what is stored here: ``$lookup``, ``$validate-code``, ``$expand``, ``$translate``
(http://hl7.org/fhir/R4/codesystem-operations.html, valueset-operations.html, conceptmap-operations.html).

Each is a generator: it yields SQL, is sent the rows (search/value_sets), and returns the answer as JSON.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from conformance import fhirjson
from conformance.validator import check
from fhir_server.api.inputs import Inputs, output
from fhir_server.api.responses import Invalid
from fhir_server.errors import Category, Fault
from fhir_server.search.leaves import normalise
from fhir_server.search.value_sets import Code, Steps, Terminology, Tree, maps_from
from fhir_server.store.statement import instant

_SHOWN: Final = (
    "resourceType",
    "id",
    "meta",
    "url",
    "identifier",
    "version",
    "name",
    "title",
    "status",
    "experimental",
    "date",
)
_NO_MATCH: Final = frozenset({"unmatched", "disjoint"})


def _of(type: str, name: str, logical: str, asked: Inputs, terminology: Terminology) -> Steps:
    """The resource an operation is about: that of the URL, the one sent, or the one ``url`` names."""
    sent = asked.resources.get(name) or asked.resources.get("resource")
    if sent is not None:
        if sent.get("resourceType") != type:
            raise Fault(Category.INVALID, f"{name} must be a {type}.", where=name)
        if broken := check(sent):
            raise Invalid(broken)
        return sent
    url = f"{type}/{logical}" if logical else asked.text("url")
    if not url:
        raise Fault(Category.INVALID, f"Name a {type} by url.", where="url")
    version = asked.text("version" if type == "CodeSystem" else f"{name}Version")
    found = yield from terminology.resource(type, f"{url}|{version}" if version and not logical else url)
    if found is None:
        raise Fault(Category.NOT_FOUND, f"The {type} is not known here.")
    return found


def _codings(asked: Inputs, code: str = "code") -> list[Mapping[str, Any]]:
    """The codings asked about: of ``coding``, of ``codeableConcept``, or ``code`` with its ``system``."""
    if coding := asked.value("coding"):
        return [coding]
    if concept := asked.value("codeableConcept"):
        return list(concept.get("coding", []))
    if not asked.text(code):
        raise Fault(Category.INVALID, f"Give {code}, coding or codeableConcept.", where=code)
    return [{"system": asked.text("system"), "code": asked.text(code), "display": asked.text("display")}]


def lookup(asked: Inputs, terminology: Terminology) -> Steps:
    """``CodeSystem/$lookup``: name, display, designations and properties of a code."""
    (coding,) = _codings(asked)[:1] or [{}]
    system, code = coding.get("system"), coding.get("code")
    if not system or not code:
        raise Fault(Category.INVALID, "Give system and code, or a coding with both.", where="system")
    version = asked.text("version") or coding.get("version")
    resource = yield from terminology.resource("CodeSystem", f"{system}|{version}" if version else system)
    if resource is None:
        raise Fault(Category.NOT_FOUND, "The code system is not known here.", where="system")
    tree = Tree.of(resource)
    concept = tree.concepts.get(code)
    if concept is None:
        raise Fault(Category.NOT_FOUND, "The code system has no such code.", where="code")
    told = [{"name": "name", "valueString": resource.get("name") or resource.get("title") or system}]
    if "version" in resource:
        told.append({"name": "version", "valueString": resource["version"]})
    told.append({"name": "display", "valueString": concept.get("display") or code})
    wanted = {v for n, v in asked.pairs if n == "property"}
    return output(*told, *_designations(concept), *_properties(concept, tree, wanted))


def _designations(concept: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for said in concept.get("designation", ()):
        parts = [
            {"name": "language", "valueCode": said.get("language")},
            {"name": "use", "valueCoding": said.get("use")},
            {"name": "value", "valueString": said.get("value")},
        ]
        yield {"name": "designation", "part": [p for p in parts if None not in p.values()]}


def _properties(concept: Mapping[str, Any], tree: Tree, wanted: set[str]) -> Iterator[dict[str, Any]]:
    found = [("definition", {"valueString": concept["definition"]})] if "definition" in concept else []
    found += [("parent", {"valueCode": p}) for p in sorted(tree.parents.get(concept["code"], ()))]
    found += [("child", {"valueCode": c}) for c, above in tree.parents.items() if concept["code"] in above]
    for said in concept.get("property", ()):
        if said.get("code") not in ("parent", "child"):
            found.append((said.get("code", ""), {k: v for k, v in said.items() if k.startswith("value")}))
    for code, value in found:
        if not wanted or code in wanted:
            yield {"name": "property", "part": [{"name": "code", "valueCode": code}, {"name": "value", **value}]}


def _judged(asked: Inputs, known: Mapping[Code, str], code: str) -> bytes:
    """Whether one of the codings asked about is among the known codes: Parameters with result, message, display."""
    message = "None of the codes is in it."
    for coding in _codings(asked, code):
        pairs = [
            pair for pair in known if pair[1] == coding.get("code") and coding.get("system") in (None, "", pair[0])
        ]
        if len(pairs) == 1 and pairs[0][1]:
            display = known[pairs[0]]
            if coding.get("display") and display and normalise(coding["display"]) != normalise(display):
                message = "The display is not the one of the code."
                shown = {"name": "display", "valueString": display}
                return output(
                    {"name": "result", "valueBoolean": False}, {"name": "message", "valueString": message}, shown
                )
            told = [{"name": "display", "valueString": display}] if display else []
            return output({"name": "result", "valueBoolean": True}, *told)
        if len(pairs) > 1:
            message = "Several code systems have this code: give its system."
        elif (coding.get("system") or "", "") in known:
            message = "It holds the whole code system, but the code system is not known here."
    return output({"name": "result", "valueBoolean": False}, {"name": "message", "valueString": message})


def validate_in_system(logical: str, asked: Inputs, terminology: Terminology) -> Steps:
    """``CodeSystem/$validate-code``."""
    resource = yield from _of("CodeSystem", "codeSystem", logical, asked, terminology)
    system = resource.get("url", "")
    return _judged(asked, {(system, c): d for c, d in Tree.of(resource).display.items()}, "code")


def validate_in_set(logical: str, asked: Inputs, terminology: Terminology) -> Steps:
    """``ValueSet/$validate-code``."""
    resource = yield from _of("ValueSet", "valueSet", logical, asked, terminology)
    known = yield from terminology.codes_of(resource)
    return _judged(asked, known, "code")


def expand(logical: str, asked: Inputs, now: datetime, terminology: Terminology) -> Steps:
    """``ValueSet/$expand``: the codes, narrowed by ``filter``, from ``offset`` on, ``count`` of them."""
    resource = yield from _of("ValueSet", "valueSet", logical, asked, terminology)
    known = yield from terminology.codes_of(resource)
    if any(not code for _, code in known):
        raise Fault(Category.UNPROCESSABLE, "The value set holds a code system that is not known here as a whole.")
    wanted = normalise(asked.text("filter"))
    shown = [(c, d) for c, d in known.items() if not wanted or wanted in normalise(d) or wanted in normalise(c[1])]
    offset, count = asked.number("offset") or 0, asked.number("count")
    page = shown[offset:] if count is None else shown[offset : offset + count]
    expansion: dict[str, Any] = {
        "identifier": f"urn:uuid:{uuid.uuid4()}",
        "timestamp": instant(now),
        "total": len(shown),
    }
    if count is not None or offset:
        expansion["offset"] = offset
    used = [(n, v) for n, v in asked.pairs if n in ("filter", "offset", "count")]
    if used:
        kinds = {"filter": "valueString"}
        expansion["parameter"] = [
            {"name": n, kinds.get(n, "valueInteger"): v if n in kinds else int(v)} for n, v in used
        ]
    if page:
        expansion["contains"] = [
            {"system": s, "code": c, **({"display": d} if d else {})} if s else {"code": c} for (s, c), d in page
        ]
    head = {k: resource[k] for k in _SHOWN if k in resource}
    return fhirjson.dumps({**head, "expansion": expansion})


def translate(logical: str, asked: Inputs, terminology: Terminology) -> Steps:
    """``ConceptMap/$translate``: by the map that is named, else by all maps from the code's system."""
    codings = [(c.get("system") or "", c["code"]) for c in _codings(asked) if c.get("code")]
    reverse, target = asked.flag("reverse"), asked.text("targetsystem")
    if logical or asked.text("url") or asked.resources:
        maps = [(yield from _of("ConceptMap", "conceptMap", logical, asked, terminology))]
    elif not codings or not codings[0][0]:
        raise Fault(Category.INVALID, "Give url, or the system of the code.", where="url")
    else:
        maps = []
        for system in dict.fromkeys(s for s, _ in codings if s):
            maps += yield from maps_from(system, "target-system" if reverse else "source-system", terminology)
    found = [
        match
        for map_ in maps
        for group in map_.get("group", ())
        for system, code in codings
        for match in (_back if reverse else _onward)(group, system, code, target, map_.get("url", ""))
    ]
    result = any(equivalence not in _NO_MATCH for equivalence, _ in found)
    told: list[dict[str, Any]] = [{"name": "result", "valueBoolean": result}]
    if not result:
        told.append({"name": "message", "valueString": "There is no translation here."})
    return output(*told, *(match for _, match in found))


Match = tuple[str, dict[str, Any]]


def _onward(group: Mapping[str, Any], system: str, code: str, wanted: str, source: str) -> Iterator[Match]:
    if (group.get("source", system) not in (system, "") and system) or (wanted and group.get("target") != wanted):
        return
    elements = [e for e in group.get("element", ()) if e.get("code") == code]
    for element in elements:
        for target in element.get("target", ()):
            yield _match(target.get("equivalence", "relatedto"), group.get("target"), target, source)
    unmapped = group.get("unmapped")
    if not elements and unmapped:
        if unmapped.get("mode") == "fixed":
            yield _match("inexact", group.get("target"), unmapped, source)
        elif unmapped.get("mode") == "provided":
            yield _match("equal", group.get("target"), {"code": code}, source)


def _back(group: Mapping[str, Any], system: str, code: str, wanted: str, source: str) -> Iterator[Match]:
    if (system and group.get("target", system) != system) or (wanted and group.get("source") != wanted):
        return
    for element in group.get("element", ()):
        for target in element.get("target", ()):
            if target.get("code") == code:
                turned = {
                    "wider": "narrower",
                    "narrower": "wider",
                    "subsumes": "specializes",
                    "specializes": "subsumes",
                }
                said = target.get("equivalence", "relatedto")
                yield _match(turned.get(said, said), group.get("source"), element, source)


def _match(equivalence: str, system: str | None, concept: Mapping[str, Any], source: str) -> Match:
    coding = {"system": system, "code": concept.get("code"), "display": concept.get("display")}
    parts: list[dict[str, Any]] = [{"name": "equivalence", "valueCode": equivalence}]
    if coding["code"]:
        parts.append({"name": "concept", "valueCoding": {k: v for k, v in coding.items() if v}})
    if source:
        parts.append({"name": "source", "valueUri": source})
    return equivalence, {"name": "match", "part": parts}
