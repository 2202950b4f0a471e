"""Draft orders -> what they mean in the catalogue (ServiceRequest, http://hl7.org/fhir/R4/servicerequest.html).

Understood are codes of the asking facility, of the catalogue (orderables and items) and LOINC, in that order of trust: the facility's
own table knows best what its button means. A code nobody knows gives no orderable; it is never guessed from its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    surgery     is it ordered before surgery, transfusion or another major intervention; None when nobody knows
    grants      sensitivity classes of items the asker may see results of; None: all (nothing is shown to anybody, as in the audit)
    """

    orderable: Orderable | None
    facility: str
    patient: str | None = None
    person: str | None = None
    id: str = ""
    emergency: bool | None = None
    code: str = ""
    name: str = ""
    surgery: bool | None = None
    grants: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Ordered:
    """What one ServiceRequest asks for: the orderable if it is known, and the code and name to show."""

    orderable: Orderable | None
    code: str
    name: str


def read(request: Mapping[str, Any], rules: Rules, profile: Profile | None, day: str) -> Ordered:
    """ServiceRequest -> Ordered.

    profile  of the asking facility, None when nobody has described it
    day      local date of the order, ``YYYY-MM-DD``: a facility's code may mean something else next year

    Wrong JSON shapes count as absent; a ServiceRequest without a readable code gives an Ordered without anything.
    """
    concept = request.get("code")
    concept = concept if isinstance(concept, dict) else {}
    found = concept.get("coding")
    codings = [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []
    first = codings[0] if codings else {}
    name = _text(concept.get("text")) or _text(first.get("display"))
    return Ordered(_of_codings(codings, name, rules, profile, day), _text(first.get("code")), name)


def _of_codings(
    codings: Iterable[Mapping[str, Any]], name: str, rules: Rules, profile: Profile | None, day: str
) -> Orderable | None:
    pairs = [(_text(c.get("system")), _text(c.get("code"))) for c in codings]
    by_system = {system: code for system, code in reversed(pairs) if system and code}
    if profile is not None:
        facility = profile.facility.id
        code = by_system.get(systems.local_codes(facility, "orders"))
        if code and (row := profile.orders.lookup(code, name, day)):
            return rules.orderables.get(row.orderable)
        code = by_system.get(systems.local_codes(facility, "tests"))
        if code and (test := profile.tests.lookup(code, name, day)):
            return single(rules.items.get(test.item))
    return (
        rules.orderables.get(by_system.get(systems.ORDERABLES, ""))
        or single(rules.items.get(by_system.get(systems.ITEMS, "")))
        or single(rules.by_loinc.get(by_system.get(systems.LOINC, "")))
    )


def single(item: Item | None) -> Orderable | None:
    """One item ordered by itself, as an orderable."""
    return Orderable(item.code, item.category, item.name_zh, item.name_en, (item.code,)) if item else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def orderables_of(items: Sequence[str | None], rules: Rules) -> tuple[Orderable, ...]:
    """Orderables whose required items are all among ``items``; one that is contained in another is left out."""
    have = {i for i in items if i}
    found = [o for o in rules.orderables.values() if have.issuperset(o.required)]
    kept: list[Orderable] = []
    for one in sorted(found, key=lambda o: (-len(o.required), o.code)):
        if not any(set(one.required) <= set(other.required) for other in kept):
            kept.append(one)
    return tuple(kept)
