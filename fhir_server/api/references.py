"""References inside a transaction: links to other entries and conditional references become references to what was stored
(http://hl7.org/fhir/R4/http.html#transaction, http://hl7.org/fhir/R4/bundle.html#references).

Replaced are Reference.reference, elements of type uri, url, oid, uuid and canonical, and the targets of links and images in
narratives; nothing else, so an Identifier that happens to hold the same text stays.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from fhir_server.search.definitions import elements, inner

Replace = Callable[[str], str]
"""A link as sent -> the link to store; the same text when it is not to be replaced."""

_LINKS: Final = frozenset({"uri", "url", "oid", "uuid", "canonical"})
_TAG: Final = re.compile(r"""<!--.*?-->|<[A-Za-z](?:[^<>"']|"[^"]*"|'[^']*')*>""", re.DOTALL)
_ATTRIBUTE: Final = re.compile(r"""([A-Za-z:-]+)(\s*=\s*)(?:"([^"]*)"|'([^']*)')""")
_CONDITIONAL: Final = re.compile(r"([A-Z][A-Za-z]+)\?(.+)", re.DOTALL)


def rewritten(resource: Mapping[str, Any], replace: Replace) -> dict[str, Any]:
    """A copy of the resource with every link replaced."""
    return _object(resource, resource["resourceType"], replace)


def _object(value: Mapping[str, Any], at: str, replace: Replace) -> dict[str, Any]:
    out = {}
    for key, v in value.items():
        types = _types(at, key)
        out[key] = _value(v, f"{at}.{key}", types, key, replace)
    return out


def _types(at: str, key: str) -> str:
    """Datatype of the JSON property ``key`` below a type or element path; empty when the definitions do not have it."""
    if key in ("extension", "modifierExtension"):
        return "Extension"
    if key in ("contained", "resource", "outcome"):
        return "Resource"
    row = elements().get(f"{at}.{key}")
    if row is not None:
        return row[0][0] if row[0] else ""
    # A choice: valueUri is value[x] of type uri.
    for i in range(len(key) - 1, 0, -1):
        if key[i].isupper() and f"{at}.{key[:i]}[x]" in elements():
            suffix = key[i:]
            return next((t for t in elements()[f"{at}.{key[:i]}[x]"][0] if t.lower() == suffix.lower()), "")
    return ""


def _value(value: Any, path: str, datatype: str, key: str, replace: Replace) -> Any:
    if isinstance(value, list):
        return [_value(v, path, datatype, key, replace) for v in value]
    if isinstance(value, dict):
        if "resourceType" in value and datatype == "Resource":
            return rewritten(value, replace)
        return _object(value, inner(path, datatype), replace)
    if isinstance(value, str):
        if datatype in _LINKS or (key == "reference" and path == "Reference.reference"):
            return replace(value)
        if key == "div":
            return _TAG.sub(lambda tag: _tag(tag[0], replace), value)
    return value


def _tag(text: str, replace: Replace) -> str:
    """A tag or a comment of a narrative; comments have no links."""
    return text if text.startswith("<!") else _ATTRIBUTE.sub(lambda m: _attribute(m, replace), text)


def _attribute(found: re.Match[str], replace: Replace) -> str:
    """An attribute of a narrative, its link replaced when it is one; what is not replaced stays to the letter."""
    if found[1].lower() not in ("href", "src"):
        return found[0]
    link = html.unescape(found[3] if found[3] is not None else found[4])
    target = replace(link)
    return found[0] if target == link else f'{found[1]}{found[2]}"{html.escape(target)}"'


def settled(resource: dict[str, Any]) -> dict[str, Any]:
    """The resource as it may look once its conditional references are resolved, for checking it before."""
    if next(conditional(resource), None) is None:
        return resource
    return rewritten(resource, lambda link: f"{m[1]}/resolved" if (m := _CONDITIONAL.fullmatch(link)) else link)


def conditional(resource: Any) -> Iterator[tuple[str, str]]:
    """(type, query) of every conditional reference (``Patient?identifier=...``) in the resource."""
    for link in _literal(resource):
        if m := _CONDITIONAL.fullmatch(link):
            yield m[1], m[2]


def literal(resource: dict[str, Any] | None) -> Iterator[str]:
    """Every literal reference of the resource itself; those inside a Bundle are about its own entries."""
    if resource is not None and resource["resourceType"] != "Bundle":
        yield from _literal(resource)


def _literal(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        link = value.get("reference")
        if isinstance(link, str):
            yield link
        for v in value.values():
            yield from _literal(v)
    elif isinstance(value, list):
        for v in value:
            yield from _literal(v)
