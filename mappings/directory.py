"""Directory resources a message mentions: Practitioner, PractitionerRole, Organization, Location, Device
(guide: XCN[Practitioner], XCN[PractitionerRole], NDL, XON[Organization], HD[Organization], PL[Location], EI[Device]).

They are keyed by the identifier the facility gives them. Somebody who is only named gets no resource: two doctors may share a name;
the reference then holds the name alone.
"""

from __future__ import annotations

import re
from typing import Any

from conformance import systems
from mappings import ids
from mappings.code_table import table
from mappings.coded import concept
from mappings.context import Context
from mappings.datatypes import bare, human_name, identifier_type, named_system, plain
from mappings.facility import Facility
from mappings.grammar import Rule
from mappings.registry import datatype, ruled
from mappings.source import Element

_CJK_NAME = re.compile(r"[\u3400-\u9fff·]{2,}")
_LEVELS = {
    1: ("area", "Area"),
    2: ("ro", "Room"),
    3: ("bd", "Bed"),
    4: ("si", "Site"),
    7: ("bu", "Building"),
    8: ("lvl", "Level"),
}
_PHYSICAL = "http://terminology.hl7.org/CodeSystem/location-physical-type"

# --- organizations ---------------------------------------------------------------------------------------------------------


def facility_organization_id(facility_id: str) -> str:
    """Logical id of the Organization of a facility of the county; the same whichever message names it."""
    return ids.directory_id(facility_id, "Organization", systems.FACILITY, facility_id)


def facility_organization(facility: Facility) -> dict[str, Any]:
    """The facility's own Organization, from its profile."""
    about = facility.organization
    identifiers = [{"system": systems.FACILITY, "value": facility.id}]
    if about.identifier:
        identifiers.append({"system": systems.CREDIT_CODE, "value": about.identifier})
    out: dict[str, Any] = {
        "resourceType": "Organization",
        "id": facility_organization_id(facility.id),
        "identifier": identifiers,
        "active": True,
        "name": about.name,
    }
    return {**out, "alias": [about.name_en]} if about.name_en else out


def named_facility(facility_id: str, name: str, x: Context) -> dict[str, Any]:
    """Reference to the Organization of a known facility, with its business identifier; ``name`` as the sender writes it."""
    logical = facility_organization_id(facility_id)
    identifier = {"system": systems.FACILITY, "value": facility_id}
    if facility_id != x.facility.id:
        x.mention(
            {"resourceType": "Organization", "id": logical, "identifier": [identifier], "name": name or facility_id}
        )
    return {
        "reference": f"Organization/{logical}",
        "identifier": identifier,
        "display": name or x.facility.organization.name,
    }


def organization(name: str, number: str, system: str, kind: dict[str, Any] | None, x: Context) -> dict[str, Any] | None:
    """An organisation the sender names -> reference; a resource only when it has a number or at least a name."""
    known = x.facility.performers
    for word in (number, name):
        if word and word in known:
            return named_facility(known[word], name, x)
    if not name and not number:
        return None
    key = (system, number) if number else ("name", name)
    out: dict[str, Any] = {"resourceType": "Organization", "id": ids.directory_id(x.facility.id, "Organization", *key)}
    if number:
        out["identifier"] = [{**({"type": kind} if kind else {}), "system": system, "value": number}]
    if name:
        out["name"] = name
    return {**x.mention(out), "display": name or number}


@datatype("XON[Organization]", "1 3 6 7 10")
def xon_organization(element: Element, x: Context) -> dict[str, Any] | None:
    """XON -> reference to an Organization (guide: XON[Organization])."""
    number = plain(element, 10) or plain(element, 3)
    system = named_system(bare(element, 6, 1), bare(element, 6, 2), bare(element, 6, 3), x, "organization")
    kind = identifier_type(bare(element, 7)) if bare(element, 7) else None
    return organization(plain(element, 1), number, system, kind, x)


