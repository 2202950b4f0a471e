"""Code mappings that people accepted in the worklist, laid over a profile. Pure: where they are kept is not known here.

The profile's own files come first: an accepted mapping of a code or unit that a file maps for some of the same days is left aside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mappings.catalogue import Catalogue
from mappings.codes import LocalOrder, LocalTest, clean_name, name_key
from mappings.profile import Profile
from mappings.ucum import read
from mappings.units import UnitTable

KINDS = ("code", "order", "unit")


@dataclass(frozen=True, slots=True)
class Accepted:
    """One accepted mapping.

    kind        ``code`` (test), ``order`` or ``unit``, as in mappings.model.Unmapped
    code, name  as sent; for a unit ``code`` is its text and ``name`` empty
    target      item code, orderable code or UCUM code
    valid_from, valid_to  days ``YYYY-MM-DD``, both inclusive, empty = open
    """

    kind: str
    code: str
    name: str
    target: str
    valid_from: str = ""
    valid_to: str = ""


def fault(mapping: Accepted, catalogue: Catalogue) -> str:
    """Why this cannot be a mapping, one sentence; empty when it can."""
    if mapping.kind not in KINDS:
        return f"{mapping.kind!r} is not one of {', '.join(KINDS)}."
    if not mapping.code.strip() and (mapping.kind == "unit" or not mapping.name.strip()):
        return "A code or a name is needed."
    known = {"code": catalogue.items, "order": catalogue.orderables}.get(mapping.kind)
    if known is not None and mapping.target not in known:
        return f"{mapping.target!r} is not an {'item' if mapping.kind == 'code' else 'orderable'} of the catalogue."
    if mapping.kind == "unit" and read(mapping.target) is None:
        return f"{mapping.target!r} is not a UCUM code."
    if mapping.valid_from and mapping.valid_to and mapping.valid_from > mapping.valid_to:
        return "valid-to is before valid-from."
    return ""


def in_files(profile: Profile, mapping: Accepted) -> str:
    """The target a file of the profile gives this code for some of the same days; empty when no file speaks of it."""
    if mapping.kind == "unit":
        return profile.units.lookup(mapping.code).ucum or ""
    if mapping.kind == "code":
        return next((row.item for row in profile.tests.rows if _same(row, mapping)), "")
    return next((row.orderable for row in profile.orders.rows if _same(row, mapping)), "")


def overlay(profile: Profile, accepted: Iterable[Accepted]) -> Profile:
    """The profile with accepted mappings; the very same profile when there are none that count. What cannot be one is left aside."""
    rows = [m for m in accepted if not fault(m, profile.catalogue) and not in_files(profile, m)]
    if not rows:
        return profile
    rows.sort(key=lambda m: (m.kind, m.code, m.name, m.valid_from, m.target))
    digest = hashlib.sha256(profile.digest.encode())
    for m in rows:
        digest.update("\x1f".join((m.kind, m.code, m.name, m.target, m.valid_from, m.valid_to)).encode() + b"\x1e")
    tests = [(_test(m, profile.catalogue), _names(m)) for m in rows if m.kind == "code"]
    orders = [(_order(m, profile.catalogue), _names(m)) for m in rows if m.kind == "order"]
    units = [(m.code, m.target, True) for m in rows if m.kind == "unit"]
    return replace(
        profile,
        tests=profile.tests.extended(tests) if tests else profile.tests,
        orders=profile.orders.extended(orders) if orders else profile.orders,
        units=UnitTable(units, profile.units) if units else profile.units,
        digest=digest.hexdigest(),
    )


def _same(row: LocalTest | LocalOrder, mapping: Accepted) -> bool:
    if row.code or mapping.code:
        same = bool(row.code) and clean_name(row.code)[0] == clean_name(mapping.code)[0]
    else:
        same = name_key(row.name) == name_key(mapping.name)
    return (
        same
        and (row.valid_from or "0000") <= (mapping.valid_to or "9999")
        and (mapping.valid_from or "0000") <= (row.valid_to or "9999")
    )


def _names(mapping: Accepted) -> tuple[str, ...]:
    return (mapping.name,) if mapping.name else ()


def _test(mapping: Accepted, catalogue: Catalogue) -> LocalTest:
    item = catalogue.items[mapping.target]
    return LocalTest(
        mapping.code, mapping.name or mapping.code, item.code, item.loinc, item.name_zh, item.unit, item.specimens,
        item.window_days, mapping.valid_from, mapping.valid_to,
    )  # fmt: skip


def _order(mapping: Accepted, catalogue: Catalogue) -> LocalOrder:
    orderable = catalogue.orderables[mapping.target]
    return LocalOrder(
        mapping.code,
        mapping.name or mapping.code,
        orderable.code,
        orderable.name_zh,
        None,
        mapping.valid_from,
        mapping.valid_to,
    )
