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
from itertools import pairwise
from typing import Any

from conformance import systems
from mappings.context import Context
from mappings.datatypes import bare, plain
from mappings.grouping import Order
from mappings.source import Record

_SUSCEPTIBILITY = frozenset({"S", "I", "R", "SDD", "NS", "MS", "VS", "SYN-R", "SYN-S", "NCL"})
"""v3 ObservationInterpretation codes of susceptibility tests."""
_PART = re.compile(r"[^\W\d_]*\d+|[^\W\d_]+")
_MEASURES = frozenset({"mg/L", "ug/mL", "mm"})
_ORGANISM = re.compile(r"菌|鉴定|病原|\borg|bacteri|isolate|fung|yeast", re.I)
"""Names of results that say which organism grew."""
_BESIDE = re.compile(r"计数|涂片|染色|count|smear|stain", re.I)
"""Names of what is said beside the organism."""
_VERDICT = re.compile(
    r"(SDD|NS|MS|VS|SYN-[SR]|NCL|[SIR]|敏感|中介|耐药|susceptible|sensitive|intermediate|resistant)(?=\s*[(（/,，;；<>=≤≥\d]|$)",
    re.I,
)
"""A verdict, alone or before its concentration or diameter: ``R (>=16)``."""


@dataclass(frozen=True, slots=True)
class Made:
    """The results of one order: its numbers (OBR-3/2, ORC-3/2, the filler's before the placer's), and each OBX with its Observation."""

    numbers: tuple[str, ...]
    results: tuple[tuple[Record, dict[str, Any]], ...]


def link(order: Order, results: list[tuple[Record, dict[str, Any]]], x: Context) -> None:
    """Adds ``hasMember`` to the organisms the results belong to, in this order or in one before it."""
    if any("valueString" in observation or _coded(observation) for _, observation in results):
        _by_place(results, x)
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
        (made, record, observation)
        for made in x.made
        if not orders or not made.numbers or orders.intersection(made.numbers)
        for record, observation in made.results
        if (not codes or codes & {plain(record.get(3)[0], 1), plain(record.get(3)[0], 4)})
        and (not sub_id or record.first(4).strip() == sub_id)
    ]
    said = plain(element, 3)
    clear = len(found) < 2
    if not clear:
        # OBR-26.3: the parent result in words. It tells organisms of one code apart, and names none by itself.
        found = [one for one in found if said and said in _answer(one[2])]
    code = bare(element, 1, 1) or bare(element, 1, 4)
    if len(found) == 1:
        made, record, organism = found[0]
        code = code or ("" if sub_id else plain(record.get(3)[0], 1))
        parent = parent or next(iter(made.numbers), "")
        _add(organism, [observation for _, observation in results])
    elif not clear or not parent or not (codes or sub_id):
        words = "The parent result (OBR-26) is not in this message, or cannot be told; the results stand alone."
        x.issue("no-parent-result", "information", words, where=f"{obr.where}-26")
        return
    x.fields_read(obr).add(26)
    if parent and (code or sub_id):
        # Also beside an organism of this message: a later correction of it alone then keeps its members.
        name = f"{parent}|{code}|{sub_id}" + ("" if clear else f"|{said}")
        reference = parent_reference(name, said)
        for _, observation in results:
            observation.setdefault("derivedFrom", []).append(reference)


def _answer(observation: dict[str, Any]) -> set[str]:
    """What a result says, in words."""
    concept = observation.get("valueCodeableConcept", {})
    displays = {coding["display"] for coding in concept.get("coding", ()) if "display" in coding}
    return {observation.get("valueString", ""), concept.get("text", ""), *displays}


def parent_reference(name: str, display: str) -> dict[str, Any]:
    """An organism by name: ``<number of its order>|<OBX-3.1>|<OBX-4>``, one of the last two may be empty; ``|<OBX-5>`` where these fit
    several."""
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
    found = [f"{n}|{c}|{s}" for n in numbers for c in codes for s in sub_ids if c or s]
    return frozenset([*found, *(f"{name}|{said}" for name in found for said in _answer(observation) if said)])


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


def _by_place(results: list[tuple[Record, dict[str, Any]]], x: Context) -> None:
    """Susceptibilities of one order -> members of its organisms, told apart by sub-id, else by their place below the organism.

    An organism is a coded answer; older senders write its name. Sub-ids are compared part by part (``1.2.1`` belongs to ``1.2`` before
    ``1.1``); where they do not decide, the organism printed above does, but only when each organism has its own results below it.
    """
    paths = [_path(record) for record, _ in results]
    tested = {i for i, (_, observation) in enumerate(results) if _susceptibility(observation)}
    if not tested:
        return
    tested |= {i for i, (_, observation) in enumerate(results) if paths[i] and _concentration(observation)}
    named = [
        (i, (_coded(observation), _names_organism(record)))
        for i, (record, observation) in enumerate(results)
        if i not in tested
        and observation["status"] != "entered-in-error"
        and (_coded(observation) or "valueString" in observation)
    ]
    for i in sorted(tested):
        ranked = [(*likely, _common(paths[i], paths[j]), j) for j, likely in named]
        fitting = [r for r in ranked if (r[2] if paths[i] and paths[r[3]] else r[1])]
        best = [r[3] for r in fitting if r[:3] == max(f[:3] for f in fitting)]
        above = [j for j in best if j < i]
        if len(best) > 1 and not (above and all(tested.intersection(range(*pair)) for pair in pairwise(best))):
            words = "Several organisms fit this susceptibility (OBX-4 does not tell); it stands alone."
            x.issue_once("organism-unclear", "warning", words, where=f"{results[i][0].where}-4")
        elif best:
            _add(results[above[-1] if len(best) > 1 else best[0]][1], [results[i][1]])


def _path(record: Record) -> tuple[str, ...]:
    """OBX-4 as parts: ``1.2``, ``1-2`` and ``1b`` by what separates them; group, sequence and identifier of v2.8 (OG.2 to OG.4)."""
    if not record.get(4):
        return ()
    grouped = tuple(p for n in (2, 3, 4) if (p := record.first(4, n).strip()))
    return grouped or tuple(_PART.findall(record.first(4)))


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Number of first parts that are equal."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _names_organism(record: Record) -> bool:
    element = record.get(3)[0]
    said = " ".join(plain(element, n) for n in (1, 2, 4, 5))
    return _ORGANISM.search(said) is not None and _BESIDE.search(said) is None


def _concentration(observation: dict[str, Any]) -> bool:
    """A minimal inhibitory concentration or the diameter of a zone, by its unit."""
    return observation.get("valueQuantity", {}).get("code") in _MEASURES


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
    return _VERDICT.match(said.strip()) is not None


def _add(organism: dict[str, Any], members: list[dict[str, Any]]) -> None:
    held = organism.setdefault("hasMember", [])
    for member in members:
        reference = {"reference": f"Observation/{member['id']}"}
        if member is not organism and reference not in held:
            held.append(reference)
