"""Bad input as a sender sees it: ``tongjian convert`` and MLLP name segment, field and value (issue list of docs/issues.md)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fhir_server.convert_file import NOTHING, WITH_ISSUES, convert_file
from mappings.profile import Profile, load_profiles

NOW = "2024-06-02T08:00:00+08:00"
MSH = "MSH|^~\\&|LIS|H1|TJ|TJ|20240601100000||{kind}|{control}|P|2.5.1"
PID = "PID|1||B1^^^HIS^PI||白^云||19900307|M"
OBR = "OBR|1||BF1|K^钾^L|||{at}|||||||||||||||20240601093000|||F"
OBX = "OBX|1|NM|{code}||4.1|mmol/L|||||F"


@pytest.fixture(scope="module")
def generic() -> Profile:
    return load_profiles()["generic"]


def _message(*lines: str, kind: str = "ORU^R01", control: str = "B0001") -> bytes:
    return "\r".join((MSH.format(kind=kind, control=control), *lines, "")).encode()


def _told(raw: bytes, profile: Profile, key: str) -> tuple[dict[str, Any], int]:
    outcome = convert_file(raw, profile, at=NOW)
    issues = [i for i in json.loads(outcome.notes)["issues"] if i["key"] == key]
    assert issues, json.loads(outcome.notes)["issues"]
    return issues[0], outcome.exit_code


_REPORT = (PID, OBR.format(at="20240601083000"), OBX.format(code="K^钾^L"))
_CASES: dict[str, tuple[bytes, str, str, str | None]] = {
    "unknown trigger": (_message(PID, kind="ORU^Q99"), "unknown-trigger", "MSH[1]-9", "ORU^Q99"),
    "unknown message": (_message(PID, kind="QQQ^Q99"), "unknown-trigger", "MSH[1]-9", "QQQ^Q99"),
    "missing control id": (_message(*_REPORT, control=""), "no-control-id", "MSH[1]-10", None),
    "OBX without OBR": (_message(PID, OBX.format(code="K^钾^L")), "obx-without-obr", "OBX[1]-3", "K"),
    "two patients": (
        _message(*_REPORT, PID.replace("B1", "B2"), *_REPORT[1:]),
        "two-patients",
        "PID[2]-3",
        "B2",
    ),
    "future date": (
        _message(PID, OBR.format(at="20250601083000"), OBX.format(code="K^钾^L")),
        "future-date",
        "OBR[1]-7",
        "20250601083000",
    ),
    "future result": (
        _message(PID, OBR.format(at="20240601083000"), OBX.format(code="K^钾^L") + "|||20240701080000"),
        "future-date",
        "OBX[1]-14",
        "20240701080000",
    ),
    "future analysis": (
        _message(PID, OBR.format(at="20240601083000"), OBX.format(code="K^钾^L") + "||||||||20240701080000"),
        "future-date",
        "OBX[1]-19",
        "20240701080000",
    ),
    "13 digits in the start of an order": (
        _message(PID, "ORC|NW|P1", "OBR|1|P1||K^钾^L" + "|" * 23 + "^^^2024060108300", kind="ORM^O01"),
        "bad-date",
        "OBR[1]-27",
        "2024060108300",
    ),
    "future birth": (
        _message(PID.replace("19900307", "20300307"), kind="ADT^A08"),
        "future-date",
        "PID[1]-7",
        "20300307",
    ),
    "13 digits": (_message(PID, OBR.format(at="2024060108300")), "bad-date", "OBR[1]-7", "2024060108300"),
    "13 digits in OBX-14": (
        _message(PID, OBR.format(at="20240601083000"), OBX.format(code="K^钾^L") + "|||2024060108300"),
        "bad-date",
        "OBX[1]-14",
        "2024060108300",
    ),
    "another's resident ID": (
        _message("PID|1||B1^^^HIS^PI~11010119900307475X^^^^NI||白^云||19910307|M", kind="ADT^A08"),
        "birth-date-conflict",
        "PID[1]-7",
        "19910307",
    ),
    "another's resident ID in PID-19": (
        _message("PID|1||B1^^^HIS^PI||白^云||19910307|M|||||||||||11010119900307475X", kind="ADT^A08"),
        "birth-date-conflict",
        "PID[1]-7",
        "19910307",
    ),
}


@pytest.mark.parametrize("name", _CASES)
def test_what_holds_a_message_names_segment_field_and_value(name: str, generic: Profile) -> None:
    raw, key, where, value = _CASES[name]
    issue, code = _told(raw, generic, key)
    assert (issue["where"], issue.get("value") or None, issue["severity"]) == (where, value, "error")
    assert code in (WITH_ISSUES, NOTHING)


def test_private_codes_labelled_ln_stay_local_and_are_named(generic: Profile) -> None:
    raw = _message(*_REPORT[:2], OBX.format(code="1037^检查所见^LN"))
    issue, code = _told(raw, generic, "not-loinc")
    assert (issue["where"], issue["value"], code) == ("OBX[1]-3", "1037", WITH_ISSUES)
    bundle = json.loads(convert_file(raw, generic, at=NOW).bundle)
    codings = [
        c
        for e in bundle["entry"]
        if e["resource"]["resourceType"] == "Observation"
        for c in e["resource"]["code"]["coding"]
    ]
    assert [c["code"] for c in codings] == ["1037"] and "loinc" not in codings[0]["system"]


def test_bytes_of_another_character_set_than_declared_are_told_with_it(generic: Profile) -> None:
    declared = _message(*_REPORT).replace(b"|2.5.1", b"|2.5.1||||||ASCII")
    issue, _ = _told(declared, generic, "charset-mismatch")
    assert (issue["where"], issue["value"], issue["severity"]) == ("MSH[1]-18", "ASCII", "error")
    broken = declared.replace("白".encode(), b"\xff\xfe\xff\x80\xff")
    issue, code = _told(broken, generic, "charset-unknown")
    assert (issue["where"], issue["value"], code) == ("MSH[1]-18", "ASCII", NOTHING)


def test_a_batch_that_is_short_of_messages_is_told(generic: Profile) -> None:
    issue, _ = _told(b"BHS|^~\\&|LIS\r" + _message(*_REPORT) + b"BTS|2\r", generic, "batch-count")
    assert issue["where"] == "BTS[1]-1"


def test_an_obx_5_of_20_megabytes_is_named_and_not_copied_into_the_notes(generic: Profile) -> None:
    large = "A" * (20 * 1024 * 1024)
    raw = _message(*_REPORT[:2], f"OBX|1|ED|PDF^报告^L||^application^pdf^Base64^{large}||||||F")
    issue, code = _told(raw, generic, "too-long")
    assert (issue["where"], issue["severity"], code) == ("OBX[1]-5", "error", WITH_ISSUES)
    assert len(issue["value"]) <= 40
