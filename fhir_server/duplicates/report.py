"""The duplicate audit as values, and as a table, CSV or JSON. Amounts are in fen; a figure that cannot be computed is null, never 0."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from functools import reduce
from typing import TYPE_CHECKING, Any, Final, Literal, get_args
from zoneinfo import ZoneInfo

from rich import box
from rich.console import Console
from rich.table import Table

from conformance import fhirjson
from fhir_server.duplicates.spreadsheet import Sheet, workbook
from fhir_server.recognition.decide import instant
from mappings.catalogue import Orderable

if TYPE_CHECKING:
    from fhir_server.duplicates.cases import Counted

Kind = Literal["avoidable", "justified", "undetermined", "system"]
Basis = Literal["order", "collection"]
_SHANGHAI: Final = ZoneInfo("Asia/Shanghai")


@dataclass(frozen=True, slots=True)
class Finding:
    """One repeat of an orderable for one person.

    id        derived from order and orderable: the same audit twice gives the same findings
    kind      avoidable: a recognizable result was visible and no lawful reason is recorded; justified: a lawful reason is recorded;
              undetermined: something needed to tell is not known; system: the result existed, but the platform could not offer it
    cause     justified: ``reason-1`` ... ``reason-6``, or a local reason; system: ``not-yet-received``, ``unmapped-code``,
              ``unmapped-unit``, ``identity-not-linked``, ``corrected-later``, ``missing-image``, ``repository-away``; undetermined:
              the criteria unknown; else empty
    reminder  what the clinician saw: ``none``, ``open`` (nothing decided), ``adopted``, ``declined``, ``revoked``, ``no-answer``
    doctor, department  who ordered, as far as the order says so; empty when not
    order     ``ServiceRequest/<id>``, or ``DiagnosticReport/<id>`` where a feed sends no orders
    at        the order's time; basis: where that time comes from
    prior     Observations (with version) that covered the order; repeated: Observations of the order itself
    decision  the decision as of that time (docs/recognition.md), with the version of the rules
    catalogue digest of the catalogue used
    """

    id: str
    kind: Kind
    cause: str
    facility: str
    orderable: str
    order: str
    at: datetime
    basis: Basis
    prior: tuple[str, ...]
    repeated: tuple[str, ...]
    price_fen: int | None
    decision: dict[str, Any]
    doctor: str = ""
    department: str = ""
    reminder: str = "none"
    catalogue: str = ""


@dataclass(frozen=True, slots=True)
class Scope:
    """What an audit is narrowed to; empty: not narrowed. ``item``: code of an orderable, or of a catalogue item it requires."""

    facility: str = ""
    department: str = ""
    doctor: str = ""
    item: str = ""

    def holds(self, facility: str, department: str, doctor: str, orderable: Orderable) -> bool:
        """Is an order inside?"""
        return (
            self.facility in ("", facility)
            and self.department in ("", department)
            and self.doctor in ("", doctor)
            and (not self.item or self.item == orderable.code or self.item in orderable.required)
        )


EVERYTHING: Final = Scope()


_COUNTS: Final = ("orders", "avoidable", "justified", "undetermined", "system", "partial")


@dataclass(frozen=True, slots=True)
class Row:
    """Counts of one facility and orderable. ``amount_fen``: price of the avoidable repeats, None when a price is not known."""

    facility: str
    orderable: str
    name: str
    basis: Basis
    orders: int = 0
    avoidable: int = 0
    justified: int = 0
    undetermined: int = 0
    system: int = 0
    partial: int = 0
    amount_fen: int | None = 0

    @property
    def repeats(self) -> int:
        """Orders of which every required item had an earlier result."""
        return self.avoidable + self.justified + self.undetermined + self.system

    def plus(self, other: Row) -> Row:
        """Both counted together; everything else is this row's."""
        known = self.amount_fen is not None and other.amount_fen is not None
        counts = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        return replace(self, **counts, amount_fen=(self.amount_fen or 0) + (other.amount_fen or 0) if known else None)

    def with_order(self, finding: Finding | None, *, partial: bool) -> Row:
        """The row after one more order."""
        row = replace(self, orders=self.orders + 1, partial=self.partial + (1 if partial else 0))
        if finding is None:
            return row
        row = replace(row, **{finding.kind: getattr(row, finding.kind) + 1})
        if finding.kind != "avoidable":
            return row
        known = row.amount_fen is not None and finding.price_fen is not None
        return replace(row, amount_fen=(row.amount_fen or 0) + (finding.price_fen or 0) if known else None)


