"""One value of a datatype -> tokens, spans and strings (http://hl7.org/fhir/R4/search.html#token, #reference, #string, #date, #uri).

A leaf is a plain function of the JSON value and the sink. Values that do not have their datatype's form leave no trace.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, tzinfo
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

import xxhash

from conformance import systems
from fhir_server.search import dates
from fhir_server.search.definitions import QUANTITIES, Path
from fhir_server.search.quantities import Stored, stored

STRING_LENGTH: Final = 200
"""Characters of a string that are indexed; a longer search value is cut to the same length."""
EXACT: Final = "\x1e"
"""Before a string as sent: its hash answers ``:exact``."""
IDENTIFIER: Final = "\x1d"
"""Before the forms of Reference.identifier: their hashes answer ``:identifier``."""
OF_TYPE: Final = "\x1c"
"""Before type system, type code and value of an Identifier: its hash answers ``:of-type``."""
COMMON_TARGETS: Final = frozenset({"Organization", "Location", "Device"})
"""Resource types that many resources refer to: such a reference stands with the kind of the resource."""
TEXTS_IN_KIND: Final = ("Observation.", "DiagnosticReport.")
"""Where paths begin whose coded texts stand with the kind of the resource; elsewhere they are rows of search_value."""
_REMEMBERED: Final = 4096
"""Codings whose hashes each path remembers."""


class SearchValue(NamedTuple):
    """One row of search_value: path number and a normalised string, a span [low, high), or the span of a number with the unit it
    stands in as string (search/quantities)."""

    param: int
    string: str | None
    low: datetime | None
    high: datetime | None
    number: Decimal | None
    number_high: Decimal | None = None


class Sink:
    """What one resource has given so far. tokens: hashes of its own; common: those that many resources share; texts: number and
    normalised text of coded values, likewise."""

    __slots__ = ("base", "bits", "common", "end", "issued", "patient", "start", "texts", "tokens", "values", "zone")

    def __init__(self, zone: tzinfo, base: str) -> None:
        self.tokens: list[int] = []
        self.common: list[int] = []
        self.texts: list[str] = []
        self.values: list[SearchValue] = []
        self.bits = 0
        self.start: datetime | None = None
        self.end: datetime | None = None
        self.issued: datetime | None = None
        self.patient: str | None = None
        self.zone = zone
        self.base = base


Leaf = Callable[[Any, Any], None]
"""(value, sink): the sink is a Sink, or whatever else the end of the path fills."""

_digest = xxhash.xxh64_intdigest
_SIGN: Final = 1 << 63
_WRAP: Final = 1 << 64


def hash_of(seed: int, text: str) -> int:
    """The signed 64-bit token of ``text`` under a path (``Path.seed``).

    A reference, known by its negative seed, gets a hash that SQL can compute from the id it points to (``hash_in_sql``): chains
    and ``_has`` join by it.
    """
    if seed < 0:
        return _link(seed, text)
    h = _digest(text.encode(), seed)
    return h - _WRAP if h >= _SIGN else h


@lru_cache(maxsize=8192)
def _link(seed: int, text: str) -> int:
    # The results of one message share most of their references.
    return int.from_bytes(sha256(f"{seed}/{text}".encode()).digest()[:8], "big", signed=True)


def hash_in_sql(prefix: str, column: str) -> str:
    """``hash_of`` as a SQL expression; ``prefix`` is the placeholder of ``seed/Type/``, ``column`` the logical id."""
    return f"('x' || left(encode(sha256(convert_to({prefix} || {column}, 'UTF8')), 'hex'), 16))::bit(64)::bigint"


@lru_cache(maxsize=8192)
def normalise(text: str) -> str:
    """A string as compared: without case, accents and width differences, blanks run together, first STRING_LENGTH characters."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(text.casefold().split())[:STRING_LENGTH]


def reference_text(value: str, base: str) -> str:
    """A literal reference as indexed: ``Type/id`` for this server (version dropped), else the URL as it is."""
    if base and value.startswith(base + "/"):
        value = value[len(base) + 1 :]
    return value.split("/_history/", 1)[0]


def is_common(text: str) -> bool | None:
    """Whether the indexed text of a reference stands with the kind; None when it may stand in either place."""
    if text[0] != IDENTIFIER:
        return text.partition("/")[0] in COMMON_TARGETS
    system, bar, _ = text[1:].partition("|")
    return system == systems.FACILITY if bar else None


