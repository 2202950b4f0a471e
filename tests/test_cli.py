"""The command line as a newcomer meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = [
    "demo",
    "serve",
    "work",
    "migrate",
    "send",
    "convert",
    "replay",
    "token",
    "audit",
    "export",
    "status",
    "audit-log",
    "deliveries",
    "check",
    "map",
    "review",
    "measures",
    "watch",
    "poll",
    "relay",
    "user",
    "keys",
    "images",
    "refresh-access",
]

ORU = (
    "MSH|^~\\&|LIS|LAB|||20260301093000+0800||ORU^R01^ORU_R01|C1|P|2.5.1||||||UNICODE UTF-8\r"
    "PID|1||P001^^^LAB^MR||张^三^^^^^L||19800101|M\r"
    "ORC|RE|PL1|F1\r"
    "OBR|1|PL1|F1|24323-8^Comprehensive metabolic panel^LN|||20260301080000+0800|||||||||||||||20260301092000+0800||LAB|F\r"
    "OBX|1|NM|2823-3^Potassium^LN||4.10|mmol/L|3.5-5.3|N|||F|||20260301080000+0800\r"
)


def tongjian(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Runs the command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fhir_server.cli", *arguments], input=stdin, capture_output=True, timeout=60, check=False
    )


def test_help_names_every_command() -> None:
    text = tongjian("--help").stdout.decode()
    assert [c for c in COMMANDS if f" {c} " not in text] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    done = tongjian(command, "--help")
    assert done.returncode == 0
    assert b"Usage: " in done.stdout
    assert b"--help" in done.stdout


def test_convert_prints_a_bundle_and_keeps_the_digits(tmp_path: Path) -> None:
    file = tmp_path / "oru.hl7"
    file.write_bytes(ORU.encode())
    done = tongjian("convert", str(file), "--facility", "generic")
    bundle = json.loads(done.stdout, parse_float=str)
    notes = json.loads(done.stderr)
    assert done.returncode in {0, 1}
    assert bundle["type"] == "transaction"
    observation = next(e["resource"] for e in bundle["entry"] if e["resource"]["resourceType"] == "Observation")
    assert observation["valueQuantity"]["value"] == "4.10"
    assert {"issues", "unread"} <= notes.keys()


def test_convert_reads_standard_input() -> None:
    assert tongjian("convert", "-", stdin=ORU.encode()).stdout.startswith(b"{")


def test_convert_gives_2_and_a_reason_when_nothing_can_be_read() -> None:
    done = tongjian("convert", "-", stdin=b"\x00\x01 noise")
    assert done.returncode == 2
    assert done.stdout == b""
    assert json.loads(done.stderr)["issues"][0]["severity"] in {"error", "fatal"}


def test_convert_gives_2_for_an_unknown_facility_and_names_the_known_ones() -> None:
    done = tongjian("convert", "-", "--facility", "nowhere", stdin=ORU.encode())
    assert done.returncode == 2
    assert b"generic" in done.stderr


def test_a_token_is_printed_and_belongs_to_the_installation(tmp_path: Path) -> None:
    text = (
        tongjian("token", "--data", str(tmp_path), "--role", "clinician", "--scope", "user/*.rs")
        .stdout.decode()
        .strip()
    )
    assert text.count(".") == 2


def test_an_unknown_role_is_refused_with_a_sentence(tmp_path: Path) -> None:
    done = tongjian("token", "--data", str(tmp_path), "--role", "king")
    assert done.returncode == 1
    assert b"king" in done.stderr
    assert b"Traceback" not in done.stderr


def test_convert_gives_1_for_a_code_nobody_has_mapped_and_0_for_a_clean_message() -> None:
    adt = "MSH|^~\\&|HIS|H|||20260301093000+0800||ADT^A04^ADT_A01|C2|P|2.5.1\rEVN|A04|20260301093000+0800\rPID|1||P001^^^H^MR||张^三\r"
    assert tongjian("convert", "-", stdin=adt.encode()).returncode == 0
    local = ORU.replace("2823-3^Potassium^LN", "K^钾^L")
    done = tongjian("convert", "-", stdin=local.encode())
    assert done.returncode == 1
    assert any(u["kind"] == "code" and u["code"] == "K" for u in json.loads(done.stderr)["unmapped"])


def test_convert_puts_several_messages_into_one_bundle_in_their_newest_state() -> None:
    corrected = (
        ORU.replace("|C1|", "|C2|")
        .replace("20260301092000", "20260301100000")
        .replace("4.10", "4.40")
        .replace("|||F|||2", "|||C|||2")
    )
    bundle = json.loads(tongjian("convert", "-", stdin=(ORU + corrected).encode()).stdout, parse_float=str)
    observations = [e["resource"] for e in bundle["entry"] if e["resource"]["resourceType"] == "Observation"]
    assert [o["valueQuantity"]["value"] for o in observations] == ["4.40"]


def test_convert_names_a_file_that_is_not_there() -> None:
    done = tongjian("convert", "no-such-file.hl7")
    assert done.returncode == 2
    assert b"no-such-file.hl7" in done.stderr
