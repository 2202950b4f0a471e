"""Repeats whose kind is known beforehand, planted among other people's results through inbox and pipeline. Seeded.

Each case has people of its own and one order that is asked about. The kind stands in ``Planted``; the audit reads the database alone.
Everything a facility would send comes as its messages; only what other doors bring (images, answers at order time) is written as those
doors write it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any, Final

import asyncpg
import psycopg

from adapters.convert import peek
from conformance import systems
from fhir_server import code_decisions
from fhir_server.bench import load
from fhir_server.demo.county import COUNTY, NORTH, SOUTH, Dialect, Report, Writer, draw
from fhir_server.demo.people import Person, population
from fhir_server.demo.run import example_panels
from fhir_server.ingest import inbox, replay
from fhir_server.ingest.claim import claim
from fhir_server.ingest.pipeline import Pipeline
from fhir_server.recognition import reasons
from fhir_server.store.body import Codec
from mappings.profile import Profile

PANELS: Final = ("RENAL", "LIVER", "LIPID", "COAG4", "THYROID")
"""What is repeated: windows of seven days and more."""


@dataclass(frozen=True, slots=True)
class Planted:
    """One order: its placer number at its facility; kind and cause of the finding there must be, both empty when there must be none."""

    placer: str
    facility: str
    kind: str
    cause: str
    case: str


@dataclass(slots=True)
class Step:
    """What the platform gets to know at one time."""

    at: datetime
    messages: list[tuple[Dialect, bytes]] = field(default_factory=list)
    said: list[tuple[Any, ...]] = field(default_factory=list)
    decided: list[code_decisions.Decision] = field(default_factory=list)


class Year:
    """Cases around some days of a year; ``steps`` in order of time, ``planted``: the truth."""

    def __init__(self, profiles: Mapping[str, Profile], days: Sequence[datetime], seed: int) -> None:
        self.profiles, self.days = profiles, days
        self.rng = random.Random(seed)  # noqa: S311 - invented results
        self.panels = {f: {p.orderable: p for p in found} for f, found in example_panels(profiles).items()}
        self.people = iter(population(10_000, self.rng, days[0].date()))
        self.writers = {d.facility: Writer(d) for d in (COUNTY, NORTH, SOUTH)}
        self.planted: list[Planted] = []
        self.drawn: list[Person] = []
        self._steps: dict[datetime, Step] = {}
        self._numbers = count(1)
        for number, day in enumerate(days):
            for case in CASES:
                getattr(self, case)(day, case)
            self._noise(day, number)

    @property
    def steps(self) -> Iterator[Step]:
        """In order of time."""
        yield from (self._steps[at] for at in sorted(self._steps))

    def _step(self, at: datetime) -> Step:
        return self._steps.setdefault(at, Step(at))

    def _person(self) -> Person:
        self.drawn.append(replace(next(p for p in self.people if p.resident_id), number=70_000 + next(self._numbers)))
        return self.drawn[-1]

    def _send(self, at: datetime, dialect: Dialect, raw: bytes) -> None:
        self._step(at).messages.append((dialect, raw))

    def _report(self, dialect: Dialect, person: Person, orderable: str, drawn: datetime) -> Report:
        panel = self.panels[dialect.facility][orderable]
        zone = self.profiles[dialect.facility].zone
        ordered, taken, issued = (
            t.astimezone(zone) for t in (drawn - timedelta(minutes=20), drawn, drawn + timedelta(hours=2))
        )
        return Report(
            dialect,
            person,
            panel,
            f"{dialect.sender}PL{next(self._numbers):06d}",
            ordered,
            taken,
            issued,
            draw(panel, self.rng),
        )

    def _prior(
        self, day: datetime, orderable: str, person: Person, *, dialect: Dialect = NORTH, known: timedelta | None = None
    ) -> Report:
        """A result of two days before, known to the platform an hour after it was issued, or as late as told."""
        report = self._report(dialect, person, orderable, day - timedelta(days=2))
        self._send(
            day - timedelta(days=2) + (known or timedelta(hours=3)),
            dialect,
            self.writers[dialect.facility].result(report),
        )
        return report

    def _order(
        self,
        day: datetime,
        orderable: str,
        person: Person,
        truth: tuple[str, str],
        case: str,
        change: tuple[str, str] | None = None,
    ) -> Report:
        """The order that is asked about, and its own result some hours later."""
        writer = self.writers[COUNTY.facility]
        report = self._report(COUNTY, person, orderable, day + timedelta(hours=1))
        report = replace(report, ordered=day.astimezone(self.profiles[COUNTY.facility].zone))
        for at, raw in ((day, writer.order(report)), (day + timedelta(hours=4), writer.result(report))):
            text = raw.decode(COUNTY.codec)
            self._send(at, COUNTY, (text.replace(*change) if change else text).encode(COUNTY.codec))
        self.planted.append(Planted(f"P{report.number}", COUNTY.facility, *truth, case))
        return report

    def _panel(self) -> str:
        return self.rng.choice(PANELS)

    def avoidable(self, day: datetime, case: str) -> None:
        """A result of another facility was there, and nothing is said."""
        person, panel = self._person(), self._panel()
        self._prior(day, panel, person)
        self._order(day, panel, person, ("avoidable", ""), case)

    def avoidable_at_home(self, day: datetime, case: str) -> None:
        """The facility's own result was there."""
        person = self._person()
        self._prior(day, "LIPID", person, dialect=COUNTY)
        self._order(day, "LIPID", person, ("avoidable", ""), case)

    def avoidable_inside_a_larger_panel(self, day: datetime, case: str) -> None:
        """What is ordered is a part of a larger panel that was there."""
        person = self._person()
        self._prior(day, "CHEM", person, dialect=COUNTY)
        self._order(day, "RENAL", person, ("avoidable", ""), case)

    def lawful_reasons(self, day: datetime, case: str) -> None:
        """Each lawful reason that is given to a reminder."""
        for reason in "12356":
            person, panel = self._person(), self._panel()
            self._prior(day, panel, person)
            report = self._order(day, panel, person, ("justified", f"reason-{reason}"), f"{case} {reason}")
            self._reminder(day, report, reason)

    def emergency(self, day: datetime, case: str) -> None:
        """The order's visit is an emergency (PV1-2)."""
        person, panel = self._person(), self._panel()
        self._prior(day, panel, person)
        self._order(day, panel, person, ("justified", "reason-4"), case, ("PV1|1|O|", "PV1|1|E|"))

    def before_surgery(self, day: datetime, case: str) -> None:
        """A decisive item, and the order says that surgery is to come (OBR-31)."""
        person = self._person()
        self._prior(day, "HBV5", person)
        report = self._order(day, "HBV5", person, ("justified", "reason-3"), case)
        step = self._steps[day]
        dialect, raw = step.messages[-1]
        text = raw.decode(dialect.codec).rstrip("\\r")
        assert report.number in text
        step.messages[-1] = dialect, (text + "|" * 25 + "^术前检查\\r").encode(dialect.codec)

    def unknown_unit(self, day: datetime, case: str) -> None:
        """A unit that nobody can read."""
        person = self._person()
        report = self._report(NORTH, person, "LIPID", day - timedelta(days=2))
        panel = replace(report.panel, tests=tuple(replace(t, unit="个单位") for t in report.panel.tests))
        self._send(
            day - timedelta(days=2, hours=-3), NORTH, self.writers[NORTH.facility].result(replace(report, panel=panel))
        )
        self._order(day, "LIPID", person, ("undetermined", "unit"), case)

    def not_yet_received(self, day: datetime, case: str) -> None:
        """Issued in time, on the platform only after the order."""
        person, panel = self._person(), self._panel()
        self._prior(day, panel, person, known=timedelta(days=2, hours=6))
        self._order(day, panel, person, ("system", "not-yet-received"), case)

    def unmapped_code(self, day: datetime, case: str) -> None:
        """A local code that people mapped only after the order."""
        person = self._person()
        report = self._report(NORTH, person, "LIPID", day - timedelta(days=2))
        new = next(self._numbers)
        tests = tuple(replace(t, code=f"N{new}{n}", name=f"新项目{new}{n}") for n, t in enumerate(report.panel.tests))
        raw = self.writers[NORTH.facility].result(replace(report, panel=replace(report.panel, tests=tests)))
        self._send(day - timedelta(days=2, hours=-3), NORTH, raw)
        own = {t.code: t.item for t in self.profiles[NORTH.facility].tests.rows}
        self._step(day + timedelta(hours=6)).decided += [
            code_decisions.Decision(NORTH.facility, "code", t.code, t.name, own[old.code])
            for t, old in zip(tests, report.panel.tests, strict=True)
        ]
        self._order(day, "LIPID", person, ("system", "unmapped-code"), case)

    def not_linked(self, day: datetime, case: str) -> None:
        """The township learnt the identity number only after the order."""
        person, panel = self._person(), self._panel()
        nameless = replace(person, resident_id="")
        self._prior(day, panel, nameless)
        self._order(day, panel, person, ("system", "identity-not-linked"), case)
        at = day + timedelta(hours=6)
        self._send(
            at, NORTH, self.writers[NORTH.facility].visit(person, at.astimezone(self.profiles[NORTH.facility].zone))
        )

    def away(self, day: datetime, case: str) -> None:
        """The answer at order time failed."""
        person, panel = self._person(), self._panel()
        self._prior(day, panel, person)
        report = self._order(day, panel, person, ("system", "repository-away"), case)
        entry = {"reason": "database-away", "placers": [_placer(report)]}
        self._step(day).said.append(("no-answer", None, None, entry))

    def image_not_opened(self, day: datetime, case: str) -> None:
        """Declined with the local reason that the result could not be opened (98)."""
        person, panel = self._person(), self._panel()
        self._prior(day, panel, person)
        report = self._order(day, panel, person, ("system", "missing-image"), case)
        self._reminder(day, report, "98", reasons.LOCAL)

    def _reminder(self, day: datetime, report: Report, reason: str, system: str = systems.REPEAT_REASONS) -> None:
        card = f"card-{report.number}"
        step = self._step(day)
        step.said.append(
            ("reminder", report.panel.orderable, "recognized", {"card": card, "placers": [_placer(report)]})
        )
        feedback = {"card": card, "outcome": "overridden", "reason": {"system": system, "code": reason}}
        step.said.append(("feedback", None, "overridden", feedback))

    # --- what must not be found -------------------------------------------------------------------------------------------------

    def first_time(self, day: datetime, case: str) -> None:
        """Nothing before."""
        self._order(day, self._panel(), self._person(), ("", ""), case)

    def too_old(self, day: datetime, case: str) -> None:
        """Out of every window: sixty-one days."""
        person, panel = self._person(), self._panel()
        report = self._report(NORTH, person, panel, day - timedelta(days=61))
        self._send(day - timedelta(days=2), NORTH, self.writers[NORTH.facility].result(report))
        self._order(day, panel, person, ("", ""), case)

    def another_item(self, day: datetime, case: str) -> None:
        """Another panel was there."""
        person = self._person()
        self._prior(day, "THYROID", person)
        self._order(day, "LIPID", person, ("", ""), case)

    def in_part(self, day: datetime, case: str) -> None:
        """A part of what is ordered was there."""
        person = self._person()
        self._prior(day, "RENAL", person)
        self._order(day, "CHEM", person, ("", ""), case)

    def another_person(self, day: datetime, case: str) -> None:
        """Somebody of the same name, sex and birth, with another identity number."""
        person, other = self._person(), self._person()
        self._prior(day, "LIPID", replace(person, resident_id=other.resident_id, number=70_000 + next(self._numbers)))
        self._order(day, "LIPID", person, ("", ""), case)

    def issued_later(self, day: datetime, case: str) -> None:
        """Drawn before the order, issued after it."""
        person = self._person()
        report = self._report(NORTH, person, "LIPID", day - timedelta(hours=1))
        self._send(day + timedelta(hours=3), NORTH, self.writers[NORTH.facility].result(report))
        self._order(day, "LIPID", person, ("", ""), case)

    def preliminary(self, day: datetime, case: str) -> None:
        """Only a preliminary report."""
        person = self._person()
        report = self._report(NORTH, person, "LIPID", day - timedelta(days=2))
        early = replace(report, status="P", values=tuple(replace(v, status="P") for v in report.values))
        self._send(day - timedelta(days=2, hours=-3), NORTH, self.writers[NORTH.facility].result(early))
        self._order(day, "LIPID", person, ("", ""), case)

    def withdrawn(self, day: datetime, case: str) -> None:
        """Deleted by its laboratory (OBX-11 D, OBR-25 X) the day before the order."""
        person = self._person()
        report = self._prior(day, "LIPID", person)
        issued = report.issued + timedelta(hours=20)
        void = replace(report, status="X", issued=issued, values=tuple(replace(v, status="X") for v in report.values))
        self._send(day - timedelta(days=1), NORTH, self.writers[NORTH.facility].result(void))
        self._order(day, "LIPID", person, ("", ""), case)

    def twice_at_once(self, day: datetime, case: str) -> None:
        """Two orders of one minute: neither had a result before it."""
        person = self._person()
        self._order(day, "LIPID", person, ("", ""), case)
        self._order(day, "LIPID", person, ("", ""), case)

    def cancelled(self, day: datetime, case: str) -> None:
        """An order that was taken back (ORC-1 CA) brought nothing and is no order."""
        person = self._person()
        self._prior(day, "LIPID", person)
        writer = self.writers[COUNTY.facility]
        report = replace(
            self._report(COUNTY, person, "LIPID", day + timedelta(hours=1)),
            ordered=day.astimezone(self.profiles[COUNTY.facility].zone),
        )
        self._send(day, COUNTY, writer.order(report))
        self._send(day + timedelta(hours=1), COUNTY, writer.order(report, "CA"))
        self.planted.append(Planted(f"P{report.number}", COUNTY.facility, "", "", case))

    def _noise(self, day: datetime, number: int) -> None:
        """Other people's single results."""
        for dialect in (NORTH, SOUTH):
            for _ in range(2):
                self._prior(day - timedelta(hours=number), self._panel(), self._person(), dialect=dialect)


