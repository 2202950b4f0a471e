"""Profiles: cardinality, fixed values, bindings, slices and invariants beyond R4, and the profiles of ours on what the converters make.

Expectations are written from http://hl7.org/fhir/R4/profiling.html and http://hl7.org/fhir/R4/elementdefinition.html.
"""

# ruff: noqa: E501 -- a table of cases, one a line
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adapters.convert import convert, recognise
from conformance import systems
from conformance.profiles import build, shipped
from conformance.profiles.checker import Checker
from conformance.validator import check_fully
from mappings.profile import load_profiles
from tests.mappings.test_golden import HERE, MESSAGES

URL = "http://example.org/sd/p"
OURS = {p["type"]: p["url"] for p in shipped.profiles()}


def profile(*elements: dict[str, Any], type: str = "Observation", **more: Any) -> dict[str, Any]:
    made = [{"path": ".".join(p.partition(":")[0] for p in e["id"].split(".")), **e} for e in elements]
    return {"url": URL, "type": type, "differential": {"element": made}, **more}


def found(
    resource: dict[str, Any], definition: dict[str, Any], codes: Callable[..., Any] = lambda _: None
) -> list[str]:
    checker = Checker({URL: definition}.get, codes, lambda _: False)
    return [f"{i.severity} {i.where}" for i in checker.check(resource, URL)]


def result(**more: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "status": "final", "code": {"coding": CODINGS}, **more}


CODINGS = [{"system": "s1", "code": "a"}, {"system": "s2", "code": "b"}]
BY_SYSTEM = {"discriminator": [{"type": "value", "path": "system"}]}
SLICE = {"id": "Observation.code.coding:one.system", "min": 1, "fixedUri": "s1"}
CASES: list[tuple[str, list[dict[str, Any]], dict[str, Any], list[str]]] = [
    ("min", [{"id": "Observation.issued", "min": 1}], {}, ["error Observation.issued"]),
    ("max 0", [{"id": "Observation.note", "max": "0"}], {"note": [{"text": "x"}]}, ["error Observation.note"]),
    ("max 0 met", [{"id": "Observation.note", "max": "0"}], {}, []),
    ("min of a part only where the whole is", [{"id": "Observation.subject.reference", "min": 1}], {}, []),
    ("min of a part", [{"id": "Observation.subject.reference", "min": 1}], {"subject": {"display": "x"}}, ["error Observation.subject.reference"]),
    ("fixed", [{"id": "Observation.status", "fixedCode": "amended"}], {}, ["error Observation.status"]),
    ("fixed asks for all of it", [{"id": "Observation.subject", "fixedReference": {"display": "x"}}], {"subject": {"display": "x", "reference": "Patient/1"}}, ["error Observation.subject"]),
    ("pattern asks for part of it", [{"id": "Observation.subject", "patternReference": {"display": "x"}}], {"subject": {"display": "x", "reference": "Patient/1"}}, []),
    ("pattern of a list", [{"id": "Observation.code", "patternCodeableConcept": {"coding": [{"system": "s2"}]}}], {}, []),
    ("pattern of a list not met", [{"id": "Observation.code", "patternCodeableConcept": {"coding": [{"system": "s3"}]}}], {}, ["error Observation.code"]),
    ("type of a choice", [{"id": "Observation.value[x]", "type": [{"code": "Quantity"}]}], {"valueString": "x"}, ["error Observation.valueString"]),
    ("type of a choice met", [{"id": "Observation.value[x]", "type": [{"code": "string"}]}], {"valueString": "x"}, []),
    ("target", [{"id": "Observation.subject", "type": [{"code": "Reference", "targetProfile": ["http://hl7.org/fhir/StructureDefinition/Group"]}]}], {"subject": {"reference": "Patient/1"}}, ["error Observation.subject"]),
    ("binding", [{"id": "Observation.status", "binding": {"strength": "required", "valueSet": "vs"}}], {}, ["error Observation.status"]),
    ("binding of a concept", [{"id": "Observation.code", "binding": {"strength": "required", "valueSet": "vs"}}], {}, []),
    ("binding not required", [{"id": "Observation.status", "binding": {"strength": "preferred", "valueSet": "vs"}}], {}, []),
    ("binding to the unknown", [{"id": "Observation.status", "binding": {"strength": "required", "valueSet": "other"}}], {}, ["information Observation.status"]),
    ("slice met", [{"id": "Observation.code.coding", "slicing": {**BY_SYSTEM, "rules": "open"}}, {"id": "Observation.code.coding:one", "min": 1, "max": "1"}, SLICE], {}, []),
    ("slice missing", [{"id": "Observation.code.coding", "slicing": {**BY_SYSTEM, "rules": "open"}}, {"id": "Observation.code.coding:one", "min": 1}, {**SLICE, "fixedUri": "s9"}], {}, ["error Observation.code.coding"]),
    ("slices closed", [{"id": "Observation.code.coding", "slicing": {**BY_SYSTEM, "rules": "closed"}}, {"id": "Observation.code.coding:one"}, SLICE], {}, ["error Observation.code.coding[1]"]),
    ("rule of a slice", [{"id": "Observation.code.coding", "slicing": {**BY_SYSTEM, "rules": "open"}}, {"id": "Observation.code.coding:one"}, SLICE, {"id": "Observation.code.coding:one.display", "min": 1}], {}, ["error Observation.code.coding[0].display"]),
    ("slice by type", [{"id": "Observation.value[x]", "slicing": {"discriminator": [{"type": "type", "path": "$this"}], "rules": "closed"}}, {"id": "Observation.value[x]:q", "type": [{"code": "Quantity"}]}], {"valueString": "x"}, ["error Observation.valueString"]),
    ("a choice is sliced by type unsaid", [{"id": "Observation.value[x]:valueQuantity", "min": 1, "type": [{"code": "Quantity"}]}], {"valueString": "x"}, ["error Observation.value"]),
    ("an element of one type of a choice", [{"id": "Observation.value[x]:valueQuantity", "type": [{"code": "Quantity"}]}, {"id": "Observation.value[x]:valueQuantity.code", "min": 1}], {"valueQuantity": {"value": 1}}, ["error Observation.valueQuantity.code"]),
    ("an element of another type of a choice", [{"id": "Observation.value[x]:valueQuantity", "type": [{"code": "Quantity"}]}, {"id": "Observation.value[x]:valueQuantity.code", "min": 1}], {"valueString": "x"}, []),
    ("slice by existence", [{"id": "Observation.note", "slicing": {"discriminator": [{"type": "exists", "path": "time"}], "rules": "open"}}, {"id": "Observation.note:timed", "max": "0"}, {"id": "Observation.note:timed.time", "min": 1}], {"note": [{"text": "a", "time": "2024"}, {"text": "b"}]}, ["error Observation.note"]),
    ("extension by url", [{"id": "Observation.extension:x", "min": 1}, {"id": "Observation.extension:x.url", "fixedUri": "u"}], {"extension": [{"url": "v", "valueCode": "c"}]}, ["error Observation.extension"]),
    ("invariant", [{"id": "Observation", "constraint": [{"key": "k", "severity": "error", "human": "h", "expression": "issued.exists()"}]}], {}, ["error Observation"]),
    ("invariant met", [{"id": "Observation", "constraint": [{"key": "k", "severity": "error", "human": "h", "expression": "code.coding.count() = 2"}]}], {}, []),
    ("warning", [{"id": "Observation.code", "constraint": [{"key": "k", "severity": "warning", "human": "h", "expression": "text.exists()"}]}], {}, ["warning Observation.code"]),
    ("invariant nobody can evaluate", [{"id": "Observation", "constraint": [{"key": "k", "severity": "error", "human": "h", "expression": "conformsTo('x')"}]}], {}, ["information Observation"]),
    ("regular expressions of strangers", [{"id": "Observation.status", "constraint": [{"key": "k", "severity": "error", "human": "h", "expression": "matches('(a+)+$')"}]}], {}, ["information Observation.status"]),
]  # fmt: skip


