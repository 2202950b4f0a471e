"""The indexed texts that the value of a token, uri or identifier search asks for (http://hl7.org/fhir/R4/search.html#token, #uri)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fhir_server.search.definitions import Path
from fhir_server.search.query import split, unescape

_CODED: Final = frozenset({"Coding", "CodeableConcept", "Identifier", "ContactPoint"})
_FOLDED: Final = frozenset({"string", "markdown"})
_BOOLEAN_SYSTEM: Final = "http://hl7.org/fhir/special-values"


def above(uri: str) -> Iterator[str]:
    """The URI and all whose path begins it: ``http://a/b/c``, ``http://a/b/``, ``http://a/b`` ... (R4: ``:above``)."""
    yield uri
    start = uri.find("://") + 3
    while (cut := uri.rfind("/")) >= start > 2:
        yield uri[: cut + 1]
        uri = uri[:cut]
        yield uri


def coded(value: str) -> str:
    """``system|code`` as indexed: escapes undone on both sides."""
    parts = split(value, "|")
    return unescape(parts[0]) if len(parts) == 1 else f"{unescape(parts[0])}|{unescape('|'.join(parts[1:]))}"


def token_forms(path: Path, value: str) -> Iterator[str]:
    """``system|code`` in the forms that values of the path are indexed in."""
    parts = split(value, "|")
    system, code = (None, parts[0]) if len(parts) == 1 else (unescape(parts[0]), "|".join(parts[1:]))
    code = unescape(code)
    plain = [t for t in path.types if t not in _CODED]
    if len(plain) < len(path.types) or not path.types:
        yield code if system is None else f"{system}|{code}"
    if plain and code and (not system or system in path.systems or ("boolean" in plain and system == _BOOLEAN_SYSTEM)):
        yield code.casefold() if _FOLDED.intersection(plain) else code


def whole_system(path: Path, value: str) -> int:
    """``system|`` on a plain code bound to that system: every resource that has the element; its bit, else 0."""
    system, bar, code = value.partition("|")
    return path.bit if bar and not code and unescape(system) in path.systems else 0
