"""A resource -> what searches find it by (http://hl7.org/fhir/R4/search.html). On the ingest path: plain closures over dicts.

Where a value goes:

- token, reference and uri values become 64-bit hashes, one per form a client may ask for: ``system|code``, ``code``, ``|code`` when
  there is no system, ``system|``; a reference only as ``Type/id`` (a bare id is asked for once per target type); a plain code only
  as ``code``, its system being known from the definition;
- ``common``: hashes of codes, and of references to organizations, places and devices. Thousands of resources share the same set, so
  it is written once (resource_kind). ``tokens``: the others, of the row's own (resource.tokens). Whom the resource is about is no
  hash but the column resource.patient;
- ``present`` is the presence map: one bit per path that has a value; ``:missing`` reads it;
- the type's main date goes to ``start`` and ``end``, ``issued`` to ``issued``: columns of the row;
- strings (normalised, first 200 characters) and other dates go to ``values``: rows of search_value. ``:exact`` is answered by a
  hash of the string as sent. An Observation with a number gets no such row: its quantity stands in the flat result row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from conformance.capability import PATIENT_LINKS
from fhir_server.search import composites, dates, leaves
from fhir_server.search.definitions import Parameter, Path, Step, elements, inner, official
from fhir_server.search.leaves import Leaf, SearchValue, Sink, hash_of
from fhir_server.search.quantities import in_flat_row, stored

__all__ = ["Indexed", "SearchValue", "extract"]


class Indexed(NamedTuple):
    """What is stored beside a resource.

    tokens   distinct signed 64-bit hashes of its own
    common   distinct signed 64-bit hashes that it shares with many
    present  presence map
    start    main date, inclusive; ``end`` exclusive; None when the resource has none
    issued   issued (Observation, DiagnosticReport), authoredOn (ServiceRequest)
    values   rows of search_value
    patient  logical id of the Patient it is about, None when it is about none
    texts    ``number:text`` of coded values, shared with many like ``common``; ``:text`` reads them
    """

    tokens: tuple[int, ...]
    common: tuple[int, ...]
    present: int
    start: datetime | None
    end: datetime | None
    issued: datetime | None
    values: list[SearchValue]
    patient: str | None
    texts: tuple[str, ...] = ()


RESULT_VALUE: Final = "Observation.value.as(Quantity)"
"""The path whose values stand in the flat result row where that says all of them (quantities.in_flat_row)."""
NOTHING: Final = Indexed((), (), 0, None, None, None, [], None)


@dataclass(slots=True)
class Installation:
    """What the meaning of stored values depends on, the same for everything one database holds.

    zone  meant by dates without one
    base  address of this server without trailing slash: absolute references to it count as local
    """

    zone: tzinfo
    base: str


INSTALLATION: Final = Installation(dates.SHANGHAI, "")
"""What ``install`` said."""


def install(zone: tzinfo, base: str) -> None:
    """Called once by the composition root of each process, before anything is stored."""
    INSTALLATION.zone, INSTALLATION.base = zone, base
    _KNOWN.clear()
    _shape.cache_clear()


def extract(resource: Mapping[str, Any], members: Sequence[bytes] = ()) -> Indexed:
    """Everything a search can find the resource by. A value that does not have its datatype's form is not indexed; nothing is
    raised for it.

    members: ``fhirjson.members`` of the resource where they are at hand; the outcome is the same, and what was met before is looked up.
    """
    sink = Sink(INSTALLATION.zone, INSTALLATION.base)
    kind = resource["resourceType"]
    more = _Posted.now.get(kind, ())
    table, whole = _compiled(kind, more)
    if members:
        _remembered(resource, members, more, sink)
    else:
        for key, value in resource.items():
            if key in table:
                for leaf in table[key]:
                    leaf(value, sink)
    for leaf in whole:
        leaf(resource, sink)
    return Indexed(
        tuple(dict.fromkeys(sink.tokens)),
        tuple(dict.fromkeys(sink.common)),
        sink.bits,
        sink.start,
        sink.end,
        sink.issued,
        sink.values,
        sink.patient,
        tuple(dict.fromkeys(sink.texts)),
    )


def _remembered(
    resource: Mapping[str, Any],
    members: Sequence[bytes],
    more: _More,
    sink: Sink,
) -> None:
    """Fills the sink from what each element gave when it was met before: that depends on the bytes of the element alone."""
    table, known, looked = _shape(resource["resourceType"], more, tuple(resource))
    bits, tokens, common = 0, sink.tokens, sink.common
    for n, name, own in looked:
        if own:
            for leaf in table[name]:
                leaf(resource[name], sink)
            continue
        member = members[n]
        part = known.get(member)
        if part is None:
            part = _look(resource[name], table[name], sink)
            _keep(known, member, part)
        bits |= part[0]
        if part[1]:
            tokens += part[1]
        if part[2]:
            common += part[2]
        if part[3] is not None:
            _add(sink, *part[3])
    sink.bits |= bits


def _look(value: Any, extractors: tuple[Leaf, ...], beside: Sink) -> _Given:
    own = Sink(beside.zone, beside.base)
    for leaf in extractors:
        leaf(value, own)
    return _given(own)


@lru_cache(maxsize=1024)
def _shape(
    kind: str, more: _More, names: tuple[str, ...]
) -> tuple[Mapping[str, tuple[Leaf, ...]], dict[bytes, _Given], tuple[tuple[int, str, bool], ...]]:
    """Of resources with these elements: the extractors; what elements of the type gave; the place and name of each element that
    searches look at, and whether it is not worth remembering."""
    table = _compiled(kind, more)[0]
    own = _OWN if kind == "Observation" else _OWN | _OF_ONE_MESSAGE
    looked = tuple((n, name, name in own) for n, name in enumerate(names) if name in table)
    return table, _KNOWN.setdefault((kind, more), {}), looked


def _add(
    sink: Sink,
    values: tuple[SearchValue, ...],
    texts: tuple[str, ...],
    start: datetime | None,
    end: datetime | None,
    issued: datetime | None,
    patient: str | None,
) -> None:
    sink.values += values
    sink.texts += texts
    if start is not None:
        sink.start, sink.end = start, end
    if issued is not None:
        sink.issued = issued
    if patient is not None:
        sink.patient = patient


_Rare = tuple[tuple[SearchValue, ...], tuple[str, ...], datetime | None, datetime | None, datetime | None, str | None]
_Given = tuple[int, tuple[int, ...], tuple[int, ...], _Rare | None]
"""bits, tokens and common of a sink, and its other fields when one of them says something."""


def _given(sink: Sink) -> _Given:
    rare = (tuple(sink.values), tuple(sink.texts), sink.start, sink.end, sink.issued, sink.patient)
    said = any(rare[:2]) or any(value is not None for value in rare[2:])
    return sink.bits, tuple(sink.tokens), tuple(sink.common), rare if said else None


def _keep(known: dict[bytes, _Given], member: bytes, given: _Given) -> None:
    if len(member) <= _LONGEST:
        if len(known) >= _MOST:
            known.clear()
        known[member] = given


_More = tuple[tuple[str, Leaf], ...]


class _Posted:
    """The extractors of posted parameters, replaced as a whole: resource type -> (top-level JSON name, extractor)."""

    now: Mapping[str, _More] = {}


def add(more: Mapping[str, _More]) -> None:
    """From now on these extractors stand beside those of the official parameters (search/posted)."""
    _Posted.now = more


_KNOWN: Final[dict[tuple[str, _More], dict[bytes, _Given]]] = {}
"""What elements gave, by resource type with its posted parameters, and the bytes of the element."""
_MOST: Final = 4096
"""Elements remembered for each type; when there are more, all are forgotten and learned again."""
_LONGEST: Final = 512
_OWN: Final = frozenset({"identifier", "result", "target", "recorded"})
"""Elements that hardly two resources have alike, and none of one message."""
_OF_ONE_MESSAGE: Final = frozenset({
    "meta", "subject", "encounter", "basedOn", "specimen", "collection", "effectiveDateTime", "issued", "occurrenceDateTime",
})  # fmt: skip
"""Elements that the results of one message share, and that resources of other types have once in a message."""


@lru_cache(maxsize=256)
def _compiled(type: str, more: _More) -> tuple[dict[str, tuple[Leaf, ...]], tuple[Leaf, ...]]:
    """(top-level JSON name -> extractors of its value, extractors of the whole resource)."""
    table: dict[str, list[Leaf]] = {}
    whole: list[Leaf] = []
    seen: set[int] = set()
    joint: set[int] = set()
    for parameter in official(type).values():
        for element in parameter.elements:
            if element.path.seed not in joint:
                joint.add(element.path.seed)
                for key, leaf in walk(type, element.path.steps, _Composite(composites.leaf(element))):
                    table.setdefault(key, []).append(leaf)
        if not parameter.indexed or parameter.kind == "composite":
            continue
        for path, _ in parameter.paths:
            if path.number in seen:
                continue
            seen.add(path.number)
            if path.steps[0][0] == "deceased":
                whole.append(_deceased(path))
                continue
            if path.text == RESULT_VALUE:
                whole.append(_result_value(path))
                continue
            for key, leaf in walk(type, path.steps, _Index(type, parameter, path)):
                table.setdefault(key, []).append(leaf)
    for made in more:
        table.setdefault(made[0], []).append(made[1])
    if type == "Patient":
        whole.append(_own_id)
    if type in ("Observation", "ServiceRequest"):
        table.setdefault("issued" if type == "Observation" else "authoredOn", []).append(_issued)
    return {k: tuple(v) for k, v in table.items()}, tuple(whole)


class End(Protocol):
    """What to do at the end of a path."""

    def leaf(self, datatype: str) -> Leaf | None:
        """The function for a value of the datatype; None when values of it are passed over."""
        ...


class _Index:
    """The end of an indexed path: the leaf that files the value."""

    def __init__(self, type: str, parameter: Parameter, path: Path) -> None:
        self._path, self._parameter = path, parameter
        names = ".".join(a for k, a in path.steps if k == "child")
        # The Patient a Patient is about is itself (_own_id), not the one it links to.
        self._about = type != "Patient" and names == PATIENT_LINKS.get(type, ("",))[0]

    def leaf(self, datatype: str) -> Leaf | None:
        return leaves.make(self._path, self._parameter.kind, datatype, column=self._parameter.column, about=self._about)


class _Composite:
    """The end of a composite's path: the whole element."""

    def __init__(self, leaf: Leaf) -> None:
        self._leaf = leaf

    def leaf(self, datatype: str) -> Leaf | None:
        return self._leaf


