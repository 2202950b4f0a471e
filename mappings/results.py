"""OBX -> Observation: the rows that need more than one field (guide: OBX[Observation]; segment map OBX-Observation.yaml).

Functions named in the map read the current record and fill the Observation; they tell whether they read their field. What depends on
profile and source text alone is kept (Memo), because a laboratory sends the same codes, units and ranges all day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from conformance import systems
from mappings import values
from mappings.coded import codings, concept, not_loinc
from mappings.codes import LocalTest
from mappings.context import Context
from mappings.datatypes import plain
from mappings.order_state import Noted
from mappings.registry import call
from mappings.source import NULL, Element, Record, part, text
from mappings.units import Unit

SOURCE_UNIT = f"{systems.BASE}/StructureDefinition/source-unit"
"""Observation: the unit as sent, where the value is not a Quantity and cannot hold it."""
_ALTERNATE = "http://hl7.org/fhir/StructureDefinition/alternate-codes"
NO_CODE = "The result has no code and no name (OBX-3); it cannot be told what was measured."
_LOINC_NAMES = frozenset({"LN", "LOINC", "LNC"})
_LETTERS = re.compile(r"[A-Za-z\u3400-\u9fff]{2}")
_FLAG_DIGITS = frozenset("0123")

_ABSENT_BY_STATUS = {"X": "not-performed", "N": "not-asked"}


def data_absent(code: str) -> dict[str, Any]:
    """dataAbsentReason of the R4 code system."""
    return {"coding": [{"system": systems.DATA_ABSENT, "code": code}]}


# --- code ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CodeAnswer:
    """What a test code as sent means for a profile on a day; ``concept`` is shared between resources."""

    concept: dict[str, Any]
    code: str
    name: str
    mark: str
    test: LocalTest | None
    conflict: bool
    bad_loinc: tuple[str, ...]


def _code_answer(element: Element, name_elsewhere: str, day: str, x: Context) -> CodeAnswer:
    """Codings [local, item, LOINC, others as sent] and the text as sent."""
    system = plain(element, 3)
    code, name = plain(element, 1), plain(element, 2)
    bad: list[str] = []
    first = (code, name, system)
    if system.upper() in _LOINC_NAMES and plain(element, 4) and plain(element, 6).upper() not in _LOINC_NAMES:
        # LOINC first, the laboratory's own code second: the own code is the key of the facility's table.
        code, name, system = plain(element, 4), plain(element, 5) or name, plain(element, 6)
    found = x.profile.find_test(code, name or name_elsewhere, system, day)
    if found.mapping is None and not found.conflict and first[0] != code:
        found = replace(found, mapping=x.profile.find_test(*first, day).mapping)
    sent = codings(element, x, "tests", bad)
    local_system = systems.local_codes(x.facility.id, "tests")
    shown = found.name if name or name_elsewhere else ""
    out: list[dict[str, Any]] = []
    if code:
        mine = next((c for c in sent if c["code"] == code), None)
        if mine is None or mine["system"] == systems.LOINC:
            mine = {"system": local_system, "code": code}
        own = mine["system"].startswith(systems.local_codes(x.facility.id, ""))
        local = {"system": local_system if own else mine["system"], "code": code}
        out.append({**local, "display": shown} if shown else local)
    test = found.mapping
    if test is not None:
        out.append({"system": systems.ITEMS, "code": test.item, "display": test.display})
        if test.loinc:
            out.append({"system": systems.LOINC, "code": test.loinc})
    known = {(c["system"], c["code"]) for c in out}
    for coding in sent:
        if (coding["system"], coding["code"]) not in known and not (
            coding["code"] == code and coding["system"] != systems.LOINC
        ):
            out.append(coding)
    if first[2].upper() in _LOINC_NAMES:
        # A valid LOINC code sent first stays first (guide: CWE[CodeableConcept]).
        out.sort(key=lambda coding: coding["system"] != systems.LOINC or coding["code"] != first[0])
    body: dict[str, Any] = {"coding": out} if out else {}
    text = plain(element, 9) or name or name_elsewhere or code or plain(element, 5) or plain(element, 4)
    if text:
        body["text"] = text
    return CodeAnswer(body, code, found.name, found.mark, test, found.conflict, tuple(bad))


@call("result_code")
def result_code(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-3, with the name of OBX-4 where an analyser puts it there."""
    elements = record.get(3)
    element = elements[0]
    elsewhere = ""
    if len(element) < 2 or not plain(element, 2):
        sub = record.first(4)
        if _LETTERS.search(sub):
            elsewhere = sub
    order = x.order
    period = x.profile.tests.period(order.day)
    answer = x.memo.get(("obx3", element, elsewhere, period), lambda: _code_answer(element, elsewhere, order.day, x))
    out["code"] = answer.concept or {**data_absent("unknown"), "text": "unknown"}
    ranges = record.get(7)
    range_text = values.joined(ranges[0]) if ranges else ""
    order.noted = Noted(answer.code or answer.name, answer.name, answer.test, unit_of(record, x), range_text)
    if not answer.concept:
        x.issue("no-result-code", "warning", NO_CODE)
        return False
    if answer.mark:
        out.setdefault("extension", []).append({"url": systems.MARK, "valueString": answer.mark})
    if answer.test is None and f"urn:oid:{plain(element, 3)}" not in systems.NO_TESTS:
        if answer.conflict:
            x.issue_once(
                "code-name-conflict",
                "warning",
                "Code and name belong to different items; it is not mapped.",
                answer.code,
            )
        else:
            words = "The test has no row in the facility's code table; it is stored with the local code alone."
            x.issue_once("unmapped-code", "information", words, answer.code or answer.name)
        x.unmapped("code", answer.code, answer.name)
    for bad in answer.bad_loinc:
        not_loinc(bad, x)
    if len(elements) > 1:
        for number, extra in enumerate(elements[1:], 1):
            x.leftover(extra, tuple(range(1, len(extra) + 1)), number)
    if len(element) > 9:
        x.leftover(element, tuple(range(14, len(element) + 1)), 0)
    return True


