"""Bytes -> XML tree, for documents of strangers: no DTD, no entities, no network, no XInclude; size, depth and number limited.

Names lose their namespace (``{urn:hl7-org:v3}section`` -> ``section``), because senders misspell it; attributes too (``xsi:type`` ->
``type``). What is repaired is in ``NAMED_REPAIRS``, each an Issue of its own; nothing else is guessed (W3C XML 1.0; lxml).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from lxml import etree

from adapters.charset import decode, wide_codec
from adapters.contract import Unreadable
from conformance.issue import Issue

Element: TypeAlias = Any
"""An lxml element; lxml has no types of its own."""

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 100
MAX_ELEMENTS = 300_000
_ATTRIBUTES = 8
"""Attributes an element may have on the average."""
_SAFE: Mapping[str, Any] = MappingProxyType(
    {
        "resolve_entities": False,
        "no_network": True,
        "load_dtd": False,
        "dtd_validation": False,
        "huge_tree": False,
        "remove_comments": True,
        "remove_pis": True,
        "encoding": "utf-8",
    }
)
"""How a parser of lxml is made."""
_DECLARATION = re.compile(r"\s*<\?xml\b([^>]*)\?>")
_ENCODING = re.compile(rb"""<\?xml\b[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
_SAID_IN = "the XML declaration"
_PROLOG = re.compile(r"(?:\s+|<\?.*?\?>|<!--.*?-->)+", re.DOTALL)
_MUSE_DOCTYPE = re.compile(r"""<!DOCTYPE\s+RestingECG\s+SYSTEM\s+["']restecg\.dtd["']\s*>""")
_ROOT = re.compile(r"<([A-Za-z_][\w.-]*:)?([A-Za-z_][\w.-]*)")
_XINCLUDE = "{http://www.w3.org/2001/XInclude}"
_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#\d{1,7}|#x[0-9A-Fa-f]{1,6});)")
_LESS = re.compile(r"<(?![A-Za-z_/!?:])")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_CDATA = re.compile(r"(<!\[CDATA\[.*?\]\]>)", re.DOTALL)
_ENTITY = re.compile(r"&(?!amp;|lt;|gt;|quot;|apos;)[A-Za-z_][\w.-]*;")
_PARTED = frozenset({"br", "tr", "td", "th", "item", "paragraph", "caption", "title", "list", "table", "section"})
_USED_PREFIX = re.compile(r"(?:</?|\s)([A-Za-z_][\w-]*):[A-Za-z_][\w.-]*(?=[\s=/>])")


@dataclass(slots=True)
class Tree:
    """A document: its root, the codec of its bytes, and what had to be assumed or repaired."""

    root: Element
    charset: str
    issues: list[Issue]


def _refuse(key: str, words: str) -> Unreadable:
    return Unreadable(Issue(key, "error", "", words))


def root_name(raw: bytes) -> str:
    """Local name of the root element by the first bytes, without parsing; empty when the bytes do not start like XML."""
    head = raw[:8192]
    text = head.decode(wide_codec(head) or "latin-1", "replace").removeprefix("\ufeff").removeprefix("\xef\xbb\xbf")
    if not text.lstrip().startswith("<"):
        return ""
    prolog = _PROLOG.match(text)
    rest = text[prolog.end() if prolog else 0 :]
    if rest.startswith("<!DOCTYPE"):
        # Only to tell what the document would be; the reader decides whether it is taken.
        found = re.search(r">\s*(?=<[A-Za-z_])", rest)
        rest = rest[found.end() :] if found else ""
    root = _ROOT.match(rest)
    return root[2] if root else ""


def parse(
    raw: bytes, fallback_charset: str = "", *, max_bytes: int = MAX_BYTES, max_elements: int = MAX_ELEMENTS
) -> Tree:
    """One document.

    Raises Unreadable: ``too-large``, ``charset-unknown``, ``xml-forbidden``, ``xml-not-well-formed``, ``xml-too-deep``.
    """
    if len(raw) > max_bytes:
        raise _refuse("too-large", f"The document is larger than {max_bytes} bytes.")
    declared = _ENCODING.search(raw[:400])
    decoded = decode(raw, declared[1].decode() if declared else "", fallback_charset, _SAID_IN)
    issues = list(decoded.issues)
    text = decoded.text.strip("\ufeff\r\n\t \0")
    head = _DECLARATION.match(text)
    text = text[head.end() :] if head else text
    text = _without_doctype(text, issues)
    _few(text, max_elements)
    parsed = _tree(text)
    if isinstance(parsed, str):
        text = _mended(text, issues)
        parsed = _tree(text)
    if isinstance(parsed, str):
        raise _refuse("xml-not-well-formed", _not_well_formed(parsed))
    _plain_names(parsed, max_elements)
    return Tree(parsed, decoded.codec, issues)


def strict(raw: bytes, *, max_bytes: int = MAX_BYTES, max_elements: int = MAX_ELEMENTS) -> Element:
    """The root of a document that is read as it is: nothing repaired, names with their namespace (``{urn:hl7-org:v3}section``).

    Raises Unreadable like ``parse``.
    """
    text = _as_it_is(raw, max_bytes)
    _few(text, max_elements)
    found = _tree(text)
    if isinstance(found, str):
        raise _refuse("xml-not-well-formed", _not_well_formed(found))
    _check(found, max_elements)
    return found


def told(raw: bytes, target: Any, *, max_bytes: int = MAX_BYTES) -> None:
    """Tells a parser target (lxml: ``start``, ``end``, ``data``) of a document that is read as it is, without making a tree of it.

    Names have their namespace. Raises Unreadable like ``parse``, and what the target raises.
    """
    text = _as_it_is(raw, max_bytes)
    parser = etree.XMLParser(target=target, **_SAFE)
    try:
        etree.fromstring(text.encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError as fault:
        raise _refuse("xml-not-well-formed", _not_well_formed(_place(fault))) from None


def _as_it_is(raw: bytes, max_bytes: int) -> str:
    """The text of a document without its XML declaration. Raises Unreadable for one that is too large or has a DOCTYPE."""
    if len(raw) > max_bytes:
        raise _refuse("too-large", f"The document is larger than {max_bytes} bytes.")
    declared = _ENCODING.search(raw[:400])
    text = decode(raw, declared[1].decode() if declared else "", said_in=_SAID_IN).text.strip("\ufeff\r\n\t ")
    head = _DECLARATION.match(text)
    text = text[head.end() :] if head else text
    prolog = _PROLOG.match(text)
    if text.startswith(("<!DOCTYPE", "<!ENTITY"), prolog.end() if prolog else 0):
        raise _refuse("xml-forbidden", "The document has a DOCTYPE or entities; send it without.")
    return text


def _few(text: str, most: int) -> None:
    """Refuses a text with far more elements or attributes than any document before the tree is made: each takes 100 bytes and more."""
    tags = text.count("<") - text.count("</")
    if tags > 2 * most or text.count('="') + text.count("='") > _ATTRIBUTES * most:
        raise _too_much(most)


def _without_doctype(text: str, issues: list[Issue]) -> str:
    """The text without the one DOCTYPE that is harmless (the name of GE's own DTD); any other refuses the document."""
    prolog = _PROLOG.match(text)
    start = prolog.end() if prolog else 0
    harmless = _MUSE_DOCTYPE.match(text, start)
    if harmless:
        words = "The DOCTYPE names GE's own DTD; it was left out and nothing was loaded."
        issues.append(Issue("repair-doctype", "information", "", words))
        return text[harmless.end() :]
    if text.startswith("<!DOCTYPE", start) or text.startswith("<!ENTITY", start):
        raise _refuse("xml-forbidden", "The document has a DOCTYPE or entities; send it without.")
    return text


def _tree(text: str) -> Element | str:
    """The root, or where and why it is not well-formed (without quoting the document)."""
    try:
        return etree.fromstring(text.encode("utf-8", "replace"), etree.XMLParser(**_SAFE))
    except etree.XMLSyntaxError as fault:
        return _place(fault)


def _place(fault: etree.XMLSyntaxError) -> str:
    line, column = fault.position
    return f"line {line}, column {column}, libxml2 error {fault.code}"


def _not_well_formed(where: str) -> str:
    return f"The document is not well-formed XML ({where}); mend the sender."


def _too_much(most: int) -> Unreadable:
    return _refuse("xml-too-deep", f"The document has more than {MAX_DEPTH} levels or {most} elements.")


def _mended(text: str, issues: list[Issue]) -> str:
    """Faults that leave no doubt about what was meant (docs/connect-cda.md); each that is mended is an issue."""
    if _ENTITY.search(text):
        raise _refuse("xml-forbidden", "The document uses entities that XML does not define; send it without.")
    parts = _CDATA.split(text)
    for pattern, new, issue in (
        (
            _AMPERSAND,
            "&amp;",
            Issue("repair-ampersand", "warning", "", "An ampersand that was not escaped was read as text."),
        ),
        (
            _LESS,
            "&lt;",
            Issue("repair-less-than", "warning", "", "A less-than sign that was not escaped was read as text."),
        ),
        (
            _CONTROL,
            "",
            Issue("repair-control-character", "warning", "", "Control characters, which XML forbids, were left out."),
        ),
    ):
        changed = [part if part.startswith("<![CDATA[") else pattern.sub(new, part) for part in parts]
        if changed != parts:
            issues.append(issue)
            parts = changed
    text = "".join(parts)
    start = _ROOT.search(text)
    used = set(_USED_PREFIX.findall(text)) - {"xml", "xmlns"}
    missing = sorted(p for p in used if f"xmlns:{p}=" not in text)
    if start and missing:
        # What it is bound to does not matter: names are read without their namespace.
        names = "".join(f' xmlns:{p}="urn:undeclared:{p}"' for p in missing)
        text = f"{text[: start.end()]}{names}{text[start.end() :]}"
        words = "A namespace prefix was not declared; the names were read without it."
        issues.append(Issue("repair-prefix", "warning", "", words))
    return text


def _plain_names(root: Element, most: int) -> None:
    """Takes the namespaces off, after ``_check``."""
    _check(root, most)
    for element in root.iter():
        if element.tag.startswith("{"):
            element.tag = element.tag.rpartition("}")[2]
        for name in [n for n in element.attrib if n.startswith("{")]:
            plain = name.rpartition("}")[2]
            if plain not in element.attrib:
                element.set(plain, element.attrib[name])


def _check(root: Element, most: int) -> None:
    """Refuses what is too deep, too large, or would include other documents."""
    number = 0
    depth = 0
    for event, element in etree.iterwalk(root, events=("start", "end")):
        if event == "end":
            depth -= 1
            continue
        number += 1
        depth += 1
        if depth > MAX_DEPTH or number > most:
            raise _too_much(most)
        tag = element.tag
        if not isinstance(tag, str):
            raise _refuse("xml-forbidden", "The document has a DOCTYPE or entities; send it without.")
        if tag.startswith(_XINCLUDE):
            raise _refuse("xml-forbidden", "The document includes another one (XInclude); send it whole.")


def words(element: Element | None) -> str:
    """All text of an element, blanks levelled; empty for none. Cells, lines and paragraphs of a narrative are parted by a blank."""
    if element is None:
        return ""
    if not len(element):
        return " ".join((element.text or "").split())
    out: list[str] = []
    for event, inner in etree.iterwalk(element, events=("start", "end")):
        if inner.tag in _PARTED:
            out.append(" ")
        if event == "start":
            out.append(inner.text or "")
        elif inner is not element:
            out.append(inner.tail or "")
    return " ".join("".join(out).split())


def lines(elements: Iterable[Element]) -> str:
    """Narrative as lines: a break, row, item or paragraph ends one; cells are parted by a tab."""
    out: list[str] = []
    for top in elements:
        for event, element in etree.iterwalk(top, events=("start", "end")):
            if event == "start":
                if element.tag in ("tr", "item", "paragraph", "caption", "list", "table"):
                    out.append("\n")
                out.append(element.text or "")
            else:
                if element.tag in ("br", "tr", "item", "paragraph", "caption", "title", "list", "table"):
                    out.append("\n")
                elif element.tag in ("td", "th"):
                    out.append("\t")
                if element is not top:
                    out.append(element.tail or "")
        out.append("\n")
    levelled = (" ".join(part.split()) if "\t" not in part else "\t".join(" ".join(c.split()) for c in part.split("\t"))
                for part in "".join(out).split("\n"))  # fmt: skip
    return "\n".join(line.strip() for line in levelled if line.strip())
