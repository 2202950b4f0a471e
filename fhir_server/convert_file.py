"""``tongjian convert``: one message to a Bundle, with its issues and unread fields beside it; no database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapters.contract import Unreadable
from adapters.convert import convert
from conformance import fhirjson, validator
from mappings.profile import Profile

CLEAN, WITH_ISSUES, NOTHING = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """bundle: JSON bytes, empty when nothing could be converted; notes: JSON bytes with ``issues``, ``unread``, ``unmapped``."""

    bundle: bytes
    notes: bytes
    exit_code: int


def convert_file(raw: bytes, profile: Profile, *, pretty: bool = True) -> Outcome:
    """Read, convert and validate one message. Raises nothing: what is wrong stands in the notes."""
    notes: dict[str, Any] = {"facility": profile.facility.id, "issues": [], "unread": [], "unmapped": []}
    try:
        found = convert(raw, profile)
    except Unreadable as fault:
        notes["issues"] = [fault.issue.as_dict()]
        return Outcome(b"", fhirjson.dumps(notes, pretty=pretty), NOTHING)
    issues = [*found.issues, *(i for e in found.entries for i in validator.check(e.resource))]
    notes["issues"] = [i.as_dict() for i in issues]
    notes["unread"] = [{"where": u.where, "value": u.value} for u in found.unread]
    notes["unmapped"] = [
        {"kind": u.kind, "code": u.code, "name": u.name, "unit": u.unit, "where": u.where} for u in found.unmapped
    ]
    notes["quality_control"] = found.quality_control
    if not found.entries:
        return Outcome(b"", fhirjson.dumps(notes, pretty=pretty), NOTHING)
    clean = all(i.severity == "information" for i in issues)
    return Outcome(
        fhirjson.dumps(found.bundle(), pretty=pretty),
        fhirjson.dumps(notes, pretty=pretty),
        CLEAN if clean else WITH_ISSUES,
    )
