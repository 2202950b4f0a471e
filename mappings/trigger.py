"""Message code and trigger event of MSH-9, also as senders write it who do not follow the standard (HL7 v2.5.1 section 2.15.9.9)."""

from __future__ import annotations

import re

from mappings.source import Record

_JOINED = re.compile(r"([A-Z][A-Z0-9]{2})[^A-Z0-9]([A-Z][A-Z0-9]{2})(?![A-Z0-9])")
# Versions 2.1 and 2.2 named these messages without an event; each had only one.
_ONLY_EVENT = {"ORU": "R01", "ORM": "O01"}


def trigger(header: Record, event: str = "") -> tuple[str, str]:
    """(message code, trigger event); ``event`` is EVN-1, used when MSH-9 has none.

    Reads what senders write instead: only the structure (``ADT_A01``, ``^^ORU_R01``), or another separator than the message's own
    (``ORU^R01`` under other encoding characters). Both empty when MSH-9 is empty.
    """
    code, name, structure = (" ".join(header.first(9, n).split()).upper() for n in (1, 2, 3))
    if not code and structure:
        code = structure
    if not name and (joined := _JOINED.match(code)):
        code, name = joined[1], joined[2]
    return code, (name or " ".join(event.split()).upper() or _ONLY_EVENT.get(code, "")) if code else ""


def trigger_name(header: Record, event: str = "") -> str:
    """``<message code>^<trigger event>``, the code alone without an event, empty when MSH-9 is empty."""
    return "^".join(part for part in trigger(header, event) if part)
