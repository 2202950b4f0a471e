"""The people of a load: registered as their first visit would do it, from a few visits converted for real. Pure.

What differs from one person to the next stands in known texts (ids, numbers, name, birth date, telephone); everything else is what
conversion makes of a visit of somebody of the same facility, sex and doctor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from adapters.convert import convert, peek
from conformance.fhirjson import dumps, loads
from fhir_server.bench.templates import Filled, Subject
from fhir_server.demo.county import Dialect, Writer
from fhir_server.demo.people import Person
from fhir_server.identity.registry import PatientState
from fhir_server.store.change import Origin
from fhir_server.store.statement import Statement, of_entry
from mappings import ids
from mappings.assemble_patient import patient_id
from mappings.model import Entry
from mappings.profile import Profile

DOCTORS = 7
"""Doctors of a facility in the messages of a visit (``demo.county``)."""


@dataclass(frozen=True, slots=True)
class _Visit:
    """A converted visit with holes. key: the patient key of the person it was made for, by which ids are derived."""

    key: str
    number: str
    entries: tuple[tuple[Entry, Filled], ...]


@dataclass(frozen=True, slots=True)
class Registered:
    """What the store writes of one person's first visit."""

    facility: str
    subject: Subject
    statements: tuple[Statement, ...]
    state: PatientState


class Visits:
    """First visits to the facilities at one time, told of any person."""

    def __init__(self, profiles: Mapping[str, Profile], at: datetime) -> None:
        """at: when they all come, aware."""
        self._profiles = profiles
        self._at = at.replace(microsecond=0)
        self._known: dict[tuple[str, str, bool, int], _Visit] = {}

    def of(self, person: Person, dialect: Dialect, origin: Origin) -> Registered:
        """The first visit of ``person``, whose number is new in the database."""
        like = (dialect.facility, person.sex, bool(person.resident_id), person.number % DOCTORS)
        visit = self._known.get(like)
        if visit is None:
            visit = self._known[like] = self._converted(person, dialect)
        number = Writer(dialect).record_number(person)
        shard, patient = patient_id(dialect.facility, visit.key.replace(visit.number, number))
        encounter = ids.logical_id(shard, dialect.facility, "Encounter", patient, number)
        values = [t.encode() for t in _texts(person, number, patient, encounter)]
        statements, stated = [], {}
        for entry, text in visit.entries:
            resource: dict[str, Any] = loads(text.fill(values))
            stated[resource["resourceType"]] = resource
            statements.append(of_entry(replace(entry, resource=resource, patient=patient), origin))
        state = PatientState(shard, patient, dialect.facility, stated["Patient"])
        return Registered(dialect.facility, Subject(shard, patient, encounter), tuple(statements), state)

    def _converted(self, person: Person, dialect: Dialect) -> _Visit:
        profile = self._profiles[dialect.facility]
        writer = Writer(dialect)
        raw = writer.visit(person, self._at.astimezone(profile.zone))
        entries = [e for e in convert(raw, profile).entries if e.resource["resourceType"] in ("Patient", "Encounter")]
        first = {e.resource["resourceType"]: e.resource["id"] for e in entries}
        (key,) = peek(raw, profile).patient_keys
        number = writer.record_number(person)
        slots = _texts(person, number, first["Patient"], first["Encounter"])
        assert patient_id(dialect.facility, key)[1] == first["Patient"]
        return _Visit(key, number, tuple((e, Filled.cut(dumps(e.resource), slots)) for e in entries))


def _texts(person: Person, number: str, patient: str, encounter: str) -> list[str]:
    """What differs between people of one kind. A person without an identity number leaves no hole for it."""
    known = [patient, encounter, number, person.name, person.birth.isoformat(), person.phone]
    return [*known, person.resident_id] if person.resident_id else known
