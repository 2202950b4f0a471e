"""The cases behind a figure of the duplicate audit: the orders it counts, one by one, as values, CSV and Excel.

A figure is a count of one row of the audit, or of its totals: orders, repeats, each kind of finding, partial, not-understood. Cases
name resources by logical id, never a patient.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, get_args

from fhir_server.duplicates.orders import Placed, Unknown
from fhir_server.duplicates.report import Basis, Finding
from fhir_server.duplicates.spreadsheet import Sheet, workbook
from fhir_server.recognition.decide import Decision, instant

Figure = Literal[
    "orders", "repeats", "avoidable", "justified", "undetermined", "system", "partial", "not-understood"
]  # fmt: skip
FIGURES: Final[tuple[Figure, ...]] = get_args(Figure)
_REPEATS: Final = frozenset({"avoidable", "justified", "undetermined", "system"})


@dataclass(frozen=True, slots=True)
class Counted:
    """One order that a figure counts.

    order     ``ServiceRequest/<id>``, or ``DiagnosticReport/<id>`` where a feed sends no orders; at: its time; basis: where from
    kind      of its finding; ``partial`` where only some required items had an earlier result; else empty
    finding   id of its finding, empty when it is no repeat; cause: of the finding
    fresh, missing  of a partial one: required items with and without a usable earlier result; prior: those results, with version
    """

    order: str
    facility: str
    orderable: str
    name: str
    at: datetime
    basis: Basis
    doctor: str = ""
    department: str = ""
    kind: str = ""
    cause: str = ""
    finding: str = ""
    fresh: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    prior: tuple[str, ...] = ()


def counted(placed: Placed, finding: Finding | None, partial: Decision | None) -> Counted:
    """An order with what the audit says of it. ``partial``: the decision of one of which only a part had earlier results."""
    order = f"ServiceRequest/{placed.id}" if placed.id else f"DiagnosticReport/{placed.report}"
    code, name = placed.orderable.code, placed.orderable.name_zh
    who = (order, placed.facility, code, name, placed.at, placed.basis, placed.doctor, placed.department)
    if finding is not None:
        return Counted(*who, finding.kind, finding.cause, finding.id, prior=finding.prior)
    if partial is None:
        return Counted(*who)
    fresh = [m for m in partial.required if m.shown]
    prior = (f"Observation/{m.shown.id}/_history/{m.shown.version}" for m in fresh if m.shown)
    missing = tuple(m.item for m in partial.required if not m.shown)
    return Counted(*who, "partial", fresh=tuple(m.item for m in fresh), missing=missing, prior=tuple(prior))


def not_understood(order: Unknown) -> Counted:
    """An order whose code is not in the catalogue."""
    return Counted(order.order, order.facility, "", "", order.at, order.basis, kind="not-understood")


def of(figure: str, cases: Iterable[Counted]) -> list[Counted]:
    """Those of a figure, oldest order first."""
    wanted = {
        "orders": lambda c: c.kind != "not-understood",
        "repeats": lambda c: c.kind in _REPEATS,
    }.get(figure, lambda c: c.kind == figure)
    return sorted(filter(wanted, cases), key=lambda c: (c.at, c.order, c.orderable))


_COLUMNS: Final = tuple(Counted.__dataclass_fields__)


def as_dict(case: Counted) -> dict[str, Any]:
    """One case as JSON values."""
    return {name: getattr(case, name) for name in _COLUMNS} | {"at": instant(case.at)}


def as_csv(cases: Sequence[Counted]) -> str:
    """One line a case; lists are separated by a space. UTF-8 text with CRLF line ends (RFC 4180)."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(_COLUMNS)
    writer.writerows(_cells(as_dict(c)) for c in cases)
    return out.getvalue()


def as_xlsx(cases: Sequence[Counted]) -> bytes:
    """A workbook of one sheet."""
    return workbook((Sheet("cases", _COLUMNS, (_cells(as_dict(c)) for c in cases)),))


def _cells(row: Mapping[str, Any]) -> list[Any]:
    return [" ".join(v) if isinstance(v, tuple) else v for v in row.values()]
