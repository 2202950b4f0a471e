"""What takes results of rule cases out of use again: a report number that went to another patient, a cancelled report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fhir_server.recognition.case_file import Prior
from fhir_server.store.statement import WITHDRAWN, Statement, said_at, with_status


@dataclass(frozen=True, slots=True)
class Stated:
    """One statement about an Observation, with the resources it belongs to."""

    statement: Statement
    prior: Prior
    report: Mapping[str, Any] | None
    specimen: Mapping[str, Any] | None
    encounter: Mapping[str, Any] | None
    patient: str | None
    parent: str | None
    images: Mapping[str, Any] = field(default_factory=dict)
    number: str = ""


def withdraw(stated: Mapping[str, list[Stated]]) -> None:
    """A report number that comes again under another patient takes the first patient's results out of use from then on
    (fhir_server.store.repository): each gets a further statement that it was entered in error."""
    taken: dict[tuple[str, str], list[Stated]] = {}
    for many in stated.values():
        for one in many:
            if one.number:
                taken.setdefault((one.statement.origin.facility, one.number), []).append(one)
    for same in taken.values():
        last = max(same, key=lambda s: s.statement.recency)
        for one in {s.statement.key[2]: s for s in same if s.patient != last.patient}.values():
            stated[one.statement.key[2]].append(_voided(one, last.statement))


def cancel(stated: Mapping[str, list[Stated]], void: Sequence[Stated]) -> None:
    """A report that is cancelled takes what was reported before out of use from then on (fhir_server.store.voided)."""
    for many in stated.values():
        for one in void:
            before = [s for s in many if s.parent == one.statement.key[2] and not _is_later(s.statement, one.statement)]
            if before:
                many.append(_voided(max(before, key=lambda s: s.statement.recency), one.statement))


def _is_later(one: Statement, other: Statement) -> bool:
    return said_at(one.recency) > said_at(other.recency)


def _voided(one: Stated, reason: Statement) -> Stated:
    """The further statement, for that reason, that a result was entered in error."""
    resource = with_status(one.statement.resource, WITHDRAWN)
    void = replace(one.statement, resource=resource, origin=reason.origin, recency=reason.recency, content=b"withdrawn")
    return replace(one, statement=void)
