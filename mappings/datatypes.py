"""Datatypes of the guide that become FHIR datatypes: identifiers, names, dates, quantities, flags
(HL7 v2.5.1 chapter 2A; guide: Data Type maps). One repetition in, one value or None out."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from conformance import systems
from mappings.code_table import table
from mappings.context import Context
from mappings.grammar import Rule
from mappings.patient_key import is_resident_id
from mappings.registry import datatype, ruled
from mappings.source import Element, part, text

_EXT = "http://hl7.org/fhir/StructureDefinition/"
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
_OID = re.compile(r"[0-2](?:\.(?:0|[1-9]\d*))+")
_UUID = re.compile(r"\{?([0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})\}?")
_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_TYPES = table("IdentifierType")


def plain(element: Element, component: int = 1) -> str:
    """A component as clean text: sub-components joined by ``&``, surrounding and doubled white space gone, HL7 null empty."""
    if component > len(element):
        return ""
    found = " ".join(text(element[component - 1]).split())
    return "" if found == '""' else found


def bare(element: Element, component: int, sub: int = 1) -> str:
    """A sub-component as clean text, like ``plain``."""
    return " ".join(part(element, component, sub).split())


def named_system(namespace: str, universal: str, universal_type: str, x: Context, kind: str) -> str:
    """Identifier system of an assigning authority (HD, EI.2-4): what the profile says, else OID or UUID, else the facility's own."""
    known = x.facility.identifiers.authorities
    for name in (namespace, universal):
        if name and name in known:
            return known[name]
    if _OID.fullmatch(namespace):
        return f"urn:oid:{namespace}"
    if universal:
        if universal_type in ("ISO", "") and _OID.fullmatch(universal):
            return f"urn:oid:{universal}"
        if universal_type in ("UUID", "GUID") and (found := _UUID.fullmatch(universal)):
            return f"urn:uuid:{found[1].lower()}"
        if universal_type == "URI" and ":" in universal and not re.search(r"\s", universal):
            return universal
    own = systems.facility_system(x.facility.id, kind)
    name = namespace or universal
    return f"{own}/{quote(name, safe='')}" if name else own


def identifier_type(code: str) -> dict[str, Any]:
    """Identifier.type of a table 0203 code; an unknown code is kept as text."""
    found = _TYPES.get(code)
    return {"coding": [found.coding()]} if found else {"text": code}


# --- identifiers -----------------------------------------------------------------------------------------------------------


@ruled("CX[Identifier]", "1-8")
def cx_identifier(element: Element, x: Context, rule: Rule) -> dict[str, Any] | None:
    """CX -> Identifier. The system is that of CX.4 (rule.kind when there is none); a resident ID has its national system."""
    value = plain(element, 1)
    if not value:
        return None
    kind = rule.kind or "patient"
    code = bare(element, 5)
    if kind == "patient" and is_resident_id(element, x.facility):
        system = systems.RESIDENT_ID
    else:
        system = named_system(bare(element, 4, 1), bare(element, 4, 2), bare(element, 4, 3), x, kind)
    out: dict[str, Any] = {"type": identifier_type(code)} if code else {}
    out["system"] = system
    out["value"] = value
    validity = period(bare(element, 7), bare(element, 8), x)
    if validity:
        out["period"] = validity
    holder = bare(element, 6, 1) or bare(element, 4, 1)
    if holder:
        out["assigner"] = {"display": holder}
    checks = [("identifier-checkDigit", bare(element, 2)), ("namingsystem-checkDigit", bare(element, 3))]
    marks = [{"url": _EXT + name, "valueString": digit} for name, digit in checks if digit]
    if marks:
        out["extension"] = marks
    return out


@ruled("ST[Identifier]", "1")
def st_identifier(element: Element, x: Context, rule: Rule) -> dict[str, Any] | None:
    """A bare number -> Identifier in the facility's system of rule.kind; ``resident`` asks whether it is a resident ID number."""
    value = plain(element, 1)
    if not value:
        return None
    if rule.kind == "resident":
        return {"type": identifier_type("SB"), "system": systems.RESIDENT_ID, "value": value}
    return {"system": systems.facility_system(x.facility.id, rule.kind), "value": value}


@ruled("EI[Identifier]", "1-4")
def ei_identifier(element: Element, x: Context, rule: Rule) -> dict[str, Any] | None:
    """EI -> Identifier in the system of rule.kind."""
    value = plain(element, 1)
    if not value:
        return None
    return {"system": named_system(bare(element, 2), bare(element, 3), bare(element, 4), x, rule.kind), "value": value}


