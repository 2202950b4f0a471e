"""``tongjian check``: reads a feed's sample files and fills its score card. No database.

Messages are read one by one, as the server would read them; memory does not grow with their number.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from adapters.contract import Unreadable
from adapters.convert import convert, split
from adapters.hl7v2 import reader
from adapters.hl7v2.batch import shortage
from conformance import hl7v2_standard, systems, validator
from conformance.hl7v2_standard import Kind
from conformance.issue import Issue
from fhir_server.feed_card import Card, File
from fhir_server.feed_tally import ANSWER_KEYS, ANSWERS, CONTENT, CONTROL, ORDER_KEYS, ORDERS, Tally
from fhir_server.ingest.channels import Binding, Channels
from mappings import resident_id
from mappings.facility import Channel
from mappings.model import Conversion
from mappings.profile import Profile
from mappings.source import Record, part
from mappings.trigger import trigger

BREAKING: Final[frozenset[Kind]] = frozenset({"version", "structure", "missing-segment", "missing-field"})
"""Deviations that count against the bar: what the standard demands is not there, or not told."""
_PLACE = re.compile(r"([A-Z0-9]{3}\[\d+\]-\d+)")
_ORDINAL = re.compile(r"\[\d+\]")
_ORDERING = frozenset({"ORM", "OML", "OMI", "OMG"})
_ANSWERING = frozenset({"ORU", "OUL"})
_IDENTIFIED = {"PID": (2, 3, 4, 19), "NK1": (33,), "MRG": (1,)}
_SSN = ("PID", 19)
_RESIDENT_FORM = re.compile(r"\d{17}[\dX]", re.ASCII)


class CannotCheck(Exception):
    """Nothing can be said of the feed; the text says why."""


def paths(given: Iterable[Path]) -> list[Path]:
    """Files as given, and those of folders (and of folders in them) by name; hidden ones are left out. Raises CannotCheck."""
    out: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.is_file()]
            out += [p for p in inside if not any(name.startswith(".") for name in p.relative_to(path).parts)]
        elif path.exists():
            out.append(path)
        else:
            raise CannotCheck(f"{path} does not exist.")
    if not out:
        raise CannotCheck("There is no file in what was given.")
    return out


def check(files: Iterable[Path], profile: Profile) -> Card:
    """Reads all messages of the files. Raises CannotCheck when a file cannot be read or none of them holds a message."""
    card = Card(profile.id)
    with Tally() as tally:
        reading = _Reading(card, profile, tally)
        for path in files:
            try:
                with path.open("rb") as stream:
                    reading.file(path.name, stream)
                    if path.stat().st_size:
                        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:
                            reading.counts(raw)
            except OSError as fault:
                raise CannotCheck(f"{path} cannot be read: {fault.strerror}.") from None
        card.orders = tally.count(ORDERS)
        card.answered = tally.count(ANSWERS) + card.numberless
        card.results_without_order = tally.only(ANSWERS, ORDER_KEYS) + card.numberless
        card.orders_without_result = tally.only(ORDERS, ANSWER_KEYS)
    if not card.readable():
        reasons = ", ".join(sorted({key for key, *_ in card.reasons}))
        raise CannotCheck(f"No HL7 v2 message can be read from these files ({reasons or 'they are empty'}).")
    return card


class _Reading:
    """One run over the files of one feed."""

    def __init__(self, card: Card, profile: Profile, tally: Tally) -> None:
        self._card, self._profile, self._tally = card, profile, tally
        self._residents = set(profile.facility.identifiers.resident_id)
        self._most_bytes = max((c.max_bytes for c in profile.facility.channels), default=0)
        self._channels = Channels([profile.facility])
        self._binding = Binding(profile.facility, Channel())

    def file(self, name: str, stream: BinaryIO) -> None:
        """All messages of one file."""
        file = File(name)
        self._card.files.append(file)
        for number, raw in enumerate(split(stream), 1):
            file.messages += 1
            file.readable += self._message(raw, f"{name} #{number}")

    def counts(self, raw: mmap.mmap) -> None:
        """The counts of the file's trailers (BTS-1, FTS-1)."""
        short = shortage(raw)
        if short is not None:
            self._card.issues.note((short.key, short.severity))

    def _message(self, raw: bytes, where: str) -> bool:
        card, profile = self._card, self._profile
        card.messages += 1
        try:
            source = reader.read(raw, profile.facility.charset)
        except Unreadable as fault:
            card.unreadable += 1
            self._reason(fault.issue.key, fault.issue.where, where)
            return False
        header, records = source.header, source.records
        event = next((r.first(1) for r in records if r.name == "EVN"), "")
        code, happened = trigger(header, event)
        card.types.note((f"{code}^{happened}" if happened else code or "none",))
        card.versions.note((header.first(12) or "none",))
        card.charsets.note((source.charset,))
        self._control_id(header.first(10).strip(), raw)
        self._against_the_standard(records, (header.first(12), code, happened, header.first(9, 3)), where)
        self._identifiers(records)
        conversion = convert(raw, profile)
        if not conversion.quality_control:
            self._order_numbers(records, code)
        if not self._refused(header, len(raw), where):
            self._held(conversion, where)
        self._fields(records, conversion)
        self._results(conversion)
        return True

    def _reason(self, key: str, place: str, where: str) -> None:
        row = ("reason", key, _ORDINAL.sub("", place))
        self._card.reasons.note(row[1:])
        self._example(row, f"{where} {place}".rstrip())

    def _example(self, row: tuple[str, ...], where: str) -> None:
        if row in self._card.examples or len(self._card.examples) < 2 * len(self._card.deviations) + 200:
            self._card.examples.setdefault(row, where)

    def _refused(self, header: Record, size: int, where: str) -> bool:
        """Would the server refuse the message at the door? A profile without senders is not bound to any."""
        facility = self._profile.facility
        bound = self._channels.bind((self._binding,), (header.first(3), header.first(4))) if facility.senders else None
        if isinstance(bound, Issue):
            key, place = bound.key, bound.where
        elif self._most_bytes and size > self._most_bytes:
            key, place = "too-large", ""
        else:
            return False
        self._card.refused += 1
        self._reason(key, place, where)
        return True

    def _held(self, conversion: Conversion, where: str) -> None:
        held = conversion.held
        if held is None:
            faults = [i for e in conversion.entries for i in validator.check(e.resource)]
            held = next((i for i in faults if i.severity in ("error", "fatal")), None)
        if held is not None:
            self._card.held += 1
            self._reason(held.key, held.where, where)

    def _control_id(self, control: str, raw: bytes) -> None:
        if not control or self._tally.add(CONTROL, control):
            self._tally.add(CONTENT, raw)
            return
        self._card.duplicates += 1
        self._card.reused += self._tally.add(CONTENT, raw)

    def _against_the_standard(self, records: Sequence[Record], message: tuple[str, str, str, str], where: str) -> None:
        card = self._card
        deviations, times = hl7v2_standard.check(records, *message)
        card.deviating += any(d.required for d in deviations)
        card.broken += any(d.kind in BREAKING for d in deviations)
        for d in deviations:
            row = (d.kind, d.place, d.detail, "required" if d.required else "suggested")
            card.deviations.note(row)
            self._example(row, f"{where} {d.where}")
        card.times += times.stated
        for place in times.without_zone:
            card.zoneless.note((place,))

    def _identifiers(self, records: Iterable[Record]) -> None:
        """Resident ID numbers by type, by place (PID-19) or by form, with and without a valid check character (GB 11643)."""
        card = self._card
        for record in records:
            for number in _IDENTIFIED.get(record.name, ()):
                for element in record.get(number):
                    value = resident_id.normalise(part(element, 1))
                    said = part(element, 5) in self._residents or part(element, 4) in self._residents
                    if not value or not (said or (record.name, number) == _SSN or _RESIDENT_FORM.fullmatch(value)):
                        continue
                    if resident_id.is_other_document(value):
                        continue  # a passport, or a permit of residents of Hong Kong, Macau and Taiwan
                    card.identifiers += 1
                    if resident_id.read(value) is None:
                        whole = _RESIDENT_FORM.fullmatch(value)
                        wrong = "check digit or birth date" if whole else "not 18 (or 15) digits"
                        card.bad_identifiers.note((f"{record.name}-{number}", wrong))

    def _order_numbers(self, records: Iterable[Record], code: str) -> None:
        """Order numbers of placer and filler (ORC-2/3, OBR-2/3): which orders have a result, which results an order."""
        if code not in _ORDERING and code not in _ANSWERING:
            return
        said = (ORDERS, ORDER_KEYS) if code in _ORDERING else (ANSWERS, ANSWER_KEYS)
        placer = filler = ""
        for record in records:
            if record.name == "ORC":
                placer, filler = record.first(2).strip(), record.first(3).strip()
            elif record.name == "OBR":
                keys = [f"P{n}" for n in (record.first(2).strip() or placer,) if n]
                keys += [f"F{n}" for n in (record.first(3).strip() or filler,) if n]
                placer = filler = ""
                if keys:
                    self._tally.add(said[0], keys[0])
                    for key in keys:
                        self._tally.add(said[1], key)
                elif code in _ANSWERING:
                    self._card.numberless += 1

    def _fields(self, records: Iterable[Record], conversion: Conversion) -> None:
        card = self._card
        places = {found[1] for unread in conversion.unread if (found := _PLACE.match(unread.where))}
        for record in records:
            card.filled.note((record.name,), sum(1 for _ in record.filled()))
        for place in places:
            segment, number = place[:3], place.rsplit("-", 1)[1]
            card.unread.note((segment,))
            card.unread_places.note((f"{segment}-{number}",))
        for issue in conversion.issues:
            card.issues.note((issue.key, issue.severity))
        card.quality_control += conversion.quality_control

    def _results(self, conversion: Conversion) -> None:
        card = self._card
        codes = {(u.code or u.name): u for u in conversion.unmapped if u.kind == "code"}
        for entry in conversion.entries:
            resource = entry.resource
            if resource["resourceType"] != "Observation":
                continue
            concept = resource.get("code") or {}
            codings = concept.get("coding", ())
            unit = _unit(resource)
            known = any(c.get("system") == systems.ITEMS for c in codings)
            names = [c.get("code", "") for c in codings] + [concept.get("text", "")]
            unmapped = None if known else next((codes[n] for n in names if n in codes), None)
            card.results += 1
            card.mapped += known or (unmapped is None and bool(codings))
            if unmapped is not None:
                card.unmapped_codes.note((unmapped.code, unmapped.name, unit[0]))
            card.with_unit += bool(unit[0])
            card.known_unit += bool(unit[0]) and unit[1]
            if unit[0] and not unit[1]:
                card.unknown_units.note((unit[0],))
        for u in conversion.unmapped:
            if u.kind == "order":
                card.unmapped_orders.note((u.code, u.name))


def _unit(resource: dict[str, Any]) -> tuple[str, bool]:
    """The unit of a result as sent, and whether it is a UCUM unit; empty for results without one."""
    span = resource.get("valueRange") or {}
    quantity = resource.get("valueQuantity") or span.get("low") or span.get("high") or {}
    text = quantity.get("unit") or quantity.get("code") or ""
    return text, quantity.get("system") == systems.UCUM
