"""Organisms and susceptibilities that come in different messages, joined when either of them is stored, in whatever order they come.

An order of susceptibilities names its organism by the number of the parent order and the code and sub-id of the parent result
(mappings.microbiology); the susceptibilities carry that name in ``derivedFrom``. The organism they name gets them as ``hasMember``, as
it does when both stand in one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from conformance.capability import RESOURCE_TYPES
from fhir_server.search import params
from fhir_server.store import joining, rows
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from fhir_server.store.joining import Home, Resource
from fhir_server.store.statement import Key
from fhir_server.store.versions import DIAGNOSTIC_REPORT, OBSERVATION, Batch, stored_resource
from mappings import microbiology

_REQUEST: Final = RESOURCE_TYPES["ServiceRequest"]
_RESULTS: Final = frozenset({OBSERVATION})


@dataclass(slots=True)
class _Patient:
    """The results of one patient that may belong together: parts name an organism; organisms, with the names they answer to."""

    origin: Origin
    parts: dict[Key, Resource] = field(default_factory=dict)
    organisms: dict[Key, tuple[Resource, frozenset[str]]] = field(default_factory=dict)


def join(cursor: rows.Cursor, codec: Codec, batch: Batch) -> None:
    """Adds the references to what the batch writes, and versions of organisms that are stored. The locks of the patients of the batch
    are held; one question to the server when results may be organisms, none for numbers."""
    patients = _touched(cursor, codec, batch)
    if not patients:
        return
    _add_organisms(cursor, codec, batch, patients)
    _add_parts(cursor, codec, batch, patients)
    changed: dict[Key, tuple[Resource, Origin]] = {}
    for patient in patients.values():
        for key, resource in _joined(patient):
            changed[key] = resource, patient.origin
    if changed:
        joining.write(cursor, batch, changed, _RESULTS)


def _touched(cursor: rows.Cursor, codec: Codec, batch: Batch) -> dict[Home, _Patient]:
    out: dict[Home, _Patient] = {}
    found: list[tuple[Key, Home, Resource, Key]] = []
    for key, version in joining.current(batch, _RESULTS):
        after, resource = batch.after[key], version.statement.resource
        if not after.patient or version.withdrawn is not None:
            continue
        home = (key[0], after.patient)
        if microbiology.parent_name(resource):
            out.setdefault(home, _Patient(version.statement.origin)).parts[key] = resource
        elif after.parent and microbiology.stands_out(resource):
            out.setdefault(home, _Patient(version.statement.origin))
            found.append((key, home, resource, (key[0], DIAGNOSTIC_REPORT, after.parent)))
    missing = {report for *_, report in found if report not in batch.named}
    stored = {key: stored_resource(codec, body) for key, body in rows.bodies(cursor, missing).items()}
    for key, home, resource, report in found:
        names = microbiology.names(resource, _numbers(batch.named.get(report) or stored.get(report)))
        out[home].organisms[key] = resource, names
    return out


def _numbers(report: Mapping[str, Any] | None) -> list[str]:
    return [i["value"] for i in (report or {}).get("identifier") or () if i.get("value")]


def _add_organisms(cursor: rows.Cursor, codec: Codec, batch: Batch, patients: Mapping[Home, _Patient]) -> None:
    """The stored organisms that results of the batch name."""
    asking = {home: p for home, p in patients.items() if p.parts}
    if not asking:
        return
    wanted = {microbiology.parent_name(r).partition("|")[0] for p in asking.values() for r in p.parts.values()}
    tokens = _tokens("DiagnosticReport", ({"identifier": [{"value": number}]} for number in wanted))
    reports = {
        (key[0], key[2]): (about, stored_resource(codec, body))
        for key, about, body in rows.of_patients(cursor, asking, [DIAGNOSTIC_REPORT], tokens)
    }
    written = {key for key, _ in joining.current(batch, _RESULTS)}
    family = {k: s for k, s in rows.family(cursor, reports).items() if k[1] == OBSERVATION and k not in written}
    for key, body in rows.bodies(cursor, family).items():
        state, resource = family[key], stored_resource(codec, body)
        about, report = reports[key[0], state.parent or ""]
        if state.withdrawn is None and microbiology.may_be_organism(resource):
            names = microbiology.names(resource, _numbers(report))
            asking[key[0], about].organisms.setdefault(key, (resource, names))


def _add_parts(cursor: rows.Cursor, codec: Codec, batch: Batch, patients: Mapping[Home, _Patient]) -> None:
    """The stored results that name an organism of the batch. Their orders are asked for first: a patient has few of them."""
    naming = {home: p for home, p in patients.items() if p.organisms}
    numbers = {n.partition("|")[0] for p in naming.values() for _, names in p.organisms.values() for n in names}
    children = _tokens("ServiceRequest", ({"basedOn": [{"identifier": {"value": number}}]} for number in numbers))
    homes = {(key[0], about) for key, about, _ in rows.of_patients(cursor, naming, [_REQUEST], children)}
    named = {n for home in homes for _, names in naming[home].organisms.values() for n in names}
    written = {key for key, _ in joining.current(batch, _RESULTS)}
    tokens = _tokens("Observation", ({"derivedFrom": [microbiology.parent_reference(n, "")]} for n in named))
    for key, about, body in rows.of_patients(cursor, homes, [OBSERVATION], tokens):
        if key not in written:
            naming[key[0], about].parts.setdefault(key, stored_resource(codec, body))


def _tokens(kind: str, elements: Iterable[dict[str, Any]]) -> list[int]:
    return sorted({t for e in elements for t in params.extract({"resourceType": kind, **e}).tokens})


def _joined(patient: _Patient) -> Iterator[tuple[Key, Resource]]:
    """The organisms that lack a member, with it. A name that fits two organisms joins nothing."""
    members: dict[Key, list[dict[str, str]]] = {}
    for key, part in patient.parts.items():
        name = microbiology.parent_name(part)
        found = [organism for organism, (_, names) in patient.organisms.items() if name in names]
        if len(found) == 1:
            members.setdefault(found[0], []).append({"reference": f"Observation/{key[2]}"})
    for key, wanted in members.items():
        resource = patient.organisms[key][0]
        held = list(resource.get("hasMember") or ())
        lacking = sorted((r for r in wanted if r not in held), key=lambda r: r["reference"])
        if lacking:
            yield key, {**resource, "hasMember": held + lacking}
