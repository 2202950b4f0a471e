"""Stories of two facilities, told as the HL7 v2 messages their systems send. What each order must be was written down, from the text
named beside it, before it was run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import psycopg

from conformance.capability import RESOURCE_TYPES
from conformance.fhirjson import loads
from fhir_server.bench.planted import Step, plant
from fhir_server.demo.county import COUNTY, NORTH, Dialect, Panel
from fhir_server.demo.run import example_panels
from fhir_server.duplicates import detect
from fhir_server.recognition import rules as rules_module
from fhir_server.store.body import Codec
from mappings.profile import load_profiles
from mappings.resident_id import check_character

DAY = datetime(2025, 6, 17, 1, 0, tzinfo=UTC)
HOUR, NIGHT, WEEK = timedelta(hours=1), timedelta(days=2), timedelta(days=7)
NONE, AVOIDABLE = ("", ""), ("avoidable", "")
BEGIN, END = datetime(2024, 12, 31, 16, tzinfo=UTC), datetime(2025, 12, 31, 16, tzinfo=UTC)
Truth = dict[str, tuple[str, str]]
"""Placer or filler number -> kind and cause; both empty: no finding."""


def local(at: datetime) -> str:
    return f"{at + 8 * HOUR:%Y%m%d%H%M%S}"


@dataclass(slots=True)
class Book:
    """The messages of all stories, and the panels of the facilities."""

    panels: dict[str, dict[str, Panel]]
    days: Sequence[datetime] = (DAY,)
    sent: dict[datetime, Step] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def steps(self) -> list[Step]:
        return [self.sent[at] for at in sorted(self.sent)]


class Person:
    """One person of one story; numbers are unlike those of anybody else."""

    def __init__(self, book: Book) -> None:
        self.book, self.number = book, next(book.numbers)
        self.birth = f"196005{1 + self.number % 28:02d}"
        body = f"330881{self.birth}{(2 * self.number + 1) % 1000:03d}"
        self.id = body + check_character(body)
        self.names = dict.fromkeys((COUNTY.facility, NORTH.facility), f"甲{self.number:03d}")

    def send(self, at: datetime, d: Dialect, kind: str, *segments: str, identified: bool = True, sent_for: str = "P"
    ) -> None:  # fmt: skip
        """One message, received at a time. Fields are written with ^ between components."""
        control = f"ST{next(self.book.numbers):06d}"
        head = f"MSH|^~\\&|{d.application}|{d.sender}|TONGJIAN|YXX|{local(at)}||{kind}|{control}|{sent_for}|{d.version}"
        ids = f"S{self.number:05d}^^^{d.sender}^PI" + (f"~{self.id}^^^GA^{d.resident_id_type}" if identified else "")
        pid = f"PID|1||{ids}||{self.names[d.facility]}||{self.birth}|{d.sexes[0]}"
        text = "\r".join((head + f"||||||{d.charset}", pid, *segments)) + "\r"
        raw = text.replace("^", d.component).encode(d.codec)
        self.book.sent.setdefault(at, Step(at)).messages.append((d, raw))

    def result(
        self, d: Dialect, orderable: str, drawn: datetime, filler: str, *, placer: str = "", orc: str = "",
        obr: dict[int, str] | None = None, status: str = "F", issued: datetime | None = None, received: datetime | None = None,
        only: int | None = None, identified: bool = True, unit: dict[str, str] | None = None, notes: Sequence[str] = (),
        sent_for: str = "P",
    ) -> None:  # fmt: skip
        """ORU^R01: drawn, issued two hours later and received at once, unless told otherwise."""
        issued = issued or drawn + 2 * HOUR
        segments = self.segments(d, orderable, drawn, filler, placer, orc, obr, status, issued, only, unit)
        self.send(
            received or issued, d, "ORU^R01", "PV1|1|O", *segments, *notes, identified=identified, sent_for=sent_for
        )

    def registered(self) -> None:
        """The county hospital knows the person since the day before."""
        at = DAY - 24 * HOUR
        self.send(at, COUNTY, "ADT^A04", f"EVN|A04|{local(at)}", "PV1|1|O")

    def segments(
        self, d: Dialect, orderable: str, drawn: datetime, filler: str, placer: str, orc: str, obr: dict[int, str] | None, status: str,
        issued: datetime, only: int | None, unit: dict[str, str] | None,    ) -> list[str]:  # fmt: skip
        panel = self.book.panels[d.facility][orderable]
        fields = [
            "OBR",
            "1",
            placer,
            filler,
            f"{panel.code}^{panel.name}^L",
            "",
            "",
            local(drawn),
            *[""] * 14,
            local(issued),
        ]
        fields += ["", "LAB", status, *[""] * 20]
        for place, value in (obr or {}).items():
            fields[place] = value
        out = [orc] if orc else []
        out.append("|".join(fields).rstrip("|"))
        for n, test in enumerate(panel.tests[:only], 1):
            told = (unit or {}).get(test.unit, d.units.get(test.unit, test.unit))
            value = "5.5" if test.unit else "阴性"
            kind = "NM" if test.unit else "ST"
            out.append(f"OBX|{n}|{kind}|{test.code}^{test.name}^L||{value}|{told}|||||{status}|||{local(drawn)}")
        return out

    def prior(self, orderable: str = "LIPID", drawn: datetime = DAY - NIGHT, d: Dialect = NORTH, **more: Any) -> str:
        """A result that no order of this book asks about."""
        filler = f"F{next(self.book.numbers)}"
        self.result(d, orderable, drawn, filler, orc="ORC|RE", **more)
        return filler

    def order(
        self, orderable: str = "LIPID", at: datetime = DAY, *, control: str = "NW", placer: str = "", received: datetime | None = None,
        orc9: bool = True, orc15: bool = False, obr: dict[int, str] | None = None, visit: str = "O", code: str = "",
        sent_for: str = "P",
    ) -> str:  # fmt: skip
        """OML^O21 of the county hospital; its placer number."""
        panel = self.book.panels[COUNTY.facility][orderable]
        placer = placer or f"P{next(self.book.numbers)}"
        orc = ["ORC", control, placer, *[""] * 20]
        orc[9], orc[15] = local(at) if orc9 else "", local(at) if orc15 else ""
        fields = ["OBR", "1", placer, "", code or f"{panel.code}^{panel.name}^L", *[""] * 40]
        for place, value in (obr or {}).items():
            fields[place] = value
        lines = ("|".join(s).rstrip("|") for s in (orc, fields))
        self.send(received or at, COUNTY, "OML^O21", f"PV1|1|{visit}", *lines, sent_for=sent_for)
        return placer


Story = Callable[[Person], Truth]


def ordered_by_orc_9(p: Person) -> Truth:
    """Issue: order time is ORC-9."""
    p.prior()
    return {p.order(): AVOIDABLE}


def ordered_by_orc_15(p: Person) -> Truth:
    """Issue: ORC-15. The earlier result was there at that time, not a day before."""
    p.prior()
    return {p.order(orc9=False, orc15=True): AVOIDABLE}


def ordered_by_obr_6(p: Person) -> Truth:
    """Issue: else OBR-6."""
    p.prior()
    return {p.order(orc9=False, obr={6: local(DAY)}): AVOIDABLE}


def ordered_by_obr_27(p: Person) -> Truth:
    """Issue: else OBR-27."""
    p.prior()
    return {p.order(orc9=False, obr={27: f"1^once^^{local(DAY)}"}): AVOIDABLE}


def order_known_by_its_result(p: Person) -> Truth:
    """A LIS that sends results only, with the order's number and time; the person is known."""
    p.registered()
    p.prior()
    placer = f"P{next(p.book.numbers)}"
    p.result(COUNTY, "LIPID", DAY + HOUR, placer + "F", placer=placer, orc=f"ORC|RE|{placer}|||||||{local(DAY)}")
    return {placer: AVOIDABLE}


