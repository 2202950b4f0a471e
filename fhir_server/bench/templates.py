"""Results in any number: a message converted for real, told again about other people, numbers and times. Pure.

What differs from one message to the next stands in known texts (ids, numbers, times); everything else is what conversion and store
make of the first one. The rows are those ``repository.apply`` writes: the same functions make them, except that the JSON of an
Observation and its search values are filled in instead of made anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import dumps, loads
from fhir_server.search import params
from fhir_server.search.definitions import parameters
from fhir_server.search.leaves import hash_of
from fhir_server.store import kinds, results, statement
from fhir_server.store.change import Origin
from fhir_server.store.statement import Statement
from mappings import ids
from mappings.model import Conversion, Entry, Recency
from mappings.times import sortable

LATER = (timedelta(0), timedelta(hours=1), timedelta(hours=3))
"""Ordered, drawn, reported: times of one report, from the first."""
_FIXED = 8
"""Slots before those of the resources: Patient, Encounter, number, control id, digest, three times."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a report is about: shard, logical ids of Patient and Encounter."""

    shard: int
    patient: str
    encounter: str


@dataclass(frozen=True, slots=True)
class Filled:
    """A text with holes: ``parts`` alternate between fixed bytes and the number of a slot."""

    parts: tuple[bytes | int, ...]

    @classmethod
    def cut(cls, text: bytes, slots: Sequence[str]) -> Filled:
        """Cut a text at every place one of ``slots`` stands."""
        found = re.compile(b"(" + b"|".join(re.escape(s.encode()) for s in sorted(slots, key=len, reverse=True)) + b")")
        numbers = {s.encode(): n for n, s in enumerate(slots)}
        return cls(tuple(numbers[p] if n % 2 else p for n, p in enumerate(found.split(text))))

    def fill(self, values: Sequence[bytes]) -> bytes:
        """The text with ``values`` in its slots."""
        return b"".join([p if isinstance(p, bytes) else values[p] for p in self.parts])


@dataclass(frozen=True, slots=True)
class Result:
    """An Observation with holes. tail: its JSON without resourceType, id and meta; tokens: (place, seed, text with ``{}``, slot)."""

    slot: int
    entry: Entry
    tail: Filled
    indexed: params.Indexed
    tokens: tuple[tuple[int, int, str, int], ...]
    flat: results.Result
    kind: kinds.Kind


@dataclass(frozen=True, slots=True)
class Other:
    """Any other resource with holes, whole."""

    slot: int
    entry: Entry
    text: Filled


@dataclass(frozen=True, slots=True)
class Observation:
    """A filled Observation: what the store writes of it."""

    statement: Statement
    indexed: params.Indexed
    flat: results.Result
    kind: kinds.Kind


@dataclass(frozen=True, slots=True)
class Clone:
    """One message told again: statements of everything but Observations, and the Observations."""

    others: tuple[Statement, ...]
    observations: tuple[Observation, ...]


