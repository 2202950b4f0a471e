"""Results in any number: a message converted for real, told again about other people, numbers and times. Pure.

What differs from one message to the next stands in known texts (ids, numbers, times); everything else is what conversion and store
make of the first one. The rows are those ``repository.apply`` writes: the same functions make them, except that those of Observations
are written out as bytes once and have their holes filled.
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
from fhir_server.bench import packed
from fhir_server.search import params
from fhir_server.search.definitions import parameters
from fhir_server.search.leaves import hash_of
from fhir_server.store import kinds, results, rows, statement
from fhir_server.store.body import Codec
from fhir_server.store.change import Origin
from fhir_server.store.statement import Statement
from mappings import ids, sensitive
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
    """An Observation with holes.

    tail    its JSON without resourceType, id and meta
    tokens  of the row, the hashes that change with a slot left out: (place, seed, text with ``{}``, slot)
    times   start, end, issued, effective and report time as the row of the first one has them
    """

    slot: int
    entry: Entry
    tail: Filled
    indexed: params.Indexed
    tokens: tuple[tuple[int, int, str, int], ...]
    times: tuple[datetime | None, ...]
    flat: results.Result
    kind: kinds.Kind


@dataclass(frozen=True, slots=True)
class Other:
    """Any other resource with holes, whole."""

    slot: int
    entry: Entry
    text: Filled


@dataclass(frozen=True, slots=True)
class Clone:
    """One message told again: statements of everything but Observations; of those packed rows of ``resource``, and search_value."""

    others: tuple[Statement, ...]
    observations: tuple[bytes, ...]
    values: tuple[tuple[Any, ...], ...]


_HOLES = (
    *("shard", "id", "updated", "patient", "parent", "start_at", "end_at", "issued_at", "effective_at", "reported_at"),
    *("tokens", "recency", "content", "inbox", "mapping", '"order"', "body"),
)
"""Columns of ``resource`` that differ between the Observations told from one template, in the order of ``_observations``."""


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
        self._rows: list[Filled] = []
        self._tokens: list[tuple[int, ...]] = []
        reports = {e.resource["id"]: e.resource for e in told if e.resource["resourceType"] == "DiagnosticReport"}
        specimens = {e.resource["id"]: e.resource for e in told if e.resource["resourceType"] == "Specimen"}
        changing = self._changing()
        for place, entry in enumerate(self._own, _FIXED):
            if entry.resource["resourceType"] == "Observation":
                self.results.append(self._result(place, entry, reports, specimens, changing))
            else:
                self.others.append(Other(place, entry, Filled.cut(dumps(entry.resource), self.slots)))

    def _result(
        self,
        place: int,
        entry: Entry,
        reports: Mapping[str, dict[str, Any]],
        specimens: Mapping[str, dict[str, Any]],
        changing: Mapping[int, tuple[int, str, int]],
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
        tokens = tuple((n, *changing[t]) for n, t in enumerate(indexed.tokens, 1) if t in changing)
        effective = flat.effective if indexed.start is None else None
        reported = flat.issued if indexed.issued is None else None
        times = (indexed.start, indexed.end, indexed.issued, effective, reported)
        return Result(place, entry, tail, indexed, tokens, times, flat, kind)

    def _changing(self) -> dict[int, tuple[int, str, int]]:
        """Hashes that change with a slot, as (seed, text with ``{}``, slot): references to what is in the message, and meta.source."""
        own = {s: f"{e.resource['resourceType']}/{{}}" for s, e in enumerate(self._own, _FIXED)}
        texts = {1: "Encounter/{}", 3: self.source.replace(self.slots[3], "{}"), **own}
        seeds = {path.seed for parameter in parameters("Observation").values() for path, _ in parameter.paths}
        return {
            hash_of(seed, text.format(self.slots[slot])): (seed, text, slot)
            for seed in seeds
            for slot, text in texts.items()
        }

    def prepare(self, numbers: Mapping[kinds.Kind, int], codec: Codec) -> None:
        """Has to come before ``fill``. numbers: those of the kinds of all ``results`` in the database."""
        self._codec = codec
        holes = {name: n for n, name in enumerate(_HOLES)}
        for r in self.results:
            key, times = (0, RESOURCE_TYPES["Observation"], ""), (None, None, None)
            row: tuple[Any, ...] = (*key, 1, 1, None, False, None, None, *times, b"", b"", b"", None, None, None, False)
            classes = (
                sensitive.table().bits(r.entry.resource, item=r.kind.result.item if r.kind.result else None) or None
            )
            row += (None, r.flat.number, r.flat.value_text, None, None, classes, codec.current, b"")
            self._rows.append(Filled(packed.parts(row, holes)))
            self._tokens.append((numbers[r.kind], *r.indexed.tokens))

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
        recencies: dict[Recency, Recency] = {}

        def recency_of(old: Recency) -> Recency:
            recency = recencies.get(old)
            if recency is None:
                told = moments.get(old.reported_at, old.reported_at)
                recency = replace(old, reported_at=told, sent_at=moments.get(old.sent_at, old.sent_at))
                recencies[old] = recency
            return recency

        others = []
        for o in self.others:
            business, parent = o.entry.business.replace(self.slots[2], serial), new.get(o.entry.parent, o.entry.parent)
            resource = loads(o.text.fill(values))
            entry = Entry(resource, recency_of(o.entry.recency), subject.patient, business, parent)
            others.append(statement.of_entry(entry, origin))
        return Clone(tuple(others), *self._observations(texts, values, new, recency_of, subject, origin, at))

    def _observations(
        self,
        texts: Sequence[str],
        values: Sequence[bytes],
        new: Mapping[str, str],
        recency_of: Callable[[Recency], Recency],
        subject: Subject,
        origin: Origin,
        at: datetime,
    ) -> tuple[tuple[bytes, ...], tuple[tuple[Any, ...], ...]]:
        """Packed rows of ``resource``, and rows of search_value. What is the same for the whole message is made once."""
        shift = at - self._times[0]
        updated = statement.to_millisecond(origin.recorded)
        source = self.source.replace(self.slots[3], texts[3])
        meta = dumps({"versionId": "1", "lastUpdated": statement.instant(updated), "source": source})
        fields = [packed.NULL] * len(_HOLES)
        fields[0], fields[2] = packed.data(subject.shard.to_bytes(2, "big")), packed.instant(updated)
        fields[3] = packed.text(subject.patient)
        fields[13], fields[14] = (packed.integer(n, size) for n, size in ((origin.inbox, 8), (origin.mapping, 4)))
        hashes: dict[tuple[int, str, int], int] = {}
        made: list[bytes] = []
        found: list[tuple[Any, ...]] = []
        for r, row, template in zip(self.results, self._rows, self._tokens, strict=True):
            logical = texts[r.slot]
            tail = r.tail.fill(values)
            tokens = list(template)
            for place, seed, text, slot in r.tokens:
                known = hashes.get((seed, text, slot))
                if known is None:
                    known = hashes[seed, text, slot] = hash_of(seed, text.format(texts[slot]))
                tokens[place] = known
            order = r.flat.order and new[r.flat.order]
            body = b'{"resourceType":"Observation","id":"%b","meta":%b,%b' % (values[r.slot], meta, tail[1:])
            fields[1], fields[4] = packed.data(values[r.slot]), packed.text(new.get(r.entry.parent) or None)
            fields[5:10] = [packed.instant(t, shift) for t in r.times]
            fields[10] = packed.data(rows.packed(tokens))
            fields[11] = packed.data(_times(recency_of(r.entry.recency)))
            fields[12] = packed.data(statement.digest({}, tail))
            fields[15] = packed.text(order)
            fields[16] = packed.data(self._codec.compress(body, (logical, subject.patient, order))[1])
            made.append(row.fill(fields))
            key = (subject.shard, RESOURCE_TYPES["Observation"], logical)
            found.extend((*key, n, *value) for n, value in enumerate(r.indexed.values))
        return tuple(made), tuple(found)


@lru_cache(maxsize=1024)
def _times(stated: Recency) -> bytes:
    """The part of a statement's recency that does not come from its content."""
    nobody = Entry({"resourceType": "Organization", "id": "0" * ids.ID_LENGTH}, stated, None)
    origin = Origin("", None, None, datetime(2000, 1, 1, tzinfo=UTC))
    return statement.of_entry(nobody, origin).recency[: statement.RECENCY_LENGTH]
