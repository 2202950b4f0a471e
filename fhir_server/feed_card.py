"""The score card of a feed and its go-live bar: plain counts. No value of a patient, only codes, names of tests and units."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fhir_server.settings import Settings

KEPT = 2000
"""Different rows of a list that are counted; the rest is counted together, so that a feed of noise cannot fill the memory."""


class Counts(Counter[tuple[str, ...]]):
    """A counter with a limit to its rows; ``others`` counts what found no place."""

    others = 0

    def note(self, key: tuple[str, ...], number: int = 1) -> None:
        """Count a row."""
        if key in self or len(self) < KEPT:
            self[key] += number
        else:
            self.others += number


@dataclass(slots=True)
class File:
    """One file: its name as given, how many messages it held, and how many of them could be read."""

    name: str
    messages: int = 0
    readable: int = 0


@dataclass(slots=True)
class Card:
    """What was found in a feed.

    messages            all; unreadable: bytes that are no message; refused: the server would not take them; held: kept, not converted
    reasons             (issue key, place) of the first issue that refuses or holds; issues: (issue key, severity) of all
    deviations          (kind, segment-field.component, what was expected, ``required`` or ``suggested``)
    broken              messages with a deviation of kind BREAKING; deviating: with any required one
    examples            row of deviations or reasons -> where it was first seen (file, number of the message, place)
    filled, unread      (segment,) -> fields with content, and those of them that no rule reads; unread_places by segment and field
    results, mapped     Observations, and those with an item of the catalogue; with_unit, known_unit: with a unit, and a UCUM unit
    unmapped_codes      (local code, local name, unit as sent); unmapped_orders: (code, name); unknown_units: (text,)
    identifiers         resident ID numbers; bad_identifiers: (place, what is wrong) of those that are not valid
    times               times of day; zoneless: (place,) of those without an offset
    duplicates          messages with a control id seen before; reused: those of them with another content
    orders, answered    order numbers of orders and of results; the two orphan counts are order numbers
    """

    facility: str
    files: list[File] = field(default_factory=list)
    messages: int = 0
    unreadable: int = 0
    refused: int = 0
    held: int = 0
    quality_control: int = 0
    types: Counts = field(default_factory=Counts)
    versions: Counts = field(default_factory=Counts)
    charsets: Counts = field(default_factory=Counts)
    reasons: Counts = field(default_factory=Counts)
    issues: Counts = field(default_factory=Counts)
    deviations: Counts = field(default_factory=Counts)
    examples: dict[tuple[str, ...], str] = field(default_factory=dict)
    deviating: int = 0
    broken: int = 0
    filled: Counts = field(default_factory=Counts)
    unread: Counts = field(default_factory=Counts)
    unread_places: Counts = field(default_factory=Counts)
    results: int = 0
    mapped: int = 0
    with_unit: int = 0
    known_unit: int = 0
    unmapped_codes: Counts = field(default_factory=Counts)
    unmapped_orders: Counts = field(default_factory=Counts)
    unknown_units: Counts = field(default_factory=Counts)
    identifiers: int = 0
    bad_identifiers: Counts = field(default_factory=Counts)
    times: int = 0
    zoneless: Counts = field(default_factory=Counts)
    duplicates: int = 0
    reused: int = 0
    orders: int = 0
    answered: int = 0
    numberless: int = 0
    results_without_order: int = 0
    orders_without_result: int = 0

    def readable(self) -> int:
        """Messages that could be read."""
        return self.messages - self.unreadable


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the go-live bar. ``share`` is the good part of the whole, None when the files cannot tell it.

    name      setting without its prefix ``golive_``; good, whole: the counts; at_least: the setting
    """

    name: str
    good: int
    whole: int
    at_least: float

    @property
    def share(self) -> float | None:
        """0 to 1."""
        return self.good / self.whole if self.whole else None

    @property
    def met(self) -> bool:
        """What the files cannot tell does not count against the feed."""
        return not self.whole or self.good >= self.at_least * self.whole


def judge(card: Card, settings: Settings) -> list[Verdict]:
    """The card against the settings golive_*, in their order."""
    readable, filled = card.readable(), sum(card.filled.values()) + card.filled.others
    unread = sum(card.unread.values()) + card.unread.others
    # Without a single order in the files nothing can be said of results without one.
    answered, orphans = (card.answered, card.results_without_order) if card.orders else (0, 0)
    rows = {
        "accepted": (readable - card.refused - card.held, card.messages),
        "structure": (readable - card.broken, readable),
        "fields_read": (filled - unread, filled),
        "codes_mapped": (card.mapped, card.results),
        "units_known": (card.known_unit, card.with_unit),
        "ids_valid": (card.identifiers - sum(card.bad_identifiers.values()), card.identifiers),
        "times_zoned": (card.times - sum(card.zoneless.values()), card.times),
        "results_ordered": (answered - orphans, answered),
        "control_ids": (readable - card.duplicates, readable),
    }
    return [Verdict(name, good, whole, getattr(settings, f"golive_{name}")) for name, (good, whole) in rows.items()]


def meets(card: Card, verdicts: list[Verdict]) -> bool:
    """True when the feed may go live; a feed without a readable message never may."""
    return card.readable() > 0 and all(v.met for v in verdicts)