def order_time_that_is_the_time_of_the_result(p: Person) -> Truth:
    """ORC-9 of a result is often the time it was sent: the order was before the collection, and then nothing was there."""
    p.prior(drawn=DAY - HOUR, issued=DAY + 3 * HOUR)
    placer = f"P{next(p.book.numbers)}"
    issued = DAY + 5 * HOUR
    p.result(
        COUNTY, "LIPID", DAY, placer + "F", placer=placer, orc=f"ORC|RE|{placer}|||||||{local(issued)}", issued=issued
    )
    return {placer: NONE}


def no_order_at_all(p: Person) -> Truth:
    """Feeds without orders: collection stands for the order."""
    p.prior()
    p.result(NORTH, "LIPID", DAY, f"N{p.number}", orc="ORC|RE")
    return {f"N{p.number}": AVOIDABLE}


def taken_back(p: Person) -> Truth:
    """ORC-1 CA and DC: no order."""
    p.prior()
    out: Truth = {}
    for control in ("CA", "DC"):
        placer = p.order()
        p.order(at=DAY + HOUR, placer=placer, control=control)
        out[placer] = NONE
    return out


def changed_to_what_was_there(p: Person) -> Truth:
    """ORC-1 XO: what is ordered in the end counts."""
    p.prior("LIPID")
    placer = p.order("RENAL")
    p.order("LIPID", placer=placer, control="XO", received=DAY + HOUR)
    return {placer: AVOIDABLE}


