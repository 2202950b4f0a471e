"""The messages of the benches: laboratory results as the four facilities of the example county send them. Pure and seeded.

Each facility writes its own dialect: own local codes, own units, GB18030 or UTF-8, order and specimen in its own segments. A message
tells 20 tests of one specimen of one person; people come back, as patients do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fhir_server.demo.county import DIALECTS, Dialect, Panel, Report, Test, Writer, analytes, draw
from fhir_server.demo.people import population
from mappings.profile import Profile

OBX = 20
"""Results in one message."""
MESSAGES_A_PERSON = 5
_HISTORY = timedelta(days=365)
_SHARES = (30, 30, 26, 14)


@dataclass(frozen=True, slots=True)
class Message:
    """One message: facility id, the loopback address its channel is bound to, and the bytes it would send."""

    facility: str
    address: str
    raw: bytes


def panels(profiles: Mapping[str, Profile], obx: int = OBX) -> dict[str, list[Panel]]:
    """Facility -> its local orders, each filled up to ``obx`` results with the other tests the facility maps."""
    known = analytes()
    out: dict[str, list[Panel]] = {}
    for dialect in DIALECTS:
        profile = profiles[dialect.facility]
        tests = {
            t.item: Test(t.code, t.name, t.unit, known[t.loinc])
            for t in profile.tests.rows
            if t.loinc in known and not t.valid_to
        }
        found = []
        for order in profile.orders.rows:
            orderable = profile.catalogue.orderables[order.orderable]
            if any(i not in tests for i in orderable.required):
                continue
            specimen = profile.catalogue.items[orderable.required[0]].specimens[0]
            first = [i for i in (*orderable.required, *orderable.optional) if i in tests]
            others = [i for i in tests if i not in first]
            others.sort(key=lambda i: specimen not in profile.catalogue.items[i].specimens)
            items = [*first, *others]
            chosen = tuple(tests[items[n % len(items)]] for n in range(obx))
            found.append(Panel(order.code, order.name, order.orderable, specimen, chosen))
        out[dialect.facility] = found
    return out


def messages(
    profiles: Mapping[str, Profile], count: int, now: datetime, *, seed: int, obx: int = OBX, start: int = 0
) -> Iterator[Message]:
    """``count`` ORU^R01 messages of ``obx`` results each, of the four facilities in turn by their share.

    now    aware; the results are of the year before it
    start  number of the first report: two runs with other numbers tell of other reports of the same people
    """
    rng = random.Random(seed)  # noqa: S311 - invented results
    people = population(max(1, count // MESSAGES_A_PERSON), rng, now.date())
    known = panels(profiles, obx)
    writers = {d.facility: Writer(d) for d in DIALECTS}
    dialects: Sequence[Dialect] = rng.choices(DIALECTS, _SHARES, k=count)
    for number, dialect in enumerate(dialects, start):
        issued = now - _HISTORY * (count - number + start) / count
        panel = rng.choice(known[dialect.facility])
        ordered, drawn = issued - timedelta(hours=3), issued - timedelta(hours=2)
        label = f"{dialect.sender}{now:%y%m%d}{number:08d}"
        report = Report(dialect, rng.choice(people), panel, label, ordered, drawn, issued, draw(panel, rng))
        yield Message(dialect.facility, dialect.address, writers[dialect.facility].result(report))
