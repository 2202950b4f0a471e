"""``tongjian convert``: messages to a Bundle, with their issues and unread fields beside it; no database."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

from adapters.contract import Unreadable
from adapters.convert import convert, recognise, split
from adapters.hl7v2.batch import shortage
from conformance import fhirjson, validator
from mappings.model import Conversion, Entry
from mappings.profile import Profile

CLEAN, WITH_ISSUES, NOTHING = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """bundle: JSON bytes, empty when nothing could be converted; notes: JSON bytes with ``issues``, ``unread``, ``unmapped``."""

    bundle: bytes
    notes: bytes
    exit_code: int


@dataclass(slots=True)
class _Collected:
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    issues: list[dict[str, Any]] = field(default_factory=list)
    unread: list[dict[str, Any]] = field(default_factory=list)
    unmapped: list[dict[str, Any]] = field(default_factory=list)
    quality_control: int = 0

    def add(self, found: Conversion, of: dict[str, int]) -> None:
        """Takes one message over; of two states of one resource the newer one stays. ``of``: which message, when many."""
        for entry in found.entries:
            key = (entry.resource["resourceType"], entry.resource["id"])
            if key not in self.entries or entry.recency >= self.entries[key].recency:
                self.entries[key] = entry
            found.issues.extend(validator.check(entry.resource))
        self.issues += [of | i.as_dict() for i in found.issues]
        self.unread += [of | {"where": u.where, "value": u.value} for u in found.unread]
        self.unmapped += [
            of | {"kind": u.kind, "code": u.code, "name": u.name, "unit": u.unit, "where": u.where}
            for u in found.unmapped
        ]
        self.quality_control += found.quality_control


def convert_file(raw: bytes, profile: Profile, *, pretty: bool = True, at: str = "") -> Outcome:
    """Read, convert and validate every message of a file. Raises nothing: what is wrong stands in the notes.

    at  now, as FHIR instant, to know what lies in the future; empty when that is not asked
    """
    all_of_them = _Collected()
    kind = recognise(raw, profile)
    messages = list(split(io.BytesIO(raw), kind, profile)) or [raw]
    for number, message in enumerate(messages, 1):
        of = {"message": number} if len(messages) > 1 else {}
        try:
            all_of_them.add(convert(message, profile, kind, received_at=at), of)
        except Unreadable as fault:
            all_of_them.issues.append(of | fault.issue.as_dict())
    short = shortage(raw) if kind == "hl7v2" else None
    if short is not None:
        all_of_them.issues.append(short.as_dict())
    notes = {
        "facility": profile.facility.id,
        "format": kind,
        "messages": len(messages),
        "quality_control": all_of_them.quality_control,
        "issues": all_of_them.issues,
        "unread": all_of_them.unread,
        "unmapped": all_of_them.unmapped,
    }
    written = fhirjson.dumps(notes, pretty=pretty)
    if not all_of_them.entries:
        return Outcome(b"", written, NOTHING)
    clean = not all_of_them.unmapped and all(i["severity"] == "information" for i in all_of_them.issues)
    bundle = Conversion(entries=list(all_of_them.entries.values())).bundle()
    return Outcome(fhirjson.dumps(bundle, pretty=pretty), written, CLEAN if clean else WITH_ISSUES)