def paired(element: Element) -> Element:
    """An EIP as sent. Many senders write one number with its assigning authority there (``S1^LIS``, an EI): what stands in the place of
    the filler's number has no digit then, and every specimen would have the same one."""
    if len(element) > 1 and all(isinstance(c, str) for c in element[:2]):
        placer, filler = text(element[0]), text(element[1])
        if placer and filler and not any(c.isdigit() for c in filler):
            return (tuple(text(c) for c in element[:4]),)
    return element


def eip_part(element: Element, component: int, x: Context, kind: str) -> dict[str, Any] | None:
    """Component 1 (placer) or 2 (filler) of an EIP -> Identifier; its EI parts are sub-components."""
    element = paired(element)
    value = bare(element, component, 1)
    if not value:
        return None
    names = (bare(element, component, 2), bare(element, component, 3), bare(element, component, 4))
    return {"system": named_system(*names, x, kind), "value": value}


@ruled("EIP[Identifier-PlacerAssignedIdentifier]", "1 2")
def eip_placer(element: Element, x: Context, rule: Rule) -> dict[str, Any] | None:
    """EIP.1 -> Identifier of type PLAC (the guide's PGN is for group numbers; a specimen or parent order is none)."""
    found = eip_part(element, 1, x, rule.kind)
    return {"type": identifier_type("PLAC"), **found} if found else None


@ruled("EIP[Identifier-FillerAssignedIdentifier]", "1 2")
def eip_filler(element: Element, x: Context, rule: Rule) -> dict[str, Any] | None:
    """EIP.2 -> Identifier of type FILL."""
    found = eip_part(element, 2, x, rule.kind)
    return {"type": identifier_type("FILL"), **found} if found else None


@datatype("DLN[Identifier]", "1-3")
def dln_identifier(element: Element, x: Context) -> dict[str, Any] | None:
    """DLN -> Identifier of type DL; the issuer is named, its system is the facility's word for it."""
    value = plain(element, 1)
    if not value:
        return None
    out = {
        "type": identifier_type("DL"),
        "system": named_system(bare(element, 2), "", "", x, "licence"),
        "value": value,
    }
    end = x.time(bare(element, 3))
    return {**out, "period": {"end": end.fhir}} if end else out


# --- people ----------------------------------------------------------------------------------------------------------------


def human_name(family: str, given: list[str], prefix: list[str], suffix: list[str]) -> dict[str, Any] | None:
    """Parts of a name -> HumanName; ``text`` is the name as people write it and the truth when the parts are doubtful.

    A Chinese name that came whole in the family part is not cut: it has text only, as the family name may have one or two characters.
    """
    if not (family or given):
        return None
    chinese = bool(_CJK.search(family + "".join(given)))
    out: dict[str, Any] = {}
    if chinese:
        out["text"] = family + "".join(given)
    else:
        out["text"] = " ".join([*prefix, *given, *([family] if family else []), *suffix])
    if family and not (chinese and not given and len(family) > 1):
        out["family"] = family
    if given:
        out["given"] = given
    if prefix:
        out["prefix"] = prefix
    if suffix:
        out["suffix"] = suffix
    return out


_REPRESENTATION = {"I": "IDE", "A": "ABC", "P": "SYL"}
_SEX_WORDS = frozenset({"男", "女"})


@datatype("XPN[HumanName]", "1-8 10-14")
def xpn_human_name(element: Element, x: Context) -> dict[str, Any] | None:
    """XPN -> HumanName (guide: XPN[HumanName], FN[HumanName]); XPN.8 tells ideographs, letters and sounds apart."""
    family, given = bare(element, 1).strip(), [v for v in (bare(element, 2).strip(), bare(element, 3).strip()) if v]
    if given and given[0] in _SEX_WORDS and len(family) > 1 and _CJK.match(family):
        # "张三^男": the sex in the given name. The whole name stands in the family part.
        x.issue(
            "sex-in-name",
            "information",
            "The given name holds the sex; the name is read from the family part.",
            given[0],
        )
        given = given[1:]
    out = human_name(family, given, _texts(element, 5), _texts(element, 4, 6, 14))
    if out is None:
        return None
    use = table("NameType").get(bare(element, 7))
    if use:
        out["use"] = use.code
    validity = _range(element, 10, x) or period(bare(element, 12), bare(element, 13), x)
    if validity:
        out["period"] = validity
    marks = []
    if bare(element, 8) in _REPRESENTATION:
        marks.append({"url": _EXT + "iso21090-EN-representation", "valueCode": _REPRESENTATION[bare(element, 8)]})
    order = table("NameAssemblyOrder").get(bare(element, 11))
    if order:
        marks.append({"url": _EXT + "humanname-assembly-order", "valueCode": order.code})
    if marks:
        out["extension"] = marks
    own = [
        {"url": _EXT + f"humanname-{name}", "valueString": bare(element, 1, sub)}
        for sub, name in ((2, "own-prefix"), (3, "own-name"), (4, "partner-prefix"), (5, "partner-name"))
        if bare(element, 1, sub)
    ]
    if own and "family" in out:
        out["_family"] = {"extension": own}
    return out


