"""A search request, understood (http://hl7.org/fhir/R4/search.html): names, modifiers and values -> a Query. No SQL, no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from conformance.capability import RESOURCE_TYPES
from fhir_server.errors import Category, Fault
from fhir_server.search.definitions import Parameter, about, parameters, posted

DEFAULT_COUNT: Final = 50
MAX_COUNT: Final = 1000
CURSOR: Final = "_cursor"
"""Our parameter in ``next`` links: the place where the next page begins (search/page)."""

MODIFIERS: Final = {
    "token": frozenset({"not", "missing", "of-type", "text", "in", "not-in", "above", "below"}),
    "reference": frozenset({"missing", "identifier", *RESOURCE_TYPES}),
    "string": frozenset({"exact", "contains", "missing"}),
    "date": frozenset({"missing"}),
    "uri": frozenset({"missing", "above", "below"}),
    "quantity": frozenset({"missing"}),
    "number": frozenset({"missing"}),
    "composite": frozenset({"missing"}),
    "id": frozenset[str](),
    "updated": frozenset[str](),
}
"""Kind of parameter -> modifiers it takes."""
_HANDLED_ELSEWHERE: Final = frozenset({"_format", "_pretty"})
_REFUSED: Final = {"_filter", "_query", "_text", "_content", "_type"}
_OF_ALL: Final = frozenset({"_id", "_lastUpdated", "_has"})
_MOST_TARGETS: Final = 12
_DEEPEST: Final = 6

Total = Literal["none", "estimate", "accurate"]


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition: any of ``values`` (already cut at the commas, escapes kept).

    kind   an R4 kind, ``id``, ``updated``; ``chain`` and ``has``: those look at the other end of the reference ``parameter``;
           ``any``: one of ``inner`` holds; ``care``: the main date, if there is one, lies between two dates
    inner  chain, has: what must hold at the other end, for each resource type that may stand there
    """

    code: str
    kind: str
    modifier: str
    values: tuple[str, ...]
    parameter: Parameter | None = None
    inner: tuple[tuple[str, Filter], ...] = ()

    @property
    def of_time(self) -> bool:
        """True for a range of a time that has a column of its own."""
        column = self.parameter is not None and bool(self.parameter.column)
        return self.kind == "updated" or (self.kind == "date" and column and self.modifier != "missing")


@dataclass(frozen=True, slots=True)
class Sort:
    """One key of ``_sort``; ``column`` is a column of resource, or empty: the rows of search_value of these path numbers, or, for a
    parameter that has none, the values in the bodies (search/sort_keys)."""

    column: str
    numbers: tuple[int, ...]
    dates: bool
    descending: bool
    parameter: Parameter | None = None


@dataclass(frozen=True, slots=True)
class Include:
    """``_include`` (forward) or ``_revinclude``: from the references of ``parameter`` of type ``source`` to ``target`` (empty: any)."""

    source: str
    parameter: Parameter
    target: str
    reverse: bool
    iterate: bool


@dataclass(slots=True)
class Query:
    """A search by type. ``place``: the path it was asked at, when that is not the type (compartments, all types).

    ``used`` are the name and value pairs that took effect, for the self link; ``ignored`` says what did not."""

    type: str
    filters: list[Filter] = field(default_factory=list)
    sort: list[Sort] = field(default_factory=list)
    includes: list[Include] = field(default_factory=list)
    count: int = DEFAULT_COUNT
    total: Total = "none"
    summary: str = ""
    elements: frozenset[str] = frozenset()
    cursor: str = ""
    place: str | None = None
    used: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)


def split(text: str, separator: str) -> list[str]:
    """Cuts at separators that no backslash escapes (R4: ``\\,`` ``\\|`` ``\\$`` ``\\\\``); the parts keep their escapes."""
    if separator not in text:
        return [text]
    parts, part, escaped = [], "", False
    for c in text:
        if c == separator and not escaped:
            parts.append(part)
            part = ""
            continue
        part += c
        escaped = c == "\\" and not escaped
    return [*parts, part]