@datatype("CWE[Organization]", "1-3 9")
def cwe_organization(element: Element, x: Context) -> dict[str, Any] | None:
    """CWE -> reference to an Organization (guide: CWE[Organization])."""
    system = named_system(plain(element, 3), "", "", x, "organization")
    return organization(plain(element, 9) or plain(element, 2), plain(element, 1), system, None, x)


@datatype("HD[Organization]", "1-3")
def hd_organization(element: Element, x: Context) -> dict[str, Any] | None:
    """HD -> reference to an Organization (guide: HD[Organization])."""
    return organization(
        "", plain(element, 1) or plain(element, 2), named_system("", "", "", x, "organization"), None, x
    )


# --- people ----------------------------------------------------------------------------------------------------------------


def practitioner(element: Element, x: Context) -> dict[str, Any] | None:
    """XCN/CNN -> reference to a Practitioner; name only, without a resource, when there is no number."""
    number = plain(element, 1)
    given = [v for v in (plain(element, 3), plain(element, 4)) if v]
    prefix = [plain(element, 6)] if plain(element, 6) else []
    name = human_name(bare(element, 2, 1), given, prefix, [v for v in (plain(element, 5), plain(element, 21)) if v])
    if name is None and number and _CJK_NAME.fullmatch(number):
        # The name stands where the number belongs.
        name, number = {"text": number}, ""
    if not number:
        return {"type": "Practitioner", "display": name["text"]} if name else None
    system = named_system(bare(element, 9, 1), bare(element, 9, 2), bare(element, 9, 3), x, "staff")
    identifier: dict[str, Any] = {"system": system, "value": number}
    if bare(element, 13):
        identifier = {"type": identifier_type(bare(element, 13)), **identifier}
    out: dict[str, Any] = {
        "resourceType": "Practitioner",
        "id": ids.directory_id(x.facility.id, "Practitioner", system, number),
        "identifier": [identifier],
    }
    if name:
        use = table("NameType").get(bare(element, 10))
        if use:
            name["use"] = use.code
        out["name"] = [name]
    degree = plain(element, 7)
    if degree:
        found = table("Degree").get(degree)
        out["qualification"] = [{"code": {"coding": [found.coding()]} if found else {"text": degree}}]
    reference = x.mention(out)
    return {**reference, "display": name["text"]} if name else reference


datatype("XCN[Practitioner]", "1-7 9 10 13 21")(practitioner)


def role(
    person: dict[str, Any] | None, employer: dict[str, Any] | None, codes: list[dict[str, Any]], x: Context, **more: Any
) -> dict[str, Any] | None:
    """Reference to a PractitionerRole that joins a person, an organisation and a role; the person alone when nothing is joined."""
    if person is None or "reference" not in person:
        return person if person is not None else employer
    key = [person["reference"], (employer or {}).get("reference", ""), *(c["code"] for c in codes)]
    out: dict[str, Any] = {
        "resourceType": "PractitionerRole",
        "id": ids.directory_id(x.facility.id, "PractitionerRole", *key),
        "practitioner": person,
    }
    if employer:
        out["organization"] = employer
    if codes:
        out["code"] = [{"coding": codes}]
    out |= {key: value for key, value in more.items() if value}
    reference = x.mention(out)
    return {**reference, "display": person["display"]} if "display" in person else reference


_ROLES = {
    "responsibleObserver": "http://terminology.hl7.org/CodeSystem/practitioner-role",
    "MDIR": systems.V2 + "0912",
    "PRI": systems.V2 + "0912",
    "TN": systems.V2 + "0912",
    "TR": systems.V2 + "0912",
}


@ruled("XCN[PractitionerRole]", "1-7 9 10 13 21")
def xcn_role(element: Element, x: Context, rule: Rule) -> dict[str, Any] | None:
    """XCN -> reference to a PractitionerRole with the role rule.kind."""
    codes = [{"system": _ROLES[rule.kind], "code": rule.kind}] if rule.kind else []
    return role(practitioner(element, x), None, codes, x)


