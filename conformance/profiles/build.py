"""Writes the profiles and value sets of ours: ``python -m conformance.profiles.build``. What each asks for stands here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from conformance import systems

_HERE: Final = Path(__file__).parent
_CORE: Final = "http://hl7.org/fhir/StructureDefinition/"
_REFERENCE: Final = "Reference"


def _element(id: str, **more: Any) -> dict[str, Any]:
    path = ".".join(part.partition(":")[0] for part in id.split("."))
    name = id.rpartition(".")[2].partition(":")[2]
    return {"id": id, "path": path, **({"sliceName": name} if name else {}), **more}


def _rule(key: str, human: str, expression: str, severity: str = "error") -> dict[str, str]:
    return {"key": key, "severity": severity, "human": human, "expression": expression}


def _by(path: str) -> dict[str, Any]:
    return {"discriminator": [{"type": "value", "path": path}], "rules": "open"}


def _profile(name: str, title: str, type: str, *elements: dict[str, Any]) -> dict[str, Any]:
    return {
        "resourceType": "StructureDefinition",
        "id": name,
        "url": f"{systems.BASE}/StructureDefinition/{name}",
        "version": "1.0.0",
        "name": "".join(part.capitalize() for part in name.split("-")),
        "title": title,
        "status": "active",
        "fhirVersion": "4.0.1",
        "kind": "resource",
        "abstract": False,
        "type": type,
        "baseDefinition": _CORE + type,
        "derivation": "constraint",
        "differential": {"element": list(elements)},
    }


def _binding(name: str) -> dict[str, str]:
    return {"strength": "required", "valueSet": f"{systems.BASE}/ValueSet/{name}"}


_TO_PATIENT: Final = [{"code": _REFERENCE, "targetProfile": [_CORE + "Patient"]}]

MADE: Final = (
    _profile(
        "shared-result",
        "Result that may be shared 可共享的检验结果",
        "Observation",
        _element(
            "Observation",
            constraint=[
                _rule(
                    "tj-1",
                    "A result has a value, a reason why it has none, or components",
                    "value.exists() or dataAbsentReason.exists() or component.exists() or hasMember.exists()",
                ),
                _rule(
                    "tj-2",
                    "A number has a unit, as code or as text",
                    "value.ofType(Quantity).where(value.exists()).all(unit.exists() or code.exists())",
                    "warning",
                ),
            ],
        ),
        _element("Observation.status", binding=_binding("result-status")),
        _element("Observation.code.coding", slicing=_by("system")),
        _element("Observation.code.coding:item", min=0, max="1"),
        _element("Observation.code.coding:item.system", min=1, fixedUri=systems.ITEMS),
        _element("Observation.code.coding:item.code", min=1),
        _element("Observation.code.coding:loinc", min=0, max="1"),
        _element("Observation.code.coding:loinc.system", min=1, fixedUri=systems.LOINC),
        _element("Observation.subject", min=1, type=_TO_PATIENT),
        _element(
            "Observation.value[x]", slicing={"discriminator": [{"type": "type", "path": "$this"}], "rules": "open"}
        ),
        _element("Observation.value[x]:valueQuantity", min=0, max="1", type=[{"code": "Quantity"}]),
    ),
    _profile(
        "shared-report",
        "Report that may be shared 可共享的检查检验报告",
        "DiagnosticReport",
        _element(
            "DiagnosticReport",
            constraint=[
                _rule(
                    "tj-3",
                    "A final report says when it was issued, or of which time it is",
                    "(status != 'final') or issued.exists() or effective.exists()",
                ),
            ],
        ),
        _element("DiagnosticReport.identifier", min=1),
        _element("DiagnosticReport.subject", min=1, type=_TO_PATIENT),
    ),
    _profile(
        "facility-patient",
        "Patient as a facility registered him 机构登记的患者",
        "Patient",
        _element("Patient.identifier", min=1, slicing=_by("system")),
        _element("Patient.identifier:resident", min=0, max="1"),
        _element("Patient.identifier:resident.system", min=1, fixedUri=systems.RESIDENT_ID),
        _element(
            "Patient.identifier:resident.value",
            min=1,
            constraint=[
                _rule(
                    "tj-4", "A resident number has 18 characters (GB 11643)", "matches('^[0-9]{17}[0-9X]$')", "warning"
                )
            ],
        ),
    ),
)

_STATUS: Final = {
    "resourceType": "ValueSet",
    "id": "result-status",
    "url": f"{systems.BASE}/ValueSet/result-status",
    "version": "1.0.0",
    "name": "ResultStatus",
    "title": "Status of a shared result 结果状态",
    "status": "active",
    "compose": {
        "include": [
            {
                "system": "http://hl7.org/fhir/observation-status",
                "concept": [
                    {"code": c}
                    for c in (
                        "registered",
                        "preliminary",
                        "final",
                        "amended",
                        "corrected",
                        "cancelled",
                        "entered-in-error",
                    )
                ],
            }
        ]
    },
}


def main() -> None:
    """Writes one file each."""
    for made in (*MADE, _STATUS):
        path = _HERE / f"{made['resourceType']}-{made['id']}.json"
        path.write_text(json.dumps(made, ensure_ascii=False, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
