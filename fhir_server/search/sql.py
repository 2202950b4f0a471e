"""A Query -> SQL with ``$n`` parameters, the same text for asyncpg and for psycopg's raw cursor.

One predicate per search parameter, whatever the number of values: ``tokens @>`` or ``tokens &&`` an array (GIN), a range of a typed
column, or membership in rows of search_value. Never an OR per value type, so that a list of 200 values keeps its plan.

What many resources have in common stands in resource_kind (k), and the first token of a row names its kind. All conditions on kinds
become one: looked up for each row of a walk or of a narrow search, or first of all, where the kinds then lead to the rows by GIN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.errors import Category, Fault
from fhir_server.search import dates
from fhir_server.search.definitions import Parameter, Path, about
from fhir_server.search.leaves import (
    EXACT,
    IDENTIFIER,
    OF_TYPE,
    STRING_LENGTH,
    hash_of,
    is_common,
    normalise,
    reference_text,
)
from fhir_server.search.query import Filter, Query, split, unescape
from mappings.ids import home_shard, shard_of_id

_CODED: Final = frozenset({"Coding", "CodeableConcept", "Identifier", "ContactPoint"})
_FOLDED: Final = frozenset({"string", "markdown"})
_BOOLEAN_SYSTEM: Final = "http://hl7.org/fhir/special-values"
_PREFIXED = re.compile(r"(eq|ne|gt|lt|ge|le|sa|eb|ap)?(.*)", re.DOTALL)
# A "+" that a client left unescaped in the URL arrives as a blank.
_LOST_PLUS = re.compile(r" (?=\d\d:\d\d$)")
# One resource of these is referred to by a large part of the data, so a reference to it does not narrow a search.
_DIRECTORIES: Final = frozenset(
    {"Organization", "Location", "Practitioner", "PractitionerRole", "Device", "Endpoint", "Group", "Measure"}
)


@dataclass(frozen=True, slots=True)
class Context:
    """What the meaning of a search value depends on: zone of dates without one, address of this server, now (aware)."""

    zone: tzinfo
    base: str
    now: datetime


@dataclass(slots=True)
class Statement:
    """SQL text in the making: ``arg`` adds a value and gives its placeholder."""

    args: list[Any] = field(default_factory=list)

    def arg(self, value: Any, cast: str) -> str:
        """Placeholder with its PostgreSQL type: ``$3::bigint[]``."""
        self.args.append(value)
        return f"${len(self.args)}::{cast}"


@dataclass(slots=True)
class Where:
    """Conditions on ``resource r``, to be joined by AND; the first two (type, not deleted) stand in every search.

    PostgreSQL cannot estimate how often values occur that its statistics have never seen, above all in lists, so it is not left to
    guess whether to walk an index in page order or to collect matches and sort (search/page):
    narrow   they leave few rows (an identifier, a patient, an id): collect and sort
    tokens   they contain a token search that may match much or little: walk a little, then collect
    own      one of them is a list of hashes that the GIN index finds
    longest  the longest list of hashes that each row is compared with
    common   conditions on ``resource_kind k``; with ``named`` one of them names hashes to look for
    """

    texts: list[str]
    narrow: bool = False
    tokens: bool = False
    own: bool = False
    longest: int = 1
    common: list[str] = field(default_factory=list)
    named: bool = False

    def each(self) -> list[str]:
        """As conditions that are looked at row by row."""
        if not self.common:
            return self.texts
        # IS TRUE keeps PostgreSQL from making it a join, which would not keep the order of the rows nor stop when the page is full.
        kind = " AND ".join(["k.id = r.tokens[1]", *self.common])
        return [*self.texts, f"(EXISTS (SELECT FROM resource_kind k WHERE {kind})) IS TRUE"]

    def collected(self) -> list[str]:
        """As conditions that find the rows by an index, if one of them can."""
        if not self.named or self.narrow or self.own:
            return self.each()
        return [*self.texts, f"r.tokens && {kinds_of(self.common)}"]


def kinds_of(conditions: list[str]) -> str:
    """The array of the numbers of all kinds that meet the conditions on ``k``."""
    return f"ARRAY(SELECT k.id FROM resource_kind k WHERE {' AND '.join(conditions)})"  # noqa: S608 -- placeholders only


def where(query: Query, context: Context, out: Statement) -> Where:
    """The conditions of a search; arguments are appended to ``out``. Raises Fault INVALID for a value that cannot be read."""
    found = Where([f"r.rtype = {out.arg(RESOURCE_TYPES[query.type], 'smallint')}", "NOT r.deleted"])
    every = _Every()
    for f in query.filters:
        texts = _Condition(f, query.type, context, out, found, every).texts()
        found.texts.extend(texts)
    if every.own:
        found.texts.append(f"r.tokens @> {out.arg(every.own, 'bigint[]')}")
        found.own = True
    if every.common:
        found.common.append(f"k.tokens @> {out.arg(every.common, 'bigint[]')}")
        found.named = True
    return found


@dataclass(slots=True)
class _Every:
    """Hashes of single values, one array containment for all: those of the row's own, those it shares with its kind."""

    own: list[int] = field(default_factory=list)
    common: list[int] = field(default_factory=list)


