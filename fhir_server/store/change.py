"""What goes into the store with a resource (Origin) and what comes back (Change)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Kind = Literal["created", "updated", "deleted", "stale", "unchanged"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a statement came from.

    facility  facility that sent it, or for an API write the facility of the caller
    inbox     inbox id of the message; None for API writes
    mapping   mapping_version.id it was converted with; None for API writes
    recorded  from when it is visible: aware datetime, given by the caller (one clock); stored to the millisecond
    backfill  it came through the slow lane: nobody is notified, and it counts as visible from ``recorded`` only
    """

    facility: str
    inbox: int | None
    mapping: int | None
    recorded: datetime
    backfill: bool = False


@dataclass(slots=True)
class Change:
    """One version that was written, or (put and delete only) found ``unchanged``.

    kind           created, updated, deleted: a new current version; stale: a version that went to history only
    resource_type  FHIR type name
    id, shard      logical id and its shard
    version        version id of this version (of the current one when unchanged)
    updated        meta.lastUpdated
    patient        logical id of the Patient whose compartment it is in; None for directories
    origin         of the statement; of the taking-over statement when ``voided``
    resource       the resource as stored, meta included; None when deleted
    body           the same as JSON bytes, as served
    voided         it became entered-in-error because its report number came again under another patient
    restored       a voided one came into force again, because a newer statement gave the number back to its patient
    left           the Patient it was moved away from (a PUT or a message with another subject); None otherwise
    """

    kind: Kind
    resource_type: str
    id: str
    shard: int
    version: int
    updated: datetime
    patient: str | None
    origin: Origin
    resource: dict[str, Any] | None
    body: bytes
    voided: bool = False
    restored: bool = False
    left: str | None = None

    @property
    def reference(self) -> str:
        """``<type>/<id>``."""
        return f"{self.resource_type}/{self.id}"

    @property
    def versioned(self) -> str:
        """``<type>/<id>/_history/<version>`` (http://hl7.org/fhir/R4/http.html#vread)."""
        return f"{self.resource_type}/{self.id}/_history/{self.version}"
