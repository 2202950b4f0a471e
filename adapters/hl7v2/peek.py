"""What must be known of a message before it is acknowledged: MSH, patients named, character set (HL7 v2.5.1 section 2.15.9)."""

from __future__ import annotations

import re
from zoneinfo import ZoneInfo

from adapters.contract import Envelope
from adapters.hl7v2.reader import opened, segment_lines
from adapters.hl7v2.segment import Segment
from mappings import times
from mappings.facility import Facility
from mappings.patient_key import patient_key
from mappings.quality_control import is_quality_control

_JOINED = re.compile(r"([A-Z][A-Z0-9]{2})[^A-Z0-9]([A-Z][A-Z0-9]{2})(?![A-Z0-9])")
_WANTED = frozenset(("EVN", "PID", "MRG", "SPM"))
# Versions 2.1 and 2.2 named these messages without an event; each had only one.
_ONLY_EVENT = {"ORU": "R01", "ORM": "O01"}


def trigger(header: Segment, event: str = "") -> str:
    """``<message code>^<trigger event>`` of MSH-9; ``event`` is EVN-1, used when MSH-9 has none.

    Also reads what senders write instead: only the structure (``ADT_A01``, ``^^ORU_R01``), or another separator than the message's
    own (``ORU^R01`` under other encoding characters). Empty when MSH-9 is empty.
    """
    code, name, structure = (header.first(9, n).strip().upper() for n in (1, 2, 3))
    if not code and structure:
        code = structure
    if not name and (joined := _JOINED.match(code)):
        code, name = joined.groups()
    name = name or event.strip().upper() or _ONLY_EVENT.get(code, "")
    return f"{code}^{name}" if code and name else code


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
    records = [header]
    for line in segment_lines(start)[0]:
        name = line[:3]
        if name not in _WANTED:
            name = name.upper()
            if name not in _WANTED:
                continue
        if line[3:4] == field:
            counts[name] = number = counts.get(name, 0) + 1
            records.append(Segment(name, f"{name}[{number}]", line, start.rules))
    found = {name: [r for r in records if r.name == name] for name in ("EVN", "PID", "MRG")}
    keys = [patient_key(record, facility) for record in (*found["PID"], *found["MRG"])]
    sent = times.parse(header.first(7), ZoneInfo(facility.time_zone))
    return Envelope(
        format="hl7v2",
        trigger=trigger(header, found["EVN"][0].first(1) if found["EVN"] else ""),
        control_id=header.first(10).strip(),
        sender=(header.first(3).strip(), header.first(4).strip()),
        sent_at=sent.at if sent else None,
        charset=start.charset,
        patient_keys=tuple(dict.fromkeys(key for key in keys if key)),
        accept_ack=header.first(15).strip().upper(),
        application_ack=header.first(16).strip().upper(),
        version=header.first(12).strip(),
        quality_control=is_quality_control(records, facility),
        issues=tuple(start.issues),
    )