def unescape(text: str) -> str:
    """A value without its escapes."""
    return re.sub(r"\\([\\,|$])", r"\1", text) if "\\" in text else text


def parse(type: str, pairs: Iterable[tuple[str, str]], *, strict: bool = False) -> Query:
    """Decoded name and value pairs of a search of one served type -> Query.

    Parameters the server does not know are left out and named in ``ignored``; with ``strict`` (Prefer: handling=strict) they raise.
    Raises Fault INVALID for a modifier, chain or value that cannot be honoured, because ignoring it would give a wrong answer.
    """
    query = Query(type)
    for name, value in pairs:
        reason = _HANDLED_ELSEWHERE.isdisjoint({name}) and _take(query, name, value)
        if not reason:
            continue
        if strict:
            raise Fault(Category.INVALID, reason, where=name)
        query.ignored.append((name, reason))
    return query


def _take(query: Query, name: str, value: str) -> str:
    """Adds one pair to the query; returns why it was left out, or an empty text."""
    if name in RESULT_PARAMETERS:
        reason = RESULT_PARAMETERS[name](query, value)
    elif name.partition(":")[0] in ("_include", "_revinclude"):
        reason = _include(query, name, value)
    else:
        reason = _filter(query, name, value)
    if not reason and name != CURSOR:
        query.used.append((name, value))
    return reason


def _filter(query: Query, name: str, value: str) -> str:
    read = read_filter(query.type, name, value)
    if isinstance(read, str):
        return read
    query.filters.append(read)
    return ""


def read_filter(type: str, name: str, value: str) -> Filter | str:
    """One name and value pair as a condition on resources of a type, or why it was left out. Raises Fault INVALID."""
    code, _, modifier = name.partition(":")
    if code == "_has":
        return _has(type, name, value)
    if "." in name:
        return _chain(type, name, value)
    if code == "_list" and value:
        if value.startswith("$"):
            raise Fault(
                Category.INVALID, f"Lists such as {value} are not kept here: name a List by its id.", where=name
            )
        return _has(type, "_has:List:item:_id", value)
    if code in _REFUSED:
        return f"Search parameter {code} is not supported; it was ignored."
    kind, parameter = _known(type, code)
    if any(p.code == code and not ready for p, ready in posted(type)):
        return f"Search parameter {code} of {type} is being indexed and cannot be used yet; it was ignored."
    if not kind:
        return f"{type} has no search parameter {code}; it was ignored."
    if parameter is not None and not parameter.indexed:
        return f"Search parameter {code} of {type} ({kind}) is not supported; it was ignored."
    if not value:
        return f"Search parameter {code} has no value; it was ignored."
    if modifier and modifier not in MODIFIERS[kind]:
        raise Fault(Category.INVALID, f"Modifier :{modifier} is not supported for {code} ({kind}).", where=name)
    if parameter is not None and parameter.own and modifier == "text":
        raise Fault(Category.INVALID, f"Modifier :text is not supported for {code}.", where=name)
    if modifier == "below" and kind == "uri" and parameter is not None and parameter.paths[0][0].text.count(".meta."):
        raise Fault(Category.INVALID, f"Modifier :below is not supported for {code}.", where=name)
    values = tuple(split(value, ",")) if modifier != "missing" else (value,)
    if modifier == "missing" and value not in ("true", "false"):
        raise Fault(Category.INVALID, f"{name} must be true or false.", where=name)
    if modifier in RESOURCE_TYPES and parameter is not None and modifier not in parameter.targets:
        raise Fault(Category.INVALID, f"{code} of {type} never points to {modifier}.", where=name)
    if "" in values:
        raise Fault(Category.INVALID, f"{name} has an empty value in its list.", where=name)
    return Filter(code, kind, modifier, values, parameter)


