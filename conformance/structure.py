"""Rules of R4 that a JSON Schema cannot say, each with its key in the standard (http://hl7.org/fhir/R4/<type>.html#invs)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from lxml import etree

from conformance.issue import Issue

_NUMBER: Final = (int, float, Decimal)
_STEP = re.compile(r"([A-Za-z]+)(?:\[(\d+)\])?")
_XHTML: Final = "{http://www.w3.org/1999/xhtml}"
# http://hl7.org/fhir/R4/narrative.html#xhtml
_ELEMENT_NAMES: Final = """
a abbr acronym b big blockquote br caption cite code col colgroup dd dfn div dl dt em h1 h2 h3 h4 h5 h6 hr i img li ol p pre q
samp small span strong sub sup table tbody td tfoot th thead tr tt ul var"""
_ATTRIBUTE_NAMES: Final = """
abbr accesskey align alt axis bgcolor border cellhalign cellpadding cellspacing cellvalign char charoff charset cite class
colspan compact coords dir frame headers height href hreflang hspace id lang longdesc name nowrap rel rev rowspan rules scope
shape span src start style summary tabindex title type valign value vspace width"""
_ELEMENTS: Final = frozenset(_ELEMENT_NAMES.split())
_ATTRIBUTES: Final = frozenset(_ATTRIBUTE_NAMES.split())


def inner(type: str, resource: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Resources inside a resource, with their path: contained, and what a Bundle or Parameters carries."""
    yield from _listed("contained", resource.get("contained"))
    if type == "Bundle":
        for path, entry in _listed("entry", resource.get("entry")):
            if isinstance(entry, dict):
                if "resource" in entry:
                    yield f"{path}.resource", entry["resource"]
                response = entry.get("response")
                if isinstance(response, dict) and "outcome" in response:
                    yield f"{path}.response.outcome", response["outcome"]
    elif type == "Parameters":
        yield from _parameters("parameter", resource.get("parameter"))


def _parameters(name: str, parameters: Any) -> Iterator[tuple[str, Any]]:
    for path, parameter in _listed(name, parameters):
        if isinstance(parameter, dict):
            if "resource" in parameter:
                yield f"{path}.resource", parameter["resource"]
            for deeper, value in _parameters("part", parameter.get("part")):
                yield f"{path}.{deeper}", value


