"""Checks resources against R4 4.0.1 (http://hl7.org/fhir/R4/validation.html).

``check`` is for the hot path: one compiled JSON Schema per resource type, made from the official definitions (schema/generate.py),
and a few rules a schema cannot say. ``check_fully`` adds the ``fhir.resources`` model and costs about a hundred times more; it is for
what clients write. Neither changes the resource.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import orjson
from jsonschema_rs import ValidationError, ValidationErrorKind

from conformance import structure
from conformance.issue import Issue
from conformance.known_sound import KnownSound, separable

MOST: Final = 50
"""Most issues told about one resource; the first of them are enough to mend it."""

_SCHEMA: Final = "urn:tongjian:r4"
_FORMATS: Final[dict[str, str]] = {
    "string": "a text that is not blank and has no control characters",
    "markdown": "a text that is not blank and has no control characters",
    "uri": "a URI without blanks",
    "url": "a URL without blanks",
    "canonical": "a canonical URL without blanks",
    "code": "a code without leading, trailing or double blanks",
    "id": "1 to 64 letters, digits, '-' and '.'",
    "oid": "urn:oid: and an OID",
    "uuid": "urn:uuid: and a UUID in lower case",
    "base64Binary": "base64",
    "date": "a real date YYYY, YYYY-MM or YYYY-MM-DD",
    "dateTime": "a real date, or a date and time with seconds and zone such as 2026-11-21T08:30:00+08:00",
    "instant": "a date and time with seconds and zone such as 2026-11-21T08:30:00+08:00",
    "time": "a time HH:MM:SS",
    "xhtml": "XHTML in one div element",
}
_CONDITIONAL: Final = re.compile(r"[A-Z][A-Za-z]+\?\S")
_TYPES: Final[dict[str, str]] = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "number": "a number",
    "integer": "a whole number without fraction",
    "boolean": "true or false",
}


@cache
def _document() -> dict[str, Any]:
    """The generated schema (900 kB, read once)."""
    text = (Path(__file__).parent / "schema" / "r4.json").read_bytes()
    document: dict[str, Any] = orjson.loads(text)
    return document


@cache
def known_types() -> frozenset[str]:
    """Every resource type of R4 4.0.1; contained resources may have types that are not served."""
    return frozenset(_document()["$defs"]["resource"]["properties"]["resourceType"]["enum"])


@cache
def _registry() -> jsonschema_rs.Registry:
    return jsonschema_rs.Registry([(_SCHEMA, _document())])


@cache
def _compiled(type: str) -> jsonschema_rs.Draft202012Validator:
    # The linear-time regular expressions cannot be made to run away by a long text.
    return jsonschema_rs.Draft202012Validator(
        {"$ref": f"{_SCHEMA}#/$defs/{type}"}, registry=_registry(), pattern_options=jsonschema_rs.RegexOptions()
    )


@cache
def _known_sound(type: str) -> KnownSound | None:
    """What is known of a resource type; None where its elements do not stand for themselves."""
    if type not in known_types() or not separable(_document()["$defs"][type]):
        return None

    def is_sound(resource: dict[str, Any]) -> bool:
        plain = orjson.loads(orjson.dumps(resource, default=_decimal))
        return bool(_compiled(type).is_valid(plain)) and next(structure.rules(type, resource, type), None) is None

    return KnownSound(is_sound)


def warm(*types: str) -> None:
    """Compiles the schemas of the types (about 0.05 s each), so that no message waits for it."""
    for name in types:
        _compiled(name)


def _decimal(value: Any) -> float | None:
    # A decimal may have any size, so only its sign and its being no whole number matter to the schema.
    if isinstance(value, Decimal):
        return (-0.5 if value < 0 else 0.5) if value.is_finite() else None
    raise TypeError(f"{type(value).__name__} has no JSON form")


def check(resource: Any, members: Sequence[bytes] = ()) -> list[Issue]:
    """Problems of one resource (a plain dict; numbers with a fraction as Decimal or JsonNumber); empty when it is sound.

    members: ``fhirjson.members`` of the resource where they are at hand; the outcome is the same, and elements seen before cost little.

    Covers names, types, cardinalities, choices, formats (real dates, ids, references and their targets), required code bindings,
    empty values, the invariants in ``schema.invariants`` and ``structure``; contained resources and Bundle entries too.
    ``Issue.where`` is a FHIRPath such as ``Observation.valueQuantity.value``.
    """
    if not isinstance(resource, dict):
        return [Issue("wrong-type", "error", "", "A resource is a JSON object. Send one object.")]
    name = resource.get("resourceType")
    known = _known_sound(name) if members and isinstance(name, str) else None
    if known is not None and known.covers(resource, members):
        return []
    issues = _check_whole(resource)
    if known is not None and not issues:
        known.learn(resource, members)
    return issues


def _check_whole(resource: dict[str, Any]) -> list[Issue]:
    try:
        plain = orjson.loads(orjson.dumps(resource, default=_decimal))
    except (TypeError, orjson.JSONEncodeError):
        return [
            Issue("not-json", "error", "", "A value or name has no JSON form (lone surrogate, number beyond 64 bits).")
        ]
    return list(_limited(_checked(plain, resource, "", conditional=False)))


def _limited(issues: Iterator[Issue]) -> Iterator[Issue]:
    for count, issue in enumerate(issues):
        if count == MOST:
            return
        yield issue


def _checked(plain: dict[str, Any], resource: dict[str, Any], at: str, *, conditional: bool) -> Iterator[Issue]:
    """``at`` is the FHIRPath of the place the resource stands in; empty for the resource itself. ``conditional`` allows references
    such as ``Patient?identifier=...``, which a transaction resolves (http://hl7.org/fhir/R4/http.html#trules)."""
    name = plain.get("resourceType")
    if not isinstance(name, str) or name not in known_types():
        if not at:  # else the schema of what it stands in tells
            text = "resourceType must name a resource type of FHIR R4 (4.0.1)."
            yield Issue("unknown-type", "error", "resourceType", text)
        return
    root = at or name
    validator = _compiled(name)
    if not validator.is_valid(plain):
        for issue in _told(list(validator.iter_errors(plain)), root):
            if not (conditional and issue.key == "bad-reference" and _CONDITIONAL.match(issue.value or "")):
                yield issue
    else:
        yield from structure.rules(name, resource, root)
    conditional = conditional or (name == "Bundle" and plain.get("type") in ("transaction", "batch"))
    for path, inner in structure.inner(name, plain):
        place = f"{root}.{path}"
        original = structure.follow(resource, path)
        if isinstance(inner, dict) and isinstance(original, dict):
            yield from _checked(inner, original, place, conditional=conditional)


def _told(errors: list[ValidationError], root: str) -> Iterator[Issue]:
    """The schema's errors in our words, in the order of their places, each once."""
    mistyped = [tuple(e.instance_path) for e in errors if isinstance(e.kind, ValidationErrorKind.Type)]
    empty = [tuple(e.instance_path) for e in errors if isinstance(e.kind, ValidationErrorKind.MinProperties)]
    seen: set[tuple[str, str]] = set()
    for error in sorted(errors, key=lambda e: [f"{p:>6}" if isinstance(p, int) else p for p in e.instance_path]):
        place = tuple(error.instance_path)
        if place in mistyped and not isinstance(error.kind, ValidationErrorKind.Type):
            continue  # what is said of an object does not matter while it is none
        if place in empty and not isinstance(error.kind, ValidationErrorKind.MinProperties):
            continue  # nor what is missing in one that holds nothing
        for issue in _issues(error, root + _path(place)):
            if (issue.key, issue.where) not in seen:
                seen.add((issue.key, issue.where))
                yield issue


def _path(place: tuple[str | int, ...]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place)


def _issues(error: ValidationError, where: str) -> Iterator[Issue]:
    kind = error.kind
    schema, name, deeper = _schema_at(error.schema_path)
    comment = schema.get("$comment", "")
    if isinstance(kind, ValidationErrorKind.AdditionalProperties):
        for unknown in kind.unexpected:
            text = "R4 has no such element here. Remove it, or send it as an extension."
            yield Issue("unknown-element", "error", f"{where}.{unknown}", text)
    elif "|" in comment:
        key, _, text = comment.partition("|")
        where = where.rsplit(".", deeper)[0]
        if key == "choice":
            yield Issue("choice", "error", f"{where}.{text}", f"Send {_how_many(kind)} form of {text}[x].")
        elif key == "bound":
            yield Issue("bad-code", "error", where, f"One coding must be of the required codes: {text}.")
        else:
            yield Issue("invariant", "error", where, f"{key}: {text}.")
    elif isinstance(kind, ValidationErrorKind.Required):
        yield Issue("missing-element", "error", f"{where}.{kind.property}", "This element is required. Send it.")
    elif isinstance(kind, ValidationErrorKind.Type):
        yield Issue("wrong-type", "error", where, f"This must be {' or '.join(_TYPES[t] for t in kind.types)}.")
    elif isinstance(kind, ValidationErrorKind.MinProperties | ValidationErrorKind.MinItems):
        yield Issue("empty", "error", where, "An object or list must not be empty. Leave the element out.")
    elif isinstance(kind, ValidationErrorKind.Enum):
        listed = ", ".join(str(c) for c in kind.options[:15]) + (" ..." if len(kind.options) > 15 else "")
        yield Issue("bad-code", "error", where, f"This must be one of the required codes: {listed}.", _shown(error))
    elif isinstance(kind, ValidationErrorKind.Pattern):
        yield _bad_format(comment, name, kind.pattern, where, _shown(error))
    elif isinstance(kind, ValidationErrorKind.Minimum | ValidationErrorKind.Maximum):
        yield Issue("bad-format", "error", where, "This whole number is outside the range of its type.", _shown(error))
    elif isinstance(kind, ValidationErrorKind.AnyOf):
        # An item of a list of primitives: what holds for the value, not for null.
        for inner in kind.context[0]:
            yield from _issues(inner, where)
    else:
        yield Issue("wrong-value", "error", where, "This value is not allowed here.", _shown(error))


def _how_many(kind: object) -> str:
    return "only one" if isinstance(kind, ValidationErrorKind.OneOfMultipleValid) else "one"


def _bad_format(comment: str, name: str, pattern: str, where: str, value: str | None) -> Issue:
    if comment == "reference":
        text = "A reference is Type/id, an absolute URL or URN, or # and the id of a contained resource."
        return Issue("bad-reference", "error", where, text, value)
    if comment == "target":
        targets = re.search(r"\(([A-Za-z|]+)\)/", pattern)
        text = f"This must refer to {' or '.join(targets[1].split('|'))}." if targets else "The target type is wrong."
        return Issue("bad-reference", "error", where, text, value)
    return Issue(
        "bad-format", "error", where, f"This must be {_FORMATS.get(name, 'in the format of its type')}.", value
    )


def _schema_at(path: list[str | int]) -> tuple[dict[str, Any], str, int]:
    """The innermost schema with a comment on the way to the failed keyword, the definition it stands in, and how many elements
    deeper than what the comment is about (or than the item of its list) the keyword looked."""
    here: Any = _document()
    found: dict[str, Any] = {}
    deeper = 0
    for step in path:
        here = here[step]
        if isinstance(here, dict) and "$comment" in here:
            found, deeper = here, 0
        elif step in ("properties", "items"):
            deeper = deeper + 1 if step == "properties" else 0
    return found, str(path[1]) if len(path) > 1 else "", deeper


def _shown(error: ValidationError) -> str | None:
    return error.instance[:200] if isinstance(error.instance, str) else None


def check_fully(resource: Any) -> list[Issue]:
    """``check``, then the rules that need the whole resource at hand and the ``fhir.resources`` R4B model, for what clients write.

    R4B (4.3.0) changed CodeSystem and SearchParameter and dropped some types; those are judged by ``check`` alone.
    """
    issues = check(resource)
    if issues:
        return issues
    from conformance import model  # noqa: PLC0415 - slow to import, and not needed to convert messages

    return list(_limited(iter([*structure.thorough(resource), *model.check(resource)])))