def coded_forms(system: str | None, code: str | None) -> Iterable[str]:
    """The texts under which a system and code pair can be asked for."""
    if code:
        yield code
        yield f"{system or ''}|{code}"
    if system:
        yield f"{system}|"


def make(path: Path, kind: str, datatype: str, *, column: str, about: bool) -> Leaf | None:
    """The leaf for a path's values of one datatype; None when the datatype cannot be searched by parameters of this kind.

    ``kind`` is the search parameter type; ``column`` is ``date`` or ``issued`` when the value goes to columns of the row; ``about``
    says that the reference names whom the resource is about.
    """
    if kind == "token":
        return _token(path, datatype)
    if kind == "reference":
        return _reference(path, datatype, about)
    if kind == "string":
        return _string(path, datatype)
    if kind == "date":
        return _date(path, datatype, column)
    if kind in ("quantity", "number"):
        return _quantity(path, datatype)
    if kind == "uri":
        return _uri(path) if datatype in ("uri", "url", "canonical", "oid", "uuid", "id") else None
    return None


def _uri(path: Path) -> Leaf:
    whole = _text(path, str)
    # Every result has a source and a profile: they are not searched by their beginning.
    if ".meta." in path.text:
        return whole

    def uri(value: Any, sink: Sink) -> None:
        whole(value, sink)
        sink.values.append(SearchValue(path.number, str(value)[:STRING_LENGTH], None, None, None))

    return uri


def _token(path: Path, datatype: str) -> Leaf | None:
    seed, bit, common = path.seed, path.bit, path.common
    known: dict[tuple[str | None, str | None], tuple[int, ...]] = {}

    def coding(value: Any, sink: Sink) -> None:
        said = value.get("system"), value.get("code")
        hashes = known.get(said)
        if hashes is None:
            if len(known) >= _REMEMBERED:
                known.clear()
            hashes = known[said] = tuple(hash_of(seed, form) for form in coded_forms(*said))
        if hashes:
            sink.bits |= bit
            (sink.common if common else sink.tokens).extend(hashes)

    in_kind = path.text.startswith(TEXTS_IN_KIND)

    def texts(said: Iterable[Any], sink: Sink, *, shared: bool) -> None:
        for text in dict.fromkeys(normalise(t) for t in said if isinstance(t, str) and t):
            if shared:
                sink.texts.append(f"{path.number}:{text}")
            else:
                sink.values.append(SearchValue(path.number, text, None, None, None))

    def alone(value: Any, sink: Sink) -> None:
        coding(value, sink)
        if "display" in value:
            texts((value["display"],), sink, shared=in_kind)

    def concept(value: Any, sink: Sink) -> None:
        sink.bits |= bit
        codings = value.get("coding", ())
        for c in codings:
            coding(c, sink)
        # Text beside a code comes from a dictionary; text alone may be anything, so it is the resource's own.
        texts((value.get("text"), *(c.get("display") for c in codings)), sink, shared=in_kind and bool(codings))

    def identifier(value: Any, sink: Sink) -> None:
        sink.bits |= bit
        system, text = value.get("system"), value.get("value")
        for form in coded_forms(system, text):
            sink.tokens.append(hash_of(seed, form))
        if "text" in (kind := value.get("type") or {}):
            texts((kind["text"],), sink, shared=False)
        if text and "type" in value:
            for c in value["type"].get("coding", ()):
                if c.get("code"):
                    sink.tokens.append(hash_of(seed, f"{OF_TYPE}{c.get('system', '')}|{c['code']}|{text}"))

    def contact(value: Any, sink: Sink) -> None:
        if text := value.get("value"):
            sink.bits |= bit
            sink.tokens.append(hash_of(seed, text))
            sink.tokens.append(hash_of(seed, f"|{text}"))

    return {
        "Coding": alone,
        "CodeableConcept": concept,
        "Identifier": identifier,
        "ContactPoint": contact,
        "boolean": _text(path, lambda v: "true" if v else "false", common),
        # R4: "if the underlying datatype is string then the search is not case sensitive".
        "string": _text(path, str.casefold),
        "markdown": _text(path, str.casefold),
    }.get(datatype) or (
        _text(path, str, common)
        if datatype in ("code", "id", "uri", "url", "canonical", "oid", "uuid", "positiveInt")
        else None
    )


def _text(path: Path, form: Callable[[Any], str], common: bool = False) -> Leaf:
    seed, bit = path.seed, path.bit

    def plain(value: Any, sink: Sink) -> None:
        sink.bits |= bit
        (sink.common if common else sink.tokens).append(hash_of(seed, form(value)))

    return plain


