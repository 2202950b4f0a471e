"""Patient, Encounter, Practitioner and Organization -> PID, PV1, XCN, XON, CX (HL7 v2.5.1 chapters 2A and 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conformance import systems
from mappings.outbound.dialect import Dialect
from mappings.outbound.line import Line, trimmed
from mappings.source import Element

Resources = dict[str, dict[str, Any]]
"""``<type>/<id>`` -> resource of the Bundle."""

_RESIDENT_OID = systems.RESIDENT_ID.removeprefix("urn:oid:")
_EXT = "http://hl7.org/fhir/StructureDefinition/"
_SEX = {"male": "M", "female": "F", "other": "O", "unknown": "U"}
_NAME_USE = {
    "official": "L",
    "usual": "D",
    "old": "BAD",
    "maiden": "M",
    "anonymous": "MSK",
    "nickname": "N",
    "temp": "TEMP",
}
_REPRESENTATION = {"IDE": "I", "ABC": "A", "SYL": "P"}
_CLASS = {"AMB": "O", "IMP": "I", "EMER": "E", "PRENC": "P"}
_LEVELS = {"area": 1, "ro": 2, "bd": 3, "si": 4, "bu": 7, "lvl": 8}
_PARTICIPANTS = {"ATND": 7, "REF": 8, "CON": 9, "ADM": 17}


def resolve(reference: dict[str, Any], resources: Resources) -> dict[str, Any] | None:
    """The resource of the Bundle a Reference points to, whatever version it names; None when it is not there."""
    return resources.get("/".join(str(reference.get("reference", "")).split("/")[:2]))


# --- identifiers -----------------------------------------------------------------------------------------------------------


def identifier_code(identifier: dict[str, Any]) -> str:
    """Identifier.type -> CX.5 (table 0203)."""
    kind = identifier.get("type", {})
    return next((c["code"] for c in kind.get("coding", ()) if "code" in c), "") or kind.get("text", "")


def cx(identifier: dict[str, Any], kind: str, dialect: Dialect) -> Element:
    """Identifier -> CX; a resident ID gets the type word the receiver's profile reads as one."""
    code, system = identifier_code(identifier), identifier.get("system", "")
    authority = tuple(trimmed(*dialect.authority(system, kind)))
    if system == systems.RESIDENT_ID:
        words = dialect.receiver.facility.identifiers.resident_id
        code = code if code in words else words[0] if words else "NI"
        authority = ("", _RESIDENT_OID, "ISO")
    holder = identifier.get("assigner", {}).get("display", "")
    period = identifier.get("period", {})
    start, end = (dialect.time(period.get(k, "")) for k in ("start", "end"))
    first = authority[0] if authority else ""
    return trimmed(
        identifier["value"], "", "", _inner(authority), code, "" if holder == first else holder, start, end
    )  # fmt: skip


def ei(identifier: dict[str, Any], kind: str, dialect: Dialect) -> Element:
    """Identifier -> EI."""
    return trimmed(identifier["value"], *dialect.authority(identifier.get("system", ""), kind))


def _inner(parts: Sequence[Any]) -> str | tuple[str, ...]:
    """Sub-components, or plain text when there is only the first."""
    kept = tuple(str(p) for p in parts)
    return kept if len(kept) > 1 else kept[0] if kept else ""


# --- people ----------------------------------------------------------------------------------------------------------------


