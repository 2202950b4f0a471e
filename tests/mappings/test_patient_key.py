"""Which identifier names the facility's patient."""

from __future__ import annotations

import pytest

from adapters.hl7v2.reader import read
from mappings.facility import Facility, Identifiers, Organization
from mappings.patient_key import patient_key

_FACILITY = Facility(
    id="f", organization=Organization(name="测试"), identifiers=Identifiers(authorities={"HIS": "http://x.test/his"})
)


def _key(segment: str) -> str:
    message = read(f"MSH|^~\\&|A|B|C|D|20240101||ADT^A08|1|P|2.5\r{segment}".encode())
    return patient_key(message.records[1], _FACILITY)


@pytest.mark.parametrize(
    ("segment", "key"),
    [
        ("PID|1||P1^^^HIS^PI", "http://x.test/his|P1"),
        ("PID|1||P1^^^OTHER^PI", "OTHER|P1"),
        ("PID|1||P1^^^&PATID", "PATID|P1"),
        ("PID|1||P1", "|P1"),
        ("PID|1||^^^^51~P1^^^^PI", "|P1"),
        ("PID|1||M1^^^^MR~P1^^^^PI", "|P1"),
        ("PID|1||11010519491231002X^^^^NI~P1^^^^PT", "|P1"),
        ("PID|1||V1^^^^VN~X1^^^^EN", "|X1"),
        ("PID|1||  P1  ^^^^PI", "|P1"),
        ('PID|1||""|A1', "|A1"),
        ("PID|1|E1|P1", "|P1"),
        ("PID|1|E1", "|E1"),
        ("PID|1|||A1", "|A1"),
        ("PID|1||11010519491231002X^^^^NI", "|11010519491231002X"),
        ("PID|1" + "|" * 17 + "AC1", "account|AC1"),
        ("PID|1" + "|" * 17 + "AC1|11010519491231002X", "|11010519491231002X"),
        ("PID|1||||无名", ""),
        ("MRG|P1^^^HIS^PI", "http://x.test/his|P1"),
        ("MRG||||P1", "|P1"),
        ("MRG|", ""),
    ],
)
def test_the_best_identifier_is_the_key(segment: str, key: str) -> None:
    assert _key(segment) == key


def test_pid_and_mrg_of_one_patient_give_the_same_key() -> None:
    assert _key("PID|1||P1^^^HIS^PI~M1^^^^MR") == _key("MRG|M1^^^^MR~P1^^^HIS^PI")