@call("sub_id")
def sub_id(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-4 (ST, OG in 2.8.2) -> the sub-id extension (guide: OG[Extension-Subidentifier])."""
    element = record.get(4)[0]
    names = ("original-sub-identifier", "group", "sequence", "identifier")
    parts = [{"url": name, "valueString": v} for n, name in enumerate(names, 1) if (v := plain(element, n))]
    if not parts:
        return False
    out.setdefault("extension", []).append({"url": systems.SUB_ID, "extension": parts})
    return True


# --- value -----------------------------------------------------------------------------------------------------------------


def unit_of(record: Record, x: Context) -> Unit | None:
    """OBX-6 -> Unit; an unescaped ``10^9/L`` that fell into components is put together again."""
    elements = record.get(6)
    if not elements:
        return None
    element = elements[0]
    found: list[Unit | None] = x.memo.get(("obx6", element), lambda: [_unit(element, x)])
    return found[0]


def _unit(element: Element, x: Context) -> Unit | None:
    units = x.profile.units
    if len(element) > 1:
        whole = values.joined(element)
        if part(element, 1).strip().lstrip("xX*×").isdigit() and (found := units.lookup(whole)).ucum:
            return Unit(whole, found.ucum)
        for code, text, system in ((1, 2, 3), (4, 5, 6)):
            unit = units.coded(part(element, code), part(element, text), plain(element, system))
            if unit is not None and (unit.ucum or code == 4 or len(element) < 4):
                return unit
        return units.coded(part(element, 1), part(element, 2), plain(element, 3))
    written = plain(element, 1)
    return units.lookup(written) if written else None


@call("result_value")
def result_value(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-5 by OBX-2, with OBX-6 and OBX-7 (mappings.values). Attachments (ED, RP) are left to the documents."""
    kind = record.first(2)
    if kind in values.LEFT_TO_CALLER:
        return True
    noted = x.order.noted
    test = noted.test if noted is not None else None
    typed = values.typed(
        kind,
        record.get(5) if kind not in _DATES or not x.facility.date_formats else _as_hl7(record.get(5), x),
        noted.unit if noted is not None else None,
        zone=x.zone,
        concept=lambda element: concept(element, x, "answers"),
        expected_unit=test.unit if test is not None else "",
        range_text=noted.range_text if noted is not None else "",
        where=f"{record.where}-5",
    )
    value = typed.value
    if "extension" in value:
        value = dict(value)
        out["extension"] = [*out.get("extension", ()), *value.pop("extension")]
    out.update(value)
    if typed.components:
        out["component"] = [{"code": out["code"], **part} for part in typed.components]
    if typed.issues:
        x.conversion.issues.extend(typed.issues)
    return True


_DATES = frozenset({"DT", "TS", "DTM"})


def _as_hl7(elements: tuple[Element, ...], x: Context) -> tuple[Element, ...]:
    return tuple((x.hl7_time(text(e[0])), *e[1:]) for e in elements)


@call("result_unit")
def result_unit(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-6 is part of the value; here the worklist of unknown units."""
    unit = unit_of(record, x)
    if unit is None:
        return False
    if unit.ucum is None:
        words = "The unit is not in the unit table; the text is kept and no UCUM code is set."
        x.issue_once("unknown-unit", "information", words, unit.text)
        noted = x.order.noted
        x.unmapped("unit", noted.code if noted else "", noted.name if noted else "", unit.text)
    element = record.get(6)[0]
    if len(element) > 9:
        x.leftover(element, tuple(range(10, len(element) + 1)), 0)
    return True


@call("result_range")
def result_range(record: Record, x: Context, out: dict[str, Any]) -> bool:
    """OBX-7 -> referenceRange: the text always, low and high when sure."""
    elements = record.get(7)
    unit = unit_of(record, x)
    text = "~".join(values.joined(e) for e in elements)
    if not text or text == NULL:
        return False
    # Only spaces or an escaped "" is no range; an empty list would not be valid JSON in FHIR.
    if ranges := x.memo.get(("obx7", text, unit), lambda: values.reference_range(text, unit)):
        out["referenceRange"] = ranges
    return bool(ranges)


def finish_value(record: Record, x: Context, out: dict[str, Any]) -> None:
    """The unit as sent beside a value that cannot hold it; why there is no value (invariant obs-6)."""
    if "valueQuantity" in out:
        return
    noted = x.order.noted
    if (
        noted is not None
        and noted.unit is not None
        and not ("valueRatio" in out or "valueRange" in out or "component" in out)
    ):
        out["extension"] = [*out.get("extension", ()), {"url": SOURCE_UNIT, "valueString": noted.unit.text}]
    for key in out:
        if key.startswith("value") or key in ("component", "dataAbsentReason"):
            return
    said = record.first(11).strip().upper()
    if said in _ABSENT_BY_STATUS:
        out["dataAbsentReason"] = data_absent(_ABSENT_BY_STATUS[said])
    elif out["status"] != "registered" and "derivedFrom" not in out:
        out["dataAbsentReason"] = data_absent("unknown")


def missing_status(record: Record, x: Context, out: dict[str, Any]) -> None:
    """OBX-11 was absent: the profile may say what that means; else the status is unknown, and an Issue."""
    own = x.facility.observation_status.get("")
    if own is not None:
        out["status"] = own
        return
    words = "The result has no status (OBX-11); it is stored as unknown and never recognized."
    x.issue_once("no-result-status", "warning", words, where=f"{record.where}-11")
