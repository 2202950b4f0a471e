"""SearchParameters that were posted (http://hl7.org/fhir/R4/searchparameter.html), compiled by the compiler of the official ones.

Their values stand in search_value alone, under a number of their own: tokens and references as text, so that nothing of a stored
resource changes when a parameter comes or goes. A parameter answers searches only when everything stored is indexed (store/reindex).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.search import definitions, leaves, params
from fhir_server.search.definitions import INDEXED_KINDS, Parameter, Path, parse, union
from fhir_server.search.leaves import EXACT, IDENTIFIER, OF_TYPE, STRING_LENGTH, Leaf, SearchValue, Sink
from fhir_server.search.params import INSTALLATION, walk

FIRST: Final = 1001
"""The lowest search_value.param of a posted parameter; each has two: its values, and after them the strings as sent (``:exact``)."""
_SPELLINGS: Final = (
    (re.compile(r"\s*=\s*"), "="),
    (re.compile(r"\.ofType\((\w+)\)"), r".as(\1)"),
    (re.compile(r"\bextension\.where\(url='([^']+)'\)"), r"extension('\1')"),
    (re.compile(r"^\((?P<path>.+) as (?P<type>\w+)\)$"), r"\g<path>.as(\g<type>)"),
)


class Unsupported(Exception):
    """Why a SearchParameter cannot be used here, and the element it lies in."""

    def __init__(self, text: str, where: str) -> None:
        super().__init__(text)
        self.where = f"SearchParameter.{where}"


def compiled(definition: Mapping[str, Any], number: int) -> dict[str, Parameter]:
    """A SearchParameter resource -> resource type -> parameter. number: its search_value.param.

    Raises Unsupported for what is not a path of child elements, ``where(field='value')``, ``where(resolve() is Type)``,
    ``extension('url')``, ``as(Type)``, ``ofType(Type)`` and ``[n]``, or ends in a datatype that cannot be searched by its type.
    """
    kind, code = definition["type"], definition["code"]
    if kind not in (*INDEXED_KINDS, "composite"):
        raise Unsupported(
            f"Parameters of type {kind} cannot be added; use {', '.join(sorted(INDEXED_KINDS))}, composite.", "type"
        )
    if not (expression := definition.get("expression")):
        raise Unsupported("Give the FHIRPath expression.", "expression")
    out = {}
    for name in _bases(definition["base"]):
        if code in definitions.official(name) or code in ("_id", "_lastUpdated", "_has", "_type", "_list"):
            raise Unsupported(f"{name} has a search parameter {code} already.", "code")
        if kind == "composite":
            out[name] = _composite(name, definition)
            continue
        paths = tuple(_paths(name, kind, expression, number))
        if not paths:
            raise Unsupported(f"No part of the expression begins with {name}.", "expression")
        targets = tuple(t for t in definition.get("target", RESOURCE_TYPES) if t in RESOURCE_TYPES)
        out[name] = Parameter(
            code, kind, definition["url"], paths, targets if kind == "reference" else (), "", own=number
        )
    return out


def _composite(type: str, definition: Mapping[str, Any]) -> Parameter:
    """A composite of two official parameters of the resource itself: both hold, so nothing is stored for it.

    Raises Unsupported for one of an element, whose values would have to stand together, and for components that are no official
    parameters with that expression.
    """
    if definition["expression"].strip() != type:
        raise Unsupported(f"A composite that is added looks at the resource itself: write {type}.", "expression")
    components = definition.get("component", ())
    if len(components) != 2:
        raise Unsupported("A composite has two components.", "component")
    known = {p.url: p for p in definitions.official(type).values() if p.indexed and p.kind != "composite"}
    joined = []
    for n, component in enumerate(components):
        part = known.get(component["definition"].partition("|")[0])
        if part is None:
            raise Unsupported(
                f"{type} has no official search parameter of this definition.", f"component[{n}].definition"
            )
        wanted = [f"{type}.{e.removeprefix(f'{type}.')}" for e in union(component["expression"])]
        paths = tuple(
            (path, only)
            for path, only in part.paths
            if any(path.text == w or path.text.startswith((f"{w}.as(", f"{w}.where(")) for w in wanted)
        )
        if not paths:
            raise Unsupported(f"{part.code} of {type} does not look at this element.", f"component[{n}].expression")
        joined.append(replace(part, paths=paths))
    return Parameter(definition["code"], "composite", definition["url"], joined[-1].paths, (), "", tuple(joined))


def _bases(named: Iterable[str]) -> list[str]:
    if {"Resource", "DomainResource"} & set(named):
        return list(RESOURCE_TYPES)
    for name in named:
        if name not in RESOURCE_TYPES:
            raise Unsupported(f"Resource type {name} is not served here.", "base")
    return list(named)


def _paths(type: str, kind: str, expression: str, number: int) -> Iterable[tuple[Path, str]]:
    for written in union(expression):
        part = written
        for pattern, form in _SPELLINGS:
            part = pattern.sub(form, part)
        try:
            found = parse(type, part)
        except ValueError as fault:
            raise Unsupported(f"This is beyond the FHIRPath that is supported: {fault}.", "expression") from None
        if found is None:
            continue
        text, steps, only = found
        if not steps or steps[0][0] == "deceased":
            raise Unsupported(f"{written}: name an element below {type}.", "expression")
        steps, wanted = _extension_value(steps, written)
        many, types, systems = definitions.end_of(type, steps)
        path = Path(text, steps, number, 1, many, types, systems)
        probe = _End(kind, path, wanted)
        try:
            walk(type, steps, probe)
        except IndexError:
            raise Unsupported(f"{written}: name an element below {type}.", "expression") from None
        if not probe.found and steps[-1][0] != "extension":
            raise Unsupported(f"{written}: no element of {type} that a {kind} parameter can search.", "expression")
        yield path, only


def _extension_value(steps: tuple[definitions.Step, ...], written: str) -> tuple[tuple[definitions.Step, ...], str]:
    """The steps up to the extension, whose value they end in, and the datatype that is wanted of it, if one is."""
    names = [name for name, _ in steps]
    if "extension" not in names:
        return steps, ""
    place = names.index("extension")
    after = steps[place + 1 :]
    if after[:1] == (("child", "value"),):
        after = after[1:]
    if len(after) > 1 or (after and after[0][0] != "as"):
        raise Unsupported(f"{written}: after an extension only its value can be named.", "expression")
    return steps[: place + 1], after[0][1] if after else ""


class _End:
    """The end of a path: the leaf that files a value as rows of search_value."""

    def __init__(self, kind: str, path: Path, wanted: str = "") -> None:
        self._kind, self._path, self._wanted = kind, path, wanted
        self.found = False

    def leaf(self, datatype: str) -> Leaf | None:
        """For a value of the datatype; None when it cannot be searched."""
        if self._wanted and datatype != self._wanted:
            return None
        made = _leaf(self._kind, self._path, datatype)
        self.found = self.found or made is not None
        return made


def _leaf(kind: str, path: Path, datatype: str) -> Leaf | None:
    if kind in ("date", "quantity", "number", "string"):
        usual = leaves.make(path, kind, datatype, column="", about=False)
        if usual is None:
            return None

        def file(value: Any, sink: Sink) -> None:
            own = Sink(sink.zone, sink.base)
            usual(value, own)
            sink.values += own.values
            if kind == "string":
                sink.values += _texts(path.number + 1, (EXACT + t for t in _strings(value)))

        return file
    forms = _FORMS.get((kind, datatype))
    if forms is None:
        return None

    def text(value: Any, sink: Sink) -> None:
        sink.values += _texts(path.number, forms(value, sink.base))

    return text


def _texts(number: int, texts: Iterable[str]) -> list[SearchValue]:
    return [SearchValue(number, t[:STRING_LENGTH], None, None, None) for t in dict.fromkeys(texts) if t]


def _strings(value: Any) -> Iterable[str]:
    """The texts of a string, HumanName or Address, as sent."""
    if isinstance(value, str):
        return [value]
    found = [t for v in value.values() for t in (v if isinstance(v, list) else [v])]
    return [t for t in found if isinstance(t, str)]


def _coding(value: Any, _: str) -> Iterable[str]:
    return leaves.coded_forms(value.get("system"), value.get("code"))


def _concept(value: Any, base: str) -> Iterable[str]:
    return [form for c in value.get("coding", ()) for form in _coding(c, base)]


def _identifier(value: Any, _: str) -> Iterable[str]:
    yield from leaves.coded_forms(value.get("system"), value.get("value"))
    for c in value.get("type", {}).get("coding", ()):
        yield f"{OF_TYPE}{c.get('system', '')}|{c.get('code', '')}|{value.get('value', '')}"


def _contact(value: Any, _: str) -> Iterable[str]:
    text = value.get("value", "")
    return (text, f"|{text}") if text else ()


def _reference(value: Any, base: str) -> Iterable[str]:
    literal = value.get("reference", "")
    if literal and literal[0] != "#":
        yield leaves.reference_text(literal, base)
    logical = value.get("identifier", {})
    for form in leaves.coded_forms(logical.get("system"), logical.get("value")):
        yield IDENTIFIER + form


def _canonical(value: Any, _: str) -> Iterable[str]:
    return (value, value.partition("|")[0])


def _plain(value: Any, _: str) -> Iterable[str]:
    return (str(value).lower() if isinstance(value, bool) else str(value),)


_FORMS: Final[dict[tuple[str, str], Callable[[Any, str], Iterable[str]]]] = {
    ("token", "Coding"): _coding,
    ("token", "CodeableConcept"): _concept,
    ("token", "Identifier"): _identifier,
    ("token", "ContactPoint"): _contact,
    **{
        ("token", t): _plain for t in ("boolean", "code", "id", "uri", "url", "canonical", "oid", "uuid", "positiveInt")
    },
    ("token", "string"): lambda value, _: (value.casefold(),),
    ("reference", "Reference"): _reference,
    ("reference", "canonical"): _canonical,
    ("reference", "uri"): _canonical,
    **{("uri", t): _plain for t in ("uri", "url", "canonical", "oid", "uuid", "id")},
}
"""(kind, datatype) -> the texts a value can be asked for."""


def values(type: str, parameter: Parameter, resource: Mapping[str, Any]) -> list[SearchValue]:
    """The rows of search_value of one resource for one parameter, each once."""
    sink = Sink(INSTALLATION.zone, INSTALLATION.base)
    for key, leaf in extractors(type, parameter):
        if key in resource:
            leaf(resource[key], sink)
    return list(dict.fromkeys(sink.values))


@cache
def extractors(type: str, parameter: Parameter) -> tuple[tuple[str, Leaf], ...]:
    """JSON names at the top -> what files the values below them."""
    found: list[tuple[str, Leaf]] = []
    if parameter.kind == "composite":
        return ()
    for path, _ in parameter.paths:
        found += walk(type, path.steps, _End(parameter.kind, path, _wanted(path)))
    return tuple(found)


def _wanted(path: Path) -> str:
    """The datatype an extension's value must have, from the text of the path; empty for any."""
    m = re.search(r"extension\([^)]*\)(?:\.value)?\.as\((\w+)\)$", path.text)
    return m[1] if m else ""


def take_over(found: Iterable[tuple[dict[str, Parameter], bool]]) -> None:
    """From now on these are the posted parameters of this process: (type -> parameter, whether it answers searches already)."""
    table: dict[str, list[tuple[Parameter, bool]]] = {}
    for by_type, ready in found:
        for name, parameter in by_type.items():
            table.setdefault(name, []).append((parameter, ready))
    params.add({name: tuple(e for p, _ in rows for e in extractors(name, p)) for name, rows in table.items()})
    definitions.take_over({name: tuple(rows) for name, rows in table.items()})