def changed_to_something_else(p: Person) -> Truth:
    """The other way round."""
    p.prior("LIPID")
    placer = p.order("LIPID")
    p.order("RENAL", placer=placer, control="XO", received=DAY + HOUR)
    return {placer: NONE}


def replaced_by_another_order(p: Person) -> Truth:
    """ORC-1 RP and RO: the order that was replaced is none, its replacement is one (HL7 v2.5.1, 4.5.1.1)."""
    p.prior()
    old = p.order()
    new = f"P{next(p.book.numbers)}"
    panel = p.book.panels[COUNTY.facility]["LIPID"]
    code = f"{panel.code}^{panel.name}^L"
    p.send(
        DAY + HOUR, COUNTY, "OML^O21", "PV1|1|O", f"ORC|RP|{old}|||||||{local(DAY + HOUR)}", f"OBR|1|{old}||{code}",
        f"ORC|RO|{new}|||||||{local(DAY + HOUR)}", f"OBR|2|{new}||{code}",
    )  # fmt: skip
    return {old: NONE, new: AVOIDABLE}


def sent_twice(p: Person) -> Truth:
    """Requirement 21: the same order again is the same order; and its own result is no earlier one."""
    p.prior()
    placer = p.order()
    p.order(placer=placer, received=DAY + HOUR)
    p.result(COUNTY, "LIPID", DAY + HOUR, placer + "F", placer=placer, orc=f"ORC|RE|{placer}|||||||{local(DAY)}")
    p.order(placer=placer, received=DAY + 6 * HOUR)
    return {placer: AVOIDABLE}


def order_after_its_result(p: Person) -> Truth:
    """Any order of arrival: the order message comes a day late."""
    p.registered()
    placer = f"P{next(p.book.numbers)}"
    p.prior()
    p.result(COUNTY, "LIPID", DAY + HOUR, placer + "F", placer=placer, orc=f"ORC|RE|{placer}")
    p.order(placer=placer, received=DAY + 24 * HOUR)
    return {placer: AVOIDABLE}


def one_result_through_two_feeds(p: Person) -> Truth:
    """The township's LIS and HIS both send the report of one specimen: nothing was repeated."""
    p.result(NORTH, "LIPID", DAY, f"T{p.number}", orc="ORC|RE")
    p.result(NORTH, "LIPID", DAY, f"U{p.number}", orc="ORC|RE", received=DAY + 3 * HOUR)
    return {f"T{p.number}": NONE, f"U{p.number}": NONE}


def at_home(p: Person) -> Truth:
    """Own results count where the policy says so (it does)."""
    p.prior(d=COUNTY)
    return {p.order(): AVOIDABLE}


def received_late(p: Person) -> Truth:
    """Domain 2.4: not yet received is a system cause."""
    p.prior(received=DAY + HOUR)
    return {p.order(): ("system", "not-yet-received")}


def drawn_before_and_issued_after(p: Person) -> Truth:
    """Two doctors at the same time: no result was there."""
    p.prior(drawn=DAY - HOUR, issued=DAY + HOUR)
    return {p.order(): NONE}


def preliminary_then_and_final_later(p: Person) -> Truth:
    """Requirement 8: a preliminary one never counts, and the final one did not exist."""
    p.prior(drawn=DAY - 5 * HOUR, status="P")
    return {p.order(): NONE}


def voided_before(p: Person) -> Truth:
    """OBX-11 D before the order."""
    filler = p.prior()
    p.result(NORTH, "LIPID", DAY - NIGHT, filler, orc="ORC|RE", status="D", issued=DAY - 24 * HOUR, obr={25: "C"})
    return {p.order(): NONE}


def voided_after(p: Person) -> Truth:
    """Invariant 8: the doctor could not know."""
    filler = p.prior()
    p.result(NORTH, "LIPID", DAY - NIGHT, filler, orc="ORC|RE", status="D", issued=DAY + 24 * HOUR, obr={25: "C"})
    return {p.order(): AVOIDABLE}


def corrected_before(p: Person) -> Truth:
    """A corrected result is a result."""
    filler = p.prior()
    p.result(NORTH, "LIPID", DAY - NIGHT, filler, orc="ORC|RE", status="C", issued=DAY - 24 * HOUR)
    return {p.order(): AVOIDABLE}