def walk(at: str, steps: tuple[Step, ...], end: End) -> list[tuple[str, Leaf]]:
    """JSON names below an object of type or element path ``at`` -> extractors of the value there, one or a list."""
    kind, name = steps[0]
    if kind == "extension":
        return [("extension", _each(_extension(name, end)))]
    position = 1
    wanted, where, index = "", ("", ""), -1
    while position < len(steps) and steps[position][0] != "child":
        kind, argument = steps[position]
        if kind == "as":
            wanted = argument
        elif kind == "where":
            field, _, value = argument.partition("=")
            where = (field, value)
        elif kind == "index":
            index = int(argument)
        position += 1
    rest = steps[position:]
    out: list[tuple[str, Leaf]] = []
    for suffix in ("", "[x]"):
        for datatype in elements().get(f"{at}.{name}{suffix}", ((), False, ()))[0]:
            if wanted and datatype != wanted:
                continue
            leaf = _below(walk(inner(f"{at}.{name}", datatype), rest, end)) if rest else end.leaf(datatype)
            if leaf is None:
                continue
            if where[0]:
                leaf = _where(*where, leaf)
            key = name + datatype[0].upper() + datatype[1:] if suffix else name
            out.append((key, _each(leaf) if index < 0 else _at(index, leaf)))
    return out


