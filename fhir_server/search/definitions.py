"""The official R4 search parameters of the served types, parsed (http://hl7.org/fhir/R4/searchparameter-registry.html).

An expression is a FHIRPath union; each part becomes a ``Path``. What is indexed is the path, not the parameter: ``code`` and
``combo-code`` of Observation share the tokens of ``Observation.code``, ``patient`` and ``subject`` those of the subject.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Final

import xxhash

from conformance.capability import PATIENT_LINKS, RESOURCE_TYPES

# (kind, argument): child name | as type | is type | index number | where field=value | extension url
Step = tuple[str, str]
Part = tuple[str, tuple[Step, ...], str]
"""One part of an expression: normalised text, steps, the only resource type a reference may point to, or empty."""

INDEXED_KINDS: Final = frozenset({"token", "reference", "string", "date", "uri", "quantity", "number"})
COMMON_TYPES: Final = frozenset({"Coding", "CodeableConcept", "code", "boolean"})
"""Datatypes of token values that many resources have in common."""
QUANTITIES: Final = frozenset({"Quantity", "Age", "Count", "Distance", "Duration", "Money", "Range"})
"""Datatypes that quantity parameters look at."""

# The date parameter held in resource.start_at and end_at, where it is not called ``date``.
_MAIN_DATE: Final = {
    "Basic": "created",
    "Bundle": "timestamp",
    "Communication": "sent",
    "CommunicationRequest": "occurrence",
    "Condition": "onset-date",
    "DetectedIssue": "identified",
    "ImagingStudy": "started",
    "Media": "created",
    "Provenance": "recorded",
    "ServiceRequest": "occurrence",
    "Specimen": "collected",
    "Task": "authored-on",
}

ISSUED: Final = {"DiagnosticReport": "issued"}
"""Parameter answered by resource.issued_at: an instant, so one column says all."""


@dataclass(frozen=True, slots=True)
class Path:
    """One part of an expression, for one resource type and parameter kind.

    text     normalised FHIRPath without the type filter on the reference
    steps    how to walk it
    number   search_value.param; number - 1 is its bit in the presence map (resource_kind.present); fixed, stored rows carry it
    seed     seed of its token hashes; negative for references, whose hashes PostgreSQL can compute (leaves.hash_of)
    many     an element on the way repeats
    types    datatypes at the end
    systems  code systems a plain ``code`` is bound to; empty when it is not bound or not a code
    """

    text: str
    steps: tuple[Step, ...]
    number: int
    seed: int
    many: bool
    types: tuple[str, ...]
    systems: tuple[str, ...]

    @property
    def bit(self) -> int:
        """Mask of the presence map."""
        return 1 << (self.number - 1)

    @property
    def common(self) -> bool:
        """True when its token values stand with the kind of the resource (resource_kind.tokens), not in its own row."""
        return bool(self.types) and COMMON_TYPES.issuperset(self.types)


@dataclass(frozen=True, slots=True)
class Element:
    """A repeating element that a composite parameter looks at as a whole (``Observation.component``): its values stand together.

    path   steps to the element; its number and seed are those of the composite values
    parts  two: (kind of the part, steps below the element of each expression of it, paths below the element)
    """

    path: Path
    parts: tuple[tuple[str, tuple[Path, ...]], ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A search parameter of one resource type.

    kind      R4 search parameter type (token, reference, string, date, uri, quantity, number, composite, special)
    paths     what it looks at: (path, the only resource type a reference may point to, or empty)
    targets   resource types a reference may point to, served ones only
    column    ``date`` (start_at, end_at), ``issued`` (issued_at), or empty: tokens and search_value
    joined    composite of elements that stand once in the resource: both hold; its parts as parameters of their own
    elements  composite of elements that repeat
    own       of a posted parameter (search/posted): search_value.param of its values, which stand nowhere else
    """

    code: str
    kind: str
    url: str
    paths: tuple[tuple[Path, str], ...]
    targets: tuple[str, ...]
    column: str
    joined: tuple[Parameter, ...] = ()
    elements: tuple[Element, ...] = ()
    own: int = 0

    @property
    def indexed(self) -> bool:
        """True when a search by it can be answered."""
        return bool(self.paths) and self.kind in (*INDEXED_KINDS, "composite")


def about(type: str, parameter: Parameter) -> bool:
    """True when the parameter looks at the one element that says whom the resource is about, and that element does not repeat: a
    Patient there is the column resource.patient."""
    if type == "Patient" or parameter.kind != "reference" or len(parameter.paths) != 1:
        return False
    path = parameter.paths[0][0]
    names = ".".join(a for _, a in path.steps)
    return not path.many and names == PATIENT_LINKS.get(type, ("",))[0]


@cache
def _file() -> dict[str, Any]:
    text = resources.files("conformance").joinpath("searchparameters", "r4.json").read_text("utf-8")
    out: dict[str, Any] = json.loads(text)
    return out


