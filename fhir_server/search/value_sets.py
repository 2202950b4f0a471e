"""Value sets and hierarchies of codes as lists of codes: ``:in``, ``:not-in``, ``:above``, ``:below`` of tokens
(http://hl7.org/fhir/R4/search.html#token, http://hl7.org/fhir/R4/valueset.html#expansion), and $expand.

Only what is stored here counts: ValueSet and CodeSystem resources. A value set that takes a whole code system not stored here is
``system|``: every code of the system. Generators: they yield statements and are sent rows (search/run).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from conformance.capability import RESOURCE_TYPES
from fhir_server.errors import Category, Fault
from fhir_server.search.definitions import parameters
from fhir_server.search.leaves import hash_of
from fhir_server.search.page import COLUMNS, Sql
from fhir_server.search.query import Filter, unescape
from fhir_server.search.statement import Statement
from mappings.ids import shard_of_id

Row = Mapping[str, Any]
Steps = Generator[Sql, Sequence[Row], Any]
Code = tuple[str, str]
"""system, code; an empty code stands for every code of the system."""
_SETS: Final = frozenset({"in", "not-in"})
_TREES: Final = frozenset({"above", "below"})
_DEEPEST: Final = 8
MOST_CODES: Final = 20_000


@dataclass(slots=True)
class Terminology:
    """Reads value sets and code systems; remembers them for one request."""

    decompress: Callable[[int, bytes, Sequence[str | None]], bytes]
    known: dict[tuple[str, str], dict[str, Any] | None] = field(default_factory=dict)

    def resource(self, type: str, url: str) -> Steps:
        """The newest ValueSet, CodeSystem or ConceptMap of a canonical URL (with ``|version``) or local reference; None if unknown."""
        if (type, url) not in self.known:
            rows = yield _by_url(type, url)
            found = [
                orjson.loads(self.decompress(r["dict"], bytes(r["body"]), (r["id"], r["patient"], r["order"])))
                for r in rows
            ]
            version = url.partition("|")[2]
            found = [f for f in found if not version or f.get("version") == version]
            self.known[type, url] = found[0] if found else None
        return self.known[type, url]

    def expand(self, url: str, depth: int = 0) -> Steps:
        """The codes of a value set: (system, code) -> display. Raises Fault INVALID when it, or part of it, is unknown."""
        if depth > _DEEPEST:
            raise Fault(Category.INVALID, "Value sets that include each other have no expansion.")
        value_set = yield from self.resource("ValueSet", url)
        if value_set is None:
            raise Fault(Category.INVALID, "The value set is not known here.")
        out = yield from self.codes_of(value_set, depth)
        return out

    def codes_of(self, value_set: Mapping[str, Any], depth: int = 0) -> Steps:
        """The same for a ValueSet at hand."""
        compose = value_set.get("compose")
        if not compose:
            return dict(_contained(value_set.get("expansion", {}).get("contains", ())))
        out: dict[Code, str] = {}
        for include in compose.get("include", ()):
            out |= yield from self._included(include, depth)
        for exclude in compose.get("exclude", ()):
            gone = yield from self._included(exclude, depth)
            whole = {system for system, code in out if not code}
            if any(system in whole for system, _ in gone):
                raise Fault(Category.INVALID, "The value set takes codes out of a code system that is not known here.")
            all_of = {system for system, code in gone if not code}
            out = {c: d for c, d in out.items() if c not in gone and c[0] not in all_of}
        if len(out) > MOST_CODES:
            raise Fault(Category.INVALID, f"The value set has more than {MOST_CODES} codes.")
        return out

    def _included(self, include: Mapping[str, Any], depth: int) -> Steps:
        parts: list[dict[Code, str]] = []
        system = include.get("system", "")
        if include.get("concept"):
            parts.append({(system, c["code"]): c.get("display", "") for c in include["concept"]})
        elif system:
            tree = yield from self.tree(system)
            if include.get("filter"):
                if tree is None:
                    raise Fault(Category.INVALID, "The value set filters a code system that is not known here.")
                kept = set(tree.display)
                for wanted in include["filter"]:
                    kept &= tree.filtered(wanted)
                parts.append({(system, code): tree.display[code] for code in tree.display if code in kept})
            elif tree is None or not tree.complete:
                parts.append({(system, ""): ""})
            else:
                parts.append({(system, code): d for code, d in tree.display.items()})
        for url in include.get("valueSet", ()):
            parts.append((yield from self.expand(url, depth + 1)))
        if not parts:
            return {}
        first, *others = parts
        return {c: d for c, d in first.items() if all(c in o or (c[0], "") in o for o in others)}

    def tree(self, system: str) -> Steps:
        """The hierarchy of a code system; None when it is not stored here."""
        resource = yield from self.resource("CodeSystem", system)
        return None if resource is None else Tree.of(resource)


@dataclass(slots=True)
class Tree:
    """Codes of a code system with their displays, and the parents of each."""

    display: dict[str, str]
    parents: dict[str, set[str]]
    concepts: dict[str, Mapping[str, Any]]
    complete: bool

    @classmethod
    def of(cls, resource: Mapping[str, Any]) -> Tree:
        """From a CodeSystem: nesting, and the properties ``parent`` and ``child``."""
        made = cls({}, {}, {}, resource.get("content") == "complete")
        made._add(resource.get("concept", ()), "")
        return made

    def _add(self, concepts: Iterable[Mapping[str, Any]], parent: str) -> None:
        for concept in concepts:
            code = concept["code"]
            self.display[code] = concept.get("display", "")
            self.concepts[code] = concept
            above = self.parents.setdefault(code, set())
            if parent:
                above.add(parent)
            for stated in concept.get("property", ()):
                other = stated.get("valueCode") or stated.get("valueString") or ""
                if stated.get("code") == "parent" and other:
                    above.add(other)
                elif stated.get("code") == "child" and other:
                    self.parents.setdefault(other, set()).add(code)
            self._add(concept.get("concept", ()), code)

    def above(self, code: str) -> set[str]:
        """The code and all it is a kind of."""
        out, fresh = {code}, {code}
        while fresh:
            fresh = {p for c in fresh for p in self.parents.get(c, ())} - out
            out |= fresh
        return out

    def below(self, code: str) -> set[str]:
        """The code and all that are kinds of it."""
        return {c for c in self.display if code in self.above(c)} | {code}

    def filtered(self, wanted: Mapping[str, Any]) -> set[str]:
        """Codes that meet a filter of a value set. Raises Fault INVALID for an operator not known here."""
        op, value, name = wanted.get("op"), wanted.get("value", ""), wanted.get("property")
        if op == "is-a":
            return self.below(value)
        if op == "descendent-of":
            return self.below(value) - {value}
        if op == "generalizes":
            return self.above(value)
        if op == "is-not-a":
            return set(self.display) - self.below(value)
        if op == "in":
            return {c for c in self.display if self._says(c, name) & set(value.split(","))}
        if op == "=":
            return {c for c in self.display if value in self._says(c, name)}
        raise Fault(Category.INVALID, f"Value set filter {op} is not supported.")

    def _says(self, code: str, name: str | None) -> set[str]:
        if name == "code":
            return {code}
        said = self.concepts[code].get("property", ())
        return {str(v) for p in said if p.get("code") == name for k, v in p.items() if k.startswith("value")}


def _contained(contains: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Code, str]]:
    for entry in contains:
        if "code" in entry and not entry.get("abstract"):
            yield (entry.get("system", ""), entry["code"]), entry.get("display", "")
        yield from _contained(entry.get("contains", ()))


def _by_url(type: str, url: str) -> Sql:
    out = Statement()
    rtype = out.arg(RESOURCE_TYPES[type], "smallint")
    if url.startswith(f"{type}/"):
        logical = url.partition("/")[2]
        shard = out.arg(-1 if (home := shard_of_id(logical)) is None else home, "smallint")
        name = out.arg(logical, "text")
        place = f"r.id = {name} AND r.shard IN ({shard}, (SELECT c.shard FROM client_id c WHERE c.rtype = {rtype} AND c.id = {name}))"  # noqa: S608
    else:
        path = parameters(type)["url"].paths[0][0]
        place = f"r.tokens @> ARRAY[{out.arg(hash_of(path.seed, url.partition('|')[0]), 'bigint')}]"
    return Sql(
        f"SELECT {COLUMNS} FROM resource r WHERE r.rtype = {rtype} AND NOT r.deleted AND {place} "  # noqa: S608
        "ORDER BY r.updated DESC, r.id LIMIT 20",
        out.args,
    )


def maps_from(system: str, code: str, terminology: Terminology) -> Steps:
    """The ConceptMaps that search parameter ``code`` (``source-system``, ``target-system``) finds by a code system."""
    path = parameters("ConceptMap")[code].paths[0][0]
    rows = yield _by_hash("ConceptMap", hash_of(path.seed, system))
    return [
        orjson.loads(terminology.decompress(r["dict"], bytes(r["body"]), (r["id"], r["patient"], r["order"])))
        for r in rows
    ]


def _by_hash(type: str, token: int) -> Sql:
    out = Statement()
    return Sql(
        f"SELECT {COLUMNS} FROM resource r WHERE r.rtype = {out.arg(RESOURCE_TYPES[type], 'smallint')} AND NOT r.deleted "  # noqa: S608
        f"AND r.tokens @> ARRAY[{out.arg(token, 'bigint')}] ORDER BY r.updated DESC, r.id LIMIT 100",
        out.args,
    )


def resolve(filters: Iterable[Filter], terminology: Terminology) -> Steps:
    """The filters with value sets and hierarchies replaced by their codes."""
    out = []
    for f in filters:
        if f.inner:
            inner = []
            for other, end in f.inner:
                (one,) = yield from resolve([end], terminology)
                inner.append((other, one))
            out.append(replace(f, inner=tuple(inner)))
        elif f.kind == "token" and f.modifier in _SETS | _TREES:
            out.append((yield from _resolved(f, terminology)))
        else:
            out.append(f)
    return out


def _resolved(f: Filter, terminology: Terminology) -> Steps:
    codes: dict[Code, str] = {}
    for value in f.values:
        try:
            if f.modifier in _SETS:
                codes |= yield from terminology.expand(unescape(value))
            else:
                codes |= yield from _hierarchy(value, f.modifier, terminology)
        except Fault as fault:
            fault.where = fault.where or f"{f.code}:{f.modifier}"
            raise
    values = tuple(f"{_escape(system)}|{_escape(code)}" for system, code in codes)
    return replace(f, modifier="not" if f.modifier == "not-in" else "", values=values)


def _hierarchy(value: str, modifier: str, terminology: Terminology) -> Steps:
    system, bar, code = value.partition("|")
    if not bar or not system or not code:
        raise Fault(Category.INVALID, f"Modifier :{modifier} needs system|code.")
    system, code = unescape(system), unescape(code)
    tree = yield from terminology.tree(system)
    if tree is None:
        raise Fault(Category.INVALID, "The code system is not known here.")
    return {(system, c): "" for c in (tree.above(code) if modifier == "above" else tree.below(code))}


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,").replace("|", "\\|").replace("$", "\\$")