@dataclass(frozen=True, slots=True)
class Report:
    """The audit of the orders of a period [start, end). ``not_understood``: facility -> orders of unknown codes. ``pairs``: earlier
    results looked at beside an order. ``cases``: every order counted, where they were asked for."""

    start: datetime
    end: datetime
    rules_version: str
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    not_understood: dict[str, int] = field(default_factory=dict)
    scope: Scope = EVERYTHING
    catalogue: str = ""
    pairs: int = 0
    cases: tuple[Counted, ...] = ()


def totals(report: Report) -> tuple[Row, ...]:
    """One total per basis that has rows: orders first, then feeds without order times."""
    out = []
    bases: tuple[Basis, ...] = ("order", "collection")
    for basis in bases:
        rows = [r for r in report.rows if r.basis == basis]
        if rows:
            out.append(reduce(Row.plus, rows, Row("", "", "", basis)))
    return tuple(out)


def yuan(fen: int | None) -> str:
    """Fen as yuan with two digits; ``-`` when not known."""
    return "-" if fen is None else f"{fen // 100}.{fen % 100:02d}"


_COLUMNS = ("orders", "repeats", "avoidable", "justified", "undetermined", "system", "partial")


def table(report: Report) -> Table:
    """The audit for a terminal: facilities and orderables with a repeat or a partial overlap, then totals."""
    title = f"Duplicate audit {report.start:%Y-%m-%d %H:%M:%S} to {report.end:%Y-%m-%d %H:%M:%S}, rules {report.rules_version}"
    out = Table(
        title=title, caption=_caption(report), caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    out.add_column("facility", no_wrap=True)
    out.add_column("orderable", overflow="fold")
    for name in (*_COLUMNS, "yuan"):
        out.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        if row.repeats or row.partial:
            out.add_row(_shown(row.facility, row.basis), row.name, *_cells(row))
    for total in totals(report):
        out.add_section()
        out.add_row(_shown("all", total.basis), "all orders", *_cells(total))
    return out


def _shown(facility: str, basis: Basis) -> str:
    return facility if basis == "order" else f"{facility} (no order times)"


def _cells(row: Row) -> list[str]:
    return [*(str(getattr(row, name)) for name in _COLUMNS), yuan(row.amount_fen)]


def _caption(report: Report) -> str:
    text = (
        "repeats = avoidable + justified + undetermined + system; yuan: price of the avoidable ones.\n"
        "partial: only some required items had an earlier result, which is no repeat. Rows without either are left out."
    )
    for kind, found in causes(report.findings).items():
        text += f"\n{kind}: " + ", ".join(f"{cause} {count}" for cause, count in found.items()) + "."
    if report.not_understood:
        named = ", ".join(f"{facility} {count}" for facility, count in sorted(report.not_understood.items()))
        text += f"\nOrders whose code is not in the catalogue, not judged: {named}."
    return text


def as_text(report: Report) -> str:
    """The table as text, 160 columns wide."""
    out = io.StringIO()
    Console(file=out, width=160).print(table(report))
    return out.getvalue()


def as_csv(report: Report) -> str:
    """One line a facility, orderable and basis; amounts in fen, empty when not known. UTF-8 text with CRLF line ends (RFC 4180)."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("facility", "orderable", "name", "basis", *_COLUMNS, "amount_fen"))
    for row in report.rows:
        amount = "" if row.amount_fen is None else row.amount_fen
        cells = (row.facility, row.orderable, row.name, row.basis)
        writer.writerow((*cells, *(getattr(row, name) for name in _COLUMNS), amount))
    return out.getvalue()


def as_dict(report: Report) -> dict[str, Any]:
    """The whole report as JSON values: period, rules version, rows, totals, findings with their decisions."""
    return {
        "start": report.start.isoformat(),
        "end": report.end.isoformat(),
        "rules": report.rules_version,
        "catalogue": report.catalogue,
        "scope": {k: v or None for k, v in asdict(report.scope).items()},
        "rows": [asdict(r) | {"repeats": r.repeats} for r in report.rows],
        "totals": [asdict(r) | {"repeats": r.repeats} for r in totals(report)],
        "not_understood": report.not_understood,
        "causes": causes(report.findings),
        "top": tops(report.findings),
        "findings": [finding_dict(f) for f in report.findings],
    }


def finding_dict(finding: Finding) -> dict[str, Any]:
    """One finding as JSON values."""
    return {f.name: getattr(finding, f.name) for f in fields(finding)} | {"at": instant(finding.at)}


def causes(findings: Iterable[Finding]) -> dict[str, dict[str, int]]:
    """Kind -> cause -> number of findings, most frequent first."""
    out: dict[str, Counter[str]] = {}
    for f in findings:
        out.setdefault(f.kind, Counter())[f.cause or f.reminder] += 1
    return {kind: dict(counted.most_common()) for kind, counted in sorted(out.items())}


TOPS: Final = ("facility", "department", "doctor", "orderable", "month")
_TOP_COLUMNS: Final = ("by", "name", "avoidable", "justified", "undetermined", "system", "amount_fen")


def tops(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings counted by facility, by department, doctor and orderable of a facility, and by month of the order (Asia/Shanghai),
    most avoidable first, months in order. ``amount_fen``: price of the avoidable ones, None when one is not known."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for f in findings:
        names = (f.facility, f.department, f.doctor, f.orderable, f"{f.at.astimezone(_SHANGHAI):%Y-%m}")
        for by, name in zip(TOPS, names, strict=True):
            local = f"{f.facility} {name}" if by in ("department", "doctor") else name
            if name:
                groups.setdefault((by, local), []).append(f)
    out = []
    for (by, name), found in groups.items():
        kinds = Counter(f.kind for f in found)
        prices = [f.price_fen for f in found if f.kind == "avoidable"]
        amount = None if None in prices else sum(p for p in prices if p is not None)
        out.append({"by": by, "name": name, **{k: kinds[k] for k in get_args(Kind)}, "amount_fen": amount})
    return sorted(out, key=lambda g: (TOPS.index(g["by"]), g["by"] != "month" and -g["avoidable"], g["name"]))


def as_json(report: Report) -> str:
    """``as_dict`` as JSON text, indented, with a line end."""
    return fhirjson.dumps(as_dict(report), pretty=True).decode() + "\n"


def as_xlsx(report: Report) -> bytes:
    """Excel: counts, causes, and every finding with its results; amounts in fen."""
    about: list[tuple[str, Any]] = [
        ("from", report.start.isoformat()),
        ("to (exclusive)", report.end.isoformat()),
        ("rules", report.rules_version),
        ("catalogue", report.catalogue),
        *((f"only {name}", value) for name, value in asdict(report.scope).items() if value),
        *((f"orders of unknown codes: {facility}", count) for facility, count in sorted(report.not_understood.items())),
    ]
    rows = [*report.rows, *totals(report)]
    head = ("facility", "orderable", "name", "basis")
    return workbook(
        (
            Sheet("about", ("what", "value"), about),
            Sheet("counts", (*head, *_COLUMNS, "amount_fen"), (_line(r) for r in rows)),
            Sheet(
                "causes",
                ("kind", "cause", "findings"),
                ((kind, cause, n) for kind, found in causes(report.findings).items() for cause, n in found.items()),
            ),
            Sheet("top", _TOP_COLUMNS, (tuple(group.values()) for group in tops(report.findings))),
            Sheet(
                "findings",
                _FINDING_COLUMNS,
                ([_cell(finding_dict(f)[name]) for name in _FINDING_COLUMNS] for f in report.findings),
            ),
        )
    )


_FINDING_COLUMNS: Final = (
    "id", "kind", "cause", "reminder", "facility", "department", "doctor", "orderable", "order", "at", "basis", "price_fen", "prior",
    "repeated",
)  # fmt: skip


def _line(row: Row) -> list[Any]:
    name = row.name or "total"
    return [row.facility, row.orderable, name, row.basis, *(getattr(row, c) for c in _COLUMNS), row.amount_fen]


def _cell(value: Any) -> Any:
    return " ".join(value) if isinstance(value, tuple | list) else value