def exactly_the_window(p: Person) -> Truth:
    """Requirement 2: N x 24 h is inside, a second more is not (renal function: 7 days); one drawn in another zone's clock."""
    p.prior("RENAL", DAY - WEEK, issued=DAY - WEEK + HOUR)
    return {p.order("RENAL"): AVOIDABLE, p.order("RENAL", DAY + timedelta(seconds=1)): NONE}


def sent_for_training_or_debugging(p: Person) -> Truth:
    """MSH-11 T and D: such an order is none, and such a result is no earlier one (docs/recognition.md)."""
    p.prior("LIPID")
    p.prior("RENAL", sent_for="T")
    p.prior("COAG4", sent_for="D")
    return {
        p.order("LIPID", sent_for="T"): NONE,
        p.order("LIPID", DAY + HOUR, sent_for="D"): NONE,
        p.order("RENAL"): NONE,
        p.order("COAG4"): NONE,
    }


def another_clock(p: Person) -> Truth:
    """ORC-9 with a zone: one instant, whatever clock it is written in."""
    p.prior("RENAL", DAY - WEEK, issued=DAY - WEEK + HOUR)
    placer = f"P{next(p.book.numbers)}"
    for number, seconds in ((placer, 0), (placer + "L", 1)):
        at = DAY + timedelta(seconds=seconds)
        code = p.book.panels[COUNTY.facility]["RENAL"].code
        p.send(
            at,
            COUNTY,
            "OML^O21",
            "PV1|1|O",
            f"ORC|NW|{number}|||||||{at:%Y%m%d%H%M%S}+0000",
            f"OBR|1|{number}||{code}^^L",
        )
    return {placer: AVOIDABLE, placer + "L": NONE}


def the_turn_of_the_year(p: Person) -> Truth:
    """The period begins and ends at local midnight; earlier results of the year before count."""
    p.prior("LIPID", BEGIN - NIGHT)
    p.prior("LIPID", END - NIGHT)
    out = {p.order("LIPID", BEGIN): AVOIDABLE, p.order("LIPID", END - timedelta(seconds=1)): AVOIDABLE}
    return out | {p.order("LIPID", END): NONE, p.order("LIPID", BEGIN - timedelta(seconds=1)): NONE}


def partly_there(p: Person) -> Truth:
    """Invariant 11: two of six lipids were there: no repeat."""
    p.prior("LIPID", only=2)
    return {p.order(): NONE}


def emergency_visit(p: Person) -> Truth:
    """Circumstance 4: PV1-2 of the order."""
    p.prior()
    return {p.order(visit="E"): ("justified", "reason-4")}


def a_lawful_reason_in_the_order(p: Person) -> Truth:
    """OBR-31 with a code of the six."""
    p.prior()
    return {
        p.order(obr={31: "2^变化较快^http://tongjian.org/fhir/CodeSystem/repeat-reasons"}): ("justified", "reason-2")
    }


def what_is_never_recognized(p: Person) -> Truth:
    """Window 0 (blood gas): never a repeat."""
    first = p.order("LIPID", DAY - HOUR, code="2703-7^Oxygen^LN")
    return {first: NONE, p.order("LIPID", DAY, code="2703-7^Oxygen^LN"): NONE}


def what_the_catalogue_does_not_have(p: Person) -> Truth:
    """Requirement 24: tacrolimus is not in the catalogue; it is counted as not understood, never guessed."""
    return {p.order(code="FK506^他克莫司^L", at=DAY + n * HOUR): NONE for n in range(2)}


def an_unknown_button(p: Person) -> Truth:
    """What an order brought says what it was."""
    p.prior()
    placer = p.order(code="XZ2^血脂新^L")
    p.result(COUNTY, "LIPID", DAY + HOUR, placer + "F", placer=placer, orc=f"ORC|RE|{placer}", obr={4: "XZ2^血脂新^L"})
    return {placer: AVOIDABLE}


def two_orders_in_one_message(p: Person) -> Truth:
    """Each is judged by itself."""
    p.prior("LIPID")
    one, two = (f"P{next(p.book.numbers)}" for _ in range(2))
    lines = []
    for placer, orderable in ((one, "LIPID"), (two, "RENAL")):
        code = p.book.panels[COUNTY.facility][orderable].code
        lines += [f"ORC|NW|{placer}|||||||{local(DAY)}", f"OBR|{len(lines)}|{placer}||{code}^^L"]
    p.send(DAY, COUNTY, "OML^O21", "PV1|1|O", *lines)
    return {one: AVOIDABLE, two: NONE}


