"""Known faults of what requirements.lock pins, and of the embedded PostgreSQL.

Asks osv.dev; where that cannot be reached, reads deploy/advisories.json, a list made by hand that knows only what was published when
it was made, and says so. Exit code 0: nothing beyond what deploy/advisories.json accepts with a reason. 1: something is. 2: no list.

Usage: python deploy/audit_dependencies.py [--offline]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).parent))
from lock_file import LOCK, Pinned, normalised, read
from sbom import postgres_version

OFFLINE = Path(__file__).with_name("advisories.json")
_ASK = "https://api.osv.dev/v1/querybatch"


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A published fault that a pinned version has."""

    package: str
    version: str
    advisory: str
    fixed: str
    accepted: str


def offline(pinned: Sequence[Pinned], listed: Mapping[str, Any]) -> list[Finding]:
    """Findings of the list. An entry: package, ids, fixed (the first version without the fault), optionally introduced."""
    accepted = listed["accepted"]
    versions = {p.name: p.version for p in pinned}
    found = []
    for entry in listed["advisories"]:
        name = normalised(entry["package"])
        version = versions.get(name)
        if version is None or not Version(entry.get("introduced", "0")) <= Version(version) < Version(entry["fixed"]):
            continue
        ids = " ".join(entry["ids"])
        found.append(Finding(name, version, ids, entry["fixed"], accepted.get(entry["ids"][0], "")))
    return sorted(found)


def online(pinned: Sequence[Pinned], listed: Mapping[str, Any]) -> list[Finding]:
    """Findings of osv.dev (https://google.github.io/osv.dev/post-v1-querybatch/); of PostgreSQL those of the list, which osv.dev does
    not know by this name. Raises httpx.HTTPError."""
    ours = [p for p in pinned if p.name != "postgresql"]
    queries = [{"package": {"name": p.name, "ecosystem": "PyPI"}, "version": p.version} for p in ours]
    answer = httpx.post(_ASK, json={"queries": queries}, timeout=20).raise_for_status().json()
    found = [
        Finding(p.name, p.version, v["id"], "", listed["accepted"].get(v["id"], ""))
        for p, result in zip(ours, answer["results"], strict=True)
        for v in result.get("vulns", [])
    ]
    return sorted(found + offline([p for p in pinned if p.name == "postgresql"], listed))


def main(arguments: Sequence[str]) -> int:
    """Prints what was found and where it was looked up; gives the exit code."""
    pinned = [*read(LOCK.read_text(encoding="utf-8")), Pinned("postgresql", postgres_version(), (), ())]
    try:
        listed = json.loads(OFFLINE.read_text(encoding="utf-8"))
    except OSError as fault:
        sys.stdout.write(f"{OFFLINE} cannot be read: {fault.strerror}\n")
        return 2
    source = f"deploy/advisories.json of {listed['made']}: it knows nothing published later"
    if "--offline" in arguments:
        findings = offline(pinned, listed)
    else:
        try:
            findings = online(pinned, listed)
            source = "osv.dev, now"
        except httpx.HTTPError as fault:
            sys.stdout.write(f"osv.dev cannot be reached ({type(fault).__name__}).\n")
            findings = offline(pinned, listed)
    for f in findings:
        remedy = f", fixed in {f.fixed}" if f.fixed else ""
        state = f" - accepted: {f.accepted}" if f.accepted else ""
        sys.stdout.write(f"{f.package} {f.version}: {f.advisory}{remedy}{state}\n")
    left = [f for f in findings if not f.accepted]
    sys.stdout.write(
        f"{len(pinned)} packages, {len(findings)} findings, {len(left)} not accepted. Looked up in {source}.\n"
    )
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