@datatype("XPN[string]", "1-6")
def xpn_string(element: Element, x: Context) -> str | None:
    """XPN -> the name as text."""
    name = human_name(plain(element, 1), _texts(element, 2, 3), _texts(element, 5), _texts(element, 4, 6))
    return name["text"] if name else None


# --- times -----------------------------------------------------------------------------------------------------------------


@ruled("DTM[dateTime]", "1")
def dtm_datetime(element: Element, x: Context, rule: Rule) -> str | None:
    """DTM/TS -> dateTime with the precision as written."""
    moment = x.time(bare(element, 1), x.severity(rule.hold))
    return moment.fhir if moment else None


@ruled("DTM[date]", "1")
def dtm_date(element: Element, x: Context, rule: Rule) -> str | None:
    """DTM/TS -> date; a time of day is cut off."""
    moment = x.time(bare(element, 1), x.severity(rule.hold), birth=True)
    return moment.date if moment else None


@ruled("DTM[instant]", "1")
def dtm_instant(element: Element, x: Context, rule: Rule) -> str | None:
    """DTM/TS -> instant; a date without a time of day is none (http://hl7.org/fhir/R4/datatypes.html#instant): None and an issue."""
    moment = x.time(bare(element, 1), x.severity(rule.hold))
    if moment is None:
        return None
    if not moment.has_time:
        x.issue(
            "date-without-time",
            "information",
            "An instant needs a time of day; only the date was sent.",
            bare(element, 1),
        )
        return None
    return moment.fhir


def period(start: str, end: str, x: Context) -> dict[str, str] | None:
    out = {}
    for key, written in (("start", start), ("end", end)):
        moment = x.time(written)
        if moment:
            out[key] = moment.fhir
    held = {"period": out}
    x.check_period(held)
    return held["period"] or None


def _range(element: Element, component: int, x: Context) -> dict[str, str] | None:
    """A DR as component: its two times are sub-components."""
    return period(bare(element, component, 1), bare(element, component, 2), x)


@datatype("DR[Period]", "1 2")
def drperiod(element: Element, x: Context) -> dict[str, str] | None:
    """DR -> Period."""
    return period(bare(element, 1), bare(element, 2), x)


# --- small values ----------------------------------------------------------------------------------------------------------


def number(written: str) -> Decimal | None:
    """A plain decimal number with its digits, or None."""
    written = written.strip()
    return Decimal(written) if _NUMBER.fullmatch(written) else None


@datatype("CQ[Quantity]", "1 2")
def cq_quantity(element: Element, x: Context) -> dict[str, Any] | None:
    """CQ -> Quantity; the unit is coded when the unit table knows it."""
    value = number(bare(element, 1))
    if value is None:
        return None
    out: dict[str, Any] = {"value": value}
    unit = x.profile.units.lookup(bare(element, 2, 1) or bare(element, 2, 2))
    if unit.text.strip():
        out["unit"] = unit.text
    if unit.ucum:
        out |= {"system": systems.UCUM, "code": unit.ucum}
    return out


@datatype("ST[string]", "1")
def st_string(element: Element, x: Context) -> str | None:
    """ST, TX, FT, NM as text."""
    return plain(element, 1) or None


@datatype("ST[CodeableConcept]", "1")
def st_concept(element: Element, x: Context) -> dict[str, Any] | None:
    """ST -> CodeableConcept with text only."""
    return {"text": plain(element, 1)} if plain(element, 1) else None


@datatype("XON[string]", "1 3 10")
def xon_string(element: Element, x: Context) -> str | None:
    """XON -> the organisation's name, else its number."""
    return plain(element, 1) or plain(element, 10) or plain(element, 3) or None


@datatype("NM[positiveInt]", "1")
def nm_positive(element: Element, x: Context) -> int | None:
    """NM -> positiveInt."""
    found = bare(element, 1).strip()
    return int(found) if found.isascii() and found.isdigit() and 0 < int(found) < 2**31 else None


@datatype("NM[Quantity-LengthOfStay]", "1")
def nm_days(element: Element, x: Context) -> dict[str, Any] | None:
    """NM -> Duration in days."""
    value = number(bare(element, 1))
    return None if value is None else {"value": value, "unit": "days", "system": systems.UCUM, "code": "d"}


@datatype("ID[boolean]", "1")
def id_boolean(element: Element, x: Context) -> bool | None:
    """Table 0136 (Y, N) -> boolean."""
    found = table("YesNo").get(bare(element, 1))
    return None if found is None else found.code == "true"


def _texts(element: Element, *numbers: int) -> list[str]:
    return [found for found in (plain(element, n) for n in numbers) if found]