def in_another_unit(p: Person) -> Truth:
    """Mass is not molar: not the same quantity, so nothing that had to be recognized."""
    p.prior("LIPID", unit={"mmol/L": "mg/dL"})
    return {p.order(): NONE}


def haemolysed(p: Person) -> Truth:
    """Specimen quality: rejected or haemolysed is not fit."""
    p.prior("LIPID", d=COUNTY, notes=("SPM|1|H1||SER^血清^HL70487" + "|" * 20 + "HEM^溶血^HL70493",))
    return {p.order(): NONE}


def linked_later(p: Person) -> Truth:
    """Domain 2.4: identity not linked is a system cause."""
    p.prior(identified=False)
    placer = p.order()
    p.send(DAY + 6 * HOUR, NORTH, "ADT^A08", f"EVN|A08|{local(DAY + 6 * HOUR)}", "PV1|1|O")
    return {placer: ("system", "identity-not-linked")}


def somebody_elses_result(p: Person) -> Truth:
    """Sent for the wrong patient, sent again for the right one before the order: it is the right one's."""
    other = Person(p.book)
    filler = other.prior()
    p.result(NORTH, "LIPID", DAY - NIGHT, filler, orc="ORC|RE", issued=DAY - 30 * HOUR)
    return {p.order(): AVOIDABLE, other.order(): NONE}


def a_typing_error_in_the_year(p: Person) -> Truth:
    """ORC-9 in 2052: outside the period, and nothing breaks."""
    p.prior()
    placer = f"P{next(p.book.numbers)}"
    code = p.book.panels[COUNTY.facility]["LIPID"].code
    p.send(DAY, COUNTY, "OML^O21", "PV1|1|O", f"ORC|NW|{placer}|||||||20520617090000", f"OBR|1|{placer}||{code}^^L")
    return {placer: NONE}


def twice_in_a_series(p: Person) -> Truth:
    """The second of three orders follows the first one's result; the third too: each repeats what stood there before it."""
    out: Truth = {}
    for n, kind in enumerate((NONE, AVOIDABLE, AVOIDABLE)):
        at = DAY + n * 12 * HOUR
        placer = p.order("LIPID", at)
        p.result(COUNTY, "LIPID", at + HOUR, placer + "F", placer=placer, orc=f"ORC|RE|{placer}|||||||{local(at)}")
        out[placer] = kind
    return out


STORIES: tuple[Story, ...] = tuple(
    found
    for found in list(globals().values())
    if callable(found) and getattr(found, "__annotations__", {}).get("p") == "Person"
)


def _numbers(conn: psycopg.Connection[Any]) -> dict[str, set[str]]:
    """ServiceRequest/<id> or DiagnosticReport/<id> -> its identifiers."""
    codec, out = Codec.load(conn), {}
    for kind in ("ServiceRequest", "DiagnosticReport"):
        rows = conn.execute(
            'SELECT id, dict, body, patient, "order" FROM resource WHERE rtype = %s', (RESOURCE_TYPES[kind],)
        )
        for logical, number, body, *names in rows:
            told = loads(codec.decompress(number, body, (logical, *names))).get("identifier", ())
            out[f"{kind}/{logical}"] = {i["value"] for i in told}
    return out


def test_every_story_told_in_messages_is_what_was_written_down(database_url: str) -> None:
    profiles = load_profiles()
    book = Book({f: {p.orderable: p for p in found} for f, found in example_panels(profiles).items()})
    truth: dict[str, tuple[str, tuple[str, str]]] = {}
    for story in STORIES:
        truth |= {key: (story.__name__, kind) for key, kind in story(Person(book)).items()}
    plant(database_url, profiles, book)
    with psycopg.connect(database_url) as conn:
        # Only the order of the year 2052 is held.
        assert conn.execute("SELECT status FROM inbox WHERE status <> 'done'").fetchall() == [("held",)]
        numbers = _numbers(conn)
        found = detect.audit(conn, rules_module.load(), profiles, BEGIN, END, cases=True)
    told: dict[str, list[tuple[str, str]]] = {}
    for f in found.findings:
        for number in numbers[f.order] & truth.keys() or {f.order}:
            told.setdefault(number, []).append((f.kind, f.cause))
    differs = [
        (truth.get(n, (str(numbers.get(n)), NONE)), told.get(n, [NONE]))
        for n in truth.keys() | told.keys()
        if told.get(n, [NONE]) != [truth.get(n, ("", NONE))[1]]
    ]
    assert differs == [], "\n".join(f"{story} must be {kind}, is {said}" for (story, kind), said in sorted(differs))