def _chain(type: str, name: str, value: str) -> Filter:
    """``subject:Patient.name``: http://hl7.org/fhir/R4/search.html#chaining."""
    link, _, rest = name.partition(".")
    code, _, target = link.partition(":")
    parameter = _reference(type, code, name)
    if target and target not in parameter.targets:
        raise Fault(Category.INVALID, f"{code} of {type} never points to {target or 'a served type'}.", where=name)
    only = {kind for _, kind in parameter.paths}
    targets = [target] if target else [t for t in parameter.targets if "" in only or t in only]
    # Without a type the chain looks at every type that has the parameter.
    targets = [t for t in targets if target or rest.partition(":")[0].partition(".")[0] in (*parameters(t), *_OF_ALL)]
    if not targets:
        raise Fault(Category.INVALID, f"Nothing that {code} points to has a search parameter {rest}.", where=name)
    if len(targets) > _MOST_TARGETS:
        raise Fault(Category.INVALID, f"{code} may point to many types: say which ({code}:Patient.{rest}).", where=name)
    return Filter(code, "chain", target, (value,), parameter, tuple((t, _end(t, rest, value, name)) for t in targets))


def _has(type: str, name: str, value: str) -> Filter:
    """``_has:Observation:patient:code``: http://hl7.org/fhir/R4/search.html#has."""
    _, source, code, rest = [*name.split(":", 3), "", "", ""][:4]
    if source not in RESOURCE_TYPES or not rest:
        raise Fault(Category.INVALID, "Write _has:Type:reference:parameter with a served type.", where=name)
    parameter = _reference(source, code, name)
    if type not in parameter.targets:
        raise Fault(Category.INVALID, f"{code} of {source} never points to {type}.", where=name)
    return Filter("_has", "has", "", (value,), parameter, ((source, _end(source, rest, value, name)),))


def _reference(type: str, code: str, name: str) -> Parameter:
    parameter = parameters(type).get(code)
    if parameter is None or parameter.kind != "reference" or not parameter.indexed:
        raise Fault(Category.INVALID, f"{type} has no reference parameter {code}.", where=name)
    if parameter.own:
        raise Fault(Category.INVALID, f"{code} of {type} was added here: it cannot be chained.", where=name)
    return parameter


def _end(type: str, rest: str, value: str, name: str) -> Filter:
    if name.count(".") + name.count("_has") > _DEEPEST:
        raise Fault(Category.INVALID, f"A chain has at most {_DEEPEST} links.", where=name)
    read = read_filter(type, rest, value)
    if isinstance(read, str):
        raise Fault(Category.INVALID, f"{name}: {read.replace('; it was ignored', '')}", where=name)
    return read


def restrict(query: Query, allowed: Callable[[str], bool]) -> None:
    """Takes the types out of chains that the asker may not search, so that a chain tells no more than a search there would.

    Raises Fault FORBIDDEN when nothing is left of one.
    """
    query.filters = [_restricted(f, allowed) for f in query.filters]


def _restricted(f: Filter, allowed: Callable[[str], bool]) -> Filter:
    if f.kind not in ("chain", "has") or not f.inner:
        return f
    inner = tuple((t, _restricted(end, allowed)) for t, end in f.inner if allowed(t))
    if not inner:
        names = ", ".join(t for t, _ in f.inner)
        raise Fault(Category.FORBIDDEN, f"The token does not allow search-type on {names}.", where=f.code)
    return replace(f, inner=inner)


def _known(type: str, code: str) -> tuple[str, Parameter | None]:
    """(kind, definition) of a parameter; ("", None) when the type has none of this code."""
    if code == "_id":
        return "id", None
    if code == "_lastUpdated":
        return "updated", None
    parameter = parameters(type).get(code)
    return (parameter.kind, parameter) if parameter else ("", None)