@cache
def elements() -> dict[str, tuple[tuple[str, ...], bool, tuple[str, ...]]]:
    """Element path -> (types, repeats, systems of a required code binding) of every served type and every datatype."""
    return {
        path: (tuple(row[0]), bool(row[1]), tuple(row[2]) if len(row) > 2 else ())
        for path, row in _file()["elements"].items()
    }


@cache
def summaries() -> dict[str, dict[str, frozenset[str]]]:
    """Resource type -> ``summary``: JSON names at the top that ``_summary=true`` shows, ``mandatory``: those that are never left out.
    A choice stands as ``value[x]``."""
    return {t: {k: frozenset(v) for k, v in row.items()} for t, row in _file()["summaries"].items()}


@cache
def compartments() -> dict[str, dict[str, tuple[str, ...]]]:
    """Compartment (``Patient``) -> resource type -> reference parameters that place a resource in it
    (http://hl7.org/fhir/R4/compartmentdefinition.html)."""
    return {name: {t: tuple(c) for t, c in row.items()} for name, row in _file()["compartments"].items()}


class _Posted:
    """The posted parameters of this process, replaced as a whole: resource type -> (parameter, whether it answers searches)."""

    now: Mapping[str, tuple[tuple[Parameter, bool], ...]] = {}


def take_over(found: Mapping[str, tuple[tuple[Parameter, bool], ...]]) -> None:
    """The posted parameters of this process from now on."""
    _Posted.now = found


def posted(type: str) -> tuple[tuple[Parameter, bool], ...]:
    """The posted parameters of a resource type, and whether each answers searches already."""
    return _Posted.now.get(type, ())


def posted_codes() -> frozenset[tuple[str, str]]:
    """(resource type, code) of the posted parameters that answer searches."""
    return frozenset((name, p.code) for name, rows in _Posted.now.items() for p, ready in rows if ready)


def parameters(type: str) -> dict[str, Parameter]:
    """Code -> parameter that searches of a type take: the official ones, and the posted ones whose index is complete."""
    added = posted(type)
    return official(type) | {p.code: p for p, ready in added if ready} if added else official(type)


@cache
def official(type: str) -> dict[str, Parameter]:
    """Code -> parameter of a served resource type, those of all resources included; ``_id`` and ``_lastUpdated`` are not (columns)."""
    if type not in RESOURCE_TYPES:
        return {}
    found = [d for d in _file()["parameters"] if {type, "Resource", "DomainResource"} & set(d["base"])]
    found = [d for d in found if d["code"] != "_lastUpdated"]
    parts = {d["url"]: [p for e in union(d["expression"]) if (p := parse(type, e))] for d in found}
    texts = sorted({(d["type"], text) for d in found if d["type"] in INDEXED_KINDS for text, _, _ in parts[d["url"]]})
    number = {key: n for n, key in enumerate(texts, 1)}
    # The presence map is one signed 64-bit integer.
    if len(number) > 63:
        raise ValueError(f"{type} has {len(number)} indexed paths; the presence map holds 63")
    main = _MAIN_DATE.get(type, "date")
    out: dict[str, Parameter] = {}
    for d in found:
        kind = d["type"]
        paths = tuple(
            (_path(type, kind, text, steps, number[kind, text]), only)
            for text, steps, only in parts[d["url"]]
            if (kind, text) in number
        )
        targets = d.get("target", ())
        column = {main: "date", ISSUED.get(type, ""): "issued"}.get(d["code"], "") if kind == "date" else ""
        # A parameter of the type itself wins over one that an extension's definition added under the same code.
        if d["code"] in out and out[d["code"]].indexed:
            continue
        out[d["code"]] = Parameter(
            d["code"],
            kind,
            d["url"],
            paths,
            tuple(RESOURCE_TYPES) if "Resource" in targets else tuple(targets),
            column,
        )
    # Composites are numbered after all others, by their order; they have no bit of their own.
    joint: dict[str, int] = {}
    for d in found:
        if d["type"] == "composite" and (made := _composite(type, d, parts[d["url"]], number, joint)).paths:
            out[d["code"]] = made
    return out


@cache
def _kinds() -> dict[str, str]:
    return {d["url"]: d["type"] for d in _file()["parameters"]}


def _composite(
    type: str,
    definition: Mapping[str, Any],
    bases: list[Part],
    number: Mapping[tuple[str, str], int],
    joint: dict[str, int],
) -> Parameter:
    """A composite parameter: of the resource itself, of a repeating element, or of both (combo-code-value-quantity)."""
    joined: list[Parameter] = []
    found: list[Element] = []
    shown: list[tuple[Path, str]] = []
    for text, steps, _ in bases:
        parts = [_part(type, text, c, number) for c in definition["component"]]
        if not all(paths for _, paths in parts):
            continue
        shown += [(path, "") for path in parts[-1][1]]
        if not steps:
            joined = [Parameter(paths[0].text, k, "", tuple((p, "") for p in paths), (), "") for k, paths in parts]
            continue
        name = f"{text}({'$'.join(kind + ' ' + '|'.join(p.text for p in paths) for kind, paths in parts)})"
        seed = xxhash.xxh64_intdigest(f"composite {name}".encode())
        place = joint.setdefault(name, len(number) + len(joint) + 1)
        below = tuple((kind, tuple(replace(p, steps=p.steps[len(steps) :]) for p in paths)) for kind, paths in parts)
        found.append(Element(Path(name, steps, place, seed, True, (), ()), below))
    return Parameter(
        definition["code"], "composite", definition["url"], tuple(shown), (), "", tuple(joined), tuple(found)
    )


