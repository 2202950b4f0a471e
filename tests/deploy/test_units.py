"""systemd units and container file: hardened, and about commands and settings that exist."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fhir_server.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = ["tongjian.service", "tongjian-worker@.service", "tongjian-relay.service"]
HARDENED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectControlGroups": "yes",
    "RestrictSUIDSGID": "yes",
    "RestrictNamespaces": "yes",
    "LockPersonality": "yes",
    "CapabilityBoundingSet": "",
    "SystemCallArchitectures": "native",
    "UMask": "0077",
    "LimitCORE": "0",
}


def unit(name: str) -> configparser.ConfigParser:
    """A unit file."""
    found = configparser.ConfigParser(interpolation=None, strict=False)
    found.optionxform = str
    found.read(DEPLOY / name, encoding="utf-8")
    return found


@pytest.mark.parametrize("name", UNITS)
def test_the_units_are_hardened(name: str) -> None:
    service = unit(name)["Service"]
    assert {key: service.get(key) for key in HARDENED} == HARDENED
    assert service["User"] == "tongjian"
    assert service["Restart"] == "always"


@pytest.mark.parametrize(("name", "command"), [(UNITS[0], "serve"), (UNITS[1], "work"), (UNITS[2], "relay")])
def test_the_units_call_commands_that_exist(name: str, command: str) -> None:
    assert unit(name)["Service"]["ExecStart"].split()[1:] == [command, "--data", "/var/lib/tongjian"]


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault_in_the_units(name: str, tmp_path: Path) -> None:
    # Without systemd (a container) the text alone is checked above.
    analyse = shutil.which("systemd-analyze")
    text = (DEPLOY / name).read_text(encoding="utf-8").replace("/opt/tongjian/.venv/bin/tongjian", "/bin/true")
    (tmp_path / name).write_text(text, encoding="utf-8")
    if analyse is not None:
        done = subprocess.run(
            [analyse, "verify", str(tmp_path / name)], capture_output=True, text=True, timeout=60, check=False
        )
        assert [ln for ln in done.stderr.splitlines() if name.partition(".")[0] in ln] == []


def test_the_container_runs_without_root_and_sets_settings_that_exist() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (\w+)$", text, re.MULTILINE) == ["tongjian"]
    names = {name.lower() for name in re.findall(r"TONGJIAN_(\w+)=", text)}
    assert names <= Settings.model_fields.keys()
    assert "--require-hashes" in text
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    assert [p for line in copied for p in line.split() if not (DEPLOY.parent / p).exists()] == []
