"""Parts of the CDA R2 header and entries as components of HL7 v2 fields (CDA R2 sections 4.2 and 4.3; HL7 v3 datatypes R1).

``Reading`` remembers what was read, so that the rest can be listed as unread.
"""

from __future__ import annotations

import re

from adapters.segments import authority_type
from adapters.xmltree import Element, words
from mappings.model import Unread
from mappings.outbound.line import trimmed
from mappings.source import Component
from mappings.source import Element as Field

LOINC = "2.16.840.1.113883.6.1"
SYSTEMS = {
    LOINC: "LN",
    "2.16.840.1.113883.6.96": "SCT",
    "2.16.840.1.113883.6.90": "I10C",
    "2.16.156.10011.2.3.3.11.3": "I10",
}
"""Code system OID -> name of table 0396."""
RESIDENT = "2.16.156.10011.1.3"
_VISITS = {"2.16.156.10011.1.11", "2.16.156.10011.1.12"}
_RECORD = "2.16.156.10011.1.13"
_KINDS_ONLY = "2.16.156.10011.1."
_OF_PERSONS = frozenset(f"{_KINDS_ONLY}{n}" for n in (2, 3, 11, 12, 13, 19))
"""Kinds of number a person has: health record, resident ID, outpatient, inpatient, record, health card. The others (prescription .20,
consent .34, pathology .8 ...) are of a document or a thing, though they stand beside these."""
_SILENT = frozenset(
    [
        "realmCode",
        "typeId",
        "templateId",
        "languageCode",
        "text",
        "title",
        "styleCode",
        "signatureCode",
        "signatureText",
        "sectionText",
        "xmlns",
    ]
)
_TOLD = ("code", "value", "extension", "displayName", "unit")
_WHERE = ("section", "entry", "observation", "organizer", "component", "series", "sequence")
_DIGITS = re.compile(r"(?:tel|fax|mailto|http|https):", re.IGNORECASE)


class Reading:
    """What of a document some rule has read."""

    def __init__(self, root: Element) -> None:
        self.root = root
        self._read: set[Element] = set()
        self.texts = {e.get("ID", ""): e for e in root.iter() if e.get("ID")}

    def use(self, *elements: Element | None) -> None:
        """These elements, with all inside them, are read."""
        self._read.update(e for e in elements if e is not None)

    def find(self, parent: Element | None, path: str) -> Element | None:
        """The first element at a path, marked as read."""
        found = parent.find(path) if parent is not None else None
        self.use(found)
        return found

    def text(self, parent: Element | None, path: str = "") -> str:
        """Text of the first element at a path (of the parent without one), marked as read; references are followed."""
        found = self.find(parent, path) if path else parent
        if found is None:
            return ""
        self.use(found)
        said = words(found)
        reference = found.find("reference") if not said else None
        if reference is not None:
            said = words(self.texts.get(reference.get("value", "").removeprefix("#")))
        return said

    def value(self, parent: Element | None, path: str, attribute: str = "value") -> str:
        """An attribute of the first element at a path, marked as read; empty when absent."""
        found = self.find(parent, path)
        return found.get(attribute, "").strip() if found is not None else ""

    def unread(self) -> list[Unread]:
        """What says something and was not read: whole entries where nothing of them was, else single elements."""
        out: list[Unread] = []
        partly: set[Element] = set()
        for element in self._read:
            partly.update(element.iterancestors())
        self._list(self.root, partly, out)
        return out

    def _list(self, element: Element, partly: set[Element], out: list[Unread]) -> None:
        for child in element:
            if child in self._read or child.tag in _SILENT or child.get("nullFlavor"):
                continue
            if child.tag == "code" and element.tag == "section":
                continue
            if child.tag == "entry" and child not in partly:
                code = child.find(".//code")
                said = (code.get("displayName") or code.get("code") or "") if code is not None else ""
                out.append(Unread(where(child), said or words(child)[:200] or "entry"))
                continue
            told = [child.get(n, "") for n in _TOLD if child.get(n)]
            if not len(child) and (child.text or "").strip():
                told.append(words(child))
            if told:
                out.append(Unread(where(child), " ".join(told)))
            self._list(child, partly, out)


def where(element: Element) -> str:
    """Place for people: ``section[2]/entry[3]/observation[1]``; ordinals count equal names in the parent, sections in the document."""
    steps: list[str] = []
    node: Element | None = element
    while node is not None and node.getparent() is not None:
        if node.tag == "section":
            sections = list(node.getroottree().getroot().iter("section"))
            steps.append(f"section[{sections.index(node) + 1}]")
            break
        if node.tag not in ("component", "structuredBody"):
            number = 1 + sum(1 for e in node.itersiblings(node.tag, preceding=True))
            steps.append(f"{node.tag}[{number}]" if number > 1 or node.tag in _WHERE else node.tag)
        node = node.getparent()
    return "/".join(reversed(steps)) or element.tag


