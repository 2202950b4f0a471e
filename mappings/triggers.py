"""Message codes and trigger events of HL7 tables 0076 and 0003 (``hl7v2/triggers.yaml``)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

_FILE = Path(__file__).parent / "hl7v2" / "triggers.yaml"


@cache
def _triggers() -> tuple[dict[str, frozenset[str]], frozenset[str]]:
    with _FILE.open(encoding="utf-8") as text:
        found = yaml.safe_load(text)
    return {code: frozenset(events) for code, events in found["mapped"].items()}, frozenset(found["known"])


def known_trigger(code: str, event: str) -> bool:
    """Whether a message code with its event stands in the HL7 tables; an event that was not sent is not held against a message."""
    mapped, known = _triggers()
    if code in mapped:
        return not event or event in mapped[code]
    return code in known
