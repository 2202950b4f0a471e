"""Checks a resource against a profile (http://hl7.org/fhir/R4/profiling.html): what its differential adds to R4.

Cardinality, fixed values and patterns, types and targets, required bindings, slices (discriminators value, pattern, exists, type) and
invariants (FHIRPath). A resource that is not sound R4 is not looked at here (validator).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import fhirpathpy
from fhirpathpy.models import models

from conformance.issue import Issue, Severity

_CORE: Final = "http://hl7.org/fhir/StructureDefinition/"
_DEEPEST: Final = 8
_COSTLY = re.compile(r"\b(matches|replaceMatches|repeat)\b")

Definitions = Callable[[str], "Mapping[str, Any] | None"]
"""Canonical URL (with or without version) -> StructureDefinition."""
Codes = Callable[[str], "frozenset[tuple[str, str]] | None"]
"""Canonical URL of a value set -> its (system, code) pairs; None when it is not known, or not finite."""


@dataclass(slots=True)
class _Node:
    """An element of the differential. children and slices by name."""

    element: Mapping[str, Any] = field(default_factory=dict)
    children: dict[str, _Node] = field(default_factory=dict)
    slices: dict[str, _Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checker:
    """Looks profiles and value sets up; ``trusted``: regular expressions in the invariants of a profile (URL) may be run."""

    definitions: Definitions
    codes: Codes
    trusted: Callable[[str], bool]

    def check(self, resource: Mapping[str, Any], url: str, depth: int = 0) -> Iterator[Issue]:
        """Problems of the resource by the profile and the profiles it builds on; its own type as profile is always met."""
        kind = resource["resourceType"]
        plain = url.partition("|")[0]
        if plain == _CORE + kind or plain in (_CORE + "Resource", _CORE + "DomainResource"):
            return
        definition = self.definitions(url)
        if definition is None or depth > _DEEPEST:
            text = "The profile is not known here; it was not checked."
            yield Issue("unknown-profile", "warning", "", text)
            return
        if definition.get("type") != kind:
            yield Issue("wrong-type", "error", "resourceType", f"The profile is for {definition.get('type')}.")
            return
        elements = (definition.get("differential") or definition.get("snapshot") or {}).get("element", ())
        run = _Run(self, self.trusted(plain))
        yield from run.value(_tree(elements), resource, kind)
        if base := definition.get("baseDefinition"):
            yield from self.check(resource, base, depth + 1)


def _implied(node: _Node) -> Mapping[str, Any]:
    """The slicing nobody needs to write: a choice by its type, extensions by their url."""
    choice = any(s.element.get("path", "").endswith("[x]") for s in node.slices.values())
    by = {"type": "type", "path": "$this"} if choice else {"type": "value", "path": "url"}
    return {"discriminator": [by], "rules": "open"}


def _tree(elements: Sequence[Mapping[str, Any]]) -> _Node:
    root = _Node()
    for element in elements:
        node = root
        for part in element.get("id", element["path"]).split(".")[1:]:
            name, _, part_of = part.partition(":")
            node = node.children.setdefault(name, _Node())
            if part_of:
                node = node.slices.setdefault(part_of, _Node())
        node.element = element
    return root


def _values(holder: Mapping[str, Any], name: str) -> list[tuple[Any, str, str]]:
    """(value, name with index, datatype of a choice) of an element."""
    out = []
    if name.endswith("[x]"):
        stem = name[:-3]
        keys = [k for k in holder if k.startswith(stem) and k[len(stem) :][:1].isupper()]
    else:
        stem, keys = name, [name] if name in holder else []
    for key in keys:
        found = holder[key]
        chosen = key[len(stem) :]
        if isinstance(found, list):
            out += [(v, f"{key}[{n}]", chosen) for n, v in enumerate(found) if v is not None]
        else:
            out.append((found, key, chosen))
    return out


@dataclass(slots=True)
class _Run:
    checker: Checker
    trusted: bool

    def value(self, node: _Node, value: Any, where: str, type: str = "") -> Iterator[Issue]:
        """A value by the element it stands at, and everything below it."""
        yield from self._itself(node.element, value, where, type)
        if isinstance(value, Mapping):
            for name, child in node.children.items():
                yield from self._element(child, _values(value, name), f"{where}.{name.removesuffix('[x]')}", where)

    def _element(self, node: _Node, found: list[tuple[Any, str, str]], where: str, parent: str) -> Iterator[Issue]:
        yield from _count(node.element, len(found), where)
        for value, place, form in found:
            yield from self.value(node, value, f"{parent}.{place}", form)
        if not node.slices:
            return
        slicing = node.element.get("slicing") or _implied(node)
        counts = dict.fromkeys(node.slices, 0)
        for value, place, form in found:
            name = next((n for n, s in node.slices.items() if self._in_slice(slicing, n, s, value, form)), None)
            if name is not None:
                counts[name] += 1
                yield from self.value(node.slices[name], value, f"{parent}.{place}", form)
            elif slicing.get("rules") == "closed":
                yield Issue(
                    "wrong-value",
                    "error",
                    f"{parent}.{place}",
                    "This fits none of the slices, and no other is allowed.",
                )
        for name, count in counts.items():
            yield from _count(node.slices[name].element, count, where, name)

    def _in_slice(self, slicing: Mapping[str, Any], name: str, node: _Node, value: Any, type: str) -> bool:
        for discriminator in slicing.get("discriminator", ()):
            path = discriminator["path"]
            there, at = node, [(value, type)]
            for part in [] if path == "$this" else path.split("."):
                there = there.children.get(part, _Node())
                at = [(v, t) for holder, _ in at if isinstance(holder, Mapping) for v, _, t in _values(holder, part)]
            if discriminator["type"] == "exists":
                if bool(at) != (there.element.get("min", 0) > 0):
                    return False
            elif discriminator["type"] == "type":
                wanted = {t["code"].lower() for t in there.element.get("type", ())}
                if not any(_datatype(v, t).lower() in wanted for v, t in at):
                    return False
            elif not any(self._discriminates(there.element, v) for v, _ in at):
                return False
        return True

    def _discriminates(self, element: Mapping[str, Any], value: Any) -> bool:
        said = [k for k in element if k.startswith(("fixed", "pattern"))]
        if said:
            return all(_fits(element[k], value, exactly=k.startswith("fixed")) for k in said)
        codes = self._bound(element)
        return codes is not None and _coded(value, codes)

    def _bound(self, element: Mapping[str, Any]) -> frozenset[tuple[str, str]] | None:
        binding = element.get("binding", {})
        return self.checker.codes(binding["valueSet"]) if "valueSet" in binding else None

    def _itself(self, element: Mapping[str, Any], value: Any, where: str, type: str) -> Iterator[Issue]:
        for key, wanted in element.items():
            if key.startswith(("fixed", "pattern")) and not _fits(wanted, value, exactly=key.startswith("fixed")):
                yield Issue("wrong-value", "error", where, "The profile asks for another value here.")
        if types := element.get("type"):
            yield from _typed(types, value, type, where)
        if element.get("binding", {}).get("strength") == "required":
            codes = self._bound(element)
            if codes is None:
                yield Issue(
                    "unknown-value-set", "information", where, "The value set is not known here; it was not checked."
                )
            elif not _coded(value, codes):
                yield Issue("bad-code", "error", where, "This is none of the codes of the profile's value set.")
        for rule in element.get("constraint", ()):
            if "expression" in rule:
                yield from self._invariant(rule, value, where)

    def _invariant(self, rule: Mapping[str, Any], value: Any, where: str) -> Iterator[Issue]:
        expression = rule["expression"]
        if not self.trusted and (_COSTLY.search(expression) or len(expression) > 1000):
            yield Issue("invariant", "information", where, f"{rule['key']}: this invariant is not evaluated here.")
            return
        try:
            held = _compiled(expression)(value)
        # fhirpathpy raises Exception itself for what it cannot evaluate, so nothing narrower catches it; only its call stands here,
        # and the invariant is told as not evaluated: it is never taken as met.
        except Exception as fault:  # noqa: BLE001
            text = f"{rule['key']}: this invariant cannot be evaluated ({type(fault).__name__})."
            yield Issue("invariant", "information", where, text)
            return
        if held and held[0] is False:
            severity: Severity = "warning" if rule.get("severity") == "warning" else "error"
            yield Issue("invariant", severity, where, f"{rule['key']}: {rule.get('human', expression)}.")


@lru_cache(maxsize=512)
def _compiled(expression: str) -> Callable[[Any], list[Any]]:
    made = fhirpathpy.compile(expression, models["r4"])
    return lambda value: list(made(value, None))


def _count(element: Mapping[str, Any], count: int, where: str, part_of: str = "") -> Iterator[Issue]:
    """Cardinality of an element, or of one slice of it."""
    least, most = element.get("min", 0), element.get("max", "*")
    what = f"the slice {part_of} of this" if part_of else "this"
    if count < least:
        text = f"The profile requires {what}" + ("." if least == 1 else f" at least {least} times.")
        yield Issue("missing-element", "error", where, text)
    if most != "*" and count > int(most):
        yield Issue("wrong-value", "error", where, f"The profile allows {what} at most {most} times.")


def _typed(types: Sequence[Mapping[str, Any]], value: Any, type: str, where: str) -> Iterator[Issue]:
    codes = {t["code"].lower() for t in types}
    if type and type.lower() not in codes:
        yield Issue("wrong-type", "error", where, f"The profile allows {', '.join(t['code'] for t in types)} here.")
    targets = {p.rpartition("/")[2] for t in types for p in t.get("targetProfile", ())}
    literal = value.get("reference", "") if isinstance(value, Mapping) else ""
    kind = re.fullmatch(r"(?:.*/)?([A-Z][A-Za-z]+)/[A-Za-z0-9\-.]{1,64}(?:/_history/.+)?", literal)
    if (
        targets
        and kind
        and all(p.startswith(_CORE) for t in types for p in t.get("targetProfile", ()))
        and kind[1] not in targets
    ):
        yield Issue(
            "bad-reference", "error", where, f"The profile asks for a reference to {' or '.join(sorted(targets))}."
        )


def _datatype(value: Any, type: str) -> str:
    if type:
        return type
    if isinstance(value, Mapping):
        return str(value.get("resourceType", "Reference" if "reference" in value else ""))
    return "boolean" if isinstance(value, bool) else "string"


def _fits(wanted: Any, value: Any, *, exactly: bool) -> bool:
    if isinstance(wanted, Mapping):
        return (
            isinstance(value, Mapping)
            and (not exactly or wanted.keys() == value.keys())
            and all(k in value and _fits(w, value[k], exactly=exactly) for k, w in wanted.items())
        )
    if isinstance(wanted, list):
        return isinstance(value, list) and all(any(_fits(w, v, exactly=exactly) for v in value) for w in wanted)
    return bool(wanted == value)


def _coded(value: Any, codes: frozenset[tuple[str, str]]) -> bool:
    if isinstance(value, str):
        return any(code == value for _, code in codes)
    if not isinstance(value, Mapping):
        return False
    return any((c.get("system", ""), c.get("code", "")) in codes for c in value.get("coding", [value]))
