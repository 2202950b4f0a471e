"""Organisms and their susceptibilities: the organism's Observation has the others as members (http://hl7.org/fhir/R4/observation.html#obsgrouping).

The guide leaves both ways to an implementation. HL7 v2.5.1 section 7.3.1.26 (OBR-26, with OBR-29) names the organism of an order of
susceptibilities by code and sub-id; older laboratories put both in one order and give them one sub-id (OBX-4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from conformance import systems
from mappings.code_table import table
from mappings.context import Context
from mappings.datatypes import bare, plain
from mappings.grouping import Order
from mappings.source import Record

_SUSCEPTIBILITY = frozenset({"S", "I", "R", "SDD", "NS", "MS", "VS", "SYN-R", "SYN-S", "NCL"})
"""v3 ObservationInterpretation codes of susceptibility tests."""
_PART = re.compile(r"[.\-]")


@dataclass(frozen=True, slots=True)
class Made:
    """The results of one order: its numbers (OBR-2/3, ORC-2/3), and each OBX with its Observation."""

    numbers: frozenset[str]
    results: tuple[tuple[Record, dict[str, Any]], ...]


def link(order: Order, results: list[tuple[Record, dict[str, Any]]], x: Context) -> None:
    """Adds ``hasMember`` to the organisms the results belong to, in this order or in one before it."""
    if any(record.get(4) for record, _ in results):
        _by_sub_id(results)
    numbers = frozenset(v for r in (order.orc, order.obr) if r is not None for n in (2, 3) if (v := r.first(n)))
    if order.obr is not None and order.obr.get(26) and results:
        _by_parent(order.obr, results, x)
    x.made.append(Made(numbers, tuple(results)))


def _by_parent(obr: Record, results: list[tuple[Record, dict[str, Any]]], x: Context) -> None:
    element = obr.get(26)[0]
    codes = {bare(element, 1, 1), bare(element, 1, 4)} - {""}
    sub_id = plain(element, 2)
    orders = {v for e in obr.get(29) for n in (1, 2) if (v := bare(e, n, 1))}
    found = [
        observation
        for made in x.made
        if not orders or not made.numbers or orders & made.numbers
        for record, observation in made.results
        if (not codes or codes & {plain(record.get(3)[0], 1), plain(record.get(3)[0], 4)})
        and (not sub_id or record.first(4).strip() == sub_id)
    ]
    if len(found) != 1:
        words = "The parent result (OBR-26) is not in this message, or cannot be told; the results stand alone."
        x.issue("no-parent-result", "information", words, where=f"{obr.where}-26")
        return
    x.fields_read(obr).add(26)
    _add(found[0], [observation for _, observation in results])


def _by_sub_id(results: list[tuple[Record, dict[str, Any]]]) -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for record, observation in results:
        sub_id = record.first(4).strip()
        if sub_id:
            groups.setdefault(_PART.split(sub_id)[0], []).append(observation)
    for group in groups.values():
        members = [o for o in group if _susceptibility(o)]
        # The organism is a coded answer; older senders write its name. A colony count beside it is text as well, but comes after it.
        named = [o for o in group if o not in members and ("valueCodeableConcept" in o or "valueString" in o)]
        organism = next((o for o in named if _coded(o)), named[0] if named else None)
        if members and organism is not None:
            _add(organism, members)


def _coded(observation: dict[str, Any]) -> bool:
    """A coded answer that is not a finding (positive, growth)."""
    codings = observation.get("valueCodeableConcept", {}).get("coding", ())
    return any(coding.get("system") != systems.INTERPRETATION for coding in codings)


def _susceptibility(observation: dict[str, Any]) -> bool:
    for concept in observation.get("interpretation", ()):
        for coding in concept.get("coding", ()):
            if coding.get("system") == systems.INTERPRETATION and coding["code"] in _SUSCEPTIBILITY:
                return True
    said = observation.get("valueString") or observation.get("valueCodeableConcept", {}).get("text", "")
    row = table("Interpretation").get(said) if said else None
    return row is not None and row.code in _SUSCEPTIBILITY


def _add(organism: dict[str, Any], members: list[dict[str, Any]]) -> None:
    held = organism.setdefault("hasMember", [])
    for member in members:
        reference = {"reference": f"Observation/{member['id']}"}
        if member is not organism and reference not in held:
            held.append(reference)
