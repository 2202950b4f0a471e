"""Makes the OperationDefinitions from the unpacked npm package hl7.fhir.r4.examples@4.0.1: ``python build.py PACKAGE_FOLDER``.

Each is the official one, with the parameters this server reads and the levels it is served at; ``base`` names the official.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
URL = "http://tongjian.org/fhir/OperationDefinition/"

TYPE, INSTANCE = "type", "instance"
TERMS = "code system coding codeableConcept display result message"
# official id -> levels, parameters kept
SERVED = {
    "Patient-everything": ((INSTANCE,), "start end _since _type _count return"),
    "Encounter-everything": ((INSTANCE,), "_since _type _count return"),
    "Observation-lastn": ((TYPE,), "max return"),
    "Patient-match": ((TYPE,), "resource onlyCertainMatches count return"),
    "Resource-validate": ((TYPE, INSTANCE), "resource mode profile return"),
    "Resource-meta": ((INSTANCE,), "return"),
    "Resource-meta-add": ((INSTANCE,), "meta return"),
    "Resource-meta-delete": ((INSTANCE,), "meta return"),
    "CodeSystem-lookup": ((TYPE,), "code system version coding property name display designation"),
    "CodeSystem-validate-code": ((TYPE, INSTANCE), f"url codeSystem version {TERMS}"),
    "ValueSet-validate-code": ((TYPE, INSTANCE), f"url valueSet valueSetVersion {TERMS}"),
    "ValueSet-expand": ((TYPE, INSTANCE), "url valueSet valueSetVersion filter offset count return"),
    "ConceptMap-translate": (
        (TYPE, INSTANCE),
        "url conceptMap conceptMapVersion code system coding codeableConcept targetsystem reverse result message match",
    ),
}


def made(package: Path, name: str) -> dict[str, Any]:
    """One definition."""
    official = json.loads((package / f"OperationDefinition-{name}.json").read_text("utf-8"))
    levels, kept = SERVED[name]
    head = {k: official[k] for k in ("resourceType", "id")}
    return {
        **head,
        "url": URL + name,
        "version": "1",
        "name": official["name"],
        "status": "active",
        "kind": "operation",
        "description": official["description"],
        "code": official["code"],
        "base": official["url"],
        "resource": official["resource"],
        "system": False,
        "type": TYPE in levels,
        "instance": INSTANCE in levels,
        "parameter": [p for p in official["parameter"] if p["name"] in kept.split()],
    }


def main(package: Path) -> None:
    """Writes a file per operation beside this one."""
    for name in SERVED:
        text = json.dumps(made(package, name), ensure_ascii=False, indent=1)
        (HERE / f"{name}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
