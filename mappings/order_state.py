"""What the results of one order share while they are mapped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mappings.codes import LocalTest
from mappings.model import Recency
from mappings.units import Unit


@dataclass(frozen=True, slots=True)
class Noted:
    """The result being read: its code (its name when it has none), its name without marks, its mapping, unit and range as text."""

    code: str
    name: str
    test: LocalTest | None
    unit: Unit | None
    range_text: str


@dataclass(slots=True)
class OrderState:
    """One OBR and its results.

    report       logical id of the DiagnosticReport, empty for results without one
    effective    ``{"effectiveDateTime": ...}`` or ``{"effectivePeriod": ...}`` for results without OBX-14; empty when unknown
    day          calendar date of the order's results (local code maps are valid in time)
    issued       OBR-22 as instant
    reported_at  OBR-22, else MSH-7, as sortable UTC text (Recency)
    withdrawn    the whole report is entered in error
    category     Observation.category
    based_on     reference to the ServiceRequest
    specimens    (identifier values, reference) of each Specimen
    noted        what the code of the result being read means
    performers   references of the organisations that performed results, in order of appearance
    recencies    status -> Recency of a result with it
    """

    report: str = ""
    scope: str = ""
    effective: dict[str, Any] = field(default_factory=dict)
    day: str = ""
    issued: str = ""
    reported_at: str = ""
    withdrawn: bool = False
    category: list[dict[str, Any]] = field(default_factory=list)
    based_on: dict[str, str] | None = None
    specimens: list[tuple[tuple[str, ...], dict[str, str]]] = field(default_factory=list)
    noted: Noted | None = None
    performers: list[dict[str, Any]] = field(default_factory=list)
    recencies: dict[str, Recency] = field(default_factory=dict)
