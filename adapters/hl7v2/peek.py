"""What must be known of a message before it is acknowledged: MSH, patients named, character set (HL7 v2.5.1 section 2.15.9)."""

from __future__ import annotations

import re
from zoneinfo import ZoneInfo

from adapters.contract import Envelope
from adapters.hl7v2.continuation import pointers
from adapters.hl7v2.reader import opened, segment_lines
from adapters.hl7v2.segment import Segment
from mappings import times
from mappings.facility import Facility
from mappings.paths import rewritten, segments
from mappings.patient_key import patient_key, patient_keys
from mappings.quality_control import is_quality_control
from mappings.source import Record
from mappings.trigger import trigger_name

_MARKED = re.compile(
    rb"\A(?:\xef\xbb\xbf)?[ \t\r\n]*[\[<][A-Za-z0-9]{2,5}[\]>][ \t]*(?:\xef\xbb\xbf)?(?:MSH|FHS|BHS)(?=[^A-Za-z0-9\r\n])",
    re.IGNORECASE,
)
_WANTED = frozenset(("EVN", "PID", "MRG", "SPM"))


def is_marked(raw: bytes) -> bool:
    """Whether a header follows a mark of stripped framing (``[SOM]MSH|``, ``<VT>MSH|``), which looks like JSON or XML at first."""
    return _MARKED.match(raw) is not None


def peek(raw: bytes, facility: Facility) -> Envelope:
    """Envelope of one message.

    raw       one message; framing around it is tolerated
    facility  its profile: time zone of MSH-7, character set, which identifier is the patient key
    Raises Unreadable like ``reader.read``, nothing else.
    """
    start = opened(raw, facility.charset)
    header = start.header
    field = start.separators.field
    counts: dict[str, int] = {}
    wanted = _WANTED | segments(facility) if facility.paths else _WANTED
    found: list[Record] = [header]
    for line in segment_lines(start)[0]:
        name = line[:3]
        if name not in wanted:
            name = name.upper()
            if name not in wanted:
                continue
        if line[3:4] == field or line.partition(field)[0].strip().upper() == name:
            counts[name] = number = counts.get(name, 0) + 1
            found.append(Segment(name, f"{name}[{number}]", line, start.rules))
    records, _ = rewritten(found, facility)
    msh = records[0]
    event = next((r.first(1) for r in records if r.name == "EVN"), "")
    keys = [patient_key(r, facility) for r in records if r.name == "PID"]
    keys += [key for r in records if r.name == "MRG" for key in patient_keys(r, facility)]
    sent = times.parse(times.hl7(msh.first(7), tuple(facility.date_formats)), ZoneInfo(facility.time_zone))
    return Envelope(
        format="hl7v2",
        trigger=trigger_name(msh, event),
        control_id=msh.first(10).strip(),
        sender=(header.first(3).strip(), header.first(4).strip()),
        sent_at=sent.at if sent else None,
        charset=start.charset,
        patient_keys=tuple(dict.fromkeys(key for key in keys if key)),
        accept_ack=header.first(15).strip().upper(),
        application_ack=header.first(16).strip().upper(),
        version=header.first(12).strip(),
        quality_control=is_quality_control(records, facility),
        pointers=tuple(p for p in pointers(raw) if p),
        issues=tuple(start.issues),
    )
