"""The official R4 search parameters of the served types, parsed (http://hl7.org/fhir/R4/searchparameter-registry.html).

An expression is a FHIRPath union; each part becomes a ``Path``. What is indexed is the path, not the parameter: ``code`` and
``combo-code`` of Observation share the tokens of ``Observation.code``, ``patient`` and ``subject`` those of the subject.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import xxhash

from conformance.capability import PATIENT_LINKS, RESOURCE_TYPES

# (kind, argument): child name | as type | is type | index number | where field=value | extension url
Step = tuple[str, str]

INDEXED_KINDS: Final = frozenset({"token", "reference", "string", "date", "uri"})
COMMON_TYPES: Final = frozenset({"Coding", "CodeableConcept", "code", "boolean"})
"""Datatypes of token values that many resources have in common."""
_NUMBERED: Final = INDEXED_KINDS | {"quantity", "number"}
"""Kinds whose paths have numbers; those not indexed yet have theirs reserved."""

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
    seed     seed of its token hashes
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
class Parameter:
    """A search parameter of one resource type.

    kind      R4 search parameter type (token, reference, string, date, uri, quantity, number, composite, special)
    paths     what it looks at: (path, the only resource type a reference may point to, or empty)
    targets   resource types a reference may point to, served ones only
    column    ``date`` (start_at, end_at), ``issued`` (issued_at), or empty: tokens and search_value
    """

    code: str
    kind: str
    url: str
    paths: tuple[tuple[Path, str], ...]
    targets: tuple[str, ...]
    column: str

    @property
    def indexed(self) -> bool:
        """True when a search by it can be answered."""
        return bool(self.paths) and self.kind in INDEXED_KINDS


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
def parameters(type: str) -> dict[str, Parameter]:
    """Code -> parameter of a served resource type, those of all resources included; ``_id`` and ``_lastUpdated`` are not (columns)."""
    if type not in RESOURCE_TYPES:
        return {}
    found = [d for d in _file()["parameters"] if {type, "Resource", "DomainResource"} & set(d["base"])]
    found = [d for d in found if d["code"] != "_lastUpdated"]
    parts = {d["url"]: [p for e in _union(d["expression"]) if (p := parse(type, e))] for d in found}
    texts = sorted({(d["type"], text) for d in found if d["type"] in _NUMBERED for text, _, _ in parts[d["url"]]})
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
    return out


def _path(type: str, kind: str, text: str, steps: tuple[Step, ...], number: int) -> Path:
    many, types, systems = _end(type, steps)
    # The kind is part of the seed: Person.name as string and as token must not meet.
    return Path(text, steps, number, xxhash.xxh64_intdigest(f"{kind} {text}".encode()), many, types, systems)


def _end(type: str, steps: tuple[Step, ...]) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
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


def _union(expression: str) -> list[str]:
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


def parse(type: str, part: str) -> tuple[str, tuple[Step, ...], str] | None:
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
