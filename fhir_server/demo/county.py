"""The messages of the example county: what four facilities with four dialects would send. Pure, seeded; the clock is an argument.

Local codes come from the facilities' own code maps, so that the demo shows exactly what the profiles describe.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from importlib import resources
from typing import Literal

from fhir_server.demo.people import Person


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one facility writes HL7 v2. address: the loopback address it sends from (its channel)."""

    facility: str
    address: str
    application: str
    sender: str
    version: str
    codec: str
    charset: str = ""
    component: str = "^"
    order: Literal["ORM", "OML"] = "ORM"
    sexes: str = "MF"
    units: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, str, str] = ("N", "H", "L")
    value_type: str = "NM"
    resident_id_type: str = "NI"
    performer: str = ""


_PLAIN_UNITS = {
    "10*9/L": "10^9/L",
    "10*12/L": "10^12/L",
    "m[IU]/L": "mIU/L",
    "[IU]/mL": "IU/mL",
    "m[IU]/mL": "mIU/mL",
    "1": "",
}
_GREEK = {
    **_PLAIN_UNITS,
    "umol/L": "μmol/L",
    "ug/L": "µg/L",
    "10*9/L": "10\\S\\9/L",
    "10*12/L": "10\\S\\12/L",
}
_MORE = {"mg/L{FEU}": "mg/L FEU", "{INR}": "", "[pH]": "", "/[HPF]": "/HP", "mL/min/{1.73_m2}": "mL/min/1.73m2"}

COUNTY = Dialect(
    "county-hospital", "127.0.1.11", "LIS", "YXRMYY", "2.5.1", "utf-8", "UNICODE UTF-8", order="OML", units={**_MORE}
)
NORTH = Dialect(
    "north-township", "127.0.1.12", "HIS", "BLWSY", "2.3.1", "gb18030", component="$", sexes="12",
    units={**_PLAIN_UNITS, **_MORE}, flags=("M", "H", "L"), resident_id_type="01",
)  # fmt: skip
SOUTH = Dialect(
    "south-township", "127.0.1.13", "NHLIS", "NHWSY", "2.4", "utf-8", "UNICODE UTF-8", sexes="MF",
    units={**_GREEK, **_MORE}, flags=("", "↑", "↓"), value_type="ST", resident_id_type="身份证",
)  # fmt: skip
CLINIC = Dialect(
    "east-clinic",
    "127.0.1.14",
    "CLINIC",
    "DWWSS",
    "2.4",
    "utf-8",
    units={**_PLAIN_UNITS, **_MORE},
    performer="YXRMYY",
)
DIALECTS = (COUNTY, NORTH, SOUTH, CLINIC)


@dataclass(frozen=True, slots=True)
class Analyte:
    """Invented value distribution of one analyte, by LOINC: reference range, digits after the point, spread, or words."""

    low: float | None
    high: float | None
    decimals: int
    spread: float
    words: tuple[str, ...]


