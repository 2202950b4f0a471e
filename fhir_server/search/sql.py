"""A Query -> SQL with ``$n`` parameters, the same text for asyncpg and for psycopg's raw cursor.

One predicate per search parameter, whatever the number of values: ``tokens @>`` or ``tokens &&`` an array (GIN), a range of a typed
column, or membership in rows of search_value. Never an OR per value type, so that a list of 200 values keeps its plan.

What many resources have in common stands in resource_kind (k), and the first token of a row names its kind. All conditions on kinds
become one: looked up for each row of a walk or of a narrow search, or first of all, where the kinds then lead to the rows by an index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.errors import Category, Fault
from fhir_server.search import dates, posted_sql
from fhir_server.search.chain_sql import OF_ONE_PATIENT, Link, pointed_at_by, pointing_to
from fhir_server.search.composites import JOINT
from fhir_server.search.date_sql import during, instant_condition, span_condition
from fhir_server.search.definitions import Element, Parameter, Path, about
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
from fhir_server.search.quantities import Box
from fhir_server.search.quantity_sql import boxes_of, quantity, rows
from fhir_server.search.query import Filter, Query, split, unescape
from fhir_server.search.statement import Context, Statement, kinds_of
from fhir_server.search.token_forms import above, coded, token_forms, whole_system
from fhir_server.search.where import Every, Where, any_of
from mappings.ids import home_shard, shard_of_id

_PREFIXED = re.compile(r"(eq|ne|gt|lt|ge|le|sa|eb|ap)?(.*)", re.DOTALL)
# A "+" that a client left unescaped in the URL arrives as a blank.
_LOST_PLUS = re.compile(r" (?=\d\d:\d\d$)")
# One resource of these is referred to by a large part of the data, so a reference to it does not narrow a search.
_DIRECTORIES: Final = frozenset(
    {"Organization", "Location", "Practitioner", "PractitionerRole", "Device", "Endpoint", "Group", "Measure"}
)


def where(query: Query, context: Context, out: Statement) -> Where:
    """The conditions of a search; arguments are appended to ``out``. Raises Fault INVALID for a value that cannot be read."""
    return where_of(query.type, query.filters, context, out)


def where_of(type: str, filters: Iterable[Filter], context: Context, out: Statement) -> Where:
    """The same for the filters of one type: of a search, or of one end of a chain."""
    rtype = out.arg(RESOURCE_TYPES[type], "smallint")
    found = Where([f"r.rtype = {rtype}", "NOT r.deleted"])
    every = Every()
    for f in filters:
        texts = _Condition(f, type, context, out, found, every).texts()
        found.texts.extend(texts)
    if every.own:
        found.texts.append(f"r.tokens @> {out.arg(every.own, 'bigint[]')}")
        found.own = True
    if found.hashed and not found.placed:
        # PostgreSQL takes a hash it has not seen for a frequent one, and would walk all of the type beside the index of tokens.
        found.texts[0] = f"(r.rtype + 0) = {rtype}"
    if every.common:
        found.common.append(f"k.tokens @> {out.arg(every.common, 'bigint[]')}")
        found.named = True
    return found


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
    every: Every

    def texts(self) -> list[str]:
        f = self.filter
        if f.kind == "id":
            return [self._ids()]
        if f.kind == "updated":
            return [_any(instant_condition("r.updated", *self._date(v), self.context, self.out) for v in f.values)]
        if f.kind in ("chain", "has"):
            self._linked()
            return []
        if f.kind == "any":
            any_of([where_of(self.type, [inner], self.context, self.out) for _, inner in f.inner], self.found)
            return []
        if f.kind == "care":
            return [during((self._date(f.values[0])[1][0], self._date(f.values[1])[1][1]), self.out)]
        assert f.parameter is not None  # parse() lets nothing else through
        if f.parameter.own and posted_sql.as_text(f):
            values = () if f.modifier == "missing" else f.values
            forms = {t for v in values for p, only in f.parameter.paths for t in self._forms(f.parameter, p, only, v)}
            return [posted_sql.condition(f, f.parameter, forms, RESOURCE_TYPES[self.type], self.out)]
        if f.modifier == "missing":
            return self._missing(f.parameter)
        if f.kind == "composite":
            self._composite(f.parameter)
            return []
        if f.kind in ("quantity", "number"):
            self.found.values.append(quantity(f.parameter, self._boxes(f.kind, f.values), self.type, self.out))
            self.found.tokens = True
            return []
        if f.kind == "date":
            return [self._dates(f.parameter)]
        if f.modifier == "text":
            return self._texts(f.parameter)
        if f.kind == "uri" and f.modifier == "below":
            return [self._prefixed(f.parameter, [unescape(v)[:STRING_LENGTH] for v in f.values])]
        if f.kind == "string" and f.modifier != "exact":
            return [self._strings(f.parameter)]
        if f.kind == "reference" and f.modifier != "identifier" and about(self.type, f.parameter):
            return self._about(f.parameter)
        return self._tokens(f.parameter, f.values)

    def _either(self, forms: tuple[str, str]) -> None:
        """Adds a condition that may match much or little."""
        self.found.either.append(forms)
        self.found.tokens = True

    def _boxes(self, kind: str, values: Iterable[str]) -> list[Box]:
        return [box for v in values for box in boxes_of(v, kind, self.filter.code)]

    # --- chains and composites ---

    def _linked(self) -> None:
        """``subject:Patient.name=...`` and ``_has:Observation:patient:code=...``: the other end has conditions of its own."""
        f = self.filter
        assert f.parameter is not None
        for_each, by_index = [], []
        narrow = True
        for other, inner in f.inner:
            ends = where_of(other, [inner], self.context, self.out)
            link = Link(f.parameter, other, self.type, f.kind == "has", ends.each(), ends.collected(), ends.narrow)
            one, all_ = (pointed_at_by if link.reverse else pointing_to)(link, self.out)
            for_each.append(one)
            by_index.append(all_)
            self.found.linked |= not link.reverse and other in OF_ONE_PATIENT and not ends.narrow
            narrow = narrow and ends.narrow and link.by_index and other not in _DIRECTORIES
        if not for_each:
            self.found.texts.append("false")
            return
        self.found.either.append((_any(iter(for_each)), _any(iter(by_index))))
        if narrow:
            self.found.narrow = self.found.driven = True
        else:
            self.found.tokens = True

    def _composite(self, parameter: Parameter) -> None:
        for_each, by_index = [], []
        for value in self.filter.values:
            parts = split(value, "$")
            if len(parts) != 2 or not all(parts):
                raise Fault(
                    Category.INVALID, f"{self.filter.code} needs two values joined by $.", where=self.filter.code
                )
            if parameter.joined:
                filters = [
                    Filter(self.filter.code, p.kind, "", (v,), p) for p, v in zip(parameter.joined, parts, strict=True)
                ]
                both = where_of(self.type, filters, self.context, self.out)
                for_each.append(" AND ".join(both.each()))
                text = " AND ".join(both.collected()) + self.out.within
                by_index.append(f"(r.shard, r.id) IN (SELECT r.shard, r.id FROM resource r WHERE {text})")  # noqa: S608
            for element in parameter.elements:
                condition = self._element(element, *parts)
                for_each.append(condition)
                by_index.append(condition)
        one = " OR ".join(f"({c})" for c in for_each)
        union = by_index[0] if len(by_index) == 1 else " OR ".join(f"({c})" for c in by_index)
        self._either((one, f"({union})"))

    def _element(self, element: Element, code: str, value: str) -> str:
        (_, codes), (kind, values) = element.parts
        named = list(dict.fromkeys(form for path in codes for form in token_forms(path, code)))
        if kind == "quantity":
            wanted = [(form + JOINT, box) for form in named for box in self._boxes(kind, [value])]
            rtype = self.out.arg(RESOURCE_TYPES[self.type], "smallint")
            return rows([element.path.number], wanted, rtype, self.out)
        if kind == "reference":
            texts = [_reference(value, self.context.base)]
        else:
            texts = list(dict.fromkeys(form for path in values for form in token_forms(path, value)))
        hashes = [hash_of(element.path.seed, f"{form}{JOINT}{text}") for form in named for text in texts]
        return f"r.tokens && {self.out.arg(hashes, 'bigint[]')}"

    def _texts(self, parameter: Parameter) -> list[str]:
        """``:text``: the beginning of CodeableConcept.text, Coding.display or Identifier.type.text."""
        starts = self._normalised()
        stored = self._strings(parameter)
        plain = [re.sub(r"([%_@])", r"@\1", t) for t in starts]
        patterns = [f"{path.number}:{t}%" for path, _ in parameter.paths for t in plain]
        rtype = self.out.arg(RESOURCE_TYPES[self.type], "smallint")
        kinds = kinds_of(
            [
                f"k.rtype = {rtype}",
                f"EXISTS (SELECT FROM unnest(k.texts) t, unnest({self.out.arg(patterns, 'text[]')}) p WHERE t LIKE p ESCAPE '@')",
            ]
        )
        here = f"r.rtype = {rtype}{self.out.within}"
        self._either(
            (
                f"({stored}) OR r.tokens[1] = ANY({kinds})",
                f"(r.shard, r.id) IN (SELECT r.shard, r.id FROM resource r WHERE {here} AND r.tokens[1] = ANY({kinds}) UNION ALL "  # noqa: S608
                f"SELECT r.shard, r.id FROM resource r WHERE {here} AND {stored})",
            )
        )
        return []

    # --- columns ---

    def _ids(self) -> str:
        ids = [unescape(v) for v in self.filter.values]
        derived = [(shard, i) for i in ids if (shard := shard_of_id(i)) is not None]
        self.found.narrow = self.found.placed = True
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
        self.found.placed = True
        if not others:
            self.found.narrow = True
            self.found.keyed = len(patients) == 1 and shard_of_id(patients[0]) is not None
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
            return _any(instant_condition("r.issued_at", p, s, self.context, self.out) for p, s in found)
        low, high = ("r.start_at", "r.end_at") if parameter.column else ("v.low", "v.high")
        condition = _any(span_condition(low, high, p, s, self.context, self.out) for p, s in found)
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
        texts = self._normalised()
        if self.filter.modifier == "contains":
            patterns = ["%" + re.sub(r"([\\%_])", r"\\\1", t) + "%" for t in texts]
            return self._rows(parameter, f"v.string LIKE ANY({self.out.arg(patterns, 'text[]')})")
        self.found.narrow = self.found.narrow or self.filter.modifier != "text"
        return self._prefixed(parameter, texts)

    def _normalised(self) -> list[str]:
        texts = [normalise(unescape(v)) for v in self.filter.values]
        if "" in texts:
            # Every string begins with nothing: blanks alone would find everybody.
            raise Fault(Category.INVALID, f"{self.filter.code} has a value without a letter.", where=self.filter.code)
        return texts

    def _prefixed(self, parameter: Parameter, texts: list[str]) -> str:
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
                    mask |= whole_system(path, value)
                for text in self._forms(parameter, path, only, value):
                    place = is_common(text) if self.filter.kind == "reference" else path.common
                    if place is not True:
                        own[hash_of(path.seed, text)] = None
                    if place is not False:
                        common[hash_of(path.seed, text)] = None
        if self.filter.modifier == "not":
            return self._not(list(own), list(common), mask)
        if own and self._is_narrow(parameter):
            self.found.narrow = self.found.hashed = True
        self.found.tokens = True
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
            yield from above(unescape(value)) if modifier == "above" else (unescape(value),)
        elif modifier == "identifier":
            yield IDENTIFIER + coded(value)
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
            yield from token_forms(path, value)

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
