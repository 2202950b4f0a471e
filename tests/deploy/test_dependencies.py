"""The bill of materials and the audit of dependencies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy import audit_dependencies, lock_file, sbom

ROOT = Path(__file__).parents[2]
LOCKED = lock_file.read((ROOT / "requirements.lock").read_text(encoding="utf-8"))
LIST = json.loads((ROOT / "deploy" / "advisories.json").read_text(encoding="utf-8"))


def pinned(name: str, version: str) -> lock_file.Pinned:
    """A package for a test."""
    return lock_file.Pinned(name, version, (), ())


def test_the_lock_file_is_read_whole() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert len(LOCKED) == text.count("==")
    assert sum(len(p.hashes) for p in LOCKED) == text.count("--hash=sha256:")
    by_name = {p.name: p for p in LOCKED}
    assert "tongjian" in by_name["fastapi"].via
    assert "fastapi" in by_name["starlette"].via


def test_the_bill_names_every_package_with_version_licence_and_hashes() -> None:
    bill = sbom.bill(LOCKED, sbom.postgres_version())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    components = {c["name"]: c for c in bill["components"]}
    assert components.keys() == {p.name for p in LOCKED} | {"postgresql"}
    for package in LOCKED:
        found = components[package.name]
        assert found["version"] == package.version
        assert [h["content"] for h in found["hashes"]] == list(package.hashes)
        assert found["licenses"]
    assert components["fastapi"]["scope"] == components["starlette"]["scope"] == "required"
    assert components["mypy"]["scope"] == "excluded"
    references = {c["bom-ref"] for c in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert {d["ref"] for d in bill["dependencies"]} == references
    assert {on for d in bill["dependencies"] for on in d["dependsOn"]} <= references


def test_the_same_lock_file_gives_the_same_bill() -> None:
    assert sbom.bill(LOCKED, "18.4") == sbom.bill(LOCKED, "18.4")
    assert sbom.bill(LOCKED, "18.4")["serialNumber"] != sbom.bill(LOCKED, "18.6")["serialNumber"]


def test_nothing_we_pin_has_a_fault_of_the_list_that_nobody_accepted() -> None:
    ours = [*LOCKED, pinned("postgresql", sbom.postgres_version())]
    assert [f for f in audit_dependencies.offline(ours, LIST) if not f.accepted] == []


@pytest.mark.parametrize(
    ("version", "found"), [("0.38.6", False), ("0.39.0", True), ("0.49.0", True), ("0.49.1", False), ("1.10.0", False)]
)
def test_the_list_knows_which_versions_have_a_fault(version: str, found: bool) -> None:
    # CVE-2025-62727: Starlette 0.39.0 to 0.49.0, fixed in 0.49.1 (advisory GHSA-7f5h-v6xp-fcq8).
    findings = audit_dependencies.offline([pinned("starlette", version)], LIST)
    assert any("CVE-2025-62727" in f.advisory for f in findings) == found


def test_a_finding_that_is_accepted_says_why() -> None:
    listed: dict[str, Any] = {
        "made": "2026-01-01",
        "accepted": {"CVE-1": "not reachable"},
        "advisories": [
            {"package": "Some.Package", "ids": ["CVE-1"], "fixed": "2.0"},
            {"package": "some-package", "ids": ["CVE-2"], "fixed": "1.5"},
        ],
    }
    findings = audit_dependencies.offline([pinned("some-package", "1.4")], listed)
    assert [(f.advisory, f.fixed, f.accepted) for f in findings] == [
        ("CVE-1", "2.0", "not reachable"),
        ("CVE-2", "1.5", ""),
    ]


def test_without_a_network_the_list_is_used_and_its_date_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object, **__: object) -> httpx.Response:
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(httpx, "post", away)
    assert audit_dependencies.main([]) == 0
    said = capsys.readouterr().out
    assert "osv.dev cannot be reached" in said
    assert f"advisories.json of {LIST['made']}: it knows nothing published later" in said


def test_with_a_network_a_new_fault_is_told_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(url: str, *, json: dict[str, Any], timeout: float) -> httpx.Response:
        del timeout
        results = [
            {"vulns": [{"id": "GHSA-new"}]} if q["package"]["name"] == "fastapi" else {} for q in json["queries"]
        ]
        return httpx.Response(200, json={"results": results}, request=httpx.Request("POST", url))

    monkeypatch.setattr(httpx, "post", answer)
    assert audit_dependencies.main([]) == 1
    said = capsys.readouterr().out
    assert "fastapi" in said
    assert "GHSA-new" in said
    assert "osv.dev, now" in said