@ruled("NDL[PractitionerRole]", "1-3")
def ndl_role(element: Element, x: Context, rule: Rule) -> dict[str, Any] | None:
    """NDL (OBR-32 to 35) -> reference to a PractitionerRole; many write the CNN of NDL.1 as components, not as sub-components."""
    first = element[0] if element else ""
    person = practitioner(tuple(first) if isinstance(first, tuple) else element, x)
    if person is None:
        return None
    codes = [{"system": _ROLES[rule.kind], "code": rule.kind}] if rule.kind else []
    if isinstance(first, str):
        return role(person, None, codes, x)
    times = {key: m.fhir for key, at in (("start", 2), ("end", 3)) if (m := x.time(bare(element, at)))}
    return role(person, None, codes, x, period=times)


# --- places ----------------------------------------------------------------------------------------------------------------


@datatype("PL[Location]", "1-11")
def pl_location(element: Element, x: Context) -> dict[str, Any] | None:
    """PL -> reference to the innermost Location (bed, room, point of care, floor, building, site), each part of the next outer one
    (guide: PL[Location])."""
    inner: dict[str, Any] | None = None
    path: list[str] = []
    made: list[tuple[dict[str, Any], list[str]]] = []
    for level in (4, 7, 8, 1, 2, 3):
        value = plain(element, level)
        if not value:
            continue
        path.append(f"{level}={value}")
        code, display = _LEVELS[level]
        out: dict[str, Any] = {
            "resourceType": "Location",
            "id": ids.directory_id(x.facility.id, "Location", *path),
            "identifier": [
                {
                    "system": systems.facility_system(x.facility.id, "unit"),
                    "value": "/".join(p.split("=", 1)[1] for p in path),
                }
            ],
            "name": value,
            "mode": "instance",
            "physicalType": {"coding": [{"system": _PHYSICAL, "code": code, "display": display}]},
        }
        if inner is not None:
            out["partOf"] = {"reference": f"Location/{inner['id']}"}
        inner = out
        made.append((out, list(path)))
    if inner is None:
        return {"display": plain(element, 9)} if plain(element, 9) else None
    if plain(element, 9):
        inner["description"] = plain(element, 9)
    if bare(element, 10, 1):
        names = (bare(element, 11, 1), bare(element, 11, 2), bare(element, 11, 3))
        inner["identifier"].append({"system": named_system(*names, x, "unit"), "value": bare(element, 10, 1)})
    for out, _ in made:
        x.mention(out)
    return {"reference": f"Location/{inner['id']}", "display": " ".join(p.split("=", 1)[1] for p in path)}


@datatype("HD[Location]", "1-3")
def hd_location(element: Element, x: Context) -> dict[str, Any] | None:
    """HD -> reference to a Location."""
    name = plain(element, 1) or plain(element, 2)
    return pl_location(("", "", "", name), x) if name else None


@datatype("DLD[Location-Discharge]", "1 2")
def dld_location(element: Element, x: Context) -> dict[str, Any] | None:
    """DLD -> reference with the place as text; its date is in PV1-45."""
    first = element[0] if element else ""
    found = concept(tuple(first) if isinstance(first, tuple) else (first,), x)
    return {"display": found["text"]} if found and found.get("text") else None


@datatype("EI[Device]", "1-4")
def ei_device(element: Element, x: Context) -> dict[str, Any] | None:
    """EI -> Reference to a device by its identifier: the analyser as the laboratory numbers it."""
    number = plain(element, 1) or plain(element, 2)
    if not number:
        return None
    system = named_system(
        bare(element, 2) if plain(element, 1) else "", bare(element, 3), bare(element, 4), x, "device"
    )
    return {"type": "Device", "identifier": {"system": system, "value": number}, "display": number}
