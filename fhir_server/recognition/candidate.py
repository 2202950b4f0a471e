"""What a criterion looks at: one stored result (Candidate) before one order (Case), and what it answers (Criterion)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple

from fhir_server.recognition.order import Order
from fhir_server.recognition.rules import Mode, Policy, Rules
from mappings.catalogue import Item


class Answer(StrEnum):
    """What a criterion says about one result."""

    MET = "met"
    NOT_MET = "not-met"
    UNKNOWN = "unknown"
    NOT_REQUIRED = "not-required"


class Candidate(NamedTuple):
    """One version of one stored result (a row of ``result``) as it may be known at the order's time. None: not known.

    site, laterality, contrast, method  as the result states them, in the words of the catalogue (laterality: left, right, bilateral)
    images_complete, images_reachable, image_quality  of the study behind an examination; health_check: of a 体检 visit
    image_site, image_side, image_contrast, image_views  what the headers of its images say, for a result that does not say it
    person, grade   person its Patient was linked to at that time, and how surely (certain, probable, possible, certainly-not)
    recorded, until from when to when this version was visible
    """

    id: str
    version: int
    patient: str | None = None
    person: str | None = None
    grade: str | None = None
    report: str | None = None
    facility: str | None = None
    performer: str | None = None
    item: str | None = None
    loinc: str | None = None
    code: str | None = None
    name: str | None = None
    specimen: str | None = None
    number: Decimal | None = None
    comparator: str | None = None
    value_text: str | None = None
    unit: str | None = None
    unit_text: str | None = None
    flag: str | None = None
    order: str | None = None
    status: str | None = None
    effective: datetime | None = None
    issued: datetime | None = None
    recorded: datetime | None = None
    until: datetime | None = None
    mark: str | None = None
    quality: str | None = None
    site: str | None = None
    laterality: str | None = None
    contrast: str | None = None
    method: str | None = None
    health_check: bool | None = None
    images_complete: bool | None = None
    images_reachable: bool | None = None
    image_quality: str | None = None
    image_site: str | None = None
    image_side: str | None = None
    image_contrast: str | None = None
    image_views: str | None = None


NOT_KEPT: Final = frozenset(
    {
        "images_complete", "images_reachable", "image_quality", "image_site", "image_side", "image_contrast", "image_views",
    }
)  # fmt: skip
"""Facts the flat result row does not hold: they are those of the study (recognition.images)."""


class Criterion(NamedTuple):
    """One criterion judged on one result: ``evidence`` holds the facts compared.

    ``stands``: it does not stand in the way: met, not required, or required only where stated and nothing is stated.
    ``bars``: it stands in the way so that the result may not even be looked at as a usable one.
    """

    name: str
    answer: Answer
    mode: Mode
    evidence: dict[str, Any]
    stands: bool
    bars: bool = False


Judged = tuple[Answer, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """One result before one order."""

    order: Order
    result: Candidate
    item: Item
    policy: Policy
    at: datetime
    rules: Rules


def made(case: Case) -> datetime | None:
    """The time of the result that window, mark and EQA look at."""
    return (
        case.result.effective if (case.item.time_base or case.policy.time_base) == "effective" else case.result.issued
    )
