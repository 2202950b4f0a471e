"""Coded datatypes of the guide: CWE, CE, CNE, ID, IS -> CodeableConcept, Coding, code (guide: CWE[...] maps, concept maps)."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from conformance import systems
from conformance.terminology import loinc_valid
from mappings.code_table import coding_systems, table
from mappings.context import Context
from mappings.datatypes import plain
from mappings.grammar import Rule
from mappings.registry import datatype, ruled
from mappings.source import Element

_V2_TABLE = re.compile(r"(?:HL7|HL70|V2-|TABLE )?0*(\d{3,4})", re.IGNORECASE)
_HL7 = re.compile(r"HL7\d{3,5}|V2-\d{4}", re.IGNORECASE)
_OID = re.compile(r"(?:urn:oid:)?([0-2](?:\.(?:0|[1-9]\d*))+)")
_CODE = re.compile(r"[0-9A-Za-z][!-~]{0,15}")
_LOCAL = frozenset({"", "L", "LOCAL", "99ZZZ"})

_COLUMNS = ((1, 2, 3, 7), (4, 5, 6, 8), (10, 11, 12, 13))
"""Code, display, coding system, version: the three triplets of CWE."""


def system_uri(name: str, x: Context, kind: str) -> str:
    """CWE.3 -> code system URI: a known name, a v2 table, an OID or URI, else a code system of this facility."""
    known = coding_systems().get(name.upper())
    if known:
        return known
    if _HL7.fullmatch(name):
        found = _V2_TABLE.fullmatch(name)
        if found:
            return f"{systems.V2}{found[1]:0>4}"
    if name.startswith(("http://", "https://", "urn:")) and " " not in name:
        return name
    oid = _OID.fullmatch(name)
    if oid and "." in oid[1]:
        return f"urn:oid:{oid[1]}"
    return x.local_system(kind if name.upper() in _LOCAL else quote(name.lower(), safe=""))


def codings(element: Element, x: Context, kind: str, bad: list[str] | None = None) -> list[dict[str, Any]]:
    """The codings of a CWE as sent, without guessing at code systems. A code labelled LN that is no LOINC code is kept as local.

    bad  takes the codes wrongly labelled LOINC instead of an issue: for answers that are kept (Memo)
    """
    out = []
    for code_at, display_at, system_at, version_at in _COLUMNS:
        code = plain(element, code_at)
        name = plain(element, system_at)
        if not code or not (name or plain(element, display_at)):
            continue
        system = system_uri(name, x, kind)
        if system == systems.LOINC and not loinc_valid(code):
            if bad is None:
                not_loinc(code, x)
            else:
                bad.append(code)
            system = x.local_system(kind)
        coding: dict[str, Any] = {"system": system}
        if plain(element, version_at):
            coding["version"] = plain(element, version_at)
        coding["code"] = code
        if plain(element, display_at):
            coding["display"] = plain(element, display_at)
        out.append(coding)
    return out


def not_loinc(code: str, x: Context) -> None:
    """The issue of a code that is labelled LOINC and is none."""
    x.issue("not-loinc", "warning", "The code is labelled LOINC but fails the check digit; kept as a local code.", code)


def concept(element: Element, x: Context, kind: str = "codes") -> dict[str, Any] | None:
    """CWE -> CodeableConcept: every coding with its system, and the text people read."""
    found = codings(element, x, kind)
    text = plain(element, 9) or plain(element, 2) or plain(element, 1) or plain(element, 5) or plain(element, 4)
    if not text and not found:
        return None
    out: dict[str, Any] = {"coding": found} if found else {}
    if text:
        out["text"] = text
    return out


@ruled("CWE[CodeableConcept]", "1-13")
def cwe_concept(element: Element, x: Context, rule: Rule) -> dict[str, Any] | None:
    """CWE/CE/CNE/IS -> CodeableConcept. With a table, its coding comes first and the code as sent follows when it differs.

    A lone code that the rule's table does not know is a code of the facility; without a table only what looks like a code is.
    """
    out = concept(element, x, rule.kind or rule.table or "codes")
    if out is None:
        return None
    if not rule.table:
        lone = plain(element, 1)
        if rule.kind and "coding" not in out and _CODE.fullmatch(lone):
            return {"coding": [{"system": x.local_system(rule.kind), "code": lone}], **out}
        return out
    code, name = plain(element, 1), plain(element, 3)
    found = table(rule.table).get(code) if not name or name.upper() in _LOCAL or _HL7.fullmatch(name) else None
    sent = out.get("coding", [])
    if found and found.system:
        same = [c for c in sent if c["code"] == found.code and c["system"] == found.system]
        lead = found.coding()
        rest = [c for c in sent if c not in same]
        if len(sent) and not same and found.code == sent[0]["code"] and "display" in sent[0]:
            # HL7nnnn or no system named: the table's own coding is the one meant.
            rest = rest[1:]
            lead.setdefault("display", sent[0]["display"])
        return {**out, "coding": [lead, *rest]}
    if code and not sent:
        return {**out, "coding": [{"system": x.local_system(rule.kind or rule.table), "code": code}]}
    return out


@ruled("CWE[Coding]", "1-3 7")
def cwe_coding(element: Element, x: Context, rule: Rule) -> dict[str, Any] | None:
    """CWE -> Coding; the table's target, else the code as sent in the facility's system."""
    code = plain(element, 1)
    if not code:
        return {"display": plain(element, 2)} if plain(element, 2) else None
    found = table(rule.table).get(code) if rule.table else None
    if found and found.system:
        return found.coding()
    out = {"system": system_uri(plain(element, 3), x, rule.kind or rule.table or "codes"), "code": code}
    if plain(element, 2):
        out["display"] = plain(element, 2)
    return out


@ruled("CWE[code]", "1-9")
def cwe_code(element: Element, x: Context, rule: Rule) -> str | None:
    """CWE/ID/IS -> code by the rule's table; a code the table does not know is an issue and nothing is set."""
    sent = [plain(element, n) for n in (1, 4) if plain(element, n)]
    for code in sent:
        found = table(rule.table).get(code)
        if found:
            return found.code
    if sent:
        x.issue(
            "code-not-in-table",
            "warning",
            f"The code is not in the table {rule.table}; the element is left out.",
            sent[0],
        )
    return None