def coded(element: Element | None, reading: Reading) -> Field:
    """CD, CE, CO -> CWE: code, display, system, then the first translation, then the original text."""
    if element is None:
        return ()
    translation = element.find("translation")
    original = reading.text(element, "originalText")
    one = _triplet(element)
    two = _triplet(translation) if translation is not None else ("", "", "")
    if not one[0] and two[0]:
        one, two = two, ("", "", "")
    reading.use(element)
    name = one[1] or original or ("" if one[0] or len(element) else words(element))
    return trimmed(one[0], name, one[2], *two, "", "", original if original != name else "")


def _triplet(element: Element) -> tuple[str, str, str]:
    code = element.get("code", "").strip()
    root = element.get("codeSystem", "").strip()
    display = element.get("displayName", "").strip()
    return code, display, SYSTEMS.get(root, root or element.get("codeSystemName", "").strip()) if code else ""


def named(element: Element | None, reading: Reading) -> tuple[str, str, str, str]:
    """PN -> family (or the whole plain-text name), given, suffix, prefix."""
    if element is None:
        return "", "", "", ""
    reading.use(element)
    if not len(element):
        return words(element), "", "", ""
    given = [words(e) for e in element.findall("given")]
    family = " ".join(words(e) for e in element.findall("family"))
    whole = family or " ".join(given) or words(element)
    return whole, " ".join(given) if family else "", words(element.find("suffix")), words(element.find("prefix"))


def identifier(element: Element) -> Field:
    """II of a patient -> CX. The OIDs of WS/T 500 that only name a kind of number (outpatient, inpatient, record) give its type."""
    root, extension = element.get("root", "").strip(), element.get("extension", "").strip()
    value = extension or (root if root and not root.startswith(_KINDS_ONLY) else "")
    if not value or (root.startswith(_KINDS_ONLY) and root not in _OF_PERSONS):
        return ()
    if root in _VISITS:
        return value, "", "", "", "VN"
    if root == _RECORD:
        return value, "", "", "", "MR"
    return trimmed(value, "", "", ("", root, authority_type(root)) if root and extension else "")


def number(element: Element | None) -> Field:
    """II of an order, report or document -> EI; the kinds of number of WS/T 500 are numbers of the facility itself."""
    if element is None:
        return ()
    root, extension = element.get("root", "").strip(), element.get("extension", "").strip()
    if not extension:
        return (root,) if root and not root.startswith(_KINDS_ONLY) else ()
    return trimmed(
        extension, "", *(("", "") if root.startswith(_KINDS_ONLY) or not root else (root, authority_type(root)))
    )


def person(entity: Element | None, reading: Reading) -> tuple[Component, ...]:
    """assignedEntity, assignedAuthor -> id, family, given, suffix, prefix (as XCN.1 to 3, 5, 6); empty when nobody is named."""
    if entity is None:
        return ()
    found = next((i for i in entity.findall("id") if i.get("extension")), None)
    who = (
        entity.find("assignedPerson/name") if entity.find("assignedPerson/name") is not None else entity.find(".//name")
    )
    family, given, suffix, prefix = named(who, reading)
    reading.use(found, entity.find("code"))
    if not family and found is None:
        return ()
    return trimmed(found.get("extension", "") if found is not None else "", family, given, "", suffix, prefix)


def telecom(element: Element) -> Field:
    """TEL -> XTN: number or address, use (HP, WP, MC), and whether it is mail."""
    written = element.get("value", "").strip()
    bare = _DIGITS.sub("", written).strip()
    if not bare:
        return ()
    use = {"WP": "WPN", "HP": "PRN", "H": "PRN", "HV": "VHN", "MC": "PRN"}.get(element.get("use", ""), "")
    if written.lower().startswith("mailto:"):
        return "", use or "NET", "Internet", bare
    return trimmed(bare, use, "CP" if element.get("use") == "MC" else "")


def address(element: Element) -> Field:
    """AD -> XAD; an address that is one text is its first line."""
    if not len(element):
        return (words(element),) if words(element) else ()
    streets = [
        words(e) for tag in ("streetAddressLine", "houseNumber", "streetName", "township") for e in element.findall(tag)
    ]
    parts = [words(element.find(tag)) for tag in ("city", "state", "postalCode", "country")]
    kind = {"H": "H", "HP": "H", "WP": "B", "TMP": "C", "BAD": "BA"}.get(element.get("use", ""), "")
    return trimmed(
        streets[0] if streets else "", " ".join(streets[1:]), *parts, kind, "", words(element.find("county"))
    )


def instant(element: Element | None, reading: Reading) -> tuple[str, str]:
    """TS or IVL_TS -> (low or the time itself, high), as written."""
    if element is None:
        return "", ""
    reading.use(element)
    low, high = element.find("low"), element.find("high")
    center = element.find("center")
    start = (
        element.get("value")
        or (low.get("value") if low is not None else "")
        or (center.get("value") if center is not None else "")
    )
    return (start or "").strip(), ((high.get("value") or "") if high is not None else "").strip()
