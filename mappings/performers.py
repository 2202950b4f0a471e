"""Who performed a result: OBX-15, 16, 23, 24, 25 (guide: OBX[Observation]).

Whose recognition mark counts hangs on it, so it is never guessed. The organisation stands first in ``performer``: the facility the
profile maps the code or name to, else the Organization as named. When the message names nobody, the profile says whether that means
the sender (``default_performer``); else nobody is named.
"""

from __future__ import annotations

from typing import Any

from mappings.contacts import xad_address
from mappings.context import Context
from mappings.datatypes import plain
from mappings.directory import cwe_organization, named_facility, practitioner, role, xon_organization
from mappings.registry import DATATYPES, call
from mappings.source import Element, Record


def _add(x: Context, out: dict[str, Any], who: dict[str, Any] | None) -> bool:
    """Put an organisation first in performer; the one named first (OBX-15 before OBX-23) stays first."""
    if who is None:
        return False
    held = out.setdefault("performer", [])
    if who not in held:
        organizations = sum(1 for p in held if str(p.get("reference", "")).startswith("Organization/"))
        held.insert(organizations, who)
    return True


def _organization(element: Element, x: Context, kind: str) -> dict[str, Any] | None:
    who: dict[str, Any] | None = cwe_organization(element, x) if kind == "CWE" else xon_organization(element, x)
    if who is not None and "identifier" not in who:
        words = "The performing laboratory is not in the profile's performers; it is stored as named."
        x.issue_once("unknown-performer", "information", words, who.get("display", ""))
    return who


@call("producer")
def producer(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-15 producer's id -> performing organisation (the guide has no element for it)."""
    return _add(x, out, _organization(record.get(15)[0], x, "CWE"))


@call("performing_organization")
def performing_organization(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-23 -> performing organisation. OBX-15 and OBX-23 of one known facility are one performer."""
    who = _organization(record.get(23)[0], x, "XON")
    known = [p for p in out.get("performer", ()) if who and p.get("reference") == who.get("reference")]
    return True if known else _add(x, out, who)


@call("performing_address")
def performing_address(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-24 -> address of the Organization named by OBX-23; a facility of the county keeps its own."""
    address = xad_address(record.get(24)[0], x)
    who = next((p for p in out.get("performer", ()) if str(p.get("reference", "")).startswith("Organization/")), None)
    if address is None or who is None or "identifier" in who:
        return False
    return x.enrich(who, "address", [address])


@call("medical_director")
def medical_director(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-25 -> PractitionerRole MDIR at the performing organisation."""
    element = record.get(25)[0]
    known = x.facility.performers
    for word in (plain(element, 1), plain(element, 2)):
        if word in known and "performer" not in out:
            return _add(x, out, named_facility(known[word], word, x))
    employer = next(
        (p for p in out.get("performer", ()) if str(p.get("reference", "")).startswith("Organization/")), None
    )
    codes = [{"system": "http://terminology.hl7.org/CodeSystem/v2-0912", "code": "MDIR"}]
    who = role(practitioner(element, x), employer, codes, x)
    if who is None:
        return False
    out.setdefault("performer", []).append(who)
    return True


_OBSERVER = [{"system": "http://terminology.hl7.org/CodeSystem/practitioner-role", "code": "responsibleObserver"}]


@call("observers")
def observers(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-16 (repeats) -> PractitionerRole responsibleObserver."""
    limit = max(DATATYPES["XCN[Practitioner]"].reads)
    read = False
    for number, element in enumerate(record.get(16)):
        reference = role(practitioner(element, x), None, _OBSERVER, x)
        if reference is not None:
            read = True
            held = out.setdefault("performer", [])
            if reference not in held:
                held.append(reference)
            x.leftover(element, (8, 11, 12, *range(14, 21), *range(limit + 1, len(element) + 1)), number)
    return read


def default_performer(x: Context) -> dict[str, Any] | None:
    """The sender, when the profile says that it performs what it does not assign to anybody."""
    if x.facility.default_performer != "sender":
        return None
    return named_facility(x.facility.id, "", x)