CASES: Final = tuple(name for name, found in vars(Year).items() if callable(found) and not name.startswith("_"))
"""Names of the cases, methods of ``Year``."""


def _placer(report: Report) -> str:
    return f"{systems.facility_system(report.dialect.facility, 'placer')}|P{report.number}"


def plant(url: str, profiles: Mapping[str, Profile], year: Year) -> None:
    """Plays the steps of a year into a migrated database, each at its own time."""
    numbers = count(1)
    with psycopg.connect(url, autocommit=True) as conn:
        clock = [year.days[0]]
        pipeline = Pipeline(profiles, Codec.load(conn), lambda: clock[0])
        for step in year.steps:
            clock[0] = step.at
            asyncio.run(_accept(url, profiles, step))
            if step.decided:
                code_decisions.record(conn, step.decided, "quality control", step.at)
                replay.replay_decided(conn, step.at)
            for turn in count():
                claimed = claim(conn, f"planted/{step.at.isoformat()}/{turn}", 600.0, 40)
                if not claimed:
                    break
                pipeline.work(conn, f"planted/{step.at.isoformat()}/{turn}", claimed)
            for kind, orderable, outcome, entry in step.said:
                conn.execute(
                    "INSERT INTO ledger (chain, number, at, kind, facility, orderable, outcome, entry, hash)"
                    " VALUES ('planted', %s, %s, %s, %s, %s, %s, %s, '')",
                    (next(numbers), step.at, kind, COUNTY.facility, orderable, outcome, json.dumps(entry)),
                )


async def _accept(url: str, profiles: Mapping[str, Profile], step: Step) -> None:
    if not step.messages:
        return
    arrivals = []
    for dialect, raw in step.messages:
        control = peek(raw, profiles[dialect.facility]).control_id
        sample = load.Sample(dialect.facility, dialect.address, raw, "", control, (step.at,) * 3)
        arrivals.append(replace(load.arrival(sample, profiles[dialect.facility]), received_at=step.at))
    conn = await asyncpg.connect(url)
    try:
        await inbox.accept(conn, arrivals)
    finally:
        await conn.close()
