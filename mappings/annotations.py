"""NTE and PRT/ROL: what comments on the segment before it, and who took part in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mappings import ids, maps
from mappings.context import Context
from mappings.source import Record

NOTE = "http://hl7.org/fhir/StructureDefinition/note"
"""Standard extension for resources that have no ``note`` of their own in R4."""
REPORT_NOTE = "http://hl7.org/fhir/5.0/StructureDefinition/extension-DiagnosticReport.note"


def annotation(record: Record, x: Context) -> dict[str, Any] | None:
    """NTE -> Annotation; None when it says nothing."""
    out: dict[str, Any] = {}
    maps.segment("NTE-Annotation").apply(record, x, out)
    return out if "text" in out else None


def add_notes(records: Sequence[Record], x: Context, out: dict[str, Any], extension: str) -> None:
    """NTE -> ``note`` of the resource, or an extension of that URL where R4 has no such element."""
    for record in records:
        found = annotation(record, x)
        if found is None:
            continue
        if extension:
            out.setdefault("extension", []).append({"url": extension, "valueAnnotation": found})
        else:
            out.setdefault("note", []).append(found)


@dataclass(frozen=True, slots=True)
class Participation:
    """Who took part: reference to a PractitionerRole, Practitioner or Organization; the roles; a device instead of a person."""

    reference: dict[str, Any] | None
    codes: list[dict[str, Any]]
    device: dict[str, Any] | None = None


def participation(record: Record, x: Context, *, individual: bool = False) -> Participation | None:
    """PRT or ROL -> PractitionerRole (guide: PRT[PractitionerRole], ROL[...]); None when it names nobody.

    ``individual``: the place takes no Organization, so one without a person stands as the role somebody has there.
    """
    out: dict[str, Any] = {}
    maps.segment(f"{record.name}-PractitionerRole").apply(record, x, out)
    x.check_period(out)
    device = out.pop("device", None)
    person, employer = out.get("practitioner"), out.get("organization")
    codes = out.get("code", [])
    if person is None and employer is None:
        return Participation(None, codes, device) if device else None
    if person is None and not (individual and employer and "reference" in employer):
        return Participation(employer, codes, device)
    if person is not None and ("reference" not in person or set(out) <= {"practitioner"}):
        return Participation(person, codes, device)
    words = [c.get("code") or c.get("display", "") for concept in codes for c in concept.get("coding", ())]
    key = [(person or {}).get("reference", ""), (employer or {}).get("reference", ""), *words]
    logical = ids.directory_id(x.facility.id, "PractitionerRole", *key)
    reference = x.mention({"resourceType": "PractitionerRole", "id": logical, **out})
    named = person or employer or {}
    shown = {"display": named["display"]} if "display" in named else {}
    return Participation({**reference, **shown}, codes, device)