@pytest.mark.parametrize(("elements", "more", "wanted"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_profile_asks_for_what_its_differential_says(
    elements: list[dict[str, Any]], more: dict[str, Any], wanted: list[str]
) -> None:
    codes = {"vs": frozenset({("s1", "a")})}
    assert found(result(**more), profile(*elements), codes.get) == wanted


def test_a_profile_builds_on_another_and_an_unknown_one_is_told() -> None:
    base = profile({"id": "Observation.issued", "min": 1}, url="b") | {"url": "b"}
    top = profile({"id": "Observation.note", "min": 1}, baseDefinition="b")
    checker = Checker({URL: top, "b": base}.get, lambda _: None, lambda _: False)
    assert [i.where for i in checker.check(result(), URL)] == ["Observation.note", "Observation.issued"]
    assert [i.key for i in checker.check(result(), "http://nobody")] == ["unknown-profile"]
    assert [i.key for i in checker.check({"resourceType": "Patient"}, URL)] == ["wrong-type"]


def test_our_profiles_are_sound_and_as_they_are_built() -> None:
    for made in build.MADE:
        assert shipped.definition(made["url"]) == made
        assert check_fully(made) == []


@pytest.mark.parametrize("name", sorted(n for n in MESSAGES if MESSAGES[n].suffix == ".hl7")[:25])
def test_what_the_converters_make_meets_our_profiles(name: str) -> None:
    profiles = {**load_profiles(), **load_profiles(HERE / "profiles")}
    checker = Checker(shipped.definition, shipped.codes, lambda _: True)
    raw = MESSAGES[name].read_bytes()
    for one in profiles.values():
        made = convert(raw, one, recognise(raw, one))
        for entry in made.entries:
            if url := OURS.get(entry.resource["resourceType"]):
                told = [i for i in checker.check(entry.resource, url) if i.severity == "error"]
                assert (name, told) == (name, [])
        break


def test_our_profiles_refuse_what_cannot_be_shared() -> None:
    checker = Checker(shipped.definition, shipped.codes, lambda _: True)
    told = {i.where: i.text for i in checker.check(result(status="unknown"), OURS["Observation"])}
    assert set(told) == {"Observation", "Observation.status", "Observation.subject"}
    number = {"system": systems.RESIDENT_ID, "value": "11010"}
    person = {"resourceType": "Patient", "identifier": [number, number | {"value": "11010519491231002X"}]}
    places = [f"{i.severity} {i.where}" for i in checker.check(person, OURS["Patient"])]
    assert places == ["warning Patient.identifier[0].value", "error Patient.identifier"]