@ruled("IS[CodeableConcept]", "1")
def is_concept(element: Element, x: Context, rule: Rule) -> dict[str, Any] | None:
    """IS/ID -> CodeableConcept by the rule's table, the code as text when it is not there."""
    code = plain(element, 1)
    found = table(rule.table).get(code) if code and rule.table else None
    if found:
        return {"coding": [found.coding()], "text": found.display or code}
    return {"text": code} if code else None


@datatype("CWE[Annotation]", "1-9")
def cwe_annotation(element: Element, x: Context) -> dict[str, Any] | None:
    """CWE -> Annotation with its text."""
    found = concept(element, x)
    return {"text": found["text"]} if found and "text" in found else None


@datatype("CWE[string]", "1 2")
def cwe_string(element: Element, x: Context) -> str | None:
    """CWE -> text, else code."""
    return plain(element, 2) or plain(element, 1) or None


def language(element: Element, x: Context) -> dict[str, Any] | None:
    """PID-15 -> CodeableConcept; a two-letter ISO 639 code is a BCP 47 tag (http://hl7.org/fhir/R4/valueset-languages.html)."""
    code = plain(element, 1)
    out = concept(element, x, "languages")
    if out and re.fullmatch(r"[a-zA-Z]{2}(?:-[A-Z]{2})?", code):
        coding = {"system": "urn:ietf:bcp:47", "code": code[:2].lower() + code[2:]}
        return {"coding": [coding], "text": out.get("text", code)}
    return out


datatype("CWE[Language]", "1-9")(language)
