"""The named repairs of a CDA document: faults of real senders that leave no doubt about what was meant (docs/connect-cda.md).

Each repair that was needed is one Issue, whatever the number of places. What is not in this list is not repaired.
"""

from __future__ import annotations

import re

from adapters.xmltree import Element
from conformance.issue import Issue

_OID_LIKE = re.compile(r"[0-2][.,][0-9lIOo., ]{3,}")
_LETTERS = str.maketrans({"l": "1", "I": "1", "O": "0", "o": "0", ",": "."})
_NAMESPACES = re.compile(r"urn:h17-org:v3|urn:hl7-0rg:v3|urn:hI7-org:v3")
_XSI = re.compile(r"XMLSchema-nstance|XMLSchema-Instance")
_SHORT_ROOT = re.compile(r"16\.156\.10011\.[0-9.]+")
_CJK = re.compile(r"[\u3400-\u9fff]")
_NAMES = {
    name.lower(): name
    for name in [
        "title",
        "text",
        "section",
        "component",
        "entry",
        "observation",
        "organizer",
        "code",
        "value",
        "name",
        "patient",
        "patientRole",
        "recordTarget",
        "author",
        "structuredBody",
        "entryRelationship",
        "effectiveTime",
        "statusCode",
        "assignedEntity",
        "assignedPerson",
        "relatedDocument",
        "parentDocument",
    ]
}
_MISSPELT = {"entryReationship": "entryRelationship", "representedOrganiztion": "representedOrganization"}
ITEM = "DE04.30.019"
"""Data element whose value is the item of a result, by code or name."""
DATA_ELEMENTS = "2.16.156.10011.2.2.1"
"""Code system of the data elements of WS 363 (DE codes)."""


def repair(root: Element, raw_head: str) -> list[Issue]:
    """Mends the tree in place. ``raw_head``: the text of the document up to the end of its root tag, for its namespaces."""
    found: dict[str, Issue] = {}
    if _NAMESPACES.search(raw_head):
        _issue(
            "repair-namespace",
            "The namespace of the document is misspelt (h17 for hl7); read as urn:hl7-org:v3.",
            found,
        )
    if _XSI.search(raw_head):
        _issue("repair-xsi", "The XMLSchema-instance namespace is misspelt; types were read all the same.", found)
    for element in root.iter():
        _name(element, found)
        for attribute in ("root", "codeSystem"):
            written = element.get(attribute)
            if written:
                element.set(attribute, _oid(written, found))
        if element.tag == "code" or (element.tag == "value" and _is_item(element)):
            _item_name(element, found)
    return list(found.values())


def _issue(key: str, words: str, found: dict[str, Issue]) -> None:
    found.setdefault(key, Issue(key, "warning", "", words))


def _name(element: Element, found: dict[str, Issue]) -> None:
    right = _MISSPELT.get(element.tag) or _NAMES.get(element.tag.lower())
    if right and right != element.tag:
        element.tag = right
        _issue(
            "repair-element-name",
            "The name of an element is misspelt (Title for title); read as the standard's.",
            found,
        )


def _oid(written: str, found: dict[str, Issue]) -> str:
    out = written.strip()
    if _OID_LIKE.fullmatch(out) and any(c in out for c in "lIOo, "):
        out = out.translate(_LETTERS).replace(" ", "")
        _issue("repair-oid-letter", "An OID holds letters or commas (l for 1, O for 0); read with digits.", found)
    if _SHORT_ROOT.fullmatch(out):
        out = f"2.{out}"
        _issue(
            "repair-oid-root", "An OID lacks its first arc (16.156.10011 for 2.16.156.10011); it was put there.", found
        )
    return out


def _is_item(value: Element) -> bool:
    """Whether a value is the item itself, as WS/T 500 writes it."""
    code = value.getparent().find("code")
    return code is not None and code.get("code", "").strip().upper().startswith(ITEM)


def _item_name(code: Element, found: dict[str, Issue]) -> None:
    """``<code code="白细胞计数">``, or the value of an item: the name stands where the code should; it is read as the name."""
    written = code.get("code", "")
    if not _CJK.search(written):
        return
    code.attrib.pop("code")
    code.attrib.pop("codeSystem", None)
    if not code.get("displayName"):
        code.set("displayName", written)
    _issue(
        "repair-name-in-code",
        "The name of an item stands in its code; it was read as the name, and the item has no code.",
        found,
    )
