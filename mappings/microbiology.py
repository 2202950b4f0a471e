"""Organisms and their susceptibilities: the organism's Observation has the others as members (http://hl7.org/fhir/R4/observation.html#obsgrouping).

The guide leaves both ways to an implementation. HL7 v2.5.1 section 7.3.1.26 (OBR-26, with OBR-29) names the organism of an order of
susceptibilities by code and sub-id; older laboratories put both in one order and give them one sub-id (OBX-4).

An organism of another message cannot be named by its id, because OBR-29 does not say under which code its order was reported. The
susceptibilities carry the name the sender gave it (``parent_reference``), and the store joins them (fhir_server.store.cultures).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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
    """The results of one order: its numbers (OBR-3/2, ORC-3/2, the filler's before the placer's), and each OBX with its Observation."""

    numbers: tuple[str, ...]
    results: tuple[tuple[Record, dict[str, Any]], ...]


def link(order: Order, results: list[tuple[Record, dict[str, Any]]], x: Context) -> None:
    """Adds ``hasMember`` to the organisms the results belong to, in this order or in one before it."""
    if any(record.get(4) for record, _ in results):
        _by_sub_id(results)
    numbers = tuple(v for n in (3, 2) for r in (order.obr, order.orc) if r is not None and (v := r.first(n)))
    if order.obr is not None and order.obr.get(26) and results:
        _by_parent(order.obr, order.orc, results, x)
    x.made.append(Made(numbers, tuple(results)))


def _by_parent(obr: Record, orc: Record | None, results: list[tuple[Record, dict[str, Any]]], x: Context) -> None:
    element = obr.get(26)[0]
    parents = obr.get(29) or (orc.get(8) if orc is not None else ())
    codes = {bare(element, 1, 1), bare(element, 1, 4)} - {""}
    sub_id = plain(element, 2)
    orders = {v for e in parents for n in (1, 2) if (v := bare(e, n, 1))}
    parent = next((v for e in parents for n in (2, 1) if (v := bare(e, n, 1))), "")
    found = [
        (made, observation)
        for made in x.made
        if not orders or not made.numbers or orders.intersection(made.numbers)
        for record, observation in made.results
        if (not codes or codes & {plain(record.get(3)[0], 1), plain(record.get(3)[0], 4)})
        and (not sub_id or record.first(4).strip() == sub_id)
    ]
    if len(found) == 1:
        made, organism = found[0]
        parent = parent or next(iter(made.numbers), "")
        _add(organism, [observation for _, observation in results])
    elif found or not parent or not (codes or sub_id):
        words = "The parent result (OBR-26) is not in this message, or cannot be told; the results stand alone."
        x.issue("no-parent-result", "information", words, where=f"{obr.where}-26")
        return
    x.fields_read(obr).add(26)
    if parent and (codes or sub_id):
        # Also beside an organism of this message: a later correction of it alone then keeps its members.
        name = f"{parent}|{bare(element, 1, 1) or bare(element, 1, 4)}|{sub_id}"
        reference = parent_reference(name, plain(element, 3))
        for _, observation in results:
            observation.setdefault("derivedFrom", []).append(reference)


def parent_reference(name: str, display: str) -> dict[str, Any]:
    """An organism by name: ``<number of its order>|<OBX-3.1>|<OBX-4>``, one of the last two may be empty."""
    reference: dict[str, Any] = {"type": "Observation", "identifier": {"system": systems.PARENT_RESULT, "value": name}}
    return {**reference, "display": display} if display else reference


def parent_name(observation: dict[str, Any]) -> str:
    """The name of the organism an Observation belongs to; empty when it names none."""
    for reference in observation.get("derivedFrom", ()):
        identifier = reference.get("identifier") or {}
        if identifier.get("system") == systems.PARENT_RESULT:
            return str(identifier["value"])
    return ""


def names(observation: dict[str, Any], numbers: Iterable[str]) -> frozenset[str]:
    """Every name a result answers to, for the numbers of its order (placer, filler)."""
    code = observation.get("code", {})
    codes = {"", code.get("text", ""), *(c.get("code", "") for c in code.get("coding", ()))}
    sub_ids = {"", _sub_id(observation)}
    return frozenset(f"{n}|{c}|{s}" for n in numbers for c in codes for s in sub_ids if c or s)


def may_be_organism(observation: dict[str, Any]) -> bool:
    """Whether a result can have susceptibilities: its value is a coded answer or a text, and it is none itself."""
    return ("valueString" in observation or _coded(observation)) and not parent_name(observation)


def stands_out(observation: dict[str, Any]) -> bool:
    """Whether a result is worth asking for susceptibilities that came before it: a coded answer, or a text with a sub-id (OBX-4)."""
    return _coded(observation) or ("valueString" in observation and bool(_sub_id(observation)))


def _sub_id(observation: dict[str, Any]) -> str:
    for extension in observation.get("extension", ()):
        if extension.get("url") == systems.SUB_ID:
            return str(extension["extension"][0]["valueString"])
    return ""


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