def of_patients(patients: list[str], out: Statement) -> str:
    """The condition that a resource is about one of the Patients (logical ids)."""
    if len(patients) == 1 and (shard := shard_of_id(patients[0])) is not None:
        return f"r.shard = {out.arg(shard, 'smallint')} AND r.patient = {out.arg(patients[0], 'text')}"
    shards = out.arg([home_shard("Patient", i) for i in patients], "smallint[]")
    return f"(r.shard, r.patient) IN (SELECT * FROM unnest({shards}, {out.arg(patients, 'text[]')}))"  # noqa: S608 -- placeholders only


@dataclass(slots=True)
class _Condition:
    """One filter on its way to SQL. Token hashes of single values are collected in ``every``."""

    filter: Filter
    type: str
    context: Context
    out: Statement
    found: Where
    every: _Every

    def texts(self) -> list[str]:
        f = self.filter
        if f.kind == "id":
            return [self._ids()]
        if f.kind == "updated":
            return [_any(_instant_condition("r.updated", *self._date(v), self.context, self.out) for v in f.values)]
        assert f.parameter is not None  # parse() lets nothing else through
        if f.modifier == "missing":
            return self._missing(f.parameter)
        if f.kind == "date":
            return [self._dates(f.parameter)]
        if f.kind == "string" and f.modifier != "exact":
            return [self._strings(f.parameter)]
        if f.kind == "reference" and f.modifier != "identifier" and about(self.type, f.parameter):
            return self._about(f.parameter)
        return self._tokens(f.parameter, f.values)

    # --- columns ---

    def _ids(self) -> str:
        ids = [unescape(v) for v in self.filter.values]
        derived = [(shard, i) for i in ids if (shard := shard_of_id(i)) is not None]
        self.found.narrow = True
        rtype, given = self.out.arg(RESOURCE_TYPES[self.type], "smallint"), self.out.arg(ids, "text[]")
        places = f"SELECT shard, id FROM client_id WHERE rtype = {rtype} AND id = ANY({given})"  # noqa: S608
        if derived:
            shards, named = [s for s, _ in derived], [i for _, i in derived]
            columns = f"{self.out.arg(shards, 'smallint[]')}, {self.out.arg(named, 'text[]')}"
            places += f" UNION ALL SELECT * FROM unnest({columns})"  # noqa: S608 -- placeholders only
        return f"(r.shard, r.id) IN ({places})"

    def _missing(self, parameter: Parameter) -> list[str]:
        missing = self.filter.values[0] == "true"
        if about(self.type, parameter) and parameter.paths[0][1]:
            return [f"r.patient IS {'' if missing else 'NOT '}NULL"]
        mask = 0
        for path, _ in parameter.paths:
            mask |= path.bit
        self.found.common.append(f"(k.present & {self.out.arg(mask, 'bigint')}) {'=' if missing else '<>'} 0")
        return []

    def _about(self, parameter: Parameter) -> list[str]:
        """Patients by the index (shard, patient, rtype, start_at), anything else that a resource may be about by its token."""
        only = parameter.paths[0][1] or self.filter.modifier
        patients: list[str] = []
        others: list[str] = []
        for value in self.filter.values:
            text = _reference(value, self.context.base)
            kind, _, logical = text.rpartition("/")
            if ":" in text or "|" in text:
                others.append(value)
            elif (kind or only) == "Patient" and only in ("", "Patient"):
                patients.append(logical)
            elif not kind and not only:
                patients.append(logical)
                others.extend(f"{target}/{value}" for target in parameter.targets if target != "Patient")
            else:
                others.append(value)
        if not patients:
            return self._tokens(parameter, tuple(others))
        place = of_patients(patients, self.out)
        if not others:
            self.found.narrow = True
            return [place]
        # In one search those of the patients, of other subjects by token: each by its own index.
        hashes = [hash_of(parameter.paths[0][0].seed, t) for v in others for t in self._references(parameter, "", v)]
        tokens = self.out.arg(hashes, "bigint[]")
        rtype = self.out.arg(RESOURCE_TYPES[self.type], "smallint")
        self.found.narrow = True
        return [
            f"(r.shard, r.id) IN (SELECT r.shard, r.id FROM resource r WHERE r.rtype = {rtype} AND {place} UNION ALL "  # noqa: S608
            f"SELECT r.shard, r.id FROM resource r WHERE r.rtype = {rtype} AND (r.tokens && {tokens} OR r.tokens && "
            f"{kinds_of([f'k.tokens && {tokens}'])}))"
        ]

    def _date(self, value: str) -> tuple[str, dates.Span]:
        m = _PREFIXED.fullmatch(_LOST_PLUS.sub("+", unescape(value)))
        assert m is not None  # the pattern matches every text
        try:
            return m[1] or "eq", dates.span(m[2], self.context.zone)
        except (ValueError, OverflowError):
            raise Fault(
                Category.INVALID, f"{self.filter.code}: not a date such as ge2024-05-01.", where=self.filter.code
            ) from None

    def _dates(self, parameter: Parameter) -> str:
        found = [self._date(v) for v in self.filter.values]
        if parameter.column == "issued":
            return _any(_instant_condition("r.issued_at", p, s, self.context, self.out) for p, s in found)
        low, high = ("r.start_at", "r.end_at") if parameter.column else ("v.low", "v.high")
        condition = _any(_span_condition(low, high, p, s, self.context, self.out) for p, s in found)
        return condition if parameter.column else self._rows(parameter, condition)

    # --- search_value ---

    def _rows(self, parameter: Parameter, condition: str, source: str = "search_value v") -> str:
        numbers = self.out.arg([p.number for p, _ in parameter.paths], "smallint[]")
        rtype = self.out.arg(RESOURCE_TYPES[self.type], "smallint")
        return (
            f"(r.shard, r.id) IN (SELECT v.shard, v.id FROM {source} "  # noqa: S608 -- placeholders only
            f"WHERE v.rtype = {rtype} AND v.param = ANY({numbers}) AND {condition})"
        )

    def _strings(self, parameter: Parameter) -> str:
        texts = [normalise(unescape(v))[:STRING_LENGTH] for v in self.filter.values]
        if self.filter.modifier == "contains":
            patterns = ["%" + re.sub(r"([\\%_])", r"\\\1", t) + "%" for t in texts]
            return self._rows(parameter, f"v.string LIKE ANY({self.out.arg(patterns, 'text[]')})")
        self.found.narrow = True
        # A prefix as a range, joined as rows: the plan is the same for one value and for two hundred.
        lows = self.out.arg(texts, "text[]")
        highs = self.out.arg([t + "\U0010ffff" for t in texts], "text[]")
        return self._rows(
            parameter,
            "v.string >= q.low AND v.string < q.high",
            f"unnest({lows}, {highs}) AS q(low, high), search_value v",
        )

    # --- tokens ---

    def _tokens(self, parameter: Parameter, values: tuple[str, ...]) -> list[str]:
        own: dict[int, None] = {}
        common: dict[int, None] = {}
        mask = 0
        for value in values:
            for path, only in parameter.paths:
                if self.filter.kind == "token" and self.filter.modifier != "of-type":
                    mask |= _whole_system(path, value)
                for text in self._forms(parameter, path, only, value):
                    place = is_common(text) if self.filter.kind == "reference" else path.common
                    if place is not True:
                        own[hash_of(path.seed, text)] = None
                    if place is not False:
                        common[hash_of(path.seed, text)] = None
        if self.filter.modifier == "not":
            return self._not(list(own), list(common), mask)
        if own and self._is_narrow(parameter):
            self.found.narrow = True
        self.found.tokens = True
        self.found.longest = max(self.found.longest, len(own))
        if len(own) + len(common) == 1 and not mask:
            self.every.own.extend(own)
            self.every.common.extend(common)
            return []
        conditions = [f"k.tokens && {self.out.arg(list(common), 'bigint[]')}"] if common else []
        if mask:
            conditions.append(f"(k.present & {self.out.arg(mask, 'bigint')}) <> 0")
        shared = f"({' OR '.join(conditions)})" if len(conditions) > 1 else "".join(conditions)
        if not own and shared:
            self.found.common.append(shared)
            self.found.named = self.found.named or not mask
            return []
        self.found.own = True
        hashes = self.out.arg(list(own), "bigint[]")
        return [f"r.tokens && ({hashes} || {kinds_of([shared])})" if shared else f"r.tokens && {hashes}"]

    def _not(self, own: list[int], common: list[int], mask: int) -> list[str]:
        if common:
            self.found.common.append(f"NOT (k.tokens && {self.out.arg(common, 'bigint[]')})")
        if mask:
            self.found.common.append(f"(k.present & {self.out.arg(mask, 'bigint')}) = 0")
        return [f"NOT (r.tokens && {self.out.arg(own, 'bigint[]')})"] if own else []

    def _is_narrow(self, parameter: Parameter) -> bool:
        if self.filter.modifier in ("identifier", "exact", "of-type"):
            return True
        if self.filter.kind == "reference":
            for value in self.filter.values:
                kind = _reference(value, self.context.base).rpartition("/")[0] or self.filter.modifier
                kinds = {kind} if kind else set(parameter.targets)
                if kinds & _DIRECTORIES:
                    return False
            return True
        # "system|" alone stands for everything a facility numbered.
        identifiers = any("Identifier" in path.types for path, _ in parameter.paths)
        return (identifiers and not any(v.endswith("|") for v in self.filter.values)) or parameter.code == "url"

    def _forms(self, parameter: Parameter, path: Path, only: str, value: str) -> Iterator[str]:
        """The indexed texts that a value of a token, reference or uri parameter asks for."""
        modifier = self.filter.modifier
        if self.filter.kind == "string":
            yield EXACT + unescape(value)
        elif self.filter.kind == "uri":
            yield unescape(value)
        elif modifier == "identifier":
            yield IDENTIFIER + _coded(value)
        elif modifier == "of-type":
            parts = [unescape(p) for p in split(value, "|")]
            if len(parts) != 3 or not all(parts):
                raise Fault(
                    Category.INVALID, f"{self.filter.code}:of-type needs system|code|value.", where=self.filter.code
                )
            yield OF_TYPE + "|".join(parts)
        elif self.filter.kind == "reference":
            yield from self._references(parameter, only, value)
        else:
            yield from _token_forms(path, value)

    def _references(self, parameter: Parameter, only: str, value: str) -> Iterator[str]:
        text = _reference(value, self.context.base)
        wanted = self.filter.modifier or only
        if "/" in text or ":" in text or "|" in text:
            if not wanted or text.startswith(wanted + "/"):
                yield text
            return
        for target in [wanted] if wanted else parameter.targets:
            yield f"{target}/{text}"
        if "canonical" in parameter.paths[0][0].types or "uri" in parameter.paths[0][0].types:
            yield text


