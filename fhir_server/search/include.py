"""``_include`` and ``_revinclude`` (http://hl7.org/fhir/R4/search.html#revinclude): which resources come along with the matches.

Forward includes read the references out of the matched bodies; reverse includes ask for the token of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.search.definitions import Path, about, parameters
from fhir_server.search.leaves import COMMON_TARGETS, Leaf, hash_of, reference_text
from fhir_server.search.page import COLUMNS, Sql
from fhir_server.search.params import walk
from fhir_server.search.query import Include
from fhir_server.search.sql import of_patients
from fhir_server.search.statement import Statement, kinds_of
from mappings.ids import shard_of_id

MAX_INCLUDED: Final = 10_000
"""Most resources that come along with one page."""

Target = tuple[str, str]
"""(resource type, logical id)."""


class _Literal:
    """The end of a path: the literal reference, appended to a list."""

    def leaf(self, datatype: str) -> Leaf | None:
        def reference(value: Any, found: list[str]) -> None:
            literal = value.get("reference")
            if literal and literal[0] != "#":
                found.append(literal)

        return reference if datatype == "Reference" else None


@cache
def _reader(type: str, path: Path) -> Callable[[Mapping[str, Any], list[str]], None]:
    leaves = walk(type, path.steps, _Literal())

    def read(resource: Mapping[str, Any], found: list[str]) -> None:
        for key, leaf in leaves:
            if key in resource:
                leaf(resource[key], found)

    return read


def targets(include: Include, resources: Iterable[Mapping[str, Any]], base: str) -> set[Target]:
    """What the resources (those of type ``include.source``) point to by the parameter: served types and local references only."""
    literals: list[str] = []
    out: set[Target] = set()
    for path, only in include.parameter.paths:
        read = _reader(include.source, path)
        literals.clear()
        for resource in resources:
            read(resource, literals)
        for literal in literals:
            kind, _, logical = reference_text(literal, base).partition("/")
            if kind in RESOURCE_TYPES and logical and only in ("", kind) and include.target in ("", kind):
                out.add((kind, logical))
    return out


def by_id(wanted: Iterable[Target]) -> Sql:
    """The current resources of the given types and ids. Columns: rtype, then page.COLUMNS."""
    places = [(RESOURCE_TYPES[kind], i, shard_of_id(i)) for kind, i in wanted]
    out = Statement()
    rtypes = out.arg([rtype for rtype, _, _ in places], "smallint[]")
    ids = out.arg([i for _, i, _ in places], "text[]")
    shards = out.arg([-1 if shard is None else shard for _, _, shard in places], "smallint[]")
    # An id names its shard, or the directory client_id does.
    return Sql(
        f"SELECT r.* FROM unnest({rtypes}, {ids}, {shards}) AS k(rtype, id, derived) "  # noqa: S608 -- placeholders only
        f"CROSS JOIN LATERAL (SELECT r.rtype, {COLUMNS} FROM resource r "
        "WHERE r.rtype = k.rtype AND r.id = k.id AND NOT r.deleted AND r.shard IN "
        "(k.derived, (SELECT c.shard FROM client_id c WHERE c.rtype = k.rtype AND c.id = k.id)) OFFSET 0) r",
        out.args,
    )


def pointing_at(include: Include, found: Iterable[Target], limit: int) -> Sql | None:
    """The resources of type ``include.source`` that point to any of ``found``; None when none of them is of the target type."""
    wanted = [(kind, logical) for kind, logical in found if include.target in ("", kind)]
    out = Statement()
    rtype = out.arg(RESOURCE_TYPES[include.source], "smallint")
    conditions = []
    patients = [logical for kind, logical in wanted if kind == "Patient"]
    if patients and about(include.source, include.parameter):
        conditions.append(of_patients(patients, out))
        wanted = [target for target in wanted if target[0] != "Patient"]
    hashes = [
        hash_of(path.seed, f"{kind}/{logical}")
        for kind, logical in wanted
        for path, only in include.parameter.paths
        if only in ("", kind)
    ]
    if hashes:
        array = out.arg(hashes, "bigint[]")
        kinds = kinds_of([f"k.tokens && {array}"])
        common = any(kind in COMMON_TARGETS for kind, _ in wanted)
        conditions.append(f"r.tokens && ({array} || {kinds})" if common else f"r.tokens && {array}")
    if not conditions:
        return None
    # Targets of one type, as a rule, so there is one condition; each has its index.
    return Sql(
        f"SELECT r.rtype, {COLUMNS} FROM resource r WHERE r.rtype = {rtype} AND NOT r.deleted "  # noqa: S608
        f"AND ({' OR '.join(conditions)}) ORDER BY (r.shard + 0), r.id LIMIT {out.arg(limit, 'bigint')}",
        out.args,
    )


def sources(include: Include, type: str) -> bool:
    """True when the include starts from resources of this type."""
    if not include.reverse:
        return include.source == type
    return include.target == type or (not include.target and type in include.parameter.targets)


def included_types(include: Include) -> frozenset[str]:
    """Resource types that the include may bring along."""
    if include.reverse:
        return frozenset({include.source})
    if include.target:
        return frozenset({include.target})
    only = {kind for _, kind in include.parameter.paths}
    return frozenset(include.parameter.targets) if "" in only else frozenset(only)


def references_to(type: str) -> list[str]:
    """``Source:code`` of every reference parameter that may point to the type, as the CapabilityStatement lists them."""
    return [
        f"{source}:{code}"
        for source in RESOURCE_TYPES
        for code, p in parameters(source).items()
        if p.kind == "reference" and p.indexed and not p.own and type in p.targets
    ]