def patient(resource: dict[str, Any], own: Sequence[dict[str, Any]], dialect: Dialect) -> Line:
    """Patient -> PID. ``own``: the receiver's own Patients that are this person; their numbers stand first."""
    line = Line("PID")
    line.put(1, "1")
    numbers: list[Element] = []
    account = systems.facility_system(dialect.receiver.id, "account")
    for identifier in (i for holder in (*own, resource) for i in holder.get("identifier", ()) if i.get("value")):
        if identifier.get("system", "").startswith(account):
            line.put(18, cx(identifier, "account", dialect))
            continue
        written = cx(identifier, "patient", dialect)
        if all(written[:4] != other[:4] for other in numbers):
            numbers.append(written)
    line.put(3, *numbers)
    line.put(5, *(_xpn(n) for n in resource.get("name", ())))
    born = next(
        (e["valueDateTime"] for e in resource.get("_birthDate", {}).get("extension", ()) if "valueDateTime" in e),
        resource.get("birthDate", ""),
    )
    line.put(7, dialect.time(born))
    line.put(8, _SEX.get(resource.get("gender", ""), ""))
    line.put(11, *(_xad(a) for a in resource.get("address", ())))
    for number, work in ((13, False), (14, True)):
        line.put(number, *(_xtn(t) for t in resource.get("telecom", ()) if (t.get("use") == "work") is work))
    return line


def _xpn(name: dict[str, Any]) -> Element:
    given = [*name.get("given", ()), "", ""]
    family = name.get("family", "")
    if not family and not name.get("given"):
        family = name.get("text", "")
    marks = {e["url"].removeprefix(_EXT): e.get("valueCode", "") for e in name.get("extension", ())}
    representation = _REPRESENTATION.get(marks.get("iso21090-EN-representation", ""), "")
    suffix, prefix = next(iter(name.get("suffix", ())), ""), next(iter(name.get("prefix", ())), "")
    return trimmed(
        family, given[0], given[1], suffix, prefix, "", _NAME_USE.get(name.get("use", ""), ""), representation
    )


def _xad(address: dict[str, Any]) -> Element:
    lines = [*address.get("line", ()), "", ""]
    return trimmed(
        lines[0], lines[1], address.get("city", ""), address.get("state", ""), address.get("postalCode", ""),
        address.get("country", ""), {"home": "H", "work": "B"}.get(address.get("use", ""), ""), "", address.get("district", ""),
    )  # fmt: skip


def _xtn(contact: dict[str, Any]) -> Element:
    value = contact.get("value", "")
    if contact.get("system") == "email":
        return trimmed("", "NET", "Internet", value)
    kind = {"fax": "FX", "pager": "BP", "sms": "CP"}.get(contact.get("system", ""), "PH")
    mobile = contact.get("use") == "mobile"
    return trimmed(value, "WPN" if contact.get("use") == "work" else "PRN", "CP" if mobile else kind) if value else ()


def practitioner(reference: dict[str, Any], resources: Resources, dialect: Dialect) -> Element:
    """Reference to a Practitioner or PractitionerRole -> XCN; somebody who is only named is only named; () for an organisation."""
    found = resolve(reference, resources)
    if found is not None and found["resourceType"] == "PractitionerRole":
        return practitioner(found.get("practitioner", {}), resources, dialect)
    target = str(reference.get("reference", ""))
    if found is None or found["resourceType"] != "Practitioner":
        named = reference.get("display", "") if not target.startswith("Organization/") else ""
        return ("", named) if named else ()
    number: dict[str, Any] = next(iter(found.get("identifier", ())), {})
    name = _xpn(next(iter(found.get("name", ())), {}))
    parts = [*name, *[""] * (5 - len(name))][:5]
    authority = _inner(trimmed(*dialect.authority(number.get("system", ""), "staff")))
    return trimmed(number.get("value", ""), *parts, "", "", authority, "", "", "", identifier_code(number))


def cnn(reference: dict[str, Any], resources: Resources, dialect: Dialect) -> Element:
    """As ``practitioner``, for NDL.1 (OBR-32 to 35): the parts are sub-components."""
    who = practitioner(reference, resources, dialect)
    if not who:
        return ()
    flat = tuple(c if isinstance(c, str) else c[0] for c in who)
    return (flat if len(flat) > 1 else (flat[0], ""),)


def facility_of(reference: dict[str, Any], resources: Resources) -> str:
    """Facility id of the Organization a Reference points to (itself, or the employer of a PractitionerRole); empty when unknown."""
    identifier = reference.get("identifier", {})
    if identifier.get("system") == systems.FACILITY:
        return str(identifier.get("value", ""))
    found = resolve(reference, resources) or {}
    if found.get("resourceType") == "PractitionerRole":
        return facility_of(found.get("organization", {}), resources)
    known = (i["value"] for i in found.get("identifier", ()) if i.get("system") == systems.FACILITY and "value" in i)
    return str(next(known, ""))


