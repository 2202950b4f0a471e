"""Addresses and telephone numbers of the guide: XAD[Address], XTN[ContactPoint]."""

from __future__ import annotations

import re
from typing import Any

from conformance import systems
from mappings.code_table import table
from mappings.context import Context
from mappings.datatypes import bare, period, plain
from mappings.registry import datatype
from mappings.source import Element

_EXT = "http://hl7.org/fhir/StructureDefinition/"


@datatype("XAD[Address]", "1-7 9 10 12-14 19")
def xad_address(element: Element, x: Context) -> dict[str, Any] | None:
    """XAD -> Address (guide: XAD[Address])."""
    lines = [
        v
        for v in (bare(element, 1, 1), bare(element, 1, 2), bare(element, 1, 3), bare(element, 2), bare(element, 19))
        if v
    ]
    keys = ((3, "city"), (9, "district"), (4, "state"), (5, "postalCode"), (6, "country"))
    rest = {key: plain(element, number) for number, key in keys if plain(element, number)}
    if not lines and not rest:
        return None
    out: dict[str, Any] = {}
    kind = bare(element, 7)
    use, form = table("AddressType-use").get(kind), table("AddressType-type").get(kind)
    if use:
        out["use"] = use.code
    if form:
        out["type"] = form.code
    if lines:
        out["line"] = lines
    out |= rest
    validity = period(bare(element, 12, 1), bare(element, 12, 2), x) or period(bare(element, 13), bare(element, 14), x)
    if validity:
        out["period"] = validity
    marks = []
    if kind and not use and not form:
        coding = {"system": systems.V2 + "0190", "code": kind}
        marks.append({"url": _EXT + "alternate-codes", "valueCodeableConcept": {"coding": [coding]}})
    if bare(element, 10):
        marks.append({"url": _EXT + "iso21090-ADXP-censusTract", "valueString": plain(element, 10)})
    return {**out, "extension": marks} if marks else out


@datatype("XTN[ContactPoint]", "1-9 12-14 18")
def xtn_contact_point(element: Element, x: Context) -> dict[str, Any] | None:
    """XTN -> ContactPoint (guide: XTN[ContactPoint]); the number is XTN.1 or XTN.12 as sent, else put together from XTN.5-8."""
    kind, mail = bare(element, 3), plain(element, 4)
    country, area, local, extension = (plain(element, n) for n in (5, 6, 7, 8))
    digital = kind in ("Internet", "X.400") or (not kind and mail)
    if digital:
        value = mail or plain(element, 1)
    else:
        built = " ".join(v for v in (f"+{country.lstrip('+')}" if country else "", area, local) if v) if local else ""
        value = plain(element, 12) or plain(element, 1) or (f"{built} X{extension}" if built and extension else built)
    value = value or plain(element, 9) or mail
    if not value:
        return None
    found = table("TelecomEquipment").get(kind)
    system = found.code if found else "email" if digital else "phone" if re.search(r"\d{3}", value) else "other"
    out: dict[str, Any] = {"system": system, "value": value}
    use = table("TelecomUse").get(bare(element, 2))
    if kind == "CP":
        out["use"] = "mobile"
    elif use:
        out["use"] = use.code
    rank = bare(element, 18)
    if rank.isdigit() and int(rank) > 0:
        out["rank"] = int(rank)
    validity = period(bare(element, 13), bare(element, 14), x)
    if validity:
        out["period"] = validity
    names = (("country", country), ("area", area), ("local", local), ("extension", extension))
    marks = [{"url": f"{_EXT}contactpoint-{name}", "valueString": v} for name, v in names if v]
    return {**out, "extension": marks} if marks else out
