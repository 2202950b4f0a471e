"""The organism that susceptibilities belong to -> OBR-26 and OBR-29 (HL7 v2.5.1 section 7.4.1; mappings.microbiology)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mappings.microbiology import parent_name
from mappings.outbound.line import Line, trimmed


def put_parent(obr: Line, observations: Iterable[dict[str, Any]]) -> None:
    """Fills OBR-26 (parent result) and OBR-29 (parent order), when every result of the group names the same organism.

    The number is written as the filler's: it names the parent's order whichever side gave it.
    """
    found = {parent_name(o): o for o in observations}
    if len(found) != 1 or "" in found:
        return
    ((name, observation),) = found.items()
    number, code, sub_id, *_ = name.split("|")
    display = next((r.get("display", "") for r in observation.get("derivedFrom", ()) if "identifier" in r), "")
    obr.put(26, trimmed(code, sub_id, display))
    obr.put(29, ("", number))