def xon(reference: dict[str, Any], resources: Resources, dialect: Dialect) -> Element:
    """Reference to an Organization -> XON: by the word the receiver has for the facility, else by its number and whose that is."""
    facility = facility_of(reference, resources)
    found = resolve(reference, resources) or {}
    name = reference.get("display", "") or found.get("name", "")
    if facility:
        word = dialect.facility_word(facility)
        system = "" if word else systems.FACILITY
        number = word or facility
    else:
        identifier: dict[str, Any] = next(iter(found.get("identifier", ())), {})
        number, system = identifier.get("value", ""), identifier.get("system", "")
    authority = _inner(trimmed(*dialect.authority(system, "organization")))
    return trimmed(name, "", "", "", "", authority if number else "", "", "", "", number)


def performer(reference: dict[str, Any], resources: Resources, dialect: Dialect) -> tuple[int, Element]:
    """Performing organisation -> (15, CWE) when the receiver has a word for it, else (23, XON)."""
    facility = facility_of(reference, resources)
    word = dialect.facility_word(facility) if facility else ""
    if word:
        return 15, (word, reference.get("display", "") or word, "L")
    return 23, xon(reference, resources, dialect)


def address(reference: dict[str, Any], resources: Resources) -> Element:
    """Address of an Organization of the Bundle -> XAD."""
    found = resolve(reference, resources) or {}
    return next((_xad(a) for a in found.get("address", ())), ())


def visit(resource: dict[str, Any], resources: Resources, dialect: Dialect) -> Line:
    """Encounter -> PV1."""
    line = Line("PV1")
    line.put(1, "1")
    line.put(2, _CLASS.get(resource.get("class", {}).get("code", ""), resource.get("class", {}).get("code", "")))
    for entry in resource.get("location", ())[:1]:
        line.put(3, _pl(entry.get("location", {}), resources))
    for participant in resource.get("participant", ()):
        code = next((c["code"] for t in participant.get("type", ()) for c in t.get("coding", ()) if "code" in c), "")
        if code in _PARTICIPANTS:
            who = practitioner(participant.get("individual", {}), resources, dialect)
            line.put(_PARTICIPANTS[code], *line.fields.get(_PARTICIPANTS[code], ()), who)
    numbers = [i for i in resource.get("identifier", ()) if i.get("value")]
    line.put(19, *(cx(i, "visit", dialect) for i in numbers[:1]))
    line.put(50, *(cx(i, "visit", dialect) for i in numbers[1:]))
    period = resource.get("period", {})
    line.put(44, dialect.time(period.get("start", "")))
    line.put(45, dialect.time(period.get("end", "")))
    return line


def _pl(reference: dict[str, Any], resources: Resources) -> Element:
    parts = [""] * 9
    place = resolve(reference, resources)
    if place is None:
        parts[8] = reference.get("display", "")
        return trimmed(*parts)
    parts[8] = place.get("description", "")
    while place is not None:
        code = next((c.get("code", "") for c in place.get("physicalType", {}).get("coding", ())), "")
        if code in _LEVELS:
            parts[_LEVELS[code] - 1] = place.get("name", "")
        place = resolve(place.get("partOf", {}), resources)
    return trimmed(*parts)


def notes(found: Sequence[dict[str, Any]], resources: Resources, dialect: Dialect) -> list[Line]:
    """Annotations -> NTE, to stand behind the segment they comment on."""
    out = []
    for number, note in enumerate(found, 1):
        line = Line("NTE")
        line.put(1, str(number))
        line.put(3, (note.get("text", ""),))
        who = practitioner(note.get("authorReference", {}), resources, dialect)
        line.put(5, who or ("", note.get("authorString", "")))
        line.put(6, dialect.time(note.get("time", "")))
        out.append(line)
    return out