def _each(leaf: Leaf) -> Leaf:
    """One value or a list of them; the null place holders of primitive arrays are passed over."""

    def each(value: Any, sink: Sink) -> None:
        if type(value) is list:
            for v in value:
                if v is not None:
                    leaf(v, sink)
        elif value is not None:
            leaf(value, sink)

    return each


def _at(index: int, leaf: Leaf) -> Leaf:
    def at(value: Any, sink: Sink) -> None:
        if len(value) > index:
            leaf(value[index], sink)

    return at


def _below(children: list[tuple[str, Leaf]]) -> Leaf:
    def below(value: Any, sink: Sink) -> None:
        for key, leaf in children:
            if key in value:
                leaf(value[key], sink)

    return below


def _where(field: str, wanted: str, leaf: Leaf) -> Leaf:
    def where(value: Any, sink: Sink) -> None:
        if value.get(field) == wanted:
            leaf(value, sink)

    return where


def _extension(url: str, end: End) -> Leaf:
    def extension(value: Any, sink: Sink) -> None:
        if value.get("url") != url:
            return
        for key, found in value.items():
            if key.startswith("value") and len(key) > 5:
                leaf = end.leaf(key[5:]) or end.leaf(key[5].lower() + key[6:])
                if leaf is not None:
                    leaf(found, sink)

    return extension


def _deceased(path: Path) -> Leaf:
    def deceased(resource: Any, sink: Sink) -> None:
        dead = "deceasedDateTime" in resource or resource.get("deceasedBoolean") is True
        sink.bits |= path.bit
        sink.common.append(hash_of(path.seed, "true" if dead else "false"))

    return deceased


def _result_value(path: Path) -> Leaf:
    def value(resource: Any, sink: Sink) -> None:
        quantity = resource.get("valueQuantity")
        if not isinstance(quantity, Mapping):
            return
        if sink.patient is not None and in_flat_row(quantity):
            sink.bits |= path.bit
            return
        found = list(stored(quantity))
        if found:
            sink.bits |= path.bit
            sink.values.extend(leaves.as_rows(path.number, found))

    return value


def _own_id(resource: Any, sink: Sink) -> None:
    sink.patient = resource.get("id")


def _issued(value: Any, sink: Sink) -> None:
    try:
        sink.issued = dates.span(value, sink.zone)[0]
    except ValueError:
        return
