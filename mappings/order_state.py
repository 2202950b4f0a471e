"""What the results of one order share while they are mapped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mappings.codes import LocalTest


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
    seen         how often a (code, sub-id) was met: the ordinal of repeated results
    test         mapping of the result being read
    performers   references of the organisations that performed results, in order of appearance
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
    seen: dict[tuple[str, str], int] = field(default_factory=dict)
    test: LocalTest | None = None
    code: str = ""
    name: str = ""
    performers: list[dict[str, Any]] = field(default_factory=list)