def _sort(query: Query, value: str) -> str:
    if not value.strip(",- "):
        return "_sort names no search parameter; it was ignored."
    for part in value.split(","):
        descending = part.startswith("-")
        code = part.removeprefix("-").strip()
        kind, parameter = _known(query.type, code)
        column = ""
        numbers: tuple[int, ...] = ()
        if kind == "id":
            column = "id"
        elif kind == "updated":
            column = "updated"
        elif parameter is None:
            return f"{query.type} has no search parameter {code}; the results are not sorted by it."
        elif parameter.column:
            column = "start_at" if parameter.column == "date" else "issued_at"
        elif about(query.type, parameter):
            column = "patient"
        elif parameter.indexed and kind != "composite":
            numbers = tuple(path.number for path, _ in parameter.paths)
        else:
            raise Fault(
                Category.INVALID,
                f"Sorting by {code} ({kind}) is not supported; {query.type} sorts by {', '.join(sortable(query.type))}.",
                where="_sort",
            )
        query.sort.append(Sort(column, numbers, kind == "date", descending, None if column else parameter))
    return ""


def sortable(type: str) -> list[str]:
    """Codes of the parameters that ``_sort`` takes."""
    return [
        "_id",
        "_lastUpdated",
        *sorted(code for code, p in parameters(type).items() if p.indexed and p.kind != "composite"),
    ]


def _include(query: Query, name: str, value: str) -> str:
    direction, _, modifier = name.partition(":")
    if modifier not in ("", "iterate"):
        raise Fault(Category.INVALID, f"Modifier :{modifier} is not supported for {direction}.", where=name)
    reverse = direction == "_revinclude"
    source, _, rest = value.partition(":")
    code, _, target = rest.partition(":")
    if value != "*" and not code:
        raise Fault(Category.INVALID, f"Write {name}=Type:parameter, Type:parameter:Target or Type:*.", where=name)
    if value == "*":
        code = "*"
        sources = list(RESOURCE_TYPES) if reverse or modifier else [query.type]
    elif source not in RESOURCE_TYPES or (target and target not in RESOURCE_TYPES):
        raise Fault(
            Category.INVALID, f"{name}={value}: {source} or {target} is not a resource type served here.", where=name
        )
    else:
        sources = [source]
    if not reverse and not modifier and sources != [query.type]:
        raise Fault(
            Category.INVALID, f"{name}={value}: the source must be {query.type} unless :iterate is given.", where=name
        )
    found = [
        Include(s, p, target, reverse, bool(modifier))
        for s in sources
        for p in parameters(s).values()
        if p.kind == "reference" and p.indexed and not p.own and code in ("*", p.code)
        if not (reverse and value == "*") or query.type in p.targets
    ]
    if not found:
        raise Fault(Category.INVALID, f"{name}={value}: {source} has no reference parameter {code}.", where=name)
    query.includes.extend(found)
    return ""


def _count(query: Query, value: str) -> str:
    if not value.isdecimal():
        raise Fault(Category.INVALID, "_count must be a whole number, 0 or more.", where="_count")
    query.count = min(int(value[:9]), MAX_COUNT)
    return ""


def _total(query: Query, value: str) -> str:
    if value == "none":
        query.total = "none"
    elif value == "estimate":
        query.total = "estimate"
    elif value == "accurate":
        query.total = "accurate"
    else:
        raise Fault(Category.INVALID, "_total must be none, estimate or accurate.", where="_total")
    return ""


def _summary(query: Query, value: str) -> str:
    if value not in ("true", "false", "text", "data", "count"):
        raise Fault(Category.INVALID, "_summary must be true, false, text, data or count.", where="_summary")
    query.summary = "" if value == "false" else value
    return ""


def _elements(query: Query, value: str) -> str:
    names = [n.strip().removeprefix(f"{query.type}.") for n in value.split(",")]
    query.elements = frozenset(n.partition(".")[0] for n in names if n)
    return ""


def _cursor(query: Query, value: str) -> str:
    query.cursor = value
    return ""


def _contained(query: Query, value: str) -> str:
    return "" if value == "false" else "Contained resources are not searched; _contained was ignored."


RESULT_PARAMETERS: Final = {
    "_sort": _sort,
    "_count": _count,
    "_total": _total,
    "_summary": _summary,
    "_elements": _elements,
    "_contained": _contained,
    CURSOR: _cursor,
}
"""Parameters that shape the answer -> how each is read; the text it returns says why it was left out."""