def _listed(name: str, values: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(values, list):
        for i, value in enumerate(values):
            yield f"{name}[{i}]", value


def follow(resource: Any, path: str) -> Any:
    """The value at a path that ``inner`` gave."""
    for name, index in _STEP.findall(path):
        resource = resource[name]
        if index:
            resource = resource[int(index)]
    return resource


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    return (v for v in value if isinstance(v, dict)) if isinstance(value, list) else iter(())


def rules(type: str, resource: dict[str, Any], root: str) -> Iterator[Issue]:
    """Cheap rules, for the hot path: they look only at the types and elements they are about."""
    contained = resource.get("contained")
    if contained is not None:
        yield from _contained(resource, contained, root)
    rule = _RULES.get(type)
    if rule is not None:
        yield from rule(resource, root)


def _contained(resource: dict[str, Any], contained: Any, root: str) -> Iterator[Issue]:
    ids: set[str] = set()
    for i, one in enumerate(_dicts(contained)):
        where = f"{root}.contained[{i}]"
        if "contained" in one:
            yield _invariant("dom-2", f"{where}.contained", "a contained resource contains no other")
        meta = one.get("meta")
        if isinstance(meta, dict) and ("versionId" in meta or "lastUpdated" in meta):
            yield _invariant("dom-4", f"{where}.meta", "a contained resource has no versionId and no lastUpdated")
        if isinstance(meta, dict) and "security" in meta:
            yield _invariant("dom-5", f"{where}.meta.security", "a contained resource has no security label")
        if not isinstance(one.get("id"), str):
            yield Issue(
                "missing-element", "error", f"{where}.id", "A contained resource needs an id to be referred to."
            )
        elif one["id"] in ids:
            yield Issue("duplicate-id", "error", f"{where}.id", "Two contained resources have the same id.")
        else:
            ids.add(one["id"])
    for where, reference in _local_references(resource, root):
        if reference != "#" and reference[1:] not in ids:
            yield _invariant("ref-1", where, "a reference that begins with # names a contained resource")


def _local_references(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, part in value.items():
            if name == "reference" and isinstance(part, str) and part.startswith("#"):
                yield f"{where}.reference", part
            elif isinstance(part, dict | list):
                yield from _local_references(part, f"{where}.{name}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _local_references(part, f"{where}[{i}]")


def _invariant(key: str, where: str, text: str) -> Issue:
    return Issue("invariant", "error", where, f"{key}: {text}.")


def _codings(concept: Any) -> set[tuple[str, str]]:
    if not isinstance(concept, dict):
        return set()
    pairs = [(c.get("system"), c.get("code")) for c in _dicts(concept.get("coding"))]
    return {(system, code) for system, code in pairs if isinstance(system, str) and isinstance(code, str)}


def _observation(resource: dict[str, Any], root: str) -> Iterator[Issue]:
    components = resource.get("component")
    if components:
        codings = _codings(resource.get("code"))
        same = any(codings & _codings(c.get("code")) for c in _dicts(components))
        if same and any(name.startswith("value") for name in resource):
            yield _invariant("obs-7", root, "a value stands beside components only when no component has the same code")
    yield from _period(resource.get("effectivePeriod"), f"{root}.effectivePeriod")
    yield from _range(resource.get("valueRange"), f"{root}.valueRange")
    for i, one in enumerate(_dicts(resource.get("referenceRange"))):
        yield from _range(one, f"{root}.referenceRange[{i}]")


def _encounter(resource: dict[str, Any], root: str) -> Iterator[Issue]:
    yield from _period(resource.get("period"), f"{root}.period")


def _report(resource: dict[str, Any], root: str) -> Iterator[Issue]:
    yield from _period(resource.get("effectivePeriod"), f"{root}.effectivePeriod")


def _bundle(resource: dict[str, Any], root: str) -> Iterator[Issue]:
    entries = list(_dicts(resource.get("entry")))
    urls: set[tuple[str, str | None]] = set()
    for i, entry in enumerate(entries):
        url = entry.get("fullUrl")
        if not isinstance(url, str):
            continue
        if "/_history/" in url:
            yield _invariant("bdl-8", f"{root}.entry[{i}].fullUrl", "a fullUrl names no version")
        inside = entry.get("resource")
        meta = inside.get("meta") if isinstance(inside, dict) else None
        key = (url, str(meta.get("versionId")) if isinstance(meta, dict) else None)
        if key in urls and resource.get("type") != "history":
            yield _invariant("bdl-7", f"{root}.entry[{i}].fullUrl", "a fullUrl stands once in a Bundle")
        urls.add(key)
    needed = {"document": ("bdl-11", "Composition"), "message": ("bdl-12", "MessageHeader")}.get(
        str(resource.get("type"))
    )
    if needed:
        first = entries[0].get("resource") if entries else None
        if not isinstance(first, dict) or first.get("resourceType") != needed[1]:
            yield _invariant(needed[0], f"{root}.entry[0]", f"a {resource['type']} begins with a {needed[1]}")


def _repeated(items: Any, *names: str) -> Iterator[int]:
    """Places of the objects whose values of these elements stood before; of those alone that have the first."""
    seen: set[tuple[Any, ...]] = set()
    for i, one in enumerate(_dicts(items)):
        if names[0] in one:
            key = tuple(one.get(name) for name in names)
            if key in seen:
                yield i
            seen.add(key)


def _code_system(resource: dict[str, Any], root: str) -> Iterator[Issue]:
    seen: set[str] = set()
    waiting = [(root, resource)]
    while waiting:
        at, holder = waiting.pop(0)
        for i, one in enumerate(_dicts(holder.get("concept"))):
            where = f"{at}.concept[{i}]"
            if one.get("code") in seen:
                yield _invariant("csd-1", f"{where}.code", "a code stands once in a code system")
            elif isinstance(one.get("code"), str):
                seen.add(one["code"])
            waiting.append((where, one))


def _capability(resource: dict[str, Any], root: str) -> Iterator[Issue]:
    for i in _repeated(resource.get("document"), "profile", "mode"):
        yield _invariant("cpb-7", f"{root}.document[{i}]", "a profile and mode of documents stand once")
    for n, rest in enumerate(_dicts(resource.get("rest"))):
        for i in _repeated(rest.get("resource"), "type"):
            yield _invariant("cpb-9", f"{root}.rest[{n}].resource[{i}]", "a resource type stands once")
        for m, one in enumerate(_dicts(rest.get("resource"))):
            for i in _repeated(one.get("searchParam"), "name"):
                where = f"{root}.rest[{n}].resource[{m}].searchParam[{i}].name"
                yield _invariant("cpb-12", where, "the name of a search parameter stands once")


def _definition(resource: dict[str, Any], root: str) -> Iterator[Issue]:
    for part, key in (("snapshot", "sdf-16"), ("differential", "sdf-17")):
        elements = (resource.get(part) or {}).get("element")
        for i in _repeated(elements, "id"):
            yield _invariant(key, f"{root}.{part}.element[{i}].id", "an element id stands once")
        for i, one in enumerate(_dicts(elements)):
            where = f"{root}.{part}.element[{i}]"
            if one.get("max", "*") != "*" and one.get("min", 0) > int(one["max"]):
                yield _invariant("eld-2", where, "min is not above max")
            for n in _repeated(one.get("type"), "code"):
                yield _invariant("eld-13", f"{where}.type[{n}].code", "a type stands once")
            for n in _repeated(one.get("constraint"), "key"):
                yield _invariant("eld-14", f"{where}.constraint[{n}].key", "the key of a constraint stands once")


def _task(resource: dict[str, Any], root: str) -> Iterator[Issue]:
    first, last = resource.get("authoredOn"), resource.get("lastModified")
    if isinstance(first, str) and isinstance(last, str) and _after(first, last):
        yield _invariant("inv-1", f"{root}.lastModified", "lastModified is not before authoredOn")


_RULES: Final[dict[str, Callable[[dict[str, Any], str], Iterator[Issue]]]] = {
    "Observation": _observation,
    "DiagnosticReport": _report,
    "Encounter": _encounter,
    "Bundle": _bundle,
    "CapabilityStatement": _capability,
    "CodeSystem": _code_system,
    "StructureDefinition": _definition,
    "Task": _task,
}


def _period(period: Any, where: str) -> Iterator[Issue]:
    """per-1: the start is not after the end, as far as both are stated."""
    start, end = (period.get("start"), period.get("end")) if isinstance(period, dict) else (None, None)
    if isinstance(start, str) and isinstance(end, str) and _after(start, end):
        yield _invariant("per-1", where, "the start is not after the end")


def _after(start: str, end: str) -> bool:
    """Whether the start is surely later, as far as both are stated; False for what is no date: the schema tells."""
    try:
        return _later(start, end)
    except ValueError:
        return False


def _later(start: str, end: str) -> bool:
    if len(start) > 10 and len(end) > 10:
        return datetime.fromisoformat(start) > datetime.fromisoformat(end)
    length = min(len(start), len(end), 10)
    if length == 10 and max(len(start), len(end)) > 10:
        # A day without a zone may begin up to a day earlier or later.
        return date.fromisoformat(start[:10]) - date.fromisoformat(end[:10]) > timedelta(days=1)
    return start[:length] > end[:length]


def _range(range_: Any, where: str) -> Iterator[Issue]:
    """rng-2; compared when both ends have the same unit."""
    if not isinstance(range_, dict):
        return
    low, high = range_.get("low"), range_.get("high")
    if isinstance(low, dict) and isinstance(high, dict):
        same_unit = all(low.get(k) == high.get(k) for k in ("system", "code", "unit"))
        bottom, top = low.get("value"), high.get("value")
        if same_unit and isinstance(bottom, _NUMBER) and isinstance(top, _NUMBER) and bottom > top:
            yield _invariant("rng-2", where, "low is not above high")


def thorough(resource: dict[str, Any]) -> Iterator[Issue]:
    """Rules that look at the whole resource: references to contained resources, periods and ranges anywhere, narratives."""
    root = resource["resourceType"]
    yield from _containing(resource, root)
    yield from _anywhere(resource, root)


def _containing(resource: dict[str, Any], root: str) -> Iterator[Issue]:
    """References between a resource and what it contains; each entry of a Bundle is a container of its own."""
    if resource["resourceType"] in ("Bundle", "Parameters"):
        for path, one in inner(resource["resourceType"], resource):
            yield from _containing(one, f"{root}.{path}")
    elif "contained" in resource:
        yield from _referred(resource, root)
    else:
        for where, reference in _local_references(resource, root):
            if reference != "#":
                yield _invariant("ref-1", where, "a reference that begins with # names a contained resource")


def _referred(resource: dict[str, Any], root: str) -> Iterator[Issue]:
    """dom-3: every contained resource is referred to from outside it, or refers to its container."""
    named = {text for key, part in resource.items() if key != "contained" for text in _fragments(part)}
    inside = [(i, one, set(_fragments(one))) for i, one in enumerate(_dicts(resource["contained"]))]
    for i, one, own in inside:
        others = named.union(*(texts for j, _, texts in inside if j != i))
        if f"#{one.get('id')}" not in others and "#" not in own:
            yield _invariant(
                "dom-3", f"{root}.contained[{i}]", "a contained resource is referred to from its container"
            )


def _fragments(value: Any) -> Iterator[str]:
    """Texts that begin with ``#``: references, canonicals and URIs to contained resources."""
    if isinstance(value, str):
        if value.startswith("#"):
            yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _fragments(part)


def _anywhere(value: Any, where: str) -> Iterator[Issue]:
    if isinstance(value, list):
        for i, part in enumerate(value):
            yield from _anywhere(part, f"{where}[{i}]")
    elif isinstance(value, dict):
        if "start" in value and "end" in value:
            yield from _period(value, where)
        if "low" in value and "high" in value:
            yield from _range(value, where)
        if isinstance(value.get("div"), str) and "status" in value:
            yield from _narrative(value["div"], f"{where}.div")
        for name, part in value.items():
            if isinstance(part, dict | list):
                yield from _anywhere(part, f"{where}.{name}")
        yield from _nothing(value, where)


def _nothing(holder: dict[str, Any], where: str) -> Iterator[Issue]:
    """ele-1: an element has a value or children beside its id; a null in a list has its extension in the list of the ``_`` twin."""
    for name, part in holder.items():
        items = part if isinstance(part, list) else [part]
        twins = holder.get(name[1:] if name.startswith("_") else f"_{name}")
        for i, one in enumerate(items):
            beside = (twins[i] if i < len(twins) else None) if isinstance(twins, list) else twins
            idle = one is None or (isinstance(one, dict) and one.keys() == {"id"})
            if idle and (beside is None or (isinstance(beside, dict) and beside.keys() == {"id"})):
                if name.startswith("_") and isinstance(twins, list) and i < len(twins):
                    continue  # told at the value
                place = f"{where}.{name.removeprefix('_')}" + (f"[{i}]" if isinstance(part, list) else "")
                yield _invariant("ele-1", place, "an element has a value or children beside its id")


def _narrative(div: str, where: str) -> Iterator[Issue]:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        tree = etree.fromstring(div.encode("utf-8"), parser)
    except etree.XMLSyntaxError:
        yield Issue("bad-format", "error", where, "The narrative is not well-formed XHTML.")
        return
    if tree.tag != f"{_XHTML}div":
        yield Issue("bad-format", "error", where, "The narrative is one div element in the XHTML namespace.")
        return
    for element in tree.iter():
        if not isinstance(element.tag, str):
            continue  # comments
        name = element.tag.removeprefix(_XHTML)
        wrong = name not in _ELEMENTS or any(
            a.partition("}")[2] not in ("lang", "space") if a.startswith("{") else a not in _ATTRIBUTES
            for a in element.attrib
        )
        if wrong or any(_script(v) for v in element.attrib.values()):
            yield _invariant("txt-1", where, "a narrative has basic formatting only, no scripts, forms or events")
            return
    if not "".join(tree.itertext()).strip() and tree.find(f".//{_XHTML}img") is None:
        yield _invariant("txt-2", where, "a narrative has some content that is not blank")


def _script(value: str) -> bool:
    return re.sub(r"[\s\x00-\x1f]", "", value).lower().startswith(("javascript:", "vbscript:"))
