"""mappings.quality_control: which result messages are control runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from mappings.facility import Facility, Organization
from mappings.quality_control import is_quality_control
from mappings.source import Element

FACILITY = Facility(id="h1", organization=Organization(name="x"), quality_control_patients=[r"^QC\d", "质控"])


class Segment:
    def __init__(self, name: str, fields: Mapping[int, str]) -> None:
        self.name = name
        self.where = f"{name}[1]"
        self._fields = fields

    def get(self, field: int) -> tuple[Element, ...]:
        value = self._fields.get(field, "")
        return tuple(tuple(part.split("^")) for part in value.split("~")) if value else ()

    def first(self, field: int, component: int = 1) -> str:
        elements = self.get(field)
        return str(elements[0][component - 1]) if elements and component <= len(elements[0]) else ""

    def filled(self) -> Iterator[int]:
        yield from sorted(self._fields)


def verdict(msh: Mapping[int, str], *others: Segment) -> bool:
    return is_quality_control([Segment("MSH", {9: "ORU^R01", **msh}), *others], FACILITY)


PID = Segment("PID", {3: "P1^^^H1"})


@pytest.mark.parametrize(("kind", "expected"), [("0", False), ("1", True), ("2", True), ("AL", False), ("", False)])
def test_msh16_of_analysers_tells_the_kind_of_result(kind: str, expected: bool) -> None:
    assert verdict({16: kind}, PID) is expected


# HL7 table 0369: P patient, L pool, G group, R replicate are somebody's or nobody's specimen, not a control.
@pytest.mark.parametrize("role", "BCEFOQV")
def test_control_roles_of_the_specimen_tell_it(role: str) -> None:
    assert verdict({}, PID, Segment("SPM", {11: f"{role}^x^HL70369"}))


@pytest.mark.parametrize("role", ["P", "G", "L", "R", "", "QX"])
def test_other_roles_do_not(role: str) -> None:
    assert not verdict({}, PID, Segment("SPM", {11: role}))


def test_one_patient_specimen_among_controls_keeps_the_message_a_patients() -> None:
    assert not verdict({}, PID, Segment("SPM", {11: "Q"}), Segment("SPM", {11: "P"}))


def test_a_result_without_a_patient_segment_is_a_control_run() -> None:
    assert verdict({})
    assert verdict({9: "^^OUL_R22"})
    assert not verdict({9: "ADT^A01"})


@pytest.mark.parametrize("between", ["\\r", "<br>", "; ", "\u2028"])
def test_a_header_that_runs_on_into_its_patient_is_none(between: str) -> None:
    assert not verdict({18: f"{between}PID"})


@pytest.mark.parametrize(("number", "expected"), [("QC1", True), ("XQC1", False), ("质控品", True), ("P1~QC7", True)])
def test_control_patients_of_the_facility_tell_it(number: str, expected: bool) -> None:
    assert verdict({}, Segment("PID", {3: number})) is expected