def _any(conditions: Iterator[str]) -> str:
    texts = list(conditions)
    return texts[0] if len(texts) == 1 else f"({' OR '.join(texts)})"


def _reference(value: str, base: str) -> str:
    return reference_text(unescape(value), base)


def _coded(value: str) -> str:
    """``system|code`` as indexed: escapes undone on both sides."""
    parts = split(value, "|")
    return unescape(parts[0]) if len(parts) == 1 else f"{unescape(parts[0])}|{unescape('|'.join(parts[1:]))}"


def _token_forms(path: Path, value: str) -> Iterator[str]:
    parts = split(value, "|")
    system, code = (None, parts[0]) if len(parts) == 1 else (unescape(parts[0]), "|".join(parts[1:]))
    code = unescape(code)
    plain = [t for t in path.types if t not in _CODED]
    if len(plain) < len(path.types) or not path.types:
        yield code if system is None else f"{system}|{code}"
    if plain and code and (not system or system in path.systems or ("boolean" in plain and system == _BOOLEAN_SYSTEM)):
        yield code.casefold() if _FOLDED.intersection(plain) else code


def _whole_system(path: Path, value: str) -> int:
    """``system|`` on a plain code bound to that system: every resource that has the element; its bit, else 0."""
    system, bar, code = value.partition("|")
    return path.bit if bar and not code and unescape(system) in path.systems else 0


