"""AuditEvents following IHE BALP."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from conformance import validator
from fhir_server.audit_balp import to_fhir

AT = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
CHAIN = "20260301T080000-00112233445566778899aabbccddeeff"
STORED: dict[str, Any] = {
    "action": "R",
    "address": "10.0.0.7",
    "facility": "county",
    "interaction": "read",
    "outcome": "0",
    "patients": ["p1"],
    "query": "",
    "resource": "Observation/o1",
    "role": "clinician",
    "subject": "dr-li",
    "types": ["Observation"],
}


def made(**changes: Any) -> list[dict[str, Any]]:
    return to_fhir(CHAIN, 7, AT, json.dumps(STORED | changes))


def profile(event: dict[str, Any]) -> str:
    return str(event["meta"]["profile"][0].rpartition(".")[2]) if "meta" in event else ""


# pattern of https://profiles.ihe.net/ITI/BALP/1.1.4, action, role codes of client and server
PATTERNS = [
    ("read", "R", "PatientRead", "110152", "110153"),
    ("vread", "R", "PatientRead", "110152", "110153"),
    ("create", "C", "PatientCreate", "110153", "110152"),
    ("update", "U", "PatientUpdate", "110153", "110152"),
    ("patch", "U", "PatientUpdate", "110153", "110152"),
    ("delete", "D", "PatientDelete", "110150", "custodian"),
    ("search-type", "E", "PatientQuery", "110153", "110152"),
    ("history-instance", "R", "", "110153", "110152"),
    ("$everything", "E", "", "110153", "110152"),
    ("order-sign", "E", "", "110153", "110152"),
    ("authenticate", "R", "", "110153", "110152"),
]


@pytest.mark.parametrize(("interaction", "action", "name", "client", "server"), PATTERNS)
def test_each_interaction_follows_its_pattern(
    interaction: str, action: str, name: str, client: str, server: str
) -> None:
    (event,) = made(interaction=interaction, action=action)
    assert validator.check_fully(event) == []
    assert profile(event) == name
    assert event["action"] == action
    assert event["agent"][0]["type"]["coding"][0]["code"] == client
    assert event["agent"][1]["type"]["coding"][0]["code"] == server
    assert event["agent"][2]["who"]["identifier"]["value"] == "dr-li"
    assert [a["requestor"] for a in event["agent"]] == [False, False, True]
    assert event["recorded"] == "2026-03-01T08:00:00.000Z"


def test_a_read_without_a_patient_follows_the_plain_pattern() -> None:
    (event,) = made(patients=[], resource="Organization/x")
    assert profile(event) == "Read"
    assert [e["what"]["reference"] for e in event["entity"]] == ["Organization/x"]


def test_a_search_over_several_patients_gives_one_event_for_each() -> None:
    events = made(interaction="search-type", action="E", patients=["p1", "p2", "p3"], resource="", query="code&date")
    assert [e["id"] for e in events] == [f"{CHAIN}.7.1", f"{CHAIN}.7.2", f"{CHAIN}.7.3"]
    assert [e["entity"][1]["what"]["reference"] for e in events] == ["Patient/p1", "Patient/p2", "Patient/p3"]
    assert all(validator.check_fully(e) == [] for e in events)
    assert base64.b64decode(events[0]["entity"][0]["query"]) == b"Observation?code&date"


def test_a_refused_access_claims_no_profile() -> None:
    (event,) = made(outcome="4", subject="", role="", facility="", patients=[], resource="")
    assert validator.check_fully(event) == []
    assert profile(event) == ""
    assert event["outcome"] == "4"
    assert [a["requestor"] for a in event["agent"]] == [True, False]


def test_the_profile_is_not_claimed_when_the_client_address_is_unknown() -> None:
    (event,) = made(address="")
    assert validator.check_fully(event) == []
    assert profile(event) == ""


def test_an_anchor_is_no_event() -> None:
    assert to_fhir(CHAIN, 1, AT, '{"anchor":[]}') == []
