"""Draft orders -> what they mean in the catalogue (ServiceRequest, http://hl7.org/fhir/R4/servicerequest.html).

Understood are codes of the asking facility, of the catalogue (orderables and items) and LOINC, in that order of trust: the facility's
own table knows best what its button means. A code nobody knows gives no orderable; it is never guessed from its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance import systems
from fhir_server.recognition.rules import Rules
from mappings.catalogue import Item, Orderable

if TYPE_CHECKING:
    from mappings.profile import Profile


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for.

    orderable   what the code means, or None when the catalogue does not know it; code and name as ordered
    facility    id of the asking facility; patient, person: logical ids, None when unknown
    id          logical id of the stored ServiceRequest, so that its own results do not count as earlier ones; empty when none
    emergency   True or False when the visit says so, None when nobody knows
    """

    orderable: Orderable | None
    facility: str
    patient: str | None = None
    person: str | None = None
    id: str = ""
    emergency: bool | None = None
    code: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Ordered:
    """What one ServiceRequest asks for: the orderable if it is known, and the code and name to show."""

    orderable: Orderable | None
    code: str
    name: str


def read(request: Mapping[str, Any], rules: Rules, profile: Profile | None) -> Ordered:
    """ServiceRequest -> Ordered. ``profile``: of the asking facility, None when nobody has described it. Bad JSON shapes count as
    absent; a ServiceRequest without a readable code gives an empty Ordered."""
    concept = request.get("code")
    concept = concept if isinstance(concept, dict) else {}
    found = concept.get("coding")
    codings = [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []
    first = codings[0] if codings else {}
    name = _text(concept.get("text")) or _text(first.get("display"))
    return Ordered(of_codings(codings, rules, profile), _text(first.get("code")), name)


def of_codings(codings: Iterable[Mapping[str, Any]], rules: Rules, profile: Profile | None) -> Orderable | None:
    """The orderable that the first understood coding means; a single item counts as an orderable of itself."""
    pairs = [(_text(c.get("system")), _text(c.get("code"))) for c in codings]
    for understand in (_local, _orderable, _item, _loinc):
        for system, code in pairs:
            if system and code and (found := understand(system, code, rules, profile)):
                return found
    return None


def _local(system: str, code: str, rules: Rules, profile: Profile | None) -> Orderable | None:
    if profile is None:
        return None
    if system == profile.orders.system:
        row = profile.orders.get(code)
        return rules.orderables.get(row.orderable.code) if row and row.orderable else None
    if system == profile.tests.system:
        test = profile.tests.get(code)
        return _single(rules.items.get(test.item)) if test and test.item else None
    return None


def _orderable(system: str, code: str, rules: Rules, profile: Profile | None) -> Orderable | None:
    return rules.orderables.get(code) if system == systems.ORDERABLES else None


def _item(system: str, code: str, rules: Rules, profile: Profile | None) -> Orderable | None:
    return _single(rules.items.get(code)) if system == systems.ITEMS else None


def _loinc(system: str, code: str, rules: Rules, profile: Profile | None) -> Orderable | None:
    return _single(rules.by_loinc.get(code)) if system == systems.LOINC else None


def _single(item: Item | None) -> Orderable | None:
    return Orderable(item.code, item.category, item.name_zh, item.name_en, (item.code,)) if item else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