def _span_condition(low: str, high: str, prefix: str, wanted: dates.Span, context: Context, out: Statement) -> str:
    """R4 comparison of a stored span [low, high) with the searched one (http://hl7.org/fhir/R4/search.html#prefix)."""

    def a() -> str:
        return out.arg(wanted[0], "timestamptz")

    def b() -> str:
        return out.arg(wanted[1], "timestamptz")

    def inside() -> str:
        # The middle term says nothing new; it bounds the index range.
        return f"({low} >= {a()} AND {low} < {b()} AND {high} <= {b()})"

    if prefix == "ap":
        wanted = _around(wanted, context)
        return f"({low} < {b()} AND {high} > {a()})"
    if prefix == "ne":
        return f"({low} < {a()} OR {high} > {b()})"
    if prefix == "gt":
        return f"{high} > {b()}"
    if prefix == "lt":
        return f"{low} < {a()}"
    if prefix == "ge":
        return f"({high} > {b()} OR {inside()})"
    if prefix == "le":
        return f"({low} < {a()} OR {inside()})"
    if prefix == "sa":
        return f"{low} >= {b()}"
    if prefix == "eb":
        return f"{high} <= {a()}"
    return inside()


def _instant_condition(column: str, prefix: str, wanted: dates.Span, context: Context, out: Statement) -> str:
    """The same for an instant, which is one point."""
    a, b = _around(wanted, context) if prefix == "ap" else wanted
    if prefix in ("eq", "ap"):
        return f"({column} >= {out.arg(a, 'timestamptz')} AND {column} < {out.arg(b, 'timestamptz')})"
    if prefix == "ne":
        return f"({column} < {out.arg(a, 'timestamptz')} OR {column} >= {out.arg(b, 'timestamptz')})"
    if prefix in ("gt", "sa"):
        return f"{column} >= {out.arg(b, 'timestamptz')}"
    if prefix == "ge":
        return f"{column} >= {out.arg(a, 'timestamptz')}"
    if prefix == "le":
        return f"{column} < {out.arg(b, 'timestamptz')}"
    return f"{column} < {out.arg(a, 'timestamptz')}"


def _around(wanted: dates.Span, context: Context) -> dates.Span:
    """``ap``: R4 recommends 10 % of the gap between now and the date."""
    gap = abs(context.now - wanted[0]) / 10
    low = wanted[0] - gap if wanted[0] - dates.EARLIEST > gap else dates.EARLIEST
    high = wanted[1] + gap if dates.LATEST - wanted[1] > gap else dates.LATEST
    return low, high
