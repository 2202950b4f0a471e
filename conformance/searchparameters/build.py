"""Builds r4.json from the unpacked npm package hl7.fhir.r4.examples@4.0.1: ``python build.py PACKAGE_FOLDER``.

Kept: the official SearchParameter definitions of the types we serve, and of every element of those types and of the datatypes its
types, whether it repeats, and the code systems of a required binding.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from conformance.capability import RESOURCE_TYPES  # noqa: E402

BASES = {*RESOURCE_TYPES, "Resource", "DomainResource"}


def _read(package: Path, pattern: str) -> Iterator[dict[str, Any]]:
    for path in sorted(package.glob(pattern)):
        yield json.loads(path.read_text("utf-8"))


def _split(expression: str) -> list[str]:
    """Parts of a FHIRPath union at the top level."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(expression):
        depth += (c == "(") - (c == ")")
        if c == "|" and depth == 0:
            parts.append(expression[start:i].strip())
            start = i + 1
    return [*parts, expression[start:].strip()]


def _parameters(package: Path) -> list[dict[str, Any]]:
    found = []
    for d in _read(package, "SearchParameter-*.json"):
        base = [b for b in d.get("base", []) if b in BASES]
        if not base or d["url"].startswith("http://hl7.org/fhir/SearchParameter/example") or d["code"] == "_id":
            continue
        expression = " | ".join(p for p in _split(d.get("expression", "")) if p.lstrip("(").split(".")[0] in BASES)
        entry = {"url": d["url"], "code": d["code"], "base": base, "type": d["type"], "expression": expression}
        if d.get("target"):
            entry["target"] = [t for t in d["target"] if t in RESOURCE_TYPES or t == "Resource"]
        if d.get("component"):
            entry["component"] = [
                {"definition": c["definition"], "expression": c["expression"]} for c in d["component"]
            ]
        if d.get("multipleAnd") is False:
            entry["multipleAnd"] = False
        found.append(entry)
    return found


def _systems(package: Path) -> dict[str, list[str]]:
    return {
        d["url"]: sorted({i["system"] for i in d.get("compose", {}).get("include", []) if "system" in i})
        for d in _read(package, "ValueSet-*.json")
        if "url" in d
    }


def _elements(package: Path) -> dict[str, list[Any]]:
    """Path -> [types, repeats (0 or 1), systems of a required code binding]; ``#path`` as type for a content reference."""
    systems = _systems(package)
    out: dict[str, list[Any]] = {}
    for d in _read(package, "StructureDefinition-*.json"):
        root = d.get("type")
        if d.get("derivation") == "constraint" or d["kind"] not in ("resource", "complex-type") or d.get("abstract"):
            continue
        if (d["kind"] == "resource" and root not in RESOURCE_TYPES) or d["id"] != root:
            continue
        for e in d["snapshot"]["element"][1:]:
            name = e["path"].rsplit(".", 1)[-1]
            types = [t["code"].removeprefix("http://hl7.org/fhirpath/System.") for t in e.get("type", [])]
            if name in ("extension", "modifierExtension", "contained") or types == ["Narrative"]:
                continue
            if "contentReference" in e:
                types = [e["contentReference"]]
            row: list[Any] = [types, int(e["max"] != "1")]
            binding = e.get("binding", {})
            if types == ["code"] and binding.get("strength") == "required":
                row.append(systems.get(binding["valueSet"].split("|")[0], []))
            out[e["path"]] = row
    return out


def _summaries(package: Path) -> dict[str, dict[str, list[str]]]:
    """Resource type -> JSON names at the top that a summary shows, and those never left out; a choice stands as ``value[x]``."""
    out = {}
    for d in _read(package, "StructureDefinition-*.json"):
        if d["kind"] != "resource" or d["id"] not in RESOURCE_TYPES:
            continue
        top = [e for e in d["snapshot"]["element"] if e["path"].count(".") == 1]
        names = [(e["path"].split(".")[1], e) for e in top]
        out[d["id"]] = {
            "summary": [n for n, e in names if e.get("isSummary")],
            "mandatory": [n for n, e in names if e["min"] > 0],
        }
    return out


def _compartments(package: Path) -> dict[str, dict[str, list[str]]]:
    """Compartment -> resource type -> the reference parameters that place a resource in it."""
    out = {}
    for d in _read(package, "CompartmentDefinition-*.json"):
        if d["id"] != "example":
            rows = {r["code"]: r["param"] for r in d["resource"] if r["code"] in RESOURCE_TYPES and r.get("param")}
            out[d["code"]] = {t: [p for p in codes if p != "{def}"] for t, codes in rows.items()}
    return out


def main(package: Path) -> None:
    """Writes r4.json beside this file, one definition a line."""
    target = HERE / "r4.json"
    lines = [
        '{"source": "npm hl7.fhir.r4.examples@4.0.1 (CC0-1.0), made by build.py",',
        '"parameters": [',
        ",\n".join(json.dumps(p, ensure_ascii=False) for p in _parameters(package)),
        '],\n"elements": {',
        ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(_elements(package).items())),
        '},\n"summaries": {',
        ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(_summaries(package).items())),
        '},\n"compartments": {',
        ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(_compartments(package).items())),
        "}}\n",
    ]
    target.write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