def _reference(path: Path, datatype: str, about: bool) -> Leaf | None:
    seed, bit = path.seed, path.bit

    def reference(value: Any, sink: Sink) -> None:
        sink.bits |= bit
        literal = value.get("reference")
        if literal and literal[0] != "#":
            literal = reference_text(literal, sink.base)
            if about and sink.patient is None and literal.startswith("Patient/"):
                sink.patient = literal[8:]
                if not path.many:  # the column resource.patient says it (definitions.about)
                    literal = ""
            if literal:
                (sink.common if is_common(literal) else sink.tokens).append(hash_of(seed, literal))
        logical = value.get("identifier")
        if logical:
            into = sink.common if logical.get("system") == systems.FACILITY else sink.tokens
            for form in coded_forms(logical.get("system"), logical.get("value")):
                into.append(hash_of(seed, IDENTIFIER + form))

    def canonical(value: Any, sink: Sink) -> None:
        sink.bits |= bit
        sink.tokens.append(hash_of(seed, value))
        if "|" in value:
            sink.tokens.append(hash_of(seed, value.split("|", 1)[0]))

    def embedded(value: Any, sink: Sink) -> None:
        if "id" in value:
            sink.bits |= bit
            sink.tokens.append(hash_of(seed, f"{value.get('resourceType')}/{value['id']}"))

    return {"Reference": reference, "canonical": canonical, "uri": canonical, "Resource": embedded}.get(datatype)


def _string(path: Path, datatype: str) -> Leaf | None:
    seed, bit, number = path.seed, path.bit, path.number

    def put(texts: Iterable[Any], sink: Sink) -> None:
        seen = set()
        for text in texts:
            if not isinstance(text, str) or not text:
                continue
            sink.bits |= bit
            sink.tokens.append(hash_of(seed, EXACT + text))
            low = normalise(text)
            if low not in seen:
                seen.add(low)
                sink.values.append(SearchValue(number, low, None, None, None))

    def name(value: Any, sink: Sink) -> None:
        given = value.get("given", ())
        put((value.get("text"), value.get("family"), *given, *value.get("prefix", ()), *value.get("suffix", ())), sink)
        whole = full_name(value)
        if whole:
            put((whole,), sink)

    def address(value: Any, sink: Sink) -> None:
        parts = ("text", "city", "district", "state", "postalCode", "country")
        put((*(value.get(p) for p in parts), *value.get("line", ())), sink)

    def plain(value: Any, sink: Sink) -> None:
        put((value,), sink)

    return {"HumanName": name, "Address": address, "string": plain, "markdown": plain, "code": plain}.get(datatype)


def full_name(value: Mapping[str, Any]) -> str:
    """HumanName without text, family and given both in Chinese characters -> the name as it is spoken (``张`` ``三`` -> ``张三``).

    Empty otherwise. R4 leaves it to the server which parts ``name`` searches; nobody types a Chinese name in two parts.
    """
    family, given = value.get("family") or "", "".join(g for g in value.get("given", ()) if g)
    if value.get("text") or not family or not given or (family + given).isascii():
        return ""
    return f"{family}{given}"


def _date(path: Path, datatype: str, column: str) -> Leaf | None:
    if datatype in ("date", "dateTime", "instant"):
        read: Callable[[Any, tzinfo], dates.Span | None] = dates.span
    elif datatype == "Period":
        read = dates.period
    elif datatype == "Timing":
        read = dates.timing
    else:
        return None
    bit, number = path.bit, path.number

    def date(value: Any, sink: Sink) -> None:
        try:
            found = read(value, sink.zone)
        except (ValueError, TypeError, OverflowError):
            return
        if found is None:
            return
        sink.bits |= bit
        if column == "date":
            sink.start, sink.end = found
        elif column == "issued":
            sink.issued = found[0]
        else:
            sink.values.append(SearchValue(number, None, *found, None))

    return date


def _quantity(path: Path, datatype: str) -> Leaf | None:
    if datatype not in QUANTITIES and datatype not in ("integer", "decimal", "positiveInt", "unsignedInt"):
        return None

    def quantity(value: Any, sink: Sink) -> None:
        found = list(stored(value))
        if found:
            sink.bits |= path.bit
            sink.values.extend(as_rows(path.number, found))

    return quantity


def as_rows(number: int, found: Iterable[Stored], prefix: str = "") -> Iterable[SearchValue]:
    """Stored spans of a quantity as rows of search_value; ``prefix`` stands before the unit."""
    return (SearchValue(number, prefix + unit, None, None, low, high) for unit, low, high in found)
