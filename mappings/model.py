"""What a conversion gives: entries with their recency, issues, unread fields. Values only; no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from conformance.issue import Issue


class Tier(IntEnum):
    """How much a message may say about a resource it carries. A lower tier never replaces a higher one.

    MENTION      the resource is only mentioned (PID in a result, OBR echo of an order): created if absent
    PRELIMINARY  a statement that may still change (registered, preliminary, partial)
    FINAL        an authoritative statement (final, corrected, cancelled, entered-in-error; ADT for Patient and Encounter;
                 an order message for ServiceRequest)
    """

    MENTION = 0
    PRELIMINARY = 1
    FINAL = 2


@dataclass(frozen=True, slots=True, order=True)
class Recency:
    """Total order of statements about one resource, independent of arrival: tier, then OBR-22, then MSH-7, then status rank.

    Times are UTC ``YYYY-MM-DDTHH:MM:SS.ffffffZ`` texts (they sort), empty when the message gives none. Ties end with the content
    hash, which the store adds.
    """

    tier: int
    reported_at: str = ""
    sent_at: str = ""
    status_rank: int = 0


@dataclass(slots=True)
class Entry:
    """One resource of the transaction.

    resource   FHIR R4 JSON as a plain dict with ``resourceType`` and derived ``id``; numbers as Decimal, never float
    recency    decides against the stored version
    patient    logical id of the Patient whose compartment it is in, None for directory resources
    business   business key ("<resource type>|<system>|<value>") that may belong to one patient only (a report's filler order
               number): when it reappears under another patient the old resource becomes entered-in-error; empty when none
    parent     id of the DiagnosticReport an Observation or Specimen belongs to; withdrawn together with it; empty when none
    members    ``fhirjson.members`` of the resource, written once for all who need them when it is finished; empty before
    """

    resource: dict[str, Any]
    recency: Recency
    patient: str | None
    business: str = ""
    parent: str = ""
    members: Sequence[bytes] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Unread:
    """A non-empty source field no mapping rule read: position (``OBX[3]-21``), and its text for authorised eyes."""

    where: str
    value: str


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A local code or unit without a mapping, for the worklist. kind: ``code``, ``unit`` or ``order``."""

    kind: str
    facility: str
    code: str
    name: str
    unit: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Merge:
    """A patient-merge statement (ADT A18/A34/A40/A47 ...): links, never rewrites. Logical ids of facility Patients."""

    surviving: str
    retired: str
    trigger: str


@dataclass(slots=True)
class Conversion:
    """Result of reading and mapping one message."""

    entries: list[Entry] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    unmapped: list[Unmapped] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    quality_control: bool = False
    """True for a quality-control run: kept apart, ``entries`` empty, never a patient's result."""

    @property
    def held(self) -> Issue | None:
        """The first issue that holds the message (severity error or fatal), or None."""
        return next((i for i in self.issues if i.severity in ("error", "fatal")), None)

    def bundle(self) -> dict[str, Any]:
        """The transaction Bundle: one PUT per entry (http://hl7.org/fhir/R4/http.html#transaction)."""
        return {
            "resourceType": "Bundle",
            "type": "transaction",
            "entry": [
                {
                    "fullUrl": f"urn:tongjian:{e.resource['resourceType']}/{e.resource['id']}",
                    "resource": e.resource,
                    "request": {"method": "PUT", "url": f"{e.resource['resourceType']}/{e.resource['id']}"},
                }
                for e in self.entries
            ],
        }