def analytes() -> dict[str, Analyte]:
    """LOINC -> Analyte, from analytes.csv."""
    found: dict[str, Analyte] = {}
    with resources.files("fhir_server.demo").joinpath("analytes.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            words = tuple(row["words"].split("|")) if row["words"] else ()
            low, high = (None, None) if words else (float(row["low"]), float(row["high"]))
            found[row["loinc"]] = Analyte(low, high, int(row["decimals"] or 0), float(row["spread"] or 0), words)
    return found


@dataclass(frozen=True, slots=True)
class Test:
    """One local test of a facility."""

    code: str
    name: str
    unit: str
    analyte: Analyte


@dataclass(frozen=True, slots=True)
class Panel:
    """One local order of a facility with the tests it reports."""

    code: str
    name: str
    orderable: str
    specimen: str
    tests: tuple[Test, ...]


UNMAPPED: dict[str, tuple[Test, ...]] = {
    "county-hospital": (Test("PDW", "血小板分布宽度", "fL", Analyte(9, 17, 1, 0.15, ())),),
    "north-township": (
        Test("1021", "红细胞分布宽度SD", "fL", Analyte(37, 54, 1, 0.08, ())),
        Test("1022", "血小板分布宽度", "fL", Analyte(9, 17, 1, 0.15, ())),
    ),
    "south-township": (Test("BC5380.PCT", "血小板压积", "%", Analyte(0.11, 0.28, 3, 0.2, ())),),
}
"""What the analysers add to a blood count and nobody has mapped: the worklist of the demo."""


_SPECIMENS = {
    "serum": ("SER", "血清"),
    "plasma": ("PLAS", "血浆"),
    "whole-blood": ("WB", "全血"),
    "urine": ("UR", "尿液"),
}
"""Specimen of the catalogue -> table 0487 code, and what an old LIS writes."""


@dataclass(frozen=True, slots=True)
class Value:
    """One result as printed."""

    text: str
    range: str
    flag: int
    status: str = "F"


@dataclass(frozen=True, slots=True)
class Report:
    """One report of one person at one facility, before it is written as messages."""

    dialect: Dialect
    person: Person
    panel: Panel
    number: str
    ordered: datetime
    collected: datetime
    issued: datetime
    values: tuple[Value, ...]
    status: str = "F"


def draw(panel: Panel, rng: random.Random) -> tuple[Value, ...]:
    """Values for a panel: mostly inside the range, some high or low, sometimes below the limit of detection."""
    out = []
    for test in panel.tests:
        a = test.analyte
        if a.words:
            word = a.words[0] if rng.random() < 0.8 else rng.choice(a.words)
            out.append(Value(word, a.words[0], 0 if word == a.words[0] else 1))
            continue
        assert a.low is not None and a.high is not None
        middle = (a.low + a.high) / 2
        value = max(rng.gauss(middle, max(middle * a.spread, 10**-a.decimals)), 10**-a.decimals)
        text = f"{value:.{a.decimals}f}"
        if a.low == 0 and rng.random() < 0.03:
            text, value = f"<{10**-a.decimals:.{a.decimals}f}", a.low
        low, high = f"{a.low:.{a.decimals}f}", f"{a.high:.{a.decimals}f}"
        out.append(Value(text, f"{low}-{high}", 1 if value > a.high else 2 if value < a.low else 0))
    return tuple(out)


def _time(at: datetime) -> str:
    return at.strftime("%Y%m%d%H%M%S")


class Writer:
    """Writes one facility's messages; numbers its control ids. Gives bytes in the facility's character set."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._count = 0

    def _comp(self, *parts: str) -> str:
        return self.dialect.component.join(parts).rstrip(self.dialect.component)

    def _message(self, kind: tuple[str, str], at: datetime, segments: Sequence[str], processing: str = "P") -> bytes:
        d = self.dialect
        self._count += 1
        control = f"{d.sender}{at:%y%m%d}{self._count:06d}"
        header = (
            f"MSH|{d.component}~\\&|{d.application}|{d.sender}|TONGJIAN|YXX|{_time(at)}||{self._comp(*kind)}|{control}"
            f"|{processing}|{d.version}|||AL|NE||{d.charset}"
        ).rstrip("|")
        return ("\r".join((header, *segments)) + "\r").encode(d.codec)

    def _pid(self, person: Person) -> str:
        d = self.dialect
        ids = [self._comp(self.record_number(person), "", "", d.sender, "PI")]
        if person.resident_id:
            ids.append(self._comp(person.resident_id, "", "", "GA", d.resident_id_type))
        name = self._comp(person.name, "", "", "", "", "", "L") if d.version != "2.3.1" else person.name
        sex = d.sexes[int(person.sex) - 1]
        return f"PID|1||{'~'.join(ids)}||{name}||{person.birth:%Y%m%d}|{sex}|||||{person.phone}"

    def record_number(self, person: Person) -> str:
        """The facility's own number of the person."""
        return f"{sum(self.dialect.facility.encode()) % 90 + 10}{person.number:06d}"

    def visit(self, person: Person, at: datetime) -> bytes:
        """ADT^A04: an outpatient is registered."""
        stamp = _time(at)
        doctor = self._comp(f"D{person.number % 7:03d}", "王医生")
        pv1 = f"PV1|1|O|{self._comp('门诊', '1', '1')}||||{doctor}||||||||||||{self.visit_number(person)}{'|' * 25}{stamp}"
        return self._message(("ADT", "A04"), at, (f"EVN|A04|{stamp}", self._pid(person), pv1))

    def visit_number(self, person: Person) -> str:
        """Number of the person's visit."""
        return f"MZ{self.record_number(person)}"

    def order(self, report: Report, control: str = "NW") -> bytes:
        """ORM^O01 or OML^O21: order control NW (new) or CA (cancel)."""
        d = self.dialect
        stamp = _time(report.ordered)
        orc = f"ORC|{control}|{self._placer(report)}|||||||{stamp}|||{self._comp('D001', '王医生')}|||||{self._comp('NK', '内科')}"
        code = self._comp(report.panel.code, report.panel.name, "L")
        obr = f"OBR|1|{self._placer(report)}||{code}||{stamp}"
        kind = ("ORM", "O01") if d.order == "ORM" else ("OML", "O21")
        return self._message(kind, report.ordered, (self._pid(report.person), self._pv1(report.person), orc, obr))

    def _pv1(self, person: Person) -> str:
        return f"PV1|1|O|||||||||||||||||{self.visit_number(person)}"

    def _placer(self, report: Report) -> str:
        return f"P{report.number}"

    def result(self, report: Report, person: Person | None = None) -> bytes:
        """ORU^R01 with ORC, OBR, one OBX per test and a SPM (2.5) or OBR-15 (before); ``person``: sent for somebody else."""
        d = self.dialect
        stamp, drawn, issued = _time(report.issued), _time(report.collected), _time(report.issued)
        who = person or report.person
        code = self._comp(report.panel.code, report.panel.name, "L")
        modern = d.version >= "2.5"
        specimen_code, specimen_name = _SPECIMENS[report.panel.specimen]
        source = "" if modern else specimen_name
        obr = (
            f"OBR|1|{self._placer(report)}|{report.number}|{code}||{_time(report.ordered)}|{drawn}|||||||{drawn}|{source}"
            f"|{self._comp('D001', '王医生')}||||||{issued}||LAB|{report.status}"
        )
        orc = f"ORC|RE|{self._placer(report)}|{report.number}||CM||||{_time(report.ordered)}"
        segments = [self._pid(who), self._pv1(who), orc, obr]
        for n, (test, value) in enumerate(zip(report.panel.tests, report.values, strict=True), 1):
            number = value.text[:1].isdigit()
            kind = d.value_type if number else "ST"
            unit = d.units.get(test.unit, test.unit)
            segments.append(
                f"OBX|{n}|{kind}|{self._comp(test.code, test.name, 'L')}||{value.text}|{unit}|{value.range}"
                f"|{d.flags[value.flag]}|||{value.status}|||{drawn}|{d.performer}".rstrip("|")
            )
        if modern:
            segments.append(
                f"SPM|1|S{report.number}||{self._comp(specimen_code, specimen_name, 'HL70487')}|||||||||||||{drawn}|{stamp}"
            )
        return self._message(("ORU", "R01"), report.issued, segments)

    def quality_control(self, panel: Panel, at: datetime, values: Sequence[Value]) -> bytes:
        """A control run: MSH-11 stays P, MSH-16... the sender marks it with SPM-11 = Q and no PID."""
        segments = [f"OBR|1||QC{at:%y%m%d}|{self._comp(panel.code, panel.name, 'L')}|||{_time(at)}"]
        for n, (test, value) in enumerate(zip(panel.tests, values, strict=True), 1):
            segments.append(f"OBX|{n}|NM|{self._comp(test.code, test.name, 'L')}||{value.text}|{test.unit}|||||F")
        segments.append(f"SPM|1|QC01||{self._comp('SER', '质控血清')}|||||||Q")
        return self._message(("ORU", "R01"), at, segments)


def bad_messages(writer: Writer, report: Report, foreign: Dialect) -> list[tuple[str, bytes]]:
    """Five deliberately bad messages: (what is wrong, bytes)."""
    good = writer.result(report)
    codec = writer.dialect.codec
    lines = good.decode(codec).split("\r")

    def changed(prefix: str, change: str | None, control: str) -> bytes:
        out = [ln if not ln.startswith(prefix) else change for ln in lines]
        text = "\r".join(ln for ln in out if ln is not None)
        old = text.split("|")[9]
        return text.replace(old, old + control, 1).encode(codec)

    obr = next(ln for ln in lines if ln.startswith("OBR")).split("|")
    broken = [*obr[:7], "20261340250000", *obr[8:]]
    pid = next(ln for ln in lines if ln.startswith("PID")).split("|")
    other = Writer(replace(writer.dialect, application=foreign.application, sender=foreign.sender))
    other._count = 900_000
    return [
        ("binary noise instead of a message", bytes(range(1, 11)) + b"\xff\xfe\x00 not HL7"),
        ("speaks for another facility (MSH-4)", other.result(report)),
        ("patient without any identifier (PID-3)", changed("PID", "|".join([*pid[:3], "", *pid[4:]]), "B3")),
        ("results without an order (no OBR)", changed("OBR", None, "B4")),
        ("impossible collection time (OBR-7)", changed("OBR", "|".join(broken), "B5")),
    ]


def moments(period: timedelta, end: datetime, count: int, rng: random.Random) -> Iterator[datetime]:
    """``count`` ascending times inside the period that ends on the day before ``end``, in surgery hours (7:30 to 16:30)."""
    days = sorted(rng.uniform(0, period.days) for _ in range(count))
    for day in days:
        at = end - timedelta(days=1) - period + timedelta(days=day)
        yield at.replace(hour=7, minute=30, second=0, microsecond=0) + timedelta(seconds=rng.randrange(9 * 3600))