class Template:
    """One converted message, ready to be told again.

    The slots are the logical ids of Patient and Encounter, of every other resource of the message, the report number, the control
    id, the digest of the bytes, and three times.
    """

    def __init__(
        self, conversion: Conversion, number: str, control: str, digest: str, times: Sequence[datetime]
    ) -> None:
        """number, control, digest: as the message names them; times: LATER after its first, with the facility's offset."""
        told = [e for e in conversion.entries if e.patient is not None]
        first = {e.resource["resourceType"]: e.resource["id"] for e in told}
        self._own = [e for e in told if e.resource["resourceType"] not in ("Patient", "Encounter")]
        self._times = tuple(times)
        self.slots: tuple[str, ...] = (
            *(first["Patient"], first["Encounter"], number, control, digest),
            *(t.isoformat(timespec="seconds") for t in times),
            *(e.resource["id"] for e in self._own),
        )
        self.source = next(e.resource["meta"]["source"] for e in self._own)
        self.results: list[Result] = []
        self.others: list[Other] = []
        reports = {e.resource["id"]: e.resource for e in told if e.resource["resourceType"] == "DiagnosticReport"}
        specimens = {e.resource["id"]: e.resource for e in told if e.resource["resourceType"] == "Specimen"}
        for place, entry in enumerate(self._own, _FIXED):
            if entry.resource["resourceType"] == "Observation":
                self.results.append(self._result(place, entry, reports, specimens))
            else:
                self.others.append(Other(place, entry, Filled.cut(dumps(entry.resource), self.slots)))

    def _result(
        self, place: int, entry: Entry, reports: Mapping[str, dict[str, Any]], specimens: Mapping[str, dict[str, Any]]
    ) -> Result:
        resource = entry.resource
        facility = self.source.removeprefix("urn:tongjian:").partition("#")[0]
        specimen = resource.get("specimen", {}).get("reference", "").partition("/")[2]
        flat = results.flatten(
            resource, facility=facility, report=reports.get(entry.parent), specimen=specimens.get(specimen)
        )
        indexed = params.extract(resource)
        tail = Filled.cut(statement.tail_of(resource), self.slots)
        kind = kinds.kind_of(RESOURCE_TYPES["Observation"], indexed, flat.common(facility))
        return Result(place, entry, tail, indexed, tuple(self._tokens(indexed.tokens)), flat, kind)

    def _tokens(self, tokens: tuple[int, ...]) -> list[tuple[int, int, str, int]]:
        """The hashes that change with a slot: references to resources of the message, and meta.source."""
        places = {token: n for n, token in enumerate(tokens)}
        own = {s: f"{e.resource['resourceType']}/{{}}" for s, e in enumerate(self._own, _FIXED)}
        texts = {1: "Encounter/{}", 3: self.source.replace(self.slots[3], "{}"), **own}
        found = []
        for parameter in parameters("Observation").values():
            for path, _ in parameter.paths:
                for slot, text in texts.items():
                    place = places.get(hash_of(path.seed, text.format(self.slots[slot])))
                    if place is not None:
                        found.append((place, path.seed, text, slot))
        return sorted(set(found))

    def fill(self, subject: Subject, serial: str, at: datetime, origin: Origin) -> Clone:
        """Told again about ``subject``: a report numbered by ``serial`` (new in the database), first time ``at`` (aware)."""
        facility = origin.facility
        times = [(at + d).astimezone(self._times[0].tzinfo) for d in LATER]
        own = [
            ids.logical_id(subject.shard, facility, e.resource["resourceType"], serial, str(n))
            for n, e in enumerate(self._own)
        ]
        texts = [
            *(subject.patient, subject.encounter, serial, "C" + serial, hashlib.sha256(serial.encode()).hexdigest()),
            *(t.isoformat(timespec="seconds") for t in times),
            *own,
        ]
        values = [t.encode() for t in texts]
        new = dict(zip(self.slots, texts, strict=True))
        moments = {sortable(a): sortable(b) for a, b in zip(self._times, times, strict=True)}
        instants = {a.astimezone(UTC): b.astimezone(UTC) for a, b in zip(self._times, times, strict=True)}
        recencies: dict[Recency, Recency] = {}
        source = self.source.replace(self.slots[3], texts[3])

        def entry_of(old: Entry, resource: dict[str, Any]) -> Entry:
            recency = recencies.get(old.recency)
            if recency is None:
                told = moments.get(old.recency.reported_at, old.recency.reported_at)
                sent = moments.get(old.recency.sent_at, old.recency.sent_at)
                recency = replace(old.recency, reported_at=told, sent_at=sent)
                recencies[old.recency] = recency
            business = old.business.replace(self.slots[2], serial)
            return Entry(resource, recency, subject.patient, business, new.get(old.parent, old.parent))

        others = tuple(statement.of_entry(entry_of(o.entry, loads(o.text.fill(values))), origin) for o in self.others)
        observations = tuple(
            self._filled(r, entry_of, texts, values, instants, source, subject, origin) for r in self.results
        )
        return Clone(others, observations)

    def _filled(
        self,
        r: Result,
        entry_of: Callable[[Entry, dict[str, Any]], Entry],
        texts: Sequence[str],
        values: Sequence[bytes],
        instants: Mapping[datetime, datetime],
        source: str,
        subject: Subject,
        origin: Origin,
    ) -> Observation:
        tail = r.tail.fill(values)
        logical = texts[r.slot]
        entry = entry_of(r.entry, {"resourceType": "Observation", "id": logical, "meta": {"source": source}})
        content = statement.digest(entry.resource, tail)
        said = Statement(
            key=(subject.shard, RESOURCE_TYPES["Observation"], logical),
            resource_type="Observation",
            patient=subject.patient,
            parent=entry.parent or None,
            business="",
            resource=entry.resource,
            origin=origin,
            recency=_times(entry.recency) + content[: statement.RECENCY_TIE],
            content=content,
            claim=b"",
            tail=tail,
        )
        tokens = list(r.indexed.tokens)
        for place, seed, text, slot in r.tokens:
            tokens[place] = hash_of(seed, text.format(texts[slot]))
        start, end, issued = r.indexed.start, r.indexed.end, r.indexed.issued
        assert start is not None and end is not None and issued is not None
        start = instants[start]
        length = end - r.indexed.start if r.indexed.start else timedelta(0)
        indexed = r.indexed._replace(
            tokens=tuple(tokens),
            start=start,
            end=start + length,
            issued=instants[issued],
            patient=subject.patient,
        )
        order = r.flat.order and texts[self.slots.index(r.flat.order)]
        flat = r.flat._replace(order=order, effective=start, issued=instants[issued])
        return Observation(said, indexed, flat, r.kind)


@lru_cache(maxsize=1024)
def _times(stated: Recency) -> bytes:
    """The part of a statement's recency that does not come from its content."""
    nobody = Entry({"resourceType": "Organization", "id": "0" * ids.ID_LENGTH}, stated, None)
    origin = Origin("", None, None, datetime(2000, 1, 1, tzinfo=UTC))
    return statement.of_entry(nobody, origin).recency[: statement.RECENCY_LENGTH]
