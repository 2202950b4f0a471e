"""What happens in the example county: weeks of ordinary results, then a day on which patients go next door. Pure, seeded.

The first part is history: everybody is tested at home. The second part is today: some of them are ordered the same panel
somewhere else. Order times of today are real times, so what the audit finds was truly visible when the order was placed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from fhir_server.demo.county import (
    CLINIC,
    COUNTY,
    DIALECTS,
    NORTH,
    SOUTH,
    Dialect,
    Panel,
    Report,
    Writer,
    bad_messages,
    draw,
    moments,
)
from fhir_server.demo.people import Person, population

PEOPLE = 260
HISTORY = timedelta(days=24)
_HOMES: Sequence[tuple[Dialect, int]] = ((COUNTY, 30), (NORTH, 30), (SOUTH, 26), (CLINIC, 14))


@dataclass(slots=True)
class Outgoing:
    """Messages of one facility in sending order."""

    dialect: Dialect
    messages: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Story:
    """history: before today, per facility. bad: what is deliberately wrong. results: reports of the history by person number."""

    people: list[Person]
    writers: dict[str, Writer]
    history: list[Outgoing]
    bad: list[tuple[Dialect, str, bytes]]
    results: dict[int, list[Report]]
    panels: Mapping[str, Sequence[Panel]]
    reports: int


def _history_of(
    person: Person, home: Dialect, panels: Sequence[Panel], now: datetime, rng: random.Random
) -> list[Report]:
    count = min(len(panels), rng.choice((3, 4, 4, 5)))
    # Larger panels are ordered more often, as in a real surgery.
    chosen = sorted(panels, key=lambda p: rng.random() ** (1 / len(p.tests)), reverse=True)[:count]
    reports = []
    for ordered, panel in zip(moments(HISTORY, now, count, rng), chosen, strict=True):
        collected = ordered + timedelta(minutes=rng.randrange(5, 60))
        issued = collected + timedelta(minutes=rng.randrange(30, 240))
        reports.append(Report(home, person, panel, "", ordered, collected, issued, draw(panel, rng)))
    return reports


def _corrected(report: Report) -> Report:
    first = replace(report.values[0], text=report.values[0].text.replace("1", "2") or "2", status="C")
    return replace(report, status="C", issued=report.issued + timedelta(hours=3), values=(first, *report.values[1:]))


def _preliminary(report: Report) -> Report:
    values = tuple(replace(v, status="P") for v in report.values)
    return replace(report, status="P", issued=report.issued - timedelta(minutes=20), values=values)


def tell(panels: Mapping[str, Sequence[Panel]], now: datetime, seed: int) -> Story:
    """The whole history. panels: facility id -> panels it reports; now: aware local time the history ends at."""
    rng = random.Random(seed)
    people = population(PEOPLE, rng, now.date())
    writers = {d.facility: Writer(d) for d in DIALECTS}
    timeline: dict[str, list[tuple[datetime, bytes]]] = {d.facility: [] for d in DIALECTS}
    results: dict[int, list[Report]] = {}
    number = 0
    for person in people:
        home = rng.choices([d for d, _ in _HOMES], [w for _, w in _HOMES])[0]
        writer, line = writers[home.facility], timeline[home.facility]
        reports = _history_of(person, home, panels[home.facility], now, rng)
        line.append(
            (reports[0].ordered - timedelta(minutes=5), writer.visit(person, reports[0].ordered - timedelta(minutes=5)))
        )
        for report in reports:
            number += 1
            numbered = replace(report, number=f"{home.sender}{number:06d}")
            line.append((numbered.ordered, writer.order(numbered)))
            if number % 90 == 7:
                line.append((numbered.ordered + timedelta(minutes=2), writer.order(numbered, "CA")))
                continue
            line.append((numbered.issued, writer.result(numbered)))
            results.setdefault(person.number, []).append(numbered)
            if number % 50 == 3:
                later = _corrected(numbered)
                line.append((later.issued, writer.result(later)))
            if number % 200 == 11:
                line.append((numbered.issued + timedelta(minutes=1), writer.result(_preliminary(numbered))))
            if number % 100 == 13:
                line.append((numbered.issued + timedelta(minutes=2), line[-1][1]))
    _wrong_patient(people, writers, timeline, results)
    for dialect in (COUNTY, NORTH):
        panel = panels[dialect.facility][0]
        line = timeline[dialect.facility]
        line.append((now - timedelta(hours=5), writers[dialect.facility].quality_control(panel, now, draw(panel, rng))))
    history = [Outgoing(d, [m for _, m in sorted(timeline[d.facility], key=lambda t: t[0])]) for d in DIALECTS]
    sample = next(r for rs in results.values() for r in rs if r.dialect is NORTH)
    bad = [(NORTH, what, message) for what, message in bad_messages(writers[NORTH.facility], sample, COUNTY)]
    reports_sent = sum(len(r) for r in results.values())
    return Story(people, writers, history, bad, results, panels, reports_sent)


def _wrong_patient(
    people: Sequence[Person],
    writers: Mapping[str, Writer],
    timeline: Mapping[str, list[tuple[datetime, bytes]]],
    results: Mapping[int, list[Report]],
) -> None:
    """One report of the south township is sent under another patient of the same house first, then sent again for the right one."""
    own = [r for rs in results.values() for r in rs if r.dialect is SOUTH]
    report = own[0]
    other = next(r.person for r in own if r.person.number != report.person.number)
    line, writer = timeline[SOUTH.facility], writers[SOUTH.facility]
    earlier = replace(report, number=report.number + "W")
    line.append((earlier.issued, writer.result(earlier, person=other)))
    again = replace(earlier, issued=earlier.issued + timedelta(minutes=30))
    line.append((again.issued, writer.result(again)))


@dataclass(frozen=True, slots=True)
class Repeat:
    """A patient of one house who is ordered the same panel in another one today."""

    prior: Report
    dialect: Dialect
    panel: Panel

    @property
    def shows_well(self) -> bool:
        """A township's patient with identity number who comes to the county hospital for a panel with a window of 30 days."""
        return (
            self.prior.dialect is NORTH
            and self.dialect is COUNTY
            and bool(self.prior.person.resident_id)
            and self.prior.panel.orderable in ("LIPID", "THYROID")
            and self.prior.status == "F"
        )


def repeats(story: Story, count: int, seed: int) -> list[Repeat]:
    """Whom the county hospital and the townships will order again today, oldest people first; each person once."""
    rng = random.Random(seed + 1)
    found: list[Repeat] = []
    for reports in story.results.values():
        prior = rng.choice(reports)
        elsewhere = [d for d in (COUNTY, NORTH, SOUTH) if d is not prior.dialect]
        target = COUNTY if COUNTY in elsewhere and rng.random() < 0.8 else rng.choice(elsewhere)
        panel = next((p for p in story.panels[target.facility] if p.orderable == prior.panel.orderable), None)
        if panel is not None:
            found.append(Repeat(prior, target, panel))
        if len(found) == count:
            break
    return found


def today(repeat: Repeat, number: int, at: datetime, rng: random.Random) -> Report:
    """The repeated order as a report: ordered, collected and issued now."""
    d = repeat.dialect
    values = draw(repeat.panel, rng)
    return Report(
        d, repeat.prior.person, repeat.panel, f"{d.sender}T{number:05d}", at, at, at + timedelta(seconds=1), values
    )
