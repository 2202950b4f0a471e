"""Images, their order and their report, joined when any of them is stored, in whatever order they come.

A modality names the order by its accession, placer or filler number; orders and reports carry the same numbers as identifiers. In the
transaction that writes one of the three, ImagingStudy.basedOn becomes a reference to the ServiceRequest, and
DiagnosticReport.imagingStudy one to the study. Only the references are ours: what was stated, and how it is ordered, stay as they
were (as with a withdrawal).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.search import params
from fhir_server.store import joining, rows
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from fhir_server.store.joining import Resource
from fhir_server.store.statement import Key
from fhir_server.store.versions import DIAGNOSTIC_REPORT, Batch, stored_resource

_STUDY: Final = RESOURCE_TYPES["ImagingStudy"]
_REQUEST: Final = RESOURCE_TYPES["ServiceRequest"]
_JOINED: Final = frozenset({_STUDY, _REQUEST, DIAGNOSTIC_REPORT})


@dataclass(slots=True)
class _Patient:
    """What is known of the images of one patient: current resources by key, of the batch and of the store."""

    origin: Origin
    studies: dict[Key, Resource] = field(default_factory=dict)
    requests: dict[Key, Resource] = field(default_factory=dict)
    reports: dict[Key, Resource] = field(default_factory=dict)

    def of(self, rtype: int) -> dict[Key, Resource]:
        return self.studies if rtype == _STUDY else self.requests if rtype == _REQUEST else self.reports


def join(cursor: rows.Cursor, codec: Codec, batch: Batch) -> None:
    """Adds the references to what the batch writes, and versions of what is stored and is now referred to. The locks of the patients
    of the batch are held; one question to the server when none of them has images."""
    patients = _touched(batch)
    if not patients:
        return
    _add_stored(cursor, codec, batch, patients, [_STUDY], None)
    imaged = {home: p for home, p in patients.items() if p.studies}
    if not imaged:
        return
    numbers = {n for p in imaged.values() for s in p.studies.values() for n in _numbers_of_study(s)}
    _add_stored(cursor, codec, batch, imaged, [_REQUEST, DIAGNOSTIC_REPORT], numbers)
    more = {n for p in imaged.values() for r in p.requests.values() for n in _values(r)} - numbers
    if more:
        _add_stored(cursor, codec, batch, imaged, [DIAGNOSTIC_REPORT], more)
    changed: dict[Key, tuple[Resource, Origin]] = {}
    for patient in imaged.values():
        for key, resource in _joined(patient):
            changed[key] = resource, patient.origin
    joining.write(cursor, batch, changed, _JOINED)


def _touched(batch: Batch) -> dict[joining.Home, _Patient]:
    out: dict[joining.Home, _Patient] = {}
    for key, version in joining.current(batch, _JOINED):
        about = batch.after[key].patient
        if about and version.withdrawn is None:
            patient = out.setdefault((key[0], about), _Patient(version.statement.origin))
            patient.of(key[1])[key] = version.statement.resource
    return out


def _add_stored(
    cursor: rows.Cursor,
    codec: Codec,
    batch: Batch,
    patients: Mapping[joining.Home, _Patient],
    rtypes: Sequence[int],
    numbers: Iterable[str] | None,
) -> None:
    """Stored resources of the patients that carry one of the numbers (None: all); what the batch writes goes before."""
    written = {key for key, _ in joining.current(batch, _JOINED)}
    tokens = None if numbers is None else sorted({t for n in numbers for t in _tokens(n)})
    for key, about, stored in rows.of_patients(cursor, patients, rtypes, tokens):
        patient = patients[key[0], about]
        if key not in written:
            patient.of(key[1]).setdefault(key, stored_resource(codec, stored))


def _tokens(number: str) -> tuple[int, ...]:
    """Hashes of a number as identifier, whatever its system, of orders and of reports."""
    kinds = ("ServiceRequest", "DiagnosticReport")
    return tuple(
        t for k in kinds for t in params.extract({"resourceType": k, "identifier": [{"value": number}]}).tokens
    )


def _values(resource: Mapping[str, Any]) -> set[str]:
    return {i["value"] for i in resource.get("identifier") or () if i.get("value")}


def _asked(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The identifiers a study names its order by, each once."""
    out: list[dict[str, Any]] = []
    for reference in study.get("basedOn") or ():
        named = reference.get("identifier")
        if named and named not in out:
            out.append(named)
    return out


def _numbers_of_study(study: Mapping[str, Any]) -> set[str]:
    return {i["value"] for i in _asked(study) if i.get("value")}


def _joined(patient: _Patient) -> Iterator[tuple[Key, Resource]]:
    """The resources that lack a reference, with it."""
    named: dict[str, list[Key]] = {}
    for key, study in patient.studies.items():
        orders: set[str] = set()
        based: list[dict[str, Any]] = []
        for identifier in _asked(study):
            found = sorted(k[2] for k, r in patient.requests.items() if identifier.get("value") in _values(r))
            fresh = [f"ServiceRequest/{i}" for i in found]
            orders.update(fresh)
            known = {"type": "ServiceRequest", "identifier": identifier}
            based += [{"reference": reference, **known} for reference in fresh] or [known]
        if based and based != study.get("basedOn"):
            yield key, {**study, "basedOn": based}
        numbers = _numbers_of_study(study)
        for report, resource in patient.reports.items():
            basis = {r.get("reference") for r in resource.get("basedOn") or ()}
            if numbers & _values(resource) or orders & basis:
                named.setdefault(report[2], []).append(key)
    for key, report_ in patient.reports.items():
        held = list(report_.get("imagingStudy") or ())
        wanted = [{"reference": f"ImagingStudy/{k[2]}"} for k in sorted(named.get(key[2], ()))]
        lacking = [r for r in wanted if r not in held]
        if lacking:
            yield key, {**report_, "imagingStudy": held + lacking}