def _part(
    type: str, base: str, component: Mapping[str, str], number: Mapping[tuple[str, str], int]
) -> tuple[str, tuple[Path, ...]]:
    """(kind, paths) of one component. The kind is that of its definition, or, where two official definitions are mixed up
    (DocumentReference-relationship) or name no datatype (Group-characteristic-value), that of the parameter with the same path."""
    # ``DateTime`` is how one official definition spells dateTime.
    wanted = [f"{base}.{e.replace('DateTime', 'dateTime')}" for e in union(component["expression"])]
    known = [(k, t) for k, t in number if any(t == w or t.startswith(f"{w}.as(") for w in wanted)]
    stated = _kinds()[component["definition"]]
    kind = stated if any(k == stated for k, _ in known) else next((k for k, _ in known), stated)
    parts = [(text, parse(type, text)) for k, text in known if k == kind]
    return kind, tuple(_path(type, kind, text, p[1], number[kind, text]) for text, p in parts if p)


def _path(type: str, kind: str, text: str, steps: tuple[Step, ...], number: int) -> Path:
    many, types, systems = end_of(type, steps)
    # The kind is part of the seed: Person.name as string and as token must not meet.
    seed = xxhash.xxh64_intdigest(f"{kind} {text}".encode())
    return Path(text, steps, number, -seed if kind == "reference" else seed, many, types, systems)


def end_of(type: str, steps: tuple[Step, ...]) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
    """(something on the way repeats, datatypes at the end, bound code systems) of a parsed path."""
    at, many = type, False
    types: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    for kind, argument in steps:
        if kind == "index":
            many = False
        elif kind == "as":
            types = (argument,)
        elif kind == "deceased":
            return False, ("boolean",), ()
        elif kind == "extension":
            return True, (), ()
        elif kind == "child":
            row = elements().get(f"{at}.{argument}") or elements().get(f"{at}.{argument}[x]")
            if row is None:
                return True, (), ()
            types, repeats, systems = row
            many = many or repeats
            at = inner(f"{at}.{argument}", types[0] if types else "")
    return many, types, systems


def inner(path: str, type: str) -> str:
    """Where the children of an element stand: under its own path (backbone), its content reference, or its datatype."""
    if type.startswith("#"):
        return type[1:]
    return path if type in ("BackboneElement", "Element") else type


def union(expression: str) -> list[str]:
    """Parts of a union at the top level."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(expression):
        depth += (c == "(") - (c == ")")
        if c == "|" and depth == 0:
            parts.append(expression[start:i].strip())
            start = i + 1
    return [p for p in (*parts, expression[start:].strip()) if p]


_AS = re.compile(r"\((?P<path>[^()]+?) as (?P<type>\w+)\)")
_STEP = re.compile(
    r"""\.(?:
      as\((?P<as>\w+)\)
    | where\(resolve\(\)\ is\ (?P<is>\w+)\)
    | where\((?P<field>\w+)='(?P<value>[^']*)'\)
    | extension\('(?P<extension>[^']+)'\)
    | (?P<child>\w+)
    )(?:\[(?P<index>\d+)\])?""",
    re.VERBOSE,
)
DECEASED: Final = "Patient.deceased.exists() and Patient.deceased != false"
"""The one expression that is a computation, not a path."""


def parse(type: str, part: str) -> Part | None:
    """One part of an expression -> (normalised text, steps, reference type filter), or None when it belongs to another type.

    Raises ValueError for FHIRPath beyond what the R4 search parameters use.
    """
    if part == DECEASED:
        return (part, (("deceased", ""),), "") if type == "Patient" else None
    text = _AS.sub(lambda m: f"{m['path'].strip()}.as({m['type']})", part)
    root = text.split(".")[0].split("[")[0]
    if root not in (type, "Resource", "DomainResource"):
        return None
    steps: list[Step] = []
    only = ""
    position = len(root)
    while position < len(text):
        m = _STEP.match(text, position)
        if not m:
            raise ValueError(f"search expression {part!r}: cannot read it from {text[position:]!r}")
        position = m.end()
        if m["is"]:
            only = m["is"]
        elif m["as"]:
            steps.append(("as", m["as"]))
        elif m["extension"]:
            steps.append(("extension", m["extension"]))
        elif m["field"]:
            steps.append(("where", f"{m['field']}={m['value']}"))
        else:
            steps.append(("child", m["child"]))
        if m["index"] is not None:
            steps.append(("index", m["index"]))
    shown = "".join(f".{a}" if k == "child" else f".{k}({a})" for k, a in steps)
    return f"{type}{shown}", tuple(steps), only
